/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Charges in flight: between entry and return.
 */
#ifndef CHARGETRACE_INFLIGHT_H
#define CHARGETRACE_INFLIGHT_H

#include "stacks.h"

/* send_charge sends a charge with its outcome. */
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
	 * The counts belong to this CPU, but must be atomic: before 5.12 an interrupt
	 * that charges can run a fentry program in the middle of the same program.
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
 * call_at returns a call of this CPU. It adds a 0 from a map to hide the index from the
 * verifier, which would otherwise check the rest of the program once for each index.
 */
static __always_inline struct call *call_at(struct cpu_state *n, struct calls *cs, __u64 i)
{
	i += *(volatile __u64 *)&n->zero;
	return &cs->call[i & (CALLS - 1)];
}

/* migrated_from removes a call from migrated_calls, and returns the CPU that has it. */
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
 * free_call returns a slot for a call on this CPU. A call with the same sp has missed its
 * return: free_call sends it and takes its slot. If no slot is free, it takes that of a
 * call that has not returned in time, or else the last.
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
		/* Atomic: this program can preempt another one at this point. */
		__sync_fetch_and_add(&n->inflight, 1);
	}
	if (take_kernel_stacks || take_user_stacks)
		c->stacks = cpu * CALLS + i;
	c->event.e.boot_ns = now;
	c->sp = sp;
	return c;
}

/* call_from returns the call of a CPU with an sp, or NULL. */
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
