// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * chargetrace.bpf.c: an event for each call of page_counter_try_charge, and for
 * the reclaim and the OOM kills that follow where it fails; and where a balance is
 * asked for, for each call that gives pages back or charges them unasked.
 *
 * The kernel asks that function whether some pages still fit under the limits
 * of a cgroup and of all its ancestors. A probe at its entry notes the question:
 * who asks, whose counter it is, and which level has the least room. A probe at
 * its return adds the answer. The event is sent then.
 */
#include "kernel.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/*
 * Configuration, written by the loader before the programs are verified, so
 * that the verifier removes the branches that are not taken.
 */

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
const volatile bool tell_forks;
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

/*
 * Set by the reader when it goes to sleep until it is woken, and cleared by the
 * program that wakes it.
 */
volatile bool reader_idle;

enum event_type {
	EVENT_CHARGE = 1,
	EVENT_LOST = 2, /* made by the reader */
	EVENT_RECLAIM_BEGIN = 3,
	EVENT_RECLAIM_END = 4,
	EVENT_OOM_KILL = 5,
	EVENT_CGROUP = 6,
	EVENT_FORK = 7,
	EVENT_UNCHARGE = 9,
	EVENT_FORCED_CHARGE = 10,
	EVENT_STACK = 12, /* the reader makes others of it, of type 8 */
};

/* What a page counter counts. */
enum kind {
	KIND_UNKNOWN,
	KIND_MEMORY,
	KIND_MEMSW,
	KIND_SWAP,
	KIND_KMEM,
	KIND_TCPMEM,
	KIND_HUGETLB,
	KIND_HUGETLB_RSVD,
	KIND_DMEM, /* counts bytes, not pages */
};

enum outcome {
	OUTCOME_OK = 1,
	OUTCOME_FAILED = 2,
	/* 3, a batch miss, is for the reader to tell: it takes the next event. */
};

enum event_flag {
	/* The return was not seen; the outcome is what the entry foretold. */
	FLAG_PREDICTED = 1 << 0,
	/* The charged cgroup is not that of the current task. */
	FLAG_REMOTE = 1 << 1,
	FLAG_KTHREAD = 1 << 2,
	/* There are more levels than were looked at. */
	FLAG_WALK_CUT = 1 << 3,
	/*
	 * Follows a failed batch, where only_limited or min_pages leave charges
	 * out; of use to tell what became of that, whether or not it is itself
	 * asked for.
	 */
	FLAG_RETRY = 1 << 4,
	/* Of a fork: it was before the trace. */
	FLAG_EXISTING = 1 << 5,
};

/* The values of target_cgroups. */
enum cgroup_verdict {
	CGROUP_TARGET = 1,
	CGROUP_ABOVE_TARGET = 2,
};

/* The slots of told. */
enum stack_slots {
	TOLD = 16384,
};

/* What the ring buffer carries; package event decodes it. */
struct event {
	__u32 type; /* enum event_type */
	__u32 cpu;
	__u64 boot_ns; /* CLOCK_BOOTTIME */
	__u32 tgid;
	__u32 tid;
	char comm[16];
	__u64 cgroup;	 /* id, unique in its hierarchy; 0 for none */
	__u32 hierarchy; /* 0 is cgroup v2 */
	__u8 kind;	 /* enum kind */
	__u8 outcome;	 /* enum outcome */
	__u16 flags;
};

/* A level of the tree. */
struct level {
	__u64 cgroup; /* id; 0 for none */
	__s64 usage;  /* pages, before this charge */
	__u64 max;    /* pages */
};

struct charge_event {
	struct event e;
	__u64 counter; /* address of the page_counter: its identity, no more */
	__u64 stack;   /* stack pointer: with tid, it tells one call from another */
	__u64 requested;
	__s64 usage;
	__u64 max;
	struct level limiting; /* the one with the least room */
	struct level high;     /* likewise under memory.high; max is that */
	__u64 failed;	       /* id of the cgroup whose limit made it fail */
	__u64 lost;	       /* events lost on this CPU since the trace began */
	__u32 kernel_stack;    /* id of a stack_event; 0 for none */
	__u32 user_stack;
};

struct reclaim_event {
	struct event e;
	__u64 freed; /* pages; at the end */
	__u64 ns;    /* how long it took; at the end */
};

struct oom_kill_event {
	struct event e; /* of the task that ran out; cgroup 0 is the machine */
	__u32 victim_tgid;
	__u32 pad;
	char victim_comm[16];
	__u64 anon, file, shmem, swap; /* pages that the victim held */
};

struct fork_event {
	struct event e; /* of the parent; without a cgroup */
	__u32 child_tgid;
	__u32 pad;
};

/* Of a call that gives pages back, or that charges them whatever the limit. */
struct uncharge_event {
	struct event e;
	__u64 counter; /* as in struct charge_event */
	__u64 pages;
	__s64 usage; /* pages, before */
};

/* How many addresses of a stack are taken. */
#define STACK_DEPTH 64

/* Travels before the first charge that has the stack, with as many addresses as it has. */
struct stack_event {
	__u32 type;
	__u32 id; /* a hash of what follows */
	__u32 tgid; /* 0 for a kernel stack */
	__u32 layout; /* likewise; see layout_of_current */
	__u64 address[STACK_DEPTH]; /* the innermost first */
};

/* Travels before the first event that has its cgroup. */
struct cgroup_event {
	__u32 type;
	__u32 hierarchy;
	__u64 cgroup;
	__u64 parent; /* id; 0 for none */
	char name[256];
};

/* Puts the types that no map holds into BTF, where bpf2go finds them. */
const struct reclaim_event *reclaim_event_type __attribute__((unused));
const struct oom_kill_event *oom_kill_event_type __attribute__((unused));
const struct fork_event *fork_event_type __attribute__((unused));
const struct uncharge_event *uncharge_event_type __attribute__((unused));
const struct cgroup_event *cgroup_event_type __attribute__((unused));
const union {
	enum event_type event_type;
	enum kind kind;
	enum outcome outcome;
	enum event_flag flag;
	enum cgroup_verdict verdict;
	enum stack_slots slots;
} *enum_types __attribute__((unused));

/* What is known of a page counter. */
struct known {
	__u64 counter; /* address */
	__u64 css;
	__u64 serial_nr; /* another css in the same place has another */
	__u64 css_offset; /* of the counter from its css */
	__u64 cgroup;	 /* id */
	__u32 hierarchy;
	__u8 kind;
	bool aimed; /* its charges are to be traced */
	bool named; /* the reader knows its cgroup's name */
	__u8 pad;
};

enum {
	/* Places by the counter's address, and one each for: */
	KNOWN_COUNTERS = 16,
	KNOWN_LIMITING = KNOWN_COUNTERS, /* the last limiting level */
	KNOWN_INTERRUPT, /* a program that interrupted another on this CPU */
	KNOWN_PLACES,
};

