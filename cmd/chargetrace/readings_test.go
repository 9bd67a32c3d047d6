//go:build !guest

package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"chargetrace/internal/capture"
	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// eventSource delivers its batches.
type eventSource struct {
	batches [][]event.Event
	stopped bool
}

func (s *eventSource) Header() stream.Header { return stream.Header{StartBootNanos: 5} }
func (s *eventSource) Stop()                 { s.stopped = true }

func (s *eventSource) Read(batch []event.Event) (int, error) {
	if len(s.batches) == 0 {
		return 0, io.EOF
	}
	n := copy(batch, s.batches[0])
	s.batches = s.batches[1:]
	return n, nil
}

// makeCgroup makes what looks like a cgroup of v2.
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

// TestReadings reads a tree in which a cgroup charges, another does not, a third is
// made, and a fourth removed.
func TestReadings(t *testing.T) {
	root := t.TempDir()
	rootID := makeCgroup(t, root, "")
	old := makeCgroup(t, filepath.Join(root, "old"), "8192\n")
	makeCgroup(t, filepath.Join(root, "idle"), "4096\n")
	removed := makeCgroup(t, filepath.Join(root, "removed"), "12288\n")
	targets, err := cgroup.ParsePath("/").Find([]cgroup.Tree{{Dir: root}})
	if err != nil {
		t.Fatal(err)
	}
	name := func(id event.CgroupID) event.Event { return event.Event{Type: event.CgroupName, Cgroup: id} }
	at := func(nanos uint64, id event.CgroupID) event.Event {
		return event.Event{Type: event.Uncharge, BootNanos: nanos, Cgroup: id}
	}
	src := &eventSource{}
	begun := capture.BootNanos()
	r, err := newReadings(src, targets)
	if err != nil {
		t.Fatal(err)
	}
	read := capture.BootNanos()
	made := makeCgroup(t, filepath.Join(root, "made"), "20480\n")
	makeCgroup(t, filepath.Join(root, "old"), "16384\n")
	if err := os.RemoveAll(filepath.Join(root, "removed")); err != nil {
		t.Fatal(err)
	}
	later := capture.BootNanos() + 1e12
	src.batches = [][]event.Event{
		{name(old), name(rootID)}, {at(read, old), name(removed), name(made), at(read, removed)},
		{name(old), at(read, old), at(later, made), at(later, old)},
	}
	r.Stop()
	r.Stop()
	if !src.stopped {
		t.Error("the source was not stopped")
	}
	var got []event.Event
	for batch := make([]event.Event, 2); ; {
		n, err := r.Read(batch)
		got = append(got, batch[:n]...)
		if err == io.EOF && n == 0 {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	usage := func(id event.CgroupID, pages int64, flags event.Flags) event.Event {
		return event.Event{Type: event.Usage, Cgroup: id, UsagePages: pages, Flags: flags}
	}
	want := []event.Event{
		name(old), name(rootID), usage(old, 2, event.Existing), at(read, old),
		name(removed), name(made), usage(removed, 3, event.Existing), at(read, removed),
		name(old), at(read, old),
		usage(made, 0, event.Existing), usage(made, 5, 0), usage(old, 4, 0),
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
				t.Errorf("%+v is not of the trace's start", e)
			}
		case e.BootNanos < begun || e.BootNanos > later || (e.BootNanos <= read) != (e.Flags&event.Existing != 0):
			t.Errorf("%+v was not read when it says", e)
		}
		e.BootNanos = 0
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
