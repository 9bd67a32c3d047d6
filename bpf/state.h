/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The maps, and the state of each CPU.
 */
#ifndef CHARGETRACE_STATE_H
#define CHARGETRACE_STATE_H

#include "events.h"
#include <bpf/bpf_helpers.h>

/* Set by the reader before it sleeps, cleared by the program that wakes it. */
volatile bool reader_idle;

/* Its own address; see number_of and learn_roots. */
static volatile __u64 anchor;

/* The cached info of a page counter. */
struct counter_info {
	__u64 counter; /* address */
	__u64 css;
	__u64 serial_nr; /* a later css in the same memory has another */
	__u64 css_offset; /* of the counter from its css */
	__u64 cgroup;	 /* id */
	__u32 hierarchy;
	__u8 kind;
	bool matched; /* its charges pass the filters */
	bool named; /* the reader has its cgroup's path */
	__u8 pad;
	/* The last level above it that limited a charge: its counter and cgroup. */
	__u64 level;
	__u64 level_cgroup;
};

/* The cached verdict on a thread's name. */
struct comm_verdict {
	__u64 comm[2];
	__u64 matched;
};

/* The cached verdict on a thread group, at a version of targets. */
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

/*
 * A call between its entry and its return, with kprobes. Its stack pointer identifies it:
 * the thread does not, since a softirq can charge in the middle of the thread's own charge.
 */
struct call {
	__u64 sp; /* 0 for none */
	__u64 counter; /* the arguments */
	__u64 nr_pages;
	__u64 fail;
	__u32 tid;
	__u32 stacks; /* index in call_stacks, or NO_STACKS */
};

#define NO_STACKS (~0u)

/*
 * A CPU has one call in flight for each level of interrupts and, in a preemptible
 * kernel, for each preempted task: a dozen if a dozen tracers make each call last a whole
 * time slice. A call that returns on another CPU is found through migrated_calls: that is
 * rare, and a map shared by all CPUs for all calls would cost more than the rest.
 */
#define CALLS 16

/* The counts and caches of one CPU. */
struct cpu_state {
	__u64 delivered; /* events in the ring buffer */
	__u64 filtered;
	__u64 lost;
	__u64 lost_others;     /* events other than charges */
	__u64 lost_stacks;     /* charges sent without their stack */
	__u64 missed;	       /* calls whose return was not seen */
	__u64 unwoken;	       /* events since this CPU last woke the reader; a stack is two */
	__u64 inflight;	       /* calls in call */
	__u64 zero;	       /* see call_at */
	__u64 taking;	       /* programs that use this CPU's call_stacks; see claim_stacks */
	/* The caches and their guards; see cache.h. */
	__u64 storing; /* programs in cache_store */
	__u64 stores;  /* odd in the middle of a store */
	struct comm_verdict comm;
	struct tgid_verdict tgid;
	struct unmatched unmatched;
	struct counter_info counters[CACHED_COUNTERS];
	struct call call[CALLS];
} __attribute__((aligned(64))); /* no cache line is shared between CPUs */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* bytes; the loader sets the real size */
	__type(value, struct charge_event);
} events SEC(".maps");

/*
 * An array with an entry for each CPU, not a per-CPU array: the verifier inlines lookups
 * in arrays, but those in per-CPU arrays only since 6.10.
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
 * The thread groups to trace. The value is the address of the signal_struct, which
 * differs for a later process with the same pid.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* the loader sets the real size */
	__type(key, __u32);
	__type(value, __u64);
} targets SEC(".maps");

/* Incremented after each change of targets, so that a CPU can cache lookups. */
static volatile __u64 targets_version;

static __always_inline void targets_changed(void)
{
	__sync_fetch_and_add(&targets_version, 1);
}

/* The processes to trace from the start, by pid in the tracer's pid namespace. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* the loader sets the real size */
	__type(key, __u32);
	__type(value, __u8);
} initial_pids SEC(".maps");

/* The number of these that were found, and of forks that did not fit in targets. */
volatile __u32 found;
volatile __u64 unfollowed;

/* The stacks of a charge; its event has their ids. */
struct call_stacks {
	struct stack_event kernel, user;
	__u64 kernel_frames, user_frames; /* numbers of addresses */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* with stacks, the loader sets CALLS for each possible CPU */
	__type(key, __u32);
	__type(value, struct call_stacks);
} call_stacks SEC(".maps");

/*
 * A preemptible kernel can migrate a task in the middle of a charge. migrated_calls maps
 * the stack pointer of such a call to the CPU that has it; migrated counts them.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} migrated_calls SEC(".maps");

static volatile __u64 migrated;

/*
 * The pages of failed charges by stack pointer, while only_limited or min_pages drop
 * charges.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); /* stack pointer */
	__type(value, __u64);
} failures SEC(".maps");

/*
 * The number of entries in failures by hash. Most are 0, which saves a lookup in failures,
 * ten times as expensive. An entry that failures evicts stays counted and costs lookups.
 */
#define FAILURES_BITS 12

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << FAILURES_BITS);
	__type(key, __u32);
	__type(value, __u64);
} failure_counts SEC(".maps");

/*
 * The sent stacks, and the layouts of programs for which the reader was woken, by their
 * lowest bits. After a collision they are sent again.
 */
struct sent_stack {
	__u32 stack;
	__u32 layout;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* with stacks, the loader sets SENT_STACKS */
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

/* The cgroups whose names have been sent. */
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

/* A run of the OOM killer. */
struct oom {
	struct cgroup_key key; /* the cgroup that ran out, or none */
	struct oom_state state;
	__u64 oc; /* struct oom_control */
	__u32 flags;
	__s32 order;
	__u64 killed; /* the number of processes, those that filters drop too */
};

/* By thread: its reclaim in progress, and its run of the OOM killer. */
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
	__type(value, struct oom);
} ooms SEC(".maps");

/* By thread: the cgroup whose limit it writes, and the stack pointer where it handles memory.high. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} limit_writers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} throttled SEC(".maps");

#endif
