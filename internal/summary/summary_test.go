package summary

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
	"chargetrace/internal/verdict"
	"chargetrace/internal/world"
)

const ms = 1_000_000

var info = stream.Info{PageSize: 4096, StartBootNanos: 1000 * ms}

func comm(s string) (c [16]byte) {
	copy(c[:], s)
	return c
}

func name(id, parent uint64, name string) event.Event {
	return event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: id}, ParentID: parent, Name: name}
}

// charge returns a charge of process pid to the cgroup 3, limited by its parent 2.
func charge(at uint64, pid uint32, requested uint64, usage int64, o event.Outcome) event.Event {
	e := event.Event{
		Type: event.Charge, BootNanos: info.StartBootNanos + at*ms, PID: pid, TID: pid, Comm: comm("p"),
		Cgroup: event.CgroupID{ID: 3}, Kind: event.Memory, Outcome: o, RequestedPages: requested,
		Limiting: event.Level{CgroupID: 2, UsagePages: usage, MaxPages: 100},
		High:     event.Level{MaxPages: ^uint64(0)},
	}
	if o != event.OK {
		e.FailedAt = 2
	}
	return e
}

func newSummary(info stream.Info) *Summary { return New(verdict.New(world.New(info), text.Format{})) }

func TestSummary(t *testing.T) {
	kill := event.Event{Type: event.OOMKill, BootNanos: info.StartBootNanos + 9*ms, PID: 7, TID: 7, Comm: comm("small\x1b"), Cgroup: event.CgroupID{ID: 2}}
	kill.Victim = event.Victim{PID: 8, Comm: comm("big"), AnonPages: 80, FilePages: 2, ShmemPages: 1, SwapPages: 5}
	reclaim := charge(8, 7, 0, 0, event.OK)
	reclaim.Type, reclaim.Cgroup.ID, reclaim.DurationNanos, reclaim.FreedPages = event.ReclaimEnd, 2, 1_500_000, 4
	swap := charge(6, 8, 1, 50, event.OK)
	swap.Kind, swap.Flags = event.Swap, event.Predicted|event.WalkCut
	unknown := charge(6, 8, 1, 50, event.OK)
	unknown.Kind = event.Unknown
	memsw := charge(6, 8, 1, 50, event.OK)
	memsw.Kind = event.Memsw
	// own fails at the limit of its cgroup, though the parent has less room.
	own := charge(7, 8, 64, 99, event.Failed)
	own.FailedAt, own.MaxPages = 3, 200

	s := newSummary(info)
	for _, batch := range [][]event.Event{
		{name(3, 2, "docker-"+strings.Repeat("0123456789abcdef", 4)+".scope"), name(2, 1, "a"), name(1, 0, "")},
		{charge(1, 7, 64, 0, event.OK), charge(2, 8, 20, 64, event.OK), charge(3, 7, 64, 90, event.BatchMiss), charge(4, 7, 1, 100, event.Failed)},
		{charge(5, 8, 1, 100, event.Failed), {Type: event.Lost, LostCharges: 3}, swap, unknown, memsw, own, reclaim, kill},
	} {
		if err := s.Feed(s).Write(batch); err != nil {
			t.Fatal(err)
		}
	}
	const first = 1004 * ms
	want := Totals{Charges: 9, ChargedPages: 64 + 20 + 1 + 1, Failures: 3, BatchMisses: 1, FirstAtLimitNanos: first, FirstNanos: 1001 * ms, LastNanos: 1008 * ms, Reclaims: 1, ReclaimNanos: 1_500_000, FreedPages: 4}
	if s.Total != want {
		t.Errorf("total %+v\nwant  %+v", s.Total, want)
	}
	var kinds Totals
	for _, k := range s.Kinds {
		kinds.Charges += k.Charges
		kinds.ChargedPages += k.ChargedPages
		kinds.Failures += k.Failures
		kinds.Reclaims += k.Reclaims
	}
	if s.Kinds[event.Swap].Charges != 1 || kinds.Charges != want.Charges || kinds.ChargedPages != want.ChargedPages+memsw.RequestedPages || kinds.Failures != 3 || kinds.Reclaims != 1 {
		t.Errorf("kinds %+v", s.Kinds)
	}
	want.LastNanos, want.Reclaims, want.ReclaimNanos, want.FreedPages = 1007*ms, 0, 0, 0
	if got := *s.Cgroups[event.CgroupID{ID: 3}]; got != want {
		t.Errorf("cgroup %+v\nwant   %+v", got, want)
	}
	want = Totals{Charges: 3, ChargedPages: 64, Failures: 1, BatchMisses: 1, FirstAtLimitNanos: first, FirstNanos: 1001 * ms, LastNanos: 1008 * ms, Reclaims: 1, ReclaimNanos: 1_500_000, FreedPages: 4}
	if got := s.Processes[7].Totals; got != want {
		t.Errorf("process 7 %+v\nwant      %+v", got, want)
	}
	if len(s.Limits) != 2 {
		t.Errorf("%d limits", len(s.Limits))
	}

	if err := s.Close(stream.Counts{Predicted: 1, WalksCut: 1, UnknownKinds: 1}); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := s.Print(&b); err != nil {
		t.Fatal(err)
	}
	const wantText = `
CGROUP        CHARGES  PAGES  FAILED  MISSES  FIRST HIT  RECLAIM  FREED
0123456789ab  9        86     3       1       4.0 ms     0        0
/a            0        0      0       0       -          1.5 ms   4

PID  COMM  CHARGES  PAGES  FAILED  MISSES  FIRST HIT  RECLAIM  FREED
7    p     3        64     1       1       4.0 ms     1.5 ms   4
8    p     6        22     2       0       5.0 ms     0        0

limits hit:
  /a: memory limit of 100 pages (400 KiB) hit twice, 2 charges failed; first at 4.0 ms by p (7).
  0123456789ab: memory limit of 200 pages (800 KiB) hit once, 1 charge failed; first at 7.0 ms by p (8).

out of memory:
  At 9.0 ms /a ran out of memory at its memory limit of 100 pages (400 KiB): small\x1b (7) was allocating; big (8) was killed, rss 332 KiB (anon 320, file 8, shmem 4), swap 20 KiB.
    Until then, reclaim for it ran once for 1.5 ms and freed 16 KiB.
    Charges had been hitting this limit for 5.0 ms, from 4.0 ms on.
    Charged to it in this trace, frees not deducted: p (7) 256 KiB, p (8) 80 KiB.

coverage:
  1 charge: return not seen, outcome predicted at entry
  1 charge: more ancestors than the program walks
  1 charge: unknown kind of counter
`
	if b.String() != wantText {
		t.Errorf("got\n%s", b.String())
	}
}

