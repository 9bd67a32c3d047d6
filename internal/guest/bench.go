//go:build linux

package guest

import (
	"bytes"
	"context"
	"flag"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"chargetrace/internal/vm"
)

// benchmarkTimeout far exceeds the time of a benchmark on a busy host.
const benchmarkTimeout = time.Hour

var benchmarkKernel = flag.String("kernel", One[0].String(), "run benchmarks on this kernel")

// EnterBenchmark starts a benchmark in a machine with the kernel that -kernel selects. In
// the machine it returns true. On the host it runs the benchmark once in that machine, reports
// its metrics and those of its sub-benchmarks as b's, and returns false. A slash in -bench
// selects sub-benchmarks.
func EnterBenchmark(b *testing.B, m Machine) bool {
	b.Helper()
	if inside() {
		return true
	}
	pattern := "^" + regexp.QuoteMeta(b.Name()) + "$"
	if _, sub, ok := strings.Cut(flag.Lookup("test.bench").Value.String(), "/"); ok {
		pattern += "/" + sub
	}
	ctx, cancel := context.WithTimeout(b.Context(), benchmarkTimeout)
	defer cancel()
	var out bytes.Buffer
	i := slices.IndexFunc(All, func(k vm.Kernel) bool { return k.String() == *benchmarkKernel })
	if i < 0 {
		b.Fatalf("-kernel %s: want one of %v", *benchmarkKernel, All)
	}
	status, err := m.start(ctx, All[i], &out, "-test.run", "^$", "-test.bench", pattern, "-test.benchtime", "1x", "-test.timeout", benchmarkTimeout.String())
	if err != nil || status != 0 {
		b.Fatalf("exit status %d, %v\n%s", status, err, &out)
	}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, b.Name()) {
			reportMetrics(b, line)
		}
	}
	return false
}

// reportMetrics reports the metrics in a line of a benchmark's output: its name, the number
// of runs, and pairs of number and unit.
func reportMetrics(b *testing.B, line string) {
	b.Helper()
	fields := strings.Fields(line)
	report := func(b *testing.B) {
		b.ReportMetric(0, "ns/op") // omit it
		for i := 2; i+1 < len(fields); i += 2 {
			n, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				b.Fatalf("%s: %v", line, err)
			}
			b.ReportMetric(n, fields[i+1])
		}
	}
	if _, sub, ok := strings.Cut(fields[0], "/"); ok {
		b.Run(sub, report)
	} else {
		report(b)
	}
}
