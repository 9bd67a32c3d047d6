//go:build linux

package guest

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkCharge measures the cost of tracing. One instruction takes a nanosecond.
//
// The cost per charge has two parts. The first is the probe and the BPF program, which
// slow down the charge itself. A workload that charges all the time measures it: next to
// clearing 64 pages it would be too small. The second is the CPU time of the tracer,
// measured while a process touches memory, the most common reason to charge. Both are
// differences between a long and a short workload, which cancels one-time costs.
func BenchmarkCharge(b *testing.B) {
	if !EnterBenchmark(b, Exact) {
		return
	}
	untraced := medianStorm(b, nil, 1, 5)
	b.Run("untraced", func(b *testing.B) {
		b.ReportMetric(0, "ns/op")
		touch := slope(b, nil, 1, "churn %d", 60, 240)
		b.ReportMetric(untraced, "insns/storm-charge")
		b.ReportMetric(touch.workload/touch.charges, "insns/touch-charge")
	})
	for _, mode := range []struct {
		name  string
		start startFunc
	}{
		{"table", traceWorkload()},
		{"table-fentry", traceWorkload("-attach", "fentry")},
		{"stack", traceWorkload("-stack")},
		{"stack-ustack", traceWorkload("-stack", "-ustack")},
		{"net", traceWorkload("-net")},
		{"wide", traceWorkload("-wide")},
		{"record", func(b *testing.B, pid string) *tracer {
			return chargetrace(b, "-pid", pid, "-o", filepath.Join(b.TempDir(), "x.ctrace"))
		}},
		{"keep-last", func(b *testing.B, pid string) *tracer {
			return chargetrace(b, "-pid", pid, "-keep-last", "60s", "-when", "oom", "-o", b.TempDir())
		}},
		{"rotate", func(b *testing.B, pid string) *tracer {
			return chargetrace(b, "-pid", pid, "-rotate", "1G", "-o", filepath.Join(b.TempDir(), "x.ctrace"))
		}},
		{"record-fentry", func(b *testing.B, pid string) *tracer {
			return chargetrace(b, "-attach", "fentry", "-pid", pid, "-o", filepath.Join(b.TempDir(), "x.ctrace"))
		}},
		{"wide-fentry", traceWorkload("-wide", "-attach", "fentry")},
		{"stack-fentry", traceWorkload("-stack", "-attach", "fentry")},
		{"trace-cmd", func(b *testing.B, _ string) *tracer { return recordWithTraceCmd(b) }},
		{"bpftrace", func(b *testing.B, _ string) *tracer { return startBpftrace(b) }},
	} {
		b.Run(mode.name, func(b *testing.B) { benchmarkTracer(b, mode.start, untraced) })
	}
	for _, attach := range []string{"kprobe", "fentry"} {
		b.Run("level-"+attach, func(b *testing.B) {
			const levels = 9
			start := traceWorkload("-attach", attach)
			tree := medianStorm(b, start, levels, 3) - medianStorm(b, nil, levels, 3)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric((tree-(medianStorm(b, start, 1, 3)-untraced))/(levels-1), "kernel-insns/level")
		})
	}
	me := strconv.Itoa(os.Getpid())
	for _, filter := range []struct {
		name string
		args []string
	}{
		{"filtered", []string{"-pid", me}},
		{"filtered-pids", []string{"-pid", "1," + me}},
		{"filtered-fentry", []string{"-attach", "fentry", "-pid", me}},
		{"filtered-follow", []string{"-f", "-pid", startWorkload(b, newCgroup(b), "touch 1").pid()}},
		{"filtered-comm", []string{"-comm", "nobody"}},
		{"filtered-cgroup", []string{"-cgroup", newCgroup(b).path()}},
		{"filtered-counter", []string{"-counter", "swap"}},
		{"filtered-min-pages", []string{"-min-pages", "1000000"}},
		{"filtered-limited", []string{"-limited", "-min-pages", "1000000"}},
		{"filtered-pids-fentry", []string{"-attach", "fentry", "-pid", "1," + me}},
		{"filtered-comm-fentry", []string{"-attach", "fentry", "-comm", "nobody"}},
		{"filtered-cgroup-fentry", []string{"-attach", "fentry", "-cgroup", newCgroup(b).path()}},
		{"filtered-counter-fentry", []string{"-attach", "fentry", "-counter", "swap"}},
		{"filtered-min-pages-fentry", []string{"-attach", "fentry", "-min-pages", "1000000"}},
	} {
		b.Run(filter.name, func(b *testing.B) {
			b.ReportMetric(0, "ns/op")
			start := func(b *testing.B, _ string) *tracer { return chargetrace(b, filter.args...) }
			b.ReportMetric(medianStorm(b, start, 1, 5)-untraced, "kernel-insns/charge")
		})
	}
}

