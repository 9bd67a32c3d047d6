//go:build linux

package guest

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// flightRecorder is a tracer that keeps the last minute for a directory.
type flightRecorder struct {
	*tracer
	dir string
}

func startRecorder(t testing.TB, when string, args ...string) *flightRecorder {
	t.Helper()
	dir := t.TempDir()
	args = append([]string{"-keep-last", "30m,4M", "-after", "100ms", "-when", when, "-o", dir}, args...)
	return &flightRecorder{chargetrace(t, args...), dir}
}

// recording stops the recorder, and returns its only file.
func (r *flightRecorder) recording(t testing.TB, reason string) (file string, events []event, closing string) {
	t.Helper()
	r.stop(t)
	r.checkComplete(t)
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || !strings.HasPrefix(entries[0].Name(), reason+"-") || !strings.HasSuffix(entries[0].Name(), ".ctrace") {
		t.Fatalf("%s: saved %v: %s", reason, entries, r.stderr)
	}
	file = filepath.Join(r.dir, entries[0].Name())
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	_, closing = chargetraceOutput(t, "-r", file, "-o", filepath.Join(t.TempDir(), "x.csv"))
	return file, play(t, file), closing
}

// TestFlightRecorder keeps the last half an hour until a kill, a limit hit, a part of the limit,
// memory.high, a signal, and the end. Each file has all that a reference trace has up to then.
func TestFlightRecorder(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	top := newTop(t)
	gone, a, h := top.child(t, "gone"), top.child(t, "a"), top.child(t, "h")
	a.write(t, "memory.max", "10M")
	h.write(t, "memory.high", "4M")
	early, alloc, high := startWorkload(t, gone, "touch 1"), startWorkload(t, a, "touch 20"), startWorkload(t, h, "touch 8")
	reference := trace(t, "-cgroup", top.path())
	begin := func(when string, args ...string) *flightRecorder {
		return startRecorder(t, when, append(args, "-cgroup", top.path())...)
	}
	said := filepath.Join(t.TempDir(), "said")
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("test -s \"$CHARGETRACE_FILE\" && env | grep ^CHARGETRACE_ | sort >"+said+"; echo \"$@\" >>"+said), 0o644); err != nil {
		t.Fatal(err)
	}
	oom := begin("oom", "-exec", busybox+" sh "+script+" pid=$CHARGETRACE_PID $HOME")
	limit, part, throttled, exit, signal := begin("limit"), begin("95%", "-attach", "fentry"), begin("high"), begin("exit"), begin("lost")

	early.run(t)
	gone.remove(t)
	alloc.begin(t)
	alloc.waitKilled(t)
	high.run(t)
	if err := signal.Process.Signal(unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	reference.stop(t)
	charges := reference.charges(t)
	if charges[0].Cgroup != gone.path() {
		t.Fatalf("the first charge is %+v", charges[0])
	}

	check := func(r *flightRecorder, reason string, trigger func(e event) bool) (file, closing string) {
		t.Helper()
		file, events, closing := r.recording(t, reason)
		got := ofType(events, "charge")
		last := slices.IndexFunc(charges, trigger)
		if last < 0 || len(got) <= last || len(got) > len(charges) {
			t.Fatalf("%s: %d charges, trigger %d of %d", reason, len(got), last, len(charges))
		}
		sameEvents(t, got, charges[:len(got)])
		return file, closing
	}
	failed := func(e event) bool { return e.Outcome == "failed" }
	file, closing := check(oom, "oom", failed)
	checkVerdict(t, closing, a.path(), a, "memory", 10<<20)
	if !strings.Contains(oom.stderr.String(), "chargetrace: saved "+file+": "+a.path()+" ran out of memory at its memory limit of 2560 pages (10.0 MiB): workload ("+alloc.pid()+")") {
		t.Errorf("%s", oom.stderr)
	}
	want := fmt.Sprintf("CHARGETRACE_CGROUP=%s\nCHARGETRACE_CONTAINER=\nCHARGETRACE_FILE=%s\nCHARGETRACE_NAMESPACE=\nCHARGETRACE_PID=%s\nCHARGETRACE_POD=\nCHARGETRACE_REASON=oom\nCHARGETRACE_VERDICT=%s ran out of",
		a.path(), file, alloc.pid(), a.path())
	if got := readFile(t, said); !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "\npid="+alloc.pid()+" $HOME\n") {
		t.Errorf("-exec got %s", got)
	}
	_, closing = check(limit, "limit", failed)
	if want := a.path() + ": workload (" + alloc.pid() + ") hit its memory limit, 10.0 MiB"; !strings.Contains(closing, want) {
		t.Errorf("no %q: %s", want, closing)
	}
	isThreshold := func(e event) bool { return e.Cgroup == a.path() && (e.UsagePages+e.RequestedPages)*100 >= 95*2560 }
	_, closing = check(part, "95pct", isThreshold)
	if want := a.path() + ": workload (" + alloc.pid() + ") reached 95% of its memory limit, 10.0 MiB\n"; !strings.Contains(closing, want) {
		t.Errorf("no %q: %s", want, closing)
	}
	_, closing = check(throttled, "high", func(e event) bool { return e.Cgroup == h.path() })
	if want := h.path() + ": workload (" + high.pid() + ") exceeded its memory.high, 4.0 MiB"; !strings.Contains(closing, want) {
		t.Errorf("no %q: %s", want, closing)
	}
	for _, r := range []struct {
		*flightRecorder
		reason string
	}{{exit, "exit"}, {signal, "signal"}} {
		_, events, closing := r.recording(t, r.reason)
		sameEvents(t, ofType(events, "charge"), charges)
		checkVerdict(t, closing, a.path(), a, "memory", 10<<20)
	}
}

