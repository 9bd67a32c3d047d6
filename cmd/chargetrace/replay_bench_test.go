package main

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
	"chargetrace/internal/table"
	"chargetrace/internal/trace"
	"chargetrace/internal/world"
)

// BenchmarkReplay plays a recording of a process that touches memory, to the summary only,
// which is always computed, and also to the table.
func BenchmarkReplay(b *testing.B) {
	const n = 1 << 20
	var file bytes.Buffer
	w, err := trace.NewWriter(&file, stream.Info{PageSize: 4096})
	if err != nil {
		b.Fatal(err)
	}
	e := event.Event{
		Type: event.Charge, PID: 7, TID: 7, Comm: [16]byte{'a'}, Cgroup: event.CgroupID{ID: 3}, Kind: event.Memory, Outcome: event.OK, RequestedPages: 64,
		MaxPages: 100_000, Limiting: event.Level{CgroupID: 3, MaxPages: 100_000},
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		e.BootNanos += 100_000 + r.Uint64N(1<<17)
		e.UsagePages = int64(i % 1400 * 64)
		e.Limiting.UsagePages = e.UsagePages
		if err := w.Write([]event.Event{e}); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(stream.Counts{}); err != nil {
		b.Fatal(err)
	}
	for name, sinks := range map[string]func(*world.World) stream.Sink{
		"nothing": func(w *world.World) stream.Sink { return summary.New(w) },
		"table": func(w *world.World) stream.Sink {
			return stream.Tee(summary.New(w), table.New(io.Discard, w, table.Options{}))
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r, err := trace.NewReader(bytes.NewReader(file.Bytes()), trace.Options{})
				if err != nil {
					b.Fatal(err)
				}
				w := world.New(r.Info())
				counts, err := stream.Copy(w.Feed(sinks(w)), r, stream.Filter{})
				if err != nil || counts.Shown != n {
					b.Fatal(counts, err)
				}
			}
			b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds()/1e6, "Mevents/s")
		})
	}
}
