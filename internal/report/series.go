package report

import (
	"cmp"
	"slices"

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
