/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Charges between entry and return.
 */
#ifndef CHARGETRACE_INFLIGHT_H
#define CHARGETRACE_INFLIGHT_H

#include "stacks.h"

/* send_charge sends a charge whose outcome is known. */
static __always_inline void send_charge(struct cpu_state *n, struct call *c)
{
	struct charge_event *e = &c->event, *sent;

	if (only_limited && e->e.outcome == OUTCOME_OK && !(e->e.flags & FLAG_RETRY) &&
	    e->limiting.usage < (__s64)e->limiting.max) {
		__sync_fetch_and_add(&n->filtered, 1);
		return;
	}
	if (take_kernel_stacks || take_user_stacks)
		send_stacks(n, c);
	/*
	 * Lost events are told of by the CPU that lost them. The counters are
	 * this CPU's own, yet atomic: before 5.12 nothing keeps an interrupt that
	 * charges from running a fentry program in the middle of another run of
	 * it.
	 */
	sent = bpf_ringbuf_reserve(&events, sizeof(*sent), 0);
	if (!sent) {
		__sync_fetch_and_add(&n->lost, 1);
		return;
	}
	__sync_fetch_and_add(&n->delivered, 1);
	*sent = *e;
	sent->lost = n->lost;
	bpf_ringbuf_submit(sent, wakeup(n));
}

/*
 * call_at returns a call of this CPU. To the index a number is added that is always 0,
 * from the memory of a map, so that the verifier takes it for any: it would look at
 * what follows once for each.
 */
static __always_inline struct call *call_at(struct cpu_state *n, struct calls *cs, __u64 i)
{
	i += *(volatile __u64 *)&n->zero;
	return &cs->call[i & (CALLS - 1)];
}

/*
 * migrated_from returns the CPU on which the call from a place is noted, of which
 * task_migrates knows that it returns on another.
 */
static __always_inline __u32 migrated_from(__u32 cpu, __u64 sp)
{
	__u32 *from = bpf_map_lookup_elem(&migrated_calls, &sp);

	if (!from)
		return cpu;
	cpu = *from;
	if (!bpf_map_delete_elem(&migrated_calls, &sp))
		__sync_fetch_and_sub(&migrated, 1);
	return cpu;
}

/*
 * free_call returns a place for a call on this CPU. A call from the same place was
 * missed to return, and is sent. Where all places are taken, so is one that has
 * not returned in time, or the last: as long as there are others, it may just
 * have been preempted for long.
 */
static __always_inline struct call *free_call(struct cpu_state *n, struct calls *cs, __u32 cpu, __u64 sp)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct call *c;
	__u64 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < CALLS; i++) {
		c = &cs->call[i];
		if (!c->sp || c->sp == sp)
			break;
	}
	if (i == CALLS) {
#pragma clang loop unroll(disable)
		for (i = 0; i < CALLS - 1; i++)
			if (now - cs->call[i].event.e.boot_ns > MAX_CALL_NS)
				break;
	}
	c = call_at(n, cs, i);
	if (c->sp) {
		c->event.e.flags |= FLAG_PREDICTED;
		send_charge(n, c);
		if (migrated && c->sp != sp)
			migrated_from(cpu, c->sp);
	} else {
		/* Atomic, for another call may be preempted while it does this. */
		__sync_fetch_and_add(&n->inflight, 1);
	}
	if (take_kernel_stacks || take_user_stacks)
		c->stacks = cpu * CALLS + i;
	c->event.e.boot_ns = now;
	c->sp = sp;
	return c;
}

/* call_from returns the call from a place that is noted on a CPU. */
static __always_inline struct call *call_from(struct cpu_state *n, __u32 cpu, __u64 sp)
{
	struct calls *cs;
	__u64 i;

	cs = bpf_map_lookup_elem(&calls, &cpu);
	if (!cs)
		return NULL;
#pragma clang loop unroll(disable)
	for (i = 0; i < CALLS; i++)
		if (cs->call[i].sp == sp)
			return call_at(n, cs, i);
	return NULL;
}

#endif
