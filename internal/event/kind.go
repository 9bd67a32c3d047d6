package event

import (
	"fmt"
	"slices"
	"strings"
)

// Kind is the resource that a page counter counts.
type Kind uint8

const (
	// Unknown counters belong to a controller unknown to chargetrace.
	Unknown Kind = iota
	// Memory is memory.max of cgroup v2 and memory.limit_in_bytes of v1.
	Memory
	// Memsw is memory and swap together, in v1: memory.memsw.limit_in_bytes.
	Memsw
	// Swap is memory.swap.max of v2.
	Swap
	// Kmem is kernel memory, in v1: memory.kmem.limit_in_bytes.
	Kmem
	// Tcpmem is buffers of TCP sockets, in v1: memory.kmem.tcp.limit_in_bytes.
	Tcpmem
	// Hugetlb is the used huge pages of one size, HugetlbRsvd the reserved ones.
	Hugetlb
	HugetlbRsvd
	// Dmem is device memory. It is the only kind counted in bytes.
	Dmem

	numKinds
)

var kindNames = [numKinds]string{
	"unknown", "memory", "memsw", "swap", "kmem", "tcpmem", "hugetlb", "hugetlb_rsvd", "dmem",
}

func (k Kind) String() string { return kindNames[k] }

// AddsUp reports whether charges of the kind can be summed with those of the other traced
// kinds; 0 stands for all kinds. Dmem counts bytes. Memsw and Kmem count pages of Memory
// (try_charge and obj_cgroup_charge_pages in mm/memcontrol.c charge both), and HugetlbRsvd,
// at mmap, those that Hugetlb counts at the first touch.
func (k Kind) AddsUp(traced Kinds) bool {
	switch k {
	case Dmem:
		return false
	case Memsw, Kmem:
		return traced != 0 && !traced.Has(Memory)
	case HugetlbRsvd:
		return traced != 0 && !traced.Has(Hugetlb)
	}
	return true
}

// Kinds is a set of kinds, one bit each: 1 << Kind.
type Kinds uint32

// AllKinds holds every Kind.
const AllKinds Kinds = 1<<numKinds - 1

// Has reports whether k is in the set.
func (s Kinds) Has(k Kind) bool { return s>>k&1 != 0 }

// KindNames returns the names of all kinds but Unknown.
func KindNames() []string { return kindNames[1:] }

// ParseKinds parses a comma-separated list of kinds.
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

// Outcome is the outcome of a charge.
type Outcome uint8

const (
	// NoOutcome is for events other than a Charge.
	NoOutcome Outcome = iota
	// OK charges succeeded.
	OK
	// Failed charges did not fit under the limit of [Event.FailedAt].
	Failed
	// BatchMiss charges failed because the kernel asked for more pages than it needed,
	// to stock the rest. It retries at once with the pages it needs. memory.events does
	// not count them.
	BatchMiss

	numOutcomes
)

var outcomeNames = [numOutcomes]string{"none", "ok", "failed", "miss"}

func (o Outcome) String() string { return outcomeNames[o] }

// Flags are details of a Charge; Existing is one of a Fork or of Usage, those from LimitWrite
// on are of an OOMKill or OOM.
type Flags uint16

const (
	// Predicted means that the function's return was not seen: Outcome and FailedAt
	// were predicted at its entry. Only older recordings have it.
	Predicted Flags = 1 << iota
	// Remote means that the charged cgroup is not the current task's.
	Remote
	// KernelThread means that the current task is a kernel thread.
	KernelThread
	// WalkCut means that the cgroup has more ancestors than the program looks at.
	WalkCut
	// Retry means that the charge follows a BatchMiss.
	Retry
	// Existing means that the process is older than the trace, or that the usage was
	// read when the trace began.
	Existing
	// LimitWrite means that the task lowers the limit of the cgroup.
	LimitWrite
	// SysRq means that a user asked for the OOM killer (SysRq-f).
	SysRq
	// UnknownCgroup means that a cgroup ran out, and not the machine: the OOM killer started
	// before the trace did.
	UnknownCgroup
	// Cpuset and Mempolicy mean that the memory nodes of the task's cpuset or memory policy
	// ran out, and not the whole machine.
	Cpuset
	Mempolicy
	// Group means that the victim of an OOMKill was killed with its group (memory.oom.group),
	// after another victim of the same run.
	Group
	// Threshold means that the charge took its limiting level above the part of its limit that
	// the trace watches. It is set again only after the level was well below that.
	Threshold
)

// Idle reports whether the current task was the idle task: the charge was made in
// an interrupt.
func (e *Event) Idle() bool { return e.TID == 0 }
