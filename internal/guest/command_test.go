//go:build linux

package guest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHostileName traces a thread with a name that contains a terminal escape sequence.
func TestHostileName(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	p := startWorkload(t, newCgroup(t), `named 1 \x1b[31mx\n\xffy`)
	tr := chargetrace(t, "-pid", p.pid())
	p.run(t)
	rows, others := tr.table(t)
	if len(rows) != int(1<<20/pageSize/64) || len(others) != 0 {
		t.Errorf("%d rows, and %q", len(rows), others)
	}
	for _, r := range rows {
		if r.comm != `\x1b[31mx\n\xffy` {
			t.Errorf("%+v", r)
		}
	}
}

// TestStopsAfterRows tests -n.
func TestStopsAfterRows(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	p := startWorkload(t, newCgroup(t), "touch 2")
	tr := chargetrace(t, "-pid", p.pid(), "-n", "3", "-attach", "auto")
	p.run(t)
	if rows, _ := tr.table(t); len(rows) != 3 {
		t.Errorf("%d rows", len(rows))
	}
	if !strings.Contains(tr.stderr.String(), "attached with kprobe\n") {
		t.Errorf("it does not say how it is attached: %s", tr.stderr)
	}
}

// TestStopsAfterTime tests -for.
func TestStopsAfterTime(t *testing.T) {
	if Enter(t, Exact.On(One...)) {
		chargetrace(t, "-for", "100ms").checkComplete(t)
	}
}

// TestReaderGone closes the pipe of the table: the tracer ends without a message.
func TestReaderGone(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	storm, pids := startStorm(t, 1_000_000)
	cmd := exec.Command(command, "-pid", pids)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, p := range storm {
		p.begin(t)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != tableHeader+"\n" {
		t.Errorf("%q, %v", line, err)
	}
	stdout.Close()
	if err := cmd.Wait(); err != nil || stderr.String() != "Tracing page_counter_try_charge... Hit Ctrl-C to end.\n" {
		t.Errorf("%v, stderr is %q", err, &stderr)
	}
}

// TestDiskFull prints the table to a full disk.
func TestDiskFull(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	cmd := exec.Command(command, "-for", "1ms")
	cmd.Stdout = full
	mustFail(t, cmd, 1, "no space left on device", "hint: the disk is full")
}

// unprivileged returns the attributes of a process without root, but with capabilities.
func unprivileged(caps ...uintptr) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: caps}
}

// TestPrivileges traces without root, with the required capabilities and with fewer.
func TestPrivileges(t *testing.T) {
	if !Enter(t, Exact) {
		return
	}
	as := func(caps ...uintptr) *exec.Cmd {
		cmd := exec.Command(command, "-for", "10ms")
		cmd.SysProcAttr = unprivileged(caps...)
		return cmd
	}
	mustFail(t, as(), 1, "missing CAP_BPF and CAP_PERFMON", "hint: run it with sudo")
	mustFail(t, as(unix.CAP_BPF), 1, "missing CAP_PERFMON")
	enough := []uintptr{unix.CAP_BPF, unix.CAP_PERFMON}
	if strings.HasPrefix(kernelRelease(t), "5.10.") { // BPF maps count against RLIMIT_MEMLOCK
		mustFail(t, as(enough...), 1, "missing CAP_SYS_RESOURCE")
		enough = append(enough, unix.CAP_SYS_RESOURCE)
	}
	// Debian's kernels have a level 3, which forbids kprobes.
	sysctl(t, "kernel/perf_event_paranoid", "3")
	mustFail(t, as(enough...), 1, "kernel.perf_event_paranoid is 3", "hint: ")
	sysctl(t, "kernel/perf_event_paranoid", "2")
	if out, err := as(enough...).CombinedOutput(); err != nil {
		t.Errorf("with all required capabilities, but not as root: %v\n%s", err, out)
	}
}

// kernelRelease returns the output of uname -r.
func kernelRelease(t testing.TB) string {
	t.Helper()
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(uname.Release[:])
}