// TestLastWord runs a command before the kill: a Go program at 95% of its limit writes its heap
// profile, while -grace raises the limit, and is killed afterwards. The limit is put back, also
// when the recorder is killed.
func TestLastWord(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	const limit, grace = 64 << 20, 64 << 20
	start := func(script string) (g cgroup, leak *process, profile string, r *flightRecorder) {
		// As with Kubernetes, the pod has the limit of its container.
		pod := newTop(t)
		g = pod.child(t, "container")
		pod.write(t, "memory.max", strconv.Itoa(limit))
		g.write(t, "memory.max", strconv.Itoa(limit))
		dir := t.TempDir()
		profile, file := filepath.Join(dir, "heap.pb.gz"), filepath.Join(dir, "script")
		if err := os.WriteFile(file, []byte("test $CHARGETRACE_REASON = 95% || exit 0\n"+script), 0o644); err != nil {
			t.Fatal(err)
		}
		leak = startReady(t, 0, g, exec.Command("/usr/bin/leak", profile))
		r = startRecorder(t, "oom,95%", "-limited", "-after", "10s", "-cgroup", g.path(), "-grace", "64M",
			"-exec", fmt.Sprintf("%s sh %s $CHARGETRACE_PID %s %s/memory.max", busybox, file, profile, g))
		return g, leak, profile, r
	}
	isMax := func(g cgroup, bytes int) func() bool {
		return func() bool { return readFile(t, filepath.Join(string(g), "memory.max")) == strconv.Itoa(bytes)+"\n" }
	}

	g, leak, profile, r := start("kill -USR1 $1; until test -f $2; do usleep 10000; done; cp $3 $2.max")
	leak.begin(t)
	leak.waitKilled(t)
	waitForWrite(t, filepath.Join(string(g), "memory.max"), isMax(g, limit))
	if got := readFile(t, profile+".max"); got != strconv.Itoa(limit+grace)+"\n" {
		t.Errorf("while the command ran, the limit was %q", got)
	}
	f, err := os.Open(profile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if heap, err := io.ReadAll(unzipped); err != nil || !bytes.Contains(heap, []byte("main.leak")) {
		t.Errorf("%d bytes of a heap profile, %v", len(heap), err)
	}
	// The kill comes soon after the command, and so is in the same recording.
	_, _, closing := r.recording(t, "oom")
	for _, want := range []string{": leak (" + leak.pid() + ") reached 95% of its memory limit, 64.0 MiB", "leak (" + leak.pid() + ") was killed"} {
		if !strings.Contains(closing, want) {
			t.Errorf("no %q: %s", want, closing)
		}
	}

	g, leak, _, r = start("exec tail -f /dev/null")
	leak.begin(t)
	waitForWrite(t, filepath.Join(string(g), "memory.max"), isMax(g, limit+grace))
	if err := r.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitForWrite(t, filepath.Join(string(g), "memory.max"), isMax(g, limit))
	leak.waitKilled(t)
}

// TestRecorderIdle has nothing to record: the recorder does not run at all in ten seconds.
func TestRecorderIdle(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	p := startWorkload(t, newCgroup(t), "touch 1")
	r := startRecorder(t, "oom,limit,95%,high,lost", "-pid", p.pid(), "-report")
	p.begin(t)
	p.done(t)
	// ran returns how often each thread has run.
	ran := func() string {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", r.Process.Pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("threads %q, %v", threads, err)
		}
		var b strings.Builder
		for _, thread := range threads {
			fmt.Fprintf(&b, "%s %s", filepath.Base(filepath.Dir(thread)), readFile(t, thread))
		}
		return b.String()
	}
	waitAsleep(t, r.tracer)
	before := ran()
	// Ten seconds of the machine's clock, in which nothing may happen, are the subject of the test.
	time.Sleep(10 * time.Second)
	if after := ran(); after != before {
		t.Errorf("before\n%safter\n%s", before, after)
	}
	p.wait(t)
	r.end(t)
	if entries, err := os.ReadDir(r.dir); err != nil || len(entries) != 0 {
		t.Errorf("saved %v, %v: %s", entries, err, r.stderr)
	}
}

// TestRecorderDiskFull records kills on a small disk: the oldest recordings make room, and a file
// of another does not.
func TestRecorderDiskFull(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	other := filepath.Join(dir, "oom-20200101T000000Z-other.ctrace")
	if err := os.WriteFile(other, make([]byte, 30<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	top := newTop(t)
	tr := chargetrace(t, "-cgroup", top.path(), "-keep-last", "1m", "-after", "0s", "-when", "oom", "-o", dir)
	const kills = 8
	for i := range kills {
		g := top.child(t, fmt.Sprintf("c%d", i))
		g.write(t, "memory.max", "16M")
		p := startWorkload(t, g, "touch 32")
		saved := saves(t, dir)
		p.begin(t)
		p.waitKilled(t)
		waitForWrite(t, dir, func() bool { return !slices.Equal(saves(t, dir), saved) })
	}
	tr.stop(t)
	tr.checkComplete(t)
	if dropped := strings.Count(tr.stderr.String(), "chargetrace: warning: the disk is full: removed "+dir+"/oom-"); dropped == 0 {
		t.Errorf("nothing was dropped: %s", tr.stderr)
	}
	left := saves(t, dir)
	for _, file := range left {
		play(t, file)
	}
	if last := left[len(left)-1]; !strings.HasSuffix(last, fmt.Sprintf("-t1_c%d.ctrace", kills-1)) {
		t.Errorf("the last recording is %s: %s", last, tr.stderr)
	}
	if info, err := os.Stat(other); err != nil || info.Size() != 30<<10 {
		t.Errorf("%v, %v", info, err)
	}
}

// saves returns the recordings in a directory, without those of 2020.
func saves(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "oom-2026*.ctrace"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}
