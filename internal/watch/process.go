package watch

import (
	"cmp"
	"maps"
	"slices"

	"chargetrace/internal/cause"
	"chargetrace/internal/event"
	"chargetrace/internal/summary"
)

// process sums up the charges of a process to a cgroup. state.tick drops idle ones.
type process struct {
	pid             uint32
	comm            event.Comm
	pages, failures uint64
	shownPages      uint64  // pages at the last tick
	rate            float64 // pages a second at the last tick
	charged         bool    // since the last tick
	idleTicks       int     // since the last charge
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

func (p *process) add(e *event.Event, addsUp bool) {
	var t summary.Totals
	t.AddCharge(e, addsUp)
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

// byRate returns the processes, the highest rate first.
func (g *group) byRate() []*process {
	return slices.SortedFunc(maps.Values(g.processes), func(a, b *process) int {
		return cmp.Or(cmp.Compare(b.rate, a.rate), cmp.Compare(b.pages, a.pages), cmp.Compare(a.pid, b.pid))
	})
}

// share is the part of the charged pages, 0 to 1, that one cause takes.
type share struct {
	cause.Cause
	part float64
}

// shares returns the causes of the recent charges, the largest first.
func (g *group) shares() []share {
	if g == nil || g.causes == nil || len(g.causes.recent) == 0 {
		return nil
	}
	recent := g.causes.recent
	last := len(recent) - 1
	charged := recent[last]
	var all uint64
	for c := range charged {
		if last == fillWindow { // else the cgroup is newer than the window
			charged[c] -= recent[0][c]
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
