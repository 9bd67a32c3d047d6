//go:build linux

package guest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStackRecording records stacks: the replay must show the same as the live trace.
func TestStackRecording(t *testing.T) {
	if !Enter(t, Exact.On(slices.Concat(One, Short)...)) {
		return
	}
	g := newCgroup(t)
	dir := t.TempDir()
	file, livePage, liveFolded := filepath.Join(dir, "x.ctrace"), filepath.Join(dir, "x.html"), filepath.Join(dir, "x.folded")
	p := startWorkload(t, g, "profile 4")
	tr := chargetrace(t, "-stack", "-ustack", "-wide", "-pid", p.pid(), "-o", file, "-o", livePage, "-o", liveFolded, "-o", "-")
	p.begin(t)
	p.done(t)
	waitForWrite(t, tr.stdout.Name(), func() bool { return strings.Count(tr.output(t), "\n") == 1+4*4 }) // the process must exist until its stacks are resolved
	p.wait(t)
	tr.checkComplete(t)
	t.Setenv("COLUMNS", "400") // the same as tr
	played, _ := chargetraceOutput(t, "-r", file, "-wide")
	if live := tr.output(t); played != live || strings.Count(live, " anon") != 4*4 || strings.Count(live, "\n") != 1+4*4 {
		t.Errorf("live\n%s\nplayed\n%s", live, played)
	}
	folded, _ := chargetraceOutput(t, "-r", file, "-o", "-", "-format", "folded")
	if live := readFile(t, liveFolded); folded != live {
		t.Errorf("live\n%s\nplayed\n%s", live, folded)
	}
	if chain := "workload;" + workloadChain("_start", "start", "main", "profile", "fill") + ";"; strings.Count(folded, chain) != 2 || strings.Count(folded, "\n") != 2 {
		t.Errorf("want two stacks below %s:\n%s", chain, folded)
	}
	page, _ := chargetraceOutput(t, "-r", file, "-o", "-", "-format", "html")
	if live := readFile(t, livePage); page != live {
		t.Error("the live page differs")
	}
}

// workloadChain returns functions of workload.c in the format of a .folded, outermost first.
func workloadChain(functions ...string) string {
	return strings.Join(functions, " [workload];") + " [workload]"
}

// fillStack matches the user stack of a page touched by the work once of workload.c.
var fillStack = regexp.MustCompile(`^touch \[workload\]\+0x[0-9a-f]+;fill_(?:three|one) \[workload\]\+0x[0-9a-f]+;fill \[workload\]\+0x[0-9a-f]+;` +
	`once \[workload\]\+0x[0-9a-f]+;(?:.* \[workload\]\+0x[0-9a-f]+;)?_start \[workload\]\+0x[0-9a-f]+$`)

// fill makes the work fills execute a line.
func fill(t *testing.T, p *process, line string) {
	t.Helper()
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		t.Fatal(err)
	}
	p.done(t)
}

// fillNamed makes it fill, and waits until a tracer with -ustack has resolved its functions,
// and so has read the program.
func fillNamed(t *testing.T, p *process, tr *tracer) {
	t.Helper()
	fill(t, p, "fill")
	waitForWrite(t, tr.jsonl, func() bool { return strings.Contains(readFile(t, tr.jsonl), `"touch [workload]+`) })
}

// TestShortLived runs programs that charge 1 MiB and exit within a millisecond. The first
// charge of each wakes the tracer, which has priority here and reads the program's
// mappings. The stacks of a program read too late are not resolved.
func TestShortLived(t *testing.T) {
	if !Enter(t, Exact.On(Archs...)) {
		return
	}
	// Processes with equal addresses count as the same program, so randomize their stacks.
	sysctl(t, "kernel/randomize_va_space", "1")
	const programs = 10
	g := newCgroup(t)
	before := startWorkload(t, g, "fills")
	p := startWorkload(t, g, fmt.Sprintf("run %s %d", workloadPath, programs))
	var tr *tracer
	realTime(t, func() { tr = trace(t, "-ustack", "-cgroup", g.path()) })
	fillNamed(t, before, tr)
	before.wait(t)
	p.run(t)
	tr.stop(t)
	tr.checkComplete(t)
	named := make(map[int]bool)
	for _, c := range withStacks(tr.events(t)) {
		if fillStack.MatchString(c.user) && c.PID > p.Process.Pid {
			named[c.PID] = true
		}
	}
	if len(named) != programs {
		t.Errorf("%d of %d programs are resolved: %v\n%s", len(named), programs, named, tr.stderr)
	}
}

