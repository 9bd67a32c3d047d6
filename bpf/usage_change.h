/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Calls that change a counter and ask for no limit.
 */
#ifndef CHARGETRACE_USAGE_CHANGE_H
#define CHARGETRACE_USAGE_CHANGE_H

#include "counters.h"
#include "send.h"

/*
 * on_usage_change sends an event of a call that asks for no limit. Of those that change
 * a counter, two are not looked at: page_counter_cancel, of which uncharge is made
 * and with which a charge that fails is undone; and hugetlb, which takes pages off
 * the counter of a removed cgroup alone, whose parent has counted them before
 * (hugetlb_cgroup_move_parent).
 *
 * A fentry program can be preempted by another on its CPU, in kernels that preempt
 * themselves. So nothing is held here that that changes: what is known is copied,
 * and is true if the counter is the same thereafter.
 */
static __always_inline int on_usage_change(enum event_type type, struct page_counter *counter, unsigned long nr_pages)
{
	struct cpu_state *n = cpu_state_of(bpf_get_smp_processor_id());
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct uncharge_event e = {};
	struct counter_info *kept, k;

	if (!n || !matches_current(pid_tgid >> 32))
		return 0;
	kept = &n->unasked[slot_of((__u64)counter)];
	k = *kept;
	barrier();
	if (*(volatile __u64 *)&kept->counter != (__u64)counter || !is_known(&k, (__u64)counter)) {
		resolve_counter(&k, (__u64)counter);
		keep(n, kept, k);
	}
	if (!k.matched)
		return 0;
	if (k.css && !k.named) {
		if (!ensure_emitted((void *)k.css, k.cgroup, k.hierarchy)) {
			/* Without its lineage it would be missing above. */
			__sync_fetch_and_add(&n->lost_others, 1);
			return 0;
		}
		k.named = true;
		keep(n, kept, k);
	}
	fill(&e.e, type, pid_tgid);
	e.e.cgroup = k.cgroup;
	e.e.hierarchy = k.hierarchy;
	e.e.kind = k.kind;
	e.counter = (__u64)counter;
	e.pages = nr_pages;
	e.usage = BPF_CORE_READ(counter, usage.counter);
	send(&e, sizeof(e));
	return 0;
}

#endif
