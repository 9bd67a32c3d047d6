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

// size returns a number of bytes for people: 9.7 MiB.
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

// count returns a number with its digits in groups: 16,384.
func count(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// counted returns a number and what it counts: 1 charge, 2 charges.
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

// since returns a time since the trace began, up to ten seconds as the table
// has it.
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

// shown is how a name that is no part of the events is shown.
func shown(name string) string { return shorten(event.Printable(name)) }

// maxName is how many characters of a name are shown, so that no trace makes a
// report too large to be sent.
const maxName = 160

// shorten cuts a long name in the middle.
func shorten(name string) string { return shortenTo(name, maxName) }

func shortenTo(name string, most int) string {
	if r := []rune(name); len(r) > most {
		return string(r[:most/2]) + "…" + string(r[len(r)-most/2:])
	}
	return name
}

func within(path, ancestor string) bool { return cgroup.IsWithin(path, ancestor) }

// list joins with commas, and a last "and".
func list(words []string) string {
	n := len(words)
	if n < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:n-1], ", ") + " and " + words[n-1]
}
