package watch

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"chargetrace/internal/event"
)

// row is a cgroup on the screen, as of the last tick.
type row struct {
	id    event.CgroupID
	name  string // the label
	group *group // nil: no event yet
	known bool   // the usage is
	gone  bool   // the cgroup has been removed
	sample
	limitedBy string // the name of the limiting level; empty: no limit
	ownLimit  bool   // the cgroup is the limiting level
	// fillRate is the growth of the limiting level, or of the cgroup if it has no limit,
	// in pages a second; NaN: unknown.
	fillRate float64
	// toLimit is the time until the limit is reached at that rate; negative: never.
	toLimit time.Duration
	// The rates of the last tick, per second. The last two are pages of the cgroup and
	// its descendants; only a trace with -net has them.
	failures, misses, reclaim float64
	charged, uncharged        float64
}

// roomPages returns the pages that fit under the limit.
func (x *sample) roomPages() int64 { return int64(x.maxPages) - x.limitingPages }

// fullness returns the used part of the limit. It may exceed 1.
func (r *row) fullness() float64 {
	if r.limitedBy == "" {
		return 0
	}
	return float64(r.limitingPages) / math.Max(1, float64(r.maxPages))
}

// row returns the row of a cgroup.
func (s *state) row(id event.CgroupID) row {
	names := &s.Names
	r := row{id: id, name: names.Label(id), group: s.groups[id], toLimit: -1, fillRate: math.NaN()}
	filling := s.levels[id]
	r.known = filling != nil
	r.gone = r.group != nil && r.group.gone
	if g := r.group; g != nil && len(g.graph) > 0 {
		r.sample = g.last
		if r.limiting != (event.CgroupID{}) {
			r.limitedBy, r.ownLimit = names.Label(r.limiting), r.limiting == id
			filling = s.levels[r.limiting]
		}
		r.setRates(g)
	} else if filling != nil && len(filling.history) > 0 {
		r.usagePages = filling.history[len(filling.history)-1].usagePages
		if l := (event.Level{MaxPages: min(filling.maxPages, filling.highPages)}); l.Limited() {
			r.limitingPages, r.maxPages, r.limitedBy, r.ownLimit = r.usagePages, l.MaxPages, r.name, true
			r.high = filling.highPages < filling.maxPages
		}
	}
	if filling != nil {
		r.fillRate = filling.fillRate()
	}
	if r.limitedBy != "" {
		switch room := r.roomPages(); {
		case room <= 0:
			r.toLimit = 0
		case r.fillRate > 0:
			if seconds := float64(room) / r.fillRate; seconds < maxToLimit.Seconds() {
				r.toLimit = time.Duration(seconds * float64(time.Second))
			}
		}
	}
	return r
}

// maxToLimit is how far ahead a limit is predicted.
const maxToLimit = 30 * 24 * time.Hour

func (r *row) setRates(g *group) {
	before := &g.before
	seconds := interval.Seconds()
	if before.bootNanos != 0 {
		seconds = float64(r.bootNanos-before.bootNanos) / float64(time.Second)
	}
	r.failures = float64(r.totals.Failures-before.totals.Failures) / seconds
	r.charged = float64(r.chargedPages-before.chargedPages) / seconds
	r.uncharged = float64(r.unchargedPages-before.unchargedPages) / seconds
	r.misses = float64(r.totals.BatchMisses-before.totals.BatchMisses) / seconds
	r.reclaim = float64(r.totals.ReclaimNanos-before.totals.ReclaimNanos) / float64(time.Second) / seconds
}

// fillRate returns the growth in pages a second; NaN: unknown.
func (l *level) fillRate() float64 {
	if len(l.history) < 2 {
		return math.NaN()
	}
	from, to := l.history[0], l.history[len(l.history)-1]
	return float64(to.usagePages-from.usagePages) / (float64(to.bootNanos-from.bootNanos) / float64(time.Second))
}

// order is the sort key of the rows.
type order int

const (
	byFullness order = iota
	byToLimit
	byUsage
	byFill
	byFailures
	byName
	numOrders
)

var orderNames = [numOrders]string{"fullness", "time to limit", "usage", "fill rate", "failures", "name"}

func (o order) compare(a, b *row) int {
	switch o {
	case byFullness:
		return cmp.Compare(b.fullness(), a.fullness())
	case byToLimit:
		return cmp.Compare(uint64(a.toLimit), uint64(b.toLimit)) // never, -1, comes last
	case byUsage:
		return cmp.Compare(b.usagePages, a.usagePages)
	case byFill:
		return cmp.Compare(b.fillRate, a.fillRate)
	case byFailures:
		return cmp.Or(cmp.Compare(b.failures, a.failures), cmp.Compare(b.totals.Failures, a.totals.Failures))
	}
	return 0
}

// matches reports whether the name or the path of a row contains a text.
func (s *state) matches(r *row, filter string) bool {
	return filter == "" || strings.Contains(strings.ToLower(r.name+" "+s.Names.Printable(r.id)), strings.ToLower(filter))
}

// rows returns the sorted rows that the keys select.
func (s *state) rows(k *keys) (rows []*row) {
	if k.entered {
		for id := range s.Names.Lineage(k.selected) {
			r := s.row(id)
			rows = append(rows, &r)
		}
		return rows
	}
	all := make([]row, 0, len(s.groups))
	for id, g := range s.groups {
		if len(g.graph) == 0 {
			continue
		}
		if r := s.row(id); s.matches(&r, k.filter) {
			all = append(all, r)
			rows = append(rows, &all[len(all)-1])
		}
	}
	s.tellApart(rows)
	slices.SortFunc(rows, func(a, b *row) int {
		if c := boolCompare(a.gone, b.gone); c != 0 { // removed cgroups come last
			return c
		}
		c := k.order.compare(a, b)
		if c == 0 {
			c = cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.id.ID, b.id.ID))
		}
		if k.reverse {
			c = -c
		}
		return c
	})
	return rows
}

// tellApart adds to equal names, such as of a unit that was started again, how long after the
// start of the trace there were charges: leaky.service +3.82s.
func (s *state) tellApart(rows []*row) {
	count := make(map[string]int)
	for _, r := range rows {
		count[r.name]++
	}
	for _, r := range rows {
		if first := r.group.totals.FirstNanos; count[r.name] > 1 && first != 0 {
			r.name += fmt.Sprintf(" +%.2fs", time.Duration(first-s.start).Seconds())
		}
	}
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
