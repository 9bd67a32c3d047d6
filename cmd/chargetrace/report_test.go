//go:build !guest

package main

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"chargetrace/internal/event"
	"chargetrace/internal/trace"
)

// record makes a recording of some events.
func record(t testing.TB, meta trace.Meta, write func(func(...event.Event))) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.ctrace")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var charges uint64
	w, err := trace.NewWriter(f, meta, func() (trace.Totals, error) { return trace.Totals{Seen: charges}, nil })
	if err != nil {
		t.Fatal(err)
	}
	write(func(events ...event.Event) {
		for _, e := range events {
			if e.Type == event.Charge {
				charges++
			}
		}
		if err := w.Write(events); err != nil {
			t.Fatal(err)
		}
	})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// crowd writes n charges of many processes to many cgroups below a limit that all
// of them share, with failures, reclaim and kills.
func crowd(n int, write func(...event.Event)) {
	const cgroups, processes, unlimited = 60, 300, 1 << 62
	name := func(id, parent uint64, name string) event.Event {
		return event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: id}, ParentID: parent, Name: name}
	}
	write(name(1, 0, ""), name(2, 1, "kubepods.slice"))
	for i := range uint64(cgroups) {
		write(name(10+i, 2, "pod"+string(rune('A'+i%26))+string(rune('a'+i/26))))
	}
	r := rand.New(rand.NewPCG(3, 4))
	e := event.Event{Type: event.Charge, BootNanos: 1e9, Kind: event.Memory, High: event.Level{MaxPages: unlimited}}
	const limit = 500_000
	total := int64(100_000)
	var held [cgroups]int64
	for i := range n {
		e.BootNanos += 20_000 + r.Uint64N(100_000)
		e.PID = 100 + uint32(min(r.ExpFloat64()/6, 1)*processes)
		e.TID = e.PID
		e.Comm = [16]byte{'w', 'o', 'r', 'k', 'e', 'r', '-', byte('a' + e.PID%20)}
		c := uint64(e.PID % cgroups)
		e.Cgroup.ID = 10 + c
		e.RequestedPages = 64
		e.UsagePages, e.MaxPages = held[c], 60_000
		e.Limiting = event.Level{CgroupID: 2, UsagePages: total, MaxPages: limit}
		e.Outcome, e.FailedAt = event.OK, 0
		if total+64 > limit {
			e.Outcome, e.FailedAt = event.Failed, 2
		}
		write(e)
		if e.Outcome == event.OK {
			held[c] += 64
			total += 64
		} else if r.IntN(50) == 0 {
			free := e
			free.Type, free.Cgroup.ID, free.DurationNanos, free.FreedPages = event.ReclaimEnd, 2, 15_000, uint64(held[c])
			write(free)
			total -= held[c]
			held[c] = 0
		} else if i%(n/6) == 0 {
			dead := e
			dead.Type, dead.Cgroup.ID = event.OOMKill, 2
			dead.Victim = event.Victim{PID: e.PID, Comm: e.Comm, AnonPages: uint64(held[c])}
			write(dead)
		}
		// Memory is given back unseen.
		if give := held[c] / 16; r.IntN(30) == 0 {
			held[c] -= give
			total -= give
		}
	}
}

// TestMillionEvents holds that a report of a million events takes less than 3
// seconds, of the processor's time so that what else runs does not matter, and
// 200 MiB of memory, and that it is no larger than 2 MiB.
func TestMillionEvents(t *testing.T) {
	path := record(t, trace.Meta{PageSize: 4096, StartBootNanos: 1e9}, func(write func(...event.Event)) { crowd(1e6, write) })
	out := filepath.Join(t.TempDir(), "x.html")
	cmd := exec.Command("chargetrace", "-r", path, "-o", out) // that of testscript.Main
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	took := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	info, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	kib := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
	t.Logf("%v, %d KiB of memory, %d bytes", took, kib, info.Size())
	if took.Seconds() > 3 || kib > 200<<10 || info.Size() > 2<<20 {
		t.Errorf("%v, %d KiB of memory, %d bytes", took, kib, info.Size())
	}
	if dir := os.Getenv("KEEP_REPORTS"); dir != "" {
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "million.html"), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
