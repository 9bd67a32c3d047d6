package verdict

import (
	"strings"
	"testing"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
	"chargetrace/internal/world"
)

const ms = 1_000_000

var info = stream.Info{PageSize: 4096, StartBootNanos: 1000 * ms}

func comm(s string) (c event.Comm) {
	copy(c[:], s)
	return c
}

// tree names the cgroups 2, /a, and 3, /a/b.
var tree = []event.Event{
	{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 3}, ParentID: 2, Name: "b"},
	{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 2}, ParentID: 1, Name: "a"},
	{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}},
}

// charge returns a charge of thread tid to /a/b, of which /a has the least room.
func charge(at uint64, tid uint32, requested uint64, usage int64, o event.Outcome) event.Event {
	e := event.Event{
		Type: event.Charge, BootNanos: info.StartBootNanos + at*ms, PID: tid, TID: tid, Comm: comm("p"),
		Cgroup: event.CgroupID{ID: 3}, Kind: event.Memory, Outcome: o, RequestedPages: requested, MaxPages: 200,
		Limiting: event.Level{CgroupID: 2, UsagePages: usage, MaxPages: 100},
		High:     event.Level{MaxPages: ^uint64(0)},
	}
	if o != event.OK {
		e.FailedAt = 2
	}
	return e
}

// with returns e, changed by f.
func with(e event.Event, f func(*event.Event)) event.Event {
	f(&e)
	return e
}

// kill returns an OOM kill in a cgroup by thread tid.
func kill(at uint64, tid uint32, cgroup uint64, victim uint32) event.Event {
	return event.Event{
		Type: event.OOMKill, BootNanos: info.StartBootNanos + at*ms, PID: tid, TID: tid, Comm: comm("p"), Cgroup: event.CgroupID{ID: cgroup},
		Victim: event.Victim{PID: victim, Comm: comm("victim"), AnonPages: 80, FilePages: 2},
	}
}

