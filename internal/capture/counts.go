//go:build linux

package capture

import (
	"fmt"

	"chargetrace/internal/stream"
)

// Counts implements [stream.Source].
func (r *reader) Counts() (stream.Counts, error) {
	c := stream.Counts{Whole: true, Missed: r.kernel.missed()}
	for cpu := range r.lost {
		var n bpfCpuState
		if err := r.kernel.readCounters(cpu, &n); err != nil {
			return stream.Counts{}, fmt.Errorf("read the counters: %w", err)
		}
		c.Seen += n.Delivered + n.Filtered + n.Lost
		c.Filtered += n.Filtered
		c.Lost += n.Lost
		c.LostNonCharge += n.LostOthers
		c.LostStacks += n.LostStacks
		c.Missed += n.Missed
		if r.flushed { // the programs are detached
			c.Missed += n.Inflight
		}
	}
	if r.stacks != nil {
		c.LostStacks += r.stacks.missing
		if p := r.stacks.programs; p != nil {
			c.UnnamedProcesses = p.last.unknown + p.late
		}
	}
	c.BatchPages = r.batches.pages
	var err error
	if c.Unfollowed, err = r.kernel.readUnfollowed(); err != nil {
		return stream.Counts{}, fmt.Errorf("read the counters: %w", err)
	}
	return c, nil
}