func TestCheck(t *testing.T) {
	if !Enter(t, Exact) {
		return
	}
	out, _ := chargetraceOutput(t, "-check")
	if strings.Contains(out, "lacking") || !strings.Contains(out, "attach fentry      ok ") ||
		!strings.Contains(out, "attach -net        ok       attached with kprobe and fentry, and removed again\n") {
		t.Errorf("%s", out)
	}
}

// TestLockdown uses the strictest lockdown mode.
func TestLockdown(t *testing.T) {
	if !Enter(t, Exact) {
		return
	}
	if err := os.WriteFile("/sys/kernel/security/lockdown", []byte("confidentiality"), 0); err != nil {
		t.Fatal(err)
	}
	mustFail(t, exec.Command(command), 1, "locked down (confidentiality)", "hint: boot without lockdown")
	mustFail(t, exec.Command(command, "-check"), 1, "cannot be traced by this user")
}

// TestReadme runs each chargetrace command of the README, in order. Those that trace get
// processes that charge and then exit.
func TestReadme(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	readme, err := os.ReadFile("/README.md")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	if err := errors.Join(os.Symlink(workloadPath, "alloc"), os.MkdirAll("/var/lib", 0o755)); err != nil {
		t.Fatal(err)
	}
	g := newTop(t)
	unit, container := g.child(t, "leaky.service"), newPod(t, g, 0, "java").containers["java"]
	ran := 0
	for line := range strings.Lines(string(readme)) {
		line, sudo := strings.CutPrefix(strings.TrimSpace(line), "sudo ")
		line, ok := strings.CutPrefix(line, "chargetrace -")
		if !ok {
			continue
		}
		ran++
		line, _, _ = strings.Cut("-"+line, "  ") // a description follows
		line, pipe, piped := strings.Cut(line, "|")
		if piped && !strings.HasPrefix(strings.TrimSpace(pipe), "grep ") {
			t.Errorf("no test for a pipe into %q", pipe)
		}
		runReadme(t, g, unit, container, line, sudo)
	}
	if ran < 10 {
		t.Errorf("ran only %d commands", ran)
	}
}

// runReadme runs a command of the README. g has the unit and the container of its examples.
func runReadme(t *testing.T, g, unit, container cgroup, line string, sudo bool) {
	t.Helper()
	force := func(args []string) []string { // several commands record to oom.ctrace
		if slices.Contains(args, "-o") && !slices.Contains(args, "-keep-last") {
			args = append(args, "-force")
		}
		return args
	}
	switch {
	case strings.HasSuffix(line, "-memory 10M -- ./alloc"):
		cmd := exec.Command(command, strings.Fields(line)...)
		out, _ := cmd.CombinedOutput()
		if status := cmd.ProcessState.ExitCode(); status != 128+int(unix.SIGKILL) || !bytes.Contains(out, []byte("LIMIT REACHED")) {
			t.Errorf("chargetrace %s: exit status %d\n%s", line, status, out)
		}
		return
	case !sudo || strings.Contains(line, "-check"):
		// It plays the recording of an earlier command.
		line = strings.NewReplacer("before.ctrace", "oom.ctrace", "after.ctrace", "oom.ctrace").Replace(line)
		chargetraceOutput(t, force(strings.Fields(line))...)
		return
	}
	p, q := startWorkload(t, unit, "named 8 java"), startWorkload(t, container, "named 8 nginx")
	line = strings.NewReplacer(
		"4711", p.pid(), "4712", q.pid(), "-for 10s", "-for 2s", "/system.slice", g.path(),
		"'ngin?'", "ngin?", "'java*'", "java*", "'shop/cart-*'", "shop/cart-*", "-min-pages 512", "-min-pages 2",
	).Replace(line)
	args := force(strings.Fields(line))
	tr := chargetrace(t, args...)
	p.run(t)
	q.run(t)
	if !slices.Contains(args, "-pid") && !slices.Contains(args, "-for") {
		tr.stop(t) // like Ctrl-C
	}
	if c := tr.counted(t); c.seen == 0 || c.shown == 0 && !slices.Contains(args, "-limited") {
		t.Errorf("chargetrace %s showed nothing: %s", line, fmt.Sprint(c))
	}
}
