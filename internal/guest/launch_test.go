//go:build linux

package guest

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// launching returns a chargetrace command line that runs argv.
func launching(flags string, argv ...string) []string {
	return append(append([]string{command}, strings.Fields(flags)...), append([]string{"--"}, argv...)...)
}

// script returns a command that runs a shell script with arguments $1 and so on.
func script(text string, args ...string) []string {
	return append([]string{busybox, "sh", "-c", text, "sh"}, args...)
}

// hold is a command that prints "held" with its pid, and waits for a signal.
var hold = []string{workloadPath, "pause"}

const (
	// stubborn is a script like hold that ignores SIGTERM.
	stubborn = "trap '' TERM; exec " + workloadPath + " pause"
	// leave is a script that leaves $1 such processes behind, each in its own session.
	leave = `
		mkfifo /tmp/held
		for i in $(seq $1); do
			(trap '' TERM; exec setsid ` + workloadPath + ` pause >/tmp/held) &
			read line </tmp/held
			echo $line
		done
		`
	// ownCgroup is a script that sets $own to the directory of its cgroup.
	ownCgroup = `
		own=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)
		v1=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)
		[ "$v1" ] && own=` + v1Root + `$v1
		`
)

// status waits for the end of chargetrace, checks its exit status, and returns the stdout
// of chargetrace and its command.
func (tr *tracer) status(t testing.TB, want int) string {
	t.Helper()
	tr.Cmd.Wait()
	if got := tr.ProcessState.ExitCode(); got != want {
		t.Errorf("%s: exit status %d, want %d: %s", tr.Args, got, want, tr.stderr)
	}
	return tr.output(t)
}

