//go:build linux

package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"chargetrace/internal/text"
)

// want checks that the closing text of a tracer contains words.
func (tr *tracer) want(t testing.TB, words string) {
	t.Helper()
	tr.end(t)
	if !strings.Contains(tr.stderr.String(), words) {
		t.Errorf("no %q in %s", words, tr.stderr)
	}
}

// checkSleeps checks the sleeps of a process because a cgroup is above a limit of a kind, and
// returns how many there are and how long they last.
func (tr *tracer) checkSleeps(t testing.TB, g cgroup, p *process, kind string, highPages int64) (n, nanos int64) {
	t.Helper()
	tr.checkComplete(t)
	for _, e := range ofType(tr.events(t), "throttle") {
		n++
		nanos += e.DurationNanos
		if e.Cgroup != g.path() || e.PID != p.Process.Pid || e.Kind != kind || e.HighPages != highPages || e.UsagePages <= highPages || e.DurationNanos <= 0 || e.DurationNanos > 2e9 {
			t.Errorf("sleep %+v", e)
		}
	}
	if n < 3 {
		t.Errorf("%d sleeps", n)
	}
	return n, nanos
}

var killedSentence = regexp.MustCompile(`(\S+) \((\d+)\) was killed, rss `)

// checkVerdict checks that the closing text of a tracer, the kernel's log and the counts of a
// cgroup have the same OOM kills, all of them there, at a limit of so many bytes. victims is
// the cgroup of the victims, in which v1 counts them.
func (tr *tracer) checkVerdict(t testing.TB, g, victims cgroup, kind string, limitBytes int64) {
	t.Helper()
	tr.end(t)
	counts := g
	if !exists(filepath.Join(string(g), "memory.events")) {
		counts = victims
	}
	checkVerdict(t, tr.stderr.String(), g.path(), counts, kind, limitBytes)
}

