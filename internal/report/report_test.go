package report

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"image/png"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
	"chargetrace/internal/text"
	"chargetrace/internal/verdict"
	"chargetrace/internal/world"
)

const ms = 1_000_000

var info = stream.Info{
	PageSize: 4096, StartBootNanos: 1000 * ms, BootWallNanos: 1_700_000_000_000_000_000,
	Program: "chargetrace test", CommandLine: []string{"chargetrace", "-o", "x"}, Host: "host", Kernel: "6.1", Arch: "amd64", Attach: "kprobe",
}

func named(s string) (c [16]byte) {
	copy(c[:], s)
	return c
}

// charge returns a charge to cgroup 3 at a time in ms since the start.
func charge(at uint64, pid uint32, requested uint64, usage int64, o event.Outcome) event.Event {
	e := event.Event{
		Type: event.Charge, BootNanos: info.StartBootNanos + at*ms, PID: pid, TID: pid, Comm: named("p"), Cgroup: event.CgroupID{ID: 3},
		Kind: event.Memory, Outcome: o, RequestedPages: requested, UsagePages: usage, MaxPages: 2560,
		Limiting: event.Level{CgroupID: 3, UsagePages: usage, MaxPages: 2560},
		High:     event.Level{MaxPages: ^uint64(0)},
	}
	if o == event.Failed {
		e.FailedAt = 3
	}
	return e
}

func name(id, parent uint64, name string) event.Event {
	return event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: id}, ParentID: parent, Name: name}
}

func stackName(number uint32, frames string) event.Event {
	return event.Event{Type: event.Stack, StackNumber: number, Frames: frames}
}

// counts are those that most tests close a report with.
var counts = stream.Counts{Whole: true, Seen: 10, Filtered: 2, Lost: 1}

func newSummary(info stream.Info) *summary.Summary {
	return summary.New(verdict.New(world.New(info), text.Format{}))
}

// feed adds events to the summary of a report, and to the report.
func feed(c *collector, events []event.Event) error {
	return c.sum.Feed(stream.Tee(c.sum, unclosed{c})).Write(events)
}

// unclosed is a collector as a Sink.
type unclosed struct{ *collector }

func (unclosed) Close(stream.Counts) error { return nil }

func closeReport(r *Report, c stream.Counts) error {
	return errors.Join(r.sum.Close(c), r.Close(c))
}

func render(t *testing.T, events ...event.Event) string {
	t.Helper()
	var b bytes.Buffer
	r := NewHTML(&b, newSummary(info))
	if err := feed(&r.collector, events); err != nil {
		t.Fatal(err)
	}
	if err := closeReport(r, counts); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestReduction holds that buckets keep all failures and the extremes and ends of the
// usage and the limit, for any number and order of events.
func TestReduction(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 7))
		c := newCollector(newSummary(info))
		var failures, misses, charges uint64
		var all, max []point
		at := uint64(0)
		for range r.IntN(20_000) + 1 {
			// Bursts and long pauses, sometimes out of order.
			at += uint64(r.ExpFloat64() * float64(uint64(1)<<r.IntN(40)))
			when := info.StartBootNanos + at - min(at, r.Uint64N(2000))
			e := charge(0, 7, r.Uint64N(64), r.Int64N(1<<uint(1+r.IntN(20))), event.Outcome(1+r.IntN(3)))
			e.BootNanos, e.MaxPages = when, uint64(2000+r.IntN(4))
			feed(&c, []event.Event{e})
			charges++
			all = append(all, point{when, e.UsagePages})
			max = append(max, point{when, int64(e.MaxPages)})
			switch e.Outcome {
			case event.OK:
				all = append(all, point{when, e.UsagePages + int64(e.RequestedPages)})
			case event.Failed:
				failures++
			case event.BatchMiss:
				misses++
			}
		}
		s := c.series[event.CounterID{Cgroup: event.CgroupID{ID: 3}, Kind: event.Memory}]
		if len(s.buckets) > maxBuckets || !slices.IsSortedFunc(s.buckets, func(a, b bucket) int { return int(a.index) - int(b.index) }) {
			t.Fatalf("seed %d: %d buckets, or out of order", seed, len(s.buckets))
		}
		// The same holds for a narrow page's buckets.
		for _, s := range []*series{s, s.reduced(maxBuckets / 4), s.reduced(1)} {
			var got bucket
			for i := range s.buckets {
				b := &s.buckets[i]
				got.merge(b)
				var want extent
				for _, p := range all {
					if p.nanos>>s.shift == b.index {
						want.add(p)
					}
				}
				if want.least.pages != b.usage.least.pages || want.greatest.pages != b.usage.greatest.pages {
					t.Fatalf("seed %d: bucket of %+v, want %+v", seed, b.usage, want)
				}
			}
			if got.charges != charges || got.misses != misses || got.failed.count != failures {
				t.Errorf("seed %d: %d charges, %d misses, %d failures, want %d, %d, %d", seed, got.charges, got.misses, got.failed.count, charges, misses, failures)
			}
			pages := func(p point) int64 { return p.pages }
			for _, x := range []struct {
				got  extent
				want []point
			}{{got.usage, all}, {got.max, max}} {
				byPages := func(a, b point) int { return int(pages(a) - pages(b)) }
				byTime := func(a, b point) int { return int(int64(a.nanos) - int64(b.nanos)) }
				if pages(x.got.least) != pages(slices.MinFunc(x.want, byPages)) || pages(x.got.greatest) != pages(slices.MaxFunc(x.want, byPages)) ||
					x.got.first.nanos != slices.MinFunc(x.want, byTime).nanos || x.got.last.nanos != slices.MaxFunc(x.want, byTime).nanos {
					t.Errorf("seed %d: %+v", seed, x.got)
				}
			}
		}
		var stacked uint64
		for _, l := range c.processPlot().layers {
			for _, pages := range l.cells {
				stacked += pages
			}
		}
		if stacked != c.sum.Total.ChargedPages {
			t.Errorf("seed %d: %d pages stacked of %d", seed, stacked, c.sum.Total.ChargedPages)
		}
	}
}

