package report

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"chargetrace/internal/cause"
	"chargetrace/internal/event"
	"chargetrace/internal/summary"
	"chargetrace/internal/world"
)

// maxSeries bounds the memory of a trace with many cgroups. Fewer series are drawn.
const maxSeries = 128

// collector reduces the events to what a report shows. Its memory grows with the
// number of cgroups and processes, like the summary's.
type collector struct {
	sum         *summary.Summary
	labels      map[event.CgroupID]string // what cgroups are called, at the end
	first, last uint64                    // BootNanos of the first and the last event; 0: none yet
	series      map[event.CounterID]*series
	dropped     map[event.CounterID]bool
	byProcess   breakdown
	byCause     breakdown // the charges with a kernel stack
	// samples are the charges with any stack; droppedPages those of dropped samples.
	samples      cause.Profile
	droppedPages uint64
	// own and other cache the last series of an event's cgroup and of another level:
	// successive events often share them.
	own, other *series
}

func newCollector(sum *summary.Summary) collector {
	sum.KeepUsages()
	return collector{
		sum:    sum,
		series: make(map[event.CounterID]*series), dropped: make(map[event.CounterID]bool),
		byProcess: breakdown{parts: make(map[uint32]*part)}, byCause: breakdown{parts: make(map[uint32]*part)},
		samples: make(cause.Profile),
	}
}

// Write adds a batch of events. It does not fail.
func (c *collector) Write(batch []event.Event) error {
	for i := range batch {
		e := &batch[i]
		if e.Type.IsName() || e.Type == event.Fork || e.Type == event.Usage || e.Type == event.MemoryStat || e.Type == event.Held || e.Type == event.ClockStep {
			continue
		}
		at := e.BootNanos
		if e.Type == event.Lost && at == 0 { // older recordings count losses at their end
			at = max(c.last, c.sum.Info.StartBootNanos)
		}
		if c.first == 0 {
			c.first, c.byProcess.start, c.byCause.start = at, at, at
		}
		c.first, c.last = min(c.first, at), max(c.last, at)
		switch e.Type {
		case event.Charge:
			c.addUsages(e, c.sum.Usages(i))
			c.addCharge(e)
		case event.Uncharge, event.ForcedCharge:
			c.addUsages(e, c.sum.Usages(i))
		case event.ReclaimEnd:
			from := e.BootNanos - min(e.DurationNanos, e.BootNanos)
			c.first = min(c.first, max(from, c.sum.Info.StartBootNanos))
			b := c.of(&c.own, event.CounterID{Cgroup: e.Cgroup, Kind: event.Memory}).at(e.BootNanos)
			b.reclaim.add(1, from, e.BootNanos)
			b.reclaimNanos += e.DurationNanos
		case event.Lost:
			c.byProcess.lost.add(c.byProcess.cell(at), e.LostCharges)
		}
	}
	return nil
}

func (c *collector) addCharge(e *event.Event) {
	if e.Outcome == event.OK && e.Kind.AddsUp(c.sum.Info.Kinds) { // as in summary.Totals.ChargedPages
		c.byProcess.add(e.PID, e)
		if e.KernelStack != 0 {
			c.byCause.add(uint32(c.sum.Stacks.Cause(e)), e)
		}
		if e.KernelStack != 0 || e.UserStack != 0 {
			c.addSample(e)
		}
	}
	s := c.of(&c.own, e.CounterID())
	s.charges++
	b := s.at(e.BootNanos)
	b.charges++
	switch e.Outcome {
	case event.BatchMiss:
		b.misses++
	case event.Failed:
		s.addFailure(e)
		if e.FailedAt != e.Cgroup.ID && e.FailedAt != 0 {
			c.of(&c.other, event.CounterID{Cgroup: e.InCgroup(e.FailedAt), Kind: e.Kind}).addFailure(e)
		}
	}
	if h := &e.High; h.Limited() {
		b := c.of(&c.other, event.CounterID{Cgroup: e.InCgroup(h.CgroupID), Kind: e.Kind}).at(e.BootNanos)
		b.addHigh().add(point{e.BootNanos, int64(h.MaxPages)})
	}
}

// addUsages adds the usages of levels before and after an event.
func (c *collector) addUsages(e *event.Event, usages []world.Usage) {
	for i, u := range usages {
		last := &c.other
		if i == 0 {
			last = &c.own
		}
		if u.Computed && c.series[u.Counter] == nil {
			continue
		}
		b := c.of(last, u.Counter).at(e.BootNanos)
		b.usage.add(point{e.BootNanos, u.BeforePages})
		if u.AfterPages != u.BeforePages {
			b.usage.add(point{e.BootNanos, u.AfterPages})
		}
		if u.Limited() {
			b.max.add(point{e.BootNanos, int64(u.MaxPages)})
		}
	}
}

// of returns the series of a page counter. last caches it.
func (c *collector) of(last **series, key event.CounterID) *series {
	if *last != nil && (*last).key == key {
		return *last
	}
	s := c.series[key]
	if s == nil {
		if len(c.series) == maxSeries {
			for _, s := range c.sorted()[maxSeries/2:] {
				c.dropped[s.key] = true
				delete(c.series, s.key)
			}
			c.own, c.other = nil, nil
		}
		s = &series{key: key, shift: 10, partial: c.dropped[key]}
		c.series[key] = s
	}
	*last = s
	return s
}

// sorted returns the series in the order of their plots: the most OOM kills first, then
// the most failures, memory before other kinds, the most charges.
func (c *collector) sorted() []*series {
	kills := make(map[event.CgroupID]int)
	for i := range c.sum.Kills {
		kills[c.sum.Kills[i].Cgroup]++
	}
	killed := func(s *series) int {
		if s.key.Kind != event.Memory {
			return 0
		}
		return kills[s.key.Cgroup]
	}
	return slices.SortedFunc(maps.Values(c.series), func(a, b *series) int {
		return cmp.Or(
			cmp.Compare(killed(b), killed(a)), cmp.Compare(b.failures, a.failures), cmp.Compare(a.key.Kind, b.key.Kind),
			cmp.Compare(b.charges, a.charges), cmp.Compare(a.key.Cgroup.Hierarchy, b.key.Cgroup.Hierarchy), cmp.Compare(a.key.Cgroup.ID, b.key.Cgroup.ID))
	})
}

// span returns the time range of the plots.
func (c *collector) span() (from, to uint64) {
	from, to = c.first, c.last
	// The margins keep the first and the last event off the edges.
	pad := max((to-from)/100, uint64(time.Microsecond))
	return max(from-min(from, pad), min(c.sum.Info.StartBootNanos, from)), to + min(pad, math.MaxUint64-to)
}

// unitBytes returns the bytes of a counter's unit.
func (c *collector) unitBytes(kind event.Kind) int {
	if kind == event.Dmem {
		return 1
	}
	return c.sum.Info.PageSize
}
