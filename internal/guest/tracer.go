//go:build linux

package guest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const command = "/usr/bin/chargetrace"

// lineBuffer keeps everything written to it, and closes found when it contains a text.
type lineBuffer struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	text  string
	found chan struct{}
}

func newLineBuffer(text string) *lineBuffer {
	return &lineBuffer{text: text, found: make(chan struct{})}
}

func (b *lineBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	had := strings.Contains(b.buf.String(), b.text)
	b.buf.Write(p)
	if !had && strings.Contains(b.buf.String(), b.text) {
		close(b.found)
	}
	return len(p), nil
}

func (b *lineBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// tracer is a running chargetrace, or another tracer.
type tracer struct {
	*exec.Cmd
	stdout *os.File
	stderr *lineBuffer
	jsonl  string // the file of events, if trace started it
	logged bool   // its rows are in the test's log
}

// startTracer starts a command and waits until it has printed ready on stderr. It does not
// wait if ready is empty.
func startTracer(t testing.TB, ready string, argv ...string) *tracer {
	t.Helper()
	return startTracerAs(t, nil, ready, argv...)
}

// startTracerAs is startTracer for a process with other attributes.
func startTracerAs(t testing.TB, as *syscall.SysProcAttr, ready string, argv ...string) *tracer {
	t.Helper()
	tr := &tracer{Cmd: exec.Command(argv[0], argv[1:]...), stderr: newLineBuffer(ready)}
	var err error
	tr.stdout, err = os.Create(filepath.Join(t.TempDir(), "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	tr.Stdout, tr.Cmd.Stderr, tr.SysProcAttr = tr.stdout, tr.stderr, as
	tr.Env = append(os.Environ(), "COLUMNS=400") // paths in full
	if err := tr.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tr.Process.Kill()
		tr.Cmd.Wait()
	})
	if ready == "" {
		return tr
	}
	exited := make(chan struct{})
	pidfd, err := unix.PidfdOpen(tr.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(exited)
		defer unix.Close(pidfd)
		for {
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1); err != unix.EINTR {
				return
			}
		}
	}()
	select {
	case <-tr.stderr.found:
	case <-exited:
		tr.Wait() // for all its output
		t.Fatalf("%s is not ready, but has exited: %s", argv, tr.stderr)
	case <-time.After(waitTimeout):
		t.Fatalf("%s is not ready: %s", argv, tr.stderr)
	}
	return tr
}

// chargetrace starts the command and waits until it traces. Its stdout is the table.
func chargetrace(t testing.TB, args ...string) *tracer {
	t.Helper()
	return startTracer(t, "Tracing ", append([]string{command}, args...)...)
}

// trace starts the command with -o x.jsonl, for events.
func trace(t testing.TB, args ...string) *tracer {
	t.Helper()
	file := filepath.Join(t.TempDir(), "x.jsonl")
	tr := chargetrace(t, append(args, "-o", file)...)
	tr.jsonl = file
	return tr
}

// chargetraceOutput runs the command to its end and returns its output.
func chargetraceOutput(t testing.TB, args ...string) (stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(command, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd.Args, err, &errs)
	}
	return out.String(), errs.String()
}

// mustFail runs a command that must exit with a status and with texts on stderr.
func mustFail(t testing.TB, cmd *exec.Cmd, status int, want ...string) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != status {
		t.Errorf("%s: exit status %d, want %d", cmd.Args, got, status)
	}
	for _, text := range want {
		if !strings.Contains(stderr.String(), text) {
			t.Errorf("%s: no %q in %s", cmd.Args, text, &stderr)
		}
	}
}

// stop asks the tracer to end.
func (tr *tracer) stop(t testing.TB) {
	t.Helper()
	if err := tr.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// end waits for the end of the tracer, which must exit with 0.
func (tr *tracer) end(t testing.TB) {
	t.Helper()
	if tr.ProcessState != nil {
		return
	}
	if err := tr.Cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s", tr.Args, err, tr.stderr)
	}
}