// TestManyCgroups holds that a cgroup with failures is drawn though there are too many
// others, and that series and parts are bounded.
func TestManyCgroups(t *testing.T) {
	c := newCollector(newSummary(info))
	for i := range uint64(5000) {
		e := charge(i, uint32(i), 1, 5, event.OK)
		e.Cgroup.ID, e.Limiting.CgroupID = 10+i, 10+i
		if i == 100 {
			e.Outcome, e.FailedAt = event.Failed, 110
		}
		feed(&c, []event.Event{e})
	}
	if len(c.series) > maxSeries || len(c.byProcess.parts) > maxParts {
		t.Errorf("%d series, %d processes", len(c.series), len(c.byProcess.parts))
	}
	if plots, _ := c.plots(maxPlots); plots[0].key.Cgroup.ID != 110 {
		t.Errorf("the first plot is that of %+v", plots[0].key)
	}
	s := c.processPlot()
	var sum uint64
	for _, l := range s.layers {
		sum += l.pages
	}
	if len(s.layers) != maxLayers+1 || sum != 4999 {
		t.Errorf("%d layers of %d pages", len(s.layers), sum)
	}
}

// TestSize holds that a report of a hostile trace is at most 2 MiB.
func TestSize(t *testing.T) {
	var b bytes.Buffer
	w := NewHTML(&b, newSummary(info))
	r := rand.New(rand.NewPCG(1, 2))
	feed(&w.collector, []event.Event{name(1, 0, "")})
	for i := range uint64(10) {
		feed(&w.collector, []event.Event{name(2+i, 1+i, strings.Repeat("<", 255))})
	}
	e := charge(1, 7, 64, 0, event.OK)
	for i := range uint64(1000) {
		feed(&w.collector, []event.Event{name(100+i, 11, strings.Repeat("&", 255))})
	}
	const stacks = 500
	for i := range uint32(stacks) {
		var frames strings.Builder
		for depth := range 200 {
			fmt.Fprintf(&frames, "%s%d,%d;", strings.Repeat("&", 300), i, depth)
		}
		feed(&w.collector, []event.Event{stackName(1+i, frames.String()+"shmem_fault")})
	}
	for i := range 200_000 {
		e.BootNanos += 100_000
		e.PID, e.Comm = r.Uint32N(5000), named(`"""""""""""""""`)
		e.Cgroup.ID = 100 + r.Uint64N(1000)
		if i%2 > 0 {
			e.Cgroup.ID = 100 + r.Uint64N(10)
		}
		e.UsagePages, e.MaxPages = r.Int64N(1<<20), 1<<20+r.Uint64N(1<<20)
		e.Limiting = event.Level{CgroupID: 11, UsagePages: r.Int64N(1 << 20), MaxPages: e.MaxPages}
		e.High = event.Level{CgroupID: 10, UsagePages: r.Int64N(1 << 20), MaxPages: e.MaxPages}
		e.Outcome, e.FailedAt = event.Failed, e.Cgroup.ID
		feed(&w.collector, []event.Event{e})
		if i%10 == 0 {
			e.Outcome, e.KernelStack = event.OK, 1+r.Uint32N(stacks)
			feed(&w.collector, []event.Event{e})
		}
	}
	if err := closeReport(w, counts); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", b.Len())
	if b.Len() > 2<<20 {
		t.Errorf("%d bytes", b.Len())
	}
}

