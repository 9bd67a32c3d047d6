package main

import (
	"syscall"
	"testing"
	"time"
)

// BenchmarkMillionEvents measures the report of a million events.
func BenchmarkMillionEvents(b *testing.B) {
	for _, m := range millions {
		b.Run(m.name, func(b *testing.B) {
			path := recordMillion(b, m.frames)
			b.ResetTimer()
			var cpu time.Duration
			var peakMiB float64
			for b.Loop() {
				cmd, _ := makeReport(b, path)
				cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
				peakMiB = max(peakMiB, float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)/1024)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(cpu.Seconds()/float64(b.N), "CPU-s/op")
			b.ReportMetric(peakMiB, "peak-MiB")
		})
	}
}
