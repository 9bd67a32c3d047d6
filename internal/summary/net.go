package summary

import (
	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
)

// Net is what a counter gained and gave back, and those below it: in pages, or in
// bytes for [event.Dmem]. Where its usage was read, it begins with the first
// reading and ends with the last.
type Net struct {
	ChargedPages, ForcedPages, UnchargedPages uint64
	// Own says that something was charged or given back by the cgroup itself, and
	// not by those below it alone.
	Own bool
	// begin and end are the readings; their Type is 0 where there is none.
	begin, end event.Event
	// again says that it was begun twice: that is more than one trace, with what
	// nobody saw between them.
	again bool
}

// Pages is by how much the counter rose, as its events tell.
func (n *Net) Pages() int64 { return int64(n.ChargedPages + n.ForcedPages - n.UnchargedPages) }

// Readings returns what was read of the usage at the beginning and the end.
func (n *Net) Readings() (beginPages, endPages int64, ok bool) {
	return n.begin.UsagePages, n.end.UsagePages, n.begin.Type != 0 && n.end.Type != 0
}

func (n *Net) read(e *event.Event) {
	switch {
	case n.again:
	case e.Flags&event.Existing == 0:
		n.end = *e
	case n.begin.Type != 0:
		n.begin, n.end, n.again = event.Event{}, event.Event{}, true
	default:
		n.begin = *e
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
	if n.end.Type != 0 || n.begin.Type != 0 && e.BootNanos <= n.begin.BootNanos {
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
