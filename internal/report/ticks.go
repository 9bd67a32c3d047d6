package report

import (
	"fmt"
	"math"
	"time"
)

// sizeTicks returns about five round numbers of bytes from 0 to top.
func sizeTicks(top float64) []float64 {
	unit := math.Pow(1024, math.Floor(math.Log2(max(top, 1))/10))
	step := niceStep(top/unit, 5) * unit
	var ticks []float64
	for v := 0.0; v <= top; v += step {
		ticks = append(ticks, v)
	}
	return ticks
}

// niceStep returns the least step of 1, 2, 2.5 or 5 times a power of ten that divides
// a span into at most n parts.
func niceStep(span, n float64) float64 {
	rough := span / n
	power := math.Pow(10, math.Floor(math.Log10(rough)))
	for _, m := range []float64{1, 2, 2.5, 5} {
		if m*power >= rough {
			return m * power
		}
	}
	return 10 * power
}

var sizeUnits = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

func tickSize(bytes float64) string {
	if bytes == 0 {
		return "0"
	}
	exponent := min(max(int(math.Log2(bytes)/10), 0), len(sizeUnits)-1)
	return fmt.Sprintf("%.4g %s", bytes/math.Pow(1024, float64(exponent)), sizeUnits[exponent])
}

// timeTicks returns about n round times from from to to, in nanoseconds.
func timeTicks(from, to int64, n float64) []int64 {
	var step int64
	span := (float64(to) - float64(from)) / n
	for _, s := range []time.Duration{time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour} {
		step = int64(s)
		if float64(step) >= span {
			break
		}
	}
	switch {
	case span < 30e9:
		step = max(1, int64(niceStep(n*span, n)))
	case span > 24*3600e9:
		step = int64(math.Ceil(span/(24*3600e9))) * 24 * int64(time.Hour)
	}
	var ticks []int64
	// A count ends the loop: the times of a hostile recording may overflow.
	first := int64(math.Ceil(float64(from)/float64(step))) * step
	for i := range int64(n) + 1 {
		if t := first + i*step; from <= t && t <= to {
			ticks = append(ticks, t)
		}
	}
	return ticks
}

// tickTime writes a time in the unit that suits an axis up to end. report.js has the
// same rule.
func tickTime(nanos, end int64) string {
	switch {
	case end < int64(10*time.Second):
		return fmt.Sprintf("%.7g ms", float64(nanos)/1e6)
	case end < int64(5*time.Minute):
		return fmt.Sprintf("%.7g s", float64(nanos)/1e9)
	}
	s := nanos / 1e9
	return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
}
