//go:build linux

package guest

import (
	"bytes"
	"context"
	"flag"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// benchmarkTimeout is far above what a benchmark takes on a busy host.
const benchmarkTimeout = time.Hour

// EnterBenchmark begins a benchmark that needs a machine, with a single kernel. On the
// host it runs the benchmark in that machine, once, reports its metrics as those of b
// and of its sub-benchmarks, and returns false. Of the latter it runs those that -bench
// names behind a slash. In the machine it returns true.
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
	status, err := m.start(ctx, m.Kernels[0], &out, "-test.run", "^$", "-test.bench", pattern, "-test.benchtime", "1x", "-test.timeout", benchmarkTimeout.String())
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

// reportMetrics reports the metrics in a line of the output of a benchmark: its name,
// the number of runs, and numbers each with a unit.
func reportMetrics(b *testing.B, line string) {
	b.Helper()
	fields := strings.Fields(line)
	report := func(b *testing.B) {
		b.ReportMetric(0, "ns/op") // none
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
