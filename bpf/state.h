/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What the programs keep: maps, and the state of each CPU.
 */
#ifndef CHARGETRACE_STATE_H
#define CHARGETRACE_STATE_H

#include "events.h"
#include <bpf/bpf_helpers.h>

/*
 * Set by the reader when it goes to sleep until it is woken, and cleared by the
 * program that wakes it.
 */
volatile bool reader_idle;

/* What is cached of a page counter. */
struct counter_info {
	__u64 counter; /* address */
	__u64 css;
	__u64 serial_nr; /* another css in the same memory has another */
	__u64 css_offset; /* of the counter from its css */
	__u64 cgroup;	 /* id */
	__u32 hierarchy;
	__u8 kind;
	bool matched; /* the filters let its charges through */
	bool named; /* the reader has its cgroup's path */
	__u8 pad;
};

/* What is cached of a level above a charged counter. */
struct level_info {
	__u64 counter; /* address */
	__u64 serial_nr;
	__u64 cgroup; /* id */
};

/* Whether a task's name matches. */
struct comm_verdict {
	__u64 comm[2];
	__u64 matched;
};

/* Whether a thread group is in targets, as of a version of that map. */
struct tgid_verdict {
	__u64 targets_version;
	__u32 tgid;
	__u32 matched;
};

/* The last counter that did not match, and the serial number of its css. */
struct unmatched {
	__u64 counter; /* address */
	__u64 serial_nr;
};

#define CACHED_COUNTERS 16

/* What one CPU counts and caches. */
struct cpu_state {
	__u64 delivered; /* events in the ring buffer */
	__u64 filtered;
	__u64 lost;
	__u64 lost_others;     /* events that are no charges */
	__u64 lost_stacks;     /* charges sent without their stack */
	__u64 unwoken;	       /* events, or as much, since this CPU last woke the reader */
	__u64 inflight;	       /* charges that have not returned */
	__u64 zero;	       /* see call_at */
	__u64 number;	       /* see number_of */
	/* The caches, and their guards: see cache.h. */
	__u64 storing; /* programs in cache_store */
	__u64 stores;  /* odd in the middle of one */
	struct comm_verdict comm;
	struct tgid_verdict tgid;
	struct unmatched unmatched;
	struct level_info level; /* the last */
	struct counter_info counters[CACHED_COUNTERS];
} __attribute__((aligned(64))); /* no cache line is shared between CPUs */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* bytes; the loader sets the real size */
	__type(value, struct charge_event);
} events SEC(".maps");

/*
 * An entry for each CPU, and no per-CPU array: the verifier makes of a look-up
 * in this kind of map a few instructions, of one in that a call (until 6.10).
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the loader sets the number of possible CPUs */
	__type(key, __u32);
	__type(value, struct cpu_state);
} cpu_states SEC(".maps");

static __always_inline struct cpu_state *cpu_state_of(__u32 cpu)
{
	return bpf_map_lookup_elem(&cpu_states, &cpu);
}

/*
 * The thread groups to trace. The value is the group's signal_struct: what has a
 * number after it has another.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* the loader sets the real size */
	__type(key, __u32);
	__type(value, __u64);
} targets SEC(".maps");

/* Goes up after each change of targets, so that a CPU can keep what it found there. */
static volatile __u64 targets_version;

static __always_inline void targets_changed(void)
{
	__sync_fetch_and_add(&targets_version, 1);
}

/* Those to begin with, by their numbers in the tracer's pid namespace. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* the loader sets the real size */
	__type(key, __u32);
	__type(value, __u8);
} initial_pids SEC(".maps");

/* How many of those were found, and how many forks found no place in targets. */
volatile __u32 found;
volatile __u64 unfollowed;

/*
 * A call of the function, between entry and return. The stack pointer is its
 * own as long as it lasts; the thread alone would not do, for a softirq that
 * charges on top of a charge has the same.
 */
struct call {
	__u64 sp; /* 0 for none */
	__u64 fail;  /* the function's argument: struct page_counter ** */
	__u64 css_offset; /* of the counter from its css */
	struct charge_event event;
	__u32 stacks; /* its place in call_stacks */
};

/*
 * On each CPU there is a call for each level of interrupts, and where the kernel
 * is preemptible, for each that is preempted: a dozen at once, where a dozen tracers
 * make each call last as long as a task runs at a time. One that returns on another
 * CPU is found through migrated_calls: that is rare, and a place that all CPUs share
 * costs more than all the rest.
 */
#define CALLS 16

struct calls {
	struct call call[CALLS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the loader sets the number of possible CPUs */
	__type(key, __u32);
	__type(value, struct calls);
} calls SEC(".maps");

/* The stacks of a call, whose ids its event has. */
struct call_stacks {
	struct stack_event kernel, user;
	__u64 kernel_frames, user_frames; /* how many addresses they have */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the loader makes it CALLS for each possible CPU if need be */
	__type(key, __u32);
	__type(value, struct call_stacks);
} call_stacks SEC(".maps");

/*
 * A kernel that preempts itself can move a task to another CPU in the middle of a
 * charge. migrated_calls says on which CPU such a call is noted, by its stack
 * pointer; moved is how many there are.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} migrated_calls SEC(".maps");

static volatile __u64 migrated;

/* How long a call can take at most, if it was not missed to return. */
#define MAX_CALL_NS 100000000

/*
 * How many pages the call from a place failed to charge, where not all charges
 * are sent.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); /* stack pointer */
	__type(value, __u64);
} failures SEC(".maps");

/*
 * How many of those are kept for places with the same hash. For most there are
 * none, which a look here tells at a tenth of the price. What is pushed out of
 * failures stays counted, and costs a look there.
 */
#define FAILURES_BITS 12

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << FAILURES_BITS);
	__type(key, __u32);
	__type(value, __u64);
} failure_counts SEC(".maps");

/*
 * The ids of stacks that the reader has been told of, and the layouts whose programs
 * it has looked at, by their lowest bits. What shares a place with another is told
 * again.
 */
struct sent_stack {
	__u32 stack;
	__u32 layout;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the loader makes it SENT_STACKS if need be */
	__type(key, __u32);
	__type(value, struct sent_stack);
} sent_stacks SEC(".maps");

struct cgroup_key {
	__u64 cgroup;
	__u64 hierarchy;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* the loader sets the real size */
	__type(key, struct cgroup_key);
	__type(value, __u8);
} target_cgroups SEC(".maps");

/* The cgroups whose names the reader has been told. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct cgroup_key);
	__type(value, __u8);
} sent_cgroups SEC(".maps");

struct reclaim {
	__u64 begin_ns;
	struct cgroup_key key;
};

/* By thread: reclaims under way, and for which cgroup a thread kills. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct reclaim);
} reclaims SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, struct cgroup_key);
} ooms SEC(".maps");

#endif
