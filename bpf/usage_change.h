/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Changes of a counter that no limit can refuse.
 */
#ifndef CHARGETRACE_USAGE_CHANGE_H
#define CHARGETRACE_USAGE_CHANGE_H

#include "counters.h"
#include "send.h"

/*
 * on_usage_change sends an event of an uncharge or a charge that ignores the limit. Two
 * other changes need no event: page_counter_cancel, which uncharge calls and which undoes
 * a failed charge; and hugetlb_cgroup_move_parent, which moves pages from a removed cgroup
 * to its parent, where they are already counted. See address_of for typed.
 */
static __always_inline int on_usage_change(enum event_type type, bool typed, struct page_counter *counter, unsigned long nr_pages)
{
	struct cpu_state *n = cpu_state_of(bpf_get_smp_processor_id());
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct uncharge_event e = {};
	__u64 address = typed ? number_of(counter) : (__u64)counter;
	struct counter_info info;

	if (!n || !matches_current(pid_tgid >> 32))
		return 0;
	lookup_counter(n, address, memory_css(), &info);
	if (!info.matched)
		return 0;
	if (info.css && !info.named) {
		if (!ensure_emitted((void *)info.css, info.cgroup, info.hierarchy)) {
			/* Without the path, the reader cannot add it to the ancestors. */
			__sync_fetch_and_add(&n->lost_others, 1);
			return 0;
		}
		info.named = true;
		cache_counter(n, &info);
	}
	fill(&e.e, type, pid_tgid);
	e.e.cgroup = info.cgroup;
	e.e.hierarchy = info.hierarchy;
	e.e.kind = info.kind;
	e.counter = address;
	e.pages = nr_pages;
	read_usage(&e.usage, typed, counter);
	send(&e, sizeof(e));
	return 0;
}

#endif
