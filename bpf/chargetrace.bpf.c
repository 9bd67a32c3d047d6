// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * chargetrace.bpf.c sends an event for each call of page_counter_try_charge, for each
 * reclaim, OOM kill and sleep for memory.high, and with -net for each uncharge and each
 * charge that ignores the limit.
 *
 * page_counter_try_charge charges pages to a cgroup and all its ancestors if they fit
 * under every limit. The event has the task, the counter's cgroup, its usage before the
 * call, the level with the least room, and the outcome.
 */
#include "charge.h"
#include "oom_reclaim.h"
#include "process.h"
#include "throttle.h"
#include "usage_change.h"

#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("kprobe/page_counter_try_charge")
int BPF_KPROBE(kprobe_try_charge, struct page_counter *counter, unsigned long nr_pages, __u64 fail)
{
	on_entry(ctx, counter, nr_pages, fail, PT_REGS_SP(ctx));
	return 0;
}

SEC("kretprobe/page_counter_try_charge")
int BPF_KRETPROBE(kretprobe_try_charge)
{
#if defined(__TARGET_ARCH_x86)
	/* The return address has been popped. */
	const int popped = 8;
#else
	const int popped = 0;
#endif
	on_return(ctx, from_bool(PT_REGS_RC(ctx)), PT_REGS_SP(ctx) - popped);
	return 0;
}

/* The context is the stack frame of the trampoline: calls of one site have the same. */
SEC("fexit/page_counter_try_charge")
int fexit_try_charge(__u64 *ctx)
{
	on_fexit(ctx, number_of(ctx));
	return 0;
}

SEC("kprobe/page_counter_uncharge")
int BPF_KPROBE(kprobe_uncharge, struct page_counter *counter, unsigned long nr_pages)
{
	return on_usage_change(EVENT_UNCHARGE, false, counter, nr_pages);
}

SEC("fentry/page_counter_uncharge")
int BPF_PROG(fentry_uncharge, struct page_counter *counter, unsigned long nr_pages)
{
	return on_usage_change(EVENT_UNCHARGE, true, counter, nr_pages);
}

SEC("kprobe/page_counter_charge")
int BPF_KPROBE(kprobe_forced_charge, struct page_counter *counter, unsigned long nr_pages)
{
	return on_usage_change(EVENT_FORCED_CHARGE, false, counter, nr_pages);
}

SEC("fentry/page_counter_charge")
int BPF_PROG(fentry_forced_charge, struct page_counter *counter, unsigned long nr_pages)
{
	return on_usage_change(EVENT_FORCED_CHARGE, true, counter, nr_pages);
}

SEC("kprobe/try_to_free_mem_cgroup_pages")
int BPF_KPROBE(kprobe_reclaim_begin, struct mem_cgroup *memcg)
{
	return on_reclaim_begin(memcg);
}

SEC("fentry/try_to_free_mem_cgroup_pages")
int BPF_PROG(fentry_reclaim_begin, struct mem_cgroup *memcg)
{
	return on_reclaim_begin((void *)number_of(memcg));
}

/* This is a tracepoint because kretprobes are limited in number, and reclaim sleeps. */
SEC("raw_tp/mm_vmscan_memcg_reclaim_end")
int BPF_PROG(reclaim_end, unsigned long nr_reclaimed)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct reclaim *r = bpf_map_lookup_elem(&reclaims, &pid_tgid);
	struct reclaim_event e = {};

	if (!r)
		return 0;
	fill(&e.e, EVENT_RECLAIM_END, pid_tgid);
	e.e.cgroup = r->key.cgroup;
	e.e.hierarchy = r->key.hierarchy;
	e.freed = nr_reclaimed;
	e.ns = e.e.boot_ns - r->begin_ns;
	bpf_map_delete_elem(&reclaims, &pid_tgid);
	send(&e, sizeof(e));
	return 0;
}

SEC("kprobe/out_of_memory")
int BPF_KPROBE(kprobe_oom, struct oom_control *oc)
{
	return on_oom(oc, (__u64)oc);
}