// startFunc starts a tracer; pid is the workload's.
type startFunc func(b *testing.B, pid string) *tracer

// traceWorkload returns a function that starts chargetrace for the workload.
func traceWorkload(args ...string) startFunc {
	return func(b *testing.B, pid string) *tracer {
		return chargetrace(b, append(args, "-pid", pid)...)
	}
}

func benchmarkTracer(b *testing.B, start startFunc, untraced float64) {
	b.ReportMetric(0, "ns/op")
	repeats := 3
	if strings.HasSuffix(b.Name(), "/bpftrace") { // slow to start
		repeats = 1
	}
	inKernel := medianStorm(b, start, 1, repeats) - untraced
	var touches []cost
	for range repeats { // some include a garbage collection
		touches = append(touches, slope(b, start, 1, "churn %d", 60, 240))
	}
	slices.SortFunc(touches, func(a, b cost) int { return cmp.Compare(a.tracer, b.tracer) })
	touch := touches[len(touches)/2]
	inTracer := touch.tracer / touch.charges
	b.ReportMetric(inKernel, "kernel-insns/charge")
	b.ReportMetric(inTracer, "tracer-insns/charge")
	b.ReportMetric(inKernel+inTracer, "insns/charge")
	b.ReportMetric(float64(touch.ready)/float64(time.Millisecond), "ready-ms")
	b.ReportMetric(touch.peakMiB, "peak-MiB")
	if touch.recordedBytes > 0 {
		b.ReportMetric(touch.recordedBytes/touch.charges, "recorded-bytes/charge")
	}
}

// recordWithTraceCmd records the entry and the return of the function with trace-cmd: the
// pages, the usage of the counter, and the result.
func recordWithTraceCmd(b *testing.B) *tracer {
	b.Helper()
	const events = "p:try_charge page_counter_try_charge pages=%si:u64 usage=+0(%di):u64\n" +
		"r:try_charged page_counter_try_charge charged=$retval:u8\n"
	if err := os.WriteFile("/sys/kernel/tracing/kprobe_events", []byte(events), 0); err != nil {
		b.Fatal(err)
	}
	tr := startTracer(b, "", "/usr/bin/trace-cmd", "record", "-q", "-e", "kprobes", "-o", filepath.Join(b.TempDir(), "trace.dat"))
	const enabled = "/sys/kernel/tracing/events/kprobes/enable"
	waitForWrite(b, enabled, func() bool { return strings.HasPrefix(readFile(b, enabled), "1") })
	return tr
}

// medianStorm returns the CPU time per charge of the processes in a storm, in a cgroup that
// many levels below the root.
func medianStorm(b *testing.B, start startFunc, levels, repeats int) float64 {
	b.Helper()
	var storms []float64
	for range repeats {
		storm := slope(b, start, levels, "storm %d", 2000, 22000)
		storms = append(storms, storm.workload/storm.charges)
	}
	slices.Sort(storms)
	return storms[len(storms)/2]
}

// cost is the cost of a workload.
type cost struct {
	charges float64
	// workload and tracer are CPU times in nanoseconds.
	workload, tracer float64
	ready            time.Duration
	peakMiB          float64
	// recordedBytes is the size of the recording, or 0 without one.
	recordedBytes float64
}

// slope returns the difference in cost between a long and a short workload.
func slope(b *testing.B, start startFunc, levels int, format string, short, long int) cost {
	b.Helper()
	a, c := measure(b, start, levels, fmt.Sprintf(format, short)), measure(b, start, levels, fmt.Sprintf(format, long))
	c.charges -= a.charges
	c.workload -= a.workload
	c.tracer -= a.tracer
	c.recordedBytes -= a.recordedBytes
	return c
}

