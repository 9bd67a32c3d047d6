//go:build linux

package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"chargetrace/internal/text"
)

// The closing text must agree with the kernel's log and with memory.events.

// want checks that the closing text of a tracer that has ended has a text.
func (tr *tracer) want(t testing.TB, text string) {
	t.Helper()
	tr.end(t)
	if !strings.Contains(tr.stderr.String(), text) {
		t.Errorf("no %q in %s", text, tr.stderr)
	}
}

var killedSentence = regexp.MustCompile(`(\S+) \((\d+)\) was killed, rss `)

// checkVerdict checks that the closing text of a tracer, the kernel's log and the counts of a
// cgroup have the same OOM kills, all of them there, at a limit of so many bytes. victims is
// the cgroup of the victims, in which v1 counts them.
func (tr *tracer) checkVerdict(t testing.TB, g, victims cgroup, kind string, limitBytes int64) {
	t.Helper()
	tr.end(t)
	var told, logged []string
	for _, m := range killedSentence.FindAllStringSubmatch(tr.stderr.String(), -1) {
		told = append(told, m[1]+" "+m[2])
	}
	for _, v := range oomKills(t) {
		logged = append(logged, fmt.Sprintf("%s %d", v.Comm, v.PID))
	}
	counts, file := g, "memory.events"
	if !exists(filepath.Join(string(g), file)) {
		counts, file = victims, "memory.oom_control"
	}
	if n := counts.number(t, file, "oom_kill"); !slices.Equal(told, logged) || n != int64(len(told)) || n == 0 {
		t.Errorf("the text has the kills %q, the kernel's log %q, %s %d: %s", told, logged, file, n, tr.stderr)
	}
	f := text.Format{PageSize: int(pageSize)}
	want := fmt.Sprintf(" %s ran out of memory at its %s limit of %s: ", g.path(), kind, f.Limit(limitBytes/pageSize))
	n := 0
	for line := range strings.Lines(tr.stderr.String()) {
		if strings.Contains(line, want) && killedSentence.MatchString(line) {
			n++
		}
	}
	if n != len(told) {
		t.Errorf("%d times %q, want %d: %s", n, want, len(told), tr.stderr)
	}
}

// checkKills compares the kills in a trace of one cgroup with the kernel's log and
// memory.events, and returns them.
func checkKills(t testing.TB, tr *tracer, g cgroup) []event {
	t.Helper()
	tr.checkComplete(t)
	kills, logged := ofType(tr.events(t), "oom_kill"), oomKills(t)
	if len(kills) != len(logged) || int64(len(kills)) != g.number(t, "memory.events", "oom_kill") {
		t.Fatalf("%d OOM kills, kernel log %v, memory.events %s", len(kills), logged, readFile(t, filepath.Join(string(g), "memory.events")))
	}
	for i, e := range kills {
		checkVictim(t, e.Victim, logged[i])
		if e.Cgroup != g.path() || e.Victim.Cgroup != g.path() || e.Victim.PageTableBytes < pageSize {
			t.Errorf("kill %+v", e)
		}
	}
	return kills
}

// TestLoweredLimit lowers memory.max below what a process holds, which charges nothing more.
func TestLoweredLimit(t *testing.T) {
	if !Enter(t, Exact.On(All...)) {
		return
	}
	for _, attach := range []string{"kprobe", "fentry"} {
		t.Run(attach, func(t *testing.T) {
			exec.Command(busybox, "dmesg", "-c").Run()
			g := newCgroup(t)
			big := startWorkload(t, g, "named 8 big")
			tr := trace(t, "-cgroup", g.path(), "-attach", attach)
			big.begin(t)
			big.done(t)
			g.write(t, "memory.max", "2M")
			big.waitKilled(t)
			tr.stop(t)

			kills := checkKills(t, tr, g)
			limit := int64(2 << 20 / pageSize)
			if e := kills[0]; len(kills) != 1 || !e.has("limit_write") || e.PID != os.Getpid() || e.MaxPages == nil || *e.MaxPages != limit || e.UsagePages*pageSize < 6<<20 {
				t.Errorf("kills %+v", kills)
			}
			f := text.Format{PageSize: int(pageSize)}
			tr.want(t, fmt.Sprintf(" %s ran out of memory: its memory limit was set to %s, below the %s that it held, by %s (%d); big (%s) was killed, rss ",
				g.path(), f.Limit(limit), f.Limit(kills[0].UsagePages), kills[0].Comm, os.Getpid(), big.pid()))
		})
	}
}

