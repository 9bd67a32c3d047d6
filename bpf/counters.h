/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The kinds and cgroups of page counters, resolved once and cached per CPU.
 */
#ifndef CHARGETRACE_COUNTERS_H
#define CHARGETRACE_COUNTERS_H

#include "cache.h"
#include "cgroup_names.h"
#include "filter.h"

/*
 * classify_counter returns the kind of a counter, and above its 8 bits the counter's offset
 * from its css. It is global; see emit_cgroup.
 */
__noinline __u64 classify_counter(__u64 counter)
{
	struct page_counter *last = (void *)counter, *parent;
	__u64 css_offset;
	enum kind kind;

#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_DEPTH; i++) {
		parent = BPF_CORE_READ(last, parent);
		if (!parent)
			break;
		last = parent;
	}
	kind = classify(counter, (__u64)last, &css_offset);
	return css_offset << 8 | kind;
}

/* resolve_counter fills in a counter's kind, cgroup and filter verdict. */
static __always_inline void resolve_counter(struct counter_info *info, __u64 counter)
{
	__u64 class = classify_counter(counter);
	struct cgroup_subsys_state *css;

	info->counter = counter;
	info->kind = class;
	info->css_offset = class >> 8;
	css = css_of(counter, info->kind, info->css_offset);
	info->css = (__u64)css;
	info->serial_nr = css ? BPF_CORE_READ(css, serial_nr) : 0;
	info->cgroup = cgroup_id(css);
	info->hierarchy = hierarchy_of(info->kind);
	info->named = false;
	info->level = info->level_cgroup = 0;
	info->matched = target_kinds >> (info->kind & 31) & 1;
	if (filter_cgroups && info->matched)
		info->matched = css && target_of(css, info->hierarchy) == CGROUP_TARGET;
}

/*
 * has_serial_nr returns whether a css has that serial number: a later one in its memory
 * has another. Most are the current task's, which can be read without a helper.
 */
static __always_inline bool has_serial_nr(struct cgroup_subsys_state *css, struct cgroup_subsys_state *current,
					  __u64 serial_nr)
{
	if (TASK_BTF && css == current)
		return current->serial_nr == serial_nr;
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

/* lookup_counter copies a counter's cached info, or resolves it. current is memory_css(). */
static __always_inline void lookup_counter(struct cpu_state *n, __u64 counter, struct cgroup_subsys_state *current,
					   struct counter_info *info)
{
	struct counter_info *slot = slot_of(n, counter);

	if (cache_load(n, *info, *slot) && info->counter == counter && info->css &&
	    has_serial_nr((void *)info->css, current, info->serial_nr))
		return;
	resolve_counter(info, counter);
	cache_counter(n, info);
}

/* resolve_level returns the cgroup id of a level. It is global; see emit_cgroup. */
__noinline __u64 resolve_level(__u64 level, __u64 kind, __u64 css_offset)
{
	return cgroup_id(css_of(level, kind, css_offset));
}

/* level_id returns the cgroup id of a level in the tree of a charged counter. */
static __always_inline __u64 level_id(const struct counter_info *info, __u64 level)
{
	if (level == info->counter)
		return info->cgroup;
	if (level == info->level)
		return info->level_cgroup;
	return resolve_level(level, info->kind, info->css_offset);
}

/*
 * cache_level caches the level that limited a charge: the ancestors of a css never change.
 * A pool of device memory can be freed before its css.
 */
static __always_inline void cache_level(struct cpu_state *n, struct counter_info *info, __u64 level, __u64 cgroup)
{
	if (level == info->counter || level == info->level || info->kind == KIND_DMEM)
		return;
	info->level = level;
	info->level_cgroup = cgroup;
	cache_counter(n, info);
}

#endif
