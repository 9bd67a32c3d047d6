package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"chargetrace/internal/event"
)

// writeFiles makes a directory with files.
func writeFiles(t *testing.T, dir string, files map[string]string) (id uint64) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	id, err := inodeOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestHeld reads a directory that looks like a cgroup with two children and this process.
func TestHeld(t *testing.T) {
	root := t.TempDir()
	page := unix.Getpagesize()
	pages := func(n int) string { return fmt.Sprintf("%d\n", n*page) }
	pod := writeFiles(t, filepath.Join(root, "pod"), map[string]string{
		"memory.current": pages(90), "memory.stat": "anon 4096\nfile 0\nshmem 8192\nslab 1\n", "cgroup.procs": "0\n4294967295\n",
	})
	small := writeFiles(t, filepath.Join(root, "pod", "small"), map[string]string{"memory.current": pages(1)})
	big := writeFiles(t, filepath.Join(root, "pod", "big"), map[string]string{"memory.current": pages(60), "cgroup.procs": fmt.Sprintln(os.Getpid())})
	writeFiles(t, filepath.Join(root, "pod", "empty"), map[string]string{"memory.current": pages(0)})
	writeFiles(t, filepath.Join(root, "pod", "unreadable"), nil)
	clock := uint64(100)
	now := func() uint64 { clock++; return clock }
	id := event.CgroupID{ID: pod}
	trees := []Tree{{Hierarchy: 5, Dir: "/nowhere"}, {Dir: root}}

	got := slices.Collect(Held(trees, id, "/pod", 77, 1, now))
	var tell []string
	for _, e := range got {
		if e.Type != event.CgroupName && (e.OOMNanos != 77 || e.BootNanos <= 100) {
			t.Errorf("%+v", e)
		}
		switch e.Type {
		case event.MemoryStat:
			tell = append(tell, fmt.Sprintf("%d: %d pages, %q", e.Cgroup.ID, e.UsagePages, e.Stat))
		case event.CgroupName:
			tell = append(tell, fmt.Sprintf("%d is %q in %d", e.Cgroup.ID, e.Name, e.ParentID))
		case event.Held:
			v := &e.Victim
			tell = append(tell, fmt.Sprintf("%d: process %d in %d, %v, %v", e.Cgroup.ID, v.PID, v.CgroupID, v.AnonPages > 0, v.PageTableBytes > 0))
		}
	}
	want := []string{
		fmt.Sprintf("%d: 90 pages, %q", pod, "anon 4096\nshmem 8192\nslab 1\n"),
		fmt.Sprintf("%d is %q in %d", big, "big", pod), fmt.Sprintf("%d: 60 pages, %q", big, ""),
		fmt.Sprintf("%d is %q in %d", small, "small", pod), fmt.Sprintf("%d: 1 pages, %q", small, ""),
		fmt.Sprintf("%d: process %d in %d, true, true", pod, os.Getpid(), big),
	}
	if !slices.Equal(tell, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(tell, "\n"), strings.Join(want, "\n"))
	}

	for what, events := range map[string][]event.Event{
		"a root":            slices.Collect(Held(trees, id, "/", 77, 0, now)),
		"gone":              slices.Collect(Held(trees, id, "/other", 77, 0, now)),
		"another":           slices.Collect(Held(trees, event.CgroupID{ID: pod + 1}, "/pod", 77, 1, now)),
		"another hierarchy": slices.Collect(Held(trees, event.CgroupID{ID: pod, Hierarchy: 4}, "/pod", 77, 1, now)),
	} {
		if len(events) != 0 {
			t.Errorf("%s: %+v", what, events)
		}
	}
}

// TestHeldLong reads a memory.stat that is longer than an event can have.
func TestHeldLong(t *testing.T) {
	root := t.TempDir()
	var long strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&long, "line_%d 123456789\n", i)
	}
	id := writeFiles(t, filepath.Join(root, "a"), map[string]string{"memory.current": "0\n", "memory.stat": long.String()})
	got := slices.Collect(Held([]Tree{{Dir: root}}, event.CgroupID{ID: id}, "/a", 0, 0, func() uint64 { return 1 }))
	if len(got) != 1 || len(got[0].Stat) > event.MaxStat || len(got[0].Stat) < event.MaxStat-128 || !strings.HasSuffix(got[0].Stat, "\n") {
		t.Errorf("%d events, %d bytes", len(got), len(got[0].Stat))
	}
}

func TestStatusBytes(t *testing.T) {
	const status = "Name:\tx\nVmPTE:\t      48 kB\nRssAnon:\t   12 kB\nRssFile:\nHuge:\t99999999999999999999 kB\nMore:\t18014398509481984 kB\n"
	for name, want := range map[string]uint64{"RssAnon": 12 << 10, "VmPTE": 48 << 10, "Anon": 0, "RssFile": 0, "Huge": 0, "More": 0, "": 0} {
		if got := statusBytes([]byte(status), name); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}
