/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Reclaim and OOM kills.
 */
#ifndef CHARGETRACE_OOM_RECLAIM_H
#define CHARGETRACE_OOM_RECLAIM_H

#include "cgroup_names.h"
#include "filter.h"
#include "send.h"

/*
 * resolve_memcg fills in the cgroup of a mem_cgroup, or none for the machine. It returns
 * whether its events pass the filter by cgroup. Those of a target's ancestors and of the
 * machine pass.
 */
static __always_inline bool resolve_memcg(struct cgroup_key *key, struct mem_cgroup *memcg)
{
	struct cgroup_subsys_state *css = (void *)memcg + bpf_core_field_offset(struct mem_cgroup, css);

	if (!memcg)
		return true;
	key->hierarchy = memory_hierarchy;
	key->cgroup = cgroup_id(css);
	if (filter_cgroups && !target_of(css, key->hierarchy))
		return false;
	ensure_emitted(css, key->cgroup, key->hierarchy);
	return true;
}

static __always_inline int on_reclaim_begin(struct mem_cgroup *memcg)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct reclaim_event e = {};
	struct reclaim r = {};

	if ((__u32)(pid_tgid >> 32) == tracer_tgid || !matches_current(pid_tgid >> 32) || !resolve_memcg(&r.key, memcg))
		return 0;
	fill(&e.e, EVENT_RECLAIM_BEGIN, pid_tgid);
	e.e.cgroup = r.key.cgroup;
	e.e.hierarchy = r.key.hierarchy;
	r.begin_ns = e.e.boot_ns;
	bpf_map_update_elem(&reclaims, &pid_tgid, &r, BPF_ANY);
	send(&e, sizeof(e));
	return 0;
}

/* oom_kill_process gets the cgroup that ran out, __oom_kill_process each victim. */
static __always_inline int on_oom(struct oom_control *oc)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct cgroup_key key = {};

	if (resolve_memcg(&key, BPF_CORE_READ(oc, memcg)))
		bpf_map_update_elem(&ooms, &pid_tgid, &key, BPF_ANY);
	else
		bpf_map_delete_elem(&ooms, &pid_tgid);
	return 0;
}

/*
 * mm_rss reads a resident size of an mm, in pages. It is a macro because CO-RE needs a
 * constant index to know the size of the kernel's array elements.
 */
#define mm_rss(mm, index) ({							\
	__s64 __n;								\
	if (bpf_core_type_exists(struct mm_rss_stat))				\
		__n = BPF_CORE_READ((struct mm_struct___atomic *)(mm),		\
				    rss_stat.count[index].counter);		\
	else									\
		__n = BPF_CORE_READ(mm, rss_stat[index].count);			\
	__n < 0 ? 0 : __n; /* pending updates of CPUs are missing */		\
})

static __always_inline int on_oom_kill(struct task_struct *victim)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct oom_kill_event e = {};
	struct cgroup_key *key;
	struct mm_struct *mm;

	e.victim_tgid = BPF_CORE_READ(victim, tgid);
	BPF_CORE_READ_STR_INTO(&e.victim_comm, victim, comm);
	if (!matches_current(pid_tgid >> 32) && !matches(e.victim_tgid, e.victim_comm))
		return 0;
	key = bpf_map_lookup_elem(&ooms, &pid_tgid);
	if (filter_cgroups && !key)
		return 0;
	fill(&e.e, EVENT_OOM_KILL, pid_tgid);
	if (key) {
		e.e.cgroup = key->cgroup;
		e.e.hierarchy = key->hierarchy;
	}
	mm = BPF_CORE_READ(victim, mm);
	if (mm) {
		e.anon = mm_rss(mm, MM_ANONPAGES);
		e.file = mm_rss(mm, MM_FILEPAGES);
		e.shmem = mm_rss(mm, MM_SHMEMPAGES);
		e.swap = mm_rss(mm, MM_SWAPENTS);
	}
	send(&e, sizeof(e));
	return 0;
}

#endif
