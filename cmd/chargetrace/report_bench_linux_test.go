package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// BenchmarkMillionEvents measures the report of a million events.
func BenchmarkMillionEvents(b *testing.B) {
	for _, m := range millions {
		b.Run(m.name, func(b *testing.B) {
			path := recordMillion(b, m.frames)
			cpu, peakMiB := benchmarkPlay(b, path, "-o", filepath.Join(b.TempDir(), "x.html"))
			b.ReportMetric(cpu.Seconds(), "CPU-s/op")
			b.ReportMetric(peakMiB, "peak-MiB")
		})
	}
}

// BenchmarkCgroups measures traces of many cgroups, each with a process of its own that
// charges a hundred times.
func BenchmarkCgroups(b *testing.B) {
	const charges = 100
	for _, n := range []int{100, 1000, 5000, 20_000} {
		path := record(b, stream.Info{PageSize: 4096, StartBootNanos: 1e9}, func(write func(...event.Event)) {
			write(event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}})
			for i := range uint64(n) {
				write(event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 2 + i}, ParentID: 1, Name: fmt.Sprintf("cri-containerd-%064x.scope", i)})
			}
			for at := range uint64(charges) {
				for i := range uint64(n) {
					usage := int64(64 * at)
					write(event.Event{
						Type: event.Charge, BootNanos: 1e9 + at*1e9 + i, PID: uint32(10 + i), TID: uint32(10 + i), Comm: event.Comm{'p'}, Cgroup: event.CgroupID{ID: 2 + i},
						Kind: event.Memory, Outcome: event.OK, RequestedPages: 64, UsagePages: usage, MaxPages: 1 << 30,
						Limiting: event.Level{CgroupID: 2 + i, UsagePages: usage, MaxPages: 1 << 30}, High: event.Level{MaxPages: 1 << 62},
					})
				}
			}
		})
		for _, format := range []string{"table", "html"} {
			b.Run(fmt.Sprintf("%s-%d", format, n), func(b *testing.B) {
				cpu, peakMiB := benchmarkPlay(b, path, "-format", format, "-o", filepath.Join(b.TempDir(), "x"))
				b.ReportMetric(float64(cpu.Nanoseconds())/float64(n*charges), "ns/charge")
				b.ReportMetric(peakMiB, "peak-MiB")
			})
		}
	}
}

// benchmarkPlay plays a recording, and returns the CPU time and the resident memory that it
// takes.
func benchmarkPlay(b *testing.B, recording string, args ...string) (cpu time.Duration, peakMiB float64) {
	b.Helper()
	for b.Loop() {
		cmd := exec.Command("chargetrace", append(args, "-r", recording)...) // installed by testscript.Main
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v\n%.2000s", err, out)
		}
		cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		peakMiB = max(peakMiB, float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)/1024)
	}
	b.ReportMetric(0, "ns/op")
	return cpu / time.Duration(b.N), peakMiB
}
