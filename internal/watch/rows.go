package watch

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
)

// row is what is shown of a cgroup: what it had at the last tick.
type row struct {
	id        event.CgroupID
	path      string // printable
	container string
	group     *group // nil: nothing was seen of it
	known     bool   // what it holds
	sample
	// limitedBy is the path of the level that the limiting pages are of; empty if
	// none has a limit.
	limitedBy string
	ownLimit  bool // it is the cgroup itself
	// fillRate is in pages a second, of the limiting level, or of the cgroup where
	// there is none; NaN where it is not known.
	fillRate float64
	// toLimit is the time until the limit is reached at that rate; negative
	// where it is not to be.
	toLimit time.Duration
	// Of the last second, or what there is of it.
	failures, misses float64
	reclaim          float64 // the time that tasks spent in it, of the time that went by
	// Likewise, in pages a second; what the cgroup and those below it gave back is
	// known only where the trace tells.
	charged, uncharged float64
}

// roomPages is how many pages fit under the limit, if there is one.
func (r *row) roomPages() int64 { return int64(r.maxPages) - r.limitingPages }

// fullness is how much of the limit is used: 0 to 1, and more.
func (r *row) fullness() float64 {
	if r.limitedBy == "" {
		return 0
	}
	return float64(r.limitingPages) / math.Max(1, float64(r.maxPages))
}

// row returns what is shown of a cgroup.
func (s *state) row(id event.CgroupID) row {
	names := &s.names
	r := row{id: id, path: names.Printable(id), group: s.groups[id], toLimit: -1, fillRate: math.NaN()}
	if c := cgroup.ContainerOf(names.Path(id)); c.ID != "" {
		r.container = event.Printable(c.String())
	}
	filling := s.levels[id]
	r.known = filling != nil
	if g := r.group; g != nil && len(g.history) > 0 {
		r.sample = g.history[len(g.history)-1]
		if r.limiting != (event.CgroupID{}) {
			r.limitedBy, r.ownLimit = names.Printable(r.limiting), r.limiting == id
			filling = s.levels[r.limiting]
		}
		r.setRates(g)
	} else if filling != nil && len(filling.history) > 0 {
		r.usagePages = filling.history[len(filling.history)-1].usagePages
		if l := (event.Level{MaxPages: filling.maxPages}); l.Limited() {
			r.limitingPages, r.maxPages, r.limitedBy, r.ownLimit = r.usagePages, filling.maxPages, r.path, true
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

// maxToLimit is how far it is worth looking ahead.
const maxToLimit = 30 * 24 * time.Hour

func (r *row) setRates(g *group) {
	before := sample{}
	if len(g.history) > 1 {
		before = g.history[len(g.history)-2]
	}
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

// fillRate is in pages a second; NaN where that cannot be told yet.
func (l *level) fillRate() float64 {
	if len(l.history) < 2 {
		return math.NaN()
	}
	from, to := l.history[0], l.history[len(l.history)-1]
	return float64(to.usagePages-from.usagePages) / (float64(to.bootNanos-from.bootNanos) / float64(time.Second))
}

// order is what rows are sorted by.
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
		// Those that are not to reach it come last.
		return cmp.Compare(uint64(a.toLimit), uint64(b.toLimit))
	case byUsage:
		return cmp.Compare(b.usagePages, a.usagePages)
	case byFill:
		return cmp.Compare(b.fillRate, a.fillRate)
	case byFailures:
		return cmp.Or(cmp.Compare(b.failures, a.failures), cmp.Compare(b.totals.Failures, a.totals.Failures))
	}
	return 0
}

// rows returns what is shown of the cgroups that the keys choose, in order.
func (s *state) rows(k *keys) []row {
	var rows []row
	if k.entered {
		for id := range s.names.Lineage(k.selected) {
			rows = append(rows, s.row(id))
		}
		return rows
	}
	for id, g := range s.groups {
		if len(g.history) == 0 {
			continue
		}
		r := s.row(id)
		if k.filter == "" || strings.Contains(strings.ToLower(r.path+" "+r.container), strings.ToLower(k.filter)) {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, func(a, b row) int {
		c := cmp.Or(k.order.compare(&a, &b), cmp.Compare(a.path, b.path), cmp.Compare(a.id.ID, b.id.ID))
		if k.reverse {
			c = -c
		}
		return cmp.Or(boolCompare(a.gone(), b.gone()), c) // those that are gone come last
	})
	return rows
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

// gone reports whether the cgroup was removed.
func (r *row) gone() bool { return r.group != nil && r.group.gone }
