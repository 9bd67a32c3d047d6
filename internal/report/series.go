package report

import (
	"cmp"
	"maps"
	"slices"

	"chargetrace/internal/cause"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
)

// A point is what a level held, or its limit, at a time: in pages, or in bytes
// for [event.Dmem].
type point struct {
	nanos uint64
	pages int64
}

// extent is what is kept of points in a row: the first, the last, the least and
// the greatest. A line through the four looks as one through all of them would
// within a column of pixels (Jugel et al., "M4", VLDB 2014).
type extent struct {
	first, least, greatest, last point
	seen                         bool
}

func (x *extent) add(p point) {
	if !x.seen {
		*x = extent{p, p, p, p, true}
		return
	}
	// Points are nearly in order.
	if p.nanos < x.first.nanos {
		x.first = p
	}
	if p.nanos >= x.last.nanos {
		x.last = p
	}
	if p.pages < x.least.pages {
		x.least = p
	}
	if p.pages > x.greatest.pages {
		x.greatest = p
	}
}

func (x *extent) merge(y *extent) {
	if y.seen {
		for _, p := range [...]point{y.first, y.least, y.greatest, y.last} {
			x.add(p)
		}
	}
}

// points returns the four in order of time, each once.
func (x *extent) points() []point {
	if !x.seen {
		return nil
	}
	inner := []point{x.least, x.greatest}
	if x.greatest.nanos < x.least.nanos {
		inner = []point{x.greatest, x.least}
	}
	return slices.Compact([]point{x.first, inner[0], inner[1], x.last})
}

// marks are happenings of one sort.
type marks struct {
	count uint64
	// from is when the first began, and to when the last ended, by BootNanos.
	from, to uint64
}

func (m *marks) add(count, from, to uint64) {
	switch {
	case count == 0:
		return
	case m.count == 0:
		m.from, m.to = from, to
	default:
		m.from, m.to = min(m.from, from), max(m.to, to)
	}
	m.count += count
}

func (m *marks) merge(n marks) { m.add(n.count, n.from, n.to) }

// bucket is what happened to a series in some time.
type bucket struct {
	index      uint64 // BootNanos >> series.shift
	usage, max extent
	high       *extent // nil: no memory.high was met
	charges    uint64
	misses     uint64
	failed     marks
	reclaim    marks
	// reclaimNanos is how long reclaim took, of concurrent ones each.
	reclaimNanos uint64
}

func (b *bucket) merge(c *bucket) {
	b.usage.merge(&c.usage)
	b.max.merge(&c.max)
	if c.high != nil {
		b.addHigh().merge(c.high)
	}
	b.charges += c.charges
	b.misses += c.misses
	b.failed.merge(c.failed)
	b.reclaim.merge(c.reclaim)
	b.reclaimNanos += c.reclaimNanos
}

// begin is when the first of it happened, as BootNanos.
func (b *bucket) begin() uint64 {
	first := ^uint64(0)
	if b.usage.seen {
		first = b.usage.first.nanos
	}
	if b.failed.count > 0 {
		first = min(first, b.failed.from)
	}
	if b.reclaim.count > 0 {
		first = min(first, b.reclaim.from)
	}
	return first
}

func (b *bucket) addHigh() *extent {
	if b.high == nil {
		b.high = new(extent)
	}
	return b.high
}

// maxBuckets is how many buckets a series has at most: about the columns of
// pixels of its plot.
const maxBuckets = 1024

// series is what happened to a page counter over time. Where there are too many
// buckets, they double in width.
type series struct {
	key     summary.LimitKey
	shift   uint
	buckets []bucket // in order of index, none empty
	// failures and charges are those of all buckets.
	failures, charges uint64
	// partial says that what came before was dropped.
	partial bool
}

