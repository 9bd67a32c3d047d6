package verdict

import (
	"cmp"
	"slices"
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

// charge returns a charge of thread tid to /a/b. Its parent /a has the least room.
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
		{[]event.Event{failed, failed}, "", "/a: memory limit of 100 pages (400 KiB) hit twice, 2 charges failed; first at 2.0 ms by p (7)"},
		{[]event.Event{charge(1, 7, 64, 100, event.OK)}, "", "/a: memory limit of 100 pages (400 KiB) hit once; first at 1.0 ms by p (7)"},
		{[]event.Event{failed}, text.Bytes, "/a: memory limit of 409600 bytes hit once, 1 charge failed; first at 2.0 ms by p (7)"},
		{[]event.Event{own}, text.Human, "/a/b: memory limit of 800 KiB hit once, 1 charge failed; first at 2.0 ms by p (7)"},
		{[]event.Event{zero}, text.Pages, "/a/b: hugetlb limit of 0 pages hit once, 1 charge failed; first at 2.0 ms by p (7)"},
		{[]event.Event{unknown}, "", "/a: memory limit hit once, 1 charge failed; first at 2.0 ms by p (7)"},
		{[]event.Event{unknown, later, unknown}, text.Pages, "/a: memory limit of 90 pages hit 3 times, 3 charges failed; first at 2.0 ms by p (7)"},
		{[]event.Event{failed, later}, "", "/a: memory limit of 100 pages (400 KiB), later 90 pages (360 KiB), hit twice, 2 charges failed; first at 2.0 ms by p (7)"},
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
			[]string{"/a ran out of memory: the OOM killer ran in p (7), which has no failed charge in this trace: the limit may have been lowered" + killed},
			[]string{"OOM in /a: the OOM killer ran in p (7); killed victim (8), " + small}},
		{"a failed charge elsewhere", []event.Event{failed, kill(2, 7, 3, 8)},
			[]string{"/a/b ran out of memory: the OOM killer ran in p (7), which has no failed charge in this trace: the limit may have been lowered" + killed},
			[]string{"OOM in /a/b: the OOM killer ran in p (7); killed victim (8), " + small}},
		{"the machine", []event.Event{kill(2, 7, 0, 8)},
			[]string{"the OOM killer ran for the machine: it ran in p (7)" + killed},
			[]string{"OOM of the machine: the OOM killer ran in p (7); killed victim (8), " + small}},
		{"a group, one killed twice", []event.Event{failed, kill(2, 7, 2, 8), kill(2, 7, 2, 9), with(charge(2, 7, 1, 0, event.OK), func(e *event.Event) { e.Flags = event.Remote }), kill(2, 7, 2, 8)},
			[]string{"/a ran out of memory at its memory limit of 100 pages (400 KiB): p (7) was allocating; 2 processes were killed" + killed + strings.Replace(killed, "8)", "9)", 1)},
			[]string{"OOM in /a: p (7) allocating; killed victim (8), " + small, "OOM in /a: p (7) allocating; killed victim (9), " + small, "OOM in /a: p (7) allocating; killed victim (8), " + small}},
		{"rss above the limit", []event.Event{with(failed, func(e *event.Event) { e.Limiting.MaxPages = 64 }), kill(2, 7, 2, 8)},
			[]string{"/a ran out of memory at its memory limit of 64 pages (256 KiB): p (7) was allocating" + killed + " (above the limit, since rss also counts pages that are not charged to this cgroup)"},
			[]string{"OOM in /a: p (7) allocating; killed victim (8), " + small}},
		{"twice", []event.Event{failed, kill(2, 7, 2, 8), failed, kill(3, 7, 2, 8)},
			[]string{"/a ran out of memory at its memory limit of 100 pages (400 KiB): p (7) was allocating" + killed, "/a ran out of memory at its memory limit of 100 pages (400 KiB): p (7) was allocating" + killed},
			[]string{"OOM in /a: p (7) allocating; killed victim (8), " + small, "OOM in /a: p (7) allocating; killed victim (8), " + small}},
		{"memory and swap", []event.Event{with(failed, func(e *event.Event) { e.Kind = event.Memsw }), kill(2, 7, 2, 8)},
			[]string{"/a ran out of memory at its memsw limit of 100 pages (400 KiB): p (7) was allocating" + killed},
			[]string{"OOM in /a: p (7) allocating; killed victim (8), " + small}},
		{"swap does not kill", []event.Event{with(failed, func(e *event.Event) { e.Kind = event.Swap }), kill(2, 7, 2, 8)},
			[]string{"/a ran out of memory: the OOM killer ran in p (7), which has no failed charge in this trace: the limit may have been lowered" + killed},
			[]string{"OOM in /a: the OOM killer ran in p (7); killed victim (8), " + small}},
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

