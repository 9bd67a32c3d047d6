/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Sleeps for memory.high: a task that leaves a level above its memory.high reclaims, and then
 * sleeps, before it returns to user space (mem_cgroup_handle_over_high).
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

/* above_high returns the level that most exceeds its memory.high, as calculate_overage does. */
static __always_inline struct mem_cgroup *above_high(struct mem_cgroup *memcg, __s64 *usage, __u64 *high)
{
	struct page_counter *counter = (void *)memcg + bpf_core_field_offset(struct mem_cgroup, memory);
	__u64 found = 0, most = 0;

#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_LEVELS && counter; i++) {
		__u64 limit = BPF_CORE_READ(counter, high), overage;
		__s64 pages = BPF_CORE_READ(counter, usage.counter);

		if (pages > (__s64)limit) {
			overage = (((__u64)pages - limit) << 20) / (limit ?: 1);
			if (!found || overage > most) {
				found = (__u64)counter;
				most = overage;
				*usage = pages;
				*high = limit;
			}
		}
		counter = BPF_CORE_READ(counter, parent);
	}
	return found ? (void *)(found - bpf_core_field_offset(struct mem_cgroup, memory)) : NULL;
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
	memcg = above_high(memcg, &e.usage, &e.high);
	if (!memcg || !resolve_memcg(&key, memcg))
		return 0;
	fill(&e.e, EVENT_THROTTLE, pid_tgid);
	e.e.cgroup = key.cgroup;
	e.e.hierarchy = key.hierarchy;
	e.ns = jiffies * jiffy_ns;
	send(&e, sizeof(e));
	return 0;
}

#endif