// realTime calls a function with real-time priority. Processes that it starts inherit it,
// and run before all others, without a time limit.
func realTime(t *testing.T, f func()) {
	t.Helper()
	// The kernel reserves 5% of a CPU for other tasks. Keep this order: while the first
	// limit is set, 6.12 may refuse to change the second, which exists since 6.12.
	sysctl(t, "kernel/sched_rt_runtime_us", "-1")
	if fair := "/sys/kernel/debug/sched/fair_server/cpu0/runtime"; exists(fair) {
		if err := os.WriteFile(fair, []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	set := func(policy, priority uint32) {
		t.Helper()
		if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy, Priority: priority}, 0); err != nil {
			t.Fatal(err)
		}
	}
	set(unix.SCHED_FIFO, 1)
	defer set(unix.SCHED_NORMAL, 0)
	f()
}

// TestPriority checks which threads of the tracer have a higher priority: the reader of the
// buffer, and the one that resolves user stacks, for which the reader waits.
func TestPriority(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	for flag, want := range map[string]int{"-stack": 1, "-ustack": 2} {
		tr := trace(t, flag, "-cgroup", newCgroup(t).path())
		p := startWorkload(t, newCgroup(t), "touch 1") // the reader runs by the time it is ready
		p.run(t)
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", tr.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		var preferred int
		for _, file := range files {
			_, fields, _ := strings.Cut(readFile(t, file), ") ")
			if nice := strings.Fields(fields)[19-3]; nice == "-20" { // proc_pid_stat(5)
				preferred++
			}
		}
		if preferred != want {
			t.Errorf("%s: %d threads with -20, want %d", flag, preferred, want)
		}
	}
}

// TestForkedAndGone forks a child that exits while the tracer is stopped. Its stacks must
// be resolved like its parent's.
func TestForkedAndGone(t *testing.T) {
	if !Enter(t, Exact.On(Archs...)) {
		return
	}
	p := startWorkload(t, newCgroup(t), "fills")
	tr := trace(t, "-ustack", "-pid", p.pid(), "-f")
	fillNamed(t, p, tr)
	if err := tr.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	fill(t, p, "fork")
	if err := tr.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.wait(t)
	tr.checkComplete(t)
	named := regexp.MustCompile(`^(?:\w+ \[workload\]\+0x[0-9a-f]+;)*_start \[workload\]\+0x[0-9a-f]+$`)
	filled := make(map[int]int64) // pages, by process
	for _, c := range withStacks(tr.events(t)) {
		if !named.MatchString(c.user) {
			t.Errorf("process %d: %s", c.PID, c.user)
		}
		if fillStack.MatchString(c.user) {
			filled[c.PID] += c.RequestedPages
		}
	}
	// 4 * 64 pages charge exactly as many, whatever the CPU's stock. A page table can
	// charge one more batch.
	if len(filled) != 2 {
		t.Errorf("want charges of the parent and its child: %v", filled)
	}
	for pid, pages := range filled {
		if pages < 256 || pages > 256+64 {
			t.Errorf("process %d: %d pages", pid, pages)
		}
	}
}

// TestUnreadable runs a tracer without the right to read the process: it must print
// addresses, and the missing capability.
func TestUnreadable(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	sysctl(t, "kernel/perf_event_paranoid", "2") // Debian's 3 requires CAP_SYS_ADMIN
	p := startWorkload(t, newCgroup(t), "profile 1")
	tr := startTracerAs(t, unprivileged(unix.CAP_BPF, unix.CAP_PERFMON), "Tracing ", command, "-ustack", "-pid", p.pid(), "-o", "-", "-format", "jsonl")
	p.run(t)
	tr.checkComplete(t)
	if !strings.Contains(tr.stderr.String(), "CAP_SYS_PTRACE") {
		t.Errorf("%s", tr.stderr)
	}
	charges := withStacks(readEvents(t, []byte(tr.output(t))))
	if len(charges) != 4 {
		t.Errorf("%d charges", len(charges))
	}
	addresses := regexp.MustCompile(`^0x[0-9a-f]+(?:;0x[0-9a-f]+){6}$`) // touch, ..., _start
	for _, c := range charges {
		if !addresses.MatchString(c.user) {
			t.Errorf("%s", c.user)
		}
	}
}

// TestHiddenSymbols runs on a kernel that hides the addresses of its functions.
func TestHiddenSymbols(t *testing.T) {
	if !Enter(t, Exact.On(Archs...)) {
		return
	}
	sysctl(t, "kernel/kptr_restrict", "2")
	p := startWorkload(t, newCgroup(t), "profile 2")
	tr := trace(t, "-stack", "-pid", p.pid())
	p.run(t)
	charges := withStacks(tr.events(t))
	tr.checkComplete(t)
	if !strings.Contains(tr.stderr.String(), "the kernel hides the addresses of its functions") {
		t.Errorf("%s", tr.stderr)
	}
	addresses := regexp.MustCompile(`^0xffff[0-9a-f]{12}(?:;0xffff[0-9a-f]{12})+$`)
	var pages int64
	for _, c := range charges {
		pages += c.RequestedPages
		if c.Cause != "-" || !addresses.MatchString(c.kernel) {
			t.Errorf("%s: %s", c.Cause, c.kernel)
		}
	}
	if pages != 2*256 {
		t.Errorf("%d pages", pages)
	}
}