// started completes an event of the OOM killer as since version 4 of recordings.
func started(e event.Event, usage int64, max uint64, flags event.Flags) event.Event {
	e.OOMNanos, e.UsagePages, e.MaxPages, e.Flags = e.BootNanos-ms/2, usage, max, flags
	return e
}

// idle returns a run of the OOM killer in /a that killed nobody.
func idle(at uint64, tid uint32, r event.OOMResult) event.Event {
	e := started(kill(at, tid, 2, 0), 100, 100, 0)
	e.Type, e.Victim, e.Result = event.OOM, event.Victim{}, r
	return e
}

// TestRuns checks what events with the state of the OOM killer say.
func TestRuns(t *testing.T) {
	failed := charge(1, 7, 1, 100, event.Failed)
	killed := func(e event.Event) event.Event {
		e.Victim.PageTableBytes, e.Victim.CgroupID = 8192, 3
		return e
	}
	const victim = "victim (8) was killed, rss 328 KiB (anon 320, file 8, shmem 0), page tables 8 KiB"
	v1 := func(e event.Event) event.Event {
		e.Cgroup.Hierarchy = 4
		return e
	}
	second := started(kill(3, 7, 2, 9), 90, 90, 0)
	second.OOMNanos++
	for _, tc := range []struct {
		name   string
		events []event.Event
		want   []string // Tell of each
		line   string   // TellKill or TellIdle of the first
	}{
		{"a lower limit", []event.Event{killed(started(kill(2, 7, 2, 8), 300, 100, event.LimitWrite))},
			[]string{"/a ran out of memory: its memory limit was set to 100 pages (400 KiB), below the 300 pages (1.1 MiB) that it held, by p (7); " + victim},
			"OOM in /a: limit set to 400 KiB by p (7); killed victim (8), rss 328 KiB (anon 320, file 8, shmem 0), page tables 8 KiB"},
		{"a lower limit after a failure", []event.Event{failed, killed(started(kill(2, 7, 2, 8), 300, 100, event.LimitWrite))},
			[]string{"/a ran out of memory: its memory limit was set to 100 pages (400 KiB), below the 300 pages (1.1 MiB) that it held, by p (7); " + victim}, ""},
		{"its limit changed since", []event.Event{failed, killed(started(kill(2, 7, 2, 8), 90, 90, 0))},
			[]string{"/a ran out of memory at its memory limit of 90 pages (360 KiB): p (7) was allocating; " + victim},
			"OOM in /a: p (7) allocating; killed victim (8), rss 328 KiB (anon 320, file 8, shmem 0), page tables 8 KiB"},
		{"the charge is filtered", []event.Event{killed(started(kill(2, 7, 2, 8), 90, 90, 0))},
			[]string{"/a ran out of memory at its memory limit of 90 pages (360 KiB): p (7) was allocating; " + victim}, ""},
		{"the charge to memory and swap is filtered", []event.Event{v1(killed(started(kill(2, 7, 2, 8), 90, 1<<50, 0)))},
			[]string{"(cgroup 2) ran out of memory at its memsw limit: p (7) was allocating; " + victim}, ""},
		{"SysRq-f", []event.Event{killed(started(kill(2, 7, 0, 8), 0, 0, event.SysRq))},
			[]string{"the OOM killer ran for the machine: requested with SysRq-f; " + victim},
			"OOM of the machine: requested with SysRq-f; killed victim (8), rss 328 KiB (anon 320, file 8, shmem 0), page tables 8 KiB"},
		{"the nodes of a cpuset", []event.Event{killed(started(kill(2, 7, 0, 8), 0, 0, event.Cpuset))},
			[]string{"no memory was left on the NUMA nodes that the cpuset of p (7) allows: p (7) was allocating; " + victim},
			"OOM on the NUMA nodes that the cpuset of p (7) allows: p (7) allocating; killed victim (8), rss 328 KiB (anon 320, file 8, shmem 0), page tables 8 KiB"},
		{"the nodes of a memory policy", []event.Event{with(idle(2, 7, event.NoVictim), func(e *event.Event) { e.Cgroup.ID, e.Flags = 0, event.Mempolicy })},
			[]string{"no memory was left on the NUMA nodes that the memory policy of p (7) allows: p (7) was allocating; the OOM killer ran once and found no process that it may kill"},
			"OOM on the NUMA nodes that the memory policy of p (7) allows: p (7) allocating; no process that it may kill"},
		{"a cgroup whose OOM killer was not seen to start", []event.Event{killed(with(kill(2, 7, 0, 8), func(e *event.Event) { e.Flags = event.UnknownCgroup }))},
			[]string{"/a/b or a cgroup above it ran out of memory: the OOM killer ran in p (7), and its start was not seen; " + victim},
			"OOM in /a/b or a cgroup above it: the OOM killer ran in p (7); killed victim (8), rss 328 KiB (anon 320, file 8, shmem 0), page tables 8 KiB"},
		{"the same, and the machine later", []event.Event{with(kill(2, 7, 0, 8), func(e *event.Event) { e.Flags = event.UnknownCgroup }), with(idle(3, 7, event.VictimExits), func(e *event.Event) { e.Cgroup.ID = 0 })},
			[]string{"a cgroup ran out of memory: the OOM killer ran in p (7), and its start was not seen; victim (8) was killed, rss 328 KiB (anon 320, file 8, shmem 0)",
				"the machine ran out of memory: p (7) was allocating; the OOM killer ran once and killed nobody: a process was already exiting"}, ""},
		{"GFP_NOFS", []event.Event{with(idle(3, 7, event.NoFS), func(e *event.Event) { e.Cgroup.ID = 0 })},
			[]string{"an allocation found no memory: p (7) was allocating; the OOM killer ran once and killed nobody, as for all allocations that must not enter file systems (GFP_NOFS)"},
			"OOM of an allocation: p (7) allocating; no kill for an allocation that must not enter file systems (GFP_NOFS)"},
		{"one of a group", []event.Event{killed(started(kill(2, 7, 2, 8), 90, 90, event.Group))},
			[]string{"/a ran out of memory at its memory limit of 90 pages (360 KiB): p (7) was allocating; a group was killed (memory.oom.group); " + victim}, ""},
		{"a task of another cgroup", []event.Event{with(failed, func(e *event.Event) { e.Flags = event.Remote }), killed(started(kill(2, 7, 2, 8), 90, 90, 0))},
			[]string{"/a ran out of memory at its memory limit of 90 pages (360 KiB): p (7) was allocating for another cgroup than its own; " + victim}, ""},
		{"a limit lowered by another task", []event.Event{killed(started(kill(2, 7, 2, 8), 300, 90, 0))},
			[]string{"/a ran out of memory at its memory limit of 90 pages (360 KiB): p (7) was allocating, and the cgroup held 300 pages (1.1 MiB): the limit may have been lowered; " + victim}, ""},
		{"contiguous pages", []event.Event{killed(with(started(kill(2, 7, 0, 8), 0, 0, 0), func(e *event.Event) { e.Order = 3 }))},
			[]string{"the machine had no 8 contiguous free pages: p (7) was allocating; " + victim}, ""},
		{"a run without a kill much later", []event.Event{killed(started(kill(2, 7, 2, 8), 90, 90, 0)), idle(2000, 7, event.TaskExits)},
			[]string{"/a ran out of memory at its memory limit of 90 pages (360 KiB): p (7) was allocating; " + victim,
				"/a ran out of memory at its memory limit of 100 pages (400 KiB): p (7) was allocating; the OOM killer ran once and killed nobody: the task was already exiting"}, ""},
		{"runs of several tasks", []event.Event{idle(2, 7, event.NoVictim), idle(3, 9, event.NoVictim)},
			[]string{"/a ran out of memory at its memory limit of 100 pages (400 KiB): p (7) and others were allocating; the OOM killer ran twice and found no process that it may kill, the last time at 3.0 ms"}, ""},
		{"no victim of an unknown cgroup, which no kernel sends", []event.Event{with(idle(2, 7, event.NoVictim), func(e *event.Event) { e.Cgroup.ID, e.Flags = 0, event.UnknownCgroup })},
			[]string{"a cgroup ran out of memory: the OOM killer ran in p (7), and its start was not seen; the OOM killer ran once and found no process that it may kill"}, ""},
		{"two runs of one thread", []event.Event{killed(started(kill(2, 7, 2, 8), 90, 90, 0)), second},
			[]string{"/a ran out of memory at its memory limit of 90 pages (360 KiB): p (7) was allocating; " + victim,
				"/a ran out of memory at its memory limit of 90 pages (360 KiB): p (7) was allocating; victim (9) was killed, rss 328 KiB (anon 320, file 8, shmem 0)"}, ""},
		{"no victim", []event.Event{failed, idle(2, 7, event.NoVictim), failed, idle(3, 7, event.NoVictim)},
			[]string{"/a ran out of memory at its memory limit of 100 pages (400 KiB): p (7) was allocating; the OOM killer ran twice and found no process that it may kill, the last time at 3.0 ms"},
			"OOM in /a: p (7) allocating; no process that it may kill"},
		{"a victim that exits", []event.Event{killed(started(kill(2, 7, 2, 8), 90, 90, 0)), idle(3, 7, event.VictimExits), idle(4, 9, event.TaskExits)},
			[]string{"/a ran out of memory at its memory limit of 90 pages (360 KiB): p (7) was allocating; " + victim + "; right after that, the OOM killer ran twice without a kill"}, ""},
		{"a group of this version", []event.Event{killed(started(kill(2, 7, 2, 8), 90, 90, 0)), with(charge(2, 7, 1, 0, event.OK), func(*event.Event) {}), started(kill(2, 7, 2, 9), 90, 90, 0)},
			[]string{"/a ran out of memory at its memory limit of 90 pages (360 KiB): p (7) was allocating; 2 processes were killed as a group (memory.oom.group); " + victim +
				"; victim (9) was killed, rss 328 KiB (anon 320, file 8, shmem 0)"}, ""},
		{"an rss that is unknown", []event.Event{with(started(kill(2, 7, 2, 8), 90, 90, 0), func(e *event.Event) { e.Victim.AnonPages, e.Victim.FilePages = 0, 0 })},
			[]string{"/a ran out of memory at its memory limit of 90 pages (360 KiB): p (7) was allocating; victim (8) was killed, rss unknown"}, ""},
		{"runs with two triggers", []event.Event{idle(2, 7, event.NoVictim), with(idle(3, 9, event.NoVictim), func(e *event.Event) { e.Flags, e.UsagePages = event.LimitWrite, 150 })},
			[]string{"/a ran out of memory at its memory limit of 100 pages (400 KiB): p (7) was allocating; the OOM killer ran once and found no process that it may kill",
				"/a ran out of memory: its memory limit was set to 100 pages (400 KiB), below the 150 pages (600 KiB) that it held, by p (9); the OOM killer ran once and found no process that it may kill"}, ""},
		{"an earlier victim that exits", []event.Event{idle(3, 7, event.VictimExits)},
			[]string{"/a ran out of memory at its memory limit of 100 pages (400 KiB): p (7) was allocating; the OOM killer ran once and killed nobody: a process was already exiting"},
			"OOM in /a: p (7) allocating; no kill: a process is already exiting"},
		{"the task exits", []event.Event{idle(3, 7, event.TaskExits)},
			[]string{"/a ran out of memory at its memory limit of 100 pages (400 KiB): p (7) was allocating; the OOM killer ran once and killed nobody: the task was already exiting"},
			"OOM in /a: p (7) allocating; no kill: the task is exiting, or memory became free"},
		{"disabled", []event.Event{idle(3, 7, event.Disabled), idle(4, 7, event.Disabled)},
			[]string{"/a ran out of memory at its memory limit of 100 pages (400 KiB): p (7) was allocating, and waited, since memory.oom_control disables the OOM killer; tasks waited twice, the last time at 4.0 ms"},
			"OOM in /a: p (7) allocating; it waits, since memory.oom_control disables the OOM killer"},
	} {
		v := newVerdict(t, text.Format{}, tc.events...)
		var ooms []string
		for _, o := range v.OOMs {
			ooms = append(ooms, v.Tell(o))
		}
		if got, want := strings.Join(ooms, "\n"), strings.Join(tc.want, "\n"); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", tc.name, got, want)
		}
		line := v.TellIdle(v.OOMs[0])
		if len(v.Kills) > 0 {
			line = v.TellKill(v.Kills[0])
		}
		if tc.line != "" && line != tc.line {
			t.Errorf("%s:\n%s\nwant\n%s", tc.name, line, tc.line)
		}
	}
	v := newVerdict(t, text.Format{}, killed(started(kill(2, 7, 2, 8), 90, 90, 0)), idle(3, 7, event.VictimExits))
	if v.OOMs[0].Again != 1 || v.Kills[0].VictimCgroup != (event.CgroupID{ID: 3}) || v.OOMs[0].BootNanos != info.StartBootNanos+3*ms/2 {
		t.Errorf("%+v", v.OOMs[0])
	}
}

