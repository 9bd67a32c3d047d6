//go:build linux

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemote floods sockets of another cgroup. The sender makes the charges, or a kernel
// thread if too many packets wait. The socket's cgroup is charged, even after it was
// removed.
func TestRemote(t *testing.T) {
	if !Enter(t, Exact) {
		return
	}
	loopbackUp(t)
	t.Run("there", func(t *testing.T) { floodSockets(t, false) })
	t.Run("removed", func(t *testing.T) { floodSockets(t, true) })
}

// floodSockets sends to sockets of a cgroup, and compares the charges with the rise of its
// parent's usage, which includes a removed child.
func floodSockets(t *testing.T, removed bool) {
	const sockets = 16
	top := newTop(t)
	payer := top.child(t, "payer")
	listener := startWorkload(t, payer, fmt.Sprintf("listen %d", sockets))
	own := newCgroup(t)
	sender := startWorkload(t, own, fmt.Sprintf("send %d", sockets))
	tr := trace(t)
	if removed {
		rootCgroup.write(t, "cgroup.procs", listener.pid())
		if err := os.Remove(string(payer)); err != nil {
			t.Fatal(err)
		}
		waitForFrees(t) // also until its stock is drained (mem_cgroup_css_offline)
	}
	usage := top.usagePages(t)
	sender.begin(t)
	sender.done(t)
	rise := top.usagePages(t) - usage
	sender.wait(t)
	tr.stop(t)
	charges := slices.DeleteFunc(tr.charges(t), func(e event) bool { return e.Cgroup != payer.path() })
	for _, e := range charges {
		if e.Kind != "memory" || e.Outcome != "ok" || !e.has("remote") {
			t.Errorf("charge %+v", e)
		}
	}
	if okPages(charges) != rise || rise == 0 {
		t.Errorf("%d pages were charged, but memory.current rose by %d", okPages(charges), rise)
	}
}

// TestRemovedAndHostile traces a cgroup that is made and removed during the trace, with a
// terminal escape sequence and invalid UTF-8 in its name.
func TestRemovedAndHostile(t *testing.T) {
	if !Enter(t, Exact) {
		return
	}
	tr := trace(t)
	parent := newTop(t)
	// The kernel refuses a newline.
	if err := os.Mkdir(filepath.Join(string(parent), "a\nb"), 0o755); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a newline in the name of a cgroup: %v", err)
	}
	g := parent.child(t, "\x1b[31mx\xff")
	p := startWorkload(t, g, "touch 1")
	p.begin(t)
	p.done(t)
	usage := g.usagePages(t)
	p.wait(t)
	if err := os.Remove(string(g)); err != nil {
		t.Fatal(err)
	}
	tr.stop(t)
	want := parent.path() + `/\x1b[31mx\xff`
	var last event
	for _, e := range tr.charges(t) {
		if e.PID != p.Process.Pid {
			continue
		}
		if e.Cgroup != want || e.Kind != "memory" || e.Outcome != "ok" {
			t.Errorf("charge %+v", e)
		}
		last = e
	}
	if got := last.UsagePages + last.RequestedPages; got != usage {
		t.Errorf("after the last charge, %v, memory.current was %d", last, usage)
	}
	if text := tr.stderr.String(); !strings.Contains(text, "\n"+want+" ") || strings.ContainsRune(text, '\x1b') {
		t.Errorf("the summary is %q", text)
	}
}
