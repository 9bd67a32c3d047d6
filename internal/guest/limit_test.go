//go:build linux

package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestAncestorsLimit fills a cgroup without a limit below one with a limit.
func TestAncestorsLimit(t *testing.T) {
	if !Enter(t, Exact) {
		return
	}
	for _, attach := range []string{"kprobe", "fentry"} {
		t.Run(attach, func(t *testing.T) { ancestorsLimit(t, attach) })
	}
}

func ancestorsLimit(t *testing.T, attach string) {
	a := newTop(t)
	a.write(t, "memory.max", "10M")
	b := a.child(t, "b")
	p := startWorkload(t, b, "touch 20")
	tr := trace(t, "-pid", p.pid(), "-attach", attach)
	plain := chargetrace(t, "-pid", p.pid(), "-attach", attach)
	limited := trace(t, "-pid", p.pid(), "-attach", attach, "-limited")
	own, failures := a.usagePages(t)-b.usagePages(t), a.number(t, "memory.events", "max")
	p.begin(t)
	p.waitKilled(t)

	charges := tr.charges(t)
	if attach == "kprobe" { // the first in the kernel's log
		tr.checkVerdict(t, a, b, "memory", 10<<20)
	}
	checkMarks(t, plain, charges, a)
	checkLimit(t, charges, a, b, own)
	failed := withOutcome(charges, "failed")
	if got, want := int64(len(failed)), a.number(t, "memory.events", "max")-failures; got != want || want == 0 {
		t.Errorf("%d charges failed, but memory.events says %d", got, want)
	}
	hits := slices.DeleteFunc(slices.Clone(charges), func(e event) bool { return !e.hitsLimit() })
	sameEvents(t, ofType(limited.events(t), "charge"), hits)
	if c := limited.counted(t); c.lost != 0 || c.missed != 0 || c.seen != uint64(len(charges)) {
		t.Errorf("-limited: %+v, want all %d charges seen: %s", c, len(charges), limited.stderr)
	}
}

// checkMarks checks that the table marks the charges that find a at its limit.
func checkMarks(t *testing.T, tr *tracer, charges []event, a cgroup) {
	t.Helper()
	rows, _ := tr.table(t)
	var got, want []string
	was := false
	for i, e := range charges {
		mark := ""
		if e.atLimit() {
			mark = "* " + a.path()
			if !was {
				mark = "* LIMIT REACHED " + a.path()
			}
		}
		was = e.atLimit()
		want = append(want, fmt.Sprint(e.RequestedPages, e.UsagePages, mark))
		if i < len(rows) {
			got = append(got, fmt.Sprint(rows[i].requested, rows[i].current, rows[i].mark))
		}
	}
	if !slices.Equal(got, want) || !was {
		t.Errorf("the table has\n%q\nwant\n%q", got, want)
	}
}

// checkLimit checks that charges to b report the limit of its parent a. No other cgroup
// charges a: its usage is that of b, plus own pages. Those only decrease, when the kernel
// drains a CPU's stock.
func checkLimit(t *testing.T, charges []event, a, b cgroup, own int64) {
	t.Helper()
	for i, e := range charges {
		level := e.Limiting
		if e.Cgroup != b.path() || e.Kind != "memory" || e.MaxPages != nil || e.has("remote") ||
			e.has("retry") != (i > 0 && charges[i-1].Outcome == "miss") ||
			level == nil || level.Cgroup != a.path() || level.MaxPages != 2560 || level.RoomPages != level.MaxPages-level.UsagePages {
			t.Errorf("charge %+v", e)
			continue
		}
		if level.UsagePages > e.UsagePages+own {
			t.Errorf("%v: the level with the limit has more than %d pages of its own", e, own)
		}
		own = level.UsagePages - e.UsagePages
		fits := level.UsagePages+e.RequestedPages <= level.MaxPages
		if fits != (e.Outcome == "ok") || (e.FailedAt == a.path()) == fits {
			t.Errorf("%v: %s, failed at %q", e, e.Outcome, e.FailedAt)
		}
	}
}

