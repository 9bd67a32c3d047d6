package watch

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"chargetrace/internal/container"
)

// detail writes the usage and the limit of a cgroup, its causes, and its net growth.
func (p *painter) detail(r *row) {
	p.line(p.rule(r.name))
	var b strings.Builder
	switch {
	case r.gone:
		b.WriteString("removed")
	case r.limitedBy == "":
		b.WriteString(p.amount(r.usagePages) + " in use; no limit, here or above")
	default:
		fmt.Fprintf(&b, "%s of %s in use, room for %s", p.amount(r.limitingPages), p.amount(int64(r.maxPages)), p.amount(r.roomPages()))
		if r.toLimit > 0 {
			b.WriteString(", full in " + r.timeToLimit())
		}
		limit := "limit"
		if r.high {
			limit = "memory.high"
		}
		if r.ownLimit {
			b.WriteString("; its own " + limit)
		} else {
			b.WriteString("; " + limit + " of ")
			b.WriteString(container.Fit(r.limitedBy, max(10, p.width-b.Len())))
		}
	}
	if path := p.Names.Printable(r.id); path != r.name {
		b.WriteString("; " + path)
	}
	p.line(b.String())
	if p.Info.KernelStacks {
		p.line(p.chargedFor(r.group))
	}
	if p.Balances != nil {
		p.line(fmt.Sprintf("net growth %s/s: %s/s charged, %s/s given back, here and below",
			p.rate(r.charged-r.uncharged), p.amount(int64(r.charged)), p.amount(int64(r.uncharged))))
	}
}

// chargedFor writes the causes of the recent charges, as many as fit.
func (p *painter) chargedFor(g *group) string {
	shares := g.shares()
	if len(shares) == 0 {
		return "for: nothing now"
	}
	line := "for: " + shares[0].String()
	for _, s := range shares[1:] {
		more := "  " + s.String()
		if s.part < 0.005 || len(line)+len(more) > p.width {
			break
		}
		line += more
	}
	return line
}

// String writes a share: page table 6%.
func (s share) String() string { return fmt.Sprintf("%s %.0f%%", s.Words(), 100*s.part) }

// graph writes the usage of the level that limited the cgroup at the time, or its own if
// none did, over the last minutes. Marks below are failed charges (!) and kills (X).
func (p *painter) graph(r *row, height int) {
	const axis = 9
	width := p.width - axis - 1
	if r.group == nil || width < 10 {
		for range height {
			p.line("")
		}
		return
	}
	values, marks := r.graphColumns(width)
	top := int64(r.maxPages)
	if r.limitedBy == "" {
		top = slices.Max(append(values, 1))
	}
	for i := range height - 1 {
		label := ""
		switch i {
		case 0:
			label = p.amount(top)
		case height - 2:
			label = "0"
		}
		low, high := float64(height-2-i)/float64(height-1), float64(height-1-i)/float64(height-1)
		var b strings.Builder
		for _, v := range values {
			b.WriteString(p.column((float64(v)/float64(top) - low) / (high - low)))
		}
		p.line(faint.Styled(fmt.Sprintf("%*s ", axis, label)) + p.style(r).Styled(b.String()))
	}
	span := ""
	if n := len(r.group.graph); n > 1 {
		span = "-" + shortDuration(time.Duration(r.bootNanos-p.times[len(p.times)-n]))
	}
	p.line(faint.Styled(fmt.Sprintf("%*s ", axis, span)) + full.Styled(string(marks)))
}

// graphColumns reduces the graph of a row to columns: the highest usage in pages, and the
// mark of each.
func (r *row) graphColumns(width int) (values []int64, marks []byte) {
	graph := r.group.graph
	for ticks := range slices.Chunk(graph, max(1, (len(graph)+width-1)/width)) {
		var highest int64
		mark := byte(' ')
		for _, x := range ticks {
			highest = max(highest, x.pages)
			if x.mark == 'X' || mark == ' ' {
				mark = x.mark
			}
		}
		values, marks = append(values, highest), append(marks, mark)
	}
	return values, marks
}

// column returns a cell of the graph, filled from 0 to 1. More is drawn as 1, less as 0.
func (p *painter) column(part float64) string {
	levels := []string{" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"}
	if p.ascii {
		levels = []string{" ", ".", ":", "#"}
	}
	n := float64(len(levels) - 1)
	return levels[int(math.Ceil(math.Max(0, math.Min(n, part*n))))]
}

func (p *painter) processes(g *group, height int) {
	p.line(faint.Styled(fmt.Sprintf("%8s  %-16s %10s %10s %8s", "PID", "COMM", "CHARGED/S", "IN ALL", "FAILED")))
	if g == nil {
		p.line("  no process has charged it directly")
		return
	}
	list := g.byRate()
	for i, x := range list[:min(len(list), height)] {
		if i == height-1 && len(list) > height {
			p.line(faint.Styled(fmt.Sprintf("%8s  and %d more", "", len(list)-i)))
			break
		}
		p.line(fmt.Sprintf("%8d  %s %10s %10s %8d", x.pid, fit(x.comm.String(), 16),
			p.amount(int64(x.rate)), p.amount(int64(x.pages)), x.failures))
	}
}