// TestGroupKill kills all processes of a cgroup because one allocates.
func TestGroupKill(t *testing.T) {
	if !Enter(t, Exact.On(All...)) {
		return
	}
	g := newCgroup(t)
	g.write(t, "memory.max", "10M")
	g.write(t, "memory.oom.group", "1")
	alloc := startWorkload(t, g, "touch 20")
	idle := []*process{startWorkload(t, g, "touch 1"), startWorkload(t, g, "touch 1")}
	tr := trace(t, "-cgroup", g.path())
	alloc.begin(t)
	for _, p := range append(idle, alloc) {
		p.waitKilled(t)
	}
	tr.stop(t)

	var victims []int
	for _, e := range checkKills(t, tr, g) {
		if !slices.Contains(victims, e.Victim.PID) {
			victims = append(victims, e.Victim.PID)
		}
	}
	if len(victims) != 3 {
		t.Errorf("victims %v", victims)
	}
	tr.want(t, fmt.Sprintf(": workload (%s) was allocating; 3 processes were killed as a group (memory.oom.group); workload (", alloc.pid()))
	for _, pid := range victims {
		tr.want(t, fmt.Sprintf("; workload (%d) was killed, rss ", pid))
	}
	if n := strings.Count(tr.stderr.String(), " ran out of memory"); n != 1 {
		t.Errorf("%d runs of the OOM killer: %s", n, tr.stderr)
	}
}

// TestNoVictim fills a cgroup whose processes the kernel may not kill.
func TestNoVictim(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	g := newCgroup(t)
	g.write(t, "memory.max", "10M")
	p := startWorkload(t, g, "touch 20")
	p.spare(t)
	tr := trace(t, "-cgroup", g.path())
	p.begin(t)
	events := filepath.Join(string(g), "memory.events")
	waitForWrite(t, events, func() bool { return g.number(t, "memory.events", "oom") >= 10 })
	g.write(t, "memory.max", "max")
	p.done(t)
	p.wait(t)
	tr.stop(t)

	tr.checkComplete(t)
	runs := ofType(tr.events(t), "oom")
	for _, e := range runs {
		if e.Cgroup != g.path() || e.PID != p.Process.Pid || e.Result != "no_victim" || e.MaxPages == nil || *e.MaxPages != 10<<20/pageSize || e.has("limit_write") {
			t.Fatalf("run %+v", e)
		}
	}
	// The kernel's log has overflowed by now.
	if len(runs) < 2 || g.number(t, "memory.events", "oom") != int64(len(runs)) || g.number(t, "memory.events", "oom_kill") != 0 {
		t.Errorf("%d runs, memory.events %s", len(runs), readFile(t, events))
	}
	tr.want(t, fmt.Sprintf(" %s ran out of memory at its memory limit of 2560 pages (10.0 MiB): workload (%s) was allocating; the OOM killer ran %d times and found no process that it may kill.", g.path(), p.pid(), len(runs)))
}

// TestSleepForHigh touches much more than memory.high allows: the kernel lets the process
// sleep.
func TestSleepForHigh(t *testing.T) {
	if !Enter(t, Exact.On(All...)) {
		return
	}
	for _, attach := range []string{"kprobe", "fentry"} {
		t.Run(attach, func(t *testing.T) {
			a := newTop(t)
			a.write(t, "memory.high", "4M")
			b := a.child(t, "b")
			p := startWorkload(t, b, "touch 16")
			tr := trace(t, "-cgroup", a.path(), "-attach", attach)
			p.run(t)
			tr.stop(t)

			tr.checkComplete(t)
			sleeps := ofType(tr.events(t), "throttle")
			var slept int64
			for _, e := range sleeps {
				slept += e.DurationNanos
				if e.Cgroup != a.path() || e.PID != p.Process.Pid || e.HighPages != 4<<20/pageSize || e.UsagePages <= e.HighPages || e.DurationNanos <= 0 || e.DurationNanos > 2e9 {
					t.Errorf("sleep %+v", e)
				}
			}
			// The kernel's own time has the reclaim too.
			pressure := readFile(t, filepath.Join(string(a), "memory.pressure"))
			var total int64
			_, after, _ := strings.Cut(pressure, "total=")
			if _, err := fmt.Sscan(after, &total); err != nil {
				t.Fatalf("%v: %s", err, pressure)
			}
			if len(sleeps) == 0 || total*1000 < slept || a.number(t, "memory.events", "max") != 0 || a.number(t, "memory.events", "high") < int64(len(sleeps)) {
				t.Errorf("%d sleeps of %d ns, pressure %s", len(sleeps), slept, pressure)
			}
			f := text.Format{PageSize: int(pageSize)}
			tr.want(t, fmt.Sprintf("  %s: memory.high of %s exceeded, ", a.path(), f.Limit(4<<20/pageSize)))
			tr.want(t, fmt.Sprintf(" throttled, tasks slept %d times, up to %s in all: workload (%s) %[2]s; first at ", len(sleeps), text.Duration(slept), p.pid()))
		})
	}
}

