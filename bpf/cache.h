/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Access to the caches of a CPU. In the middle of a fentry program, an interrupt or, in
 * a preemptible kernel, another task can run another fentry program on the same CPU
 * (before 5.12 even the same one). So cached data is copied, and a copy is valid only if
 * no store happened during it. A program that finds another in the middle of a store
 * skips its own.
 */
#ifndef CHARGETRACE_CACHE_H
#define CHARGETRACE_CACHE_H

#include "state.h"

#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))

/* cache_load copies from a CPU's cache. It returns false if a store was in progress. */
#define cache_load(n, to, from) ({				\
	__u64 __stores = READ_ONCE((n)->stores);		\
								\
	barrier();						\
	(to) = (from);						\
	barrier();						\
	!(__stores & 1) && READ_ONCE((n)->stores) == __stores;	\
})

/* cache_store copies to a CPU's cache, unless a store is in progress. */
#define cache_store(n, to, from) ({				\
	__sync_fetch_and_add(&(n)->storing, 1);			\
	if (READ_ONCE((n)->storing) == 1) {			\
		(n)->stores++;					\
		barrier();					\
		(to) = (from);					\
		barrier();					\
		(n)->stores++;					\
	}							\
	__sync_fetch_and_sub(&(n)->storing, 1);			\
})

#endif
