package capture

import "fmt"

// Counts say what became of the charges since the trace began.
type Counts struct {
	// Seen charges reached the programs: those in the ring buffer, Filtered and Lost.
	Seen uint64
	// Filtered charges were rejected by the filters in the kernel.
	Filtered uint64
	// Lost charges found the ring buffer full.
	Lost uint64
	// LostOthers is how many events other than charges found it full.
	LostOthers uint64
	// Missed calls of the function never reached the program, because it or another BPF
	// program was already running on that CPU. They are not part of Seen. Kernels
	// before 6.7 do not count all of them.
	Missed uint64
	// Unfollowed processes were forked by traced ones, but there were too many to trace
	// them too.
	Unfollowed uint64
	// Unstacked is how many stacks of charges are missing: the kernel could not take
	// them, or there were too many different ones.
	Unstacked uint64
	// Unnamed is how many processes have user stacks of addresses alone, because their
	// files could not be read, plus how many stacks are, because that took too long.
	Unnamed uint64
}

// Counts returns what the kernel has counted. After Read has returned io.EOF the figures
// are final, and exact.
func (r *reader) Counts() (Counts, error) {
	c := Counts{Missed: r.kernel.missed(), Seen: uint64(len(r.inflight))}
	for cpu := range r.lost {
		var n bpfCpuState
		if err := r.kernel.readCounters(cpu, &n); err != nil {
			return Counts{}, fmt.Errorf("read the counters: %w", err)
		}
		c.Seen += n.Delivered + n.Filtered + n.Lost
		c.Filtered += n.Filtered
		c.Lost += n.Lost
		c.LostOthers += n.LostOthers
		c.Unstacked += n.LostStacks
	}
	if r.stacks != nil {
		c.Unstacked += r.stacks.missing
		if p := r.stacks.programs; p != nil {
			c.Unnamed = p.last.unknown + p.late
		}
	}
	var err error
	if c.Unfollowed, err = r.kernel.readUnfollowed(); err != nil {
		return Counts{}, fmt.Errorf("read the counters: %w", err)
	}
	return c, nil
}
