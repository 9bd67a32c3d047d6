package report

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
)

var sizeUnits = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// size writes a number of bytes: 9.7 MiB.
func size(bytes float64) string {
	sign := ""
	if bytes < 0 {
		sign, bytes = "−", -bytes
	}
	i := 0
	for ; bytes >= 1024 && i < len(sizeUnits)-1; i++ {
		bytes /= 1024
	}
	if bytes == 0 {
		return "0"
	}
	if i < 2 || bytes == math.Trunc(bytes) {
		return fmt.Sprintf("%s%.0f %s", sign, bytes, sizeUnits[i])
	}
	return fmt.Sprintf("%s%.1f %s", sign, bytes, sizeUnits[i])
}

// count writes a number with its digits in groups: 16,384.
func count(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// counted writes a number and its noun: 1 charge, 2 charges.
func counted(n uint64, what string) string { return count(n) + " " + plural(n, what) }

func plural(n uint64, what string) string {
	if n == 1 {
		return what
	}
	return what + "s"
}

// duration writes how long something took: 4.56 ms.
func duration(nanos uint64) string {
	d := time.Duration(min(nanos, math.MaxInt64))
	switch {
	case d == 0:
		return "0"
	case d < time.Millisecond:
		return fmt.Sprintf("%.3g µs", float64(d)/1e3)
	case d < time.Second:
		return fmt.Sprintf("%.3g ms", float64(d)/1e6)
	case d < time.Minute:
		return fmt.Sprintf("%.3g s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// since writes a time since the trace began: 746 ms, 31.04 s, 1:02:03.
func since(nanos int64) string {
	d := time.Duration(nanos)
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 5*time.Minute:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return fmt.Sprintf("%d:%02d:%02d", int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60)
}

// shown makes a name from outside the events printable and short.
func shown(name string) string { return shorten(event.Printable(name)) }

// maxName is the number of characters of a name in a report. It bounds the size of a
// report whose cgroups have long names.
const maxName = 160

// shorten cuts a name in the middle if it is longer than maxName.
func shorten(name string) string { return shortenTo(name, maxName) }

func shortenTo(name string, most int) string {
	if r := []rune(name); len(r) > most {
		return string(r[:most/2]) + "…" + string(r[len(r)-most/2:])
	}
	return name
}

func within(path, ancestor string) bool { return cgroup.IsWithin(path, ancestor) }

// list joins words: a, b and c.
func list(words []string) string {
	n := len(words)
	if n < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:n-1], ", ") + " and " + words[n-1]
}