/* One OOM killer runs at a time, so that no return is missed. */
SEC("kretprobe/out_of_memory")
int BPF_KRETPROBE(kretprobe_oom)
{
	return on_oom_end(from_bool(PT_REGS_RC(ctx)));
}

SEC("fentry/out_of_memory")
int BPF_PROG(fentry_oom, struct oom_control *oc)
{
	return on_oom(oc, number_of(oc));
}

SEC("fexit/out_of_memory")
int BPF_PROG(fexit_oom, struct oom_control *oc, unsigned long ok)
{
	return on_oom_end(from_bool(ok));
}

SEC("kprobe/mem_cgroup_oom_synchronize")
int BPF_KPROBE(kprobe_oom_wait, unsigned long handle)
{
	return on_oom_wait(from_bool(handle));
}

SEC("fentry/mem_cgroup_oom_synchronize")
int BPF_PROG(fentry_oom_wait, unsigned long handle)
{
	return on_oom_wait(from_bool(handle));
}

SEC("kprobe/memory_max_write")
int BPF_KPROBE(kprobe_limit_write, struct kernfs_open_file *of)
{
	return on_limit_write(of);
}

SEC("kretprobe/memory_max_write")
int BPF_KRETPROBE(kretprobe_limit_write)
{
	return on_limit_written();
}

SEC("fentry/memory_max_write")
int BPF_PROG(fentry_limit_write, struct kernfs_open_file *of)
{
	return on_limit_write(of);
}

SEC("fexit/memory_max_write")
int BPF_PROG(fexit_limit_write)
{
	return on_limit_written();
}

SEC("kprobe/mem_cgroup_handle_over_high")
int BPF_KPROBE(kprobe_over_high)
{
	return on_over_high(PT_REGS_SP(ctx));
}

SEC("fentry/mem_cgroup_handle_over_high")
int fentry_over_high(__u64 *ctx)
{
	return on_over_high(number_of(ctx));
}

SEC("kprobe/schedule_timeout_killable")
int BPF_KPROBE(kprobe_sleep, long jiffies)
{
	return on_sleep(jiffies, PT_REGS_SP(ctx));
}

SEC("fentry/schedule_timeout_killable")
int fentry_sleep(__u64 *ctx)
{
	return on_sleep(ctx[0], number_of(ctx));
}

SEC("kprobe/__oom_kill_process")
int BPF_KPROBE(kprobe_oom_kill, struct task_struct *victim, const void *message)
{
	return on_oom_kill(victim, message);
}

SEC("fentry/__oom_kill_process")
int BPF_PROG(fentry_oom_kill, struct task_struct *victim, const void *message)
{
	return on_oom_kill(victim, message);
}

/* Runs when nothing refers to a cgroup any more, neither a process nor a page. */
SEC("raw_tp/cgroup_release")
int BPF_PROG(cgroup_release, struct cgroup *cgroup)
{
	struct cgroup_released_event e = {.type = EVENT_CGROUP_RELEASED};

	e.hierarchy = BPF_CORE_READ(cgroup, root, hierarchy_id);
	e.cgroup = BPF_CORE_READ(cgroup, kn, id);
	send(&e, sizeof(e));
	return 0;
}

/* Runs before the child. */
SEC("raw_tp/sched_process_fork")
int BPF_PROG(process_fork, struct task_struct *parent, struct task_struct *child)
{
	__u32 parent_tgid = BPF_CORE_READ(parent, tgid), tgid = BPF_CORE_READ(child, tgid);
	__u64 signal = (__u64)BPF_CORE_READ(child, signal);
	struct fork_event e = {};

	if (tgid == parent_tgid) /* a thread */
		return 0;
	if (filter_targets) {
		if (!follow || !bpf_map_lookup_elem(&targets, &parent_tgid)) {
			/* The process that had this pid is gone. */
			if (!bpf_map_delete_elem(&targets, &tgid))
				targets_changed();
			return 0;
		}
		if (bpf_map_update_elem(&targets, &tgid, &signal, BPF_ANY)) {
			__sync_fetch_and_add(&unfollowed, 1);
			return 0;
		}
		targets_changed();
	}
	if (send_forks && parent_tgid != tracer_tgid)
		send_fork(&e, parent, tgid);
	return 0;
}

