//go:build linux

package guest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"chargetrace/internal/vm"
)

// TestRecording records a process until it is killed. The replay must print the same as the
// live trace. With UPDATE_RECORDINGS in the environment, the host keeps the recordings of
// all kernels for its own tests.
func TestRecording(t *testing.T) {
	if !Enter(t, Exact.Keeping(updateRecording)) {
		return
	}
	dir := t.TempDir()
	file, page := filepath.Join(dir, "x.ctrace"), filepath.Join(dir, "x.html")
	g := newCgroup(t)
	g.write(t, "memory.max", "10M")
	alloc := startWorkload(t, g, "named 20 exe") // the host's tests expect this name
	tr := chargetrace(t, "-pid", alloc.pid(), "-o", file, "-o", page, "-o", "-")
	limited := trace(t, "-pid", alloc.pid(), "-limited")
	alloc.begin(t)
	alloc.waitKilled(t)

	c := tr.counted(t)
	if c.shown == 0 || c.lost != 0 || c.missed != 0 {
		t.Errorf("%+v: %s", c, tr.stderr)
	}
	tr.checkVerdict(t, g, g, "memory", 10<<20)
	played, stderr := chargetraceOutput(t, "-r", file)
	if live := tr.output(t); played != live {
		t.Errorf("live\n%s\nplayed\n%s", live, played)
	}
	// The summary is the same too, after the lines of counts.
	_, summary, _ := strings.Cut(tr.stderr.String(), "\n\n")
	counts, playedSummary, _ := strings.Cut(stderr, "\n\n")
	if playedSummary != summary {
		t.Errorf("live summary\n%s\nplayed\n%s", summary, playedSummary)
	}
	if want := fmt.Sprintf("chargetrace: read %d = shown %[1]d + filtered 0\nchargetrace: when recorded: seen %[2]d = recorded %[1]d + filtered %[3]d + lost 0", c.shown, c.seen, c.filtered); counts != want {
		t.Errorf("played: %s\nwant %s", counts, want)
	}
	// The report is the same too.
	livePage := readFile(t, page)
	playedPage, _ := chargetraceOutput(t, "-r", file, "-o", "-", "-format", "html")
	if story := g.path() + " ran out of memory</h1>"; playedPage != livePage || !strings.Contains(playedPage, story) {
		t.Errorf("the report lacks %q, or differs from the live one\n%s\nplayed\n%s", story, livePage, playedPage)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if len(limited.charges(t)) == 0 {
		t.Error("-limited: no charges")
	}
	sameEvents(t, limited.events(t), play(t, file, "-limited"))
	Keep(t, filepath.Base(file), []byte(readFile(t, file)))
}

// updateRecording stores a recording for the tests of the command on the host.
func updateRecording(t *testing.T, k vm.Kernel, _ string, content []byte) {
	updateTestdata(t, k.String()+".ctrace", content)
}

// updateVerdict stores a recording of [traceKept].
func updateVerdict(t *testing.T, _ vm.Kernel, name string, content []byte) {
	updateTestdata(t, filepath.Join("verdicts", name), content)
}

func updateTestdata(t *testing.T, name string, content []byte) {
	t.Helper()
	if os.Getenv("UPDATE_RECORDINGS") == "" {
		return
	}
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "cmd/chargetrace/testdata", name), content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestRecordingKilled kills a tracer that records a storm: the recording must contain
// everything that a following reader has shown.
func TestRecordingKilled(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	file := filepath.Join(t.TempDir(), "x.ctrace")
	storm := startOneStorm(t, 1_000_000)
	late := startWorkload(t, newCgroup(t), "touch 1")
	tr := chargetrace(t, "-pid", storm.pid()+","+late.pid(), "-o", file)
	storm.begin(t)
	reader := startTracer(t, "", command, "-r", file, "-follow")
	output, err := os.Open(reader.stdout.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	var shown []byte
	waitForRow := func(p *process) {
		row := regexp.MustCompile(`(?m)^\d+ +` + p.pid() + " ")
		waitForWrite(t, output.Name(), func() bool {
			line := bytes.LastIndexByte(shown, '\n') + 1
			more, err := io.ReadAll(output)
			if err != nil {
				t.Fatal(err)
			}
			shown = append(shown, more...)
			return row.Match(shown[line:])
		})
	}
	waitForRow(storm)
	late.begin(t)
	waitForRow(late)
	if err := tr.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	tr.Wait()
	storm.Process.Kill()
	shown = shown[:bytes.LastIndexByte(shown, '\n')+1]
	if played := playCut(t, file); !strings.HasPrefix(played, string(shown)) {
		t.Errorf("%d bytes were shown, the replay prints %d different ones", len(shown), len(played))
	}
}

// startOneStorm starts a single process like startStorm.
func startOneStorm(t testing.TB, n int) *process {
	t.Helper()
	g := newCgroup(t)
	p := startWorkload(t, g, fmt.Sprintf("storm %d", n))
	g.leaveRoom(t, 0)
	p.spare(t)
	return p
}

// playCut returns the rows of a recording that ends early.
func playCut(t testing.TB, file string) string {
	t.Helper()
	cmd := exec.Command(command, "-r", file)
	var out bytes.Buffer
	cmd.Stdout = &out
	mustFail(t, cmd, 1, "the recording ends early", "hint: ")
	return out.String()
}

// TestRotation records a storm into several files, each a complete recording.
func TestRotation(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	const n = 5000
	dir := t.TempDir()
	storm, pids := startStorm(t, n)
	tr := chargetrace(t, "-pid", pids, "-o", filepath.Join(dir, "x.ctrace"), "-rotate", "300ms", "-o", "-")
	for _, p := range storm {
		p.begin(t)
	}
	for _, p := range storm {
		p.wait(t)
	}
	tr.checkComplete(t)
	files, err := filepath.Glob(filepath.Join(dir, "x-*.ctrace"))
	if err != nil || len(files) < 2 {
		t.Fatalf("files %q, %v", files, err)
	}
	var args []string
	rows := 0
	for i := range files {
		file := filepath.Join(dir, fmt.Sprintf("x-%d.ctrace", i+1))
		args = append(args, "-r", file)
		rows += len(ofType(play(t, file), "charge"))
	}
	played, _ := chargetraceOutput(t, args...)
	if live := tr.output(t); played != live {
		t.Errorf("live output of %d bytes, replay of %d", len(live), len(played))
	}
	// Each page, and the batch that fails before it.
	if want := 4 * n * 2; rows != want {
		t.Errorf("%d rows in %d files, want %d", rows, len(files), want)
	}
	t.Logf("%d files", len(files))
}

// TestRecordingDiskFull records to a file system that is too small: the written part stays
// readable.
func TestRecordingDiskFull(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	const dir = "/run/small"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "x.ctrace")
	first := startOneStorm(t, 2000)
	storm, pids := startStorm(t, 1_000_000)
	tr := startTracer(t, "Tracing ", command, "-pid", first.pid()+","+pids, "-o", file)
	first.run(t)
	// A block can be larger than the disk, so wait for one before the storm.
	var before []byte
	waitForWrite(t, file, func() bool {
		before, _ = exec.Command(command, "-r", file).Output() // fails: no end yet
		return bytes.Count(before, []byte("\n")) > 1
	})
	for _, p := range storm {
		p.begin(t)
	}
	tr.Wait()
	for _, p := range storm {
		p.Process.Kill()
	}
	if tr.ProcessState.ExitCode() != 1 || !strings.Contains(tr.stderr.String(), "hint: the disk is full; the recording up to there can be played") {
		t.Errorf("exit status %d: %s", tr.ProcessState.ExitCode(), tr.stderr)
	}
	if played := playCut(t, file); !strings.HasPrefix(played, string(before)) {
		t.Errorf("%d bytes of rows are left, %d were there before", len(played), len(before))
	}
}