func TestSleeps(t *testing.T) {
	sleep := func(at uint64, pid uint32, nanos uint64) event.Event {
		return event.Event{Type: event.Throttle, BootNanos: info.StartBootNanos + at*ms, PID: pid, TID: pid, Comm: comm("p"), Cgroup: event.CgroupID{ID: 2}, Kind: event.Memory,
			UsagePages: 90, MaxPages: 60, DurationNanos: nanos}
	}
	var many []event.Event
	for pid := range uint32(2 * maxSleepers) {
		many = append(many, sleep(1, 10+pid, ms))
	}
	high := with(charge(1, 7, 64, 10, event.OK), func(e *event.Event) { e.High = event.Level{CgroupID: 2, UsagePages: 10, MaxPages: 60} })
	for _, tc := range []struct {
		events []event.Event
		want   string
	}{
		{[]event.Event{high, sleep(2, 7, 2e9), sleep(3, 8, 3e9), sleep(4, 7, 2e9)},
			"/a: memory.high of 60 pages (240 KiB) exceeded, 1 charge throttled, tasks slept 3 times, about 7.00 s in total: p (7) 4.00 s, p (8) 3.00 s; first at 1.0 ms by p (7)"},
		{[]event.Event{sleep(2, 7, ms)}, "/a: memory.high of 60 pages (240 KiB) exceeded, p (7) slept once, about 1.0 ms in total; first at 2.0 ms by p (7)"},
		{[]event.Event{with(sleep(2, 7, ms), func(e *event.Event) { e.Kind = event.Swap })},
			"/a: memory.swap.high of 60 pages (240 KiB) exceeded, p (7) slept once, about 1.0 ms in total; first at 2.0 ms by p (7)"},
		{many, "/a: memory.high of 60 pages (240 KiB) exceeded, tasks slept 128 times, about 128.0 ms in total: p (10) 1.0 ms, p (11) 1.0 ms, p (12) 1.0 ms, and others; first at 1.0 ms by p (10)"},
	} {
		v := newVerdict(t, text.Format{}, tc.events...)
		if got := v.TellLimit(v.SortedLimits()[0]); got != tc.want {
			t.Errorf("%s\nwant %s", got, tc.want)
		}
	}
}

