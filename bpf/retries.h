/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Failed charges, which the kernel retries with fewer pages from the same stack pointer.
 */
#ifndef CHARGETRACE_RETRIES_H
#define CHARGETRACE_RETRIES_H

#include "state.h"

/*
 * number_of converts a pointer to a number: the verifier forbids arithmetic on pointers,
 * but treats a value read back from a map as a number. An interrupt in between can
 * store another number; the retry is missed then.
 */
static __always_inline __u64 number_of(struct cpu_state *n, __u64 pointer)
{
	*(volatile __u64 *)&n->number = pointer;
	return *(volatile __u64 *)&n->number;
}

/* failure_count returns the counter of entries in failures with the hash of sp. */
static __always_inline __u64 *failure_count(__u64 sp)
{
	__u32 i = sp * 0x9e3779b97f4a7c15ULL >> (64 - FAILURES_BITS);

	return bpf_map_lookup_elem(&failure_counts, &i);
}

static __always_inline bool may_have_failed(struct cpu_state *n, __u64 sp)
{
	__u64 *count = failure_count(number_of(n, sp));

	return count && *count;
}

static __always_inline void keep_failure(struct cpu_state *n, __u64 sp, __u64 pages)
{
	__u64 key = number_of(n, sp), *count = failure_count(key);

	/* The program at the entry has removed an older failure at this sp. */
	if (count && !bpf_map_update_elem(&failures, &key, &pages, BPF_ANY))
		__sync_fetch_and_add(count, 1);
}

/* retried returns whether a charge follows a larger one that failed at the same sp. */
static __always_inline bool retried(struct cpu_state *n, __u64 sp, unsigned long requested)
{
	__u64 key = number_of(n, sp), *count = failure_count(key), *failed;
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

#endif
