//go:build linux

package sampler

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
)

// TestHeldSampler lets the OOM killer run twice in a moment in one cgroup, later again, and in
// another that is gone. Charges fail in two others; one is full at the end.
func TestHeldSampler(t *testing.T) {
	root := t.TempDir()
	rootID := makeCgroup(t, root, "")
	a := makeCgroup(t, filepath.Join(root, "a"), "8192\n")
	child := makeCgroup(t, filepath.Join(root, "a", "child"), "4096\n")
	full := makeCgroup(t, filepath.Join(root, "full"), "12288\n")
	if err := os.WriteFile(filepath.Join(root, "a", "memory.stat"), []byte("anon 8192\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	free := makeCgroup(t, filepath.Join(root, "free"), "12288\n")
	for name, limit := range map[string]string{"full": "16384\n", "free": "1048576\n"} {
		if err := os.WriteFile(filepath.Join(root, name, "memory.max"), []byte(limit), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	name := func(id event.CgroupID, name string) event.Event {
		return event.Event{Type: event.CgroupName, Cgroup: id, ParentID: rootID.ID, Name: name}
	}
	gone := event.CgroupID{ID: 1 << 40}
	kill := func(id event.CgroupID, oomNanos uint64) event.Event {
		return event.Event{Type: event.OOMKill, Cgroup: id, BootNanos: oomNanos + 1, OOMNanos: oomNanos}
	}
	failed := event.Event{Type: event.Charge, Kind: event.Memory, Outcome: event.Failed, Cgroup: a, FailedAt: full.ID}
	failedToo := failed
	failedToo.FailedAt = free.ID
	clock := uint64(1000)
	now := func() uint64 { clock++; return clock }
	src := &eventSource{batches: make(chan []event.Event, 3)}
	s := NewHeld(src, []cgroup.Tree{{Dir: root}}, now)
	root2 := event.Event{Type: event.CgroupName, Cgroup: rootID}
	src.batches <- []event.Event{root2, name(a, "a"), name(gone, "gone"), name(full, "full"), name(free, "free"), kill(a, 10), kill(a, 20), kill(gone, 30), kill(event.CgroupID{}, 40), failed, failedToo}
	var got []string
	batch := make([]event.Event, 16)
	read := func() bool {
		n, err := s.Read(batch)
		for _, e := range batch[:n] {
			switch e.Type {
			case event.MemoryStat:
				got = append(got, fmt.Sprintf("%d: %d pages %q of %d", e.Cgroup.ID, e.UsagePages, e.Stat, e.OOMNanos))
			case event.CgroupName:
				got = append(got, "name "+e.Name)
			default:
				got = append(got, fmt.Sprintf("event of %d", e.OOMNanos))
			}
		}
		return err == nil
	}
	for len(got) < 14 && read() {
	}
	clock += 2 * minInterval
	src.batches <- []event.Event{kill(a, 50)}
	close(src.batches)
	for read() {
	}
	want := []string{
		"name ", "name a", "name gone", "name full", "name free", "event of 10",
		fmt.Sprintf(`%d: 2 pages "anon 8192\n" of 10`, a.ID), "name child", fmt.Sprintf(`%d: 1 pages "" of 10`, child.ID),
		"event of 20", "event of 30", "event of 40", "event of 0", "event of 0",
		"event of 50", fmt.Sprintf(`%d: 2 pages "anon 8192\n" of 50`, a.ID), fmt.Sprintf(`%d: 1 pages "" of 50`, child.ID),
		fmt.Sprintf(`%d: 3 pages "" of 0`, full.ID),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}