// output returns the tracer's stdout so far.
func (tr *tracer) output(t testing.TB) string {
	t.Helper()
	content, err := os.ReadFile(tr.stdout.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

var (
	summaryLine = regexp.MustCompile(`(?m)^chargetrace: seen (\d+) = shown (\d+) \+ filtered (\d+) \+ lost (\d+)$`)
	missedLine  = regexp.MustCompile(`(?m)^chargetrace: warning: the kernel missed (\d+) calls`)
)

// counted is the closing line of chargetrace, and the calls that the kernel missed, which
// seen does not include.
type counted struct{ seen, shown, filtered, lost, missed uint64 }

// counted waits for the end of the tracer and returns its counts.
func (tr *tracer) counted(t testing.TB) (c counted) {
	t.Helper()
	tr.end(t)
	m := summaryLine.FindStringSubmatch(tr.stderr.String())
	if m == nil {
		t.Fatalf("no summary: %s", tr.stderr)
	}
	for i, n := range []*uint64{&c.seen, &c.shown, &c.filtered, &c.lost} {
		*n, _ = strconv.ParseUint(m[i+1], 10, 64)
	}
	if m := missedLine.FindStringSubmatch(tr.stderr.String()); m != nil {
		c.missed, _ = strconv.ParseUint(m[1], 10, 64)
	}
	if c.seen != c.shown+c.filtered+c.lost {
		t.Errorf("the summary does not add up: %+v", c)
	}
	return c
}

// checkComplete waits for the end of the tracer, and checks that it lost nothing, missed no
// call, saw each charge return, and recognized all counters.
func (tr *tracer) checkComplete(t testing.TB) {
	t.Helper()
	if c := tr.counted(t); c.lost != 0 || c.missed != 0 || strings.Contains(tr.stderr.String(), "coverage:") {
		t.Errorf("%s: %+v: %s", tr.Args, c, tr.stderr)
	}
}

// event is a line of a .jsonl; see package export.
type event struct {
	Type           string
	TimeNanos      int64     `json:"time_ns"`
	WallTime       time.Time `json:"wall_time"`
	CPU            int
	PID, TID       int
	Comm           string
	Cgroup         string
	CgroupID       uint64 `json:"cgroup_id"`
	Hierarchy      uint32
	Container      *container
	Kind, Outcome  string
	RequestedPages int64  `json:"requested_pages"`
	UsagePages     int64  `json:"usage_pages"`
	MaxPages       *int64 `json:"max_pages"` // nil: no limit
	Limiting, High *level
	FailedAt       string `json:"failed_at"`
	Cause          string
	KernelStack    uint32 `json:"kernel_stack"`
	UserStack      uint32 `json:"user_stack"`
	Flags          []string

	Stack  uint32   // type stack
	Frames []string // innermost first

	Pages         int64 // uncharge, forced_charge
	FreedPages    int64 `json:"freed_pages"`
	DurationNanos int64 `json:"duration_ns"`
	HighPages     int64 `json:"high_pages"`
	Victim        victim
	Result        string           // oom
	Stat          map[string]int64 // memory_stat
	ChildPID      int              `json:"child_pid"`
	Existing      bool
	Events        uint64 // lost
	Charges       uint64 // end
}

type container struct {
	Runtime, ID, Name, Namespace, Pod string
	PodUID                            string `json:"pod_uid"`
}

type level struct {
	Cgroup     string
	UsagePages int64 `json:"usage_pages"`
	MaxPages   int64 `json:"max_pages"`
	RoomPages  int64 `json:"room_pages"`
}

type victim struct {
	PID        int
	Comm       string
	AnonPages  int64 `json:"anon_pages"`
	FilePages  int64 `json:"file_pages"`
	ShmemPages int64 `json:"shmem_pages"`
	SwapPages  int64 `json:"swap_pages"`

	PageTableBytes int64 `json:"page_table_bytes"`
	Cgroup         string
}

func (e *event) has(flag string) bool { return slices.Contains(e.Flags, flag) }

// atLimit reports whether a charge found a level at its limit.
func (e *event) atLimit() bool { return e.Limiting != nil && e.Limiting.RoomPages <= 0 }

// hitsLimit reports whether a charge failed or found a level at its limit. Batch misses do
// not count.
func (e *event) hitsLimit() bool { return e.Outcome == "failed" || e.Outcome == "ok" && e.atLimit() }

// readEvents reads the events in a .jsonl.
func readEvents(t testing.TB, jsonl []byte) (events []event) {
	t.Helper()
	for line := range bytes.Lines(jsonl) {
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		events = append(events, e)
	}
	if len(events) == 0 || events[len(events)-1].Type != "end" {
		t.Fatalf("%d events without an end", len(events))
	}
	return events
}

// events waits for the end of a tracer that trace started, and returns its events.
func (tr *tracer) events(t testing.TB) []event {
	t.Helper()
	tr.end(t)
	content, err := os.ReadFile(tr.jsonl)
	if err != nil {
		t.Fatal(err)
	}
	events := readEvents(t, content)
	if !tr.logged {
		tr.logged = true
		logRows(t, events)
	}
	return events
}

// logRows logs the rows of a trace in a machine with one CPU; -rows writes them to a file.
func logRows[T fmt.Stringer](t testing.TB, rows []T) {
	if runtime.NumCPU() > 1 {
		return
	}
	for _, row := range rows {
		t.Logf("row: %v", row)
	}
}

// charges waits for the end of a tracer that trace started, and returns its charges. The
// tracer must have lost and missed none.
func (tr *tracer) charges(t testing.TB) []event {
	t.Helper()
	tr.checkComplete(t)
	return ofType(tr.events(t), "charge")
}

// ofType returns the events of a type.
func ofType(events []event, name string) []event {
	return slices.DeleteFunc(slices.Clone(events), func(e event) bool { return e.Type != name })
}

// ofKind returns the charges to counters of a kind.
func ofKind(charges []event, kind string) []event {
	return slices.DeleteFunc(slices.Clone(charges), func(e event) bool { return e.Kind != kind })
}

// String returns the fields that are the same in all runs of a test on one CPU: no times,
// durations and pids.
func (e event) String() string {
	s := fmt.Sprintf("%s %s %s %s %s %d+%d", e.Type, e.Comm, e.Cgroup, e.Kind, e.Outcome, e.UsagePages, e.RequestedPages)
	if e.Limiting != nil {
		s += fmt.Sprintf(" %s %d/%d", e.Limiting.Cgroup, e.Limiting.UsagePages, e.Limiting.MaxPages)
	}
	if e.FailedAt != "" {
		s += " failed at " + e.FailedAt
	}
	if len(e.Flags) > 0 {
		s += " " + strings.Join(e.Flags, ",")
	}
	return s
}
