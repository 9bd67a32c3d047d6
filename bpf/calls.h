/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Calls between their entry and their return, which kprobes see separately. Kprobe
 * programs never run in the middle of each other on one CPU.
 */
#ifndef CHARGETRACE_CALLS_H
#define CHARGETRACE_CALLS_H

#include "cache.h"
#include "config.h"

/*
 * call_at returns a call of a CPU. It adds a 0 from a map to hide the index from the
 * verifier, which would otherwise check the rest of the program once for each index.
 */
static __always_inline struct call *call_at(struct cpu_state *n, __u64 i)
{
	i += READ_ONCE(n->zero);
	return &n->call[i & (CALLS - 1)];
}

/*
 * migrated_from removes a call from migrated_calls, and returns the CPU that has it. It is
 * global; see emit_cgroup.
 */
__noinline __u32 migrated_from(__u32 cpu, __u64 sp)
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
 * new_call returns a slot for a call on this CPU. The return of a call that it replaces was
 * not seen: it had the same sp, or no slot is free.
 */
static __always_inline struct call *new_call(struct cpu_state *n, __u32 cpu, __u64 sp)
{
	struct call *c;
	__u64 i;

	if (migrated)
		migrated_from(cpu, sp);
#pragma clang loop unroll(disable)
	for (i = 0; i < CALLS; i++)
		if (!n->call[i].sp || n->call[i].sp == sp)
			break;
	if (i == CALLS)
		i = n->missed & (CALLS - 1); /* another one each time */
	c = call_at(n, i);
	if (c->sp) {
		n->missed++;
		if (migrated && c->sp != sp)
			migrated_from(cpu, c->sp);
	} else {
		/* Atomic: a call can return on another CPU. */
		__sync_fetch_and_add(&n->inflight, 1);
	}
	if (take_kernel_stacks || take_user_stacks)
		c->stacks = cpu * CALLS + i;
	c->sp = sp;
	return c;
}

/* find_call returns the call of a thread with an sp, or NULL if its entry was not seen. */
static __always_inline struct call *find_call(struct cpu_state *n, __u64 sp, __u32 tid)
{
	struct call *c;
	__u64 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < CALLS; i++)
		if (n->call[i].sp == sp)
			break;
	if (i == CALLS)
		return NULL;
	c = call_at(n, i);
	/* After a missed return, another thread can have the same sp. */
	return c->tid == tid ? c : NULL;
}

/* free_call frees the slot of a call that has returned, unless another has taken it. */
static __always_inline void free_call(struct cpu_state *n, struct call *c, __u64 sp)
{
	if (c->sp != sp)
		return;
	c->sp = 0;
	__sync_fetch_and_sub(&n->inflight, 1);
}

#endif