// at returns the bucket of a time. It is valid until the next call.
func (s *series) at(nanos uint64) *bucket {
	index := nanos >> s.shift
	n := len(s.buckets)
	if n > 0 && s.buckets[n-1].index == index {
		return &s.buckets[n-1]
	}
	i := n
	if n > 0 && s.buckets[n-1].index > index {
		var found bool
		i, found = slices.BinarySearchFunc(s.buckets, index, func(b bucket, index uint64) int { return cmp.Compare(b.index, index) })
		if found {
			return &s.buckets[i]
		}
	}
	if n == maxBuckets {
		s.reduce(maxBuckets / 2)
		return s.at(nanos)
	}
	s.buckets = slices.Insert(s.buckets, i, bucket{index: index})
	return &s.buckets[i]
}

// lastUsage returns what the counter held last, if that is known.
func (s *series) lastUsage() (pages int64, ok bool) {
	for i := range slices.Backward(s.buckets) {
		if u := &s.buckets[i].usage; u.seen {
			return u.last.pages, true
		}
	}
	return 0, false
}

// reduce widens the buckets until there are no more than limit.
func (s *series) reduce(limit int) {
	for len(s.buckets) > limit {
		s.shift++
		kept := s.buckets[:0]
		for i := range s.buckets {
			b := s.buckets[i]
			b.index >>= 1
			if n := len(kept); n > 0 && kept[n-1].index == b.index {
				kept[n-1].merge(&b)
			} else {
				kept = append(kept, b)
			}
		}
		clear(s.buckets[len(kept):])
		s.buckets = kept
	}
}

// reduced returns the series with no more than limit buckets.
func (s *series) reduced(limit int) *series {
	r := *s
	r.buckets = slices.Clone(s.buckets)
	for i := range r.buckets {
		if h := r.buckets[i].high; h != nil {
			c := *h
			r.buckets[i].high = &c
		}
	}
	r.reduce(limit)
	return &r
}

// total merges all buckets.
func (s *series) total() (t bucket) {
	for i := range s.buckets {
		t.merge(&s.buckets[i])
	}
	return t
}

const (
	maxCells = 240
	// maxSeries and maxParts are how many series, and parts of a breakdown, are told
	// apart while events come; many more than are drawn.
	maxSeries = 128
	maxParts  = 512
)

// part is what a process, or a cause, was charged over time, in pages.
type part struct {
	key   uint32     // a PID, or a cause.Cause
	comm  event.Comm // of the last charge
	pages uint64
	cells []uint64
}

func (p *part) add(cell int, pages uint64) {
	for len(p.cells) <= cell {
		p.cells = append(p.cells, 0)
	}
	p.cells[cell] += pages
	p.pages += pages
}

func (p *part) halve() {
	n := (len(p.cells) + 1) / 2
	for i := range n {
		sum := p.cells[2*i]
		if 2*i+1 < len(p.cells) {
			sum += p.cells[2*i+1]
		}
		p.cells[i] = sum
	}
	p.cells = p.cells[:n]
}

// breakdown is what all processes charged, or what was charged for all causes, in cells
// that are as wide for all.
type breakdown struct {
	start  uint64 // of the first cell, as BootNanos
	shift  uint
	parts  map[uint32]*part
	others part // those that were charged least, once there are too many
	lost   part // events that were lost, not pages
}

func (b *breakdown) cell(nanos uint64) int {
	since := nanos - min(nanos, b.start)
	for since>>b.shift >= maxCells {
		b.shift++
		for _, p := range b.parts {
			p.halve()
		}
		b.others.halve()
		b.lost.halve()
	}
	return int(since >> b.shift)
}

func (b *breakdown) add(key uint32, e *event.Event) {
	cell := b.cell(e.BootNanos)
	p := b.parts[key]
	if p == nil {
		if len(b.parts) == maxParts {
			b.drop()
		}
		p = &part{key: key}
		b.parts[key] = p
	}
	p.comm = e.Comm
	p.add(cell, e.RequestedPages)
}

