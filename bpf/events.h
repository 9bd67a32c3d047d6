/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Layouts of the events in the ring buffer. bpf2go generates Go types and constants from
 * them, and the tests compare those with package event, which decodes the events.
 */
#ifndef CHARGETRACE_EVENTS_H
#define CHARGETRACE_EVENTS_H

#include "kernel.h"

enum event_type {
	EVENT_CHARGE = 1,
	EVENT_LOST = 2, /* only from the reader */
	EVENT_RECLAIM_BEGIN = 3,
	EVENT_RECLAIM_END = 4,
	EVENT_OOM_KILL = 5,
	EVENT_CGROUP = 6,
	EVENT_FORK = 7,
	EVENT_UNCHARGE = 9,
	EVENT_FORCED_CHARGE = 10,
	EVENT_STACK = 12, /* the reader converts it to type 8 */
	EVENT_OOM = 13,
	EVENT_THROTTLE = 14,
	EVENT_CGROUP_RELEASED = 18,
};

/* The kinds of page counters. */
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
	/* 3 is a batch miss, which only the reader can recognize, at the next event. */
};

enum event_flag {
	/* 1 << 0 is only in older recordings. */
	/* The charged cgroup is not the current task's. */
	FLAG_REMOTE = 1 << 1,
	FLAG_KTHREAD = 1 << 2,
	/* The tree is deeper than MAX_LEVELS. */
	FLAG_WALK_CUT = 1 << 3,
	/*
	 * Follows a failed charge while only_limited or min_pages drop charges. It is
	 * sent although they would drop it: it shows whether that was a batch miss.
	 */
	FLAG_RETRY = 1 << 4,
	/* The fork happened before the trace. */
	FLAG_EXISTING = 1 << 5,
	/* The OOM killer runs because the task lowers the limit. */
	FLAG_LIMIT_WRITE = 1 << 6,
	/* The OOM killer runs because a user asked for it (SysRq-f). */
	FLAG_SYSRQ = 1 << 7,
	/* A cgroup ran out, but which is not known: the OOM killer started before the trace. */
	FLAG_UNKNOWN_CGROUP = 1 << 8,
	/* The allocation may only use some memory nodes: by cpuset, or by memory policy. */
	FLAG_CPUSET = 1 << 9,
	FLAG_MEMPOLICY = 1 << 10,
	/* The victim was killed with its group (memory.oom.group), after another of the same run. */
	FLAG_GROUP = 1 << 11,
	/* The charge takes its limiting level to threshold_percent of the limit. */
	FLAG_THRESHOLD = 1 << 12,
};

/* How a run of the OOM killer ended that killed nobody. */
enum oom_result {
	OOM_NO_VICTIM = 1, /* it found no process that it may kill */
	OOM_VICTIM_EXITS = 2, /* a process exits already */
	OOM_TASK_EXITS = 3, /* the task itself exits, or memory became free */
	OOM_DISABLED = 4, /* it did not run: v1's memory.oom_control disables it, and the task waits */
	OOM_NOFS = 5, /* the machine ran out in an allocation with GFP_NOFS: it must not kill */
};

/* The values of target_cgroups. */
enum cgroup_verdict {
	CGROUP_TARGET = 1,
	CGROUP_ABOVE_TARGET = 2,
};

/* The size of the map sent_stacks. */
enum stack_slots {
	SENT_STACKS = 16384,
};

/* The header of most events. */
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
	__u64 counter; /* address of the page_counter, as an identity */
	__u64 sp;      /* stack pointer: with tid, it identifies the call's site */
	__u64 requested;
	__s64 usage;
	__u64 max;
	struct level limiting; /* the level with the least room */
	struct level high;     /* the level with the least room below memory.high, its max */
	__u64 failed;	       /* id of the cgroup whose limit made it fail */
	__u64 lost;	       /* events lost on this CPU since the trace began */
	__u32 kernel_stack;    /* id of a stack_event; 0 for none */
	__u32 user_stack;
};

struct reclaim_event {
	struct event e;
	__u64 freed; /* pages; only in EVENT_RECLAIM_END */
	__u64 ns;    /* the duration; only in EVENT_RECLAIM_END */
};

/* The cgroup's memory counter when the OOM killer started. */
struct oom_state {
	__u64 begin_ns; /* CLOCK_BOOTTIME */
	__s64 usage;	/* pages */
	__u64 max;	/* pages */
};

struct oom_kill_event {
	struct event e; /* the task that runs the OOM killer; cgroup 0 is the machine */
	__u32 victim_tgid;
	__s32 order; /* as in struct oom_event */
	char victim_comm[16];
	__u64 anon, file, shmem, swap; /* pages of the victim */
	__u64 page_tables; /* bytes of the victim */
	__u64 victim_cgroup; /* id, in the memory controller's hierarchy */
	struct oom_state oom;
};

/* A run of the OOM killer that killed nobody. */
struct oom_event {
	struct event e; /* as in struct oom_kill_event */
	struct oom_state oom;
	__u32 result; /* enum oom_result */
	__s32 order; /* the allocation that failed is of 1 << order pages; -1: SysRq-f, or unknown */
};

/* A task sleeps because a level is above its memory.high. */
struct throttle_event {
	struct event e; /* the cgroup is that of the level, the kind that of its counter */
	__s64 usage;	/* pages, of the level */
	__u64 high;	/* pages; memory.high or memory.swap.high */
	__u64 ns;	/* how long at most: a signal ends it */
};

struct fork_event {
	struct event e; /* the parent, without a cgroup */
	__u32 child_tgid;
	__u32 pad;
};

/* An uncharge, or a charge that ignores the limit. */
struct uncharge_event {
	struct event e;
	__u64 counter; /* as in struct charge_event */
	__u64 pages;
	__s64 usage; /* pages, before the change */
};

/* The maximum number of addresses of a stack. */
#define STACK_DEPTH 64

/* Sent before the first charge that uses the stack, without the unused addresses. */
struct stack_event {
	__u32 type;
	__u32 id; /* a hash of the rest */
	__u32 tgid; /* 0 for a kernel stack */
	__u32 layout; /* see layout_of_current; 0 for a kernel stack */
	__u64 address[STACK_DEPTH]; /* innermost first */
};

/* Sent before the first event of its cgroup. */
struct cgroup_event {
	__u32 type;
	__u32 hierarchy;
	__u64 cgroup;
	__u64 parent; /* id; 0 for none */
	char name[256];
};

/* A cgroup is gone. */
struct cgroup_released_event {
	__u32 type;
	__u32 hierarchy;
	__u64 cgroup;
};

/* These put types that no map uses into BTF, for bpf2go. */
const struct reclaim_event *reclaim_event_type __attribute__((unused));
const struct oom_kill_event *oom_kill_event_type __attribute__((unused));
const struct oom_event *oom_event_type __attribute__((unused));
const struct throttle_event *throttle_event_type __attribute__((unused));
const struct fork_event *fork_event_type __attribute__((unused));
const struct uncharge_event *uncharge_event_type __attribute__((unused));
const struct cgroup_event *cgroup_event_type __attribute__((unused));
const struct cgroup_released_event *cgroup_released_event_type __attribute__((unused));
const union {
	enum event_type event_type;
	enum kind kind;
	enum outcome outcome;
	enum event_flag flag;
	enum oom_result oom_result;
	enum cgroup_verdict verdict;
	enum stack_slots slots;
} *enum_types __attribute__((unused));

#endif
