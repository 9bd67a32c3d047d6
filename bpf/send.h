/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Sending events, and waking the reader.
 */
#ifndef CHARGETRACE_SEND_H
#define CHARGETRACE_SEND_H

#include "config.h"
#include "state.h"

/*
 * wakeup returns the flags to send an event with. A wakeup costs more than the event.
 * While there are events the reader polls every few milliseconds; it is woken earlier
 * only before the buffer fills up. Each CPU counts its own events, since the buffer's
 * positions are in a cache line that all CPUs share.
 */
static __always_inline __u64 wakeup(struct cpu_state *n)
{
	if (++n->unwoken < wakeup_events && !reader_idle)
		return BPF_RB_NO_WAKEUP;
	n->unwoken = 0;
	reader_idle = false;
	return BPF_RB_FORCE_WAKEUP;
}

static __always_inline void fill(struct event *e, __u32 type, __u64 pid_tgid)
{
	e->type = type;
	e->cpu = bpf_get_smp_processor_id();
	e->boot_ns = bpf_ktime_get_boot_ns();
	e->tgid = pid_tgid >> 32;
	e->tid = (__u32)pid_tgid;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
}

static __always_inline void send(void *e, __u64 size)
{
	struct cpu_state *n = cpu_state_of(bpf_get_smp_processor_id());

	if (n && bpf_ringbuf_output(&events, e, size, wakeup(n)))
		__sync_fetch_and_add(&n->lost_others, 1);
}

/* send_at_once also wakes the reader. */
static __always_inline void send_at_once(void *e, __u64 size)
{
	struct cpu_state *n = cpu_state_of(bpf_get_smp_processor_id());

	if (n && bpf_ringbuf_output(&events, e, size, BPF_RB_FORCE_WAKEUP))
		__sync_fetch_and_add(&n->lost_others, 1);
}

#endif