func TestEmpty(t *testing.T) {
	var b strings.Builder
	if err := newSummary(info).Print(&b); err != nil || b.Len() > 0 {
		t.Errorf("%q, %v", b.String(), err)
	}
}

func TestManyProcesses(t *testing.T) {
	s := newSummary(info)
	for pid := range uint32(maxProcesses + 10) {
		s.Feed(s).Write([]event.Event{charge(0, pid, 1, 0, event.OK)})
	}
	if len(s.Processes) != maxProcesses || s.Others.Charges != 10 || s.Total.Charges != maxProcesses+10 {
		t.Errorf("%d processes, others %+v", len(s.Processes), s.Others)
	}
}

func BenchmarkWrite(b *testing.B) {
	s := newSummary(info)
	var events []event.Event
	for i := range uint64(256) {
		events = append(events, charge(i, uint32(i/64), 64, 0, event.OK))
	}
	b.ReportAllocs()
	for b.Loop() {
		s.Feed(s).Write(events)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(events)), "ns/event")
}

// TestPagesCountedOnce charges the same pages on several counters.
func TestPagesCountedOnce(t *testing.T) {
	of := func(k event.Kind, pages uint64) event.Event {
		e := charge(1, 7, pages, 0, event.OK)
		e.Kind = k
		return e
	}
	for _, tc := range []struct {
		name   string
		events []event.Event
		pages  uint64
		kinds  event.Kinds // traced
	}{
		{"kernel memory and swap of v1", []event.Event{of(event.Memsw, 32), of(event.Memory, 32), of(event.Kmem, 32)}, 32, 0},
		{"kernel memory alone", []event.Event{of(event.Kmem, 32)}, 32, 1 << event.Kmem},
		{"kernel memory and swap", []event.Event{of(event.Kmem, 32), of(event.Swap, 1)}, 33, 1<<event.Kmem | 1<<event.Swap},
		{"a huge page, reserved, then touched", []event.Event{of(event.HugetlbRsvd, 512), of(event.Hugetlb, 512)}, 512, 1<<event.HugetlbRsvd | 1<<event.Hugetlb},
		{"a reservation alone", []event.Event{of(event.HugetlbRsvd, 512)}, 512, 1 << event.HugetlbRsvd},
		{"sockets of v1 have their own pages", []event.Event{of(event.Tcpmem, 64), of(event.Memory, 64)}, 128, 0},
		{"bytes are no pages", []event.Event{of(event.Dmem, 4096), of(event.Memory, 1)}, 1, 0},
	} {
		info := info
		info.Kinds = tc.kinds
		s := newSummary(info)
		if err := s.Write(tc.events); err != nil {
			t.Fatal(err)
		}
		for _, e := range tc.events {
			if got := s.Kinds[e.Kind].ChargedPages; got != e.RequestedPages && e.Kind != event.Dmem {
				t.Errorf("%s: %d pages of %v", tc.name, got, e.Kind)
			}
		}
		if got := s.Total.ChargedPages; got != tc.pages || s.Total.Charges != uint64(len(tc.events)) {
			t.Errorf("%s: %+v, want %d pages", tc.name, s.Total, tc.pages)
		}
	}
}

