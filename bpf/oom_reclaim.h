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

static __always_inline void read_oom_state(struct oom_state *state, struct mem_cgroup *memcg)
{
	state->begin_ns = bpf_ktime_get_boot_ns();
	if (!memcg)
		return;
	state->usage = BPF_CORE_READ(memcg, memory.usage.counter);
	state->max = BPF_CORE_READ(memcg, memory.max);
}

/* out_of_memory gets the cgroup that ran out, __oom_kill_process each victim. */
static __always_inline int on_oom(struct oom_control *oc, __u64 address)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct mem_cgroup *memcg = BPF_CORE_READ(oc, memcg);
	struct oom oom = {.oc = address};
	__u64 *written;

	if (!resolve_memcg(&oom.key, memcg)) {
		bpf_map_delete_elem(&ooms, &pid_tgid);
		return 0;
	}
	read_oom_state(&oom.state, memcg);
	written = bpf_map_lookup_elem(&limit_writers, &pid_tgid);
	if (written && *written == oom.key.cgroup)
		oom.flags = FLAG_LIMIT_WRITE;
	oom.order = BPF_CORE_READ(oc, order);
	if (oom.order == -1)
		oom.flags = FLAG_SYSRQ;
	bpf_map_update_elem(&ooms, &pid_tgid, &oom, BPF_ANY);
	return 0;
}

static __always_inline void send_oom(struct oom *oom, __u64 pid_tgid, enum oom_result result)
{
	struct oom_event e = {.oom = oom->state, .result = result, .order = oom->order};

	fill(&e.e, EVENT_OOM, pid_tgid);
	e.e.cgroup = oom->key.cgroup;
	e.e.hierarchy = memory_hierarchy;
	e.e.flags = oom->flags;
	/* As for a kill. The other results can come by the thousands while a victim exits. */
	if (result == OOM_NO_VICTIM || result == OOM_DISABLED)
		send_at_once(&e, sizeof(e));
	else
		send(&e, sizeof(e));
}

/* constraint_flags returns which memory nodes the allocation may use. */
static __always_inline __u64 constraint_flags(struct oom *oom)
{
	struct oom_control *oc = (void *)oom->oc;
	enum oom_constraint constraint = BPF_CORE_READ(oc, constraint);

	return constraint == CONSTRAINT_CPUSET ? FLAG_CPUSET : constraint == CONSTRAINT_MEMORY_POLICY ? FLAG_MEMPOLICY : 0;
}

/* on_oom_end sends an event of a run that killed nobody. */
static __always_inline int on_oom_end(bool ok)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct oom *oom = bpf_map_lookup_elem(&ooms, &pid_tgid);
	enum oom_result result = ok ? OOM_TASK_EXITS : OOM_NO_VICTIM;
	struct oom_control *oc;
	unsigned int gfp_mask;

	if (!oom)
		return 0;
	oc = (void *)oom->oc;
	/* pagefault_out_of_memory, until 5.15, has no gfp_mask. */
	gfp_mask = BPF_CORE_READ(oc, gfp_mask);
	if (BPF_CORE_READ(oc, chosen)) /* and not killed: it exits already (oom_kill_process) */
		result = OOM_VICTIM_EXITS;
	else if (!oom->key.cgroup && ok && gfp_mask && !(gfp_mask & ___GFP_FS))
		result = OOM_NOFS;
	oom->flags |= constraint_flags(oom);
	if (!oom->killed && matches_current(pid_tgid >> 32))
		send_oom(oom, pid_tgid, result);
	bpf_map_delete_elem(&ooms, &pid_tgid);
	return 0;
}

/* on_oom_wait sends an event where a page fault waits until its cgroup v1 has memory. */
static __always_inline int on_oom_wait(bool handle)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct mem_cgroup *memcg;
	struct oom oom = {.order = -1};

	/* Without handle it only forgets an OOM of a fault that succeeded. */
	if (!handle || !bpf_core_field_exists(task->memcg_in_oom))
		return 0;
	memcg = BPF_CORE_READ(task, memcg_in_oom);
	if (!memcg || !matches_current(pid_tgid >> 32) || !resolve_memcg(&oom.key, memcg))
		return 0;
	read_oom_state(&oom.state, memcg);
	send_oom(&oom, pid_tgid, OOM_DISABLED);
	return 0;
}

static __always_inline int on_limit_write(struct kernfs_open_file *of)
{
	struct kernfs_node *file = BPF_CORE_READ(of, kn), *dir = parent_of(file);
	__u64 pid_tgid = bpf_get_current_pid_tgid(), cgroup = BPF_CORE_READ(dir, id);

	bpf_map_update_elem(&limit_writers, &pid_tgid, &cgroup, BPF_ANY);
	return 0;
}

static __always_inline int on_limit_written(void)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&limit_writers, &pid_tgid);
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

/* on_oom_kill sends a kill. message is the beginning of the line in the kernel's log. */
static __always_inline int on_oom_kill(struct task_struct *victim, const void *message)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct cgroup_subsys_state *css;
	struct oom_kill_event e = {};
	struct mm_struct *mm;
	char initial = 0;
	struct oom *oom;

	mm = BPF_CORE_READ(victim, mm);
	if (!mm && !BPF_CORE_READ(victim, signal, live.counter))
		return 0; /* it exits already, and the kernel skips it */
	oom = bpf_map_lookup_elem(&ooms, &pid_tgid);
	if (oom)
		oom->killed++;
	e.victim_tgid = BPF_CORE_READ(victim, tgid);
	BPF_CORE_READ_STR_INTO(&e.victim_comm, victim, comm);
	if (!matches_current(pid_tgid >> 32) && !matches(e.victim_tgid, e.victim_comm))
		return 0;
	css = css_of_task(victim, bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id));
	if (filter_cgroups && !oom && !target_of(css, memory_hierarchy))
		return 0;
	e.victim_cgroup = cgroup_id(css);
	ensure_emitted(css, e.victim_cgroup, memory_hierarchy);
	fill(&e.e, EVENT_OOM_KILL, pid_tgid);
	e.e.hierarchy = memory_hierarchy;
	if (oom) {
		e.e.cgroup = oom->key.cgroup;
		e.e.flags = oom->flags | constraint_flags(oom);
		if (oom->killed > 1)
			e.e.flags |= FLAG_GROUP;
		e.oom = oom->state;
		e.order = oom->order;
	} else {
		e.order = -1;
		if (!bpf_probe_read_kernel(&initial, 1, message) && initial == 'M')
			e.e.flags = FLAG_UNKNOWN_CGROUP; /* "Memory cgroup out of memory" */
	}
	if (mm) {
		e.anon = mm_rss(mm, MM_ANONPAGES);
		e.file = mm_rss(mm, MM_FILEPAGES);
		e.shmem = mm_rss(mm, MM_SHMEMPAGES);
		e.swap = mm_rss(mm, MM_SWAPENTS);
		e.page_tables = BPF_CORE_READ(mm, pgtables_bytes.counter);
	}
	/* The reader then reads what the cgroup holds, before much of it is gone. */
	send_at_once(&e, sizeof(e));
	return 0;
}

#endif
