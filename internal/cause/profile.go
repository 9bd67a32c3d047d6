package cause

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"chargetrace/internal/event"
)

// Profile has the sums of charges by [Sample].
type Profile map[Sample]*Sums

// Sample identifies the charges of one sum. A field that differs between them is zero.
type Sample struct {
	Kernel, User *Stack
	Comm         event.Comm
	PID          uint32
	Cgroup       event.CgroupID
}

// Sums are sums over the charges of a Sample: Pages of those that succeeded, and
// FailedPages of those that failed.
type Sums struct{ Charges, Pages, FailedPages uint64 }

// Sample returns the Sample of a charge with only the stacks and the thread's name.
func (s *Stacks) Sample(e *event.Event) Sample {
	return Sample{Kernel: s.Kernel(e), User: s.stack(e.UserStack, userFunction), Comm: e.Comm}
}

// Compare orders samples by stacks, PID, name and cgroup.
func (s Sample) Compare(t Sample) int {
	return cmp.Or(cmp.Compare(s.Kernel.Functions(), t.Kernel.Functions()), cmp.Compare(s.User.Functions(), t.User.Functions()),
		cmp.Compare(s.PID, t.PID), bytes.Compare(s.Comm[:], t.Comm[:]),
		cmp.Compare(s.Cgroup.Hierarchy, t.Cgroup.Hierarchy), cmp.Compare(s.Cgroup.ID, t.Cgroup.ID))
}

// Cause returns the cause of the charges.
func (s *Sample) Cause() Cause { return s.Kernel.Cause() }

// Add adds a charge to a Sample, if its kind adds up with the other traced ones
// ([event.Kind.AddsUp]). Of others it adds failures.
func (p Profile) Add(s Sample, e *event.Event, traced event.Kinds) {
	if e.Kind == event.Dmem || e.Outcome != event.Failed && !e.Kind.AddsUp(traced) {
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

// Functions returns the functions of both stacks, the innermost first.
func (s *Sample) Functions() (functions []string) {
	for _, stack := range [...]*Stack{s.Kernel, s.User} {
		if stack != nil {
			functions = append(functions, strings.Split(stack.functions, ";")...)
		}
	}
	return functions
}

// Path returns the path of the Sample in a flame graph: the name of the thread, and the
// functions, the outermost first.
func (s *Sample) Path() []string {
	path := append(s.Functions(), s.Comm.String())
	slices.Reverse(path)
	return path
}