/* What became of the charges that one CPU has seen, and what it knows. */
struct counters {
	__u64 delivered; /* events in the ring buffer */
	__u64 filtered;
	__u64 lost;
	__u64 lost_others;     /* events that are no charges */
	__u64 lost_stacks;     /* charges sent without their stack */
	__u64 unwoken;	       /* events, or as much, since this CPU last woke the reader */
	__u64 running;	       /* programs on this CPU, one interrupting the other */
	__u64 under_way;       /* calls that are noted and have not returned */
	__u64 zero;	       /* see call_at */
	__u64 number;	       /* see number_of */
	/* The last name that was looked at, and whether it matches. */
	__u64 comm[2];
	/* The last thread group that was looked up in targets, and when. */
	__u64 targets_version;
	__u32 tgid;
	bool tgid_aimed;
	bool comm_aimed;
	/* The last counter that was found not to be aimed at, and its css. */
	__u64 unaimed;
	__u64 unaimed_serial_nr;
	struct known known[KNOWN_PLACES];
	/* See on_unasked. */
	struct known unasked[KNOWN_COUNTERS];
	__u64 keeping;
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
	__type(value, struct counters);
} counters SEC(".maps");

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
} wanted SEC(".maps");

/* How many of those were found, and how many forks found no place in targets. */
volatile __u32 found;
volatile __u64 unfollowed;

/*
 * A call of the function, between entry and return. The stack pointer is its
 * own as long as it lasts; the thread alone would not do, for a softirq that
 * charges on top of a charge has the same.
 */
struct call {
	__u64 stack; /* 0 for none */
	__u64 fail;  /* the function's argument: struct page_counter ** */
	struct charge_event event;
	__u32 stacks; /* its place in call_stacks */
};

/*
 * On each CPU there is a call for each level of interrupts, and where the kernel
 * is preemptible, for each that is preempted: a dozen at once, where a dozen tracers
 * make each call last as long as a task runs at a time. One that returns on another
 * CPU is found through moved_calls: that is rare, and a place that all CPUs share
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
 * charge. moved_calls says on which CPU such a call is noted, by its stack
 * pointer; moved is how many there are.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} moved_calls SEC(".maps");

static volatile __u64 moved;

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
struct told {
	__u32 stack;
	__u32 layout;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the loader makes it TOLD if need be */
	__type(key, __u32);
	__type(value, struct told);
} told SEC(".maps");

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
} named SEC(".maps");

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

/*
 * The root objects of the controllers, learned at the first event. They are
 * never freed, and always at the same place.
 */
static volatile __u64 memory_root;  /* struct mem_cgroup */
static volatile __u64 memory_ss;    /* struct cgroup_subsys */
static volatile __u64 hugetlb_root; /* struct hugetlb_cgroup */
static volatile __u64 dmem_ss;
static volatile __u32 memory_hierarchy;
static volatile __u32 hugetlb_hierarchy;
static volatile __u32 dmem_hierarchy;

/* TASK_BTF says whether the kernel lets programs read the current task without a call. */
#define TASK_BTF bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf)

/* current_css returns the current task's css of a controller. */
static __always_inline struct cgroup_subsys_state *current_css(int id)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct css_set *cgroups = BPF_CORE_READ(task, cgroups);
	struct cgroup_subsys_state *css = NULL;

	bpf_core_read(&css, sizeof(css), (void *)cgroups + bpf_core_field_offset(struct css_set, subsys) + id * sizeof(css));
	return css;
}

/* memory_css does the same for memory, without a further call where the kernel can. */
static __always_inline struct cgroup_subsys_state *memory_css(void)
{
	const int id = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);

	if (!TASK_BTF)
		return current_css(id);
	return *(struct cgroup_subsys_state **)((void *)bpf_get_current_task_btf()->cgroups +
						bpf_core_field_offset(struct css_set, subsys) + id * sizeof(void *));
}

/* root_css returns the root of a controller's tree, and learns its hierarchy. */
static __always_inline struct cgroup_subsys_state *root_css(int id, volatile __u32 *hierarchy)
{
	struct cgroup_root *root = BPF_CORE_READ(current_css(id), cgroup, root);
	struct cgroup_subsys_state *css = NULL;

	bpf_core_read(&css, sizeof(css), (void *)root + bpf_core_field_offset(struct cgroup_root, cgrp) +
					     bpf_core_field_offset(struct cgroup, subsys) + id * sizeof(css));
	*hierarchy = BPF_CORE_READ(root, hierarchy_id);
	return css;
}

static __noinline int learn_roots(void)
{
	struct cgroup_subsys_state *css;

	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, hugetlb_cgrp_id))
		hugetlb_root = (__u64)root_css(bpf_core_enum_value(enum cgroup_subsys_id, hugetlb_cgrp_id), &hugetlb_hierarchy);
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, dmem_cgrp_id)) {
		css = root_css(bpf_core_enum_value(enum cgroup_subsys_id, dmem_cgrp_id), &dmem_hierarchy);
		dmem_ss = (__u64)BPF_CORE_READ(css, ss);
	}
	css = root_css(bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id), &memory_hierarchy);
	memory_ss = (__u64)BPF_CORE_READ(css, ss);
	memory_root = (__u64)css;
	return 0;
}

/* kind_at returns the kind of the counter at an offset of a mem_cgroup. */
static __always_inline enum kind kind_at(__u64 offset)
{
	if (offset == bpf_core_field_offset(struct mem_cgroup, memory))
		return KIND_MEMORY;
	/* swap and memsw are one union. */
	if (offset == bpf_core_field_offset(struct mem_cgroup, swap))
		return memory_hierarchy ? KIND_MEMSW : KIND_SWAP;
	if (bpf_core_field_exists(struct mem_cgroup, kmem) && offset == bpf_core_field_offset(struct mem_cgroup, kmem))
		return KIND_KMEM;
	if (bpf_core_field_exists(struct mem_cgroup, tcpmem) && offset == bpf_core_field_offset(struct mem_cgroup, tcpmem))
		return KIND_TCPMEM;
	return KIND_UNKNOWN;
}

/* is_in returns whether the counter at offset is one of those in an array. */
#define is_in(offset, type, array) \
	((offset) - bpf_core_field_offset(type, array) < bpf_core_field_size(type, array))

static __always_inline bool is_css_of(__u64 css, __u64 ss)
{
	return css && ss && (__u64)BPF_CORE_READ((struct cgroup_subsys_state *)css, ss) == ss;
}

/*
 * classify tells what a counter counts, and how far it is from the css that it
 * belongs to. The counter at the root of its tree is in the root object of its
 * controller, and its place there tells all.
 */
static __always_inline enum kind classify(__u64 counter, __u64 last, __u64 *css_offset)
{
	__u64 offset = last - memory_root;
	enum kind kind = kind_at(offset);

	*css_offset = offset;
	if (kind != KIND_UNKNOWN)
		return kind;

	if (bpf_core_type_exists(struct hugetlb_cgroup) && hugetlb_root) {
		offset = *css_offset = last - hugetlb_root;
		if (is_in(offset, struct hugetlb_cgroup, hugepage))
			return KIND_HUGETLB;
		if (bpf_core_field_exists(struct hugetlb_cgroup, rsvd_hugepage) &&
		    is_in(offset, struct hugetlb_cgroup, rsvd_hugepage))
			return KIND_HUGETLB_RSVD;
	}

	/* A pool of each region, and a root pool for each. */
	if (bpf_core_type_exists(struct dmem_cgroup_pool_state)) {
		struct dmem_cgroup_pool_state *pool = (void *)counter - bpf_core_field_offset(struct dmem_cgroup_pool_state, cnt);

		if (is_css_of((__u64)BPF_CORE_READ(pool, cs), dmem_ss))
			return KIND_DMEM;
	}

	/* A tree that does not end at the root. */
	offset = *css_offset = bpf_core_field_offset(struct mem_cgroup, memory);
	if (is_css_of(counter - offset, memory_ss))
		return kind_at(offset);
	offset = *css_offset = bpf_core_field_offset(struct mem_cgroup, swap);
	if (is_css_of(counter - offset, memory_ss))
		return kind_at(offset);
	return KIND_UNKNOWN;
}

