//go:build linux

package sampler

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// eventSource delivers batches until the channel is closed.
type eventSource struct {
	batches chan []event.Event
	stopped bool
}

func (s *eventSource) Info() stream.Info              { return stream.Info{StartBootNanos: 5} }
func (s *eventSource) Counts() (stream.Counts, error) { return stream.Counts{}, nil }
func (s *eventSource) Stop()                          { s.stopped = true }

func (s *eventSource) Read(batch []event.Event) (int, error) {
	next, ok := <-s.batches
	if !ok {
		return 0, io.EOF
	}
	return copy(batch, next), nil
}

// deliver delivers batches and then the end.
func (s *eventSource) deliver(batches ...[]event.Event) {
	for _, b := range batches {
		s.batches <- b
	}
	close(s.batches)
}

// newClock returns a clock that advances by 1 per call.
func newClock() func() uint64 {
	bootNanos := uint64(1000)
	return func() uint64 { bootNanos++; return bootNanos }
}

// readAll reads a source to its end.
func readAll(t *testing.T, src stream.Source) (got []event.Event) {
	t.Helper()
	for batch := make([]event.Event, 2); ; {
		n, err := src.Read(batch)
		got = append(got, batch[:n]...)
		if err == io.EOF && n == 0 {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// makeCgroup makes a directory that looks like a cgroup of v2.
func makeCgroup(t *testing.T, dir, current string) event.CgroupID {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if current != "" {
		if err := os.WriteFile(filepath.Join(dir, "memory.current"), []byte(current), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	targets, err := cgroup.ParsePath("/").Find([]cgroup.Tree{{Dir: dir}})
	if err != nil {
		t.Fatal(err)
	}
	return targets[0].ID
}

// TestSampler samples a tree where one cgroup has charges, one has none, one is made, one is
// removed, and one cannot be read.
func TestSampler(t *testing.T) {
	root := t.TempDir()
	rootID := makeCgroup(t, root, "")
	old := makeCgroup(t, filepath.Join(root, "old"), "8192\n")
	makeCgroup(t, filepath.Join(root, "idle"), "4096\n")
	removed := makeCgroup(t, filepath.Join(root, "removed"), "12288\n")
	blind := makeCgroup(t, filepath.Join(root, "blind"), "")
	targets, err := cgroup.ParsePath("/").Find([]cgroup.Tree{{Dir: root}})
	if err != nil {
		t.Fatal(err)
	}
	name := func(id event.CgroupID) event.Event {
		e := event.Event{Type: event.CgroupName, Cgroup: id}
		if id != rootID {
			e.ParentID = rootID.ID
		}
		return e
	}
	at := func(nanos uint64, id event.CgroupID) event.Event {
		return event.Event{Type: event.Uncharge, BootNanos: nanos, Cgroup: id}
	}
	src := &eventSource{batches: make(chan []event.Event)}
	clock := newClock()
	begun := clock()
	r, err := New(src, targets, clock)
	if err != nil {
		t.Fatal(err)
	}
	read := clock()
	made := makeCgroup(t, filepath.Join(root, "made"), "20480\n")
	makeCgroup(t, filepath.Join(root, "old"), "16384\n")
	if err := os.RemoveAll(filepath.Join(root, "removed")); err != nil {
		t.Fatal(err)
	}
	later := clock() + 1e12
	go src.deliver(
		[]event.Event{name(old), name(rootID)}, []event.Event{at(read, old), name(removed), name(made), at(read, removed)},
		[]event.Event{name(old), at(read, old), name(blind), at(read, blind), at(later, made), at(later, old)},
	)
	r.Stop()
	r.Stop()
	if !src.stopped {
		t.Error("the source was not stopped")
	}
	got := readAll(t, r)
	usage := func(id event.CgroupID, pages int64, flags event.Flags) event.Event {
		return event.Event{Type: event.Usage, Cgroup: id, UsagePages: pages, Flags: flags}
	}
	want := []event.Event{
		name(old), name(rootID), usage(old, 2, event.Existing), at(read, old),
		name(removed), name(made), usage(removed, 3, event.Existing), usage(made, 0, event.Existing), at(read, removed),
		name(old), at(read, old), name(blind), at(read, blind),
		usage(made, 5, 0), usage(old, 4, 0),
		at(later, made), at(later, old),
	}
	for i := range got {
		e := &got[i]
		if e.Type != event.Usage {
			continue
		}
		switch {
		case e.Cgroup == made && e.UsagePages == 0:
			if e.BootNanos != 5 {
				t.Errorf("%+v is not from the start of the trace", e)
			}
		case e.BootNanos < begun || e.BootNanos > later || (e.BootNanos <= read) != (e.Flags&event.Existing != 0):
			t.Errorf("%+v has the wrong time", e)
		}
		e.BootNanos = 0
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestSamplerAbove checks that cgroups above the targets have no samples.
func TestSamplerAbove(t *testing.T) {
	root := t.TempDir()
	rootID := makeCgroup(t, root, "")
	above := makeCgroup(t, filepath.Join(root, "above"), "8192\n")
	below := makeCgroup(t, filepath.Join(root, "above", "below"), "4096\n")
	targets, err := cgroup.ParsePath("/above/below").Find([]cgroup.Tree{{Dir: root}})
	if err != nil {
		t.Fatal(err)
	}
	src := &eventSource{batches: make(chan []event.Event)}
	r, err := New(src, targets, newClock())
	if err != nil {
		t.Fatal(err)
	}
	want := []event.Event{
		{Type: event.CgroupName, Cgroup: below, ParentID: above.ID}, {Type: event.CgroupName, Cgroup: above, ParentID: rootID.ID},
		{Type: event.CgroupName, Cgroup: rootID}, r.first[below], {Type: event.ReclaimBegin, BootNanos: 1, Cgroup: above},
	}
	go src.deliver(slices.Delete(slices.Clone(want), 3, 4))
	if got := readAll(t, r); !slices.Equal(got, want) || r.first[below].UsagePages != 1 {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestSamplerDrain makes New read a file that blocks until batches have been read from the source.
func TestSamplerDrain(t *testing.T) {
	root := t.TempDir()
	id := makeCgroup(t, filepath.Join(root, "slow"), "")
	file := filepath.Join(root, "slow", "memory.current")
	if err := unix.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	targets, err := cgroup.ParsePath("/slow").Find([]cgroup.Tree{{Dir: root}})
	if err != nil {
		t.Fatal(err)
	}
	src := &eventSource{batches: make(chan []event.Event)}
	named := event.Event{Type: event.CgroupName, Cgroup: id}
	charged := event.Event{Type: event.ForcedCharge, BootNanos: 1, Cgroup: id}
	go func() {
		for range 3 {
			src.batches <- []event.Event{named, charged}
		}
		if err := os.WriteFile(file, []byte("8192\n"), 0); err != nil {
			t.Error(err)
		}
		src.deliver([]event.Event{charged})
	}()
	r, err := New(src, targets, newClock())
	if err != nil {
		t.Fatal(err)
	}
	want := []event.Event{named, r.first[id], charged, named, charged, named, charged, charged}
	if got := readAll(t, r); !slices.Equal(got, want) || r.first[id].UsagePages != 2 {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
