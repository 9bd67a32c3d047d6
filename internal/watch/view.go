package watch

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"chargetrace/internal/event"
	"chargetrace/internal/text"
)

// screen is what of the terminal the view depends on.
type screen struct {
	width, height int
	// ascii is for terminals that show nothing else.
	ascii bool
}

// painter writes a screen line by line.
type painter struct {
	*state
	*keys
	screen
	lines []string
}

// The colours are those of the terminal's own palette, and say nothing that the
// text does not say too.
var (
	faint  = ansi.NewStyle().Faint()
	bold   = ansi.NewStyle().Bold()
	marked = ansi.NewStyle().Reverse(true)
	calm   = ansi.NewStyle().ForegroundColor(ansi.Green)
	near   = ansi.NewStyle().ForegroundColor(ansi.Yellow)
	full   = ansi.NewStyle().ForegroundColor(ansi.Red)
)

// view returns what is on the screen: as many lines as it is high.
func (s *state) view(k *keys, sc screen) string {
	p := painter{state: s, keys: k, screen: sc}
	rows := s.rows(k)
	p.title(rows)
	if k.help {
		for line := range strings.Lines(strings.Trim(helpText, "\n")) {
			p.line(strings.TrimRight(line, "\n"))
		}
	} else {
		p.body(rows)
	}
	for len(p.lines) < sc.height-1 {
		p.line("")
	}
	p.lines = p.lines[:max(0, min(len(p.lines), sc.height-1))]
	p.line(p.bottom())
	return strings.Join(p.lines, "\n")
}

// line adds a line, cut to the width of the screen.
func (p *painter) line(s string) {
	s = ansi.Truncate(s, p.width, "")
	if p.ascii {
		s = strings.Map(func(r rune) rune {
			if r > 0x7e {
				return '?'
			}
			return r
		}, s)
	}
	p.lines = append(p.lines, s)
}

func (p *painter) title(rows []row) {
	t := &p.totals
	parts := []string{
		bold.Styled("chargetrace"), p.time(p.lastTick),
		count(len(p.groups), "cgroup"), count(t.Charges, "charge"), fmt.Sprintf("%d failed", t.Failures),
		count(p.kills, "OOM kill"),
	}
	if p.lost > 0 {
		parts = append(parts, full.Styled(fmt.Sprintf("%d LOST", p.lost)))
	}
	if p.filter != "" {
		parts = append(parts, fmt.Sprintf("%d named *%s*", len(rows), event.Printable(p.filter)))
	}
	if p.paused {
		parts = append(parts, marked.Styled(" PAUSED "))
	}
	p.line(strings.Join(parts, "  "))
}