// held waits until n processes of the command have printed "held".
func (tr *tracer) held(t testing.TB, n int) (hs handles, pids []int) {
	t.Helper()
	line := regexp.MustCompile(`(?m)^held (\d+)$`)
	var found [][]string
	waitForWrite(t, tr.stdout.Name(), func() bool {
		found = line.FindAllStringSubmatch(tr.output(t), -1)
		return len(found) == n
	})
	for _, m := range found {
		pid, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return openProcesses(t, pids), pids
}

// group returns the cgroup of the command below a directory.
func (tr *tracer) group(parent string) cgroup {
	return cgroup(fmt.Sprintf("%s/chargetrace-%d", parent, tr.Process.Pid))
}

// checkRemoved checks that no cgroup of a command is left in a directory.
func checkRemoved(t testing.TB, parent string) {
	t.Helper()
	if left, err := filepath.Glob(parent + "/chargetrace-*"); len(left) > 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}

// launchBelow runs a command in a cgroup below parent, and checks its exit status. It
// returns the tracer and its events. Another tracer of parent must see the same charges to
// the command's cgroup.
func launchBelow(t *testing.T, parent cgroup, status int, flags string, argv ...string) (*tracer, []event) {
	t.Helper()
	all := trace(t, "-cgroup", string(parent))
	file := filepath.Join(t.TempDir(), "x.jsonl")
	// chargetrace makes the command's cgroup below its own, or beside it if its own cannot
	// have children.
	argv = launching(flags+" -o "+file, argv...)
	enter := fmt.Sprintf(`echo 0 >%s/cgroup.procs; exec "$@"`, parent.child(t, "self"))
	tr := startTracer(t, "", script(enter, argv...)...)
	tr.jsonl = file
	tr.status(t, status)
	all.stop(t)
	name := filepath.Base(string(tr.group("")))
	want := slices.DeleteFunc(all.charges(t), func(e event) bool { return filepath.Base(e.Cgroup) != name })
	tr.end(t)
	sameEvents(t, tr.charges(t), want)
	checkRemoved(t, string(parent))
	checkRemoved(t, string(parent)+"/self")
	return tr, tr.events(t)
}

func TestLaunchOOM(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	parent := newTop(t)
	failures := launchOOM(t, parent, parent)
	if got := parent.number(t, "memory.events", "max"); got != failures {
		t.Errorf("%d charges failed, the kernel counts %d", failures, got)
	}
	if got := parent.number(t, "memory.events", "oom_kill"); got != 1 {
		t.Errorf("the kernel counts %d OOM kills", got)
	}
}

func TestLaunchOOMV1(t *testing.T) {
	if !Enter(t, Exact.On(V1...)) {
		return
	}
	mountV1(t)
	launchOOM(t, newCgroupV1(t), "")
}

// launchOOM is the article's experiment in one command. counts is the cgroup that counts the
// kill, if any. It returns the number of failed charges of memory.
func launchOOM(t *testing.T, parent, counts cgroup) (failures int64) {
	tr, events := launchBelow(t, parent, 128+int(unix.SIGKILL), "-memory 10M", workloadPath, "-now", "touch", "20")
	limit := (10 << 20) / pageSize
	charges := ofType(events, "charge")
	first, last := charges[0], charges[len(charges)-1]
	// The charges start with its exec; nothing was charged to the group before.
	if first.Comm != "chargetrace" || last.Comm != "workload" || first.UsagePages != 0 {
		t.Errorf("the first charge is %v, the last %v", first, last)
	}
	for i, e := range charges {
		if e.PID != first.PID || e.Cgroup != first.Cgroup || e.UsagePages > limit {
			t.Errorf("charge %d: %+v", i, e)
		}
		if e.Kind == "memory" && (e.MaxPages == nil || *e.MaxPages != limit) || e.Kind == "memsw" && e.MaxPages != nil {
			t.Errorf("limit of charge %d: %+v", i, e)
		}
		if e.Outcome == "failed" {
			failures++
			if e.RequestedPages != 1 || e.UsagePages != limit || e.FailedAt != e.Cgroup {
				t.Errorf("failed charge %d: %+v", i, e)
			}
		}
	}
	checkVerdict(t, tr.stderr.String(), first.Cgroup, counts, "memory", 10<<20)
	kills := ofType(events, "oom_kill")
	if len(kills) != 1 || kills[0].PID != first.PID || kills[0].Victim.PID != first.PID || kills[0].Cgroup != first.Cgroup {
		t.Errorf("OOM kills: %+v", kills)
	}
	want := fmt.Sprintf("chargetrace: workload (%d) was killed by the OOM killer: %s ran out of memory\n", first.PID, first.Cgroup)
	if !strings.Contains(tr.stderr.String(), want) {
		t.Errorf("no %q in %s", want, tr.stderr)
	}
	return failures
}

// TestLaunchForks checks that children of a command are traced from their start.
func TestLaunchForks(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	_, events := launchBelow(t, newTop(t), 0, "-memory 50M", workloadPath, "-now", "fork", "2")
	forks := ofType(events, "fork")
	if len(forks) != 2 || forks[0].PID != events[0].PID || forks[1].PID != events[0].PID {
		t.Fatalf("forks: %+v", forks)
	}
	for _, f := range forks {
		forked := slices.IndexFunc(events, func(e event) bool { return e.ChildPID == f.ChildPID })
		if i := slices.IndexFunc(events, func(e event) bool { return e.PID == f.ChildPID }); i < forked || events[i].Type != "charge" {
			t.Errorf("fork of %d is event %d, its first charge event %d", f.ChildPID, forked, i)
		}
	}
}

func TestLaunchEnds(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	launchEnds(t, cgroupRoot)
}

func TestLaunchEndsV1(t *testing.T) {
	if !Enter(t, Exact.On(V1...)) {
		return
	}
	mountV1(t)
	launchEnds(t, v1Root)
}

// launchEnds checks that no cgroup and no process is left, however chargetrace ends.
func launchEnds(t *testing.T, root string) {
	t.Run("SIGTERM", func(t *testing.T) {
		tr := startTracer(t, "", launching("-memory 50M", hold...)...)
		stopHeld(t, tr, root)
		tr.counted(t)
	})
	t.Run("SIGTERM ignored", func(t *testing.T) {
		tr := startTracer(t, "", launching("-memory 50M", script(stubborn)...)...)
		hs, _ := tr.held(t, 1)
		tr.stop(t)
		tr.status(t, 128+int(unix.SIGKILL))
		hs.checkExited(t)
		checkRemoved(t, root)
	})
	t.Run("after the trace", func(t *testing.T) {
		tr := startTracer(t, "chargetrace: seen ", launching("-memory 50M -n 1", hold...)...)
		stopHeld(t, tr, root)
		if c := tr.counted(t); c.shown != 1 {
			t.Errorf("%+v", c)
		}
	})
	launchKilled(t, root)
	launchLeaves(t, root)
}

// stopHeld stops a tracer whose command holds a process. It checks that nothing is left behind.
func stopHeld(t *testing.T, tr *tracer, root string) {
	hs, _ := tr.held(t, 1)
	if !exists(string(tr.group(root))) {
		t.Errorf("no %s", tr.group(root))
	}
	tr.stop(t)
	tr.status(t, 128+int(unix.SIGTERM))
	hs.checkExited(t)
	checkRemoved(t, root)
}

// launchKilled kills chargetrace.
func launchKilled(t *testing.T, root string) {
	killAndWait := func(t *testing.T, tr *tracer, hs handles) {
		t.Helper()
		if err := tr.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		hs.waitExited(t)
		waitForWrite(t, root, func() bool { return !exists(string(tr.group(root))) })
	}
	t.Run("SIGKILL", func(t *testing.T) {
		tr := startTracer(t, "", launching("-memory 50M", script(leave+"exec workload pause", "2")...)...)
		hs, _ := tr.held(t, 3)
		killAndWait(t, tr, hs)
	})
	t.Run("SIGKILL before it begins", func(t *testing.T) {
		tr := startTracer(t, "", launching("-memory 50M", hold...)...)
		waitForWrite(t, root, func() bool { return exists(string(tr.group(root))) })
		// The reaper of the group, and the process that will execute the command.
		pids := childrenOf(t, tr.Process.Pid)
		if len(pids) != 2 {
			t.Errorf("%d processes, want 2", len(pids))
		}
		killAndWait(t, tr, openProcesses(t, pids))
		if out := tr.output(t); out != "" {
			t.Errorf("it had begun: %s", out)
		}
	})
}

// launchLeaves runs commands that leave processes behind.
func launchLeaves(t *testing.T, root string) {
	for _, tc := range []struct {
		name, script string
		left         int
	}{
		{"left behind", leave, 3},
		{"groups left behind", ownCgroup + "mkdir -p $own/a/b; echo 0 >$own/a/b/cgroup.procs" + leave, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr := startTracer(t, "", launching("-memory 50M", script(tc.script, strconv.Itoa(tc.left))...)...)
			hs, _ := tr.held(t, tc.left)
			tr.status(t, 0)
			hs.checkExited(t)
			checkRemoved(t, root)
			want := fmt.Sprintf("chargetrace: processes left by %s and killed: %d\n", busybox, tc.left)
			if !strings.Contains(tr.stderr.String(), want) {
				t.Errorf("no %q in %s", want, tr.stderr)
			}
		})
	}
}
