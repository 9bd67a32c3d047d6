package table

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
	"chargetrace/internal/verdict"
	"chargetrace/internal/world"
)

var info = stream.Info{
	PageSize:       4096,
	StartBootNanos: 1_000_000_000,
	BootWallNanos:  time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano(),
}

// charge returns a charge to a cgroup whose ancestors have no limit. micros is the time
// since the trace began.
func charge(micros uint64, comm string, cgroup, requested uint64, usage int64, max uint64) event.Event {
	e := event.Event{
		Type: event.Charge, BootNanos: info.StartBootNanos + micros*1000, PID: 25980, TID: 25981,
		Kind: event.Memory, Outcome: event.OK, Cgroup: event.CgroupID{ID: cgroup}, Counter: cgroup,
		RequestedPages: requested, UsagePages: usage, MaxPages: max,
		Limiting: event.Level{CgroupID: cgroup, UsagePages: usage, MaxPages: max},
		High:     event.Level{MaxPages: unlimited},
	}
	copy(e.Comm[:], comm)
	return e
}

const unlimited = (1<<63 - 1) / 4096

// with returns e, changed by f.
func with(e event.Event, f func(*event.Event)) event.Event {
	f(&e)
	return e
}

// limitedAt makes an ancestor the limiting level.
func limitedAt(e event.Event, id uint64, usage int64, max uint64) event.Event {
	e.Limiting = event.Level{CgroupID: id, UsagePages: usage, MaxPages: max}
	return e
}

// tree names the cgroups 2, /a, and 3, /a/b.
var tree = []event.Event{
	{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 3}, ParentID: 2, Name: "b"},
	{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 2}, ParentID: 1, Name: "a"},
	{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}},
}

// kill is an OOM kill in /a.
var kill = with(charge(1500, "small", 2, 0, 0, 0), func(e *event.Event) {
	e.Type = event.OOMKill
	e.Victim = event.Victim{PID: 7, Comm: [16]byte{'b', 'i', 'g'}, AnonPages: 2500, FilePages: 10, ShmemPages: 1, SwapPages: 2}
})

// idle is a run of the OOM killer in /a that kills nobody, and sleep a sleep for its
// memory.high.
var idle = with(charge(1500, "small", 2, 0, 90, 90), func(e *event.Event) {
	e.Type, e.OOMNanos, e.Result = event.OOM, e.BootNanos, event.NoVictim
})

// step is a step of the wall clock to boot time plus by.
func step(at uint64, by int64) event.Event {
	return event.Event{Type: event.ClockStep, BootNanos: info.StartBootNanos + at*1000, BootWallNanos: info.BootWallNanos + by}
}

var sleep = with(charge(1500, "small", 2, 0, 90, 60), func(e *event.Event) { e.Type, e.DurationNanos = event.Throttle, 1_500_000_000 })

// fed returns a Table behind its Verdict.
func fed(w io.Writer, info stream.Info, l look) stream.Sink {
	v := verdict.New(world.New(info), l.Format)
	return v.Feed(New(w, v, l.Options))
}

// look is what flags change of a table.
type look struct {
	Options
	Format text.Format
}

var wide = look{Options: Options{Wide: true}}

