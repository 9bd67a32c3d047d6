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
	"chargetrace/internal/text"
	"chargetrace/internal/trace"
	"chargetrace/internal/verdict"
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
	for name, sinks := range map[string]func(*verdict.Verdict) stream.Sink{
		"nothing": func(v *verdict.Verdict) stream.Sink { return summary.New(v) },
		"table": func(v *verdict.Verdict) stream.Sink {
			return stream.Tee(summary.New(v), table.New(io.Discard, v, table.Options{}))
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r, err := trace.NewReader(bytes.NewReader(file.Bytes()), trace.Options{})
				if err != nil {
					b.Fatal(err)
				}
				v := verdict.New(world.New(r.Info()), text.Format{})
				counts, err := stream.Copy(v.Feed(sinks(v)), r, stream.Filter{})
				if err != nil || counts.Shown != n {
					b.Fatal(counts, err)
				}
			}
			b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds()/1e6, "Mevents/s")
		})
	}
}
