/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * A call of page_counter_try_charge. Everything happens at its return, where all is known.
 * A fexit program has the arguments there; for the kretprobe, the kprobe keeps them.
 */
#ifndef CHARGETRACE_CHARGE_H
#define CHARGETRACE_CHARGE_H

#include "calls.h"
#include "counters.h"
#include "levels.h"
#include "retries.h"
#include "stacks.h"
#include "threshold.h"

static __always_inline __u32 task_flags(void)
{
	struct task_struct *task;

	if (TASK_BTF)
		return bpf_get_current_task_btf()->flags;
	task = (void *)bpf_get_current_task();
	return BPF_CORE_READ(task, flags);
}

/*
 * is_unmatched returns whether a counter is the last one on this CPU that a filter
 * rejected. It checks only the current task's cgroup, which needs no helper.
 */
static __always_inline bool is_unmatched(struct cpu_state *n, __u64 counter)
{
	struct unmatched last;

	return (filter_cgroups || ~target_kinds) && TASK_BTF && cache_load(n, last, n->unmatched) && last.counter == counter &&
	       memory_css()->serial_nr == last.serial_nr;
}

/* prefilter runs the cheap checks. It returns this CPU's state, or NULL to drop the call. */
static __always_inline struct cpu_state *prefilter(__u32 cpu, __u32 tgid, __u64 counter, __u64 nr_pages, __u64 sp)
{
	struct cpu_state *n;

	if (tgid == tracer_tgid)
		return NULL;
	n = cpu_state_of(cpu);
	if (!n)
		return NULL;
	if (!matches_task(n, tgid) || (nr_pages < min_pages && !may_have_failed(sp)) || is_unmatched(n, counter)) {
		__sync_fetch_and_add(&n->filtered, 1);
		return NULL;
	}
	return n;
}

/* ignore_high removes the high of counters that have none, where it is 0. */
static __always_inline void ignore_high(struct levels *w, __u8 kind)
{
	w->high.max |= ((1ULL << KIND_MEMORY | 1ULL << KIND_SWAP) >> (kind & 63) & 1) - 1;
}

/*
 * may_be_sent returns whether a call passes the filters, at its entry, where its outcome is
 * not known. A stack costs more than this.
 */
static __always_inline bool may_be_sent(struct cpu_state *n, struct page_counter *counter, __u64 nr_pages, __u64 sp)
{
	struct counter_info info;
	struct levels w;

	lookup_counter(n, (__u64)counter, memory_css(), &info);
	if (!info.matched)
		return false;
	if ((!min_pages && !only_limited) || may_have_failed(sp))
		return true;
	if (min_pages && is_small(nr_pages, info.kind))
		return false;
	if (!only_limited || threshold_percent)
		return true;
	walk(&w, false, counter, 0);
	ignore_high(&w, info.kind);
	return w.limiting.usage >= (__s64)w.limiting.max || w.limiting.usage + (__s64)nr_pages > (__s64)w.limiting.max ||
	       w.high.usage + nr_pages > w.high.max;
}

/* on_entry keeps a call for its return. */
static __always_inline void on_entry(void *ctx, struct page_counter *counter, __u64 nr_pages, __u64 fail, __u64 sp)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u32 cpu = bpf_get_smp_processor_id(), tgid = pid_tgid >> 32;
	struct cpu_state *n = prefilter(cpu, tgid, (__u64)counter, nr_pages, sp);
	struct call_stacks *s;
	struct call *c;

	if (!n)
		return;
	c = new_call(n, cpu, sp);
	c->counter = (__u64)counter;
	c->nr_pages = nr_pages;
	c->fail = fail;
	c->tid = (__u32)pid_tgid;
	if (!take_kernel_stacks && !take_user_stacks)
		return;
	/* At the return, older kernels do not find the way from a kretprobe to the caller. */
	s = bpf_map_lookup_elem(&call_stacks, &c->stacks);
	if (s && may_be_sent(n, counter, nr_pages, sp))
		take_stacks(n, ctx, s, tgid);
	else
		c->stacks = NO_STACKS;
}

/* from_bool returns 0 or 1. Only the low byte of a bool result is defined. */
static __always_inline __u64 from_bool(__u64 result)
{
	return result & 1;
}

/*
 * record sends the event of a charge. It returns false if a filter rejects it. See
 * address_of for typed.
 */