func render(t *testing.T, o look, events ...event.Event) string {
	t.Helper()
	var b strings.Builder
	tb := fed(&b, info, o)
	if len(events) > 0 {
		if err := tb.Write(events); err != nil {
			t.Fatal(err)
		}
	}
	if err := tb.Close(stream.Counts{}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func lines(l ...string) string { return strings.Join(l, "\n") + "\n" }

const titles = "TIME     PID    COMM             REQUESTED  CURRENT    LIMIT     "

func TestRows(t *testing.T) {
	for _, tc := range []struct {
		name   string
		o      look
		events []event.Event
		want   string
	}{
		{"empty", look{}, nil, lines(titles)},
		{"script", look{}, []event.Event{
			charge(3_301_999, "alloc", 1, 32, 1288, 2560),
			charge(3_302_000, "a-15-byte-name.", 1, 512, -3, unlimited),
		}, lines(
			titles,
			"3301     25980  alloc            32         1288       2560      ",
			"3302     25980  a-15-byte-name.  512        -3         max       ",
		)},
		{"marks", look{}, []event.Event{
			charge(0, "a", 1, 32, 2559, 2560),
			charge(0, "a", 1, 32, 2560, 2560), // from below
			charge(0, "a", 1, 1, 2561, 2560),  // still at the limit
			charge(0, "a", 2, 1, 10, 10),      // another, at its limit when first seen
			charge(0, "a", 2, 1, 9, 10),       // falls below
			charge(0, "a", 2, 1, 10, 10),      // and rises again
			charge(0, "a", 1, 1, 2560, 2560),  // still at the limit
			charge(0, "a", 1, 1, 2560, unlimited),
			charge(0, "a", 1, 1, 2560, 2000), // the limit falls below the usage
		}, lines(
			titles,
			"0        25980  a                32         2559       2560      ",
			"0        25980  a                32         2560       2560       * LIMIT REACHED",
			"0        25980  a                1          2561       2560       *",
			"0        25980  a                1          10         10         *",
			"0        25980  a                1          9          10        ",
			"0        25980  a                1          10         10         * LIMIT REACHED",
			"0        25980  a                1          2560       2560       *",
			"0        25980  a                1          2560       max       ",
			"0        25980  a                1          2560       2000       * LIMIT REACHED",
		)},
		{"an ancestor's limit", look{}, append(tree[:3:3],
			limitedAt(charge(0, "a", 3, 64, 2500, unlimited), 2, 2559, 2560),
			limitedAt(charge(0, "a", 3, 1, 2501, unlimited), 2, 2560, 2560),
			limitedAt(charge(0, "a", 3, 1, 2501, 3000), 2, 2561, 2560),
			limitedAt(charge(0, "a", 9, 1, 5, unlimited), 8, 6, 6),
			kill,
			with(kill, func(e *event.Event) { e.Cgroup.ID = 0 }),
		), lines(
			titles,
			"0        25980  a                64         2500       max       ",
			"0        25980  a                1          2501       max        * LIMIT REACHED /a",
			"0        25980  a                1          2501       3000       * /a",
			"0        25980  a                1          5          max        * (cgroup 8)",
			"--- OOM in /a: the OOM killer ran in small (25980); killed big (7), rss 9.8 MiB (anon 9.7, file 0.0, shmem 0.0), swap 8 KiB ---",
			"--- OOM of the machine: the OOM killer ran in small (25980); killed big (7), rss 9.8 MiB (anon 9.7, file 0.0, shmem 0.0), swap 8 KiB ---",
		)},
		{"kinds", look{}, []event.Event{
			with(charge(0, "a", 2, 1, 9, 10), func(e *event.Event) { e.Kind = event.Swap }),
			with(charge(0, "a", 2, 1, 10, 10), func(e *event.Event) { e.Kind = event.Swap }),
			with(charge(0, "a", 2, 4096, 8192, 1<<20), func(e *event.Event) { e.Kind = event.Dmem }),
			with(charge(0, "a", 0, 1, 10, 10), func(e *event.Event) { e.Kind = event.Unknown }),
		}, lines(
			titles,
			"0        25980  a                1          9          10         [swap]",
			"0        25980  a                1          10         10         * LIMIT REACHED [swap]",
			"0        25980  a                4096B      8192B      1048576B   [dmem]",
			"0        25980  a                1          10         10         * [unknown]",
		)},
		{"wide", wide, append(tree[:3:3],
			charge(0, "a", 3, 64, 100, unlimited),
			charge(0, "a", 3, 64, 2500, 2560),
			with(limitedAt(charge(0, "a", 3, 64, 2501, unlimited), 2, 2560, 2560), func(e *event.Event) {
				e.Outcome, e.FailedAt = event.Failed, 2
				e.Flags = event.Remote | event.KernelThread | event.Predicted | event.WalkCut
				e.High = event.Level{CgroupID: 2, UsagePages: 11, MaxPages: 10}
			}),
			with(limitedAt(charge(0, "a", 3, 64, 2501, unlimited), 2, 2560, 2570), func(e *event.Event) {
				e.Outcome, e.FailedAt, e.PID, e.TID = event.BatchMiss, 3, 0, 0
			}),
			with(charge(0, "a", 2, 0, 0, 0), func(e *event.Event) { e.Type = event.ReclaimBegin }),
			with(charge(2000, "a", 2, 0, 0, 0), func(e *event.Event) {
				e.Type, e.FreedPages, e.DurationNanos = event.ReclaimEnd, 32, 1_999_500
			}),
			kill,
		), lines(
			"TIME    PID     TID     COMM            REQ  CURRENT LIMIT   KIND    OUTCOME CGROUP                 LIMITED BY  ROOM   FLAGS",
			"0       25980   25981   a               64   100     max     memory  ok      /a/b                   -           -",
			"0       25980   25981   a               64   2500    2560    memory  ok      /a/b                   = 2500/2560 60",
			"0       25980   25981   a               64   2501    max     memory  failed  /a/b                   /a 2560/2560 0      * remote kthread high predicted cut",
			"0       0       0       a               64   2501    max     memory  miss    /a/b                   /a 2560/2570 10     idle at=/a/b",
			"0       25980   25981   a               -    -       -       reclaim begin   /a",
			"2       25980   25981   a               -    -       -       reclaim end     /a                     freed 32 in 2.000 ms",
			"1       25980   25981   small           -    -       -       oom     kill    /a                     killed big (7), rss 9.8 MiB (anon 9.7, file 0.0, shmem 0.0), swap 8 KiB",
		)},
		{"OOM killer without a kill", look{}, append(tree[:3:3], idle, idle, sleep), lines(titles,
			"--- OOM in /a: small (25980) allocating; no process that it may kill ---",
		)},
		{"OOM killer without a kill, wide", wide, append(tree[:3:3], idle, idle, sleep), lines(
			"TIME    PID     TID     COMM            REQ  CURRENT LIMIT   KIND    OUTCOME CGROUP                 LIMITED BY  ROOM   FLAGS",
			"1       25980   25981   small           -    -       -       oom     none    /a                     no process that it may kill",
			"1       25980   25981   small           -    -       -       oom     none    /a                     no process that it may kill",
			"1       25980   25981   small           -    -       -       high    sleep   /a                     1.50 s, usage 90 above memory.high 60",
		)},
		{"wide, long paths", look{Options: Options{Wide: true, Columns: 130}}, []event.Event{
			{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}},
			{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 2}, ParentID: 1, Name: "kubepods-\x1b-burst\u00e4ble.slice"},
			{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 3}, ParentID: 2, Name: "docker-0123.scope"},
			limitedAt(charge(0, "a", 3, 64, 100, unlimited), 2, 1<<30, 1<<31),
		}, lines(
			"TIME    PID     TID     COMM            REQ  CURRENT LIMIT   KIND    OUTCOME CGROUP                      LIMITED BY       ROOM   FLAGS",
			"0       25980   25981   a               64   100     max     memory  ok      docker-0123.scope           /kubepods-\\x1b-burstäble.slice 1073741824/2147483648 1073741824",
		)},
		{"lost", look{}, []event.Event{
			charge(0, "a", 1, 1, 1, 2),
			{Type: event.Lost, LostCharges: 123},
			charge(0, "a", 1, 1, 1, 2),
		}, lines(
			titles,
			"0        25980  a                1          1          2         ",
			"--- 123 events lost ---",
			"0        25980  a                1          1          2         ",
		)},
		{"hostile", look{}, []event.Event{
			charge(0, "\x1b[2J\x1b]0;x\x07", 1, 1, 1, 2),
			charge(0, "a\nb\xff", 1, 1, 1, 2),
		}, lines(
			titles,
			`0        25980  \x1b[2J\x1b]0;x\x07 1          1          2         `,
			`0        25980  a\nb\xff         1          1          2         `,
		)},
		{"bytes", look{Format: text.Format{Units: text.Bytes}}, []event.Event{charge(0, "a", 1, 1, 100, 2560)}, lines(
			titles,
			"0        25980  a                4096       409600     10485760  ",
		)},
		{"human", look{Format: text.Format{Units: text.Human}}, []event.Event{
			charge(0, "a", 1, 1, 2559, 2560),
			charge(0, "a", 1, 64, 1<<30, 1<<31),
		}, lines(
			titles,
			"0        25980  a                4K         9.9M       10.0M     ",
			"0        25980  a                256K       4.0T       8.0T      ",
		)},
		{"clock", look{Format: text.Format{Time: text.Clock, Location: time.UTC}}, []event.Event{charge(5, "a", 1, 1, 1, 2), step(9, 3600e9), charge(9, "a", 1, 1, 1, 2), step(10, -500e6), charge(10, "a", 1, 1, 1, 2)}, lines(
			"TIME            PID    COMM             REQUESTED  CURRENT    LIMIT     ",
			"03:04:06.000005 25980  a                1          1          2         ",
			"--- the wall clock was set forward by 1h00m ---",
			"04:04:06.000009 25980  a                1          1          2         ",
			"--- the wall clock was set back by 1h00m ---",
			"03:04:05.500010 25980  a                1          1          2         ",
		)},
		{"clock set in a relative table", look{}, []event.Event{step(9, 3600e9), charge(9, "a", 1, 1, 1, 2)}, lines(
			"TIME     PID    COMM             REQUESTED  CURRENT    LIMIT     ",
			"0        25980  a                1          1          2         ",
		)},
		{"date", look{Format: text.Format{Time: text.Date, Location: time.FixedZone("", 3600)}}, []event.Event{charge(5, "a", 1, 1, 1, 2)}, lines(
			"TIME                             PID    COMM             REQUESTED  CURRENT    LIMIT     ",
			"2026-01-02T04:04:06.000005+01:00 25980  a                1          1          2         ",
		)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := render(t, tc.o, tc.events...); got != tc.want {
				t.Errorf("got\n%swant\n%s", got, tc.want)
			}
		})
	}
}

