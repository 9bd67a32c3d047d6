package cause

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"chargetrace/internal/event"
)

// Profile is what was charged, by [Sample].
type Profile map[Sample]*Sums

// Sample is what charges have in common that are added up. A field in which they are
// not told apart has its zero value.
type Sample struct {
	Kernel, User *Stack
	Comm         event.Comm
	PID          uint32
	Cgroup       event.CgroupID
}

// Sums are those over the charges of a Sample: Pages of charges that went through,
// and FailedPages of those that failed.
type Sums struct{ Charges, Pages, FailedPages uint64 }

// Sample returns the Sample of a charge by stacks and name of the process alone.
func (s *Stacks) Sample(e *event.Event) Sample {
	return Sample{Kernel: s.Kernel(e), User: s.stack(e.UserStack, userFunction), Comm: e.Comm}
}

// Compare orders samples by their stacks, names, processes and cgroups.
func (s Sample) Compare(t Sample) int {
	return cmp.Or(cmp.Compare(s.Kernel.Functions(), t.Kernel.Functions()), cmp.Compare(s.User.Functions(), t.User.Functions()),
		cmp.Compare(s.PID, t.PID), bytes.Compare(s.Comm[:], t.Comm[:]),
		cmp.Compare(s.Cgroup.Hierarchy, t.Cgroup.Hierarchy), cmp.Compare(s.Cgroup.ID, t.Cgroup.ID))
}

// Cause returns what the charges are for.
func (s *Sample) Cause() Cause { return s.Kernel.Cause() }

// Add adds a charge to a Sample. Counters that count no pages ([event.Dmem]) and
// those that count the same pages again ([event.Memsw]) are left out.
func (p Profile) Add(s Sample, e *event.Event) {
	if e.Kind == event.Dmem || e.Kind == event.Memsw {
		return
	}
	sums := p[s]
	if sums == nil {
		sums = new(Sums)
		p[s] = sums
	}
	sums.Charges++
	switch e.Outcome {
	case event.OK:
		sums.Pages += e.RequestedPages
	case event.Failed:
		sums.FailedPages += e.RequestedPages
	}
}

// Functions returns the functions of the stacks, the innermost first.
func (s *Sample) Functions() (functions []string) {
	for _, stack := range [...]*Stack{s.Kernel, s.User} {
		if stack != nil {
			functions = append(functions, strings.Split(stack.functions, ";")...)
		}
	}
	return functions
}

// Path returns where a flame graph has the Sample: the name of the process, and the
// functions from the outermost on.
func (s *Sample) Path() []string {
	path := append(s.Functions(), s.Comm.String())
	slices.Reverse(path)
	return path
}
