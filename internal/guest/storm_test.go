//go:build linux

package guest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"chargetrace/internal/vm"
)

// TestStormLosesNothing runs four processes that fail charges as fast as they can: a buffer
// of the default size must never be full.
func TestStormLosesNothing(t *testing.T) {
	if Enter(t, SMP) {
		stormLosesNothing(t)
	}
}

func TestStormLosesNothing4CPUs(t *testing.T) {
	if Enter(t, Machine{CPUs: 4, Kernels: Kernels[1:4]}) {
		stormLosesNothing(t)
	}
}

func stormLosesNothing(t *testing.T) {
	const n = 5000
	storm, pids := startStorm(t, n)
	tr := chargetrace(t, "-pid", pids)
	begin := time.Now()
	for _, p := range storm {
		p.begin(t)
	}
	for _, p := range storm {
		p.wait(t)
	}
	t.Logf("%s: the storm took %v", kernelRelease(t), time.Since(begin))
	tr.table(t) // checks that nothing was lost, missed or left out
	c := tr.counted(t)
	if c.shown < uint64(len(storm)*2*n) { // each page, and the batch that fails before it
		t.Errorf("%+v: no storm", c)
	}
}

// TestTerminatedInStorm stops tracers in the middle of a storm.
func TestTerminatedInStorm(t *testing.T) {
	if Enter(t, SMP.On(Ends...)) {
		terminatedInStorm(t, "kprobe")
	}
}

func TestTerminatedInStormFentry(t *testing.T) {
	if Enter(t, SMP.On(Ends...)) {
		terminatedInStorm(t, "fentry")
	}
}

func terminatedInStorm(t *testing.T, attach string) {
	storm, pids := startStorm(t, 1_000_000)
	tr := chargetrace(t, "-pid", pids, "-attach", attach)
	for _, p := range storm {
		p.begin(t)
	}
	// Wait for two batches of rows.
	waitForWrite(t, tr.stdout.Name(), func() bool {
		info, err := tr.stdout.Stat()
		return err == nil && info.Size() > 64<<10
	})
	tr.stop(t)
	// The sum in the summary checks that the tracer showed all delivered events.
	c := tr.counted(t)
	rows, _ := parseTable(t, tr.output(t))
	if c.shown != uint64(len(rows)) || c.lost != 0 {
		t.Errorf("%d rows, %+v", len(rows), c)
	}
	checkMissed(t, c, attach)
}

// checkMissed checks that the kernel missed no call, or with fentry fewer than the tracer
// saw: a preemptible kernel skips a fentry program while a preempted task on the same CPU
// is in the middle of it, which is frequent in a storm.
func checkMissed(t *testing.T, c counted, attach string) {
	t.Helper()
	bound := uint64(0)
	if attach == "fentry" {
		bound = c.seen
	}
	if c.missed > bound {
		t.Errorf("the kernel missed %d calls, want at most %d: %+v", c.missed, bound, c)
	}
	t.Logf("%+v", c)
}

// TestSmallestBuffer stops a tracer with a buffer of one page in a storm. Its shown and
// lost charges must add up to those of a tracer with the default buffer.
func TestSmallestBuffer(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	storm, pids := startStorm(t, 500)
	all := chargetrace(t, "-pid", pids)
	tr := chargetrace(t, "-pid", pids, "-buffer", "1")
	if err := tr.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for _, p := range storm {
		p.run(t)
	}
	if err := tr.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c := tr.counted(t)
	rows, others := parseTable(t, tr.output(t))
	var lost uint64
	for _, line := range others {
		var n uint64
		if _, err := fmt.Sscanf(line, "--- %d events lost ---", &n); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		lost += n
	}
	if c.lost == 0 || c.lost != lost || c.shown != uint64(len(rows)) || c.missed != 0 {
		t.Errorf("%d rows and %d lost in the table, %+v", len(rows), lost, c)
	}
	whole, _ := all.table(t)
	if c.seen != uint64(len(whole)) {
		t.Errorf("%+v, but there were %d charges: %s", c, len(whole), tr.stderr)
	}
	if want := fmt.Sprintf("warning: %d events were lost", c.lost); !strings.Contains(tr.stderr.String(), want) {
		t.Errorf("no %q in %s", want, tr.stderr)
	}
}

// preemptible are kernels with kernel preemption (CONFIG_PREEMPT_LAZY, CONFIG_PREEMPT_RT):
// a task can be preempted, and migrated to another CPU, in the middle of a charge.
var preemptible = []vm.Kernel{Kernels[3], Short[1]}

// TestMigration keeps moving a charging process between two CPUs, until three charges have
// returned on another CPU than they began on.
func TestMigration(t *testing.T) {
	if !Enter(t, SMP.On(preemptible...)) {
		return
	}
	// The script counts the migrated calls.
	const script = `
BEGIN { printf("ready\n") }
kprobe:page_counter_try_charge /comm == "workload"/ { @cpu[tid] = cpu + 1 }
kretprobe:page_counter_try_charge /@cpu[tid]/ { if (@cpu[tid] != cpu + 1) { printf("moved %d\n", tid) } delete(@cpu[tid]) }`
	counter := startTracer(t, "", "/usr/bin/bpftrace", "-B", "line", "-e", script)
	waitForWrite(t, counter.stdout.Name(), func() bool { return strings.Contains(counter.output(t), "ready") })

	g := newCgroup(t)
	p := startWorkload(t, g, "storm 1000000")
	g.leaveRoom(t, 0)
	p.spare(t)
	tr := trace(t, "-pid", p.pid())
	p.begin(t)
	moved := func() int { return strings.Count(counter.output(t), "moved "+p.pid()+"\n") }
	for moves := 0; moved() < 3; moves++ {
		var cpu unix.CPUSet
		cpu.Set(moves % 2)
		if err := unix.SchedSetaffinity(p.Process.Pid, &cpu); err != nil {
			t.Fatal(err)
		}
		if moves > 1_000_000 {
			t.Fatalf("%d moves moved no call: %s%s", moves, counter.output(t), counter.stderr)
		}
	}
	p.Process.Kill()
	p.waitKilled(t)
	charges := tr.charges(t) // checks that all returns were seen
	last := int64(0)
	for _, e := range charges {
		if e.TimeNanos < last {
			t.Errorf("after %d ns: %v", last, e)
		}
		last = e.TimeNanos
	}
	t.Logf("%d of %d charges moved", moved(), len(charges))
}

