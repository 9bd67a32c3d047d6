//go:build linux

package guest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	busybox      = "/usr/bin/busybox"
	workloadPath = "/usr/bin/workload"
)

// process is a running workload or shell.
type process struct {
	*exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr bytes.Buffer
}

// startWorkload starts a work of testdata/workload.c in a cgroup, on the first CPU, and
// waits until it is ready. After that, all its charges are for its work.
func startWorkload(t testing.TB, g cgroup, work string) *process {
	t.Helper()
	return startWorkloadOn(t, 0, g, work)
}

// startWorkloadOn starts a work on a given CPU.
func startWorkloadOn(t testing.TB, cpu int, g cgroup, work string) *process {
	t.Helper()
	return startReady(t, cpu, g, exec.Command(workloadPath, strings.Fields(work)...))
}

// startReady starts a program with the protocol of testdata/workload.c.
func startReady(t testing.TB, cpu int, g cgroup, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{Cmd: cmd}
	p.Stderr = &p.stderr
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.start(t, cpu, g)
	p.stdout = bufio.NewReader(stdout)
	if line, err := p.stdout.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%s: %q, %v: %s", p.Args, line, err, &p.stderr)
	}
	return p
}

// startShell starts a shell in a cgroup, on the first CPU. The shell waits for begin, and
// then runs the script.
func startShell(t testing.TB, g cgroup, script string) *process {
	t.Helper()
	return startShellIn(t, g, 0, script)
}

// startShellIn starts a shell in new namespaces: CLONE_NEW flags.
func startShellIn(t testing.TB, g cgroup, namespaces uintptr, script string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(busybox, "sh", "-c", "read line; "+script)}
	p.Stdout, p.Stderr = &p.stderr, &p.stderr
	p.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	p.start(t, 0, g)
	return p
}

// start starts the process in a cgroup on one CPU, and kills it after the test.
func (p *process) start(t testing.TB, cpu int, g cgroup) {
	t.Helper()
	dir, err := os.Open(string(g))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if p.SysProcAttr == nil {
		p.SysProcAttr = &syscall.SysProcAttr{}
	}
	p.SysProcAttr.UseCgroupFD, p.SysProcAttr.CgroupFD = true, int(dir.Fd())
	if p.stdin, err = p.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	startOnCPU(t, p.Cmd, cpu)
	t.Cleanup(func() {
		p.Process.Kill()
		p.WaitDelay = time.Second // its children may hold stderr
		stuck := time.AfterFunc(waitTimeout, func() { panic(kernelStacks(p.Process.Pid)) })
		defer stuck.Stop()
		p.Wait()
	})
}

// startOnCPU starts a command on one CPU.
func startOnCPU(t testing.TB, cmd *exec.Cmd, cpu int) {
	t.Helper()
	var err error
	onCPU(t, cpu, func() { err = cmd.Start() }) // the command inherits the affinity
	if err != nil {
		t.Fatal(err)
	}
	var got, want unix.CPUSet
	want.Set(cpu)
	if err := unix.SchedGetaffinity(cmd.Process.Pid, &got); err != nil || got != want {
		t.Fatalf("%s is on %d CPUs, %v", cmd, got.Count(), err)
	}
}

// kernelStacks returns the kernel stacks and states of a process's threads.
func kernelStacks(pid int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "process %d was killed, but has not exited\n", pid)
	for _, name := range []string{"status", "stack", "wchan", "syscall"} {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/%s", pid, name))
		for _, file := range files {
			content, err := os.ReadFile(file)
			fmt.Fprintf(&b, "%s: %v\n%s\n", file, err, content)
		}
	}
	return b.String()
}

func (p *process) pid() string { return strconv.Itoa(p.Process.Pid) }

// spare protects a process with little room from the OOM killer: another CPU's stock can
// hold all the room.
func (p *process) spare(t testing.TB) {
	t.Helper()
	if err := os.WriteFile("/proc/"+p.pid()+"/oom_score_adj", []byte("-1000"), 0); err != nil {
		t.Fatal(err)
	}
}

// begin lets the process start or continue its work.
func (p *process) begin(t testing.TB) {
	t.Helper()
	if _, err := io.WriteString(p.stdin, "\n"); err != nil {
		t.Fatal(err)
	}
}

// readLine returns the next line of the workload's output.
func (p *process) readLine(t testing.TB) string {
	t.Helper()
	line, err := p.stdout.ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v: %s", p.Args, err, &p.stderr)
	}
	return strings.TrimSuffix(line, "\n")
}

// done waits until the workload has finished its work. It keeps its memory.
func (p *process) done(t testing.TB) {
	t.Helper()
	if _, err := strconv.ParseUint(p.readLine(t), 10, 64); err != nil { // its CPU time
		t.Fatalf("%s: %v", p.Args, err)
	}
}

// wait lets the workload exit after its work, and waits for it.
func (p *process) wait(t testing.TB) {
	t.Helper()
	p.stdin.Close()
	if err := p.Wait(); err != nil {
		t.Fatalf("%s: %v: %s", p.Args, err, &p.stderr)
	}
}

// run lets the workload do its work, and waits until it exits.
func (p *process) run(t testing.TB) {
	t.Helper()
	p.begin(t)
	p.wait(t)
}

// waitKilled waits until SIGKILL kills the process.
func (p *process) waitKilled(t testing.TB) {
	t.Helper()
	p.Wait()
	if ws := p.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("%s ended with %v, want it killed: %s", p.Args, p.ProcessState, &p.stderr)
	}
}

// startStorm starts four processes on all CPUs that fail charges as fast as they can. The
// cgroup of each has less room than a batch, so that a batch fails before each page. Each
// process charges n pages. pids is an argument of -pid.
func startStorm(t testing.TB, n int) (storm []*process, pids string) {
	t.Helper()
	var list []string
	for i := range 4 {
		cpu := i % runtime.NumCPU()
		g := newCgroup(t)
		p := startWorkloadOn(t, cpu, g, fmt.Sprintf("storm %d", n))
		g.leaveRoom(t, cpu)
		p.spare(t)
		storm = append(storm, p)
		list = append(list, p.pid())
	}
	return storm, strings.Join(list, ",")
}
