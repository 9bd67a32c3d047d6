/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Stacks of charges, sent before the charge.
 */
#ifndef CHARGETRACE_STACKS_H
#define CHARGETRACE_STACKS_H

#include "cache.h"
#include "config.h"
#include "memcg.h"
#include "send.h"

/*
 * layout_of_current returns a hash of the addresses of the code and the randomized stack,
 * which identifies the program in a process's memory. It is 0 in the middle of an exec. A
 * forked process has the same until it executes a program. The reader computes it from
 * /proc/PID/stat (symbol.LayoutOf).
 */
static __always_inline __u32 layout_of_current(void)
{
	__u64 start_code, end_code, start_stack, layout;

	if (TASK_BTF) {
		/* A failed read leaves 0. */
		struct mm_struct *mm = bpf_get_current_task_btf()->mm;

		start_code = mm->start_code;
		end_code = mm->end_code;
		start_stack = mm->start_stack;
	} else {
		struct task_struct *task = (void *)bpf_get_current_task();
		struct mm_struct *mm = BPF_CORE_READ(task, mm);

		start_code = BPF_CORE_READ(mm, start_code);
		end_code = BPF_CORE_READ(mm, end_code);
		start_stack = BPF_CORE_READ(mm, start_stack);
	}
	if (!start_code)
		return 0;
	layout = start_code + end_code * 3 + start_stack * 5;
	return layout * 0x9e3779b97f4a7c15ULL >> 32 ?: 1;
}

/*
 * take_stack takes the current stack and returns its number of addresses. The caller sets
 * the tgid and the layout before.
 */
static __always_inline __u64 take_stack(struct cpu_state *n, void *ctx, struct stack_event *stack, __u64 flags)
{
	long size = bpf_get_stack(ctx, stack->address, sizeof(stack->address), flags);
	__u64 hash = (__u64)stack->tgid << 32 | stack->layout, frames, i;

	if (size <= 0 || size > (long)sizeof(stack->address)) {
		__sync_fetch_and_add(&n->lost_stacks, 1);
		return 0;
	}
	frames = size / sizeof(__u64);
#pragma clang loop unroll(disable)
	for (i = 0; i < STACK_DEPTH; i++) {
		if (i >= frames)
			break;
		hash = (hash + stack->address[i]) * 0x9e3779b97f4a7c15ULL;
	}
	stack->id = hash >> 32 ?: 1;
	stack->type = EVENT_STACK;
	return frames;
}

/* take_stacks takes the configured stacks of the current task. */
static __always_inline void take_stacks(struct cpu_state *n, void *ctx, struct call_stacks *s, __u32 tgid)
{
	s->kernel_frames = s->user_frames = 0;
	if (take_kernel_stacks)
		s->kernel_frames = take_stack(n, ctx, &s->kernel, 0);
	if (take_user_stacks) {
		s->user.tgid = tgid;
		s->user.layout = layout_of_current();
		if (s->user.layout)
			s->user_frames = take_stack(n, ctx, &s->user, BPF_F_USER_STACK);
	}
}

/*
 * claim_stacks returns memory of this CPU for the stacks of a fentry program, or NULL
 * while another program on this CPU uses it. In both cases release_stacks must follow.
 */
static __always_inline struct call_stacks *claim_stacks(struct cpu_state *n, __u32 cpu)
{
	__sync_fetch_and_add(&n->taking, 1);
	return READ_ONCE(n->taking) == 1 ? bpf_map_lookup_elem(&call_stacks, &cpu) : NULL;
}

static __always_inline void release_stacks(struct cpu_state *n)
{
	__sync_fetch_and_sub(&n->taking, 1);
}

/* send_stack sends a stack once. */
static __always_inline void send_stack(struct cpu_state *n, struct stack_event *stack, __u64 frames)
{
	__u32 of_stack = stack->id & (SENT_STACKS - 1), of_layout = stack->layout & (SENT_STACKS - 1);
	struct sent_stack *known = bpf_map_lookup_elem(&sent_stacks, &of_stack);
	__u64 flags = BPF_RB_NO_WAKEUP, size = __builtin_offsetof(struct stack_event, address) + frames * sizeof(__u64);

	if (!known || known->stack == stack->id)
		return;
	if (stack->layout) {
		struct sent_stack *seen = bpf_map_lookup_elem(&sent_stacks, &of_layout);

		/* Wake the reader: it must read the program's mappings before it exits. */
		if (seen && seen->layout != stack->layout) {
			seen->layout = stack->layout;
			flags = BPF_RB_FORCE_WAKEUP;
		}
	}
	/* Make clang check the bounds of the register that it passes to the helper. */
	asm volatile("" : "+r"(size));
	/* If this fails, the reader counts the charges without their stack. */
	if (size <= sizeof(*stack) && !bpf_ringbuf_output(&events, stack, size, flags)) {
		known->stack = stack->id;
		n->unwoken += 2; /* it takes the space of two events */
	}
}

/* send_stacks sends the stacks of a charge, and sets their ids. */
static __always_inline void send_stacks(struct cpu_state *n, struct call_stacks *s, __u32 *kernel, __u32 *user)
{
	if (take_kernel_stacks && s->kernel_frames) {
		*kernel = s->kernel.id;
		send_stack(n, &s->kernel, s->kernel_frames);
	}
	if (take_user_stacks && s->user_frames) {
		*user = s->user.id;
		send_stack(n, &s->user, s->user_frames);
	}
}

#endif