/* task_migrates stores the CPU that has a call of a task that migrates. */
SEC("raw_tp/sched_migrate_task")
int BPF_PROG(task_migrates, struct task_struct *task)
{
	struct cpu_state *n;
	__u32 cpu, tid;
	__u64 i;

	if (bpf_core_field_exists(task->thread_info.cpu))
		cpu = BPF_CORE_READ(task, thread_info.cpu);
	else if (bpf_core_field_exists(((struct task_struct___has_cpu *)task)->cpu))
		cpu = BPF_CORE_READ((struct task_struct___has_cpu *)task, cpu);
	else /* there is one CPU */
		return 0;
	n = cpu_state_of(cpu);
	if (!n || !n->inflight)
		return 0;
	tid = BPF_CORE_READ(task, pid);
#pragma clang loop unroll(disable)
	for (i = 0; i < CALLS; i++) {
		__u64 sp = n->call[i].sp;

		/* BPF_NOEXIST: after a second migration the call is still with its first CPU. */
		if (sp && n->call[i].tid == tid && !bpf_map_update_elem(&migrated_calls, &sp, &cpu, BPF_NOEXIST))
			__sync_fetch_and_add(&migrated, 1);
	}
	return 0;
}

/* Runs when a task that has exited is freed. */
SEC("raw_tp/sched_process_free")
int BPF_PROG(process_free, struct task_struct *task)
{
	__u32 tgid = BPF_CORE_READ(task, tgid);
	__u64 *signal = bpf_map_lookup_elem(&targets, &tgid);

	/* Not for a thread of a living process, nor for a later process with this pid. */
	if (signal && *signal == (__u64)BPF_CORE_READ(task, signal) && BPF_CORE_READ(task, signal, live.counter) == 0) {
		bpf_map_delete_elem(&targets, &tgid);
		targets_changed();
	}
	return 0;
}

/*
 * The loader runs this once before it attaches the others (BPF_PROG_TEST_RUN), so that all
 * CPUs see all roots. It is not an iterator: for iterators the library parses all kernel
 * types, as for fentry.
 */
SEC("raw_tp")
int learn_roots(void *ctx)
{
	anchor = (__u64)&anchor;
	find_roots();
	return 0;
}

/* Adds the processes in initial_pids and, with follow, their descendants to targets. */
SEC("iter/task")
int find_processes(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task, *process = task, *parent;
	struct fork_event e = {};
	__u64 signal;
	__u32 tgid;

	if (!task) {
		targets_changed();
		return 0;
	}
	tgid = BPF_CORE_READ(task, tgid);
	if (tgid != BPF_CORE_READ(task, pid))
		return 0;
	if (filter_targets) {
		/* The tracer runs this program. */
		struct task_struct *tracer = (void *)bpf_get_current_task();
		__u32 level = BPF_CORE_READ(tgid_of(tracer), level);
		int i;

#pragma clang loop unroll(disable)
		for (i = 0; i < MAX_DEPTH; i++) {
			if (is_initial(process, level))
				break;
			parent = BPF_CORE_READ(process, real_parent);
			if (!follow || parent == process)
				return 0;
			process = parent;
		}
		if (i == MAX_DEPTH)
			return 0;
		signal = (__u64)BPF_CORE_READ(task, signal);
		if (bpf_map_update_elem(&targets, &tgid, &signal, BPF_ANY)) {
			__sync_fetch_and_add(&unfollowed, 1);
			return 0;
		}
		if (process == task) {
			__sync_fetch_and_add(&found, 1);
			return 0;
		}
	}
	if (send_forks) {
		e.e.flags = FLAG_EXISTING;
		send_fork(&e, BPF_CORE_READ(task, real_parent), tgid);
	}
	return 0;
}