/* css_of returns the css that a counter belongs to. */
static __always_inline struct cgroup_subsys_state *css_of(__u64 counter, __u8 kind, __u64 css_offset)
{
	if (!counter || kind == KIND_UNKNOWN)
		return NULL;
	if (kind == KIND_DMEM) {
		struct dmem_cgroup_pool_state *pool;

		if (!bpf_core_type_exists(struct dmem_cgroup_pool_state))
			return NULL;
		pool = (void *)(counter - bpf_core_field_offset(struct dmem_cgroup_pool_state, cnt));
		return &BPF_CORE_READ(pool, cs)->css;
	}
	return (void *)(counter - css_offset);
}

/* cgroup_id returns 0 for no css. */
static __always_inline __u64 cgroup_id(struct cgroup_subsys_state *css)
{
	return css ? BPF_CORE_READ(css, cgroup, kn, id) : 0;
}

static __always_inline struct kernfs_node *parent_of(struct kernfs_node *kn)
{
	struct kernfs_node___rcu *rcu = (void *)kn;

	if (bpf_core_field_exists(rcu->__parent))
		return BPF_CORE_READ(rcu, __parent);
	return BPF_CORE_READ(kn, parent);
}

/* sign returns -1 for a negative number, 0 for others. */
#define sign(x) ({					\
	__s64 __sign = (x);				\
	asm volatile("%0 s>>= 63" : "+r"(__sign));	\
	__sign;						\
})

/* pick replaces a number by another where mask is -1. */
#define pick(x, y, mask) ((x) ^= ((x) ^ (__u64)(y)) & (mask))

/*
 * comm_matches runs a name through an automaton (package glob): each bit is a
 * state, and all are moved at once. Without branches, as walk.
 */
static __always_inline bool comm_matches(const char *comm)
{
	__u64 states = comm_start;
	__s64 within = -1; /* 0 from the NUL on: before 5.17 an older name may follow */

#pragma clang loop unroll(disable)
	for (int i = 0; i < 16; i++) {
		__u8 c = comm[i];
		__u64 next = (states & comm_accepts[c]) << 1 | (states & comm_loops);

		within &= sign(-(__s64)c);
		pick(states, next, within);
	}
	return states & comm_end;
}

static __always_inline bool aimed_at(__u32 tgid, const char *comm)
{
	if (target_tgid && tgid != target_tgid)
		return false;
	if (filter_targets && !bpf_map_lookup_elem(&targets, &tgid))
		return false;
	return !filter_comms || comm_matches(comm);
}

static __always_inline bool aimed_at_current(__u32 tgid)
{
	char comm[16] = {};

	if (filter_comms)
		bpf_get_current_comm(comm, sizeof(comm));
	return aimed_at(tgid, comm);
}

static __always_inline struct counters *counters_of(__u32 cpu)
{
	return bpf_map_lookup_elem(&counters, &cpu);
}

/* current_comm reads the current task's name, without a call where the kernel can. */
static __always_inline void current_comm(__u64 comm[2])
{
	const __u64 *name;

	if (!TASK_BTF) {
		bpf_get_current_comm(comm, 16);
		return;
	}
	name = (void *)bpf_get_current_task_btf()->comm;
	comm[0] = name[0];
	comm[1] = name[1];
}

static __always_inline bool is_comm_aimed(struct counters *n)
{
	__u64 comm[2] = {};

	current_comm(comm);
	/* Where it is empty, none may have been looked at. */
	if (comm[0] != n->comm[0] || comm[1] != n->comm[1] || !comm[0]) {
		n->comm_aimed = comm_matches((char *)comm);
		n->comm[0] = comm[0];
		n->comm[1] = comm[1];
	}
	return n->comm_aimed;
}

/*
 * is_aimed tells whether the current task is aimed at. Mostly it is the same as
 * at the last call on this CPU.
 */
static __always_inline bool is_aimed(struct counters *n, __u32 tgid)
{
	__u64 version;

	if (target_tgid && tgid != target_tgid)
		return false;
	if (filter_targets) {
		version = targets_version; /* of before it is looked up */
		if (n->tgid != tgid || n->targets_version != version) {
			n->tgid_aimed = bpf_map_lookup_elem(&targets, &tgid);
			n->tgid = tgid;
			n->targets_version = version;
		}
		if (!n->tgid_aimed)
			return false;
	}
	return !filter_comms || is_comm_aimed(n);
}

/*
 * wakeup returns the flags to send an event with. To wake the reader costs more
 * than the event. As long as there are events it looks into the buffer every
 * few milliseconds by itself, and is woken before that only where the buffer
 * would fill up: counting per CPU needs no look at the buffer, which all CPUs
 * share.
 */
static __always_inline __u64 wakeup(struct counters *n)
{
	if (++n->unwoken < wakeup_events && !reader_idle)
		return BPF_RB_NO_WAKEUP;
	n->unwoken = 0;
	reader_idle = false;
	return BPF_RB_FORCE_WAKEUP;
}

/* How many levels of a tree a charge looks at. */
#define MAX_LEVELS 32
/* And what is done once for a cgroup. */
#define MAX_DEPTH 128

/* What has no limit has LONG_MAX / PAGE_SIZE or nearly that, more than this. */
#define UNLIMITED (1ULL << 46)

/*
 * name_one tells the reader the name of a cgroup, once, and returns its parent, 0 at
 * the root, or 1 where the buffer is full. Not static, and with numbers for arguments:
 * so the verifier looks at it once, and not again for each call.
 */
__noinline __u64 name_one(__u64 kn, __u64 hierarchy)
{
	struct kernfs_node *node = (void *)kn, *parent = parent_of(node);
	struct cgroup_key key = {.hierarchy = hierarchy};
	struct cgroup_event *e;
	__u8 yes = 1;

	key.cgroup = BPF_CORE_READ(node, id);
	if (bpf_map_lookup_elem(&named, &key))
		return (__u64)parent;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e)
		return 1;
	e->type = EVENT_CGROUP;
	e->hierarchy = hierarchy;
	e->cgroup = key.cgroup;
	/* What cannot be read is 0, as is the id of the root's parent. */
	e->parent = BPF_CORE_READ(parent, id);
	bpf_probe_read_kernel_str(e->name, sizeof(e->name), BPF_CORE_READ(node, name));
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	bpf_map_update_elem(&named, &key, &yes, BPF_ANY);
	return (__u64)parent;
}

/*
 * name tells the reader the name of a cgroup and of its ancestors. They are read from
 * the kernel's own tree, where a cgroup that was removed, but still pays, has kept its
 * place. The cgroup itself comes last: that it is named says that its ancestors are.
 */
__noinline int name(__u64 css, __u64 hierarchy)
{
	__u64 first = (__u64)BPF_CORE_READ((struct cgroup_subsys_state *)css, cgroup, kn);
	__u64 kn = (__u64)parent_of((void *)first);

	if (!first)
		return 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_DEPTH && kn; i++) {
		kn = name_one(kn, hierarchy);
		if (kn == 1)
			return 1; /* again with the next event */
	}
	return name_one(first, hierarchy) == 1;
}

