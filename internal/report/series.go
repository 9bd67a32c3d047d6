package report

import (
	"cmp"
	"slices"

	"chargetrace/internal/event"
)

// point is the usage or the limit of a page counter at a time: in pages, or in bytes
// for [event.Dmem].
type point struct {
	nanos uint64
	pages int64
}

// extent reduces a run of points to the first, the last, the least and the greatest.
// Within a column of pixels, a line through these four looks like the line through
// all points (Jugel et al., "M4", VLDB 2014).
type extent struct {
	first, least, greatest, last point
	seen                         bool
}

func (x *extent) add(p point) {
	if !x.seen {
		*x = extent{p, p, p, p, true}
		return
	}
	// The events of several CPUs arrive nearly in order.
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

// points returns the four points in order of time, without duplicates.
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

// marks are the failures, the reclaim runs or the lost events of a time span.
type marks struct {
	count    uint64
	from, to uint64 // BootNanos of the first begin and of the last end
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

// bucket sums up the events of a series in a time span.
type bucket struct {
	index      uint64 // BootNanos >> series.shift
	usage, max extent
	high       *extent // nil: no event had a memory.high
	charges    uint64
	misses     uint64
	failed     marks
	reclaim    marks
	// reclaimNanos adds up the durations of all runs, concurrent ones too.
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

// begin returns the BootNanos of the first event.
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

// maxBuckets is about the number of pixel columns of a plot.
const maxBuckets = 1024

// series is the history of a page counter in buckets. Their width doubles when they
// become too many.
type series struct {
	key               event.CounterID
	shift             uint     // a bucket is 1<<shift ns wide
	buckets           []bucket // sorted by index, none empty
	failures, charges uint64
	partial           bool // an earlier part was dropped
}

// at returns the bucket of a time. The pointer is valid until the next call.
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

func (s *series) addFailure(e *event.Event) {
	s.failures++
	s.at(e.BootNanos).failed.add(1, e.BootNanos, e.BootNanos)
}

// reduce widens the buckets until there are at most limit.
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

// reduced returns a copy of the series with at most limit buckets.
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
