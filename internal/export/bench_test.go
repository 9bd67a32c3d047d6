package export

import (
	"fmt"
	"io"
	"testing"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// chargesOfContainers returns charges to the cgroups of containers, and the names of the
// cgroups.
func chargesOfContainers() (names, charges []event.Event) {
	names = append(names, event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}})
	for i := range uint64(4) {
		cgroup := event.CgroupID{ID: i + 2}
		names = append(names, event.Event{Type: event.CgroupName, Cgroup: cgroup, ParentID: 1, Name: fmt.Sprintf("docker-%d%s.scope", i, id[1:])})
		for j := range uint64(32) {
			charges = append(charges, event.Event{
				Type: event.Charge, BootNanos: info.StartBootNanos + j*1_000_000, PID: 4711, TID: 4712, Comm: comm("java"), Cgroup: cgroup,
				Kind: event.Memory, Outcome: event.OK, RequestedPages: 64, UsagePages: int64(64 * j), MaxPages: unlimited,
				Limiting: event.Level{CgroupID: cgroup.ID, UsagePages: int64(64 * j), MaxPages: 1 << 20}, High: event.Level{MaxPages: unlimited},
			})
		}
	}
	return names, charges
}

func benchmark(b *testing.B, sink stream.Sink) {
	names, charges := chargesOfContainers()
	for _, batch := range [][]event.Event{names, charges} {
		if err := sink.Write(batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		sink.Write(charges)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(charges)), "ns/event")
}

func BenchmarkCSV(b *testing.B)      { benchmark(b, fed(NewCSV, io.Discard, info)) }
func BenchmarkJSONL(b *testing.B)    { benchmark(b, fed(NewJSONL, io.Discard, info)) }
func BenchmarkPerfetto(b *testing.B) { benchmark(b, fed(NewPerfetto, io.Discard, info)) }