// TestJSON checks the members of an OOM, a limit and the sums, and that no array is null.
func TestJSON(t *testing.T) {
	var b strings.Builder
	s := newSummary(info)
	if err := NewJSON(&b, s).Close(stream.Counts{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"command_line", "text", "ooms", "limits", "kinds", "cgroups", "processes", "causes", "balances"} {
		if !strings.Contains(b.String(), `"`+name+`": []`) {
			t.Errorf("no empty array %s in %s", name, &b)
		}
	}
	kill := event.Event{Type: event.OOMKill, BootNanos: info.StartBootNanos + 9*ms, PID: 7, TID: 7, Comm: comm("<\x1b>"), Cgroup: event.CgroupID{ID: 2}}
	kill.Victim = event.Victim{PID: 8, Comm: comm("big"), AnonPages: 80, FilePages: 2, ShmemPages: 1, SwapPages: 5}
	all := stream.Counts{Whole: true, Seen: 9, Read: 3, Shown: 2, Filtered: 5, Lost: 1, LostNonCharge: 2, Missed: 4}
	s.Feed(s).Write([]event.Event{
		name(3, 2, "docker-"+strings.Repeat("0123456789abcdef", 4)+".scope"), name(2, 1, "a"), name(1, 0, ""),
		charge(1, 7, 64, 0, event.OK), charge(4, 7, 1, 100, event.Failed), kill,
	})
	b.Reset()
	if err := NewJSON(&b, s).Close(all); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Counts map[string]any
		Text   []string
		OOMs   []struct {
			Cgroup, Comm, Trigger, Kind, Scope string
			Since                              int64  `json:"full_since_ns"`
			Time                               int64  `json:"time_ns"`
			Wall                               string `json:"wall_time"`
			Max                                uint64 `json:"max_pages"`
			Chargers, Victims                  []map[string]any
		}
		Limits, Cgroups []map[string]any
	}
	if err := json.Unmarshal([]byte(b.String()), &got); err != nil {
		t.Fatal(err)
	}
	if want := (map[string]any{"whole": true, "seen": 9., "shown": 2., "filtered": 6., "lost": 1., "lost_others": 2., "missed": 4.}); !maps.Equal(got.Counts, want) {
		t.Errorf("counts %v, want %v", got.Counts, want)
	}
	o := got.OOMs[0]
	if o.Cgroup != "/a" || o.Comm != `<\x1b>` || o.Trigger != "failed_charge" || o.Kind != "memory" || o.Time != 9*ms || o.Wall != "1970-01-01T00:00:01.009Z" || o.Max != 100 || o.Scope != "cgroup" || o.Since != 4*ms {
		t.Errorf("OOM %+v", o)
	}
	if want := (map[string]any{"pid": 7., "comm": "p", "pages": 64., "cache_pages": nil}); !maps.Equal(o.Chargers[0], want) {
		t.Errorf("charger %v, want %v", o.Chargers[0], want)
	}
	if want := (map[string]any{"pid": 8., "comm": "big", "rss_pages": 83., "anon_pages": 80., "file_pages": 2., "shmem_pages": 1., "swap_pages": 5., "page_table_bytes": 0.}); !maps.Equal(o.Victims[0], want) {
		t.Errorf("victim %v, want %v", o.Victims[0], want)
	}
	if want := (map[string]any{"cgroup": "/a", "cgroup_id": 2., "hierarchy": 0., "label": "/a", "container": nil, "kind": "memory", "high": false, "max_pages": 100.,
		"hits": 1., "failures": 1., "first_ns": 4. * ms, "pid": 7., "comm": "p", "sleeps": 0., "sleep_ns": 0., "held": nil}); !maps.Equal(got.Limits[0], want) {
		t.Errorf("limit %v, want %v", got.Limits[0], want)
	}
	container, _ := got.Cgroups[0]["container"].(map[string]any)
	if got.Cgroups[0]["charged_pages"] != 64. || container["runtime"] != "docker" {
		t.Errorf("cgroup %v", got.Cgroups[0])
	}
	if want := s.TellLimit(s.SortedLimits()[0]) + "."; got.Text[len(got.Text)-1] != want || len(got.Text) != 4 {
		t.Errorf("text %q", got.Text)
	}
}
