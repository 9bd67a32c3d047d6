/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The kinds and cgroups of page counters, resolved once and cached per CPU.
 */
#ifndef CHARGETRACE_COUNTERS_H
#define CHARGETRACE_COUNTERS_H

#include "cache.h"
#include "cgroup_names.h"
#include "filter.h"

/* resolve_counter fills in a counter's kind, cgroup and filter verdict. */
static __always_inline void resolve_counter(struct counter_info *info, __u64 counter)
{
	struct page_counter *last = (void *)counter, *parent;
	struct cgroup_subsys_state *css;

#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_DEPTH; i++) {
		parent = BPF_CORE_READ(last, parent);
		if (!parent)
			break;
		last = parent;
	}
	info->counter = counter;
	info->kind = classify(counter, (__u64)last, &info->css_offset);
	css = css_of(counter, info->kind, info->css_offset);
	info->css = (__u64)css;
	info->serial_nr = css ? BPF_CORE_READ(css, serial_nr) : 0;
	info->cgroup = cgroup_id(css);
	info->hierarchy = memory_hierarchy;
	if (info->kind == KIND_HUGETLB || info->kind == KIND_HUGETLB_RSVD)
		info->hierarchy = hugetlb_hierarchy;
	if (info->kind == KIND_DMEM)
		info->hierarchy = dmem_hierarchy;
	info->named = false;
	info->matched = target_kinds >> (info->kind & 31) & 1;
	if (filter_cgroups && info->matched)
		info->matched = css && target_of(css, info->hierarchy) == CGROUP_TARGET;
}

/*
 * has_serial_nr returns whether a css has that serial number: a later one in its memory
 * has another. Most are the current task's, which can be read without a helper.
 */
static __always_inline bool has_serial_nr(struct cgroup_subsys_state *css, __u64 serial_nr)
{
	struct cgroup_subsys_state *current;

	if (TASK_BTF) {
		current = memory_css();
		if (css == current)
			return current->serial_nr == serial_nr;
	}
	return BPF_CORE_READ(css, serial_nr) == serial_nr;
}

/* slot_of returns the cache slot of a counter. */
static __always_inline struct counter_info *slot_of(struct cpu_state *n, __u64 counter)
{
	return &n->counters[(counter >> 6) * 0x9e3779b97f4a7c15ULL >> 60];
}

static __always_inline void cache_counter(struct cpu_state *n, const struct counter_info *info)
{
	struct counter_info *slot = slot_of(n, info->counter);

	cache_store(n, *slot, *info);
}

/* lookup_counter copies a counter's cached info, or resolves it. */
static __always_inline void lookup_counter(struct cpu_state *n, __u64 counter, struct counter_info *info)
{
	struct counter_info *slot = slot_of(n, counter);

	if (cache_load(n, *info, *slot) && info->counter == counter && info->css &&
	    has_serial_nr((void *)info->css, info->serial_nr))
		return;
	resolve_counter(info, counter);
	cache_counter(n, info);
}

/*
 * level_id returns the cgroup id of a level in the tree of a charged counter; see
 * classify for css_offset.
 */
static __always_inline __u64 level_id(struct cpu_state *n, const struct charge_event *e, __u64 css_offset, __u64 level)
{
	struct cgroup_subsys_state *css;
	struct level_info info;
	__u64 serial_nr;

	if (level == e->counter)
		return e->e.cgroup;
	css = css_of(level, e->e.kind, css_offset);
	if (!css)
		return 0;
	serial_nr = BPF_CORE_READ(css, serial_nr);
	if (cache_load(n, info, n->level) && info.counter == level && info.serial_nr == serial_nr)
		return info.cgroup;
	info.counter = level;
	info.serial_nr = serial_nr;
	info.cgroup = cgroup_id(css);
	cache_store(n, n->level, info);
	return info.cgroup;
}

#endif