// TestAfterAnother checks the caches: a row that differs from the previous row in one
// value must be the same as without the previous row.
func TestAfterAnother(t *testing.T) {
	first := charge(1000, "alloc", 3, 64, 100, 2560)
	for name, change := range map[string]func(e *event.Event){
		"time":      func(e *event.Event) { e.BootNanos += uint64(time.Millisecond) },
		"pid":       func(e *event.Event) { e.PID++ },
		"tid":       func(e *event.Event) { e.TID++ },
		"comm":      func(e *event.Event) { e.Comm[0] = 'b' },
		"requested": func(e *event.Event) { e.RequestedPages *= 2 },
		"limit":     func(e *event.Event) { e.MaxPages *= 2 },
		"unlimited": func(e *event.Event) { e.MaxPages = unlimited },
		"kind":      func(e *event.Event) { e.Kind = event.Dmem },
		"cgroup":    func(e *event.Event) { e.Cgroup.ID = 2 },
		"limiting":  func(e *event.Event) { e.Limiting = event.Level{CgroupID: 2, UsagePages: 1, MaxPages: 5000} },
	} {
		for _, o := range []look{{}, {Format: text.Format{Units: text.Human}}, wide, {Options{Wide: true}, text.Format{Units: text.Human}}} {
			second := with(first, change)
			row := func(events ...event.Event) string {
				rows := strings.SplitAfter(render(t, o, append(tree[:3:3], events...)...), "\n")
				return rows[len(rows)-2]
			}
			if got, want := row(first, second), row(second); got != want || o.Wide && got == row(first) {
				t.Errorf("%s, %+v\n%safter another\n%s", name, o, want, got)
			}
		}
	}
}