/*
 * target_of returns what a cgroup is to the aim at cgroups: CGROUP_TARGET where it
 * is one or below one, CGROUP_ABOVE_TARGET where one is below it, else 0.
 */
static __always_inline int target_of(struct cgroup_subsys_state *css, __u64 hierarchy)
{
	struct kernfs_node *kn = BPF_CORE_READ(css, cgroup, kn);
	int target = 0;

#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_DEPTH && kn; i++) {
		struct cgroup_key key = {.hierarchy = hierarchy};
		__u8 *found;

		key.cgroup = BPF_CORE_READ(kn, id);
		found = bpf_map_lookup_elem(&target_cgroups, &key);
		if (found && *found == CGROUP_TARGET)
			return CGROUP_TARGET;
		if (found && i == 0)
			target = CGROUP_ABOVE_TARGET;
		kn = parent_of(kn);
	}
	return target;
}

/* find_out finds out about a counter. */
static __always_inline void find_out(struct known *k, __u64 counter)
{
	struct page_counter *last = (void *)counter, *parent;
	struct cgroup_subsys_state *css;

	if (!memory_root)
		learn_roots();
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_DEPTH; i++) {
		parent = BPF_CORE_READ(last, parent);
		if (!parent)
			break;
		last = parent;
	}
	k->counter = counter;
	k->kind = classify(counter, (__u64)last, &k->css_offset);
	css = css_of(counter, k->kind, k->css_offset);
	k->css = (__u64)css;
	k->serial_nr = css ? BPF_CORE_READ(css, serial_nr) : 0;
	k->cgroup = cgroup_id(css);
	k->hierarchy = memory_hierarchy;
	if (k->kind == KIND_HUGETLB || k->kind == KIND_HUGETLB_RSVD)
		k->hierarchy = hugetlb_hierarchy;
	if (k->kind == KIND_DMEM)
		k->hierarchy = dmem_hierarchy;
	k->named = false;
	k->aimed = target_kinds >> (k->kind & 31) & 1;
	if (filter_cgroups && k->aimed)
		k->aimed = css && target_of(css, k->hierarchy) == CGROUP_TARGET;
}

/*
 * learn finds out about a counter, and leaves that in a place of this CPU's.
 * Not static, as name.
 */
__noinline int learn(__u64 counter, __u64 place)
{
	struct counters *n = counters_of(bpf_get_smp_processor_id());

	if (!n || place >= KNOWN_PLACES)
		return 1;
	find_out(&n->known[place], counter);
	return 0;
}

/*
 * is_known tells whether what is known of a counter is true of it still. Mostly it is of
 * the current task's cgroup, which can be read without a call.
 */
static __always_inline bool is_known(const struct known *k, __u64 counter)
{
	struct cgroup_subsys_state *css = (void *)k->css, *current;

	if (k->counter != counter || !css)
		return false;
	if (TASK_BTF) {
		current = memory_css();
		if (css == current)
			return current->serial_nr == k->serial_nr;
	}
	return BPF_CORE_READ(css, serial_nr) == k->serial_nr;
}

/* know returns what is known of a counter; it is valid until the next such call. */
static __always_inline struct known *know(struct counters *n, __u64 counter, __u64 place)
{
	struct known *k;

	if (n->running > 1)
		place = KNOWN_INTERRUPT;
	k = &n->known[place];
	if (!is_known(k, counter))
		learn(counter, place);
	return k;
}

/* place_of returns the place for a counter that is charged. */
static __always_inline __u64 place_of(__u64 counter)
{
	return (counter >> 6) * 0x9e3779b97f4a7c15ULL >> 60;
}

/* level_id returns the id of a level's cgroup. */
static __always_inline __u64 level_id(struct counters *n, struct charge_event *e, __u64 level)
{
	if (!level)
		return 0;
	if (level == e->counter)
		return e->e.cgroup;
	return know(n, level, KNOWN_LIMITING)->cgroup;
}