// TestOOMDisabled fills a cgroup v1 in which the OOM killer is disabled: the process waits.
func TestOOMDisabled(t *testing.T) {
	if !Enter(t, Exact.On(V1...)) {
		return
	}
	mountV1(t)
	for _, attach := range []string{"kprobe", "fentry"} {
		t.Run(attach, func(t *testing.T) {
			g := newCgroupV1(t)
			g.write(t, "memory.limit_in_bytes", "10M")
			g.write(t, "memory.oom_control", "1")
			p := startWorkloadV1(t, g, "touch 20")
			tr := trace(t, "-cgroup", g.path(), "-attach", attach)
			p.begin(t)
			waitForWrite(t, tr.jsonl, func() bool { return strings.Contains(readFile(t, tr.jsonl), `"result":"disabled"`) })
			g.write(t, "memory.limit_in_bytes", "-1")
			p.done(t)
			p.wait(t)
			tr.stop(t)

			tr.checkComplete(t)
			waits := ofType(tr.events(t), "oom")
			for _, e := range waits {
				if e.Cgroup != g.path() || e.PID != p.Process.Pid || e.Result != "disabled" || e.MaxPages == nil || *e.MaxPages != 2560 {
					t.Errorf("wait %+v", e)
				}
			}
			tr.want(t, fmt.Sprintf(" %s ran out of memory at its memory limit of 2560 pages (10.0 MiB): workload (%s) was allocating, and waits for memory: the OOM killer is disabled there (memory.oom_control)", g.path(), p.pid()))
		})
	}
}

// TestHeldByTmpfs kills a process in a cgroup that is full of files in memory, of a child that
// is gone. Beside it another process lives.
func TestHeldByTmpfs(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	pod := newTop(t)
	pod.write(t, "memory.max", "32M")
	volume := t.TempDir()
	if err := unix.Mount("volume", volume, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(volume, 0) })
	first, second, other := pod.child(t, "first"), pod.child(t, "second"), pod.child(t, "other")
	startWorkload(t, first, "file "+volume+"/f 24").run(t)
	first.remove(t)
	lives := startWorkload(t, other, "named 2 lives")
	lives.spare(t)
	lives.begin(t)
	lives.done(t)
	p := startWorkload(t, second, "touch 20")
	tr := trace(t, "-cgroup", pod.path())
	p.begin(t)
	p.waitKilled(t)
	tr.stop(t)

	tr.checkComplete(t)
	var e event
	for _, x := range ofType(tr.events(t), "memory_stat") {
		if x.Cgroup == pod.path() && e.Type == "" {
			e = x
		}
	}
	// memory.stat lacks up to a batch of pages of each level in older kernels (memcg_page_state).
	if shmem := e.Stat["shmem"]; shmem > 24<<20 || shmem <= 23<<20 || e.UsagePages < shmem/pageSize || e.Stat["anon"] < 1<<20 {
		t.Errorf("memory.stat %+v", e)
	}
	tr.want(t, fmt.Sprintf(" %s ran out of memory at its memory limit of 8192 pages (32.0 MiB): workload (%s) was allocating; workload (%[2]s) was killed, rss ", pod.path(), p.pid()))
	for _, want := range []string{
		`[mµ]s later it held 3[12]\.\d MiB: shmem \(tmpfs, shared memory\) 2[34]\.\d MiB, anon \d\.\d MiB`,
		`Largest children then: /t\d+/\w+ \d\.\d MiB, /t\d+/\w+ \d\.\d MiB\.`,
		`Largest other processes then, by rss: lives \(` + lives.pid() + `\) [12]\.\d MiB\.`,
	} {
		if !regexp.MustCompile(want).MatchString(tr.stderr.String()) {
			t.Errorf("no %s in %s", want, tr.stderr)
		}
	}
}

// TestNoSwap kills a process in a cgroup whose parent may not swap, on a machine with swap.
func TestNoSwap(t *testing.T) {
	if !Enter(t, Exact.WithDisk().On(Ends...)) {
		return
	}
	swapOn(t)
	slice := newTop(t)
	slice.write(t, "memory.swap.max", "0")
	unit := slice.child(t, "unit")
	unit.write(t, "memory.max", "10M")
	p := startWorkload(t, unit, "touch 20")
	tr := trace(t, "-cgroup", slice.path())
	p.begin(t)
	p.waitKilled(t)
	tr.stop(t)
	tr.want(t, fmt.Sprintf("It could not swap: memory.swap.max of %s is 0.", slice.path()))
}
