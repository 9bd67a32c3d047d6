//go:build guest

package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const busybox = "/usr/bin/busybox"

// TestAims traces the same processes with each aim, and without any into a
// recording. That must give the same rows when it is played with the aim.
func TestAims(t *testing.T) {
	parent := newCgroup(t)
	parent.write(t, "cgroup.subtree_control", "+memory")
	a, b := parent.child(t, "a"), parent.child(t, "b")
	c := parent.child(t, strings.Repeat("c", 64)) // as runc names a container's
	a.write(t, "memory.max", "10M")
	// All on one CPU: on two, two tracers could see the order differently.
	small := startWorkload(t, a, 0, "named 12 aims-small")
	large := startWorkload(t, b, 0, "named 3 aims-large")
	inContainer := startWorkload(t, c, 0, "touch 2")
	shell := startShell(t, b, `i=0; while [ $i -lt 5 ]; do (`+busybox+` true); i=$((i+1)); done`)
	resume := suspend(t, small, large, inContainer)

	file := filepath.Join(t.TempDir(), "all.ctrace")
	all := chargetrace(t, "-o", file)
	in := "-cgroup=" + parent.path()
	type run struct {
		args   []string
		tracer *tracer
	}
	var runs []run
	for _, args := range [][]string{
		{"-cgroup", parent.path()},
		{"-cgroup", string(a)}, // with the mount point
		{"-cgroup", a.path(), "-cgroup", b.path()},
		{"-pid", small.pid()},
		{"-pid", small.pid() + "," + large.pid()},
		{"-pid", shell.pid(), "-f"},
		{"-pid", shell.pid(), "-pid", large.pid(), "-f"},
		{"-comm", "aims-*"},
		{"-comm", "aims-smal?", "-comm", "[b]usybox"},
		{"-comm", "aims-small", in, "-limited"},
		{"-container", "cccccc"},
		{in, "-limited"},
		{in, "-counter", "memory"},
		{in, "-counter", "swap"},
		{in, "-min-pages", "2"},
		{in, "-min-pages", "2", "-limited"},
		{in, "-pid", small.pid(), "-comm", "nobody"},
	} {
		runs = append(runs, run{args, chargetrace(t, append(args, "-wide")...)})
	}
	resume()
	for _, p := range []*process{small, large, inContainer, shell} {
		p.begin(t)
	}
	small.waitKilled(t)
	for _, p := range []*process{large, inContainer, shell} {
		p.wait(t)
	}
	all.stop(t)
	if err := all.Cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, all.stderr)
	}
	for _, r := range runs {
		t.Run(strings.Join(r.args, " "), func(t *testing.T) {
			r.tracer.stop(t)
			live := r.tracer.wideRows(t)
			played := playWide(t, file, r.args...)
			if s := r.tracer.counted(t); s.shown != uint64(len(live)) || s.lost != 0 {
				t.Errorf("%d rows, summary %+v", len(live), s)
			}
			if none := slices.Contains(r.args, "nobody") || slices.Contains(r.args, "swap"); none != (len(live) == 0) {
				t.Errorf("%d rows", len(live))
			}
			compareThreads(t, live, played, slices.Contains(r.args, "-limited"))
			t.Logf("%d rows", len(live))
		})
	}
}

// playWide returns the rows of a recording.
func playWide(t *testing.T, file string, args ...string) []wideRow {
	t.Helper()
	return startTracer(t, "", append([]string{"/usr/bin/chargetrace", "-r", file, "-wide"}, args...)...).wideRows(t)
}

// compareThreads compares the rows of two tracers, thread by thread: a thread that
// is preempted when one tracer's program has run and the other's has not lets
// another thread's rows change places with its own. Which of them found the limit
// reached first is then another too. After a thread's first failure, when CPUs give back
// what they have in stock, two tracers can find different usages, and so for -limited
// other rows.
func compareThreads(t *testing.T, live, played []wideRow, limited bool) {
	t.Helper()
	byThread := func(rows []wideRow) map[string][]wideRow {
		threads := make(map[string][]wideRow)
		for _, r := range rows {
			r.flags = slices.DeleteFunc(slices.Clone(r.flags), func(flag string) bool { return flag == "LIMIT" || flag == "REACHED" })
			threads[r.tid] = append(threads[r.tid], r)
		}
		return threads
	}
	liveThreads, playedThreads := byThread(live), byThread(played)
	if !slices.Equal(slices.Sorted(maps.Keys(liveThreads)), slices.Sorted(maps.Keys(playedThreads))) {
		t.Fatalf("live\n%v\nplayed\n%v", live, played)
	}
	for tid, live := range liveThreads {
		played := playedThreads[tid]
		failed := slices.IndexFunc(live, func(r wideRow) bool { return r.outcome == "failed" })
		if failed >= 0 && limited {
			live, played = live[:failed+1], played[:min(failed+1, len(played))]
		}
		if len(live) != len(played) {
			t.Fatalf("thread %s has %d rows live, %d played\nlive\n%v\nplayed\n%v", tid, len(live), len(played), live, played)
		}
		for i, l := range live {
			p := played[i]
			if failed >= 0 && i > failed {
				l, p = l.asked(), p.asked()
			}
			if fmt.Sprint(l) != fmt.Sprint(p) {
				t.Fatalf("row %d of thread %s\nlive   %v\nplayed %v", i, tid, l, p)
			}
		}
	}
}

