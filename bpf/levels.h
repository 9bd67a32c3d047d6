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
	struct page_counter *parent;
};

/* limits_are_adjacent returns whether one read gets them, which holds up to 7.3. */
static __always_inline bool limits_are_adjacent(void)
{
	__u64 high = bpf_core_field_offset(struct page_counter, high);

	return bpf_core_field_offset(struct page_counter, max) == high + 8 &&
	       bpf_core_field_offset(struct page_counter, parent) == high + 16;
}

static __always_inline void read_limits(struct limits *l, bool typed, bool adjacent, struct page_counter *counter)
{
	if (typed) {
		l->high = counter->high;
		l->max = counter->max;
		l->parent = counter->parent;
	} else if (adjacent) {
		bpf_core_read(l, sizeof(*l), &counter->high);
	} else {
		l->high = BPF_CORE_READ(counter, high);
		l->max = BPF_CORE_READ(counter, max);
		l->parent = BPF_CORE_READ(counter, parent);
	}
}

/* The state of a counter's tree before a charge. The cgroups are addresses of counters. */
struct levels {
	__s64 usage;
	__u64 max;
	struct level limiting; /* as in struct charge_event */
	struct level high;
	bool cut; /* the tree is deeper than MAX_LEVELS */
};

/*
 * above returns the next level's counter, or 0 at the root of the memory controller, which
 * cannot be limited: reading it would cost as much as any level.
 */
static __always_inline __u64 above(__u64 parent, __u64 root)
{
	return parent - root < bpf_core_type_size(struct mem_cgroup) ? 0 : parent;
}

/*
 * walk fills in the levels of a charge. charged is what the charge has added to each.
 *
 * The levels are compared without branches: the verifier would follow each combination of
 * them through all levels.
 */
static __always_inline void walk(struct levels *w, bool typed, struct page_counter *counter, __s64 charged)
{
	struct level limiting, high;
	__s64 usage = 0, mask;
	struct limits l;
	__u64 level, root = memory_root;
	bool adjacent = !typed && limits_are_adjacent();

	barrier_var(adjacent); /* not computed again at each level */
	read_limits(&l, typed, adjacent, counter);
	read_usage(&usage, typed, counter);
	w->usage = usage - charged;
	w->max = l.max;
	limiting.cgroup = high.cgroup = level = address_of(typed, counter);
	limiting.usage = high.usage = w->usage;
	limiting.max = l.max;
	high.max = l.high;
#pragma clang loop unroll(disable)
	for (__u64 i = 1; i < MAX_LEVELS; i++) {
		/* Without this clang keeps two versions of i, which differ by path. */
		barrier_var(i);
		level = above(address_of(typed, l.parent), root);
		if (!level)
			break;
		counter = l.parent;
		read_limits(&l, typed, adjacent, counter);
		/* A level without limits has room at any usage. */
		if ((l.max & l.high) >= UNLIMITED)
			continue;
		read_usage(&usage, typed, counter);
		usage -= charged;

		mask = sign((__s64)(l.max - usage - limiting.max + limiting.usage));
		select(limiting.cgroup, level, mask);
		select(limiting.usage, usage, mask);
		select(limiting.max, l.max, mask);

		mask = sign((__s64)(l.high - usage - high.max + high.usage));
		select(high.cgroup, level, mask);
		select(high.usage, usage, mask);
		select(high.max, l.high, mask);
	}
	w->cut = level && above(address_of(typed, l.parent), root);
	w->limiting = limiting;
	w->high = high;
}

#endif
