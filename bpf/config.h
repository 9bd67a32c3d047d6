/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Configuration, written by the loader before the programs are verified, so that
 * the verifier removes the branches that are not taken.
 */
#ifndef CHARGETRACE_CONFIG_H
#define CHARGETRACE_CONFIG_H

#include "kernel.h"

/*
 * Thread group of the tracer, whose own charges are no part of the trace; ~0 where
 * they are, for a balance.
 */
const volatile __u32 tracer_tgid;
/* Trace this thread group only; 0 for no such filter. */
const volatile __u32 target_tgid;
/* Trace the thread groups in targets only. */
const volatile bool filter_targets;
/* What a target forks becomes one. */
const volatile bool follow;
/* Tell the reader of forks. */
const volatile bool send_forks;
/* Trace threads only whose names match; see comm_matches. */
const volatile bool filter_comms;
const volatile __u64 comm_start;
const volatile __u64 comm_loops;
const volatile __u64 comm_end;
const volatile __u64 comm_accepts[256];
/* Trace charges only to cgroups that are, or are below, one in target_cgroups. */
const volatile bool filter_cgroups;
/* Trace the kinds of counters whose bits are set (1 << enum kind). */
const volatile __u32 target_kinds = ~0;
/* Trace charges only of at least so many pages. */
const volatile __u64 min_pages;
const volatile __u32 page_size = 4096;
/* Trace charges only that failed or found a level at its limit. */
const volatile bool only_limited;

/* Take the kernel stack, and the user stack, of each charge. */
const volatile bool take_kernel_stacks;
const volatile bool take_user_stacks;
/* Wake the reader after this many events of one CPU. */
const volatile __u32 wakeup_events = 1;

#endif