static __always_inline bool record(void *ctx, bool typed, struct cpu_state *n, struct page_counter *counter,
				   const struct call *c, __u64 pid_tgid, __u64 charged)
{
	__u32 cpu = bpf_get_smp_processor_id(), kernel_stack = 0, user_stack = 0;
	bool retry = false, crosses;
	struct cgroup_subsys_state *css, *current;
	struct counter_info info;
	struct charge_event *e;
	__u64 fail = c->fail, failed = 0, limiting;
	struct levels w;

	/* First: the verifier repeats it for each path to it. For the same reason no branch. */
	walk(&w, typed, counter, c->nr_pages & -charged);
	current = memory_css();
	lookup_counter(n, c->counter, current, &info);
	if (!info.matched) {
		struct unmatched last = {info.counter, info.serial_nr};

		cache_store(n, n->unmatched, last);
		return false;
	}
	if (only_limited || min_pages) {
		retry = retried(c->sp, c->nr_pages);
		if (min_pages && !retry && is_small(c->nr_pages, info.kind))
			return false;
		if (!charged && c->nr_pages > 1)
			keep_failure(c->sp, c->nr_pages);
	}
	css = (void *)info.css;
	if (css && !info.named && ensure_emitted(css, info.cgroup, info.hierarchy)) {
		info.named = true;
		cache_counter(n, &info);
	}
	ignore_high(&w, info.kind);
	crosses = crosses_threshold(&w, info.kind, c->nr_pages & -charged);
	if (only_limited && charged && !retry && !crosses && w.limiting.usage < (__s64)w.limiting.max &&
	    w.high.usage + c->nr_pages <= w.high.max)
		return false;

	w.high.cgroup = w.high.max < UNLIMITED ? level_id(&info, w.high.cgroup) : 0;
	if (!charged) {
		/* Until 6.16 a program cannot even load a pointer to a pointer. */
		if (typed)
			bpf_probe_read_kernel(&fail, sizeof(fail), (__u64 *)ctx + 2);
		bpf_probe_read_kernel(&failed, sizeof(failed), (void *)fail);
		failed = level_id(&info, failed);
	}
	limiting = w.limiting.cgroup;
	w.limiting.cgroup = w.limiting.max < UNLIMITED ? level_id(&info, limiting) : 0;
	if (w.limiting.cgroup)
		cache_level(n, &info, limiting, w.limiting.cgroup);

	if (take_kernel_stacks || take_user_stacks) {
		struct call_stacks *s = typed ? claim_stacks(n, cpu) : bpf_map_lookup_elem(&call_stacks, &c->stacks);

		if (s && typed)
			take_stacks(n, ctx, s, pid_tgid >> 32);
		if (s)
			send_stacks(n, s, &kernel_stack, &user_stack);
		else
			__sync_fetch_and_add(&n->lost_stacks, 1);
		if (typed)
			release_stacks(n);
	}

	/*
	 * The counts belong to this CPU, but must be atomic: before 5.12 an interrupt
	 * that charges can run a fentry program in the middle of the same program.
	 */
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		__sync_fetch_and_add(&n->lost, 1);
		return true;
	}
	__sync_fetch_and_add(&n->delivered, 1);
	e->e.type = EVENT_CHARGE;
	e->e.cpu = cpu;
	e->e.boot_ns = bpf_ktime_get_boot_ns();
	e->e.tgid = pid_tgid >> 32;
	e->e.tid = (__u32)pid_tgid;
	current_comm((__u64 *)e->e.comm);
	e->e.cgroup = info.cgroup;
	e->e.hierarchy = info.hierarchy;
	e->e.kind = info.kind;
	e->e.outcome = charged ? OUTCOME_OK : OUTCOME_FAILED;
	e->e.flags = (retry ? FLAG_RETRY : 0) | (w.cut ? FLAG_WALK_CUT : 0) | (task_flags() & PF_KTHREAD ? FLAG_KTHREAD : 0) |
		     (css && css != current && is_remote(css, info.kind) ? FLAG_REMOTE : 0);
	if (crosses)
		e->e.flags |= FLAG_THRESHOLD;
	e->counter = c->counter;
	e->sp = c->sp;
	e->requested = c->nr_pages;
	e->usage = w.usage;
	e->max = w.max;
	e->limiting = w.limiting;
	e->high = w.high;
	e->failed = failed;
	e->lost = n->lost;
	e->kernel_stack = kernel_stack;
	e->user_stack = user_stack;
	/* At the threshold there is not much time until the limit. */
	bpf_ringbuf_submit(e, crosses ? BPF_RB_FORCE_WAKEUP : wakeup(n));
	return true;
}

static __always_inline void on_return(void *ctx, __u64 charged, __u64 sp)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct cpu_state *n = cpu_state_of(cpu), *at_entry = n;
	__u64 pid_tgid;
	struct call *c;

	if (!n || (!n->inflight && !migrated))
		return;
	pid_tgid = bpf_get_current_pid_tgid();
	if (target_tgid && pid_tgid >> 32 != target_tgid)
		return;
	if (migrated)
		at_entry = cpu_state_of(migrated_from(cpu, sp));
	c = at_entry ? find_call(at_entry, sp, (__u32)pid_tgid) : NULL;
	if (!c)
		return;
	if (!record(ctx, false, n, (void *)c->counter, c, pid_tgid, charged))
		__sync_fetch_and_add(&n->filtered, 1);
	free_call(at_entry, c, sp); /* and its stacks */
}

/* on_fexit gets the arguments and the result of a call, and the context as a number. */
static __always_inline void on_fexit(__u64 *ctx, __u64 sp)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct page_counter *counter = (void *)ctx[0];
	struct call c = {.sp = sp, .counter = number_of(counter), .nr_pages = ctx[1]};
	struct cpu_state *n = prefilter(bpf_get_smp_processor_id(), pid_tgid >> 32, c.counter, c.nr_pages, sp);

	if (!n)
		return;
	if (!record(ctx, true, n, counter, &c, pid_tgid, from_bool(ctx[3])))
		__sync_fetch_and_add(&n->filtered, 1);
}

#endif
