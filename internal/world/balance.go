package world

import (
	"cmp"
	"maps"
	"slices"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
)

// Balance sums the charges and uncharges of a counter and those below it, in pages, or
// in bytes for [event.Dmem]. If the usage of the counter was read, the sums cover the
// time from the first reading to the last.
type Balance struct {
	Counter event.CounterID
	// ChargedPages are from charges that succeeded, ForcedPages from forced charges, and
	// UnchargedPages from uncharges.
	ChargedPages, ForcedPages, UnchargedPages uint64
	// Own means that the cgroup itself has charges or uncharges, not only those below
	// it.
	Own        bool
	begin, end reading
	// again means that there was a second reading flagged [event.Existing]. Events between
	// two traces are unknown, so there are no readings then.
	again bool

	// usagePages and maxPages are from the latest event, if known. Only a World that keeps
	// usages has them.
	usagePages int64
	maxPages   uint64
	known      bool
}

func (b *Balance) set(usagePages int64, maxPages uint64) {
	b.usagePages, b.maxPages, b.known = usagePages, maxPages, true
}

// reading is the usage of a counter at a time. The zero value is no reading.
type reading struct {
	bootNanos uint64
	pages     int64
	ok        bool
}

// Pages is the sum of the events: charged plus forced minus uncharged pages.
func (b *Balance) Pages() int64 { return int64(b.ChargedPages + b.ForcedPages - b.UnchargedPages) }

// Readings returns the usage read at the beginning and at the end.
func (b *Balance) Readings() (beginPages, endPages int64, ok bool) {
	return b.begin.pages, b.end.pages, b.begin.ok && b.end.ok
}

// read adds a reading.
func (b *Balance) read(e *event.Event) {
	r := reading{e.BootNanos, e.UsagePages, true}
	switch {
	case b.again:
	case e.Flags&event.Existing == 0:
		b.end = r
	case b.begin.ok:
		b.begin, b.end, b.again = reading{}, reading{}, true
	default:
		b.begin = r
	}
}

// Difference returns the increase between the readings minus Pages.
func (b *Balance) Difference() (pages int64, ok bool) {
	begin, end, ok := b.Readings()
	if !ok {
		return 0, false
	}
	return end - begin - b.Pages(), true
}

// Differs reports whether there are readings, and a Difference other than 0.
func (b *Balance) Differs() bool {
	pages, _ := b.Difference()
	return pages != 0
}

// Balances are the balances of all counters, from a trace with [stream.Info.Net].
type Balances struct {
	counters map[event.CounterID]*Balance
	// lineages are the results of lineage. To find the counters anew for each event
	// would cost more than all else here.
	lineages map[event.CounterID][]*Balance
	// last is the counter of the previous event: the next one is most often the same.
	last        event.CounterID
	lastLineage []*Balance
}

// newBalances returns Balances without counters.
func newBalances() *Balances {
	return &Balances{counters: make(map[event.CounterID]*Balance), lineages: make(map[event.CounterID][]*Balance)}
}

// add adds an event to its counter and to all counters above it. It must be called for
// every event, and for a name before that is added to names.
func (bs *Balances) add(e *event.Event, names *cgroup.Names) {
	switch {
	case e.Type == event.CgroupName:
		if parent, ok := names.Parent(e.Cgroup); !ok || parent.ID != e.ParentID {
			bs.forgetLineages()
		}
	case e.Type == event.Usage:
		bs.counter(event.CounterID{Cgroup: e.Cgroup, Kind: event.Memory}).read(e)
	case e.Type.IsNet() || e.Type == event.Charge && e.Outcome == event.OK:
		lineage := bs.lineage(e.CounterID(), names)
		lineage[0].Own = true
		for _, b := range lineage {
			b.add(e)
		}
	}
}

// lineage returns the balances of a counter and of those above it, the lowest first.
func (bs *Balances) lineage(key event.CounterID, names *cgroup.Names) []*Balance {
	if bs.lastLineage != nil && bs.last == key {
		return bs.lastLineage
	}
	lineage, ok := bs.lineages[key]
	if !ok {
		for id := range names.Lineage(key.Cgroup) {
			lineage = append(lineage, bs.counter(event.CounterID{Cgroup: id, Kind: key.Kind}))
		}
		bs.lineages[key] = lineage
	}
	bs.last, bs.lastLineage = key, lineage
	return lineage
}

func (bs *Balances) forgetLineages() {
	clear(bs.lineages)
	bs.lastLineage = nil
}

func (bs *Balances) counter(key event.CounterID) *Balance {
	b := bs.counters[key]
	if b == nil {
		b = &Balance{Counter: key}
		bs.counters[key] = b
	}
	return b
}

// Of returns the Balance of a counter, or nil.
func (bs *Balances) Of(key event.CounterID) *Balance { return bs.counters[key] }

// Sorted returns the balances of counters with own charges or uncharges, or with
// readings: first those with a difference, then by their growth, and last those that
// count bytes.
func (bs *Balances) Sorted(names *cgroup.Names) []*Balance {
	balances := slices.SortedFunc(maps.Values(bs.counters), func(a, b *Balance) int {
		return cmp.Or(
			trueFirst(a.Differs(), b.Differs()), trueFirst(a.Counter.Kind != event.Dmem, b.Counter.Kind != event.Dmem),
			cmp.Compare(b.Pages(), a.Pages()), cmp.Compare(names.Path(a.Counter.Cgroup), names.Path(b.Counter.Cgroup)), cmp.Compare(a.Counter.Kind, b.Counter.Kind),
			cmp.Compare(a.Counter.Cgroup.Hierarchy, b.Counter.Cgroup.Hierarchy), cmp.Compare(a.Counter.Cgroup.ID, b.Counter.Cgroup.ID))
	})
	return slices.DeleteFunc(balances, func(b *Balance) bool {
		_, _, read := b.Readings()
		return !read && !b.Own
	})
}

func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// add adds an event, unless it happened before the first reading or after the last.
func (b *Balance) add(e *event.Event) {
	if b.end.ok || b.begin.ok && e.BootNanos <= b.begin.bootNanos {
		return
	}
	switch e.Type {
	case event.Charge:
		b.ChargedPages += e.RequestedPages
	case event.ForcedCharge:
		b.ForcedPages += e.RequestedPages
	case event.Uncharge:
		b.UnchargedPages += e.RequestedPages
	}
}
