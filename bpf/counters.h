/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Each CPU keeps what it has found out about page counters.
 */
#ifndef CHARGETRACE_COUNTERS_H
#define CHARGETRACE_COUNTERS_H

#include "filter.h"
#include "cgroup_names.h"

/* resolve_counter finds out about a counter. */
static __always_inline void resolve_counter(struct counter_info *k, __u64 counter)
{
	struct page_counter *last = (void *)counter, *parent;
	struct cgroup_subsys_state *css;

	if (!memory_root)
		learn_roots();
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_DEPTH; i++) {
		parent = BPF_CORE_READ(last, parent);
		if (!parent)
			break;
		last = parent;
	}
	k->counter = counter;
	k->kind = classify(counter, (__u64)last, &k->css_offset);
	css = css_of(counter, k->kind, k->css_offset);
	k->css = (__u64)css;
	k->serial_nr = css ? BPF_CORE_READ(css, serial_nr) : 0;
	k->cgroup = cgroup_id(css);
	k->hierarchy = memory_hierarchy;
	if (k->kind == KIND_HUGETLB || k->kind == KIND_HUGETLB_RSVD)
		k->hierarchy = hugetlb_hierarchy;
	if (k->kind == KIND_DMEM)
		k->hierarchy = dmem_hierarchy;
	k->named = false;
	k->matched = target_kinds >> (k->kind & 31) & 1;
	if (filter_cgroups && k->matched)
		k->matched = css && target_of(css, k->hierarchy) == CGROUP_TARGET;
}

/*
 * learn finds out about a counter, and leaves that in a place of this CPU's.
 * Not static, as name.
 */
__noinline int cache_counter(__u64 counter, __u64 slot)
{
	struct cpu_state *n = cpu_state_of(bpf_get_smp_processor_id());

	if (!n || slot >= KNOWN_SLOTS)
		return 1;
	resolve_counter(&n->known[slot], counter);
	return 0;
}

/*
 * is_known tells whether what is known of a counter is true of it still. Mostly it is of
 * the current task's cgroup, which can be read without a call.
 */
static __always_inline bool is_known(const struct counter_info *k, __u64 counter)
{
	struct cgroup_subsys_state *css = (void *)k->css, *current;

	if (k->counter != counter || !css)
		return false;
	if (TASK_BTF) {
		current = memory_css();
		if (css == current)
			return current->serial_nr == k->serial_nr;
	}
	return BPF_CORE_READ(css, serial_nr) == k->serial_nr;
}

/* know returns what is known of a counter; it is valid until the next such call. */
static __always_inline struct counter_info *lookup_counter(struct cpu_state *n, __u64 counter, __u64 slot)
{
	struct counter_info *k;

	if (n->running > 1)
		slot = KNOWN_INTERRUPT;
	k = &n->known[slot];
	if (!is_known(k, counter))
		cache_counter(counter, slot);
	return k;
}

/* slot_of returns the place for a counter that is charged. */
static __always_inline __u64 slot_of(__u64 counter)
{
	return (counter >> 6) * 0x9e3779b97f4a7c15ULL >> 60;
}

/* level_id returns the id of a level's cgroup. */
static __always_inline __u64 level_id(struct cpu_state *n, struct charge_event *e, __u64 level)
{
	if (!level)
		return 0;
	if (level == e->counter)
		return e->e.cgroup;
	return lookup_counter(n, level, KNOWN_LIMITING)->cgroup;
}

/*
 * keep leaves what is known of a counter in a place of this CPU's, unless it is in
 * the middle of that: what preempted it, or it preempts, does not wait.
 */
static __always_inline void keep(struct cpu_state *n, struct counter_info *kept, struct counter_info k)
{
	__u64 counter = k.counter;

	k.counter = 0;
	__sync_fetch_and_add(&n->keeping, 1);
	if (*(volatile __u64 *)&n->keeping == 1) {
		kept->counter = 0;
		barrier();
		*kept = k;
		barrier();
		kept->counter = counter;
	}
	__sync_fetch_and_sub(&n->keeping, 1);
}

#endif
