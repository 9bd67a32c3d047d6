package summary

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
)

// Net is what a counter gained and gave back, and those below it: in pages, or in
// bytes for [event.Dmem]. Where its usage was read, it begins with the first
// reading and ends with the last.
type Net struct {
	Key LimitKey
	// ChargedPages were asked for, ForcedPages charged whatever the limit, and
	// UnchargedPages given back.
	ChargedPages, ForcedPages, UnchargedPages uint64
	// Own says that something was charged or given back by the cgroup itself, and
	// not by those below it alone.
	Own        bool
	begin, end reading
	// again says that it was begun twice: that is more than one trace, with what
	// nobody saw between them.
	again bool
}

// reading is what a counter held at a time; the zero value is none.
type reading struct {
	bootNanos uint64
	pages     int64
	ok        bool
}

// Pages is by how much the counter rose, as its events tell.
func (n *Net) Pages() int64 { return int64(n.ChargedPages + n.ForcedPages - n.UnchargedPages) }

// Readings returns what was read of the usage at the beginning and the end.
func (n *Net) Readings() (beginPages, endPages int64, ok bool) {
	return n.begin.pages, n.end.pages, n.begin.ok && n.end.ok
}

// read takes a reading.
func (n *Net) read(e *event.Event) {
	r := reading{e.BootNanos, e.UsagePages, true}
	switch {
	case n.again:
	case e.Flags&event.Existing == 0:
		n.end = r
	case n.begin.ok:
		n.begin, n.end, n.again = reading{}, reading{}, true
	default:
		n.begin = r
	}
}

// Difference is by how much more the counter rose between the readings than its
// events tell.
func (n *Net) Difference() (pages int64, ok bool) {
	begin, end, ok := n.Readings()
	if !ok {
		return 0, false
	}
	return end - begin - n.Pages(), true
}

// differs reports whether there is such a difference.
func (n *Net) differs() bool {
	pages, _ := n.Difference()
	return pages != 0
}

// Nets are those of all counters, as a trace with [stream.Info.Net] tells them.
type Nets struct {
	counters map[LimitKey]*Net
	// lineages are those that an event of a counter is added to. To find them for
	// each event would cost more than all the rest.
	lineages map[LimitKey][]*Net
	// last is that of the event before, since most events are like that one.
	last        LimitKey
	lastLineage []*Net
}

// NewNets returns Nets of no counter.
func NewNets() *Nets {
	return &Nets{counters: make(map[LimitKey]*Net), lineages: make(map[LimitKey][]*Net)}
}

// Add adds an event to the counter that it is of, and to all that are above it. It
// takes all events, and a name before names has it.
func (ns *Nets) Add(e *event.Event, names *cgroup.Names) {
	switch {
	case e.Type == event.CgroupName:
		if parent, ok := names.Parent(e.Cgroup); !ok || parent.ID != e.ParentID {
			ns.forgetLineages()
		}
	case e.Type == event.Usage:
		ns.of(LimitKey{e.Cgroup, event.Memory}).read(e)
	case e.Type.IsNet() || e.Type == event.Charge && e.Outcome == event.OK:
		lineage := ns.Lineage(LimitKey{e.Cgroup, e.Kind}, names)
		lineage[0].Own = true
		for _, n := range lineage {
			n.add(e)
		}
	}
}

// Lineage returns a counter and those above it, the lowest first.
func (ns *Nets) Lineage(key LimitKey, names *cgroup.Names) []*Net {
	if ns.lastLineage != nil && ns.last == key {
		return ns.lastLineage
	}
	lineage, ok := ns.lineages[key]
	if !ok {
		for id := range names.Lineage(key.Cgroup) {
			lineage = append(lineage, ns.of(LimitKey{id, key.Kind}))
		}
		ns.lineages[key] = lineage
	}
	ns.last, ns.lastLineage = key, lineage
	return lineage
}

func (ns *Nets) forgetLineages() {
	clear(ns.lineages)
	ns.lastLineage = nil
}

func (ns *Nets) of(key LimitKey) *Net {
	n := ns.counters[key]
	if n == nil {
		n = &Net{Key: key}
		ns.counters[key] = n
	}
	return n
}

// Of returns the Net of a counter; nil is none.
func (ns *Nets) Of(key LimitKey) *Net { return ns.counters[key] }

// Forget drops those of some cgroups.
func (ns *Nets) Forget(of func(event.CgroupID) bool) {
	ns.forgetLineages()
	maps.DeleteFunc(ns.counters, func(key LimitKey, _ *Net) bool { return of(key.Cgroup) })
}

// Sorted returns those that something was charged to or given back by, without
// what is below them, and those whose usage was read: first those with a
// difference, then those that grew most, and last those that count bytes.
func (ns *Nets) Sorted(names *cgroup.Names) []*Net {
	nets := slices.SortedFunc(maps.Values(ns.counters), func(a, b *Net) int {
		return cmp.Or(
			trueFirst(a.differs(), b.differs()), trueFirst(a.Key.Kind != event.Dmem, b.Key.Kind != event.Dmem),
			cmp.Compare(b.Pages(), a.Pages()), cmp.Compare(names.Path(a.Key.Cgroup), names.Path(b.Key.Cgroup)), cmp.Compare(a.Key.Kind, b.Key.Kind),
			cmp.Compare(a.Key.Cgroup.Hierarchy, b.Key.Cgroup.Hierarchy), cmp.Compare(a.Key.Cgroup.ID, b.Key.Cgroup.ID))
	})
	return slices.DeleteFunc(nets, func(n *Net) bool {
		_, _, read := n.Readings()
		return !read && !n.Own
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

// NetNotes say how a table of nets is to be read: what its columns are, what is
// missing, and what differs.
func (s *Summary) NetNotes(nets []*Net) (notes []string) {
	var read, differ int
	grown := false
	for _, n := range nets {
		if _, ok := n.Difference(); ok {
			read++
		}
		if n.differs() {
			differ++
		}
		grown = grown || n.Pages() > 0
	}
	if read > 0 {
		notes = append(notes, "At begin and at end is what memory.current was; the difference is by how much more it rose than net, which is charged + forced - given back.")
	}
	if n := s.Counts.Unseen(); n > 0 {
		notes = append(notes, fmt.Sprintf("This may not be whole: %d calls or events were lost or missed.", n))
	}
	if differ > 0 {
		notes = append(notes, fmt.Sprintf("The difference is not 0 in %d of the %d that were read: calls were under way while memory.current was read, or were missed, which before Linux 6.7 the kernel does not always count.", differ, read))
	}
	if grown {
		notes = append(notes, "Of what a cgroup holds, each CPU can have a batch in stock, charged but not in use: 64 pages, before Linux 6.1 32.")
	}
	return notes
}

// add adds what happened between the readings.
func (n *Net) add(e *event.Event) {
	if n.end.ok || n.begin.ok && e.BootNanos <= n.begin.bootNanos {
		return
	}
	switch e.Type {
	case event.Charge:
		n.ChargedPages += e.RequestedPages
	case event.ForcedCharge:
		n.ForcedPages += e.RequestedPages
	case event.Uncharge:
		n.UnchargedPages += e.RequestedPages
	}
}