func TestStory(t *testing.T) {
	kill := event.Event{Type: event.OOMKill, BootNanos: info.StartBootNanos + 9*ms, PID: 8, TID: 8, Comm: named("asks"), Cgroup: event.CgroupID{ID: 3}}
	kill.Victim = event.Victim{PID: 8, Comm: named("big"), AnonPages: 2000, FilePages: 2, ShmemPages: 1, SwapPages: 5}
	reclaim := charge(8, 7, 0, 0, event.NoOutcome)
	reclaim.Type, reclaim.DurationNanos, reclaim.FreedPages = event.ReclaimEnd, 1_500_000, 4
	zero := charge(1, 7, 512, 0, event.Failed)
	zero.Kind, zero.MaxPages, zero.Limiting.MaxPages = event.Hugetlb, 0, 0
	reserved, touched := charge(1, 7, 512, 0, event.OK), charge(2, 7, 512, 0, event.OK)
	reserved.Kind, touched.Kind = event.HugetlbRsvd, event.Hugetlb
	high := func(usage int64) event.Event {
		e := charge(10, 7, 64, usage, event.OK)
		e.MaxPages, e.Limiting.MaxPages = ^uint64(0), ^uint64(0)
		e.High = event.Level{CgroupID: 3, UsagePages: usage, MaxPages: 3072}
		return e
	}
	names := []event.Event{name(3, 1, "small"), name(1, 0, "")}
	for _, tc := range []struct {
		name   string
		events []event.Event
		want   []string
	}{
		{"empty", nil, []string{"<h1>No charges</h1>", "This trace holds no charges.", "0 charges in this report; of 10 seen"}},
		{"kill", append(names, charge(1, 7, 64, 0, event.OK), charge(2, 8, 64, 2560, event.Failed), reclaim, kill), []string{
			"<h1>/small ran out of memory</h1>",
			"<p>At 9.0 ms (2023-11-14 22:13:21.009 UTC) /small ran out of memory at its memory limit of 2560 pages (10.0 MiB): asks (8) was allocating; big (8) was killed, rss 7.8 MiB (anon 7.8, file 0.0, shmem 0.0), swap 20 KiB. " +
				"Until then, reclaim for it ran once for 1.5 ms and freed 16 KiB. Charges had been hitting this limit for 7.0 ms, from 2.0 ms on. Charged to it in this trace, frees not deducted: p (7) 256 KiB.</p>",
			"<p>/small: memory limit of 2560 pages (10.0 MiB) hit once, 1 charge failed; first at 2.0 ms by p (8).</p>\n</div>",
			"OOM kill</text>", `<td class="n" data-sort="9000000" title="2023-11-14 22:13:21.009000 UTC">9.0 ms</td><td>/small</td>`,
			"1 event lost: the ring buffer was full.",
		}},
		{"room", append(names, charge(1, 7, 64, 1216, event.OK)), []string{"<h1>No limit was hit</h1>", "The nearest to its limit was /small (memory): 5.0 MiB of 10.0 MiB, 50 %."}},
		{"limit", append(names, charge(1, 7, 1, 2560, event.OK)), []string{"<h1>/small reached its memory limit</h1>", "hit once;"}},
		{"memory.high", append(names, high(3072-64), high(3072-63), high(3700)), []string{"<h1>/small is above its memory.high: charges were throttled</h1>",
			"/small: memory.high of 3072 pages (12.0 MiB) exceeded, 2 charges throttled; first at 10.0 ms by p (7).",
			"<td>memory.high</td>"}},
		{"limit of 0", append(names, zero), []string{"<h1>/small reached its hugetlb limit: 1 charge failed</h1>", "/small: hugetlb limit of 0 pages (0 B) hit once", "<td>hugetlb</td><td class=\"n\" data-sort=\"0\" title=\"0 pages\">0 B</td>"}},
		{"huge page", append(names, reserved, touched), []string{"p (7) made all charges: 2.0 MiB in 2 charges."}},
		{"failed", append(names, charge(1, 7, 1, 2560, event.Failed)), []string{"<h1>/small reached its memory limit: 1 charge failed</h1>", "1 charge; none took memory"}},
	} {
		got := render(t, tc.events...)
		for _, want := range tc.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", tc.name, want, got[strings.Index(got, "<body>"):])
			}
		}
	}
}