/* ensure_named tells the reader the name of a css's cgroup, if it does not know it. */
static __always_inline bool ensure_named(struct cgroup_subsys_state *css, __u64 cgroup, __u64 hierarchy)
{
	struct cgroup_key key = {cgroup, hierarchy};

	return !cgroup || bpf_map_lookup_elem(&named, &key) || name((__u64)css, hierarchy) == 0;
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

/* tell_stack sends a stack that the reader does not know. */
static __always_inline void tell_stack(struct counters *n, struct stack_event *stack, __u64 frames)
{
	__u32 of_stack = stack->id & (TOLD - 1), of_layout = stack->layout & (TOLD - 1);
	struct told *known = bpf_map_lookup_elem(&told, &of_stack);
	__u64 flags = BPF_RB_NO_WAKEUP, size = __builtin_offsetof(struct stack_event, address) + frames * sizeof(__u64);

	if (!known || known->stack == stack->id)
		return;
	if (stack->layout) {
		struct told *seen = bpf_map_lookup_elem(&told, &of_layout);

		/* The program may be short-lived: it is to be looked at now. */
		if (seen && seen->layout != stack->layout) {
			seen->layout = stack->layout;
			flags = BPF_RB_FORCE_WAKEUP;
		}
	}
	/* As it is passed on: the verifier knows no other. */
	asm volatile("" : "+r"(size));
	/* The reader counts the charges that come without. */
	if (size <= sizeof(*stack) && !bpf_ringbuf_output(&events, stack, size, flags)) {
		known->stack = stack->id;
		n->unwoken += 2; /* it is as long as two events */
	}
}

/* tell_stacks tells the reader of the stacks of a call. */
static __always_inline void tell_stacks(struct counters *n, struct call *c)
{
	struct call_stacks *s = bpf_map_lookup_elem(&call_stacks, &c->stacks);

	if (!s)
		return;
	if (take_kernel_stacks && c->event.kernel_stack)
		tell_stack(n, &s->kernel, s->kernel_frames);
	if (take_user_stacks && c->event.user_stack)
		tell_stack(n, &s->user, s->user_frames);
}

/* send_charge sends a charge whose outcome is known. */
static __always_inline void send_charge(struct counters *n, struct call *c)
{
	struct charge_event *e = &c->event, *sent;

	if (only_limited && e->e.outcome == OUTCOME_OK && !(e->e.flags & FLAG_RETRY) &&
	    e->limiting.usage < (__s64)e->limiting.max) {
		__sync_fetch_and_add(&n->filtered, 1);
		return;
	}
	if (take_kernel_stacks || take_user_stacks)
		tell_stacks(n, c);
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

/* What is next to each other in struct page_counter. */
struct limits {
	__u64 high;
	__u64 max;
	__u64 parent;
};

static __always_inline void read_limits(struct limits *l, struct page_counter *counter)
{
	if (bpf_core_field_offset(struct page_counter, max) == bpf_core_field_offset(struct page_counter, high) + 8 &&
	    bpf_core_field_offset(struct page_counter, parent) == bpf_core_field_offset(struct page_counter, high) + 16) {
		bpf_probe_read_kernel(l, sizeof(*l), (void *)counter + bpf_core_field_offset(struct page_counter, high));
		return;
	}
	l->high = BPF_CORE_READ(counter, high);
	l->max = BPF_CORE_READ(counter, max);
	l->parent = (__u64)BPF_CORE_READ(counter, parent);
}

/*
 * walk looks at each level. Where the id of a level's cgroup belongs, it leaves
 * the address of the level's counter, or 0 for none. It has no branches but the
 * end of the loop and one: the verifier would follow every way through all the levels.
 */
static __always_inline void walk(struct charge_event *e, struct page_counter *counter)
{
	__s64 least = 1LL << 62, least_high = least, not_full = -1, mask;

	e->limiting.cgroup = e->high.cgroup = e->failed = 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_LEVELS; i++) {
		struct limits l;
		__s64 usage = 0;

		read_limits(&l, counter);
		/* A level without a limit has room, whatever it holds. */
		if (i == 0 || l.max < UNLIMITED || l.high < UNLIMITED)
			usage = BPF_CORE_READ(counter, usage.counter);
		if (i == 0) {
			e->usage = usage;
			e->max = l.max;
		}
		mask = sign((__s64)l.max - usage - least);
		pick(least, (__s64)l.max - usage, mask);
		pick(e->limiting.cgroup, counter, mask);
		pick(e->limiting.usage, usage, mask);
		pick(e->limiting.max, l.max, mask);

		mask = sign((__s64)l.high - usage - least_high);
		pick(least_high, (__s64)l.high - usage, mask);
		pick(e->high.cgroup, counter, mask);
		pick(e->high.usage, usage, mask);
		pick(e->high.max, l.high, mask);

		mask = sign((__s64)l.max - usage - (__s64)e->requested) & not_full;
		pick(e->failed, counter, mask);
		not_full &= ~mask;

		counter = (void *)l.parent;
		if (!counter)
			return;
	}
	e->e.flags |= FLAG_WALK_CUT;
}

/*
 * call_at returns a call of this CPU. To the index a number is added that is always 0,
 * from the memory of a map, so that the verifier takes it for any: it would look at
 * what follows once for each.
 */
static __always_inline struct call *call_at(struct counters *n, struct calls *cs, __u64 i)
{
	i += *(volatile __u64 *)&n->zero;
	return &cs->call[i & (CALLS - 1)];
}

/*
 * moved_from returns the CPU on which the call from a place is noted, of which
 * task_migrates knows that it returns on another.
 */
static __always_inline __u32 moved_from(__u32 cpu, __u64 stack)
{
	__u32 *from = bpf_map_lookup_elem(&moved_calls, &stack);

	if (!from)
		return cpu;
	cpu = *from;
	if (!bpf_map_delete_elem(&moved_calls, &stack))
		__sync_fetch_and_sub(&moved, 1);
	return cpu;
}

/*
 * free_call returns a place for a call on this CPU. A call from the same place was
 * missed to return, and is sent. Where all places are taken, so is one that has
 * not returned in time, or the last: as long as there are others, it may just
 * have been preempted for long.
 */
static __always_inline struct call *free_call(struct counters *n, struct calls *cs, __u32 cpu, __u64 stack)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct call *c;
	__u64 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < CALLS; i++) {
		c = &cs->call[i];
		if (!c->stack || c->stack == stack)
			break;
	}
	if (i == CALLS) {
#pragma clang loop unroll(disable)
		for (i = 0; i < CALLS - 1; i++)
			if (now - cs->call[i].event.e.boot_ns > MAX_CALL_NS)
				break;
	}
	c = call_at(n, cs, i);
	if (c->stack) {
		c->event.e.flags |= FLAG_PREDICTED;
		send_charge(n, c);
		if (moved && c->stack != stack)
			moved_from(cpu, c->stack);
	} else {
		/* Atomic, for another call may be preempted while it does this. */
		__sync_fetch_and_add(&n->under_way, 1);
	}
	if (take_kernel_stacks || take_user_stacks)
		c->stacks = cpu * CALLS + i;
	c->event.e.boot_ns = now;
	c->stack = stack;
	return c;
}

/* controller_of returns the controller of a kind of counter. */
static __always_inline int controller_of(__u8 kind)
{
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, hugetlb_cgrp_id) &&
	    (kind == KIND_HUGETLB || kind == KIND_HUGETLB_RSVD))
		return bpf_core_enum_value(enum cgroup_subsys_id, hugetlb_cgrp_id);
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, dmem_cgrp_id) && kind == KIND_DMEM)
		return bpf_core_enum_value(enum cgroup_subsys_id, dmem_cgrp_id);
	return bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
}

/* is_remote tells whether the charged css is not the current task's of its controller. */
static __always_inline bool is_remote(struct cgroup_subsys_state *css, __u8 kind)
{
	return css != current_css(controller_of(kind));
}

static __always_inline __u32 task_flags(void)
{
	struct task_struct *task;

	if (TASK_BTF)
		return bpf_get_current_task_btf()->flags;
	task = (void *)bpf_get_current_task();
	return BPF_CORE_READ(task, flags);
}

/* is_small tells whether a charge is of less than min_pages. */
static __always_inline bool is_small(unsigned long requested, __u8 kind)
{
	return requested < (kind == KIND_DMEM ? min_pages * page_size : min_pages);
}

/*
 * number_of makes a number of a pointer, with which the verifier allows no
 * arithmetic: it takes for one what was read from the memory of a map. An
 * interrupt in between may leave another.
 */
static __always_inline __u64 number_of(struct counters *n, __u64 pointer)
{
	*(volatile __u64 *)&n->number = pointer;
	return *(volatile __u64 *)&n->number;
}

/* failure_count returns how many failures are kept of calls from a place or the like. */
static __always_inline __u64 *failure_count(__u64 stack)
{
	__u32 i = stack * 0x9e3779b97f4a7c15ULL >> (64 - FAILURES_BITS);

	return bpf_map_lookup_elem(&failure_counts, &i);
}

static __always_inline bool may_have_failed(struct counters *n, __u64 stack)
{
	__u64 *count = failure_count(number_of(n, stack));

	return count && *count;
}

static __always_inline void keep_failure(struct counters *n, __u64 stack, __u64 pages)
{
	__u64 key = number_of(n, stack), *count = failure_count(key);

	/* There was none: the call has looked for it. */
	if (count && !bpf_map_update_elem(&failures, &key, &pages, BPF_ANY))
		__sync_fetch_and_add(count, 1);
}

/*
 * retried tells whether a charge follows one from the same place that failed to
 * charge more.
 */
static __always_inline bool retried(struct counters *n, __u64 stack, unsigned long requested)
{
	__u64 key = number_of(n, stack), *count = failure_count(key), *failed;
	bool retry;

	if (!count || !*count)
		return false;
	failed = bpf_map_lookup_elem(&failures, &key);
	if (!failed)
		return false;
	retry = requested < *failed;
	bpf_map_delete_elem(&failures, &key);
	__sync_fetch_and_sub(count, 1);
	return retry;
}

/*
 * layout_of_current returns what tells one program in the memory of a process from another,
 * or 0 for none: where it lies, and its stack, which is placed at random. What is
 * forked has the same until it executes another program. The reader finds the same
 * in /proc/PID/stat (symbol.LayoutOf). In the middle of an exec there is none.
 */
