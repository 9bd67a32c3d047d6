package cause

import (
	"slices"

	"chargetrace/internal/event"
)

// Profile is what was charged, by [Sample].
type Profile map[Sample]*Sums

// Sample is what charges have in common that are added up. A field in which they are
// not told apart has its zero value.
type Sample struct {
	// Frames are those of the stack, as in [event.Event.Frames]; empty where it is
	// not known.
	Frames string
	Comm   event.Comm
	PID    uint32
	Cgroup event.CgroupID
}

// Sums are those over the charges of a Sample: Pages of charges that went through,
// and FailedPages of those that failed.
type Sums struct{ Charges, Pages, FailedPages uint64 }

// Sample returns the Sample of a charge by stack and name of the process alone.
func (s *Stacks) Sample(e *event.Event) Sample { return Sample{Frames: s.Frames(e), Comm: e.Comm} }

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

// Functions returns the functions of the stack, the innermost first, as they may be
// printed.
func (s *Sample) Functions() []string {
	if s.Frames == "" {
		return nil
	}
	functions := Functions(s.Frames)
	for i, f := range functions {
		functions[i] = event.Printable(f)
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
