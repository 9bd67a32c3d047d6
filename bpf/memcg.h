/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Resolves a page counter to its kind, css and cgroup.
 */
#ifndef CHARGETRACE_MEMCG_H
#define CHARGETRACE_MEMCG_H

#include "state.h"
#include <bpf/bpf_core_read.h>

/* The maximum number of levels that each charge walks. */
#define MAX_LEVELS 32
/* The same for work done once per cgroup. */
#define MAX_DEPTH 128

/* A counter without a limit has a max of LONG_MAX / PAGE_SIZE or a little less. */
#define UNLIMITED (1ULL << 46)

/*
 * The root objects of the controllers; see learn_roots. They are never freed and never
 * move.
 */
static volatile __u64 memory_root;  /* struct mem_cgroup */
static volatile __u64 memory_ss;    /* struct cgroup_subsys */
static volatile __u64 hugetlb_root; /* struct hugetlb_cgroup */
static volatile __u64 dmem_ss;
static volatile __u32 memory_hierarchy;
static volatile __u32 hugetlb_hierarchy;
static volatile __u32 dmem_hierarchy;

/* TASK_BTF is true if programs can read the current task without bpf_probe_read_kernel. */
#define TASK_BTF bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf)

/*
 * number_of converts a pointer to a number: the verifier forbids arithmetic on pointers to
 * kernel types and on the context, except to subtract another pointer.
 */
static __always_inline __u64 number_of(const void *pointer)
{
	__u64 number = (__u64)pointer;

	asm volatile("%0 -= %1" : "+r"(number) : "r"(&anchor));
	return number + anchor;
}

/*
 * With typed, a counter is a pointer that the program may follow without a helper, but not
 * use as a number.
 */
#define address_of(typed, counter) ((typed) ? number_of(counter) : (__u64)(counter))

static __always_inline void read_usage(__s64 *usage, bool typed, struct page_counter *counter)
{
	if (typed)
		*usage = counter->usage.counter;
	else
		bpf_core_read(usage, sizeof(*usage), &counter->usage.counter);
}

/* css_of_task returns a task's css of a controller. */
static __always_inline struct cgroup_subsys_state *css_of_task(struct task_struct *task, int id)
{
	struct css_set *cgroups = BPF_CORE_READ(task, cgroups);
	struct cgroup_subsys_state *css = NULL;

	bpf_core_read(&css, sizeof(css), (void *)cgroups + bpf_core_field_offset(struct css_set, subsys) + id * sizeof(css));
	return css;
}

/* current_css returns the current task's css of a controller. */
static __always_inline struct cgroup_subsys_state *current_css(int id)
{
	return css_of_task((void *)bpf_get_current_task(), id);
}

/* memory_css returns the current task's mem_cgroup in the cheapest way. */
static __always_inline struct cgroup_subsys_state *memory_css(void)
{
	const int id = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);

	if (!TASK_BTF)
		return current_css(id);
	return *(struct cgroup_subsys_state **)((void *)bpf_get_current_task_btf()->cgroups +
						bpf_core_field_offset(struct css_set, subsys) + id * sizeof(void *));
}

/* root_css returns the root of a controller's tree, and its hierarchy. */
static __always_inline struct cgroup_subsys_state *root_css(int id, volatile __u32 *hierarchy)
{
	struct cgroup_root *root = BPF_CORE_READ(current_css(id), cgroup, root);
	struct cgroup_subsys_state *css = NULL;

	bpf_core_read(&css, sizeof(css), (void *)root + bpf_core_field_offset(struct cgroup_root, cgrp) +
					     bpf_core_field_offset(struct cgroup, subsys) + id * sizeof(css));
	*hierarchy = BPF_CORE_READ(root, hierarchy_id);
	return css;
}

static __always_inline int find_roots(void)
{
	struct cgroup_subsys_state *css;

	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, hugetlb_cgrp_id))
		hugetlb_root = (__u64)root_css(bpf_core_enum_value(enum cgroup_subsys_id, hugetlb_cgrp_id), &hugetlb_hierarchy);
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, dmem_cgrp_id)) {
		css = root_css(bpf_core_enum_value(enum cgroup_subsys_id, dmem_cgrp_id), &dmem_hierarchy);
		dmem_ss = (__u64)BPF_CORE_READ(css, ss);
	}
	css = root_css(bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id), &memory_hierarchy);
	memory_ss = (__u64)BPF_CORE_READ(css, ss);
	memory_root = (__u64)css;
	return 0;
}

/* kind_at returns the kind of the counter at an offset of a mem_cgroup. */
static __always_inline enum kind kind_at(__u64 offset)
{
	if (offset == bpf_core_field_offset(struct mem_cgroup, memory))
		return KIND_MEMORY;
	/* swap and memsw are in a union. */
	if (offset == bpf_core_field_offset(struct mem_cgroup, swap))
		return memory_hierarchy ? KIND_MEMSW : KIND_SWAP;
	if (bpf_core_field_exists(struct mem_cgroup, kmem) && offset == bpf_core_field_offset(struct mem_cgroup, kmem))
		return KIND_KMEM;
	if (bpf_core_field_exists(struct mem_cgroup, tcpmem) && offset == bpf_core_field_offset(struct mem_cgroup, tcpmem))
		return KIND_TCPMEM;
	return KIND_UNKNOWN;
}

