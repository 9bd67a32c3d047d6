//go:build linux

package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// chargeMore is a command that charges 1 MiB, more than a CPU's stock can hold.
const chargeMore = busybox + " dd if=/dev/zero of=/dev/null bs=1M count=1"

// TestFollow follows a process that forks 200 short-lived children. The trace must have all
// charges to their cgroup, which no other process uses.
func TestFollow(t *testing.T) {
	if !Enter(t, Exact.On(All...)) {
		return
	}
	const children = 200
	g := newCgroup(t)
	parent := startWorkload(t, g, fmt.Sprintf("fork %d", children))
	bystander := startWorkload(t, newCgroup(t), "churn 5")
	family := trace(t, "-f", "-pid", parent.pid())
	whole := trace(t, "-cgroup", g.path())
	bystander.begin(t)
	parent.run(t)
	bystander.wait(t)
	whole.stop(t)

	charges := family.charges(t)
	sameEvents(t, charges, whole.charges(t))
	var forked []int
	for _, f := range forks(t, family) {
		if f.parent != parent.Process.Pid || f.existing {
			t.Errorf("%+v", f)
		}
		forked = append(forked, f.child)
	}
	if len(forked) != children {
		t.Errorf("%d children, want %d", len(forked), children)
	}
	if charging := pidsOf(charges, parent.Process.Pid); !slices.Equal(charging, forked) {
		t.Errorf("charges of %v, want those of all children: %v", charging, forked)
	}
}

type fork struct {
	parent, child int
	existing      bool
}

// forks returns the forks of a trace that has ended.
func forks(t testing.TB, tr *tracer) (forks []fork) {
	t.Helper()
	for _, e := range ofType(tr.events(t), "fork") {
		forks = append(forks, fork{e.PID, e.ChildPID, e.Existing})
	}
	return forks
}

// pidsOf returns the processes that charge, except one, in the order of their first charges.
func pidsOf(charges []event, but int) (pids []int) {
	for _, e := range charges {
		if e.PID != but && !slices.Contains(pids, e.PID) {
			pids = append(pids, e.PID)
		}
	}
	return pids
}

// TestFollowExisting follows a shell that has a child and a grandchild when the trace
// starts. The grandchild forks a process that charges.
func TestFollowExisting(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	g := newCgroup(t)
	fifo := newFIFO(t)
	shell := startShell(t, g, fmt.Sprintf(`( ( read go <%s; %s; : ) & wait ) & wait`, fifo, chargeMore))
	shell.begin(t)
	release := openFIFO(t, fifo) // the grandchild exists
	family := trace(t, "-f", "-pid", shell.pid())
	alone := trace(t, "-pid", shell.pid())
	whole := trace(t, "-cgroup", g.path())
	release.WriteString("\n")
	release.Close()
	shell.wait(t)
	whole.stop(t)

	charges := family.charges(t)
	sameEvents(t, charges, whole.charges(t))
	f := forks(t, family)
	if len(f) != 3 {
		t.Fatalf("forks %+v", f)
	}
	child, grandchild, last := f[0].child, f[1].child, f[2].child
	if want := []fork{{shell.Process.Pid, child, true}, {child, grandchild, true}, {grandchild, last, false}}; !slices.Equal(f, want) {
		t.Errorf("forks %+v, want %+v", f, want)
	}
	if len(ofPID(charges, last)) == 0 {
		t.Errorf("no charges of %d: %v", last, charges)
	}
	sameEvents(t, alone.charges(t), ofPID(charges, shell.Process.Pid))
}

// ofPID returns the events of a process.
func ofPID(events []event, pid int) []event {
	return slices.DeleteFunc(slices.Clone(events), func(e event) bool { return e.PID != pid })
}

func newFIFO(t testing.TB) string {
	t.Helper()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	return fifo
}

// openFIFO waits for a reader, and opens the FIFO for writing.
func openFIFO(t testing.TB, fifo string) *os.File {
	t.Helper()
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestPIDNamespace traces the second process of a pid namespace from inside the namespace.
func TestPIDNamespace(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	g := newCgroup(t)
	fifo := newFIFO(t)
	first := startShellIn(t, g, unix.CLONE_NEWPID, fmt.Sprintf("( read go <%s; %s; %[2]s; : ) & wait; read line; :", fifo, chargeMore))
	first.begin(t)
	release := openFIFO(t, fifo)
	traceInside := func(args ...string) *tracer {
		file := filepath.Join(t.TempDir(), "x.jsonl")
		argv := append([]string{busybox, "nsenter", "-t", first.pid(), "-p", command, "-pid", "2", "-o", file}, args...)
		tr := startTracer(t, "Tracing ", argv...)
		tr.jsonl = file
		return tr
	}
	family, alone := traceInside("-f"), traceInside()
	whole := trace(t, "-cgroup", g.path())
	release.WriteString("\n")
	release.Close()
	charges := family.charges(t) // the tracer ends with the second process
	first.wait(t)
	whole.stop(t)

	f := forks(t, family)
	if len(f) != 2 {
		t.Fatalf("forks %+v", f)
	}
	// All pids are those of the initial namespace.
	second := f[0].parent
	if want := []fork{{second, f[0].child, false}, {second, f[1].child, false}}; !slices.Equal(f, want) || second == first.Process.Pid {
		t.Errorf("forks %+v, want %+v", f, want)
	}
	if charging := pidsOf(charges, second); !slices.Equal(charging, []int{f[0].child, f[1].child}) {
		t.Errorf("charges of %v, forks %+v", charging, f)
	}
	sameEvents(t, charges, slices.DeleteFunc(whole.charges(t), func(e event) bool { return e.PID == first.Process.Pid }))
	sameEvents(t, alone.charges(t), ofPID(charges, second))
}

// TestPIDReuse gives the pid of an exited process to another one, which must not be traced.
func TestPIDReuse(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	g, other := newCgroup(t), newCgroup(t)
	p, q := startWorkload(t, g, "touch 4"), startWorkload(t, g, "touch 4")
	parent := startWorkload(t, other, "fork_as "+p.pid())
	tr := trace(t, "-pid", p.pid()+","+q.pid())
	all := trace(t, "-cgroup", g.path(), "-cgroup", other.path())
	p.run(t)
	parent.run(t)
	q.run(t)
	all.stop(t)
	charges := all.charges(t)
	inOther := func(e event) bool { return e.Cgroup == other.path() }
	if !slices.ContainsFunc(charges, func(e event) bool { return inOther(e) && e.PID == p.Process.Pid }) {
		t.Fatalf("the second process with pid %s has no charges: %v", p.pid(), charges)
	}
	sameEvents(t, tr.charges(t), slices.DeleteFunc(charges, inOther))
}
