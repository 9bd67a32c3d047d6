package world

import (
	"slices"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
)

// Usage is the usage of a page counter before and after an event: in pages, or in bytes
// for [event.Dmem].
type Usage struct {
	Counter                 event.CounterID
	BeforePages, AfterPages int64
	// MaxPages is the limit that was seen last; see Limited.
	MaxPages uint64
	// Computed means that the event has no usage of the counter, only of one below it.
	// Changes outside the trace are missing until the next event that has the usage.
	Computed bool
}

// Limited reports whether a limit of the counter was seen last.
func (u *Usage) Limited() bool { return (&event.Level{MaxPages: u.MaxPages}).Limited() }

// usages are the usages of the events of a batch.
type usages struct {
	kept   bool
	all    []Usage
	begins []int // the index of each event's first one in all
}

func (us *usages) reset() { us.all, us.begins = us.all[:0], us.begins[:0] }

// KeepUsages enables Usages for the batches that follow.
func (w *World) KeepUsages() { w.usages.kept = true }

// Usages returns what an event of the current batch, by its index, says of the usage of
// counters: its own first, then its limiting levels, then computed ones of other levels
// above, which only a trace with Balances has. It is valid until the next batch.
func (w *World) Usages(index int) []Usage {
	us := &w.usages
	if index+1 < len(us.begins) {
		return us.all[us.begins[index]:us.begins[index+1]]
	}
	return us.all[us.begins[index]:]
}

// unknownMax is the MaxPages of a counter whose limit no event had.
const unknownMax = ^uint64(0)

// SetUsage sets a usage that was read elsewhere. Later ones are computed from it.
func (w *World) SetUsage(counter event.CounterID, pages int64, maxPages uint64) {
	if w.Balances != nil {
		w.Balances.counter(counter).set(pages, maxPages)
	}
}

// addUsages adds the usages of the next event of the batch.
func (w *World) addUsages(e *event.Event) {
	us := &w.usages
	begin := len(us.all)
	us.begins = append(us.begins, begin)
	var moved int64
	add := func(cgroup event.CgroupID, kind event.Kind, before int64, maxPages uint64) {
		us.all = append(us.all, Usage{event.CounterID{Cgroup: cgroup, Kind: kind}, before, before + moved, maxPages, false})
	}
	switch e.Type {
	case event.Usage:
		add(e.Cgroup, event.Memory, e.UsagePages, unknownMax)
	case event.Uncharge, event.ForcedCharge:
		moved = e.UsageAfterPages() - e.UsagePages
		add(e.Cgroup, e.Kind, e.UsagePages, unknownMax)
	case event.Charge:
		moved = e.UsageAfterPages() - e.UsagePages
		add(e.Cgroup, e.Kind, e.UsagePages, e.MaxPages)
		l, h := &e.Limiting, &e.High
		if l.Limited() && l.CgroupID != e.Cgroup.ID {
			add(e.InCgroup(l.CgroupID), e.Kind, l.UsagePages, l.MaxPages)
		}
		if h.Limited() && h.CgroupID != e.Cgroup.ID && h.CgroupID != l.CgroupID {
			add(e.InCgroup(h.CgroupID), e.Kind, h.UsagePages, unknownMax)
		}
	}
	if w.Balances != nil {
		us.all = w.Balances.follow(us.all, begin, moved, &w.Names)
	}
}

// follow keeps the usages of an event, from all[begin] on, completes their limits, and
// appends those of the other levels above if the event moved them.
func (bs *Balances) follow(all []Usage, begin int, moved int64, names *cgroup.Names) []Usage {
	if len(all) == begin {
		return all
	}
	told := all[begin:]
	for i := range told {
		u := &told[i]
		b := bs.counter(u.Counter)
		if u.MaxPages == unknownMax && b.known {
			u.MaxPages = b.maxPages
		}
		b.set(u.AfterPages, u.MaxPages)
	}
	if moved == 0 {
		return all
	}
	for _, b := range bs.lineage(told[0].Counter, names)[1:] {
		if b.known && !slices.ContainsFunc(told, func(u Usage) bool { return u.Counter == b.Counter }) {
			all = append(all, Usage{b.Counter, b.usagePages, b.usagePages + moved, b.maxPages, true})
			b.usagePages += moved
		}
	}
	return all
}