// TestThrottled touches 2 MiB more than memory.high of the cgroup above allows: no charge
// fails, but -limited shows those that the kernel throttles.
func TestThrottled(t *testing.T) {
	if !Enter(t, Exact) {
		return
	}
	for _, attach := range []string{"kprobe", "fentry"} {
		t.Run(attach, func(t *testing.T) {
			a := newTop(t)
			a.write(t, "memory.high", "6M")
			b := a.child(t, "b")
			p := startWorkload(t, b, "touch 8")
			tr := trace(t, "-pid", p.pid(), "-attach", attach)
			limited := trace(t, "-pid", p.pid(), "-attach", attach, "-limited")
			p.run(t)

			throttled := slices.DeleteFunc(tr.charges(t), func(e event) bool {
				return e.Outcome != "ok" || e.High.Cgroup != a.path() || e.High.RoomPages >= e.RequestedPages
			})
			if len(throttled) == 0 || a.number(t, "memory.events", "high") == 0 || a.number(t, "memory.events", "max") != 0 {
				t.Errorf("%d charges throttled; memory.events %s", len(throttled), readFile(t, filepath.Join(string(a), "memory.events")))
			}
			sameEvents(t, limited.charges(t), throttled)
		})
	}
}

// TestVictim allocates in a small process until the kernel kills a big one.
func TestVictim(t *testing.T) {
	if !Enter(t, Exact) {
		return
	}
	g := newCgroup(t)
	big := startWorkload(t, g, "named 8 big")
	began := anonPages(t, big)
	big.begin(t)
	big.done(t)
	small := startWorkload(t, g, "named 4 small")
	// An exiting task stops being a victim before it has freed all its pages (MMF_OOM_SKIP
	// in exit_mmap): the kernel could kill the small one too.
	small.spare(t)
	tr := trace(t, "-pid", small.pid())
	g.write(t, "memory.max", strconv.FormatInt(g.number(t, "memory.current", "")+1<<20, 10))
	anon := anonPages(t, big)
	if anon != began+2048 {
		t.Errorf("the big process touched %d pages, want 8 MiB", anon-began)
	}
	small.begin(t)
	big.waitKilled(t)
	small.done(t)
	small.wait(t)

	tr.charges(t)
	kills := ofType(tr.events(t), "oom_kill")
	logged := oomKills(t)
	if len(kills) != 1 || len(logged) != 1 {
		t.Fatalf("OOM kills %v, kernel log %v", kills, logged)
	}
	kill := kills[0]
	if kill.Cgroup != g.path() || kill.PID != small.Process.Pid || kill.Comm != "small" || kill.Victim.PID != big.Process.Pid {
		t.Errorf("%v: %+v", kill, kill.Victim)
	}
	checkVictim(t, kill.Victim, logged[0])
	tr.checkVerdict(t, g, g, "memory", g.number(t, "memory.max", ""))
	if logged[0].AnonPages > anon {
		t.Errorf("the kernel's log has %+v, but the process had %d anonymous pages", logged[0], anon)
	}
}

// checkVictim compares a victim with the one in the kernel's log. The kernel updates the
// counters in steps: of 64 page faults of a thread before Linux 6.2
// (TASK_RSS_EVENTS_THRESH), of 32 pages of a CPU since (percpu_counter). The event lacks
// pages of an unfinished step; in some kernels so does the log (get_mm_counter).
func checkVictim(t testing.TB, got, logged victim) {
	t.Helper()
	for _, late := range []int64{logged.AnonPages - got.AnonPages, logged.FilePages - got.FilePages, logged.ShmemPages - got.ShmemPages} {
		if late < 0 || late > 64 || got.PID != logged.PID || got.Comm != logged.Comm || got.SwapPages != 0 {
			t.Errorf("victim %+v, kernel log %+v", got, logged)
		}
	}
}

// anonPages returns the number of anonymous pages in a process's page tables.
func anonPages(t testing.TB, p *process) int64 {
	t.Helper()
	content, err := os.ReadFile("/proc/" + p.pid() + "/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	var kib int64
	_, after, _ := strings.Cut(string(content), "\nAnonymous:")
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatalf("%v: %s", err, content)
	}
	return kib << 10 / pageSize
}
