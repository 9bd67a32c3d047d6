/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Sleeps for memory.high and memory.swap.high: a task that leaves a level above them reclaims,
 * and then sleeps, before it returns to user space or in the charge
 * (mem_cgroup_handle_over_high).
 */
#ifndef CHARGETRACE_THROTTLE_H
#define CHARGETRACE_THROTTLE_H

#include "oom_reclaim.h"

/* The maximum distance of the stack pointers of a function and of one that it calls. */
#define CALLEE_DISTANCE 1024

/*
 * on_over_high stores where the thread handles memory.high. Until 6.17 the function is called
 * on most returns to user space, and returns at once unless there is something to do.
 */
static __always_inline int on_over_high(__u64 sp)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 pid_tgid = bpf_get_current_pid_tgid();

	if (bpf_core_field_exists(task->memcg_nr_pages_over_high) && !BPF_CORE_READ(task, memcg_nr_pages_over_high))
		return 0;
	bpf_map_update_elem(&throttled, &pid_tgid, &sp, BPF_ANY);
	return 0;
}

/* A level that exceeds its memory.high or memory.swap.high. */
struct overage {
	__u64 counter; /* 0: none */
	__s64 usage;
	__u64 high;
	__u64 most; /* as calculate_overage in mm/memcontrol.c computes it */
};

/* find_overage finds the level that exceeds its high most, from a counter upwards. */
static __always_inline void find_overage(struct page_counter *counter, struct overage *o)
{
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_LEVELS && counter; i++) {
		__u64 limit = BPF_CORE_READ(counter, high), overage;
		__s64 pages = BPF_CORE_READ(counter, usage.counter);

		if (pages > (__s64)limit) {
			overage = (((__u64)pages - limit) << 20) / (limit ?: 1);
			if (!o->counter || overage > o->most) {
				o->counter = (__u64)counter;
				o->usage = pages;
				o->high = limit;
				o->most = overage;
			}
		}
		counter = BPF_CORE_READ(counter, parent);
	}
}

/*
 * on_sleep sends an event of a sleep in mem_cgroup_handle_over_high. It is at the beginning:
 * return probes are limited in number, and many tasks can sleep at a time.
 */
static __always_inline int on_sleep(__s64 jiffies, __u64 sp)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u64 *caller = bpf_map_lookup_elem(&throttled, &pid_tgid);
	struct throttle_event e = {};
	struct cgroup_key key = {};
	__u64 offset = bpf_core_field_offset(struct mem_cgroup, memory);
	__u64 swap = bpf_core_field_offset(struct mem_cgroup, swap);
	struct overage o = {}, of_swap = {};
	enum kind kind = KIND_MEMORY;
	struct mem_cgroup *memcg;

	if (!caller)
		return 0;
	sp = *caller - sp;
	if (sp > CALLEE_DISTANCE)
		return 0; /* another sleep, such as in reclaim */
	bpf_map_delete_elem(&throttled, &pid_tgid);
	if (!matches_current(pid_tgid >> 32))
		return 0;
	memcg = (void *)current_css(bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id)) - bpf_core_field_offset(struct mem_cgroup, css);
	find_overage((void *)memcg + offset, &o);
	if (memory_hierarchy == 0)
		find_overage((void *)memcg + swap, &of_swap);
	/* The kernel adds up the delays for both: the event is for the larger. */
	if (of_swap.counter && (!o.counter || of_swap.most > o.most)) {
		o = of_swap;
		kind = KIND_SWAP;
		offset = swap;
	}
	memcg = (void *)(o.counter - offset);
	if (!o.counter || !resolve_memcg(&key, memcg))
		return 0;
	e.usage = o.usage;
	e.high = o.high;
	fill(&e.e, EVENT_THROTTLE, pid_tgid);
	e.e.kind = kind;
	e.e.cgroup = key.cgroup;
	e.e.hierarchy = key.hierarchy;
	e.ns = jiffies * jiffy_ns;
	send(&e, sizeof(e));
	return 0;
}

#endif