// TestChargers checks who charged most to a cgroup that runs out of memory: not a process
// that charges another one more, nor one that has given back what it charged.
func TestChargers(t *testing.T) {
	other := with(charge(1, 20, 5000, 0, event.OK), func(e *event.Event) { e.Cgroup.ID = 9 })
	back := with(charge(1, 21, 60, 0, event.OK), func(e *event.Event) { e.Type = event.Uncharge })
	failed := charge(1, 7, 1, 100, event.Failed)
	net := info
	net.Net = true
	for _, tc := range []struct {
		info   stream.Info
		events []event.Event
		want   string
	}{
		{info, []event.Event{other, charge(1, 7, 10, 0, event.OK), charge(1, 8, 30, 0, event.OK), failed, kill(2, 7, 2, 8)},
			"Charged to it in this trace, frees not deducted: p (8) 120 KiB, p (7) 40 KiB."},
		{net, []event.Event{charge(1, 21, 64, 0, event.OK), charge(1, 8, 30, 0, event.OK), back, failed, kill(2, 7, 2, 8)},
			"Charged to it in this trace, less what the same process gave back: p (8) 120 KiB, p (21) 16 KiB."},
		{info, []event.Event{other, charge(1, 7, 10, 0, event.OK), kill(2, 7, 0, 8)},
			"Charged to cgroups in this trace, frees not deducted: p (20) 19.5 MiB, p (7) 40 KiB."},
	} {
		v := New(world.New(tc.info), text.Format{})
		if err := v.Feed(stream.Tee()).Write(append(tree[:3:3], tc.events...)); err != nil {
			t.Fatal(err)
		}
		story := v.Story(v.OOMs[0])
		if got := story[len(story)-1]; got != tc.want {
			t.Errorf("%s\nwant %s", got, tc.want)
		}
	}
}

