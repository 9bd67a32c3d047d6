// Package world keeps what a trace has told about the machine so far: its clock, the names of
// cgroups, the stacks of charges, the usage of levels, and the balance of each counter. It is built
// once, from the events that pass the filter, for all sinks that need it. It must not know a
// sink.
package world

import (
	"sync"

	"chargetrace/internal/cause"
	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// World is the state of a trace. Its memory grows with the number of cgroups and stacks.
//
// Sinks read it in Write, where it includes the batch, and after that. The mutex is held
// during Write; other goroutines must lock it.
type World struct {
	Info   stream.Info
	Clock  *event.Clock
	Names  cgroup.Names
	Stacks cause.Stacks
	// Balances is nil for a trace without [stream.Info.Net].
	Balances *Balances

	usages usages

	sync.Mutex
}

// New returns the World of a trace before its first event.
func New(info stream.Info) *World {
	w := &World{Info: info, Clock: event.NewClock(info.BootWallNanos)}
	if info.Net {
		w.Balances = newBalances()
	}
	return w
}

// Feed returns a Sink that adds events to the World and passes them on to dst. It cuts a
// batch before a name or a stack that replaces another, so that dst sees each event with
// the names of its time.
func (w *World) Feed(dst stream.Sink) stream.Sink { return &feed{dst, w} }

type feed struct {
	stream.Sink
	world *World
}

func (f *feed) Write(batch []event.Event) error {
	f.world.Lock()
	defer f.world.Unlock() // also if a sink panics
	for len(batch) > 0 {
		n := f.world.add(batch)
		if err := f.Sink.Write(batch[:n]); err != nil {
			return err
		}
		batch = batch[n:]
	}
	return nil
}

// add adds events up to, but not including, one that replaces an earlier name or stack. It
// returns how many it added: at least one.
func (w *World) add(batch []event.Event) int {
	w.usages.reset()
	onlyNames := w.Balances == nil && !w.usages.kept
	for i := range batch {
		e := &batch[i]
		if onlyNames && !e.Type.IsName() {
			if e.Type == event.ClockStep {
				w.Clock.Add(e)
			}
			continue
		}
		if i > 0 && (e.Type == event.CgroupName && w.Names.Replaces(e) || e.Type == event.Stack && w.Stacks.Replaces(e)) {
			return i
		}
		if w.Balances != nil {
			w.Balances.add(e, &w.Names)
		}
		if w.usages.kept {
			w.addUsages(e)
		}
		switch e.Type {
		case event.CgroupName:
			w.Names.Add(e)
		case event.Stack:
			w.Stacks.Add(e)
		case event.ClockStep:
			w.Clock.Add(e)
		}
	}
	return len(batch)
}
