//go:build guest

package main

import (
	"bytes"
	"cmp"
	"fmt"
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

// BenchmarkCharge measures what tracing costs, in a machine whose clock counts
// instructions, so that a CPU time in nanoseconds is a number of instructions.
//
// The cost of a charge has two parts. One is what is added to the charge
// itself: the probe and the program. It is measured on a workload that charges
// all the time, because beside the clearing of 64 pages it would be lost in
// noise. The other is what the tracer does about it in user space: its CPU time
// while a process touches memory, which is what most charges are for. Each is
// the difference between a long workload and a short one, so that what is done
// once cancels out.
func BenchmarkCharge(b *testing.B) {
	var modes = []struct {
		name  string
		start func(b *testing.B, pid string) *tracer
	}{
		{"untraced", nil},
		{"table", func(b *testing.B, pid string) *tracer { return chargetrace(b, "-pid", pid) }},
		{"table-fentry", func(b *testing.B, pid string) *tracer {
			return chargetrace(b, "-pid", pid, "-attach", "fentry")
		}},
		{"filtered", func(b *testing.B, pid string) *tracer {
			return chargetrace(b, "-pid", strconv.Itoa(os.Getpid()))
		}},
		{"filtered-pids", func(b *testing.B, pid string) *tracer {
			return chargetrace(b, "-pid", "1,"+strconv.Itoa(os.Getpid()))
		}},
		{"filtered-fentry", func(b *testing.B, pid string) *tracer {
			return chargetrace(b, "-pid", strconv.Itoa(os.Getpid()), "-attach", "fentry")
		}},
		{"filtered-follow", filtered("-f", "-pid", startWorkload(b, newCgroup(b), 0, "touch 1").pid())},
		{"filtered-comm", filtered("-comm", "nobody")},
		{"filtered-cgroup", filtered("-cgroup", newCgroup(b).path())},
		{"filtered-counter", filtered("-counter", "swap")},
		{"filtered-min-pages", filtered("-min-pages", "1000000")},
		{"filtered-limited", filtered("-limited", "-min-pages", "1000000")},
		{"filtered-pids-fentry", filtered("-attach", "fentry", "-pid", "1,"+strconv.Itoa(os.Getpid()))},
		{"filtered-comm-fentry", filtered("-attach", "fentry", "-comm", "nobody")},
		{"filtered-cgroup-fentry", filtered("-attach", "fentry", "-cgroup", newCgroup(b).path())},
		{"filtered-counter-fentry", filtered("-attach", "fentry", "-counter", "swap")},
		{"filtered-min-pages-fentry", filtered("-attach", "fentry", "-min-pages", "1000000")},
		{"stack", func(b *testing.B, pid string) *tracer { return chargetrace(b, "-stack", "-pid", pid) }},
		{"stack-ustack", func(b *testing.B, pid string) *tracer {
			return chargetrace(b, "-stack", "-ustack", "-pid", pid)
		}},
		{"net", func(b *testing.B, pid string) *tracer { return chargetrace(b, "-net", "-pid", pid) }},
		{"wide", func(b *testing.B, pid string) *tracer { return chargetrace(b, "-wide", "-pid", pid) }},
		{"record", func(b *testing.B, pid string) *tracer {
			return chargetrace(b, "-pid", pid, "-o", filepath.Join(b.TempDir(), "x.ctrace"))
		}},
		{"bpftrace", func(b *testing.B, pid string) *tracer { return startBpftrace(b) }},
	}
	// The figures of the untraced workloads come first.
	var untracedStorm float64
	for _, mode := range modes {
		b.Run(mode.name, func(b *testing.B) {
			b.ReportMetric(0, "ns/op")
			// A few instructions in thousands, and in the tracer a collection of
			// garbage now and then: the median of several.
			var storms []float64
			var touches []cost
			for range repeats(mode.name) {
				storm := slope(b, mode.start, "storm %d", 2000, 22000)
				storms = append(storms, storm.workload/storm.charges)
				if isFiltered(mode.name) {
					continue // the tracer has nothing to do
				}
				touches = append(touches, slope(b, mode.start, "churn %d", 10, 50))
			}
			slices.Sort(storms)
			inKernel := storms[len(storms)/2]
			if isFiltered(mode.name) {
				b.ReportMetric(inKernel-untracedStorm, "kernel-insns/charge")
				return
			}
			slices.SortFunc(touches, func(a, b cost) int { return cmp.Compare(a.tracer, b.tracer) })
			touch := touches[len(touches)/2]
			if mode.start == nil {
				untracedStorm = inKernel
				b.ReportMetric(inKernel, "insns/storm-charge")
				b.ReportMetric(touch.workload/touch.charges, "insns/touch-charge")
				return
			}
			inKernel -= untracedStorm
			inTracer := touch.tracer / touch.charges
			b.ReportMetric(inKernel, "kernel-insns/charge")
			b.ReportMetric(inTracer, "tracer-insns/charge")
			b.ReportMetric(inKernel+inTracer, "insns/charge")
			b.ReportMetric(float64(touch.ready)/float64(time.Millisecond), "ready-ms")
			b.ReportMetric(touch.peakMiB, "peak-MiB")
			if touch.recordedBytes > 0 {
				b.ReportMetric(touch.recordedBytes/touch.charges, "recorded-bytes/charge")
			}
		})
	}
}

// filtered starts chargetrace with an aim that the workload is not in.
func filtered(args ...string) func(*testing.B, string) *tracer {
	return func(b *testing.B, _ string) *tracer { return chargetrace(b, args...) }
}

func isFiltered(mode string) bool { return strings.HasPrefix(mode, "filtered") }

// repeats is how often a tracer's cost is measured. bpftrace takes long to start.
func repeats(mode string) int {
	switch {
	case mode == "bpftrace":
		return 1
	case mode == "untraced", isFiltered(mode): // small, and the difference of two
		return 5
	}
	return 3
}

// cost is what a workload took.
type cost struct {
	charges float64
	// workload and tracer are their CPU times in nanoseconds.
	workload, tracer float64
	ready            time.Duration
	peakMiB          float64
	// recordedBytes is the size of the recording, if there is one.
	recordedBytes float64
}

// slope returns the difference between a long workload and a short one.
func slope(b *testing.B, start func(*testing.B, string) *tracer, format string, short, long int) cost {
	b.Helper()
	a, c := measure(b, start, fmt.Sprintf(format, short)), measure(b, start, fmt.Sprintf(format, long))
	c.charges -= a.charges
	c.workload -= a.workload
	c.tracer -= a.tracer
	c.recordedBytes -= a.recordedBytes
	return c
}

// measure runs a workload under a tracer, or under none.
func measure(b *testing.B, start func(*testing.B, string) *tracer, work string) (c cost) {
	b.Helper()
	g := newCgroup(b)
	p := startWorkload(b, g, 0, work)
	if _, err := fmt.Sscanf(work, "storm %f", &c.charges); err == nil {
		// Less room than a batch needs, so that each page is charged by itself,
		// after the batch has failed.
		g.leaveRoom(b, 0)
		c.charges *= 2
	} else if _, err := fmt.Sscanf(work, "churn %f", &c.charges); err == nil {
		c.charges *= (8 << 20) / pageSize / 64
	}
	var tr *tracer
	if start != nil {
		begin := time.Now()
		tr = start(b, p.pid())
		c.ready = time.Since(begin)
		c.tracer = -quietCPUNanos(b, tr.Process.Pid)
	}
	p.begin(b)
	line, err := p.stdout.ReadString('\n')
	if err != nil {
		b.Fatalf("%v: %s", err, &p.stderr)
	}
	if _, err := fmt.Sscan(line, &c.workload); err != nil {
		b.Fatal(err)
	}
	if tr != nil {
		c.peakMiB = peakMiB(b, tr)
	}
	if tr != nil {
		c.tracer += quietCPUNanos(b, tr.Process.Pid)
		tr.Process.Signal(unix.SIGINT)
		if err := tr.Wait(); err != nil {
			b.Fatalf("%v: %s", err, tr.stderr)
		}
		if i := slices.Index(tr.Args, "-o"); i >= 0 {
			info, err := os.Stat(tr.Args[i+1])
			if err != nil {
				b.Fatal(err)
			}
			c.recordedBytes = float64(info.Size())
		}
	}
	p.wait(b)
	return c
}

// peakMiB returns the most memory that a running tracer has had resident.
func peakMiB(b *testing.B, tr *tracer) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/" + strconv.Itoa(tr.Process.Pid) + "/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := bytes.Cut(status, []byte("VmHWM:"))
	kib, err := strconv.ParseFloat(string(bytes.Fields(rest)[0]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return kib / 1024
}

// BenchmarkWatch measures how much of a CPU the screen takes with 100 cgroups, when
// nothing is charged. An instruction is a nanosecond here.
func BenchmarkWatch(b *testing.B) {
	mountDevpts(b)
	host, terminal := openTerminal(b, 200, 50)
	var args []string
	var groups []controlGroup
	for range 100 {
		g := newCgroup(b)
		g.write(b, "memory.max", "100M")
		groups = append(groups, g)
		args = append(args, "-cgroup", g.path())
	}
	cmd := exec.Command("/usr/bin/chargetrace", append(args, "-watch")...)
	cmd.Env = append(os.Environ(), "TERM=xterm-256color", "LC_ALL=C.UTF-8")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	host.shows(b, "nothing is charged yet")
	for _, g := range groups {
		p := startShell(b, g, chargeMore)
		p.begin(b)
		p.wait(b)
	}
	host.resize(b, 200, 49) // so that all is written anew
	host.shows(b, "100 cgroups")
	begin, before := time.Now(), cpuNanosOf(b, cmd.Process.Pid)
	var elapsed time.Duration
	for elapsed < 20*time.Second { // of refreshes
		host.next(b, time.Now().Add(patience), "refresh")
		elapsed = time.Since(begin)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric((cpuNanosOf(b, cmd.Process.Pid)-before)/float64(elapsed)*100, "%CPU")
}

// BenchmarkReport compares the recordings that chargetrace and trace-cmd make of
// the same charges, and what it costs to print them as text.
func BenchmarkReport(b *testing.B) {
	const event = "p:try_charge page_counter_try_charge pages=%si:u64 usage=+0(%di):u64"
	if err := os.WriteFile("/sys/kernel/tracing/kprobe_events", []byte(event), 0); err != nil {
		b.Fatal(err)
	}
	// How many charges, how large the recordings are, what their reports cost.
	type figures struct{ events, recordedBytes, reportNanos float64 }
	record := func(n int) (mine, traceCmd figures) {
		dir := b.TempDir()
		g := newCgroup(b)
		p := startWorkload(b, g, 0, fmt.Sprintf("churn %d", n))
		trace := filepath.Join(dir, "x.ctrace")
		tr := chargetrace(b, "-o", trace)
		dat := filepath.Join(dir, "trace.dat")
		other := startTracer(b, "", "/usr/bin/trace-cmd", "record", "-q", "-e", "kprobes:try_charge", "-o", dat)
		enabled := "/sys/kernel/tracing/events/kprobes/try_charge/enable"
		for deadline := time.Now().Add(patience); ; {
			if content, err := os.ReadFile(enabled); err == nil && content[0] == '1' {
				break
			}
			if time.Now().After(deadline) {
				b.Fatalf("trace-cmd is not ready: %s", other.stderr)
			}
		}
		p.begin(b)
		p.stdout.ReadString('\n')
		for _, t := range []*tracer{tr, other} {
			t.Process.Signal(unix.SIGINT)
			if err := t.Wait(); err != nil {
				b.Fatalf("%s: %v: %s", t.Args, err, t.stderr)
			}
		}
		p.wait(b)
		report := func(file string, argv ...string) (f figures) {
			info, err := os.Stat(file)
			if err != nil {
				b.Fatal(err)
			}
			f.recordedBytes = float64(info.Size())
			cmd := exec.Command(argv[0], argv[1:]...)
			rows := &lineCounter{}
			cmd.Stdout = rows
			if err := cmd.Run(); err != nil {
				b.Fatalf("%s: %v", argv, err)
			}
			f.events = float64(rows.n)
			f.reportNanos = float64(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime())
			return f
		}
		return report(trace, "/usr/bin/chargetrace", "-r", trace), report(dat, "/usr/bin/trace-cmd", "report", "-i", dat)
	}
	short, shortOther := record(10)
	long, longOther := record(400)
	for name, f := range map[string][2]figures{"chargetrace": {short, long}, "trace-cmd": {shortOther, longOther}} {
		b.Run(name, func(b *testing.B) {
			events := f[1].events - f[0].events
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(f[1].events, "events")
			b.ReportMetric((f[1].recordedBytes-f[0].recordedBytes)/events, "bytes/event")
			b.ReportMetric((f[1].reportNanos-f[0].reportNanos)/events, "insns/event")
		})
	}
}

// lineCounter counts the lines that are written to it.
type lineCounter struct{ n int }

func (c *lineCounter) Write(p []byte) (int, error) {
	c.n += bytes.Count(p, []byte("\n"))
	return len(p), nil
}
