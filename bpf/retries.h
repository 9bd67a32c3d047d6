/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Failed charges, which the kernel retries with fewer pages from the same stack pointer.
 */
#ifndef CHARGETRACE_RETRIES_H
#define CHARGETRACE_RETRIES_H

#include "state.h"

/* failure_count returns the counter of entries in failures with the hash of sp. */
static __always_inline __u64 *failure_count(__u64 sp)
{
	__u32 i = sp * 0x9e3779b97f4a7c15ULL >> (64 - FAILURES_BITS);

	return bpf_map_lookup_elem(&failure_counts, &i);
}

static __always_inline bool may_have_failed(__u64 sp)
{
	__u64 *count = failure_count(sp);

	return count && *count;
}

static __always_inline void keep_failure(__u64 sp, __u64 pages)
{
	__u64 *count = failure_count(sp);

	/* retried has removed an older failure at this sp. */
	if (count && !bpf_map_update_elem(&failures, &sp, &pages, BPF_ANY))
		__sync_fetch_and_add(count, 1);
}

/* retried returns whether a charge follows a larger one that failed at the same sp. */
static __always_inline bool retried(__u64 sp, unsigned long requested)
{
	__u64 *count = failure_count(sp), *failed;
	bool retry;

	if (!count || !*count)
		return false;
	failed = bpf_map_lookup_elem(&failures, &sp);
	if (!failed)
		return false;
	retry = requested < *failed;
	bpf_map_delete_elem(&failures, &sp);
	__sync_fetch_and_sub(count, 1);
	return retry;
}

#endif
