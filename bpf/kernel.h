/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The part of the kernel's types that chargetrace reads, declared by hand.
 *
 * Only the names matter: preserve_access_index makes clang record each access
 * as a CO-RE relocation, and the loader fills in the offset from the running
 * kernel's BTF. Fields that are not read are omitted, and the order does not
 * matter.
 *
 * This file replaces vmlinux.h and uses its include guard: libbpf's
 * bpf_tracing.h checks the guard to decide whether pt_regs has the kernel's
 * field names or those of user space.
 */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__

#include <stdbool.h>

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;

/* Used in libbpf's helper prototypes. */
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

/* From include/uapi/linux/bpf.h. */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
};

enum {
	BPF_RB_NO_WAKEUP = 1,
	BPF_RB_FORCE_WAKEUP = 2,
};

enum {
	BPF_F_USER_STACK = 1 << 8,
};

/* The value is the running kernel's: only the name is used. */
enum bpf_func_id {
	BPF_FUNC_get_current_task_btf = 1, /* since 5.11 (3ca1032ab7ab) */
};

/*
 * The registers that hold a function's arguments, result and stack. They need no CO-RE
 * here: struct pt_regs begins with a uapi struct, which does not change
 * (arch/ARCH/include/uapi/asm/ptrace.h). Untested: no kernel has run these programs.
 */
#if defined(__TARGET_ARCH_powerpc)
struct pt_regs {
	union {
		unsigned long gpr[32];
		struct {
			unsigned long gpr0;
			unsigned long sp; /* gpr[1]; libbpf's PT_REGS_SP reads this name, which the kernel lacks */
		};
	};
};
#elif defined(__TARGET_ARCH_riscv)
struct user_regs_struct {
	unsigned long pc, ra, sp, gp, tp, t0, t1, t2, s0, s1;
	unsigned long a0, a1, a2, a3, a4, a5, a6, a7;
};
#elif defined(__TARGET_ARCH_s390)
typedef struct {
	unsigned long args[1];
	struct {
		unsigned long mask, addr;
	} psw;
	unsigned long gprs[16];
} user_pt_regs;
#endif

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* The registers that hold a function's arguments, result and stack. */
#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long di;
	unsigned long si;
	unsigned long dx;
	unsigned long ax;
	unsigned long sp;
};
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
};
struct pt_regs {
	struct user_pt_regs user_regs;
};
#endif

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	long counter;
} atomic_long_t;

/*
 * include/linux/page_counter.h. The fields were called count and limit before
 * 4.18 (bbec2e15170a), which is older than the oldest kernel with a BPF ring
 * buffer.
 */
struct page_counter {
	atomic_long_t usage;
	unsigned long high;
	unsigned long max;
	struct page_counter *parent;
};

/* include/linux/cgroup-defs.h */
struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys *ss;
	__u64 serial_nr;
};

struct css_set {
	struct cgroup_subsys_state *subsys[1]; /* one for each controller */
};

struct cgroup {
	struct kernfs_node *kn;
	struct cgroup_root *root;
	struct cgroup_subsys_state *subsys[1];
};

struct cgroup_root {
	int hierarchy_id; /* 0 for cgroup v2 */
	struct cgroup cgrp;
};

/* The values are the running kernel's: only the names are used. */
enum cgroup_subsys_id {
	memory_cgrp_id = 1,
	hugetlb_cgrp_id = 2,
	dmem_cgrp_id = 3,
};

/* include/linux/kernfs.h */
struct kernfs_node {
	__u64 id;
	const char *name;
	struct kernfs_node *parent;
};

struct kernfs_open_file {
	struct kernfs_node *kn;
};

/* The parent is read under RCU since 6.15 (633488947ef6). */
struct kernfs_node___rcu {
	struct kernfs_node *__parent;
};

/* include/linux/memcontrol.h */
struct mem_cgroup {
	struct cgroup_subsys_state css;
	struct page_counter memory;
	struct page_counter swap;   /* v2 */
	struct page_counter memsw;  /* v1, in a union with swap */
	struct page_counter kmem;   /* v1, CONFIG_MEMCG_V1 since 6.11 */
	struct page_counter tcpmem; /* the same */
};

/* include/linux/hugetlb_cgroup.h */
struct hugetlb_cgroup {
	struct cgroup_subsys_state css;
	struct page_counter hugepage[1]; /* one for each size of huge pages */
	struct page_counter rsvd_hugepage[1];
};

/* kernel/cgroup/dmem.c, since 6.14 (b168ed458dde) */
struct dmemcg_state {
	struct cgroup_subsys_state css;
};

struct dmem_cgroup_pool_state {
	struct dmemcg_state *cs;
	struct page_counter cnt;
};

/* include/linux/mm_types.h; the indices are from include/linux/mm_types_task.h */
enum {
	MM_FILEPAGES,
	MM_ANONPAGES,
	MM_SWAPENTS,
	MM_SHMEMPAGES,
	NR_MM_COUNTERS,
};

struct percpu_counter {
	__s64 count;
};

struct mm_struct {
	unsigned long start_code, end_code, start_stack;
	atomic_long_t pgtables_bytes;
	struct percpu_counter rss_stat[NR_MM_COUNTERS];
};

/* Until 6.2 (f1a7941243c1). */
struct mm_rss_stat {
	atomic_long_t count[NR_MM_COUNTERS];
};

struct mm_struct___atomic {
	struct mm_rss_stat rss_stat;
};

/* include/linux/pid.h */
struct pid_namespace;

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	unsigned int level;
	struct upid numbers[1]; /* one for each level of namespaces */
};

/* include/linux/pid_types.h. The value is the running kernel's: only the name is used. */
enum pid_type {
	PIDTYPE_TGID = 1,
};

/* include/linux/sched/signal.h */
struct signal_struct {
	atomic_t live; /* threads that have not begun to exit */
	struct pid *pids[1]; /* one for each pid_type */
};

/* include/linux/sched.h */
#define PF_KTHREAD 0x00200000

struct thread_info {
	__u32 cpu; /* since 5.16 (bcf9033e5449) */
};

struct task_struct {
	struct thread_info thread_info;
	unsigned int flags;
	int pid;
	int tgid;
	struct task_struct *real_parent;
	struct mm_struct *mm;
	struct css_set *cgroups;
	struct signal_struct *signal;
	unsigned int memcg_nr_pages_over_high;
	/* The cgroup v1 in which a page fault waits for memory; CONFIG_MEMCG_V1 since 6.11. */
	struct mem_cgroup *memcg_in_oom;
	char comm[16];
};

/* Until 5.15. */
struct task_struct___has_cpu {
	unsigned int cpu;
};

/* kernel/bpf/task_iter.c */
struct bpf_iter_meta;

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task; /* NULL after the last */
};

/* include/linux/gfp_types.h; the same from 5.8 to 7.3 */
#define ___GFP_FS 0x80

/* include/linux/oom.h */
enum oom_constraint {
	CONSTRAINT_NONE,
	CONSTRAINT_CPUSET,
	CONSTRAINT_MEMORY_POLICY,
};

struct oom_control {
	struct mem_cgroup *memcg; /* NULL if the machine ran out */
	unsigned int gfp_mask;
	int order; /* -1 for SysRq-f */
	struct task_struct *chosen; /* -1 if an earlier victim has not exited yet */
	enum oom_constraint constraint; /* set after the entry of out_of_memory */
};

#pragma clang attribute pop

#endif /* __VMLINUX_H__ */