func count[N int | uint64](n N, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// bottom is the last line.
func (p *painter) bottom() string {
	switch {
	case p.filtering:
		return "/" + event.Printable(p.filter) + marked.Styled(" ") + "  enter keeps the filter, esc drops it"
	case p.help:
		return faint.Styled("any key goes back, Ctrl-C ends the trace")
	case p.entered:
		return faint.Styled("q quit  ? help  esc back  p pause  u units")
	}
	return faint.Styled("q quit  ? help  enter open  / filter  s sort: " + orderNames[p.order] + "  p pause  u units  r reverse")
}

// body shares the height among its parts: the cgroups, the graph and the processes
// of the one that is chosen, and the log.
func (p *painter) body(rows []row) {
	if len(rows) == 0 {
		why := "nothing is charged yet"
		if p.filter != "" {
			why = "no cgroup has a name that holds this; esc drops the filter"
		}
		p.line("")
		p.line("  " + why)
		p.logLines(p.height - 4)
		return
	}
	selected := 0
	if !p.entered {
		selected = max(0, slices.IndexFunc(rows, func(r row) bool { return r.id == p.selected }))
	}
	// Of the height, some lines are titles, and what is left over is the graph's.
	titles := 7
	if p.header.KernelStacks {
		titles++
	}
	if p.nets != nil {
		titles++
	}
	free := max(4, p.height-titles)
	r := &rows[selected]
	list := min(len(rows), max(1, free*2/5))
	log := max(2, min(len(p.log), free/5))
	processes := 1
	if r.group != nil {
		processes = max(1, min(len(r.group.processes), free/5))
	}
	graph := free - list - log - processes
	if spare := graph - 12; spare > 0 {
		graph -= spare
		log += spare
	}

	p.table(rows, selected, list)
	p.detail(r)
	p.graph(r, graph)
	p.processes(r.group, processes)
	p.logLines(log)
}

// column is a column of numbers in the list of cgroups.
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
	{"LIMIT", 7, func(p *painter, r *row) string {
		switch {
		case r.limitedBy == "" && !r.known:
			return "-"
		case r.limitedBy == "":
			return "max"
		case !r.ownLimit:
			return "^" + p.amount(int64(r.maxPages))
		}
		return p.amount(int64(r.maxPages))
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

// table lists the cgroups, so many that the chosen one is among them.
func (p *painter) table(rows []row, selected, height int) {
	numbers := columns
	if p.width >= 100 {
		numbers = append([]column{usageColumn}, columns...)
	}
	// What is left is shared by the name, the bar, and, where there is much, the
	// level that limits.
	left := p.width - 2
	for _, c := range numbers {
		left -= 1 + max(c.width, p.amountWidth(c.width))
	}
	limitedBy := 0
	if left > 60 {
		limitedBy = left * 3 / 10
		left -= 1 + limitedBy
	}
	bar := max(5, (left-1)*2/5)
	name := max(1, left-1-bar)

	var head strings.Builder
	head.WriteString("  " + fit("CGROUP", name) + " " + fit("", bar))
	for _, c := range numbers {
		head.WriteString(" " + fitRight(c.head, max(c.width, p.amountWidth(c.width))))
	}
	if limitedBy > 0 {
		head.WriteString(" LIMITED BY")
	}
	p.line(faint.Styled(head.String()))
	first := max(0, min(selected-height/2, len(rows)-height))
	for i, r := range rows[first:min(len(rows), first+height)] {
		var b strings.Builder
		b.WriteString(fit(string(text.AppendShort(nil, r.path, name)), name) + " " + p.style(&r).Styled(p.bar(&r, bar)))
		for _, c := range numbers {
			b.WriteString(" " + fitRight(c.cell(p, &r), max(c.width, p.amountWidth(c.width))))
		}
		if limitedBy > 0 {
			b.WriteString(" " + string(text.AppendShort(nil, r.limitedBy, limitedBy)))
		}
		switch {
		case first+i == selected && !p.entered:
			p.line(bold.Styled("> " + b.String()))
		case r.gone():
			p.line(faint.Styled("  " + ansi.Strip(b.String())))
		default:
			p.line("  " + b.String())
		}
	}
}

// amountWidth is how wide a column of amounts is: bytes take more than the others.
func (p *painter) amountWidth(width int) int {
	if width == 7 && p.units == text.Bytes {
		return 13
	}
	return width
}

// fit makes s that wide.
func fit(s string, width int) string {
	s = ansi.Truncate(s, width, "")
	return s + strings.Repeat(" ", max(0, width-ansi.StringWidth(s)))
}

func fitRight(s string, width int) string {
	return strings.Repeat(" ", max(0, width-ansi.StringWidth(s))) + s
}

// style is for a cgroup that is far from its limit, close to it, or at it.
func (p *painter) style(r *row) ansi.Style {
	switch f := r.fullness(); {
	case f >= 0.98:
		return full
	case f >= 0.8:
		return near
	}
	return calm
}

// The parts of a bar: what the cgroup holds, what others hold below the same
// limit, and room.
func (sc screen) barParts() (own, others, room string) {
	if sc.ascii {
		return "#", "=", "."
	}
	return "█", "▒", "░"
}

// bar fills up at the limit, not before.
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

// rule is a title across the screen.
func (p *painter) rule(title string) string {
	line := "─"
	if p.ascii {
		line = "-"
	}
	title = string(text.AppendShort(nil, title, max(8, p.width-6)))
	return faint.Styled(strings.Repeat(line, 2)) + " " + bold.Styled(title) + " " +
		faint.Styled(strings.Repeat(line, max(0, p.width-4-ansi.StringWidth(title))))
}

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

// logLines shows the end of the log.
func (p *painter) logLines(height int) {
	p.line(p.rule("limits hit and kills"))
	for _, x := range p.log[max(0, len(p.log)-max(0, height)):] {
		p.line(p.entry(x))
	}
}

// entry is the text of a line of the log.
func (p *painter) entry(x *entry) string {
	e := &x.event
	b := p.time(e.BootNanos) + "  "
	switch {
	case x.note != "":
		return b + x.note
	case e.Type == event.OOMKill:
		v := &e.Victim
		// What matters most first: the end may not fit.
		return b + full.Styled(fmt.Sprintf("OOM kill of %s, which held %s: %s ran out, %s asked for more",
			v.Comm.Of(v.PID), p.amount(int64(v.HeldPages())), p.names.RanOut(e), e.Comm.Of(e.PID)))
	}
	limit := "limit"
	if x.maxPages > 0 {
		limit += " of " + p.kindAmount(e.Kind, x.maxPages)
	}
	b += fmt.Sprintf("%s: %v %s reached by %s", p.names.Printable(x.limit), e.Kind, limit, e.Comm.Of(e.PID))
	if x.failures > 0 {
		b += fmt.Sprintf(", %s failed", count(x.failures, "charge"))
	}
	return b
}

// amount writes a number of pages.
func (p *painter) amount(pages int64) string {
	return string(p.units.AppendPages(nil, pages, p.header.PageSize))
}

// kindAmount writes what a counter of a kind counts, which may be bytes.
func (p *painter) kindAmount(kind event.Kind, n uint64) string {
	if kind == event.Dmem {
		return string(text.AppendHuman(nil, int64(n)))
	}
	return p.amount(int64(n))
}

// rate writes a number of pages a second, with its sign; NaN is not known yet.
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

// time writes a time since the trace began.
func (p *painter) time(bootNanos uint64) string {
	return fmt.Sprintf("%.3f s", float64(bootNanos-min(bootNanos, p.header.StartBootNanos))/float64(time.Second))
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

// shortDuration writes a time in few characters.
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
