package world

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

func name(id, parent uint64, name string) event.Event {
	return event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: id}, ParentID: parent, Name: name}
}

func stack(number uint32, frames string) event.Event {
	return event.Event{Type: event.Stack, StackNumber: number, Frames: frames}
}

func of(typ event.Type, id, pages uint64) event.Event {
	return event.Event{Type: typ, Cgroup: event.CgroupID{ID: id}, Kind: event.Memory, RequestedPages: pages, Outcome: event.OK, KernelStack: 1}
}

// lines is a Sink that notes each charge with what the World says of it, and the batches.
type lines struct {
	world *World
	got   []string
}

func (l *lines) Write(batch []event.Event) error {
	for i := range batch {
		if e := &batch[i]; e.Type == event.Charge {
			l.got = append(l.got, l.world.Names.Path(e.Cgroup)+" "+l.world.Stacks.Kernel(e).Functions())
		}
	}
	l.got = append(l.got, "-")
	return nil
}

func (l *lines) Close(stream.Counts) error { return nil }

// TestFeed checks that sinks see each event with the names and stacks of its time, in as few
// batches as that takes.
func TestFeed(t *testing.T) {
	w := New(stream.Info{})
	l := &lines{world: w}
	dst := w.Feed(l)
	charge := of(event.Charge, 2, 1)
	for _, batch := range [][]event.Event{
		{name(1, 0, ""), name(2, 1, "a"), stack(1, "f+0x1"), charge, charge, name(2, 1, "a")},
		{charge, name(2, 1, "b"), charge, stack(1, "g+0x1"), charge},
		{name(2, 1, "c"), charge},
	} {
		if err := dst.Write(batch); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"/a f", "/a f", "-", "/a f", "-", "/b f", "-", "/b g", "-", "/c g", "-"}
	if !slices.Equal(l.got, want) {
		t.Errorf("%q, want %q", l.got, want)
	}
}

// usageLines is a Sink that notes the usages of each event.
type usageLines struct {
	world *World
	got   []string
}

func (l *usageLines) Write(batch []event.Event) error {
	for i := range batch {
		var line []string
		for _, u := range l.world.Usages(i) {
			x := fmt.Sprintf("%d:%d>%d", u.Counter.Cgroup.ID, u.BeforePages, u.AfterPages)
			if u.Limited() {
				x += fmt.Sprintf("/%d", u.MaxPages)
			}
			if u.Computed {
				x += "?"
			}
			line = append(line, x)
		}
		l.got = append(l.got, strings.Join(line, " "))
	}
	return nil
}

func (l *usageLines) Close(stream.Counts) error { return nil }

// TestUsages checks the usages that events have, and those computed for the levels above.
func TestUsages(t *testing.T) {
	charge := of(event.Charge, 3, 8)
	charge.UsagePages, charge.MaxPages = 20, 40
	charge.Limiting = event.Level{CgroupID: 2, UsagePages: 50, MaxPages: 60}
	charge.High = event.Level{CgroupID: 1, UsagePages: 70, MaxPages: 75}
	failed := charge
	failed.Outcome, failed.UsagePages = event.Failed, 28
	failed.Limiting.UsagePages, failed.High.UsagePages = 58, 78
	uncharge := of(event.Uncharge, 3, 4)
	uncharge.UsagePages = 28
	forced := of(event.ForcedCharge, 2, 1)
	forced.UsagePages = 54
	other := of(event.Charge, 4, 2)
	other.MaxPages, other.Limiting.MaxPages, other.High.MaxPages = unknownMax, unknownMax, unknownMax
	usage := event.Event{Type: event.Usage, Cgroup: event.CgroupID{ID: 1}, Kind: event.Swap, UsagePages: 30}
	events := []event.Event{name(1, 0, ""), name(2, 1, "a"), name(3, 2, "b"), name(4, 2, "c"), charge, failed, uncharge, forced, other, usage, uncharge}
	for i := range events {
		if e := &events[i]; e.Type != event.Charge {
			e.High.MaxPages, e.Limiting.MaxPages = 0, 0 // undefined
		}
	}
	for net, want := range map[bool][]string{
		false: {"", "", "", "", "3:20>28/40 2:50>58/60 1:70>78", "3:28>28/40 2:58>58/60 1:78>78", "3:28>24", "2:54>55", "4:0>2", "1:30>30", "3:28>24"},
		true: {"", "", "", "", "3:20>28/40 2:50>58/60 1:70>78", "3:28>28/40 2:58>58/60 1:78>78",
			"3:28>24/40 2:58>54/60? 1:78>74?", "2:54>55/60 1:74>75?", "4:0>2 2:55>57/60? 1:75>77?", "1:30>30", "3:28>24/40 2:57>53/60? 1:30>26?"},
	} {
		w := New(stream.Info{Net: net})
		w.KeepUsages()
		l := &usageLines{world: w}
		if err := w.Feed(l).Write(events); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(l.got, want) {
			t.Errorf("net %t:\n%q, want\n%q", net, l.got, want)
		}
	}
}

// TestSetUsage computes from a usage that was read elsewhere.
func TestSetUsage(t *testing.T) {
	w := New(stream.Info{Net: true})
	w.KeepUsages()
	w.add([]event.Event{name(1, 0, ""), name(2, 1, "a")})
	w.SetUsage(event.CounterID{Cgroup: event.CgroupID{ID: 1}, Kind: event.Memory}, 90, 100)
	w.add([]event.Event{of(event.Uncharge, 2, 4)})
	us := w.Usages(0)
	if want := (Usage{event.CounterID{Cgroup: event.CgroupID{ID: 1}, Kind: event.Memory}, 90, 86, 100, true}); len(us) != 2 || us[1] != want {
		t.Errorf("%v", us)
	}
}

// TestPanic checks that the lock is free after a sink has panicked: leaving the screen needs
// it.
func TestPanic(t *testing.T) {
	w := New(stream.Info{})
	func() {
		defer func() { recover() }()
		w.Feed(nil).Write([]event.Event{of(event.Charge, 1, 1)})
	}()
	if !w.TryLock() {
		t.Error("the World is still locked")
	}
}

// BenchmarkBalances adds events of two cgroups in turn, six levels deep.
func BenchmarkBalances(b *testing.B) {
	w := New(stream.Info{Net: true})
	for id := range uint64(6) {
		w.add([]event.Event{name(id+1, id, "x")})
	}
	w.add([]event.Event{name(7, 5, "y")})
	events := []event.Event{of(event.Charge, 6, 64), of(event.Uncharge, 7, 64)}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		w.add(events[i%2 : i%2+1])
	}
}