func newVerdict(t *testing.T, f text.Format, events ...event.Event) *Verdict {
	t.Helper()
	v := New(world.New(info), f)
	if err := v.Feed(stream.Tee()).Write(append(tree[:3:3], events...)); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestLimits(t *testing.T) {
	failed := charge(2, 7, 64, 90, event.Failed)
	own := with(failed, func(e *event.Event) { e.FailedAt, e.MaxPages = 3, 200 })
	zero := with(failed, func(e *event.Event) {
		e.Kind, e.FailedAt, e.MaxPages, e.Limiting = event.Hugetlb, 3, 0, event.Level{CgroupID: 3}
	})
	unknown := with(failed, func(e *event.Event) { e.Limiting.CgroupID = 1 })
	later := with(charge(4, 7, 64, 90, event.Failed), func(e *event.Event) { e.Limiting.MaxPages = 90 })
	device := with(failed, func(e *event.Event) { e.Kind = event.Dmem })
	high := with(charge(6, 7, 64, 10, event.OK), func(e *event.Event) { e.High = event.Level{CgroupID: 2, UsagePages: 10, MaxPages: 60} })
	for _, tc := range []struct {
		events []event.Event
		units  text.Units
		want   string
	}{
		{[]event.Event{failed, failed}, "", "/a: memory limit of 100 pages (400 KiB) hit 2 times, 2 charges failed; first at 2.0 ms by p (7)"},
		{[]event.Event{charge(1, 7, 64, 100, event.OK)}, "", "/a: memory limit of 100 pages (400 KiB) hit once, 0 charges failed; first at 1.0 ms by p (7)"},
		{[]event.Event{failed}, text.Bytes, "/a: memory limit of 409600 bytes hit once, 1 charge failed; first at 2.0 ms by p (7)"},
		{[]event.Event{own}, text.Human, "/a/b: memory limit of 800 KiB hit once, 1 charge failed; first at 2.0 ms by p (7)"},
		{[]event.Event{zero}, text.Pages, "/a/b: hugetlb limit of 0 pages hit once, 1 charge failed; first at 2.0 ms by p (7)"},
		{[]event.Event{unknown}, "", "/a: memory limit hit once, 1 charge failed; first at 2.0 ms by p (7)"},
		{[]event.Event{unknown, later, unknown}, text.Pages, "/a: memory limit of 90 pages hit 3 times, 3 charges failed; first at 2.0 ms by p (7)"},
		{[]event.Event{device}, "", "/a: dmem limit of 100 B hit once, 1 charge failed; first at 2.0 ms by p (7)"},
		{[]event.Event{high, high, unknown}, "", "/a: memory.high of 60 pages (240 KiB) exceeded, 2 charges throttled; first at 6.0 ms by p (7)"},
		{[]event.Event{kill(1, 9, 2, 8), failed}, "", "/a: memory limit of 100 pages (400 KiB) hit once, 1 charge failed; first in this trace, after an OOM kill, at 2.0 ms by p (7)"},
	} {
		v := newVerdict(t, text.Format{Units: tc.units}, tc.events...)
		if got := v.TellLimit(v.SortedLimits()[min(1, len(v.Limits)-1)]); got != tc.want {
			t.Errorf("%s\nwant %s", got, tc.want)
		}
	}
}

func TestOOMs(t *testing.T) {
	failed := charge(1, 7, 1, 100, event.Failed)
	const killed, small = "; victim (8) was killed, rss 328 KiB (anon 320, file 8, shmem 0)", "rss 328 KiB (anon 320, file 8, shmem 0)"
	for _, tc := range []struct {
		name   string
		events []event.Event
		want   []string // Tell of each
		kills  []string // TellKill of each
	}{
		{"a failed charge", []event.Event{failed, kill(2, 7, 2, 8)},
			[]string{"/a ran out of memory at its memory limit of 100 pages (400 KiB): p (7) was allocating" + killed},
			[]string{"OOM in /a: p (7) allocating; killed victim (8), " + small}},
		{"a lower limit", []event.Event{charge(1, 8, 64, 20, event.OK), kill(2, 7, 2, 8)},
			[]string{"/a ran out of memory: the OOM killer ran in p (7), which has no failed charge there in this trace, as when a limit is lowered" + killed},
			[]string{"OOM in /a: p (7) without a failed charge; killed victim (8), " + small}},
		{"a failed charge elsewhere", []event.Event{failed, kill(2, 7, 3, 8)},
			[]string{"/a/b ran out of memory: the OOM killer ran in p (7), which has no failed charge there in this trace, as when a limit is lowered" + killed},
			[]string{"OOM in /a/b: p (7) without a failed charge; killed victim (8), " + small}},
		{"the machine", []event.Event{kill(2, 7, 0, 8)},
			[]string{"the machine ran out of memory: p (7) was allocating" + killed},
			[]string{"OOM of the machine: p (7) allocating; killed victim (8), " + small}},
		{"a group, one killed twice", []event.Event{failed, kill(2, 7, 2, 8), kill(2, 7, 2, 9), with(charge(2, 7, 1, 0, event.OK), func(e *event.Event) { e.Flags = event.Remote }), kill(2, 7, 2, 8)},
			[]string{"/a ran out of memory at its memory limit of 100 pages (400 KiB): p (7) was allocating; 2 processes were killed as a group (memory.oom.group)" + killed + strings.Replace(killed, "8)", "9)", 1)},
			[]string{"OOM in /a: p (7) allocating; killed victim (8), " + small, "OOM in /a: p (7) allocating; killed victim (9), " + small, "OOM in /a: p (7) allocating; killed victim (8), " + small}},
		{"rss above the limit", []event.Event{with(failed, func(e *event.Event) { e.Limiting.MaxPages = 72 }), kill(2, 7, 2, 8)},
			[]string{"/a ran out of memory at its memory limit of 72 pages (288 KiB): p (7) was allocating" + killed + " (more than the limit: pages charged elsewhere are in its rss too)"},
			[]string{"OOM in /a: p (7) allocating; killed victim (8), " + small}},
		{"twice", []event.Event{failed, kill(2, 7, 2, 8), failed, kill(3, 7, 2, 8)},
			[]string{"/a ran out of memory at its memory limit of 100 pages (400 KiB): p (7) was allocating" + killed, "/a ran out of memory at its memory limit of 100 pages (400 KiB): p (7) was allocating" + killed},
			[]string{"OOM in /a: p (7) allocating; killed victim (8), " + small, "OOM in /a: p (7) allocating; killed victim (8), " + small}},
		{"memory and swap", []event.Event{with(failed, func(e *event.Event) { e.Kind = event.Memsw }), kill(2, 7, 2, 8)},
			[]string{"/a ran out of memory at its memsw limit of 100 pages (400 KiB): p (7) was allocating" + killed},
			[]string{"OOM in /a: p (7) allocating; killed victim (8), " + small}},
		{"swap does not kill", []event.Event{with(failed, func(e *event.Event) { e.Kind = event.Swap }), kill(2, 7, 2, 8)},
			[]string{"/a ran out of memory: the OOM killer ran in p (7), which has no failed charge there in this trace, as when a limit is lowered" + killed},
			[]string{"OOM in /a: p (7) without a failed charge; killed victim (8), " + small}},
	} {
		v := newVerdict(t, text.Format{}, tc.events...)
		var ooms, kills []string
		for _, o := range v.OOMs {
			ooms = append(ooms, v.Tell(o))
		}
		for i := range v.Kills {
			kills = append(kills, v.TellKill(v.Kills[i]))
		}
		if got, want := strings.Join(ooms, "\n"), strings.Join(tc.want, "\n"); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", tc.name, got, want)
		}
		if got, want := strings.Join(kills, "\n"), strings.Join(tc.kills, "\n"); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", tc.name, got, want)
		}
	}
}