static __always_inline __u32 layout_of_current(void)
{
	__u64 start_code, end_code, start_stack, layout;

	if (TASK_BTF) {
		/* What cannot be read is 0. */
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
 * take_stack takes the current stack, of which the rest is filled in, and returns how
 * many addresses it has.
 */
static __always_inline __u64 take_stack(struct counters *n, void *ctx, struct stack_event *stack, __u64 flags)
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

/* take_stacks adds the stacks to a call, if they are asked for. */
static __always_inline void take_stacks(struct counters *n, void *ctx, struct call *c, bool wanted)
{
	struct charge_event *e = &c->event;
	struct call_stacks *s;

	e->kernel_stack = e->user_stack = 0;
	if (!wanted)
		return;
	s = bpf_map_lookup_elem(&call_stacks, &c->stacks);
	if (!s)
		return;
	if (take_kernel_stacks) {
		s->kernel_frames = take_stack(n, ctx, &s->kernel, 0);
		e->kernel_stack = s->kernel_frames ? s->kernel.id : 0;
	}
	if (take_user_stacks) {
		s->user.tgid = e->e.tgid;
		s->user.layout = layout_of_current();
		if (!s->user.layout)
			return;
		s->user_frames = take_stack(n, ctx, &s->user, BPF_F_USER_STACK);
		e->user_stack = s->user_frames ? s->user.id : 0;
	}
}

/* note notes what is asked, and returns false where nobody wants to know. */
static __always_inline bool note(void *ctx, struct counters *n, __u64 pid_tgid, struct page_counter *counter,
				 unsigned long nr_pages, __u64 fail, __u64 stack)
{
	struct known *k = know(n, (__u64)counter, place_of((__u64)counter));
	struct cgroup_subsys_state *css;
	struct charge_event *e;
	struct calls *cs;
	struct call *c;
	__u32 cpu;
	bool retry;

	if (!k->aimed) {
		n->unaimed = k->counter;
		n->unaimed_serial_nr = k->serial_nr;
		return false;
	}
	retry = (only_limited || min_pages) && retried(n, stack, nr_pages);
	if (min_pages && !retry && is_small(nr_pages, k->kind))
		return false;
	cpu = bpf_get_smp_processor_id();
	cs = bpf_map_lookup_elem(&calls, &cpu);
	if (!cs)
		return false;
	if (moved)
		moved_from(cpu, stack); /* what is left of a call whose return was missed */
	c = free_call(n, cs, cpu, stack);
	c->fail = fail;
	e = &c->event;
	e->e.type = EVENT_CHARGE;
	e->e.cpu = cpu;
	e->e.tgid = pid_tgid >> 32;
	e->e.tid = (__u32)pid_tgid;
	current_comm((__u64 *)e->e.comm);
	e->e.cgroup = k->cgroup;
	e->e.hierarchy = k->hierarchy;
	e->e.kind = k->kind;
	e->e.flags = retry ? FLAG_RETRY : 0;
	e->counter = (__u64)counter;
	e->stack = stack;
	e->requested = nr_pages;
	css = (void *)k->css;
	if (css && !k->named)
		k->named = ensure_named(css, k->cgroup, k->hierarchy);
	if (css && css != memory_css() && is_remote(css, e->e.kind))
		e->e.flags |= FLAG_REMOTE;
	if (task_flags() & PF_KTHREAD)
		e->e.flags |= FLAG_KTHREAD;

	walk(e, counter);
	e->e.outcome = e->failed ? OUTCOME_FAILED : OUTCOME_OK;
	e->limiting.cgroup = e->limiting.max < UNLIMITED ? level_id(n, e, e->limiting.cgroup) : 0;
	/* The others' is not set, and 0. */
	if (e->e.kind != KIND_MEMORY && e->e.kind != KIND_SWAP)
		e->high.max = ~0ULL;
	e->high.cgroup = e->high.max < UNLIMITED ? level_id(n, e, e->high.cgroup) : 0;
	e->failed = level_id(n, e, e->failed);
	/* What only_limited leaves out at the return needs none. */
	if (take_kernel_stacks || take_user_stacks)
		take_stacks(n, ctx, c,
			    !only_limited || retry || e->e.outcome == OUTCOME_FAILED ||
				    e->limiting.usage >= (__s64)e->limiting.max);
	return true;
}

/*
 * is_unaimed tells whether a counter is the one that was last found not to be
 * aimed at on this CPU. Mostly it is again, and of the current task's cgroup:
 * where the kernel lets a program read the task, that can be told without a call.
 */
static __always_inline bool is_unaimed(struct counters *n, __u64 counter)
{
	return n->unaimed == counter && TASK_BTF && memory_css()->serial_nr == n->unaimed_serial_nr;
}

/*
 * enter returns the counters of this CPU, or NULL where nobody wants to know of a
 * call, as far as that can be told at little cost.
 */
static __always_inline struct counters *enter(__u64 pid_tgid, __u64 counter, unsigned long nr_pages, __u64 stack)
{
	__u32 tgid = pid_tgid >> 32;
	struct counters *n;

	if (tgid == tracer_tgid)
		return NULL;
	n = counters_of(bpf_get_smp_processor_id());
	if (!n)
		return NULL;
	if ((nr_pages < min_pages && !may_have_failed(n, stack)) || !is_aimed(n, tgid) || is_unaimed(n, counter)) {
		__sync_fetch_and_add(&n->filtered, 1);
		return NULL;
	}
	return n;
}

static __always_inline int on_entry(void *ctx, struct counters *n, __u64 pid_tgid, struct page_counter *counter,
				    unsigned long nr_pages, __u64 fail, __u64 stack)
{
	bool noted;

	__sync_fetch_and_add(&n->running, 1);
	noted = note(ctx, n, pid_tgid, counter, nr_pages, fail, stack);
	__sync_fetch_and_sub(&n->running, 1);
	if (!noted)
		__sync_fetch_and_add(&n->filtered, 1);
	return 0;
}

/* call_from returns the call from a place that is noted on a CPU. */
static __always_inline struct call *call_from(struct counters *n, __u32 cpu, __u64 stack)
{
	struct calls *cs;
	__u64 i;

	cs = bpf_map_lookup_elem(&calls, &cpu);
	if (!cs)
		return NULL;
#pragma clang loop unroll(disable)
	for (i = 0; i < CALLS; i++)
		if (cs->call[i].stack == stack)
			return call_at(n, cs, i);
	return NULL;
}

static __always_inline int on_return(bool charged, __u64 stack)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct counters *n = counters_of(cpu), *noted;
	__u64 pid_tgid;
	struct charge_event *e;
	struct call *c;
	__u64 level = 0;

	if (!n || (!n->under_way && !moved))
		return 0;
	pid_tgid = bpf_get_current_pid_tgid();
	if (target_tgid && pid_tgid >> 32 != target_tgid)
		return 0;
	if (moved)
		cpu = moved_from(cpu, stack);
	noted = counters_of(cpu);
	c = call_from(n, cpu, stack);
	/* Where a return was missed, the stack may be another thread's by now. */
	if (!noted || !c || c->event.e.tid != (__u32)pid_tgid)
		return 0;
	e = &c->event;
	e->e.outcome = charged ? OUTCOME_OK : OUTCOME_FAILED;
	e->failed = 0;
	if (!charged) {
		bpf_probe_read_kernel(&level, sizeof(level), (void *)c->fail);
		__sync_fetch_and_add(&n->running, 1);
		e->failed = level_id(n, e, level);
		__sync_fetch_and_sub(&n->running, 1);
		if ((only_limited || min_pages) && e->requested > 1)
			keep_failure(n, stack, e->requested);
	}
	send_charge(noted, c); /* it has the number of that CPU */
	c->stack = 0;
	__sync_fetch_and_sub(&noted->under_way, 1);
	return 0;
}

SEC("kprobe/page_counter_try_charge")
int BPF_KPROBE(kprobe_try_charge, struct page_counter *counter, unsigned long nr_pages, __u64 fail)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid(), stack = PT_REGS_SP(ctx);
	struct counters *n = enter(pid_tgid, (__u64)counter, nr_pages, stack);

	return n ? on_entry(ctx, n, pid_tgid, counter, nr_pages, fail, stack) : 0;
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
	/* Of a bool only the low byte is defined. */
	return on_return((__u8)PT_REGS_RC(ctx), PT_REGS_SP(ctx) - popped);
}