// TestRecentChargers checks who charged most in the last minute before an OOM.
func TestRecentChargers(t *testing.T) {
	const s = 1000
	events := []event.Event{charge(1, 7, 100, 0, event.OK), charge(3*s, 8, 10, 0, event.OK), charge(30*s, 7, 5, 0, event.OK)}
	for at := uint64(1); at < 100; at++ {
		events = append(events, charge(at*s, 9, 1, 0, event.OK))
	}
	for _, tc := range []struct {
		at   uint64
		want []string
	}{
		{40, []string{"Charged to it in this trace, frees not deducted: p (7) 420 KiB, p (9) 160 KiB, p (8) 40 KiB."}},
		{100, []string{"Charged to it in this trace, frees not deducted: p (7) 420 KiB, p (9) 396 KiB, p (8) 40 KiB.", "Charged to it in the last 1m06s, frees not deducted: p (9) 264 KiB."}},
	} {
		before := slices.DeleteFunc(slices.Clone(events), func(e event.Event) bool { return e.BootNanos > info.StartBootNanos+tc.at*s*ms })
		slices.SortStableFunc(before, func(a, b event.Event) int { return cmp.Compare(a.BootNanos, b.BootNanos) })
		v := newVerdict(t, text.Format{}, append(before, kill(tc.at*s, 7, 2, 8))...)
		if got := v.Story(v.OOMs[0])[1:]; !slices.Equal(got, tc.want) {
			t.Errorf("at %d s: %q\nwant %q", tc.at, got, tc.want)
		}
	}
}

