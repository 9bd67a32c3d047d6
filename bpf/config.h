/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Configuration. The loader writes it before the programs are verified, so that the
 * verifier removes dead branches.
 */
#ifndef CHARGETRACE_CONFIG_H
#define CHARGETRACE_CONFIG_H

#include "kernel.h"

/* Thread group of the tracer, which is not traced; ~0 traces it too, for a balance. */
const volatile __u32 tracer_tgid;
/* Trace this thread group only; 0 for all. */
const volatile __u32 target_tgid;
/* Trace only the thread groups in targets. */
const volatile bool filter_targets;
/* A process that a target forks becomes a target. */
const volatile bool follow;
/* Send an event for each fork. */
const volatile bool send_forks;
/* Trace only threads whose names match; see comm_matches. */
const volatile bool filter_comms;
const volatile __u64 comm_start;
const volatile __u64 comm_loops;
const volatile __u64 comm_end;
const volatile __u64 comm_accepts[256];
/* Trace only charges to the cgroups in target_cgroups and below. */
const volatile bool filter_cgroups;
/* Trace only the kinds of counters whose bits are set (1 << enum kind). */
const volatile __u32 target_kinds = ~0;
/* Drop smaller charges. */
const volatile __u64 min_pages;
const volatile __u32 page_size = 4096;
/* Drop charges that neither fail, nor find a level at its limit, nor leave one above its high. */
const volatile bool only_limited;

/* Flag charges that take a level to this part of its limit; 0 flags none. */
const volatile __u32 threshold_percent;

/* The nanoseconds of a jiffy. */
const volatile __u64 jiffy_ns = 4000000;

/* Take the kernel or the user stack of each charge. */
const volatile bool take_kernel_stacks;
const volatile bool take_user_stacks;
/* Wake the reader after this many events of one CPU. */
const volatile __u32 wakeup_events = 1;

#endif