// checkVerdict is the same for a text of any output. counts is the cgroup that counts the
// kills, or empty if it was removed.
func checkVerdict(t testing.TB, closing, path string, counts cgroup, kind string, limitBytes int64) {
	t.Helper()
	var told, logged []string
	for _, m := range killedSentence.FindAllStringSubmatch(closing, -1) {
		told = append(told, m[1]+" "+m[2])
	}
	for _, v := range oomKills(t) {
		logged = append(logged, fmt.Sprintf("%s %d", v.Comm, v.PID))
	}
	counted := int64(len(told))
	if file := filepath.Join(string(counts), "memory.events"); exists(file) {
		counted = counts.number(t, "memory.events", "oom_kill")
	} else if counts != "" {
		counted = counts.number(t, "memory.oom_control", "oom_kill")
	}
	if !slices.Equal(told, logged) || counted != int64(len(told)) || counted == 0 {
		t.Errorf("the text has the kills %q, the kernel's log %q, and it counts %d: %s", told, logged, counted, closing)
	}
	want := fmt.Sprintf(" %s ran out of memory at its %s limit of %d pages", path, kind, limitBytes/pageSize)
	n := 0
	for line := range strings.Lines(closing) {
		if strings.Contains(line, want) && killedSentence.MatchString(line) {
			n++
		}
	}
	if n != len(told) {
		t.Errorf("%d times %q, want %d: %s", n, want, len(told), closing)
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

// traceKept is trace, and keeps a recording for the tests of the command on the host. The name
// begins with the kernel release that it is kept of.
func traceKept(t testing.TB, name string, args ...string) *tracer {
	t.Helper()
	release, _, _ := strings.Cut(name, "-")
	if !strings.HasPrefix(kernelRelease(t), release+".") {
		return trace(t, args...)
	}
	file := filepath.Join(t.TempDir(), name+".ctrace")
	tr := trace(t, append(args, "-o", file)...)
	t.Cleanup(func() {
		if tr.ProcessState != nil { // else the test has failed
			Keep(t, filepath.Base(file), []byte(readFile(t, file)))
		}
	})
	return tr
}

// TestVerdictLoweredLimit lowers memory.max below what a process holds, which charges nothing more.
func TestVerdictLoweredLimit(t *testing.T) {
	if !Enter(t, Exact.On(All...).Keeping(updateVerdict)) {
		return
	}
	for _, attach := range []string{"kprobe", "fentry"} {
		t.Run(attach, func(t *testing.T) {
			clearLog(t)
			g := newCgroup(t)
			big := startWorkload(t, g, "named 8 big")
			tr := traceKept(t, "6.1-lowered-limit", "-cgroup", g.path(), "-attach", attach)
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

// TestVerdictGroupKill kills all processes of a cgroup because one allocates.
func TestVerdictGroupKill(t *testing.T) {
	if !Enter(t, Exact.On(All...).Keeping(updateVerdict)) {
		return
	}
	g := newCgroup(t)
	g.write(t, "memory.max", "10M")
	g.write(t, "memory.oom.group", "1")
	alloc := startWorkload(t, g, "touch 20")
	idle := []*process{startWorkload(t, g, "touch 1"), startWorkload(t, g, "touch 1")}
	tr := traceKept(t, "6.1-group-kill", "-cgroup", g.path())
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

// TestVerdictNoVictim fills a cgroup whose processes the kernel may not kill.
func TestVerdictNoVictim(t *testing.T) {
	if !Enter(t, Exact.On(Ends...).Keeping(updateVerdict)) {
		return
	}
	g := newCgroup(t)
	g.write(t, "memory.max", "10M")
	p := startWorkload(t, g, "touch 20")
	p.spare(t)
	tr := traceKept(t, "7.2-no-victim", "-cgroup", g.path())
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
	tr.want(t, fmt.Sprintf(" %s ran out of memory at its memory limit of 2560 pages (10.0 MiB): workload (%s) was allocating; the OOM killer ran %d times and found no process that it may kill, the last time at ", g.path(), p.pid(), len(runs)))
}

// TestVerdictHigh touches much more than memory.high allows: the kernel lets the process
// sleep.
func TestVerdictHigh(t *testing.T) {
	if !Enter(t, Exact.On(All...).Keeping(updateVerdict)) {
		return
	}
	for _, attach := range []string{"kprobe", "fentry"} {
		t.Run(attach, func(t *testing.T) {
			a := newTop(t)
			a.write(t, "memory.high", "4M")
			b := a.child(t, "b")
			p := startWorkload(t, b, "touch 16")
			tr := traceKept(t, "6.1-high", "-cgroup", a.path(), "-attach", attach)
			p.run(t)
			tr.stop(t)

			sleeps, slept := tr.checkSleeps(t, a, p, "memory", 4<<20/pageSize)
			// The kernel's own time has the reclaim too.
			pressure := readFile(t, filepath.Join(string(a), "memory.pressure"))
			var total int64
			_, after, _ := strings.Cut(pressure, "total=")
			if _, err := fmt.Sscan(after, &total); err != nil {
				t.Fatalf("%v: %s", err, pressure)
			}
			if total*1000 < slept || a.number(t, "memory.events", "max") != 0 || a.number(t, "memory.events", "high") < sleeps {
				t.Errorf("%d sleeps of %d ns, pressure %s", sleeps, slept, pressure)
			}
			f := text.Format{PageSize: int(pageSize)}
			tr.want(t, fmt.Sprintf("  %s: memory.high of %s exceeded, ", a.path(), f.Limit(4<<20/pageSize)))
			tr.want(t, fmt.Sprintf(" throttled, workload (%s) slept %d times, about %s in total; first at ", p.pid(), sleeps, text.Duration(slept)))
		})
	}
}

// TestVerdictOOMDisabled fills a cgroup v1 in which the OOM killer is disabled: the process waits.
func TestVerdictOOMDisabled(t *testing.T) {
	if !Enter(t, Exact.On(V1...).Keeping(updateVerdict)) {
		return
	}
	mountV1(t)
	for _, attach := range []string{"kprobe", "fentry"} {
		t.Run(attach, func(t *testing.T) {
			g := newCgroupV1(t)
			g.write(t, "memory.limit_in_bytes", "10M")
			g.write(t, "memory.oom_control", "1")
			p := startWorkloadV1(t, g, "touch 20")
			tr := traceKept(t, "6.1-oom-disabled", "-cgroup", g.path(), "-attach", attach)
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
			tr.want(t, fmt.Sprintf(" %s ran out of memory at its memory limit of 2560 pages (10.0 MiB): workload (%s) was allocating, and waited, since memory.oom_control disables the OOM killer", g.path(), p.pid()))
		})
	}
}

// TestVerdictTmpfs kills a process in a cgroup that is full of files in memory, of a child that
// is gone. Beside it another process lives.
func TestVerdictTmpfs(t *testing.T) {
	if !Enter(t, Exact.On(Ends...).Keeping(updateVerdict)) {
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
	tr := traceKept(t, "7.2-tmpfs", "-cgroup", pod.path())
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
	tr.checkVerdict(t, pod, second, "memory", 32<<20)
	for _, want := range []string{
		// The victim may have exited by then.
		`[mµ]s later it held [23]\d\.\d MiB: shmem \(tmpfs, shared memory\) 2[34]\.\d MiB, anon \d\.\d MiB`,
		`Largest children then: .*/t\d+/other 2\.\d MiB`,
		`Largest other processes then, by rss: lives \(` + lives.pid() + `\) [12]\.\d MiB\.`,
	} {
		if !regexp.MustCompile(want).MatchString(tr.stderr.String()) {
			t.Errorf("no %s in %s", want, tr.stderr)
		}
	}
}

// TestVerdictNoSwap kills a process in a cgroup whose parent may not swap, on a machine with swap.
func TestVerdictNoSwap(t *testing.T) {
	if !Enter(t, Exact.WithDisk().On(Ends...).Keeping(updateVerdict)) {
		return
	}
	swapOn(t)
	slice := newTop(t)
	slice.write(t, "memory.swap.max", "0")
	unit := slice.child(t, "unit")
	unit.write(t, "memory.max", "10M")
	p := startWorkload(t, unit, "touch 20")
	tr := traceKept(t, "7.2-no-swap", "-cgroup", slice.path())
	p.begin(t)
	p.waitKilled(t)
	tr.stop(t)
	tr.checkVerdict(t, unit, unit, "memory", 10<<20)
	tr.want(t, fmt.Sprintf("It could not swap: memory.swap.max of %s is 0.", slice.path()))
}

// TestVerdictSwapHigh lets a process swap out more than memory.swap.high allows.
func TestVerdictSwapHigh(t *testing.T) {
	if !Enter(t, Exact.WithDisk().On(Ends...).Keeping(updateVerdict)) {
		return
	}
	swapOn(t)
	g := newCgroup(t)
	g.write(t, "memory.max", "5M")
	g.write(t, "memory.swap.high", "1M")
	p := startWorkload(t, g, "touch 7") // each charge above it sleeps, for up to 2 s
	tr := traceKept(t, "7.2-swap-high", "-cgroup", g.path())
	p.run(t)
	tr.stop(t)

	sleeps, slept := tr.checkSleeps(t, g, p, "swap", 1<<20/pageSize)
	if n := g.number(t, "memory.swap.events", "high"); n < sleeps {
		t.Errorf("%d sleeps, memory.swap.events has %d", sleeps, n)
	}
	f := text.Format{PageSize: int(pageSize)}
	tr.want(t, fmt.Sprintf("  %s: memory.swap.high of %s exceeded, workload (%s) slept %d times, about %s in total; first at ", g.path(), f.Limit(1<<20/pageSize), p.pid(), sleeps, text.Duration(slept)))
}

// TestClockSet sets the wall clock forward during a trace.
func TestClockSet(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	g := newCgroup(t)
	before, meanwhile, after := startWorkload(t, g, "touch 1"), startWorkload(t, g, "touch 1"), startWorkload(t, g, "touch 1")
	file := filepath.Join(t.TempDir(), "x.ctrace")
	tr := trace(t, "-cgroup", g.path(), "-time", "date", "-o", file)
	before.run(t)
	now := time.Now()
	set := unix.NsecToTimespec(now.Add(time.Hour).UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &set); err != nil {
		t.Fatal(err)
	}
	meanwhile.run(t) // the tracer may notice late
	waitForWrite(t, tr.jsonl, func() bool { return strings.Contains(readFile(t, tr.jsonl), `"type":"clock_step"`) })
	after.run(t)
	tr.stop(t)

	for _, events := range [][]event{tr.events(t), play(t, file)} {
		steps := 0
		for i, e := range events {
			if e.Type == "clock_step" {
				steps++
			}
			late := e.PID == after.Process.Pid
			if e.Type == "charge" && e.PID != meanwhile.Process.Pid && (late != e.WallTime.After(now.Add(time.Hour)) || late != (steps == 1)) {
				t.Errorf("event %d, after %d steps: %+v", i, steps, e)
			}
		}
		if steps != 1 {
			t.Errorf("%d steps", steps)
		}
	}
}

// TestVerdictNodes lets the memory nodes of a cpuset run out, and those of a memory policy, on a
// machine with more of them.
func TestVerdictNodes(t *testing.T) {
	if !Enter(t, Exact.WithNodes(8).On(One...).Keeping(updateVerdict)) {
		return
	}
	rootCgroup.write(t, "cgroup.subtree_control", "+cpuset")
	g := newCgroup(t)
	const last = 7
	fill := func(scope, flag string) {
		t.Helper()
		p := startWorkload(t, g, "touch 300") // more than a node has
		tr := traceKept(t, "6.1-"+flag, "-pid", p.pid())
		p.begin(t)
		p.waitKilled(t)
		tr.end(t)
		kills := ofType(tr.events(t), "oom_kill")
		if len(kills) != 1 || kills[0].Cgroup != "" || !kills[0].has(flag) || kills[0].Victim.PID != p.Process.Pid {
			t.Errorf("kills %+v", kills)
		}
		tr.want(t, fmt.Sprintf(" no memory was left on the NUMA nodes that the %s of workload (%s) allows: workload (%[2]s) was allocating; workload (%[2]s) was killed, rss ", scope, p.pid()))
	}
	g.write(t, "cpuset.mems", fmt.Sprint(last))
	fill("cpuset", "cpuset")
	g.write(t, "cpuset.mems", fmt.Sprintf("0-%d", last))

	// A process inherits the policy of the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const bind, bits = 2, 64 // MPOL_BIND of include/uapi/linux/mempolicy.h
	nodes := uint64(1) << last
	set := func(mode int, nodes *uint64) {
		t.Helper()
		if _, _, err := unix.Syscall(unix.SYS_SET_MEMPOLICY, uintptr(mode), uintptr(unsafe.Pointer(nodes)), bits); err != 0 {
			t.Fatal(err)
		}
	}
	set(bind, &nodes)
	fill("memory policy", "mempolicy")
	set(0, nil)
}

// TestVerdictSysRq asks for the OOM killer.
func TestVerdictSysRq(t *testing.T) {
	if !Enter(t, Exact.On(Ends...).Keeping(updateVerdict)) {
		return
	}
	p := startWorkload(t, newCgroup(t), "named 64 big")
	tr := traceKept(t, "7.2-sysrq", "-pid", p.pid())
	p.begin(t)
	p.done(t)
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("f"), 0); err != nil {
		t.Fatal(err)
	}
	p.waitKilled(t)
	tr.end(t)
	kills := ofType(tr.events(t), "oom_kill")
	if len(kills) != 1 || kills[0].Cgroup != "" || !kills[0].has("sysrq") || kills[0].Victim.PID != p.Process.Pid {
		t.Errorf("kills %+v", kills)
	}
	tr.want(t, fmt.Sprintf(" the OOM killer ran for the machine: requested with SysRq-f; big (%s) was killed, rss ", p.pid()))
}
