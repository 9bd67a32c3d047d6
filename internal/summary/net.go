package summary

import (
	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
)

// Net is what a counter gained and gave back, and those below it: in pages, or in
// bytes for [event.Dmem]. Where its usage was read, it begins with the first
// reading and ends with the last.
type Net struct {
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

// Nets are those of all counters, as a trace with [stream.Header.Net] tells them.
type Nets map[LimitKey]*Net

// Add adds an event to the counter that it is of, and to all that are above it.
func (ns Nets) Add(e *event.Event, names *cgroup.Names) {
	switch {
	case e.Type == event.Usage:
		ns.of(LimitKey{e.Cgroup, event.Memory}).read(e)
	case e.Type.IsNet() || e.Type == event.Charge && e.Outcome == event.OK:
		for id := range names.Lineage(e.Cgroup) {
			ns.of(LimitKey{id, e.Kind}).add(e, id == e.Cgroup)
		}
	}
}

func (ns Nets) of(key LimitKey) *Net {
	n := ns[key]
	if n == nil {
		n = new(Net)
		ns[key] = n
	}
	return n
}

// add adds what happened between the readings.
func (n *Net) add(e *event.Event, own bool) {
	n.Own = n.Own || own
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
