package summary

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"chargetrace/internal/cause"
	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/text"
	"chargetrace/internal/verdict"
	"chargetrace/internal/world"
)

// maxLines is the maximum number of lines in a table.
const maxLines = 10

// Print writes the summary as text. It writes nothing for an empty trace.
func (s *Summary) Print(w io.Writer) error {
	p := printer{s: s}
	p.cgroups()
	p.balances()
	p.processes()
	p.causes()
	p.limits()
	p.ooms()
	p.coverage()
	_, err := io.WriteString(w, p.b.String())
	return err
}

type printer struct {
	s *Summary
	b strings.Builder
}

// moment writes the time of an event; 0 is none.
func (p *printer) moment(bootNanos uint64) string {
	if bootNanos == 0 {
		return "-"
	}
	return p.s.Format.Moment(bootNanos)
}

// amount writes a column with an amount of a kind of counter, in the units of the table.
func (p *printer) amount(kind event.Kind, n int64) string {
	return p.s.Format.Column(n, kind == event.Dmem)
}

// pages writes a column with a number of pages.
func (p *printer) pages(n uint64) string { return p.amount(event.Memory, int64(n)) }

func (p *printer) cgroups() {
	cgroups := p.s.sortedCgroups()
	labels := p.s.Labels()
	totals(p, []string{"CGROUP"}, cgroups, func(id event.CgroupID) ([]string, *Totals) {
		return []string{labels[id]}, p.s.Cgroups[id]
	})
}

// Labels returns the labels of the cgroups. Equal ones have their number and the time of their
// charges: leaky.service #2 (690.0 ms to 700.0 ms).
func (s *Summary) Labels() map[event.CgroupID]string {
	labels := make(map[event.CgroupID]string)
	for id, t := range s.Cgroups {
		labels[id] = s.Names.Label(id)
		if n := s.Numbers[id]; n > 0 {
			labels[id] += fmt.Sprintf(" #%d (%s to %s)", n, s.Format.Moment(t.FirstNanos), s.Format.Moment(t.LastNanos))
		}
	}
	return labels
}

// numbers returns the numbers of cgroups with equal labels, in the order of their first charges.
func (s *Summary) numbers() map[event.CgroupID]int {
	same := make(map[string][]event.CgroupID)
	for id := range s.Cgroups {
		label := s.Names.Label(id)
		same[label] = append(same[label], id)
	}
	numbers := make(map[event.CgroupID]int)
	for _, ids := range same {
		if len(ids) == 1 {
			continue
		}
		slices.SortFunc(ids, func(a, b event.CgroupID) int {
			return cmp.Or(cmp.Compare(s.Cgroups[a].FirstNanos, s.Cgroups[b].FirstNanos), cmp.Compare(a.Hierarchy, b.Hierarchy), cmp.Compare(a.ID, b.ID))
		})
		for i, id := range ids {
			numbers[id] = i + 1
		}
	}
	return numbers
}

// balances prints the balances of counters with own events or with readings.
func (p *printer) balances() {
	if p.s.Balances == nil {
		return
	}
	balances := p.s.Balances.Sorted(&p.s.Names)
	if len(balances) == 0 {
		return
	}
	labels := p.s.Labels()
	rows := [][]string{{"CGROUP, AND BELOW", "CHARGED", "FORCED", "GIVEN BACK", "NET", "AT BEGIN", "AT END", "DIFFERENCE"}}
	for _, b := range balances[:min(len(balances), maxLines)] {
		id, kind := b.Counter.Cgroup, b.Counter.Kind
		name := cmp.Or(labels[id], p.s.Names.Label(id))
		if kind != event.Memory {
			name += " [" + kind.String() + "]"
		}
		row := []string{name, p.amount(kind, int64(b.ChargedPages)), p.amount(kind, int64(b.ForcedPages)),
			p.amount(kind, int64(b.UnchargedPages)), p.amount(kind, b.Pages())}
		if difference, ok := b.Difference(); ok {
			begin, end, _ := b.Readings()
			row = append(row, p.amount(kind, begin), p.amount(kind, end), p.amount(kind, difference))
		} else {
			row = append(row, "-", "-", "-")
		}
		rows = append(rows, row)
	}
	p.table(rows)
	if n := len(balances) - maxLines; n > 0 {
		fmt.Fprintf(&p.b, "and %d more\n", n)
	}
	for _, note := range p.s.BalanceNotes(balances) {
		p.b.WriteString(note + "\n")
	}
}

func (p *printer) processes() {
	totals(p, []string{"PID", "COMM"}, p.s.sortedProcesses(), func(proc *Process) ([]string, *Totals) {
		return []string{fmt.Sprint(proc.PID), proc.Comm.String()}, &proc.Totals
	})
}

// causes prints the charges by cause, the largest callers of slabs, and the most frequent
// stacks of [cause.Other], which show where the rules have gaps.
func (p *printer) causes() {
	totals(p, []string{"CAUSE"}, p.s.sortedCauses(), func(c cause.Cause) ([]string, *Totals) {
		return []string{c.String()}, p.s.Causes[c]
	})
	callers := slices.SortedFunc(maps.Keys(p.s.SlabCallers), func(a, b string) int {
		return cmp.Or(cmp.Compare(p.s.SlabCallers[b], p.s.SlabCallers[a]), cmp.Compare(a, b))
	})
	for _, caller := range callers[:min(len(callers), 3)] {
		fmt.Fprintf(&p.b, "  slab, %s: %s\n", p.s.Format.Size(int64(p.s.SlabCallers[caller])), cmp.Or(caller, "unknown caller"))
	}
	stacks := slices.SortedFunc(maps.Keys(p.s.OtherStacks), func(a, b *cause.Stack) int {
		return cmp.Or(cmp.Compare(p.s.OtherStacks[b], p.s.OtherStacks[a]), cmp.Compare(a.Functions(), b.Functions()))
	})
	for _, stack := range stacks[:min(len(stacks), 3)] {
		fmt.Fprintf(&p.b, "  other, %s: %s\n", p.s.Format.Size(int64(p.s.OtherStacks[stack])), strings.ReplaceAll(stack.Functions(), ";", " < "))
	}
}

