/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Processes: forks, and the processes that exist when the trace starts.
 */
#ifndef CHARGETRACE_PROCESS_H
#define CHARGETRACE_PROCESS_H

#include "memcg.h"
#include "send.h"

/* send_fork sends a fork. */
static __always_inline void send_fork(struct fork_event *e, struct task_struct *parent, __u32 child_tgid)
{
	e->e.type = EVENT_FORK;
	e->e.cpu = bpf_get_smp_processor_id();
	e->e.boot_ns = bpf_ktime_get_boot_ns();
	e->e.tgid = BPF_CORE_READ(parent, tgid);
	e->e.tid = BPF_CORE_READ(parent, pid);
	BPF_CORE_READ_STR_INTO(&e->e.comm, parent, comm);
	e->child_tgid = child_tgid;
	send(e, sizeof(*e));
}

/* tgid_of returns the struct pid of a process's thread group. */
static __always_inline struct pid *tgid_of(struct task_struct *task)
{
	struct signal_struct *signal = BPF_CORE_READ(task, signal);
	struct pid *pid = NULL;

	bpf_core_read(&pid, sizeof(pid), (void *)signal + bpf_core_field_offset(struct signal_struct, pids) +
						 bpf_core_enum_value(enum pid_type, PIDTYPE_TGID) * sizeof(pid));
	return pid;
}

/*
 * is_initial returns whether a process is in initial_pids, by its pid in the tracer's
 * pid namespace, which is at level.
 */
static __always_inline bool is_initial(struct task_struct *process, __u32 level)
{
	struct pid *pid = tgid_of(process);
	__u32 nr = 0;

	/* An ancestor can be outside the namespace. */
	if (BPF_CORE_READ(pid, level) < level)
		return false;
	bpf_core_read(&nr, sizeof(nr), (void *)pid + bpf_core_field_offset(struct pid, numbers) +
					       level * bpf_core_type_size(struct upid) +
					       bpf_core_field_offset(struct upid, nr));
	return bpf_map_lookup_elem(&initial_pids, &nr);
}

#endif