// TestCause checks the column CAUSE of a trace with stacks.
func TestCause(t *testing.T) {
	h := info
	h.KernelStacks = true
	var out strings.Builder
	tb := fed(&out, h, wide)
	e := charge(0, "a", 1, 1, 100, 2560)
	e.KernelStack = 4
	unknown := charge(0, "a", 1, 1, 100, 2560)
	if err := tb.Write([]event.Event{{Type: event.Stack, StackNumber: 4, Frames: "pte_alloc_one+0x1;do_anonymous_page+0x2"}, e, unknown}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	at := strings.Index(lines[0], "CAUSE")
	if at < 0 || len(lines) != 4 || lines[1][at:] != "page table" || lines[2][at:] != "-" {
		t.Errorf("%s", &out)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestWriteFails(t *testing.T) {
	tb := fed(failingWriter{}, info, look{})
	if err := tb.Write([]event.Event{charge(0, "a", 1, 1, 1, 2)}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("Write: %v", err)
	}
	if err := fed(failingWriter{}, info, look{}).Close(stream.Counts{}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("Close: %v", err)
	}
}

// batch returns as many charges as [stream.Copy] moves at once.
func batch() []event.Event {
	events := make([]event.Event, 256)
	for i := range events {
		events[i] = charge(uint64(i), "stress-ng-vm", 3, 64, int64(100_000+64*i), unlimited)
		events[i] = limitedAt(events[i], 2, int64(100_000+64*i), 1<<20)
	}
	return events
}

func TestNoAllocation(t *testing.T) {
	for _, o := range []look{{}, {Format: text.Format{Time: text.Clock}}, {Format: text.Format{Time: text.Date}}, wide} {
		tb := fed(io.Discard, info, o)
		events := batch()
		tb.Write(tree)
		tb.Write(events)
		if n := testing.AllocsPerRun(10, func() { tb.Write(events) }); n != 0 {
			t.Errorf("%+v: %v allocations in a batch", o, n)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, o := range []look{{}, {Format: text.Format{Units: text.Human}}, {Format: text.Format{Time: text.Clock}}, {Format: text.Format{Time: text.Date}}, wide} {
		b.Run(fmt.Sprintf("units=%s/time=%s/wide=%v", o.Format.Units, o.Format.Time, o.Wide), func(b *testing.B) {
			tb := fed(io.Discard, info, o)
			events := batch()
			tb.Write(tree)
			b.ReportAllocs()
			for b.Loop() {
				tb.Write(events)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(events)), "ns/row")
		})
	}
}
