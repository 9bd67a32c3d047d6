package watch

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"chargetrace/internal/container"
	"chargetrace/internal/text"
)

// column is a column of the list of cgroups.
type column struct {
	head  string
	width int
	cell  func(p *painter, r *row) string
}

var usageColumn = column{"USAGE", 7, func(p *painter, r *row) string {
	if !r.known {
		return "-"
	}
	return p.amount(r.usagePages)
}}

var columns = []column{
	{"LIMIT", 8, func(p *painter, r *row) string {
		switch {
		case r.limitedBy == "" && !r.known:
			return "-"
		case r.limitedBy == "":
			return "max"
		}
		mark := ""
		if r.high {
			mark = "~"
		}
		if !r.ownLimit {
			mark = "^" + mark
		}
		return mark + p.amount(int64(r.maxPages))
	}},
	{"ROOM", 7, func(p *painter, r *row) string {
		if r.limitedBy == "" {
			return "-"
		}
		return p.amount(r.roomPages())
	}},
	{"FILL/S", 7, func(p *painter, r *row) string { return p.rate(r.fillRate) }},
	{"TO LIM", 6, func(p *painter, r *row) string { return r.timeToLimit() }},
	{"FAIL", 4, func(p *painter, r *row) string { return perSecond(r.failures) }},
	{"MISS", 4, func(p *painter, r *row) string { return perSecond(r.misses) }},
	{"RECL", 4, func(p *painter, r *row) string { return fmt.Sprintf("%.0f%%", 100*r.reclaim) }},
	{"OOM", 3, func(p *painter, r *row) string { return strconv.FormatUint(r.kills, 10) }},
}

// table writes the part of the list of cgroups around the selected one.
func (p *painter) table(rows []*row, selected, height int) {
	numbers := columns
	if p.width >= 100 {
		numbers = append([]column{usageColumn}, columns...)
	}
	// The name and the bar share the rest, on a wide screen with the limiting level.
	left := p.width - 2
	for _, c := range numbers {
		left -= 1 + max(c.width, p.amountWidth(c.width))
	}
	limitedBy := 0
	if left > 60 {
		limitedBy = left * 3 / 10
		left -= 1 + limitedBy
	}
	first := max(0, min(selected-height/2, len(rows)-height))
	visible := rows[first:min(len(rows), first+height)]
	const minBar = 5
	name := max(1, left-1-max(minBar, (left-1)*2/5))
	var labels []string
	for _, r := range visible {
		labels = append(labels, r.name)
	}
	for _, label := range container.FitAll(labels, name) { // names before bars
		name = max(name, min(ansi.StringWidth(label), left-1-minBar))
	}
	labels = container.FitAll(labels, name)
	bar := max(minBar, left-1-name)

	var head strings.Builder
	head.WriteString("  " + fit("CGROUP", name) + " " + fit("", bar))
	for _, c := range numbers {
		head.WriteString(" " + fitRight(c.head, max(c.width, p.amountWidth(c.width))))
	}
	if limitedBy > 0 {
		head.WriteString(" LIMITED BY")
	}
	p.line(faint.Styled(head.String()))
	for i, r := range visible {
		var b strings.Builder
		b.WriteString(fit(string(text.AppendShort(nil, labels[i], name)), name) + " " + p.style(r).Styled(p.bar(r, bar)))
		for _, c := range numbers {
			b.WriteString(" " + fitRight(c.cell(p, r), max(c.width, p.amountWidth(c.width))))
		}
		if limitedBy > 0 {
			b.WriteString(" " + short(r.limitedBy, limitedBy))
		}
		switch {
		case first+i == selected && !p.entered:
			p.line(bold.Styled("> " + b.String()))
		case r.gone:
			p.line(faint.Styled("  " + ansi.Strip(b.String())))
		default:
			p.line("  " + b.String())
		}
	}
}

// amountWidth returns the width of a column. Amounts in bytes need more than others.
func (p *painter) amountWidth(width int) int {
	if (width == 7 || width == 8) && p.units == text.Bytes {
		return width + 6
	}
	return width
}

// style returns the color of a cgroup far from its limit, close to it, or at it.
func (p *painter) style(r *row) ansi.Style {
	switch f := r.fullness(); {
	case f >= 0.98:
		return full
	case f >= 0.8:
		return near
	}
	return calm
}

// barParts returns the characters of a bar: the usage of the cgroup, that of others
// below the same limit, and room.
func (sc screen) barParts() (own, others, room string) {
	if sc.ascii {
		return "#", "=", "."
	}
	return "█", "▒", "░"
}

// bar returns a bar that is full at the limit and not before.
func (p *painter) bar(r *row, width int) string {
	own, others, room := p.barParts()
	if r.limitedBy == "" {
		return strings.Repeat(" ", width)
	}
	cells := func(pages int64) int {
		return int(math.Max(0, math.Min(1, float64(pages)/math.Max(1, float64(r.maxPages)))) * float64(width))
	}
	all := cells(r.limitingPages)
	mine := min(all, cells(r.usagePages))
	return strings.Repeat(own, mine) + strings.Repeat(others, all-mine) + strings.Repeat(room, width-all)
}