// TestPreempted runs so many tracers that a charge lasts about as long as a process's time
// slice: many charges are in flight at once on one CPU. Above ten, the kernel would miss
// returns (kretprobe's maxactive).
func TestPreempted(t *testing.T) {
	if !Enter(t, Exact.On(preemptible...)) {
		return
	}
	const n = 9
	g := newCgroup(t)
	var processes []*process
	for range n {
		processes = append(processes, startWorkload(t, g, "touch 4"))
	}
	var tracers []*tracer
	for range 8 {
		tracers = append(tracers, trace(t, "-cgroup", string(g)))
	}
	for _, p := range processes {
		p.begin(t)
	}
	// Wait for all before any exits and uncharges.
	for _, p := range processes {
		p.done(t)
	}
	for _, p := range processes {
		p.wait(t)
	}
	var first int
	for i, tr := range tracers {
		tr.stop(t)
		charges := tr.charges(t)
		if i == 0 {
			first = len(charges)
		}
		if want := n * int(4<<20/pageSize/64); len(charges) != first || len(charges) < want {
			t.Errorf("tracer %d has %d charges, the first %d, want at least %d", i, len(charges), first, want)
		}
	}
}

// TestPreemptedFentry runs processes in a cgroup each, more than a CPU caches counters of.
// They preempt each other in the middle of a program: each charge must have the process
// and the cgroup that belong together.
func TestPreemptedFentry(t *testing.T) {
	if !Enter(t, Exact.On(preemptible[0])) {
		return
	}
	top := newTop(t)
	processes := map[int]cgroup{}
	var started []*process
	for i := range 24 {
		g := top.child(t, fmt.Sprintf("g%d", i))
		p := startWorkload(t, g, "touch 4")
		processes[p.Process.Pid] = g
		started = append(started, p)
	}
	var tracers []*tracer
	for range 4 {
		tracers = append(tracers, trace(t, "-attach", "fentry", "-cgroup", string(top)))
	}
	for _, p := range started {
		p.begin(t)
	}
	for _, p := range started {
		p.done(t)
	}
	for _, p := range started {
		p.wait(t)
	}
	for i, tr := range tracers {
		tr.stop(t)
		c := tr.counted(t)
		charges := ofType(tr.events(t), "charge")
		if want := len(started) * int(4<<20/pageSize/64); c.lost != 0 || c.missed > c.seen || len(charges)+int(c.missed) < want {
			t.Errorf("tracer %d: %d charges, want at least %d: %+v", i, len(charges), want, c)
		}
		for _, e := range charges {
			if g, ok := processes[e.PID]; ok && (e.Cgroup != g.path() || e.Comm != "workload") {
				t.Errorf("tracer %d: process %d in %s: %v", i, e.PID, g.path(), e)
			}
		}
	}
}

// TestLive charges while the tracer sleeps without a timeout. The tracer must print the
// charges, which fill less than a quarter of its buffer, before the process exits.
func TestLive(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	p := startWorkload(t, newCgroup(t), "touch 8")
	tr := chargetrace(t, "-pid", p.pid())
	waitAsleep(t, tr)
	p.begin(t)
	p.done(t)
	rows := int(8 << 20 / pageSize / 64)
	waitForWrite(t, tr.stdout.Name(), func() bool { return strings.Count(tr.output(t), "\n") >= rows })
	p.wait(t)
	tr.table(t)
}

// waitAsleep waits until the tracer waits for the ring buffer without a timeout.
func waitAsleep(t *testing.T, tr *tracer) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", tr.Process.Pid)
	asleep := func() bool {
		threads, err := os.ReadDir(proc + "task")
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			// The call's number and arguments: epoll_wait(fd, events, n, timeout).
			call, _ := os.ReadFile(proc + "task/" + thread.Name() + "/syscall")
			f := strings.Fields(string(call))
			if len(f) < 6 || !strings.HasSuffix(f[4], "ffffffff") {
				continue
			}
			fd, _ := strconv.ParseUint(f[1], 0, 64)
			watched, _ := os.ReadFile(fmt.Sprintf("%sfdinfo/%d", proc, fd))
			for line := range strings.Lines(string(watched)) {
				// The tracer's data are the descriptors, and those of Go's runtime are pointers.
				var target, data uint64
				if _, err := fmt.Sscanf(line, "tfd: %d events: %x data: %x", &target, new(uint64), &data); err == nil && data == target {
					return true
				}
			}
		}
		return false
	}
	for i := 0; !asleep(); i++ {
		if i == 10_000 {
			t.Fatalf("the tracer does not sleep: %s", tr.stderr)
		}
	}
}