// drop moves the half that was charged less to the others.
func (b *breakdown) drop() {
	for _, p := range b.sorted()[maxParts/2:] {
		for cell, pages := range p.cells {
			b.others.add(cell, pages)
		}
		delete(b.parts, p.key)
	}
}

// sorted returns the parts, those first that were charged most.
func (b *breakdown) sorted() []*part {
	return slices.SortedFunc(maps.Values(b.parts), func(x, y *part) int {
		return cmp.Or(cmp.Compare(y.pages, x.pages), cmp.Compare(x.key, y.key))
	})
}

// collector is what a report is made of. Its memory grows with the number of
// cgroups and processes, as that of the summary does.
type collector struct {
	header      stream.Header
	sum         *summary.Summary
	first, last uint64 // the times of the first and the last event; 0: none came
	series      map[summary.LimitKey]*series
	own, other  *series // the last of each, since most events are like the one before
	dropped     map[summary.LimitKey]bool
	byProcess   breakdown
	// byCause is of the charges that have a kernel stack, samples of those that
	// have any, and droppedPages those of samples that were dropped.
	byCause      breakdown
	samples      cause.Profile
	droppedPages uint64
}

func newCollector(header stream.Header) collector {
	return collector{
		header: header, sum: summary.New(header),
		series: make(map[summary.LimitKey]*series), dropped: make(map[summary.LimitKey]bool),
		byProcess: breakdown{parts: make(map[uint32]*part)}, byCause: breakdown{parts: make(map[uint32]*part)},
		samples: make(cause.Profile),
	}
}

// Write takes a batch. It does not fail.
func (c *collector) Write(batch []event.Event) error {
	for i := range batch {
		e := &batch[i]
		c.sum.Write(batch[i : i+1]) // it does not fail
		if e.Type.IsName() || e.Type == event.Fork || e.Type == event.Usage {
			continue
		}
		at := e.BootNanos
		if e.Type == event.Lost && at == 0 { // at the end of an older recording
			at = max(c.last, c.header.StartBootNanos)
		}
		if c.first == 0 {
			c.first, c.byProcess.start, c.byCause.start = at, at, at
		}
		c.first, c.last = min(c.first, at), max(c.last, at)
		switch e.Type {
		case event.Charge:
			c.addCharge(e)
		case event.Uncharge, event.ForcedCharge:
			b := c.of(&c.own, e.Cgroup, e.Kind).at(e.BootNanos)
			b.usage.add(point{e.BootNanos, e.UsagePages})
			b.usage.add(point{e.BootNanos, e.UsageAfterPages()})
			c.moveAbove(e)
		case event.ReclaimEnd:
			from := e.BootNanos - min(e.DurationNanos, e.BootNanos)
			c.first = min(c.first, max(from, c.header.StartBootNanos))
			b := c.of(&c.own, e.Cgroup, event.Memory).at(e.BootNanos)
			b.reclaim.add(1, from, e.BootNanos)
			b.reclaimNanos += e.DurationNanos
		case event.Lost:
			c.byProcess.lost.add(c.byProcess.cell(at), e.LostEvents)
		}
	}
	return nil
}

