//go:build guest

package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// chargetraceOutput runs the command to its end and returns what it prints.
func chargetraceOutput(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	cmd := exec.Command("/usr/bin/chargetrace", args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd.Args, err, &errs)
	}
	return out.String(), errs.String()
}

// TestRecording records a process until it is killed, and plays that: it must
// print what the live trace prints, with the same flags.
func TestRecording(t *testing.T) {
	dir := t.TempDir()
	file, page := filepath.Join(dir, "x.ctrace"), filepath.Join(dir, "x.html")
	g := newCgroup(t)
	g.write(t, "memory.max", "10M")
	alloc := startWorkload(t, g, 0, "touch 20")
	resume := suspend(t, alloc)
	tr := chargetrace(t, "-pid", alloc.pid(), "-o", file, "-o", page, "-o", "-")
	limited := chargetrace(t, "-wide", "-pid", alloc.pid(), "-limited")
	resume()
	alloc.begin(t)
	alloc.waitKilled(t)
	tr.rows(t)
	live, err := os.ReadFile(tr.stdout.Name())
	if err != nil {
		t.Fatal(err)
	}
	played, stderr := chargetraceOutput(t, "-r", file)
	if played != string(live) {
		t.Errorf("live\n%s\nplayed\n%s", live, played)
	}
	// The summary is the same too, after the lines that count.
	_, summary, _ := strings.Cut(tr.stderr.String(), "\n\n")
	if _, got, _ := strings.Cut(stderr, "\n\n"); got != summary {
		t.Errorf("live summary\n%s\nplayed\n%s", summary, got)
	}
	// So is the report.
	livePage, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	playedPage, _ := chargetraceOutput(t, "-r", file, "-o", "-", "-format", "html")
	if story := g.path() + " ran out of memory</h1>"; playedPage != string(livePage) || !strings.Contains(playedPage, story) {
		t.Errorf("the report is without %q, or differs live\n%s\nplayed\n%s", story, livePage, playedPage)
	}
	s := tr.counted(t)
	if m := summaryLine.FindStringSubmatch(strings.Replace(strings.Replace(stderr, "when recorded: ", "", 1), "recorded", "shown", 1)); m == nil || m[2] == "0" {
		t.Errorf("%+v, but played: %s", s, stderr)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}

	rows := limited.wideRows(t)
	if len(rows) == 0 {
		t.Error("-limited: no rows")
	}
	compareThreads(t, rows, playWide(t, file, "-limited"), true)
	for _, none := range [][]string{{"-pid", "1"}, {"-counter", "hugetlb"}, {"-from", "1h"}, {"-to", "0s"}} {
		played, _ := chargetraceOutput(t, append([]string{"-r", file}, none...)...)
		if len(parseTable(t, played).rows) != 0 {
			t.Errorf("%v: %s", none, played)
		}
	}
	mustFail(t, exec.Command("/usr/bin/chargetrace", "-for", "1ms", "-o", file), 1, "exists", "hint: -force overwrites it")

	// For the tests on the host.
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("recording: %s", base64.StdEncoding.EncodeToString(content))
}

// TestRecordingKilled kills a tracer that records a storm: what a reader that follows the
// recording has shown must be there. How soon that is, TestDelay holds.
func TestRecordingKilled(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.ctrace")
	storm, pids := startStorm(t, 1_000_000)
	late := startWorkload(t, newCgroup(t), 0, "touch 1")
	tr := chargetrace(t, "-pid", pids+","+late.pid(), "-o", file)
	blow(t, storm)
	reader := startTracer(t, "", "/usr/bin/chargetrace", "-r", file, "-follow")
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
	waitForRow(storm[0])
	late.begin(t)
	waitForRow(late)
	if err := tr.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	tr.Cmd.Wait()
	cmd := exec.Command("/usr/bin/chargetrace", "-r", file)
	var out bytes.Buffer
	cmd.Stdout = &out
	mustFail(t, cmd, 1, "the recording ends early", "hint: ")
	shown = shown[:bytes.LastIndexByte(shown, '\n')+1]
	if !bytes.HasPrefix(out.Bytes(), shown) {
		t.Errorf("%d bytes were shown, the recording prints %d others", len(shown), out.Len())
	}
}

// TestRotation records into files of which each stands alone.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	storm, pids := startStorm(t, 1_000_000)
	tr := chargetrace(t, "-pid", pids, "-o", filepath.Join(dir, "x.ctrace"), "-rotate", "300ms", "-o", "-")
	blow(t, storm)
	waitForWrite(t, dir, func() bool { return exists(filepath.Join(dir, "x-2.ctrace")) })
	tr.stop(t)
	tr.rows(t)
	live, err := os.ReadFile(tr.stdout.Name())
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "x-*.ctrace"))
	if err != nil || len(files) < 2 {
		t.Fatalf("files %q, %v", files, err)
	}
	var args []string
	var rows int
	for i := range files {
		file := filepath.Join(dir, fmt.Sprintf("x-%d.ctrace", i+1))
		args = append(args, "-r", file)
		played, _ := chargetraceOutput(t, "-r", file)
		rows += len(parseTable(t, played).rows)
	}
	played, _ := chargetraceOutput(t, args...)
	if played != string(live) {
		t.Errorf("%d bytes were printed live, %d of the recordings", len(live), len(played))
	}
	if want := len(parseTable(t, played).rows); rows != want {
		t.Errorf("%d rows one by one, %d in all", rows, want)
	}
}

// TestRecordingDiskFull records to a file system that is too small.
func TestRecordingDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	file := filepath.Join(dir, "x.ctrace")
	g := newCgroup(t)
	first := startWorkload(t, g, 0, "storm 2000")
	g.leaveRoom(t, 0)
	first.spare(t)
	storm, pids := startStorm(t, 1_000_000)
	tr := startTracer(t, "Tracing ", "/usr/bin/chargetrace", "-pid", first.pid()+","+pids, "-o", file)
	first.begin(t)
	first.wait(t)
	// What a block holds can be more than what the disk does, so that one block at
	// least is written before the storm.
	var written int
	waitForWrite(t, file, func() bool {
		played, _ := exec.Command("/usr/bin/chargetrace", "-r", file).Output()
		written = bytes.Count(played, []byte("\n")) - 1
		return written > 0
	})
	blow(t, storm)
	tr.Cmd.Wait()
	if tr.ProcessState.ExitCode() != 1 || !strings.Contains(tr.stderr.String(), "hint: the disk is full; what was recorded until then can be played") {
		t.Errorf("exit status %d: %s", tr.ProcessState.ExitCode(), tr.stderr)
	}
	cmd := exec.Command("/usr/bin/chargetrace", "-r", file)
	var out bytes.Buffer
	cmd.Stdout = &out
	mustFail(t, cmd, 1, "the recording ends early")
	if n := len(parseTable(t, out.String()).rows); n < written {
		t.Errorf("%d rows are left, %d were written before", n, written)
	}
}
