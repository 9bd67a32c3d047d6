/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The entry and the return of page_counter_try_charge.
 */
#ifndef CHARGETRACE_CHARGE_H
#define CHARGETRACE_CHARGE_H

#include "counters.h"
#include "inflight.h"
#include "levels.h"
#include "retries.h"

static __always_inline __u32 task_flags(void)
{
	struct task_struct *task;

	if (TASK_BTF)
		return bpf_get_current_task_btf()->flags;
	task = (void *)bpf_get_current_task();
	return BPF_CORE_READ(task, flags);
}

/* record_entry stores an in-flight charge. It returns false if a filter rejects it. */
static __always_inline bool record_entry(void *ctx, struct cpu_state *n, __u64 pid_tgid, struct page_counter *counter,
				 unsigned long nr_pages, __u64 fail, __u64 sp)
{
	struct counter_info info;
	struct cgroup_subsys_state *css;
	struct charge_event *e;
	struct calls *cs;
	struct call *c;
	__u32 cpu;
	bool retry;

	lookup_counter(n, (__u64)counter, &info);
	if (!info.matched) {
		struct unmatched last = {info.counter, info.serial_nr};

		cache_store(n, n->unmatched, last);
		return false;
	}
	retry = (only_limited || min_pages) && retried(n, sp, nr_pages);
	if (min_pages && !retry && is_small(nr_pages, info.kind))
		return false;
	cpu = bpf_get_smp_processor_id();
	cs = bpf_map_lookup_elem(&calls, &cpu);
	if (!cs)
		return false;
	if (migrated)
		migrated_from(cpu, sp); /* left by a call whose return was missed */
	c = free_call(n, cs, cpu, sp);
	c->fail = fail;
	c->css_offset = info.css_offset;
	e = &c->event;
	e->e.type = EVENT_CHARGE;
	e->e.cpu = cpu;
	e->e.tgid = pid_tgid >> 32;
	e->e.tid = (__u32)pid_tgid;
	current_comm((__u64 *)e->e.comm);
	e->e.cgroup = info.cgroup;
	e->e.hierarchy = info.hierarchy;
	e->e.kind = info.kind;
	e->e.flags = retry ? FLAG_RETRY : 0;
	e->counter = (__u64)counter;
	e->sp = sp;
	e->requested = nr_pages;
	css = (void *)info.css;
	if (css && !info.named && ensure_emitted(css, info.cgroup, info.hierarchy)) {
		info.named = true;
		cache_counter(n, &info);
	}
	if (css && css != memory_css() && is_remote(css, e->e.kind))
		e->e.flags |= FLAG_REMOTE;
	if (task_flags() & PF_KTHREAD)
		e->e.flags |= FLAG_KTHREAD;

	walk(e, counter);
	e->e.outcome = e->failed ? OUTCOME_FAILED : OUTCOME_OK;
	/* Not info.css_offset: the verifier would walk once for each value that it can have. */
	e->limiting.cgroup = e->limiting.max < UNLIMITED ? level_id(n, e, c->css_offset, e->limiting.cgroup) : 0;
	/* In other counters high is unset and 0. */
	if (e->e.kind != KIND_MEMORY && e->e.kind != KIND_SWAP)
		e->high.max = ~0ULL;
	e->high.cgroup = e->high.max < UNLIMITED ? level_id(n, e, c->css_offset, e->high.cgroup) : 0;
	e->failed = level_id(n, e, c->css_offset, e->failed);
	/* A charge that only_limited will drop at the return needs no stacks. */
	if (take_kernel_stacks || take_user_stacks)
		take_stacks(n, ctx, c,
			    !only_limited || retry || e->e.outcome == OUTCOME_FAILED ||
				    e->limiting.usage >= (__s64)e->limiting.max);
	return true;
}

/*
 * is_unmatched returns whether a counter is the last one on this CPU that a filter
 * rejected. It checks only the current task's cgroup, which needs no helper.
 */
static __always_inline bool is_unmatched(struct cpu_state *n, __u64 counter)
{
	struct unmatched last;

	return TASK_BTF && cache_load(n, last, n->unmatched) && last.counter == counter &&
	       memory_css()->serial_nr == last.serial_nr;
}

/* prefilter runs the cheap checks. It returns this CPU's state, or NULL to drop the call. */
static __always_inline struct cpu_state *prefilter(__u64 pid_tgid, __u64 counter, unsigned long nr_pages, __u64 sp)
{
	__u32 tgid = pid_tgid >> 32;
	struct cpu_state *n;

	if (tgid == tracer_tgid)
		return NULL;
	n = cpu_state_of(bpf_get_smp_processor_id());
	if (!n)
		return NULL;
	if ((nr_pages < min_pages && !may_have_failed(n, sp)) || !matches_task(n, tgid) || is_unmatched(n, counter)) {
		__sync_fetch_and_add(&n->filtered, 1);
		return NULL;
	}
	return n;
}

static __always_inline int on_entry(void *ctx, struct cpu_state *n, __u64 pid_tgid, struct page_counter *counter,
				    unsigned long nr_pages, __u64 fail, __u64 sp)
{
	if (!record_entry(ctx, n, pid_tgid, counter, nr_pages, fail, sp))
		__sync_fetch_and_add(&n->filtered, 1);
	return 0;
}

static __always_inline int on_return(bool charged, __u64 sp)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct cpu_state *n = cpu_state_of(cpu), *recorded;
	__u64 pid_tgid;
	struct charge_event *e;
	struct call *c;
	__u64 level = 0;

	if (!n || (!n->inflight && !migrated))
		return 0;
	pid_tgid = bpf_get_current_pid_tgid();
	if (target_tgid && pid_tgid >> 32 != target_tgid)
		return 0;
	if (migrated)
		cpu = migrated_from(cpu, sp);
	recorded = cpu_state_of(cpu);
	c = call_from(n, cpu, sp);
	/* After a missed return, another thread can have the same sp. */
	if (!recorded || !c || c->event.e.tid != (__u32)pid_tgid)
		return 0;
	e = &c->event;
	e->e.outcome = charged ? OUTCOME_OK : OUTCOME_FAILED;
	e->failed = 0;
	if (!charged) {
		bpf_probe_read_kernel(&level, sizeof(level), (void *)c->fail);
		e->failed = level_id(n, e, c->css_offset, level);
		if ((only_limited || min_pages) && e->requested > 1)
			keep_failure(n, sp, e->requested);
	}
	send_charge(recorded, c); /* the event has that CPU's number */
	c->sp = 0;
	__sync_fetch_and_sub(&recorded->inflight, 1);
	return 0;
}

#endif
