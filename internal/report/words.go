package report

import (
	"math"
	"strconv"
	"strings"

	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/text"
)

// size writes a number of bytes: 9.7 MiB.
func size(bytes float64) string {
	var f text.Format
	return f.Bytes(int64(bytes))
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

// duration writes how long something took: 4.5 ms.
func duration(nanos uint64) string { return text.Duration(int64(min(nanos, math.MaxInt64))) }

// shown makes a name from outside the events printable and short.
func shown(name string) string { return shorten(event.Printable(name)) }

// shorten cuts a name in the middle if it is long.
func shorten(name string) string { return text.Shorten(name, text.MaxName) }

// fit shortens the label of a cgroup.
func fit(label string) string { return shorten(container.Fit(label, text.MaxName)) }

// list joins words: a, b and c.
func list(words []string) string {
	n := len(words)
	if n < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:n-1], ", ") + " and " + words[n-1]
}
