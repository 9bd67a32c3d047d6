package capture

import (
	"fmt"
)

// Counts say what became of the charges since the trace began.
type Counts struct {
	// Seen charges were met by the program: those it put into the ring buffer,
	// Filtered and Lost.
	Seen uint64
	// Filtered charges were none of those asked for, as far as the kernel can
	// tell.
	Filtered uint64
	// Lost charges found the ring buffer full.
	Lost uint64
	// LostOthers is how many events that are not charges found it full.
	LostOthers uint64
	// Missed calls of the function never came to the program, because it or
	// another BPF program was already running on that CPU. They are not part
	// of Seen. Kernels before 6.7 count not all of them.
	Missed uint64
	// Unfollowed processes were forked by those that are traced, but were too
	// many to be traced too.
	Unfollowed uint64
	// Unstacked is how many stacks of charges are missing: the kernel could not take
	// them, or there were too many different ones.
	Unstacked uint64
	// Unnamed is how many processes have user stacks of addresses alone, for they
	// could not be looked at, and how many stacks are that, since it took too long.
	Unnamed uint64
}

// Counts returns what the kernel has counted. After Read has returned io.EOF
// the figures are final, and exact.
func (t *Tracer) Counts() (Counts, error) {
	c := Counts{Missed: t.missed, Seen: uint64(len(t.inflight))}
	for cpu := range t.lost {
		var n bpfCounters
		if err := t.counters.Lookup(uint32(cpu), &n); err != nil {
			return Counts{}, fmt.Errorf("read the counters: %w", err)
		}
		c.Seen += n.Delivered + n.Filtered + n.Lost
		c.Filtered += n.Filtered
		c.Lost += n.Lost
		c.LostOthers += n.LostOthers
		c.Unstacked += n.LostStacks
	}
	if t.stacks != nil {
		c.Unstacked += t.stacks.missing
		if p := t.stacks.programs; p != nil {
			c.Unnamed = p.last.unknown + p.late
		}
	}
	if err := t.unfollowed.Get(&c.Unfollowed); err != nil {
		return Counts{}, fmt.Errorf("read the counters: %w", err)
	}
	for _, p := range t.programs {
		// Counted since 5.12; not every kernel tells.
		if stats, err := p.Stats(); err == nil && p.calls {
			c.Missed += stats.RecursionMisses
		}
	}
	return c, nil
}
