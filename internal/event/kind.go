package event

import (
	"fmt"
	"slices"
	"strings"
)

// Kind is what a page counter counts.
type Kind uint8

const (
	// Unknown counters belong to no controller that chargetrace knows.
	Unknown Kind = iota
	// Memory is memory.max of cgroup v2 and memory.limit_in_bytes of v1.
	Memory
	// Memsw is memory and swap together, of v1: memory.memsw.limit_in_bytes.
	Memsw
	// Swap is memory.swap.max, of v2.
	Swap
	// Kmem is kernel memory, of v1: memory.kmem.limit_in_bytes.
	Kmem
	// Tcpmem is buffers of TCP sockets, of v1: memory.kmem.tcp.limit_in_bytes.
	Tcpmem
	// Hugetlb is huge pages of one size in use, and HugetlbRsvd those that are
	// reserved.
	Hugetlb
	HugetlbRsvd
	// Dmem is memory of a device. It alone is counted in bytes.
	Dmem

	numKinds
)

var kindNames = [numKinds]string{
	"unknown", "memory", "memsw", "swap", "kmem", "tcpmem", "hugetlb", "hugetlb_rsvd", "dmem",
}

func (k Kind) String() string { return kindNames[k] }

// Kinds is a set of kinds, each a bit: 1 << Kind.
type Kinds uint32

// AllKinds holds every Kind.
const AllKinds Kinds = 1<<numKinds - 1

// Has reports whether k is in the set.
func (s Kinds) Has(k Kind) bool { return s>>k&1 != 0 }

// KindNames returns the names of the kinds that are known.
func KindNames() []string { return kindNames[1:] }

// ParseKinds returns the set that a comma-separated list of kinds names.
func ParseKinds(list string) (Kinds, error) {
	var set Kinds
	for name := range strings.SplitSeq(list, ",") {
		k := slices.Index(kindNames[:], name)
		if k < 0 {
			return 0, fmt.Errorf("want kinds of counters, such as memory or memory,swap: %s", strings.Join(KindNames(), ", "))
		}
		set |= 1 << k
	}
	return set, nil
}

// Outcome is what came of a charge.
type Outcome uint8

const (
	// NoOutcome is that of an event that is not a Charge.
	NoOutcome Outcome = iota
	// OK charges went through.
	OK
	// Failed charges did not fit under the limit of [Event.FailedAt].
	Failed
	// BatchMiss is a failure that is none: the kernel asked for more than was
	// needed, to have some in stock, and asked at once again for what was
	// needed. memory.events does not count it.
	BatchMiss

	numOutcomes
)

var outcomeNames = [numOutcomes]string{"none", "ok", "failed", "miss"}

func (o Outcome) String() string { return outcomeNames[o] }

// Flags say more of a Charge, and Existing of a Fork and of Usage.
type Flags uint16

const (
	// Predicted says that the function's return was not seen: Outcome and
	// FailedAt are what its entry foretold.
	Predicted Flags = 1 << iota
	// Remote says that the cgroup that pays is not the current task's.
	Remote
	// KernelThread says that the current task is one.
	KernelThread
	// WalkCut says that the cgroup has more ancestors than were looked at.
	WalkCut
	// Retry says that the charge follows a BatchMiss.
	Retry
	// Existing says that the process was there when the trace began, or what the
	// cgroup held then.
	Existing
)

// Idle reports whether the current task was the idle task: an interrupt
// charged.
func (e *Event) Idle() bool { return e.TID == 0 }