/*
 * The context of a fentry and a fexit program is the stack frame of the
 * trampoline that calls both. To count with the pointers in it they are read as
 * plain numbers, for the verifier forbids arithmetic on pointers to kernel types,
 * and until 6.16 even to read one to a pointer.
 */
SEC("fentry/page_counter_try_charge")
int fentry_try_charge(__u64 *ctx)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct counters *n = enter(pid_tgid, ctx[0], ctx[1], (__u64)ctx);
	__u64 args[3] = {};

	if (!n)
		return 0;
	bpf_probe_read_kernel(args, sizeof(args), ctx);
	return on_entry(ctx, n, pid_tgid, (void *)args[0], args[1], args[2], (__u64)ctx);
}

SEC("fexit/page_counter_try_charge")
int fexit_try_charge(__u64 *ctx)
{
	return on_return((__u8)ctx[3], (__u64)ctx);
}

static __always_inline void send(void *e, __u64 size)
{
	struct counters *n = counters_of(bpf_get_smp_processor_id());

	if (n && bpf_ringbuf_output(&events, e, size, wakeup(n)))
		__sync_fetch_and_add(&n->lost_others, 1);
}

/*
 * keep leaves what is known of a counter in a place of this CPU's, unless it is in
 * the middle of that: what preempted it, or it preempts, does not wait.
 */
static __always_inline void keep(struct counters *n, struct known *kept, struct known k)
{
	__u64 counter = k.counter;

	k.counter = 0;
	__sync_fetch_and_add(&n->keeping, 1);
	if (*(volatile __u64 *)&n->keeping == 1) {
		kept->counter = 0;
		barrier();
		*kept = k;
		barrier();
		kept->counter = counter;
	}
	__sync_fetch_and_sub(&n->keeping, 1);
}

/*
 * on_unasked sends an event of a call that asks for no limit. Of those that change
 * a counter, two are not looked at: page_counter_cancel, of which uncharge is made
 * and with which a charge that fails is undone; and hugetlb, which takes pages off
 * the counter of a removed cgroup alone, whose parent has counted them before
 * (hugetlb_cgroup_move_parent).
 *
 * A fentry program can be preempted by another on its CPU, in kernels that preempt
 * themselves. So nothing is held here that that changes: what is known is copied,
 * and is true if the counter is the same thereafter.
 */
static __always_inline int on_unasked(enum event_type type, struct page_counter *counter, unsigned long nr_pages)
{
	struct counters *n = counters_of(bpf_get_smp_processor_id());
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct uncharge_event e = {};
	struct known *kept, k;

	if (!n || !aimed_at_current(pid_tgid >> 32))
		return 0;
	kept = &n->unasked[place_of((__u64)counter)];
	k = *kept;
	barrier();
	if (*(volatile __u64 *)&kept->counter != (__u64)counter || !is_known(&k, (__u64)counter)) {
		find_out(&k, (__u64)counter);
		keep(n, kept, k);
	}
	if (!k.aimed)
		return 0;
	if (k.css && !k.named) {
		if (!ensure_named((void *)k.css, k.cgroup, k.hierarchy)) {
			/* Without its lineage it would be missing above. */
			__sync_fetch_and_add(&n->lost_others, 1);
			return 0;
		}
		k.named = true;
		keep(n, kept, k);
	}
	fill(&e.e, type, pid_tgid);
	e.e.cgroup = k.cgroup;
	e.e.hierarchy = k.hierarchy;
	e.e.kind = k.kind;
	e.counter = (__u64)counter;
	e.pages = nr_pages;
	e.usage = BPF_CORE_READ(counter, usage.counter);
	send(&e, sizeof(e));
	return 0;
}

SEC("kprobe/page_counter_uncharge")
int BPF_KPROBE(kprobe_uncharge, struct page_counter *counter, unsigned long nr_pages)
{
	return on_unasked(EVENT_UNCHARGE, counter, nr_pages);
}

SEC("fentry/page_counter_uncharge")
int fentry_uncharge(__u64 *ctx)
{
	__u64 args[2] = {};

	bpf_probe_read_kernel(args, sizeof(args), ctx);
	return on_unasked(EVENT_UNCHARGE, (void *)args[0], args[1]);
}

SEC("kprobe/page_counter_charge")
int BPF_KPROBE(kprobe_forced_charge, struct page_counter *counter, unsigned long nr_pages)
{
	return on_unasked(EVENT_FORCED_CHARGE, counter, nr_pages);
}

SEC("fentry/page_counter_charge")
int fentry_forced_charge(__u64 *ctx)
{
	__u64 args[2] = {};

	bpf_probe_read_kernel(args, sizeof(args), ctx);
	return on_unasked(EVENT_FORCED_CHARGE, (void *)args[0], args[1]);
}

/*
 * about fills in which cgroup an event of a mem_cgroup is about, and returns
 * whether that concerns the cgroups that are aimed at. What happens above them
 * does, and to the machine as a whole.
 */
static __always_inline bool about(struct cgroup_key *key, struct mem_cgroup *memcg)
{
	struct cgroup_subsys_state *css = (void *)memcg + bpf_core_field_offset(struct mem_cgroup, css);

	if (!memory_root)
		learn_roots();
	if (!memcg)
		return true;
	key->hierarchy = memory_hierarchy;
	key->cgroup = cgroup_id(css);
	if (filter_cgroups && !target_of(css, key->hierarchy))
		return false;
	ensure_named(css, key->cgroup, key->hierarchy);
	return true;
}

static __always_inline int on_reclaim_begin(struct mem_cgroup *memcg)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct reclaim_event e = {};
	struct reclaim r = {};

	if ((__u32)(pid_tgid >> 32) == tracer_tgid || !aimed_at_current(pid_tgid >> 32) || !about(&r.key, memcg))
		return 0;
	fill(&e.e, EVENT_RECLAIM_BEGIN, pid_tgid);
	e.e.cgroup = r.key.cgroup;
	e.e.hierarchy = r.key.hierarchy;
	r.begin_ns = e.e.boot_ns;
	bpf_map_update_elem(&reclaims, &pid_tgid, &r, BPF_ANY);
	send(&e, sizeof(e));
	return 0;
}

SEC("kprobe/try_to_free_mem_cgroup_pages")
int BPF_KPROBE(kprobe_reclaim_begin, struct mem_cgroup *memcg)
{
	return on_reclaim_begin(memcg);
}

