// Package text formats amounts of memory and long paths, for the outputs that people
// read. It must not know events.
package text

import (
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"
)

// Units is the format of a number of pages.
type Units string

// The units of the -units flag.
const (
	Pages Units = "pages"
	Bytes Units = "bytes"
	// Human is bytes as 3.9M. It rounds down, so that a usage below a limit never prints
	// as the limit.
	Human Units = "human"
)

// AllUnits are the values of the -units flag.
var AllUnits = []Units{Pages, Bytes, Human}

// ParseUnits returns the Units with that name.
func ParseUnits(name string) (Units, error) {
	if u := Units(name); slices.Contains(AllUnits, u) {
		return u, nil
	}
	return "", fmt.Errorf("want pages, bytes or human")
}

// AppendPages appends n pages. The zero value of Units is Pages.
func (u Units) AppendPages(b []byte, n int64, pageSize int) []byte {
	switch u {
	case Bytes:
		return strconv.AppendInt(b, n*int64(pageSize), 10)
	case Human:
		return AppendHuman(b, n*int64(pageSize))
	}
	return strconv.AppendInt(b, n, 10)
}

// AppendHuman appends a number of bytes as 512, 64K or 9.9M, rounded down.
func AppendHuman(b []byte, n int64) []byte {
	if n < 0 {
		b = append(b, '-')
		n = -n
	}
	const suffixes = "KMGTPE"
	if n < 1024 {
		return strconv.AppendInt(b, n, 10)
	}
	unit := 0
	for n >= 1<<20 {
		n >>= 10
		unit++
	}
	b = strconv.AppendInt(b, n>>10, 10)
	if tenths := n & 1023 * 10 >> 10; unit > 0 || tenths > 0 {
		b = append(b, '.', byte('0'+tenths))
	}
	return append(b, suffixes[unit])
}

// MaxName is the number of characters of a name in a sentence or a report. It bounds the size
// of a report whose cgroups have long names.
const MaxName = 160

// Shorten cuts a name in the middle if it is longer than most characters.
func Shorten(name string, most int) string {
	if len(name) <= most {
		return name
	}
	if r := []rune(name); len(r) > most {
		return string(r[:most/2]) + "…" + string(r[len(r)-most/2:])
	}
	return name
}

// AppendShort appends s, shortened in the middle to width characters. It keeps more of
// the end: the last component of a path identifies it best.
func AppendShort(b []byte, s string, width int) []byte {
	n := utf8.RuneCountInString(s)
	if n <= width {
		return append(b, s...)
	}
	head := (width - 1) / 3
	tail := n - (width - 1 - head)
	i := 0
	for _, r := range s {
		switch {
		case i < head || i >= tail:
			b = utf8.AppendRune(b, r)
		case i == head:
			b = append(b, "…"...)
		}
		i++
	}
	return b
}
