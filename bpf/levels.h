/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The walk up the tree, for the level with the least room.
 */
#ifndef CHARGETRACE_LEVELS_H
#define CHARGETRACE_LEVELS_H

#include "filter.h"

/* Adjacent fields of struct page_counter. */
struct limits {
	__u64 high;
	__u64 max;
	__u64 parent;
};

static __always_inline void read_limits(struct limits *l, struct page_counter *counter)
{
	if (bpf_core_field_offset(struct page_counter, max) == bpf_core_field_offset(struct page_counter, high) + 8 &&
	    bpf_core_field_offset(struct page_counter, parent) == bpf_core_field_offset(struct page_counter, high) + 16) {
		bpf_probe_read_kernel(l, sizeof(*l), (void *)counter + bpf_core_field_offset(struct page_counter, high));
		return;
	}
	l->high = BPF_CORE_READ(counter, high);
	l->max = BPF_CORE_READ(counter, max);
	l->parent = (__u64)BPF_CORE_READ(counter, parent);
}

/*
 * walk fills in the levels of a charge. Their cgroup ids are addresses of counters until
 * level_id replaces them. walk avoids branches: the verifier would follow each combination
 * of them through all levels.
 */
static __always_inline void walk(struct charge_event *e, struct page_counter *counter)
{
	__s64 least = 1LL << 62, least_high = least, not_full = -1, mask;

	e->limiting.cgroup = e->high.cgroup = e->failed = 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_LEVELS; i++) {
		struct limits l;
		__s64 usage = 0;

		read_limits(&l, counter);
		/* An unlimited level has room at any usage. */
		if (i == 0 || l.max < UNLIMITED || l.high < UNLIMITED)
			usage = BPF_CORE_READ(counter, usage.counter);
		if (i == 0) {
			e->usage = usage;
			e->max = l.max;
		}
		mask = sign((__s64)l.max - usage - least);
		select(least, (__s64)l.max - usage, mask);
		select(e->limiting.cgroup, counter, mask);
		select(e->limiting.usage, usage, mask);
		select(e->limiting.max, l.max, mask);

		mask = sign((__s64)l.high - usage - least_high);
		select(least_high, (__s64)l.high - usage, mask);
		select(e->high.cgroup, counter, mask);
		select(e->high.usage, usage, mask);
		select(e->high.max, l.high, mask);

		mask = sign((__s64)l.max - usage - (__s64)e->requested) & not_full;
		select(e->failed, counter, mask);
		not_full &= ~mask;

		counter = (void *)l.parent;
		if (!counter)
			return;
	}
	e->e.flags |= FLAG_WALK_CUT;
}

#endif