// asked is what a row says of the call itself, and not of what it found.
func (r *wideRow) asked() wideRow {
	return wideRow{pid: r.pid, tid: r.tid, comm: r.comm, requested: r.requested, kind: r.kind, outcome: r.outcome, cgroup: r.cgroup}
}

// startShell starts a shell on the first CPU, in a cgroup. It waits before it
// runs the script.
func startShell(t testing.TB, g controlGroup, script string) *process {
	t.Helper()
	return startShellIn(t, g, 0, script)
}

// startShellIn starts it in new namespaces.
func startShellIn(t testing.TB, g controlGroup, namespaces uintptr, script string) *process {
	t.Helper()
	dir, err := os.Open(string(g))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	p := &process{Cmd: exec.Command(busybox, "sh", "-c", "read line; "+script)}
	p.Stdout, p.Stderr = &p.stderr, &p.stderr
	p.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Cloneflags: namespaces}
	if p.stdin, err = p.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	startOnCPU(t, p.Cmd, 0)
	t.Cleanup(func() {
		p.Process.Kill()
		p.Wait()
	})
	return p
}

// chargeMore is a command that charges more than a batch, so that what a CPU is
// left with does not do.
const chargeMore = busybox + " dd if=/dev/zero of=/dev/null bs=1M count=1"

// TestFollow follows a shell that forks 200 short children: it must show what all
// of them charge, which is all that their cgroup is charged, and nobody else. They run
// one after the other: of several at once, one can live on what the CPU has left of the
// others' batches alone.
func TestFollow(t *testing.T) {
	const children = 200
	g := newCgroup(t)
	shell := startShell(t, g, fmt.Sprintf(`i=0; while [ $i -lt %d ]; do %s; i=$((i+1)); done`, children, chargeMore))
	bystander := startWorkload(t, newCgroup(t), 0, "churn 5")
	family := chargetrace(t, "-wide", "-f", "-pid", shell.pid())
	whole := chargetrace(t, "-wide", "-cgroup", g.path())
	bystander.begin(t)
	shell.begin(t)
	shell.wait(t)
	bystander.wait(t)
	if pids := checkFamily(t, family, whole, g); len(pids) != children+1 {
		t.Errorf("charges of %d processes, want those of the shell and its %d children: %v\n%s", len(pids), children, slices.Sorted(maps.Keys(pids)), &shell.stderr)
	}
}

// TestFollowExisting follows a shell that has a child and a grandchild already.
func TestFollowExisting(t *testing.T) {
	g := newCgroup(t)
	fifo := newFIFO(t)
	shell := startShell(t, g, fmt.Sprintf(`( ( read go <%s; %s; : ) & wait ) & wait`, fifo, chargeMore))
	shell.begin(t)
	release := openFIFO(t, fifo) // when the grandchild is there
	family := chargetrace(t, "-wide", "-f", "-pid", shell.pid())
	alone := chargetrace(t, "-wide", "-pid", shell.pid())
	whole := chargetrace(t, "-wide", "-cgroup", g.path())
	release.WriteString("\n")
	release.Close()
	shell.wait(t)
	if pids := checkFamily(t, family, whole, g); len(pids) == 0 {
		t.Errorf("charges of %v, want those of what the grandchild forks", pids)
	}
	for _, r := range alone.wideRows(t) { // its own have all been before
		if r.pid != shell.pid() {
			t.Errorf("without -f: %+v", r)
		}
	}
}

func newFIFO(t *testing.T) string {
	t.Helper()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	return fifo
}