SEC("fentry/try_to_free_mem_cgroup_pages")
int fentry_reclaim_begin(__u64 *ctx)
{
	__u64 memcg = 0;

	/* As a plain number, as in fentry_try_charge. */
	bpf_probe_read_kernel(&memcg, sizeof(memcg), ctx);
	return on_reclaim_begin((void *)memcg);
}

/* A tracepoint, and no probe at the return: those are few, and reclaim sleeps. */
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

/* Which cgroup ran out is known here, and each victim in what it calls. */
static __always_inline int on_oom(struct oom_control *oc)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct cgroup_key key = {};

	if (about(&key, BPF_CORE_READ(oc, memcg)))
		bpf_map_update_elem(&ooms, &pid_tgid, &key, BPF_ANY);
	else
		bpf_map_delete_elem(&ooms, &pid_tgid);
	return 0;
}

SEC("kprobe/oom_kill_process")
int BPF_KPROBE(kprobe_oom, struct oom_control *oc)
{
	return on_oom(oc);
}

SEC("fentry/oom_kill_process")
int BPF_PROG(fentry_oom, struct oom_control *oc)
{
	return on_oom(oc);
}

/*
 * held reads how many pages an mm has of a kind. A macro, for CO-RE knows the
 * size of the kernel's array elements where the index is a constant.
 */
#define held(mm, index) ({							\
	__s64 __n;								\
	if (bpf_core_type_exists(struct mm_rss_stat))				\
		__n = BPF_CORE_READ((struct mm_struct___atomic *)(mm),		\
				    rss_stat.count[index].counter);		\
	else									\
		__n = BPF_CORE_READ(mm, rss_stat[index].count);			\
	__n < 0 ? 0 : __n; /* what CPUs have gathered is missing */		\
})

static __always_inline int on_oom_kill(struct task_struct *victim)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct oom_kill_event e = {};
	struct cgroup_key *key;
	struct mm_struct *mm;

	e.victim_tgid = BPF_CORE_READ(victim, tgid);
	BPF_CORE_READ_STR_INTO(&e.victim_comm, victim, comm);
	if (!aimed_at_current(pid_tgid >> 32) && !aimed_at(e.victim_tgid, e.victim_comm))
		return 0;
	key = bpf_map_lookup_elem(&ooms, &pid_tgid);
	if (filter_cgroups && !key)
		return 0;
	fill(&e.e, EVENT_OOM_KILL, pid_tgid);
	if (key) {
		e.e.cgroup = key->cgroup;
		e.e.hierarchy = key->hierarchy;
	}
	mm = BPF_CORE_READ(victim, mm);
	if (mm) {
		e.anon = held(mm, MM_ANONPAGES);
		e.file = held(mm, MM_FILEPAGES);
		e.shmem = held(mm, MM_SHMEMPAGES);
		e.swap = held(mm, MM_SWAPENTS);
	}
	send(&e, sizeof(e));
	return 0;
}

SEC("kprobe/__oom_kill_process")
int BPF_KPROBE(kprobe_oom_kill, struct task_struct *victim)
{
	return on_oom_kill(victim);
}

SEC("fentry/__oom_kill_process")
int BPF_PROG(fentry_oom_kill, struct task_struct *victim)
{
	return on_oom_kill(victim);
}

/* tell_fork tells the reader that a process was forked. */
static __always_inline void tell_fork(struct fork_event *e, struct task_struct *parent, __u32 child_tgid)
{
	e->e.type = EVENT_FORK;
	e->e.cpu = bpf_get_smp_processor_id();
	e->e.boot_ns = bpf_ktime_get_boot_ns();
	e->e.tgid = BPF_CORE_READ(parent, tgid);
	e->e.tid = BPF_CORE_READ(parent, pid);
	BPF_CORE_READ_STR_INTO(&e->e.comm, parent, comm);
	e->child_tgid = child_tgid;
	send(e, sizeof(*e));
}

/* Before the child runs. */
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
			/* What had that number is gone. */
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
	if (tell_forks && parent_tgid != tracer_tgid)
		tell_fork(&e, parent, tgid);
	return 0;
}

/* task_migrates notes the call that a task is moved away from. */
SEC("raw_tp/sched_migrate_task")
int BPF_PROG(task_migrates, struct task_struct *task)
{
	struct counters *n;
	struct calls *cs;
	__u32 cpu, tid;
	__u64 i;

	if (bpf_core_field_exists(task->thread_info.cpu))
		cpu = BPF_CORE_READ(task, thread_info.cpu);
	else if (bpf_core_field_exists(((struct task_struct___has_cpu *)task)->cpu))
		cpu = BPF_CORE_READ((struct task_struct___has_cpu *)task, cpu);
	else /* there is one CPU */
		return 0;
	n = counters_of(cpu);
	if (!n || !n->under_way)
		return 0;
	cs = bpf_map_lookup_elem(&calls, &cpu);
	if (!cs)
		return 0;
	tid = BPF_CORE_READ(task, pid);
#pragma clang loop unroll(disable)
	for (i = 0; i < CALLS; i++) {
		__u64 stack = cs->call[i].stack;

		/* Where it has been moved before, it is noted where it began. */
		if (stack && cs->call[i].event.e.tid == tid && !bpf_map_update_elem(&moved_calls, &stack, &cpu, BPF_NOEXIST))
			__sync_fetch_and_add(&moved, 1);
	}
	return 0;
}

/* A task is freed when it does not run any more. */
SEC("raw_tp/sched_process_free")
int BPF_PROG(process_free, struct task_struct *task)
{
	__u32 tgid = BPF_CORE_READ(task, tgid);
	__u64 *signal = bpf_map_lookup_elem(&targets, &tgid);

	/* One thread of many, or what has the number now. */
	if (signal && *signal == (__u64)BPF_CORE_READ(task, signal) && BPF_CORE_READ(task, signal, live.counter) == 0) {
		bpf_map_delete_elem(&targets, &tgid);
		targets_changed();
	}
	return 0;
}

/*
 * is_wanted tells whether a process is one of those to begin with, by its number
 * in the pid namespace at that level, which is the tracer's.
 */
static __always_inline bool is_wanted(struct task_struct *process, __u32 level)
{
	struct pid *pid = BPF_CORE_READ(process, signal, pids[PIDTYPE_TGID]);
	__u32 nr = 0;

	/* Its parents may be outside that namespace. */
	if (BPF_CORE_READ(pid, level) < level)
		return false;
	bpf_core_read(&nr, sizeof(nr), (void *)pid + bpf_core_field_offset(struct pid, numbers) +
					       level * bpf_core_type_size(struct upid) +
					       bpf_core_field_offset(struct upid, nr));
	return bpf_map_lookup_elem(&wanted, &nr);
}

/*
 * Looks at the processes that there are. Those to begin with become targets, and
 * with follow what descends from them.
 */
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
		/* The tracer runs this. */
		struct task_struct *tracer = (void *)bpf_get_current_task();
		__u32 level = BPF_CORE_READ(tracer, signal, pids[PIDTYPE_TGID], level);
		int i;

#pragma clang loop unroll(disable)
		for (i = 0; i < MAX_DEPTH; i++) {
			if (is_wanted(process, level))
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
	if (tell_forks) {
		e.e.flags = FLAG_EXISTING;
		tell_fork(&e, BPF_CORE_READ(task, real_parent), tgid);
	}
	return 0;
}
