package world

import (
	"slices"
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

// TestMoved checks which levels an event moves without having their usage.
func TestMoved(t *testing.T) {
	limited := of(event.Charge, 3, 8)
	limited.Limiting = event.Level{CgroupID: 2, UsagePages: 1, MaxPages: 9}
	for _, tc := range []struct {
		net  bool
		e    event.Event
		want []uint64
	}{
		{false, of(event.Uncharge, 3, 8), nil},
		{true, of(event.Uncharge, 3, 8), []uint64{2, 1}},
		{true, limited, []uint64{1}},
		{true, of(event.ForcedCharge, 1, 8), nil},
	} {
		w := New(stream.Info{Net: tc.net})
		w.Feed(stream.Tee()).Write([]event.Event{name(1, 0, ""), name(2, 1, "a"), name(3, 2, "b")})
		var got []uint64
		for id := range w.Moved(&tc.e) {
			got = append(got, id.Cgroup.ID)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("net %t, %v: %d, want %d", tc.net, tc.e.Type, got, tc.want)
		}
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