// TestFullSince checks since when charges hit a limit: the last time that more than a second
// passed without.
func TestFullSince(t *testing.T) {
	failed := func(at uint64) event.Event { return charge(at, 7, 1, 100, event.Failed) }
	for want, events := range map[string][]event.Event{
		"Charges had been hitting this limit for 900.0 ms, from 2.60 s on.": {failed(100), failed(1500), failed(2600), failed(3400), kill(3500, 7, 2, 8)},
		"": {failed(100), kill(3500, 7, 2, 8)},
	} {
		v := newVerdict(t, text.Format{}, events...)
		if got := strings.Join(v.Story(v.OOMs[0])[1:], " "); got != want {
			t.Errorf("%q\nwant %q", got, want)
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
		"No limit was hit": nil,
		"/a reached its memory limit: 1 charge failed":        {charge(1, 7, 1, 100, event.Failed)},
		"/a reached its memory limit":                         {charge(1, 7, 0, 100, event.OK)},
		"/a is above its memory.high: charges were throttled": {high},
		"/a ran out of memory":                                {charge(1, 7, 1, 100, event.Failed), kill(2, 7, 2, 8)},
		"The OOM killer ran for the machine":                  {started(kill(2, 7, 0, 8), 0, 0, event.SysRq)},
		"The machine ran out of memory":                       {started(kill(2, 7, 0, 8), 0, 0, 0)},
	} {
		if got := newVerdict(t, text.Format{}, events...).Headline(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