// TestHostile holds that all names are escaped.
func TestHostile(t *testing.T) {
	const attack = `</script><script>`
	e := charge(1, 7, 64, 2560, event.Failed)
	e.Comm = named(`"'><script>x//`)
	kill := e
	kill.Type, kill.Victim = event.OOMKill, event.Victim{Comm: named(`<img src=x>`)}
	h := info
	h.Host, h.CommandLine = attack, []string{attack, "\x1b[31m"}
	stacked := charge(2, 8, 1, 1, event.OK)
	stacked.KernelStack = 1
	hostile := name(3, 2, strings.Repeat("ab", 32))
	hostile.Identity = container.Identity{Name: attack, Namespace: "<img src=x>", Pod: "\x1b"}.Encode()
	events := []event.Event{hostile, name(2, 1, `<svg onload=x>&"'`), name(1, 0, ""), stackName(1, "shmem_fault;"+attack+";x\x1b[31m"), e, stacked, kill}
	for form, r := range map[string]func(*bytes.Buffer) *Report{
		"html": func(b *bytes.Buffer) *Report { return NewHTML(b, newSummary(h)) },
		"svg":  func(b *bytes.Buffer) *Report { return NewSVG(b, newSummary(info)) },
	} {
		var b bytes.Buffer
		sink := r(&b)
		feed(&sink.collector, events)
		if err := closeReport(sink, counts); err != nil {
			t.Fatal(err)
		}
		got := b.String()
		for _, bad := range []string{"<script>x", "<img", "<svg onload", attack, "\x1b"} {
			if strings.Contains(got, bad) {
				t.Errorf("%s: %q got through", form, bad)
			}
		}
		if !strings.Contains(got, `&lt;/script&gt;&lt;script&gt; · abababababab · &lt;img src=x&gt;/\x1b`) {
			t.Errorf("%s: the container is not there", form)
		}
		if form == "html" && !strings.Contains(got, "&lt;svg onload=x&gt;") {
			t.Errorf("%s: the path is not there", form)
		}
	}
}

// TestFarLimit holds that a limit far above the usage is not drawn, and that one that
// was near for a while is.
func TestFarLimit(t *testing.T) {
	far := func(at uint64, max uint64) event.Event {
		e := charge(at, 7, 64, 936, event.OK)
		e.MaxPages, e.Limiting.MaxPages = max, max
		return e
	}
	for _, tc := range []struct {
		events []event.Event
		drawn  bool
		top    float64
	}{
		{[]event.Event{far(1, 2560)}, true, 2560},
		{[]event.Event{far(1, 1<<30)}, false, 1000},
		{[]event.Event{far(1, 2560), far(2, 1<<30)}, true, 4000},
	} {
		c := newCollector(newSummary(info))
		feed(&c, tc.events)
		if plots, _ := c.plots(1); plots[0].limitDrawn != tc.drawn || plots[0].top != tc.top*1.08 {
			t.Errorf("drawn %t, up to %v, want %+v", plots[0].limitDrawn, plots[0].top, tc)
		}
	}
}

