package watch

import (
	"fmt"
	"slices"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/text"
)

// screen is the terminal.
type screen struct {
	width, height int
	ascii         bool // it shows ASCII only
	shortens      bool // names of cgroups have to fit
}

// painter writes a view line by line.
type painter struct {
	*state
	*keys
	screen
	lines []string
}

// The colors are the terminal's palette. The text says all that they do.
var (
	faint  = ansi.NewStyle().Faint()
	bold   = ansi.NewStyle().Bold()
	marked = ansi.NewStyle().Reverse(true)
	calm   = ansi.NewStyle().ForegroundColor(ansi.Green)
	near   = ansi.NewStyle().ForegroundColor(ansi.Yellow)
	full   = ansi.NewStyle().ForegroundColor(ansi.Red)
)

// view returns the content of the screen, as many lines as it is high.
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

func (p *painter) title(rows []*row) {
	t := &p.totals
	parts := []string{
		bold.Styled("chargetrace"), p.position(),
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

// body divides the height between the cgroups, the graph and the processes of the
// selected one, and the log.
func (p *painter) body(rows []*row) {
	if len(rows) == 0 {
		why := "nothing is charged yet"
		if p.filter != "" {
			why = "no cgroup matches; esc drops the filter"
		}
		p.line("")
		p.line("  " + why)
		p.logLines(p.height - 4)
		return
	}
	selected := 0
	if !p.entered {
		selected = max(0, slices.IndexFunc(rows, func(r *row) bool { return r.id == p.selected }))
	}
	// The graph gets what the others leave, up to 12 lines.
	titles := 7
	if p.Info.KernelStacks {
		titles++
	}
	if p.Balances != nil {
		titles++
	}
	free := max(4, p.height-titles)
	r := rows[selected]
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

// short shortens a name of a cgroup. One that is too long for the screen is cut in the middle.
func short(name string, width int) string {
	return string(text.AppendShort(nil, container.Fit(name, width), width))
}

// rule is a title across the screen.
func (p *painter) rule(title string) string {
	line := "─"
	if p.ascii {
		line = "-"
	}
	title = short(title, max(8, p.width-6))
	return faint.Styled(strings.Repeat(line, 2)) + " " + bold.Styled(title) + " " +
		faint.Styled(strings.Repeat(line, max(0, p.width-4-ansi.StringWidth(title))))
}

// logLines writes the last lines of the log.
func (p *painter) logLines(height int) {
	p.line(p.rule("limits hit and kills"))
	for _, x := range p.log[max(0, len(p.log)-max(0, height)):] {
		p.line(p.entry(x))
	}
}

// entry returns a line of the log.
func (p *painter) entry(x *entry) string {
	v := *p.Verdict
	v.Format.Units = p.units
	if p.shortens {
		v.NameWidth = max(20, p.width/3)
	}
	b := p.time(x.bootNanos) + "  "
	switch {
	case x.kill != nil:
		return b + full.Styled(v.TellKill(x.kill))
	case x.idle != nil:
		return b + full.Styled(v.TellIdle(x.idle))
	case x.limit != nil:
		return b + v.TellHits(x.limit) + ", first by " + x.limit.ByComm.Of(x.limit.ByPID)
	}
	return b + x.note
}
