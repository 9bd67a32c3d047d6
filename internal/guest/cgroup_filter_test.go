//go:build linux

package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCgroupFilter traces a cgroup until it is removed. It has a sibling, and gets a child
// during the trace.
func TestCgroupFilter(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	g, sibling := newCgroup(t), newCgroup(t)
	g.write(t, "cgroup.subtree_control", "+memory")
	cgroupFilter(t, g, sibling, "memory.current")
}

// TestCgroupFilterV1 does the same in cgroup v1.
func TestCgroupFilterV1(t *testing.T) {
	if !Enter(t, Exact.On(V1...)) {
		return
	}
	mountV1(t)
	cgroupFilter(t, newCgroupV1(t), newCgroupV1(t), "memory.usage_in_bytes")
}

func cgroupFilter(t *testing.T, g, sibling cgroup, usageFile string) {
	byPath := trace(t, "-cgroup", g.path())
	byDir := trace(t, "-cgroup", string(g))
	later := g.child(t, "later")
	other := startWorkload(t, rootCgroup, "touch 2")
	p := startWorkload(t, rootCgroup, "touch 2")
	sibling.write(t, "cgroup.procs", other.pid())
	later.write(t, "cgroup.procs", p.pid())
	other.begin(t)
	other.done(t)
	p.begin(t)
	p.done(t)
	held := later.number(t, usageFile, "") / pageSize
	other.wait(t)
	p.wait(t)
	later.remove(t)
	g.remove(t)

	charges := byPath.charges(t) // the tracer ends when the cgroup is removed
	sameEvents(t, byDir.charges(t), charges)
	pages := int64(0)
	for _, e := range ofKind(charges, "memory") {
		switch {
		case e.PID == p.Process.Pid && e.Cgroup == later.path() && e.Outcome == "ok":
			pages += e.RequestedPages
		case e.Cgroup != g.path() || !e.has("remote"): // memory for the cgroups themselves
			t.Errorf("charge %v", e)
		}
	}
	if pages != held {
		t.Errorf("%d pages, but %s holds %d", pages, later.path(), held)
	}
	for _, tr := range []*tracer{byPath, byDir} {
		if want := fmt.Sprintf("chargetrace: %s was removed\n", g); !strings.Contains(tr.stderr.String(), want) {
			t.Errorf("no %q in %s", want, tr.stderr)
		}
	}
	mustFail(t, exec.Command(command, "-cgroup", g.path()), 1, "there is no cgroup "+g.path(), "hint: ")
}

// TestContainer traces a container of runc with a limit, selected by a prefix of its id,
// until it runs out of memory.
func TestContainer(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	id := strings.Repeat("0123456789abcdef", 4)
	const maxPages = 5120
	runc, output := startContainer(t, id, maxPages*pageSize)
	mustFail(t, exec.Command(command, "-container", "fedcba"), 1, "there is no container fedcba", "hint: there are "+id[:12])
	tr := trace(t, "-container", id[:6])
	runc.begin(t)
	runc.Wait()
	if status := runc.ProcessState.ExitCode(); status != 128+int(unix.SIGKILL) {
		t.Errorf("runc: exit status %d\n%s", status, output)
	}
	charges := tr.charges(t) // the tracer ends with the container
	highest := int64(0)
	for _, e := range charges {
		if e.Cgroup != "/"+id || e.Container == nil || e.Container.ID != id || e.MaxPages == nil || *e.MaxPages != maxPages {
			t.Errorf("%v: container %+v", e, e.Container)
		}
		switch e.Outcome {
		case "ok":
			highest = max(highest, e.UsagePages+e.RequestedPages)
		case "failed":
			if e.UsagePages != maxPages || e.FailedAt != "/"+id {
				t.Errorf("%v", e)
			}
		}
	}
	if highest != maxPages {
		t.Errorf("the container reached %d pages, want %d", highest, maxPages)
	}
	if kills := ofType(tr.events(t), "oom_kill"); len(kills) != 1 || kills[0].Container.ID != id || kills[0].Victim.Comm != "busybox" {
		t.Errorf("kills %v", kills)
	}
	checkVerdict(t, tr.stderr.String(), id[:12], "", "memory", maxPages*pageSize)
	for _, want := range []string{"/" + id + " was removed\n", "\n" + id[:12] + " "} {
		if !strings.Contains(tr.stderr.String(), want) {
			t.Errorf("no %q in %s", want, tr.stderr)
		}
	}
}

// startContainer starts a container with a shell that waits for begin, and then allocates
// memory without end.
func startContainer(t testing.TB, id string, limit int64) (runc *process, output *lineBuffer) {
	t.Helper()
	bundle := t.TempDir()
	bin := filepath.Join(bundle, "rootfs", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "busybox"), []byte(readFile(t, busybox)), 0o755); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`{
		"ociVersion": "1.0.2",
		"process": {"user": {}, "cwd": "/", "args": ["/bin/busybox", "sh", "-c", "read line; x=; while :; do x=$x$x.; done"]},
		"root": {"path": "rootfs"},
		"mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
		"linux": {
			"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
			"resources": {"memory": {"limit": %d}}
		}
	}`, limit)
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	rootCgroup.write(t, "cgroup.subtree_control", "+memory")
	output = newLineBuffer("")
	runc = &process{Cmd: exec.Command("/usr/sbin/runc", "--root", t.TempDir(), "run", "--no-pivot", "--bundle", bundle, id)}
	runc.Stderr, runc.Stdout = output, output
	runc.start(t, 0, rootCgroup)
	waitForDir(t, filepath.Join(cgroupRoot, id)) // the container exists
	return runc, output
}
