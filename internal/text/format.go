package text

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
)

// TimeFormat is the format of the time of an event.
type TimeFormat string

// The formats of the -time flag. Clock and Date are in the local time zone.
const (
	// Relative is the time since the trace began.
	Relative TimeFormat = "relative"
	Clock    TimeFormat = "clock" // 15:04:05.000000
	Date     TimeFormat = "date"  // 2006-01-02T15:04:05.000000+01:00
)

// AllTimeFormats are the values of the -time flag.
var AllTimeFormats = []TimeFormat{Relative, Clock, Date}

// ParseTimeFormat returns the TimeFormat with that name.
func ParseTimeFormat(name string) (TimeFormat, error) {
	if f := TimeFormat(name); slices.Contains(AllTimeFormats, f) {
		return f, nil
	}
	return "", fmt.Errorf("want relative, clock or date")
}

// The layouts of Clock and Date.
const (
	ClockLayout = "15:04:05.000000"
	DateLayout  = "2006-01-02T15:04:05.000000-07:00"
)

// Format writes amounts and times of a trace.
type Format struct {
	// Units are the units of amounts. The zero value is pages in the columns of tables,
	// and MiB in sentences.
	Units Units
	// Time is the format of times; the zero value is Relative.
	Time TimeFormat
	// Location is the time zone of Clock and Date; nil is the local time zone.
	Location *time.Location

	// PageSize and StartBootNanos are those of the trace. WallClock converts a time since
	// boot to the wall clock's, for Clock and Date.
	PageSize       int
	StartBootNanos uint64
	WallClock      func(bootNanos uint64) time.Time
}

// Size writes a number of pages in a sentence: "13.8 MiB", "3532 pages" or "14467072 bytes".
// MiB and the like are rounded down, so that a usage below a limit never prints as the
// limit.
func (f *Format) Size(pages int64) string {
	if f.Units == Pages {
		return counted(pages, "page")
	}
	return f.Bytes(pages * int64(f.PageSize))
}

// InPages reports whether columns of tables are in pages.
func (f *Format) InPages() bool { return f.Units == "" || f.Units == Pages }

// Column writes an amount in a column of a table: a number of pages, or of bytes, which a B
// marks where other columns are not in bytes.
func (f *Format) Column(n int64, isBytes bool) string { return string(f.AppendColumn(nil, n, isBytes)) }

// AppendColumn appends what Column returns.
func (f *Format) AppendColumn(b []byte, n int64, isBytes bool) []byte {
	switch {
	case !isBytes:
		return f.Units.AppendPages(b, n, f.PageSize)
	case f.Units == Human:
		return AppendHuman(b, n)
	}
	return append(strconv.AppendInt(b, n, 10), 'B')
}

// Bytes writes a number of bytes in a sentence.
func (f *Format) Bytes(n int64) string {
	if f.Units == Pages || f.Units == Bytes {
		return counted(n, "byte")
	}
	number, unit := split(n)
	return number + " " + unit
}

// Parts writes a sum of pages and its parts, in one unit: "12.2 MiB (anon 9.8, file 0, shmem
// 2.4)".
func (f *Format) Parts(names []string, pages []int64) string {
	var sum int64
	for _, n := range pages {
		sum += n
	}
	s := f.Size(sum) + " ("
	for i, n := range pages {
		if i > 0 {
			s += ", "
		}
		s += names[i] + " " + f.part(n, sum)
	}
	return s + ")"
}

// part writes a part of a sum in the unit of the sum.
func (f *Format) part(pages, sum int64) string {
	size := int64(f.PageSize)
	switch {
	case f.Units == Pages || pages == 0:
		return strconv.FormatInt(pages, 10)
	case f.Units == Bytes:
		return strconv.FormatInt(pages*size, 10)
	}
	shift := shiftOf(sum * size)
	return scale(pages*size, shift)
}

// shiftOf returns the number of bits of the unit in which a number of bytes is written.
func shiftOf(n int64) (shift int) {
	for shift < 60 && n>>shift >= 1024 {
		shift += 10
	}
	return shift
}

// scale writes a number of bytes in units of 1<<shift, rounded down; below a MiB without
// tenths.
func scale(n int64, shift int) string {
	s := strconv.FormatInt(n>>shift, 10)
	if shift >= 20 {
		s += "." + strconv.FormatInt(n>>(shift-10)&1023*10>>10, 10)
	}
	return s
}

func split(n int64) (number, unit string) {
	sign := ""
	if n < 0 {
		sign, n = "-", -n
	}
	shift := shiftOf(n)
	return sign + scale(n, shift), [...]string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}[shift/10]
}

// counted writes a number and its noun: "1 page", "2 pages".
func counted(n int64, what string) string {
	s := strconv.FormatInt(n, 10) + " " + what
	if n != 1 {
		s += "s"
	}
	return s
}

// Limit writes the size of a limit, in pages. Without Units, it has the pages of the table's
// column LIMIT too: "2048 pages (8.0 MiB)".
func (f *Format) Limit(pages int64) string {
	if f.Units != "" {
		return f.Size(pages)
	}
	return counted(pages, "page") + " (" + f.Size(pages) + ")"
}

// Moment writes the time of an event in a sentence: "746.9 ms", "31.04 s", "5m12s",
// "08:30:31.036000".
func (f *Format) Moment(bootNanos uint64) string { return string(f.AppendMoment(nil, bootNanos)) }

// AppendMoment appends what Moment returns.
func (f *Format) AppendMoment(b []byte, bootNanos uint64) []byte {
	switch f.Time {
	case Clock:
		return f.Wall(bootNanos).AppendFormat(b, ClockLayout)
	case Date:
		return f.Wall(bootNanos).AppendFormat(b, DateLayout)
	}
	return append(b, Duration(int64(bootNanos-f.StartBootNanos))...)
}

// Wall converts a time since boot to the wall clock's.
func (f *Format) Wall(bootNanos uint64) time.Time {
	location := f.Location
	if location == nil {
		location = time.Local
	}
	return f.WallClock(bootNanos).In(location)
}

// Duration writes nanoseconds, rounded down: "12 µs", "746.9 ms", "31.04 s", "5m12s",
// "3h05m", "2d 3h".
func Duration(nanos int64) string {
	if nanos < 0 {
		return "-" + Duration(-max(nanos, -math.MaxInt64))
	}
	d := time.Duration(nanos)
	switch {
	case d == 0:
		return "0"
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d/time.Microsecond)
	case d < time.Second:
		return fmt.Sprintf("%d.%d ms", d/time.Millisecond, d/(100*time.Microsecond)%10)
	case d < time.Minute:
		return fmt.Sprintf("%d.%02d s", d/time.Second, d/(10*time.Millisecond)%100)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d/time.Second%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d/time.Minute%60)
	}
	return fmt.Sprintf("%dd %dh", d/(24*time.Hour), d/time.Hour%24)
}
