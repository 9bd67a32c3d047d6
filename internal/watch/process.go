package watch

import (
	"cmp"
	"maps"
	"slices"

	"chargetrace/internal/cause"
	"chargetrace/internal/event"
	"chargetrace/internal/summary"
)

// process is what a process has charged a cgroup. One that has not done so for
// long is forgotten.
type process struct {
	pid             uint32
	comm            event.Comm
	pages, failures uint64
	// shownPages and rate, in pages a second, are of the last tick, and idleTicks
	// how many there were since it charged.
	shownPages uint64
	rate       float64
	charged    bool // since the last tick
	idleTicks  int
}

// process returns the process of a charge.
func (g *group) process(e *event.Event) *process {
	p := g.processes[e.PID]
	if p == nil {
		p = &process{pid: e.PID}
		if len(g.processes) < maxCharging {
			g.processes[e.PID] = p
		}
	}
	return p
}

func (p *process) add(e *event.Event) {
	var t summary.Totals
	t.AddCharge(e)
	p.pages += t.ChargedPages
	p.failures += t.Failures
	p.comm, p.charged = e.Comm, true
}

func (p *process) tick(seconds float64) {
	p.rate = float64(p.pages-p.shownPages) / seconds
	p.shownPages = p.pages
	p.idleTicks++
	if p.charged {
		p.charged, p.idleTicks = false, 0
	}
}

// byRate returns those that charge a cgroup, those that charge most now first.
func (g *group) byRate() []*process {
	return slices.SortedFunc(maps.Values(g.processes), func(a, b *process) int {
		return cmp.Or(cmp.Compare(b.rate, a.rate), cmp.Compare(b.pages, a.pages), cmp.Compare(a.pid, b.pid))
	})
}

// share is the part, 0 to 1, of what was charged that was for a cause.
type share struct {
	cause.Cause
	part float64
}

// shares returns what a cgroup was charged for of late, those causes first for which
// that was most.
func (g *group) shares() []share {
	if g == nil || len(g.recent) == 0 {
		return nil
	}
	last := len(g.recent) - 1
	charged := g.recent[last]
	var all uint64
	for c := range charged {
		if last == fillWindow { // else it was not there before
			charged[c] -= g.recent[0][c]
		}
		all += charged[c]
	}
	var shares []share
	for c, pages := range charged {
		if pages > 0 {
			shares = append(shares, share{cause.Cause(c), float64(pages) / float64(all)})
		}
	}
	slices.SortStableFunc(shares, func(a, b share) int { return cmp.Compare(b.part, a.part) })
	return shares
}