func TestManyVictims(t *testing.T) {
	events := []event.Event{charge(1, 7, 1, 100, event.Failed)}
	for i := range uint32(maxVictims + 3) {
		events = append(events, kill(2, 7, 2, 10+i))
	}
	v := newVerdict(t, text.Format{}, events...)
	if got := v.Tell(v.OOMs[0]); strings.Count(got, "was killed") != maxVictims || !strings.Contains(got, " 23 processes ") || !strings.HasSuffix(got, "; and 3 more") {
		t.Error(got)
	}
}

func TestManyFailures(t *testing.T) {
	v := newVerdict(t, text.Format{})
	for i := range uint32(2*maxFailures + 1) {
		e := charge(1, i, 1, 100, event.Failed)
		v.Write([]event.Event{e})
		if len(v.failures) > maxFailures {
			t.Fatal(len(v.failures))
		}
	}
	v.Write([]event.Event{kill(2, 2*maxFailures, 2, 8)})
	if got := v.OOMs[0].Trigger; got != FailedCharge {
		t.Error(got)
	}
}

func TestHeadline(t *testing.T) {
	high := with(charge(6, 7, 64, 10, event.OK), func(e *event.Event) { e.High = event.Level{CgroupID: 2, UsagePages: 10, MaxPages: 60} })
	for want, events := range map[string][]event.Event{
		"No limit was hit":                                    nil,
		"/a is at its memory limit: charges failed":           {charge(1, 7, 1, 100, event.Failed)},
		"/a reached its memory limit":                         {charge(1, 7, 0, 100, event.OK)},
		"/a is above its memory.high: charges were throttled": {high},
		"/a ran out of memory":                                {charge(1, 7, 1, 100, event.Failed), kill(2, 7, 2, 8)},
		"The machine ran out of memory":                       {kill(2, 7, 0, 8)},
	} {
		if got := newVerdict(t, text.Format{}, events...).Headline(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
