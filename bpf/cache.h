/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Access to the caches of a CPU. An interrupt, or in a kernel that preempts itself
 * another task, can run a fentry program in the middle of another on the same CPU
 * (before 5.12 not even the same program is kept from that). So what is cached is
 * copied, and the copy is good if no store came between; and a program that finds
 * another in the middle of a store makes none.
 */
#ifndef CHARGETRACE_CACHE_H
#define CHARGETRACE_CACHE_H

#include "state.h"

#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))

/* cache_load copies from a cache of a CPU. It returns false if that was being stored. */
#define cache_load(n, to, from) ({				\
	__u64 __stores = READ_ONCE((n)->stores);		\
								\
	barrier();						\
	(to) = (from);						\
	barrier();						\
	!(__stores & 1) && READ_ONCE((n)->stores) == __stores;	\
})

/* cache_store copies to a cache of a CPU, unless that is being stored. */
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