// TestGivenBack holds that an uncharge lowers the usage in the plot and the net growth
// in the table.
func TestGivenBack(t *testing.T) {
	h := info
	h.Net = true
	uncharge := charge(2, 7, 60, 64, event.NoOutcome)
	uncharge.Type = event.Uncharge
	usage := event.Event{Type: event.Usage, BootNanos: h.StartBootNanos, Cgroup: uncharge.Cgroup, UsagePages: 9, Flags: event.Existing}
	var b bytes.Buffer
	r := NewHTML(&b, newSummary(h))
	feed(&r.collector, []event.Event{name(3, 1, "web"), name(1, 0, ""), usage, charge(1, 7, 64, 0, event.OK), uncharge})
	series := r.series[event.CounterID{Cgroup: event.CgroupID{ID: 3}, Kind: event.Memory}]
	if got := series.total(); got.usage.last.pages != 4 || got.charges != 1 || r.first != h.StartBootNanos+ms {
		t.Errorf("ends at %d pages after %d charges, begins at %d", got.usage.last.pages, got.charges, r.first)
	}
	var got [][]string
	table := r.netTable()
	for _, row := range table.Rows {
		var cells []string
		for i := range row {
			cells = append(cells, cmp.Or(row[i].Exact, row[i].Text))
		}
		got = append(got, cells)
	}
	if want := [][]string{{"/web", "memory", "64 pages", "0 pages", "60 pages", "4 pages", "–", "–", "–"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	// A second reading gives a balance.
	usage.UsagePages, usage.Flags, usage.BootNanos = 14, 0, uncharge.BootNanos+ms
	feed(&r.collector, []event.Event{usage})
	table = r.netTable()
	if row := table.Rows[0]; row[6].Exact != "9 pages" || row[7].Exact != "14 pages" || row[8].Exact != "1 page" ||
		!strings.Contains(table.Note, "The difference is not 0 in 1 of the 1 that were read") {
		t.Errorf("%+v", table)
	}
}

// TestGivenBackBelow holds that an uncharge lowers the usage of the levels above.
func TestGivenBackBelow(t *testing.T) {
	h := info
	h.Net = true
	limited := charge(1, 7, 64, 0, event.OK)
	limited.Limiting = event.Level{CgroupID: 1, UsagePages: 100, MaxPages: 1000}
	other := charge(2, 7, 8, 64, event.OK) // something else limits it
	other.Limiting = event.Level{CgroupID: 3, UsagePages: 64, MaxPages: 80}
	uncharge := charge(3, 7, 60, 72, event.NoOutcome)
	uncharge.Type = event.Uncharge
	for net, want := range map[bool]int64{true: 112, false: 164} {
		h.Net = net
		r := NewHTML(io.Discard, newSummary(h))
		feed(&r.collector, []event.Event{name(3, 1, "web"), name(1, 0, ""), limited, other, uncharge})
		total := r.series[event.CounterID{Cgroup: event.CgroupID{ID: 1}, Kind: event.Memory}].total()
		if got := total.usage.last.pages; got != want {
			t.Errorf("net %t: it ends at %d pages, want %d", net, got, want)
		}
	}
}

// TestCompare holds that two runs match though PIDs, cgroup IDs and page sizes differ.
func TestCompare(t *testing.T) {
	side := func(file string, pageSize int, pid uint32, id uint64, events ...event.Event) Side {
		h := info
		h.PageSize, h.StartBootNanos = pageSize, info.StartBootNanos*uint64(id)
		s := Side{Name: file, Summary: newSummary(h)}
		s.Summary.Close(counts)
		s.Summary.Feed(s.Summary).Write([]event.Event{name(id, 1, "web"), name(1, 0, "")})
		for _, e := range events {
			e.PID, e.Cgroup.ID, e.BootNanos = pid, id, e.BootNanos-info.StartBootNanos+h.StartBootNanos
			s.Summary.Feed(s.Summary).Write([]event.Event{e})
		}
		return s
	}
	before := side("a", 4096, 7, 3, charge(1, 0, 64, 0, event.OK), charge(2, 0, 64, 64, event.OK))
	lossy := counts
	lossy.LostNonCharge = 2
	after := side("b\x1b", 65536, 8, 4, charge(1, 0, 8, 0, event.OK), charge(9, 0, 64, 2560, event.Failed))
	after.Summary.Feed(after.Summary).Close(lossy)
	var b strings.Builder
	if err := Compare(before, after).Text(&b); err != nil {
		t.Fatal(err)
	}
	const want = `before: a
after:  b\x1b
incomplete: a: 1 event lost: the ring buffer was full.
incomplete: b\x1b: 3 events lost: the ring buffer was full.

IN ALL  CHARGES  CHARGED  FAILED  MISSES  RECLAIM  FIRST HIT
all     2        512 KiB  0 -> 1  0       0        never -> 9.0 ms

CGROUP  CHARGES  CHARGED  FAILED  MISSES  RECLAIM  FIRST HIT
/web    2        512 KiB  0 -> 1  0       0        never -> 9.0 ms

COMM  CHARGES  CHARGED  FAILED  MISSES  RECLAIM  FIRST HIT
p     2        512 KiB  0 -> 1  0       0        never -> 9.0 ms

KIND    CHARGES  CHARGED  FAILED  MISSES  RECLAIM  FIRST HIT
memory  2        512 KiB  0 -> 1  0       0        never -> 9.0 ms

OOM kills: at least 0, before 0
`
	if b.String() != want {
		t.Errorf("got\n%s", b.String())
	}
}

// TestStrangeTimes holds that a report of any times is complete.
func TestStrangeTimes(t *testing.T) {
	const most = ^uint64(0)
	for _, times := range [][]uint64{{0, most}, {0, 1 << 63}, {most, 0}, {1 << 62, 1<<62 + 1}, {most}, {0}, {info.StartBootNanos - 1, info.StartBootNanos}} {
		events := []event.Event{stackName(1, "shmem_fault")}
		for _, nanos := range times {
			e := charge(0, 7, 64, 10, event.OK)
			e.BootNanos, e.KernelStack = nanos, 1
			r := e
			r.Type, r.DurationNanos = event.ReclaimEnd, most
			kill := e
			kill.Type = event.OOMKill
			events = append(events, e, r, kill)
		}
		got := render(t, events...)
		drawn, _, whole := strings.Cut(got[strings.Index(got, "<main>"):], "</main>")
		if !whole || strings.Contains(drawn, "NaN") || strings.Contains(drawn, "Inf ") {
			t.Errorf("%d: %s", times, drawn)
		}
	}
}

// TestStrangeNumbers holds that a report of any usage and limits is complete.
func TestStrangeNumbers(t *testing.T) {
	for _, usage := range []int64{-1 << 63, -1, 0, 1, 1<<63 - 1} {
		for _, requested := range []uint64{0, 1, ^uint64(0)} {
			for _, max := range []uint64{0, 1, 1<<46 - 1, ^uint64(0)} {
				for _, kind := range []event.Kind{event.Memory, event.Dmem} {
					e := charge(1, 7, requested, usage, event.OK)
					e.Kind, e.MaxPages, e.KernelStack = kind, max, 1
					e.High = event.Level{CgroupID: 4, UsagePages: usage, MaxPages: max}
					r := e
					r.Type, r.DurationNanos, r.FreedPages = event.ReclaimEnd, 1, ^uint64(0)
					got := render(t, stackName(1, "shmem_fault"), e, e, r)
					if drawn, _, whole := strings.Cut(got[strings.Index(got, "<main>"):], "</main>"); !whole || strings.Contains(drawn, "NaN") || strings.Contains(drawn, "Inf ") {
						t.Errorf("usage %d, requested %d, max %d: %s", usage, requested, max, drawn)
					}
				}
			}
		}
	}
}

func TestTruncated(t *testing.T) {
	var b bytes.Buffer
	r := NewHTML(&b, newSummary(info))
	feed(&r.collector, []event.Event{charge(1, 7, 64, 0, event.OK), {Type: event.Lost, BootNanos: info.StartBootNanos + 2*ms, LostCharges: 5}})
	if err := closeReport(r, stream.Counts{LostInShown: 5}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"The recording is truncated", "5 events lost", `class="key lost"`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q", want)
		}
	}
}

// TestIncomplete holds that a page warns of missing data.
func TestIncomplete(t *testing.T) {
	for _, tc := range []struct {
		counts stream.Counts
		want   []string
	}{
		{stream.Counts{Whole: true}, nil},
		{stream.Counts{Whole: true, LostStacks: 1}, []string{"1 stack of charges missing: the kernel could not walk them, or too many were different."}},
		{stream.Counts{Whole: true, UnnamedProcesses: 1200, DamagedBlocks: 2}, []string{
			"2 damaged blocks of the recording skipped: events are missing.",
			"Processes with unresolved user stacks: 1,200. Their files could not be read, or not in time.",
		}},
		{stream.Counts{DamagedBlocks: 1}, []string{
			"1 damaged block of the recording skipped: events are missing.",
			"The recording is truncated: its last events may be missing.",
		}},
	} {
		r := NewHTML(nil, newSummary(info))
		r.sum.Close(tc.counts)
		if got := warnings(r.sum); !slices.Equal(got, tc.want) {
			t.Errorf("%+v: %q, want %q", tc.counts, got, tc.want)
		}
	}
}

func TestPictures(t *testing.T) {
	for _, events := range [][]event.Event{nil, {name(3, 1, "small"), name(1, 0, ""), charge(1, 7, 64, 0, event.OK)}} {
		var b bytes.Buffer
		r := NewPNG(&b, newSummary(info))
		feed(&r.collector, events)
		if err := closeReport(r, counts); err != nil {
			t.Fatal(err)
		}
		img, err := png.Decode(&b)
		if err != nil || img.Bounds().Dx() != 2*pictureWidth || img.Bounds().Dy() != 2*pictureHeight {
			t.Errorf("%v", err)
		}
	}
}

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		size(1023): "1023 B", size(9.96 * (1 << 20)): "9.9 MiB",
		count(0): "0", count(999): "999", count(1000): "1,000", count(1234567): "1,234,567",
		duration(1<<64 - 1): "106751d 23h",
		list(nil):           "", list([]string{"a"}): "a", list([]string{"a", "b", "c"}): "a, b and c",
		fmt.Sprint(timeTicks(0, 1000*ms, 4)):  "[0 250000000 500000000 750000000 1000000000]",
		fmt.Sprint(timeTicks(0, 250e9, 2.5)):  "[0 120000000000 240000000000]",
		fmt.Sprint(sizeTicks(10 * (1 << 20))): "[0 2.097152e+06 4.194304e+06 6.291456e+06 8.388608e+06 1.048576e+07]",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestLostAtEnd has lost events without a time, as older recordings do.
func TestLostAtEnd(t *testing.T) {
	c := newCollector(newSummary(info))
	feed(&c, []event.Event{charge(1, 7, 1, 1, event.OK), charge(9, 7, 1, 2, event.OK), {Type: event.Lost, LostCharges: 5}})
	if from, to := c.span(); from < info.StartBootNanos || to < info.StartBootNanos+9*ms {
		t.Errorf("it spans %d to %d", from, to)
	}
}

// TestSentences holds that the story claims only what the trace shows.
func TestSentences(t *testing.T) {
	unknown := charge(1, 7, 64, 2560, event.Failed) // the limit of its grandparent
	unknown.FailedAt, unknown.Limiting.MaxPages = 9, 9999
	reached := charge(1, 7, 1, 2560, event.OK)
	var many []event.Event // one charges little each time, and most in all
	for i := range uint32(5000) {
		many = append(many, charge(1, 1, 1, 1, event.OK), charge(1, 10+i, 170, 1, event.OK))
	}
	for _, tc := range []struct {
		events []event.Event
		want   string
	}{
		{[]event.Event{unknown}, "(cgroup 9): memory limit hit once, 1 charge failed; first at 1.0 ms by p (7)."},
		{[]event.Event{reached}, "(cgroup 3): memory limit of 2560 pages (10.0 MiB) hit once; first at 1.0 ms by p (7). p (7) made"},
		{[]event.Event{reached, reached, unknown}, "(cgroup 9): memory limit hit once, 1 charge failed; first at 1.0 ms by p (7). (cgroup 3): memory limit of 2560 pages (10.0 MiB) hit twice; first at 1.0 ms by p (7)."},
		{many, "p (1) charged most: 19.5 MiB"},
	} {
		c := newCollector(newSummary(info))
		feed(&c, tc.events)
		if story := strings.Join(c.story(), " "); !strings.Contains(story, tc.want) {
			t.Errorf("%q is not in %q", tc.want, story)
		}
	}
}
