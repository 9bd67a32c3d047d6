package watch

import (
	"fmt"
	"math"
	"strings"
	"time"

	"chargetrace/internal/text"
)

// detail says in words how it stands with a cgroup.
func (p *painter) detail(r *row) {
	p.line(p.rule(r.path))
	var b strings.Builder
	switch {
	case r.gone():
		b.WriteString("it was removed")
	case r.limitedBy == "":
		b.WriteString(p.amount(r.usagePages) + " in use; no limit, here or above")
	default:
		fmt.Fprintf(&b, "%s of %s in use, room for %s", p.amount(r.limitingPages), p.amount(int64(r.maxPages)), p.amount(r.roomPages()))
		if r.toLimit > 0 {
			b.WriteString(", full in " + r.timeToLimit())
		}
		if r.ownLimit {
			b.WriteString("; its own limit")
		} else {
			b.WriteString("; limit of ")
			b.Write(text.AppendShort(nil, r.limitedBy, max(10, p.width-b.Len())))
		}
	}
	if r.container != "" {
		b.WriteString("; " + r.container)
	}
	p.line(b.String())
	if p.header.KernelStacks {
		p.line(p.chargedFor(r.group))
	}
	if p.nets != nil {
		p.line(fmt.Sprintf("net growth %s/s: %s/s charged, %s/s given back, here and below",
			p.rate(r.charged-r.uncharged), p.amount(int64(r.charged)), p.amount(int64(r.uncharged))))
	}
}

// chargedFor says what a cgroup was charged for of late, as far as there is room.
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

// String returns a share such as "page table 6%".
func (s share) String() string { return fmt.Sprintf("%s %.0f%%", s.Words(), 100*s.part) }

// graph shows the last minutes of what the limit counts, or of the cgroup's usage
// where there is none, with marks below where charges failed (!) and processes
// were killed (X).
func (p *painter) graph(r *row, height int) {
	const axis = 9
	width := p.width - axis - 1
	if r.group == nil || width < 10 {
		for range height {
			p.line("")
		}
		return
	}
	history := r.group.history
	each := (len(history) + width - 1) / width // ticks a column
	top := int64(1)
	if r.limitedBy != "" {
		top = int64(r.maxPages)
	}
	values := make([]int64, 0, width)
	marks := make([]byte, 0, width)
	var before sample
	if len(history) == historyTicks {
		before = history[0] // of what came before it nothing is known
	}
	for i := 0; i < len(history); i += each {
		var highest int64
		mark := byte(' ')
		for _, x := range history[i:min(i+each, len(history))] {
			pages := x.usagePages
			if r.limitedBy != "" {
				pages = x.limitingPages
			}
			highest = max(highest, pages)
			switch {
			case x.kills > before.kills:
				mark = 'X'
			case mark == ' ' && x.totals.Failures > before.totals.Failures:
				mark = '!'
			}
			before = x
		}
		values, marks = append(values, highest), append(marks, mark)
		if r.limitedBy == "" {
			top = max(top, highest)
		}
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
	if len(history) > 1 {
		span = "-" + shortDuration(time.Duration(r.bootNanos-history[0].bootNanos))
	}
	p.line(faint.Styled(fmt.Sprintf("%*s ", axis, span)) + full.Styled(string(marks)))
}

// column is a cell of the graph of which a part is filled: 0 to 1, and beyond.
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
		p.line("  nobody was seen to charge it itself")
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
