/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Names of cgroups, sent before the first event of the cgroup.
 */
#ifndef CHARGETRACE_CGROUP_NAMES_H
#define CHARGETRACE_CGROUP_NAMES_H

#include "memcg.h"

/*
 * emit_cgroup sends the name of a cgroup once. It returns the address of its parent, 0
 * for the root, or 1 if the buffer is full. It is a global function, whose arguments
 * must be numbers: the verifier checks it once, not at each call.
 */
__noinline __u64 emit_cgroup(__u64 kn, __u64 hierarchy)
{
	struct kernfs_node *node = (void *)kn, *parent = parent_of(node);
	struct cgroup_key key = {.hierarchy = hierarchy};
	struct cgroup_event *e;
	__u8 yes = 1;

	key.cgroup = BPF_CORE_READ(node, id);
	if (bpf_map_lookup_elem(&sent_cgroups, &key))
		return (__u64)parent;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e)
		return 1;
	e->type = EVENT_CGROUP;
	e->hierarchy = hierarchy;
	e->cgroup = key.cgroup;
	/* A failed read leaves 0, as for the root's parent. */
	e->parent = BPF_CORE_READ(parent, id);
	bpf_probe_read_kernel_str(e->name, sizeof(e->name), BPF_CORE_READ(node, name));
	/* Wake the reader: the files with names of containers can be gone soon. */
	bpf_ringbuf_submit(e, BPF_RB_FORCE_WAKEUP);
	bpf_map_update_elem(&sent_cgroups, &key, &yes, BPF_ANY);
	return (__u64)parent;
}

/*
 * emit_path sends the names of a cgroup and its ancestors. They come from kernfs, which
 * keeps a removed cgroup while it is still charged. The cgroup is sent last: if it is in
 * sent_cgroups, so are its ancestors. It returns 1 if the buffer is full.
 */
__noinline int emit_path(__u64 css, __u64 hierarchy)
{
	__u64 first = (__u64)BPF_CORE_READ((struct cgroup_subsys_state *)css, cgroup, kn);
	__u64 kn = (__u64)parent_of((void *)first);

	if (!first)
		return 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_DEPTH && kn; i++) {
		kn = emit_cgroup(kn, hierarchy);
		if (kn == 1)
			return 1; /* the next event tries again */
	}
	return emit_cgroup(first, hierarchy) == 1;
}

/* ensure_emitted sends the path of a css's cgroup once. */
static __always_inline bool ensure_emitted(struct cgroup_subsys_state *css, __u64 cgroup, __u64 hierarchy)
{
	struct cgroup_key key = {cgroup, hierarchy};

	return !cgroup || bpf_map_lookup_elem(&sent_cgroups, &key) || emit_path((__u64)css, hierarchy) == 0;
}

#endif