// openFIFO waits until somebody opens it to read, and opens it to write.
func openFIFO(t *testing.T, fifo string) *os.File {
	t.Helper()
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// checkFamily waits for the end of a trace with -f, which must have all that is
// charged to g, but for what others charge there from outside, or strangers. It returns
// whose charges there are.
func checkFamily(t *testing.T, family, whole *tracer, g controlGroup, strangers ...string) map[string]bool {
	t.Helper()
	rows := family.wideRows(t) // it ends with the last of them
	whole.stop(t)
	pids := map[string]bool{}
	var pages, want int64
	for _, r := range rows {
		pids[r.pid] = true
		if r.cgroup != g.path() {
			t.Errorf("not of the family: %+v", r)
		}
		if r.outcome == "ok" {
			pages += r.requested
		}
	}
	for _, r := range whole.wideRows(t) {
		if r.outcome == "ok" && (pids[r.pid] || !r.has("remote")) && !slices.Contains(strangers, r.pid) {
			want += r.requested
		}
	}
	if pages != want || pages == 0 {
		t.Errorf("the family charged %d pages, its cgroup %d", pages, want)
	}
	t.Logf("%d pages of %d processes", pages, len(pids))
	return pids
}

// TestCgroupAim traces a cgroup, to which a child is added, beside a sibling,
// until it is removed.
func TestCgroupAim(t *testing.T) { testCgroupAim(t, newCgroup(t), newCgroup(t), controlGroup.path) }

// TestCgroupAimV1 does the same in cgroup v1.
func TestCgroupAimV1(t *testing.T) {
	mount := mountV1(t)
	group := func() controlGroup {
		name, err := os.MkdirTemp(mount, "t")
		if err != nil {
			t.Fatal(err)
		}
		g := controlGroup(name)
		g.removeAfter(t)
		return g
	}
	testCgroupAim(t, group(), group(), func(g controlGroup) string { return strings.TrimPrefix(string(g), mount) })
}

func testCgroupAim(t *testing.T, g, sibling controlGroup, path func(controlGroup) string) {
	if exists(filepath.Join(string(g), "cgroup.subtree_control")) {
		g.write(t, "cgroup.subtree_control", "+memory")
	}
	byPath := chargetrace(t, "-wide", "-cgroup", path(g))
	byDir := chargetrace(t, "-wide", "-cgroup", string(g))
	later := g.child(t, "later")
	other := startWorkload(t, controlGroup(cgroupRoot), 0, "touch 2")
	p := startWorkload(t, controlGroup(cgroupRoot), 0, "touch 2")
	sibling.write(t, "cgroup.procs", other.pid())
	later.write(t, "cgroup.procs", p.pid())
	other.begin(t)
	p.begin(t)
	other.wait(t)
	p.wait(t)
	for _, dir := range []controlGroup{later, g} {
		dir.remove(t)
	}
	for _, tr := range []*tracer{byPath, byDir} {
		rows := tr.wideRows(t) // it ends by itself
		charges := 0
		for _, r := range rows {
			if r.pid == p.pid() && r.cgroup == path(later) {
				charges++
			} else if !r.has("remote") { // that the cgroups themselves take memory
				t.Errorf("row %+v", r)
			}
		}
		if charges < 8 {
			t.Errorf("%d charges", charges)
		}
		if want := fmt.Sprintf("chargetrace: %s was removed\n", g); !strings.Contains(tr.stderr.String(), want) {
			t.Errorf("no %q in %s", want, tr.stderr)
		}
	}
	mustFail(t, exec.Command("/usr/bin/chargetrace", "-cgroup", path(g)), 1, "there is no cgroup "+path(g), "hint: ")
}

// TestContainer traces a container of runc's with a limit, by the beginning of
// its id.
func TestContainer(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	bundle := t.TempDir()
	rootfs := filepath.Join(bundle, "rootfs", "bin")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rootfs, "busybox"), content, 0o755); err != nil {
		t.Fatal(err)
	}
	const config = `{
		"ociVersion": "1.0.2",
		"process": {"user": {}, "cwd": "/", "args": ["/bin/busybox", "sh", "-c", "read line; x=; while :; do x=$x$x.; done"]},
		"root": {"path": "rootfs"},
		"mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
		"linux": {
			"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
			"resources": {"memory": {"limit": 20971520}}
		}
	}`
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	newCgroup(t) // enables the memory controller at the root
	restoreControllers(t)
	runc := exec.Command("/usr/sbin/runc", "--root", t.TempDir(), "run", "--no-pivot", "--bundle", bundle, id)
	stdin, err := runc.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr lineBuffer
	stderr.found = make(chan struct{})
	runc.Stderr, runc.Stdout = &stderr, &stderr
	// Its directory appears when the container does.
	dir := filepath.Join(cgroupRoot, id)
	if err := runc.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { runc.Process.Kill() })
	waitForDir(t, dir)

	mustFail(t, exec.Command("/usr/bin/chargetrace", "-container", "fedcba"), 1, "there is no container fedcba", "hint: there are container:"+id[:12])
	tr := chargetrace(t, "-wide", "-container", id[:6])
	io.WriteString(stdin, "\n")
	runc.Wait()
	if status := runc.ProcessState.ExitCode(); status != 128+int(unix.SIGKILL) {
		t.Errorf("runc: exit status %d\n%s", status, &stderr)
	}
	rows := tr.wideRows(t) // it ends with the container
	for _, r := range rows {
		if r.cgroup != "/"+id {
			t.Errorf("row %+v", r)
		}
	}
	text := tr.stderr.String()
	for _, want := range []string{"/" + id + " was removed\n", "container:" + id[:12], " ran out of memory"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	if len(rows) < 64 {
		t.Errorf("%d rows", len(rows))
	}
}

