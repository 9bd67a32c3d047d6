/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Filters by process, name of the thread, cgroup and size.
 */
#ifndef CHARGETRACE_FILTER_H
#define CHARGETRACE_FILTER_H

#include "cache.h"
#include "config.h"
#include "memcg.h"

/* sign returns -1 for a negative number, otherwise 0. */
#define sign(x) ({					\
	__s64 __sign = (x);				\
	asm volatile("%0 s>>= 63" : "+r"(__sign));	\
	__sign;						\
})

/* select assigns y to x if mask is -1. */
#define select(x, y, mask) ((x) ^= ((x) ^ (__u64)(y)) & (mask))

/*
 * comm_matches runs a name through an automaton of package glob: each bit is a state.
 * It has no branches; see walk.
 */
static __always_inline bool comm_matches(const char *comm)
{
	__u64 states = comm_start;
	__s64 within = -1; /* 0 from the NUL on: before 5.17 the rest of an older name can follow */

#pragma clang loop unroll(disable)
	for (int i = 0; i < 16; i++) {
		__u8 c = comm[i];
		__u64 next = (states & comm_accepts[c]) << 1 | (states & comm_loops);

		within &= sign(-(__s64)c);
		select(states, next, within);
	}
	return states & comm_end;
}

static __always_inline bool matches(__u32 tgid, const char *comm)
{
	if (target_tgid && tgid != target_tgid)
		return false;
	if (filter_targets && !bpf_map_lookup_elem(&targets, &tgid))
		return false;
	return !filter_comms || comm_matches(comm);
}

static __always_inline bool matches_current(__u32 tgid)
{
	char comm[16] = {};

	if (filter_comms)
		bpf_get_current_comm(comm, sizeof(comm));
	return matches(tgid, comm);
}

/* current_comm reads the current task's name in the cheapest way. */
static __always_inline void current_comm(__u64 comm[2])
{
	const __u64 *name;

	if (!TASK_BTF) {
		bpf_get_current_comm(comm, 16);
		return;
	}
	name = (void *)bpf_get_current_task_btf()->comm;
	comm[0] = name[0];
	comm[1] = name[1];
}

static __always_inline bool matches_comm(struct cpu_state *n)
{
	struct comm_verdict v;
	__u64 comm[2] = {};

	current_comm(comm);
	/* An empty cache has an empty name. */
	if (cache_load(n, v, n->comm) && comm[0] && v.comm[0] == comm[0] && v.comm[1] == comm[1])
		return v.matched;
	v.matched = comm_matches((char *)comm);
	v.comm[0] = comm[0];
	v.comm[1] = comm[1];
	cache_store(n, n->comm, v);
	return v.matched;
}

static __always_inline bool is_target(struct cpu_state *n, __u32 tgid)
{
	__u64 version = targets_version; /* before the lookup */
	struct tgid_verdict v;

	if (cache_load(n, v, n->tgid) && v.tgid == tgid && v.targets_version == version)
		return v.matched;
	v.matched = !!bpf_map_lookup_elem(&targets, &tgid);
	v.tgid = tgid;
	v.targets_version = version;
	cache_store(n, n->tgid, v);
	return v.matched;
}

/* matches_task returns whether the current task passes the filters. */
static __always_inline bool matches_task(struct cpu_state *n, __u32 tgid)
{
	if (target_tgid && tgid != target_tgid)
		return false;
	if (filter_targets && !is_target(n, tgid))
		return false;
	return !filter_comms || matches_comm(n);
}

/*
 * target_of returns CGROUP_TARGET for a cgroup in target_cgroups or below one,
 * CGROUP_ABOVE_TARGET for an ancestor of one, otherwise 0.
 */
static __always_inline int target_of(struct cgroup_subsys_state *css, __u64 hierarchy)
{
	struct kernfs_node *kn = BPF_CORE_READ(css, cgroup, kn);
	int target = 0;

#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_DEPTH && kn; i++) {
		struct cgroup_key key = {.hierarchy = hierarchy};
		__u8 *found;

		key.cgroup = BPF_CORE_READ(kn, id);
		found = bpf_map_lookup_elem(&target_cgroups, &key);
		if (found && *found == CGROUP_TARGET)
			return CGROUP_TARGET;
		if (found && i == 0)
			target = CGROUP_ABOVE_TARGET;
		kn = parent_of(kn);
	}
	return target;
}

/* is_small returns whether a charge is smaller than min_pages. */
static __always_inline bool is_small(unsigned long requested, __u8 kind)
{
	return requested < (kind == KIND_DMEM ? min_pages * page_size : min_pages);
}

#endif