func (c *collector) addCharge(e *event.Event) {
	if e.Outcome == event.OK && e.Kind != event.Dmem && e.Kind != event.Memsw { // as in summary.Totals.ChargedPages
		c.byProcess.add(e.PID, e)
		if e.KernelStack != 0 {
			c.byCause.add(uint32(c.sum.Stacks.Cause(e)), e)
		}
		if e.KernelStack != 0 || e.UserStack != 0 {
			c.addSample(e)
		}
	}
	s := c.of(&c.own, e.Cgroup, e.Kind)
	s.charges++
	b := s.at(e.BootNanos)
	b.charges++
	addLevel(b, e, &event.Level{UsagePages: e.UsagePages, MaxPages: e.MaxPages})
	if e.Outcome == event.BatchMiss {
		b.misses++
	}
	if e.Outcome == event.Failed {
		s.failures++
		b.failed.add(1, e.BootNanos, e.BootNanos)
	}
	own, limiting := e.Cgroup.ID, e.Limiting.CgroupID
	if limiting != own && e.Limiting.Limited() {
		addLevel(c.of(&c.other, e.InCgroup(limiting), e.Kind).at(e.BootNanos), e, &e.Limiting)
	}
	if e.Outcome == event.Failed && e.FailedAt != own && e.FailedAt != 0 {
		s := c.of(&c.other, e.InCgroup(e.FailedAt), e.Kind)
		s.failures++
		s.at(e.BootNanos).failed.add(1, e.BootNanos, e.BootNanos)
	}
	if h := &e.High; h.Limited() {
		b := c.of(&c.other, e.InCgroup(h.CgroupID), e.Kind).at(e.BootNanos)
		b.addHigh().add(point{e.BootNanos, int64(h.MaxPages)})
		if h.CgroupID != own && h.CgroupID != limiting {
			addLevel(b, e, &event.Level{UsagePages: h.UsagePages, MaxPages: ^uint64(0)})
		}
	}
	if e.Outcome == event.OK {
		c.moveAbove(e)
	}
}

// moveAbove moves what the levels above an event's held last by what it changes. Of
// them a charge tells only those with the least room, and an uncharge none. What is
// no part of the trace is missing until the next charge tells.
func (c *collector) moveAbove(e *event.Event) {
	if c.sum.Nets == nil {
		return
	}
	moved := e.UsageAfterPages() - e.UsagePages
	for _, n := range c.sum.Nets.Lineage(summary.LimitKey{Cgroup: e.Cgroup, Kind: e.Kind}, &c.sum.Names)[1:] {
		id := n.Key.Cgroup.ID
		if e.Type == event.Charge && (id == e.Limiting.CgroupID && e.Limiting.Limited() || id == e.High.CgroupID && e.High.Limited()) {
			continue // it was told
		}
		if s := c.series[n.Key]; s != nil {
			if last, ok := s.lastUsage(); ok {
				s.at(e.BootNanos).usage.add(point{e.BootNanos, last + moved})
			}
		}
	}
}

// addLevel adds what a level held before the charge, and what after it.
func addLevel(b *bucket, e *event.Event, l *event.Level) {
	b.usage.add(point{e.BootNanos, l.UsagePages})
	if e.Outcome == event.OK {
		b.usage.add(point{e.BootNanos, l.UsagePages + int64(e.RequestedPages)})
	}
	if l.Limited() {
		b.max.add(point{e.BootNanos, int64(l.MaxPages)})
	}
}

// of returns the series of a counter; last is the one of the call before.
func (c *collector) of(last **series, id event.CgroupID, kind event.Kind) *series {
	key := summary.LimitKey{Cgroup: id, Kind: kind}
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

// sorted returns the series, those first that are most worth a look: where
// processes were killed, where charges failed, memory before other kinds, and
// where most was charged.
func (c *collector) sorted() []*series {
	kills := make(map[event.CgroupID]int)
	for i := range c.sum.OOMKills {
		kills[c.sum.OOMKills[i].Cgroup]++
	}
	ran := func(s *series) int {
		if s.key.Kind != event.Memory {
			return 0
		}
		return kills[s.key.Cgroup]
	}
	return slices.SortedFunc(maps.Values(c.series), func(a, b *series) int {
		return cmp.Or(
			cmp.Compare(ran(b), ran(a)), cmp.Compare(b.failures, a.failures), cmp.Compare(a.key.Kind, b.key.Kind),
			cmp.Compare(b.charges, a.charges), cmp.Compare(a.key.Cgroup.Hierarchy, b.key.Cgroup.Hierarchy), cmp.Compare(a.key.Cgroup.ID, b.key.Cgroup.ID))
	})
}