// restoreControllers has those that a test enables at the root disabled after it. runc
// enables all: under cpuset, what is forked into a cgroup forgets its CPU (cpuset_fork).
func restoreControllers(t *testing.T) {
	t.Helper()
	root := controlGroup(cgroupRoot)
	enabled := func() []string {
		t.Helper()
		content, err := os.ReadFile(filepath.Join(string(root), "cgroup.subtree_control"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(content))
	}
	before := enabled()
	t.Cleanup(func() {
		for _, controller := range enabled() {
			if !slices.Contains(before, controller) {
				root.write(t, "cgroup.subtree_control", "-"+controller)
			}
		}
	})
}

// TestPIDNamespace traces the second process of a pid namespace from inside that.
func TestPIDNamespace(t *testing.T) {
	g := newCgroup(t)
	fifo := newFIFO(t)
	first := startShellIn(t, g, unix.CLONE_NEWPID, fmt.Sprintf("( read go <%s; %s; %[2]s; : ) & wait; read line; :", fifo, chargeMore))
	first.begin(t)
	second := openFIFO(t, fifo)
	inside := []string{busybox, "nsenter", "-t", first.pid(), "-p", "/usr/bin/chargetrace"}
	family := startTracer(t, "Tracing ", append(inside, "-wide", "-f", "-pid", "2")...)
	alone := startTracer(t, "Tracing ", append(inside, "-wide", "-pid", "2")...)
	whole := chargetrace(t, "-wide", "-cgroup", g.path())
	second.WriteString("\n")
	second.Close()
	pids := checkFamily(t, family, whole, g, first.pid())
	if len(pids) < 2 {
		t.Errorf("charges of %v, want those of two children", pids)
	}
	for _, r := range alone.wideRows(t) {
		if r.comm != "busybox" {
			t.Errorf("without -f: %+v", r)
		}
	}
	first.wait(t)
}

// TestPIDReuse gives the number of a process that has exited to a stranger, who must
// not be traced for it.
func TestPIDReuse(t *testing.T) {
	const lastPID = "/proc/sys/kernel/ns_last_pid"
	for {
		g := newCgroup(t)
		p, q := startWorkload(t, g, 0, "touch 4"), startWorkload(t, g, 0, "touch 4")
		tr := chargetrace(t, "-wide", "-pid", p.pid()+","+q.pid())
		p.begin(t)
		p.wait(t)
		if err := os.WriteFile(lastPID, []byte(strconv.Itoa(p.Process.Pid-1)), 0); err != nil {
			t.Fatal(err)
		}
		stranger := startShell(t, g, "exec "+chargeMore)
		stranger.begin(t)
		stranger.wait(t)
		q.begin(t)
		q.wait(t)
		charges := make(map[string]int)
		for _, r := range tr.wideRows(t) {
			charges[r.pid]++
			if r.comm == "busybox" || r.comm == "dd" {
				t.Errorf("of the stranger: %+v", r)
			}
		}
		if charges[p.pid()] < 8 || charges[q.pid()] < 8 || len(charges) != 2 {
			t.Errorf("charges by process: %v", charges)
		}
		if stranger.Process.Pid == p.Process.Pid {
			return
		}
		t.Logf("somebody else began as %s before", p.pid())
	}
}