// measure runs a workload under a tracer, or untraced if start is nil.
func measure(b *testing.B, start startFunc, levels int, work string) (c cost) {
	b.Helper()
	g := newCgroup(b)
	for range levels - 1 {
		g.write(b, "cgroup.subtree_control", "+memory")
		g = g.child(b, "below")
	}
	p := startWorkload(b, g, work)
	if _, err := fmt.Sscanf(work, "storm %f", &c.charges); err == nil {
		// Each page is charged alone after its batch failed: two calls.
		g.leaveRoom(b, 0)
		c.charges *= 2
	} else if _, err := fmt.Sscanf(work, "churn %f", &c.charges); err == nil {
		c.charges *= float64((8 << 20) / pageSize / 64)
	}
	var tr *tracer
	var s *switches
	if start != nil {
		begin := time.Now()
		tr = start(b, p.pid())
		c.ready = time.Since(begin)
		s = recordSwitches(b)
		defer s.stop()
		c.tracer = -quietNanos(b, s, tr)
	}
	p.begin(b)
	if _, err := fmt.Sscan(p.readLine(b), &c.workload); err != nil {
		b.Fatal(err)
	}
	if tr != nil {
		c.peakMiB = peakMiB(b, tr)
		c.tracer += quietNanos(b, s, tr)
		tr.Process.Signal(unix.SIGINT)
		tr.end(b)
		if i := slices.Index(tr.Args, "-o"); i >= 0 && tr.Args[0] == command && !slices.Contains(tr.Args, "-keep-last") {
			file := tr.Args[i+1]
			if slices.Contains(tr.Args, "-rotate") {
				file = strings.Replace(file, ".ctrace", "-1.ctrace", 1)
			}
			c.recordedBytes = fileBytes(b, file)
		}
	}
	p.wait(b)
	return c
}

// quietNanos waits until a tracer has caught up, and returns its CPU time since switches
// began. It waits longer than a tracer needs, on the machine's clock.
func quietNanos(b *testing.B, s *switches, tr *tracer) float64 {
	b.Helper()
	const interval = 200 * time.Millisecond
	time.Sleep(2 * time.Second)
	before := s.nanosOf(b, tr)
	time.Sleep(interval)
	now := s.nanosOf(b, tr)
	if now-before > float64(interval)/100 {
		b.Fatalf("the tracer is still busy: %.0f ns in %v", now-before, interval)
	}
	return now
}

// switches records the context switches of the machine's CPU.
//
// The CPU time of a thread does not show the cost of a tracer: if a wakeup preempts a thread
// in the kernel, the scheduler charges what that thread still does there, up to 300 us, to
// the one that it runs next (rq_clock_skip_update in kernel/sched/core.c).
type switches string // a directory of tracefs

// recordSwitches starts to record.
func recordSwitches(b *testing.B) *switches {
	b.Helper()
	dir := "/sys/kernel/tracing/instances/switches"
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	for _, setting := range [][2]string{{"buffer_size_kb", "8192"}, {"events/sched/sched_switch/enable", "1"}} {
		if err := os.WriteFile(filepath.Join(dir, setting[0]), []byte(setting[1]), 0); err != nil {
			b.Fatal(err)
		}
	}
	return (*switches)(&dir)
}

func (s *switches) stop() { os.Remove(string(*s)) }

var switchLine = regexp.MustCompile(` (\d+)\.(\d+): sched_switch: prev_comm=(.*) prev_pid=.* ==> next_comm=(.*) next_pid=`)

// nanosOf returns the CPU time of the threads with the name of a tracer.
func (s *switches) nanosOf(b *testing.B, tr *tracer) float64 {
	b.Helper()
	text := readFile(b, filepath.Join(string(*s), "trace"))
	var inBuffer, written int
	if _, rest, ok := strings.Cut(text, "entries-written:"); !ok {
		b.Fatalf("no number of entries in %.200q", text)
	} else if _, err := fmt.Sscanf(rest, "%d/%d", &inBuffer, &written); err != nil || inBuffer != written {
		b.Fatalf("%d of %d entries: %v", inBuffer, written, err)
	}
	var sum, begin time.Duration
	comm := filepath.Base(tr.Path)
	for _, m := range switchLine.FindAllStringSubmatch(text, -1) {
		at, err := time.ParseDuration(m[1] + "." + m[2] + "s")
		if err != nil {
			b.Fatal(err)
		}
		if m[3] == comm && begin > 0 {
			sum += at - begin
		}
		begin = 0
		if m[4] == comm {
			begin = at
		}
	}
	return float64(sum)
}

// cpuNanosOf returns the CPU time of another process, in nanoseconds.
func cpuNanosOf(b *testing.B, pid int) float64 {
	b.Helper()
	// clock_getcpuclockid(3)
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		b.Fatal(err)
	}
	return float64(ts.Nano())
}

// peakMiB returns the peak resident memory of a running tracer.
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

func fileBytes(b *testing.B, path string) float64 {
	b.Helper()
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	return float64(info.Size())
}
