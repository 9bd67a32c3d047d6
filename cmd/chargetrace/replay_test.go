package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/trace"
)

// twoBlocks returns a recording of 65,537 charges in two blocks of events, with counts.
func twoBlocks(t *testing.T, counted stream.Counts) []byte {
	const charges = 1<<16 + 1
	counted.Seen = charges + counted.Filtered
	var file bytes.Buffer
	// Use a fake clock: the writer also ends a block after a second.
	synctest.Test(t, func(t *testing.T) {
		w, err := trace.NewWriter(&file, stream.Info{PageSize: 4096, StartBootNanos: 1})
		if err != nil {
			t.Fatal(err)
		}
		e := event.Event{Type: event.Charge, BootNanos: 1, PID: 7, TID: 7, Cgroup: event.CgroupID{ID: 3}, Kind: event.Memory, RequestedPages: 1, MaxPages: 1 << 62}
		for range charges {
			if err := w.Write([]event.Event{e}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(counted); err != nil {
			t.Fatal(err)
		}
	})
	return file.Bytes()
}

// TestTruncated plays incomplete recordings, and recordings of these replays.
func TestTruncated(t *testing.T) {
	t.Chdir(t.TempDir())
	whole := twoBlocks(t, stream.Counts{Filtered: 5})
	// The first block contains no events.
	second := -1
	for range 3 {
		second += 1 + bytes.Index(whole[second+1:], []byte("CTB1"))
	}
	damaged := bytes.Clone(whole)
	damaged[second-1] ^= 1
	for name, content := range map[string][]byte{
		"whole": whole, "damaged": damaged, "cut": whole[:second],
		"stacks": twoBlocks(t, stream.Counts{LostStacks: 12, UnnamedProcesses: 3}),
	} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const hint = "hint: chargetrace was killed while recording, the disk was full, or the file is damaged; all complete blocks were read\n"
	for _, tc := range []struct {
		args   string
		status int
		begin  string // of stderr, until the summary
		end    string
	}{
		{"-r whole", 0, `chargetrace: read 65537 = shown 65537 + filtered 0
chargetrace: when recorded: seen 65542 = recorded 65537 + filtered 5 + lost 0
`, ""},
		{"-r stacks", 0, `chargetrace: read 65537 = shown 65537 + filtered 0
chargetrace: when recorded: seen 65537 = recorded 65537 + filtered 0 + lost 0
chargetrace: warning: 12 stacks are missing: the kernel could not collect them, or there were too many different ones
chargetrace: the user stacks of 3 processes are addresses: the processes could not be read, or not in time
`, ""},
		{"-r damaged -o copy.ctrace", 1, `chargetrace: read 1 = shown 1 + filtered 0
chargetrace: warning: 1 blocks of the recording were damaged and skipped
`, "\nchargetrace: damaged: the recording is damaged: 1 of its blocks could not be read\n" + hint},
		{"-r copy.ctrace", 0, `chargetrace: read 1 = shown 1 + filtered 0
chargetrace: warning: 1 blocks of the recording were damaged and skipped
`, ""},
		{"-r cut -r whole", 1, `chargetrace: read 131073 = shown 131073 + filtered 0
`, "\nchargetrace: cut: the recording ends early: EOF\n" + hint},
		{"-r whole -r cut -r damaged", 1, `chargetrace: read 131074 = shown 131074 + filtered 0
chargetrace: warning: 1 blocks of the recording were damaged and skipped
`, "\nchargetrace: cut: the recording ends early: EOF\ndamaged: the recording is damaged: 1 of its blocks could not be read\n" + hint},
		{"-r whole -diff cut", 1, "", "chargetrace: cut: the recording ends early: EOF\n" + hint},
	} {
		var stderr strings.Builder
		status := run(strings.Fields(tc.args), nil, io.Discard, &stderr)
		begin, _, _ := strings.Cut(stderr.String(), "\nCGROUP")
		if tc.begin == "" {
			begin = ""
		}
		if status != tc.status || begin != tc.begin || !strings.HasSuffix(stderr.String(), tc.end) {
			t.Errorf("%s: exit status %d\n%s", tc.args, status, stderr.String())
		}
	}
}

// brokenPipe is an output whose reader is gone.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "|1", Err: syscall.EPIPE}
}

// TestBrokenPipe checks that a table not read to its end is no error, as in a pipe to
// head, and that it does not hide another error or an incomplete output.
func TestBrokenPipe(t *testing.T) {
	const recording = "testdata/6.1-amd64.ctrace"
	csv := filepath.Join(t.TempDir(), "x.csv")
	for _, tc := range []struct {
		args   []string
		status int
		want   string
	}{
		{nil, 0, ""},
		{[]string{"-o", "-", "-o", csv}, 1, "the reader of an output is gone"},
		{[]string{"-o", "-", "-o", "/dev/full", "-format", "table"}, 1, "no space left on device"},
	} {
		var stderr bytes.Buffer
		status := run(append([]string{"-r", recording}, tc.args...), nil, brokenPipe{}, &stderr)
		if status != tc.status || !strings.Contains(stderr.String(), tc.want) || tc.want == "" && stderr.Len() > 0 {
			t.Errorf("%s: status %d, %s", tc.args, status, &stderr)
		}
	}
	// It contains all events of the first read.
	content, err := os.ReadFile(csv)
	if err != nil || bytes.Count(content, []byte("\n")) < 30 {
		t.Errorf("%v, %s", err, content)
	}
}
