package watch

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"chargetrace/internal/text"
)

func count[N int | uint64](n N, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// fit cuts or pads s to a width.
func fit(s string, width int) string {
	s = ansi.Truncate(s, width, "")
	return s + strings.Repeat(" ", max(0, width-ansi.StringWidth(s)))
}

func fitRight(s string, width int) string {
	return strings.Repeat(" ", max(0, width-ansi.StringWidth(s))) + s
}

// amount writes a number of pages.
func (p *painter) amount(pages int64) string {
	return string(p.units.AppendPages(nil, pages, p.Info.PageSize))
}

// rate writes a signed number of pages a second; NaN is unknown.
func (p *painter) rate(pages float64) string {
	n := int64(math.Abs(pages))
	switch {
	case math.IsNaN(pages):
		return "-"
	case n == 0:
		return "0"
	case pages < 0:
		return "-" + p.amount(n)
	}
	return "+" + p.amount(n)
}

// time writes the time of an event.
func (p *painter) time(bootNanos uint64) string { return p.Format.Moment(max(bootNanos, p.start)) }

// position writes the time of the last tick, always to the millisecond.
func (p *painter) position() string {
	if p.Format.Time == text.Clock || p.Format.Time == text.Date {
		return p.time(p.lastTick)
	}
	return fmt.Sprintf("%.3f s", float64(p.lastTick-min(p.lastTick, p.start))/float64(time.Second))
}

func (r *row) timeToLimit() string {
	switch {
	case r.toLimit < 0:
		return "-"
	case r.toLimit == 0:
		return "now"
	}
	return shortDuration(r.toLimit)
}

// shortDuration writes a duration in at most five characters.
func shortDuration(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02d", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02d", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func perSecond(n float64) string { return strconv.FormatFloat(math.Round(n), 'f', -1, 64) }
