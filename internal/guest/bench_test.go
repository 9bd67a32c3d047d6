//go:build linux

package guest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// BenchmarkWatch measures the CPU usage of the screen with 100 cgroups and no charges.
func BenchmarkWatch(b *testing.B) {
	if !EnterBenchmark(b, Exact) {
		return
	}
	if err := os.MkdirAll("/dev/pts", 0o755); err != nil {
		b.Fatal(err)
	}
	if err := unix.Mount("devpts", "/dev/pts", "devpts", 0, "ptmxmode=666"); err != nil {
		b.Fatal(err)
	}
	host, terminal, err := pty.Open()
	if err != nil {
		b.Fatal(err)
	}
	defer host.Close()
	defer terminal.Close()
	resize := func(rows uint16) {
		if err := pty.Setsize(host, &pty.Winsize{Rows: rows, Cols: 200}); err != nil {
			b.Fatal(err)
		}
	}
	resize(50)
	var args []string
	var groups []cgroup
	for range 100 {
		g := newCgroup(b)
		g.write(b, "memory.max", "100M")
		groups = append(groups, g)
		args = append(args, "-cgroup", g.path())
	}
	cmd := exec.Command(command, append(args, "-watch")...)
	cmd.Env = append(os.Environ(), "TERM=xterm-256color", "LC_ALL=C.UTF-8")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	empty, full := newLineBuffer("nothing is charged yet"), newLineBuffer("100 cgroups")
	go io.Copy(io.MultiWriter(empty, full), host)
	shown := func(screen *lineBuffer) {
		select {
		case <-screen.found:
		case <-time.After(waitTimeout):
			b.Fatalf("no %q on the screen: %q", screen.text, screen)
		}
	}
	shown(empty)
	for _, g := range groups {
		startWorkload(b, g, "touch 1").run(b)
	}
	resize(49) // forces a full redraw
	shown(full)
	const elapsed = 20 * time.Second // of refreshes
	before := cpuNanosOf(b, cmd.Process.Pid)
	time.Sleep(elapsed)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric((cpuNanosOf(b, cmd.Process.Pid)-before)/float64(elapsed)*100, "%CPU")
}

// recordingCost is the number of charges in a recording, its size, and the cost to print it
// as text.
type recordingCost struct{ events, recordedBytes, reportNanos float64 }

// BenchmarkReport compares recordings of the same charges by chargetrace and trace-cmd:
// their sizes, and the cost to print them as text.
func BenchmarkReport(b *testing.B) {
	if !EnterBenchmark(b, Exact) {
		return
	}
	const probe = "p:try_charge page_counter_try_charge pages=%si:u64 usage=+0(%di):u64"
	if err := os.WriteFile("/sys/kernel/tracing/kprobe_events", []byte(probe), 0); err != nil {
		b.Fatal(err)
	}
	short, shortOther := recordBoth(b, 10)
	long, longOther := recordBoth(b, 400)
	for _, tool := range []struct {
		name        string
		short, long recordingCost
	}{{"chargetrace", short, long}, {"trace-cmd", shortOther, longOther}} {
		b.Run(tool.name, func(b *testing.B) {
			events := tool.long.events - tool.short.events
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(tool.long.events, "events")
			b.ReportMetric((tool.long.recordedBytes-tool.short.recordedBytes)/events, "bytes/event")
			b.ReportMetric((tool.long.reportNanos-tool.short.reportNanos)/events, "insns/event")
		})
	}
}

// recordBoth records the same workload with chargetrace and with trace-cmd.
func recordBoth(b *testing.B, rounds int) (own, traceCmd recordingCost) {
	b.Helper()
	dir := b.TempDir()
	p := startWorkload(b, newCgroup(b), fmt.Sprintf("churn %d", rounds))
	ctrace, dat := filepath.Join(dir, "x.ctrace"), filepath.Join(dir, "trace.dat")
	tr := chargetrace(b, "-o", ctrace)
	other := startTracer(b, "", "/usr/bin/trace-cmd", "record", "-q", "-e", "kprobes:try_charge", "-o", dat)
	const enabled = "/sys/kernel/tracing/events/kprobes/try_charge/enable"
	waitForWrite(b, enabled, func() bool { return strings.HasPrefix(readFile(b, enabled), "1") })
	p.begin(b)
	p.done(b)
	for _, tr := range []*tracer{tr, other} {
		tr.Process.Signal(unix.SIGINT)
		tr.end(b)
	}
	p.wait(b)
	return printCost(b, ctrace, command, "-r", ctrace), printCost(b, dat, "/usr/bin/trace-cmd", "report", "-i", dat)
}

// printCost runs a command that prints the events of a recording, one per line.
func printCost(b *testing.B, file string, argv ...string) recordingCost {
	b.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	rows := &lineCounter{}
	cmd.Stdout = rows
	if err := cmd.Run(); err != nil {
		b.Fatalf("%s: %v", argv, err)
	}
	return recordingCost{float64(rows.n), fileBytes(b, file), float64(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime())}
}

// lineCounter counts the lines written to it.
type lineCounter struct{ n int }

func (c *lineCounter) Write(p []byte) (int, error) {
	c.n += bytes.Count(p, []byte("\n"))
	return len(p), nil
}
