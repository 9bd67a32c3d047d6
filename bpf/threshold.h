/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Charges that take a level to a part of its limit.
 */
#ifndef CHARGETRACE_THRESHOLD_H
#define CHARGETRACE_THRESHOLD_H

#include "config.h"
#include "levels.h"

/* A level that fell below the threshold by this much of its limit can cross it again. */
#define HYSTERESIS_PERCENT 5

/* The counters of the levels that crossed the threshold, and at least as many as they are. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* address */
	__type(value, __u8);
} above_threshold SEC(".maps");

static volatile __u64 above_threshold_count;

/*
 * crosses_threshold returns whether a charge of nr_pages, 0 if it failed, takes its limiting level
 * to the threshold, for the first time since the level was well below that. It forgets a level that
 * falls well below.
 */
static __always_inline bool crosses_threshold(const struct levels *w, __u8 kind, __u64 nr_pages)
{
	__u64 counter;
	__s64 used, max;
	__u8 yes = 1;

	if (!threshold_percent || (kind != KIND_MEMORY && kind != KIND_MEMSW) || w->limiting.max >= UNLIMITED || !w->limiting.max)
		return false;
	counter = w->limiting.cgroup;
	used = (w->limiting.usage + (__s64)nr_pages) * 100;
	max = w->limiting.max;
	if (used >= max * (__s64)threshold_percent) {
		/* The lookup keeps the entry from eviction. An update would evict another first. */
		if (bpf_map_lookup_elem(&above_threshold, &counter) ||
		    bpf_map_update_elem(&above_threshold, &counter, &yes, BPF_NOEXIST))
			return false;
		__sync_fetch_and_add(&above_threshold_count, 1);
		return true;
	}
	if (above_threshold_count && used < max * ((__s64)threshold_percent - HYSTERESIS_PERCENT) &&
	    !bpf_map_delete_elem(&above_threshold, &counter))
		__sync_fetch_and_sub(&above_threshold_count, 1);
	return false;
}

#endif