// totals prints a table with the Totals of items.
func totals[T any](p *printer, head []string, items []T, line func(T) ([]string, *Totals)) {
	if len(items) == 0 {
		return
	}
	charged := "CHARGED"
	if p.s.Format.InPages() {
		charged = "PAGES"
	}
	rows := [][]string{append(head, "CHARGES", charged, "FAILED", "MISSES", "FIRST HIT", "RECLAIM", "FREED")}
	for _, item := range items[:min(len(items), maxLines)] {
		names, t := line(item)
		rows = append(rows, append(names, fmt.Sprint(t.Charges), p.pages(t.ChargedPages), fmt.Sprint(t.Failures), fmt.Sprint(t.BatchMisses),
			p.moment(t.FirstAtLimitNanos), text.Duration(int64(t.ReclaimNanos)), p.pages(t.FreedPages)))
	}
	p.table(rows)
	if n := len(items) - maxLines; n > 0 {
		fmt.Fprintf(&p.b, "and %d more\n", n)
	}
}

// maxName is the width of a column of names. A longer name has a line of its own.
const maxName = 100

// table prints rows of columns, the head first.
func (p *printer) table(rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row[1:] {
			widths[i+1] = max(widths[i+1], utf8.RuneCountInString(cell))
		}
	}
	most := maxName
	if p.s.Columns > 0 {
		const least = 20
		most = p.s.Columns
		for _, width := range widths[1:] {
			most -= len("  ") + width
		}
		most = max(least, min(most, maxName))
	}
	if p.s.Columns > 0 {
		names := make([]string, len(rows))
		for i, row := range rows {
			names[i] = row[0]
		}
		for i, name := range container.FitAll(names, most) {
			rows[i][0] = name
		}
	}
	for _, row := range rows {
		if n := utf8.RuneCountInString(row[0]); n <= most {
			widths[0] = max(widths[0], n)
		}
	}
	p.b.WriteByte('\n')
	for _, row := range rows {
		if utf8.RuneCountInString(row[0]) > most {
			p.b.WriteString(row[0] + "\n")
			row[0] = ""
		}
		last := len(row) - 1
		for i, cell := range row[:last] {
			fmt.Fprintf(&p.b, "%-*s  ", widths[i], cell)
		}
		p.b.WriteString(row[last] + "\n")
	}
}

func (p *printer) limits() {
	limits := p.s.SortedLimits()
	if len(limits) > 0 {
		fmt.Fprintf(&p.b, "\nlimits hit:\n")
	}
	for _, l := range limits[:min(len(limits), maxLines)] {
		fmt.Fprintf(&p.b, "  %s\n", strings.Join(p.s.LimitStory(l), "\n    "))
	}
	if n := len(limits) - maxLines; n > 0 {
		fmt.Fprintf(&p.b, "  and %d more\n", n)
	}
}

func (p *printer) ooms() {
	ooms := p.s.OOMs
	switch {
	case len(ooms) > 0:
		fmt.Fprintf(&p.b, "\nout of memory%s:\n", p.s.AtLeast())
	case p.s.Lost:
		p.b.WriteString("\nout of memory: perhaps, events were lost\n")
	}
	if n := len(ooms) - maxLines; n > 0 {
		fmt.Fprintf(&p.b, "  %d before these\n", n)
		ooms = ooms[n:]
	}
	for _, o := range ooms {
		fmt.Fprintf(&p.b, "  %s\n", strings.Join(p.s.Story(o), "\n    "))
	}
}

func (p *printer) coverage() {
	for i, note := range verdict.Uncertain(&p.s.Counts) {
		if i == 0 {
			p.b.WriteString("\ncoverage:\n")
		}
		p.b.WriteString("  " + note + "\n")
	}
}

// BalanceNotes explains a table of balances: its columns, missing events, and
// differences.
func (s *Summary) BalanceNotes(balances []*world.Balance) (notes []string) {
	var read, differ int
	grown := false
	for _, b := range balances {
		if _, ok := b.Difference(); ok {
			read++
		}
		if b.Differs() {
			differ++
		}
		grown = grown || b.Pages() > 0
	}
	if read > 0 {
		notes = append(notes, "At begin and at end is what memory.current was; the difference is by how much more it rose than net, which is charged + forced - given back.")
	}
	if n := s.Counts.Unseen(); n > 0 {
		notes = append(notes, fmt.Sprintf("This may not be whole: %d calls or events were lost or missed.", n))
	}
	if differ > 0 {
		notes = append(notes, fmt.Sprintf("The difference is not 0 in %d of the %d that were read: calls were under way while memory.current was read, or were missed, which before Linux 6.7 the kernel does not always count.", differ, read))
	}
	if grown {
		notes = append(notes, "Of what a cgroup holds, each CPU can have a batch in stock, charged but not in use: 64 pages, before Linux 6.1 32.")
	}
	return notes
}