/* is_in returns whether offset is in an array field of type. */
#define is_in(offset, type, array) \
	((offset) - bpf_core_field_offset(type, array) < bpf_core_field_size(type, array))

static __always_inline bool is_css_of(__u64 css, __u64 ss)
{
	return css && ss && (__u64)BPF_CORE_READ((struct cgroup_subsys_state *)css, ss) == ss;
}

/*
 * classify returns the kind of a counter and its offset from its css. The last counter
 * of its tree lies in the root object of the controller, at the same offset.
 */
static __always_inline enum kind classify(__u64 counter, __u64 last, __u64 *css_offset)
{
	__u64 offset = last - memory_root;
	enum kind kind = kind_at(offset);

	*css_offset = offset;
	if (kind != KIND_UNKNOWN)
		return kind;

	if (bpf_core_type_exists(struct hugetlb_cgroup) && hugetlb_root) {
		offset = *css_offset = last - hugetlb_root;
		if (is_in(offset, struct hugetlb_cgroup, hugepage))
			return KIND_HUGETLB;
		if (bpf_core_field_exists(struct hugetlb_cgroup, rsvd_hugepage) &&
		    is_in(offset, struct hugetlb_cgroup, rsvd_hugepage))
			return KIND_HUGETLB_RSVD;
	}

	/* Each region has pools, and a root pool. */
	if (bpf_core_type_exists(struct dmem_cgroup_pool_state)) {
		struct dmem_cgroup_pool_state *pool = (void *)counter - bpf_core_field_offset(struct dmem_cgroup_pool_state, cnt);

		if (is_css_of((__u64)BPF_CORE_READ(pool, cs), dmem_ss))
			return KIND_DMEM;
	}

	/* A tree that does not end at the root. */
	offset = *css_offset = bpf_core_field_offset(struct mem_cgroup, memory);
	if (is_css_of(counter - offset, memory_ss))
		return kind_at(offset);
	offset = *css_offset = bpf_core_field_offset(struct mem_cgroup, swap);
	if (is_css_of(counter - offset, memory_ss))
		return kind_at(offset);
	return KIND_UNKNOWN;
}

/* css_of returns the css that a counter belongs to. */
static __always_inline struct cgroup_subsys_state *css_of(__u64 counter, __u8 kind, __u64 css_offset)
{
	if (!counter || kind == KIND_UNKNOWN)
		return NULL;
	if (kind == KIND_DMEM) {
		struct dmem_cgroup_pool_state *pool;

		if (!bpf_core_type_exists(struct dmem_cgroup_pool_state))
			return NULL;
		pool = (void *)(counter - bpf_core_field_offset(struct dmem_cgroup_pool_state, cnt));
		return &BPF_CORE_READ(pool, cs)->css;
	}
	return (void *)(counter - css_offset);
}

/* cgroup_id returns the id of a css's cgroup, or 0 for no css. */
static __always_inline __u64 cgroup_id(struct cgroup_subsys_state *css)
{
	return css ? BPF_CORE_READ(css, cgroup, kn, id) : 0;
}

/* hierarchy_of returns the hierarchy of the cgroups that have a kind of counter. */
static __always_inline __u32 hierarchy_of(__u8 kind)
{
	if (kind == KIND_HUGETLB || kind == KIND_HUGETLB_RSVD)
		return hugetlb_hierarchy;
	return kind == KIND_DMEM ? dmem_hierarchy : memory_hierarchy;
}

static __always_inline struct kernfs_node *parent_of(struct kernfs_node *kn)
{
	struct kernfs_node___rcu *rcu = (void *)kn;

	if (bpf_core_field_exists(rcu->__parent))
		return BPF_CORE_READ(rcu, __parent);
	return BPF_CORE_READ(kn, parent);
}

/* controller_of returns the controller of a kind of counter. */
static __always_inline int controller_of(__u8 kind)
{
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, hugetlb_cgrp_id) &&
	    (kind == KIND_HUGETLB || kind == KIND_HUGETLB_RSVD))
		return bpf_core_enum_value(enum cgroup_subsys_id, hugetlb_cgrp_id);
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, dmem_cgrp_id) && kind == KIND_DMEM)
		return bpf_core_enum_value(enum cgroup_subsys_id, dmem_cgrp_id);
	return bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
}

/* is_remote returns whether a css differs from the current task's for the controller. */
static __always_inline bool is_remote(struct cgroup_subsys_state *css, __u8 kind)
{
	return css != current_css(controller_of(kind));
}

#endif
