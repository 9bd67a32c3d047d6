package summary

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"chargetrace/internal/cause"
	"chargetrace/internal/event"
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
	p.oomKills()
	p.coverage()
	_, err := io.WriteString(w, p.b.String())
	return err
}

type printer struct {
	s *Summary
	b strings.Builder
}

// since formats a time as in the table's column TIME.
func (p *printer) since(bootNanos uint64) string {
	if bootNanos == 0 {
		return "-"
	}
	return fmt.Sprintf("%d ms", int64(bootNanos-p.s.Info.StartBootNanos)/int64(time.Millisecond))
}

func (p *printer) cgroups() {
	ids := slices.SortedFunc(maps.Keys(p.s.Cgroups), func(a, b event.CgroupID) int {
		return cmp.Or(byCharged(p.s.Cgroups[a], p.s.Cgroups[b]), cmp.Compare(a.Hierarchy, b.Hierarchy), cmp.Compare(a.ID, b.ID))
	})
	totals(p, "CGROUP\tCONTAINER", ids, func(id event.CgroupID) (string, *Totals) {
		container := p.s.Names.Container(id).String()
		return p.s.Names.Printable(id) + "\t" + cmp.Or(container, "-"), p.s.Cgroups[id]
	})
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
	w := tabwriter.NewWriter(&p.b, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "\nCGROUP, AND BELOW\tCHARGED\tFORCED\tGIVEN BACK\tNET\tAT BEGIN\tAT END\tDIFFERENCE\n")
	for _, b := range balances[:min(len(balances), maxLines)] {
		name, unit := p.s.Names.Printable(b.Counter.Cgroup), ""
		if b.Counter.Kind != event.Memory {
			name += " [" + b.Counter.Kind.String() + "]"
		}
		if b.Counter.Kind == event.Dmem {
			unit = "B"
		}
		fmt.Fprintf(w, "%s\t%d%s\t%d%s\t%d%s\t%d%s", name, b.ChargedPages, unit, b.ForcedPages, unit, b.UnchargedPages, unit, b.Pages(), unit)
		if difference, ok := b.Difference(); ok {
			begin, end, _ := b.Readings()
			fmt.Fprintf(w, "\t%d\t%d\t%d\n", begin, end, difference)
		} else {
			fmt.Fprint(w, "\t-\t-\t-\n")
		}
	}
	w.Flush()
	if n := len(balances) - maxLines; n > 0 {
		fmt.Fprintf(&p.b, "and %d more\n", n)
	}
	for _, note := range p.s.BalanceNotes(balances) {
		p.b.WriteString(note + "\n")
	}
}

func (p *printer) processes() {
	processes := slices.SortedFunc(maps.Values(p.s.Processes), func(a, b *Process) int {
		return cmp.Or(byCharged(&a.Totals, &b.Totals), cmp.Compare(a.PID, b.PID))
	})
	totals(p, "PID\tCOMM", processes, func(proc *Process) (string, *Totals) {
		return fmt.Sprintf("%d\t%v", proc.PID, proc.Comm), &proc.Totals
	})
}

// causes prints the charges by cause, and the most frequent stacks of [cause.Other],
// which show where the rules have gaps.
func (p *printer) causes() {
	causes := slices.SortedFunc(maps.Keys(p.s.Causes), func(a, b cause.Cause) int {
		return cmp.Or(byCharged(p.s.Causes[a], p.s.Causes[b]), cmp.Compare(a, b))
	})
	totals(p, "CAUSE", causes, func(c cause.Cause) (string, *Totals) { return c.String(), p.s.Causes[c] })
	stacks := slices.SortedFunc(maps.Keys(p.s.OtherStacks), func(a, b *cause.Stack) int {
		return cmp.Or(cmp.Compare(p.s.OtherStacks[b], p.s.OtherStacks[a]), cmp.Compare(a.Functions(), b.Functions()))
	})
	for _, stack := range stacks[:min(len(stacks), 3)] {
		fmt.Fprintf(&p.b, "  other, %d pages: %s\n", p.s.OtherStacks[stack], strings.ReplaceAll(stack.Functions(), ";", " < "))
	}
}

// byCharged compares by charged pages, the most first.
func byCharged(a, b *Totals) int {
	return cmp.Or(cmp.Compare(b.ChargedPages, a.ChargedPages), cmp.Compare(b.Charges, a.Charges))
}

// totals prints a table with the Totals of items.
func totals[T any](p *printer, head string, items []T, line func(T) (string, *Totals)) {
	if len(items) == 0 {
		return
	}
	w := tabwriter.NewWriter(&p.b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\n%s\tCHARGES\tPAGES\tFAILED\tMISSES\tFIRST HIT\tRECLAIM\tFREED\n", head)
	for _, item := range items[:min(len(items), maxLines)] {
		name, t := line(item)
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%s\t%v\t%d\n", name, t.Charges, t.ChargedPages, t.Failures, t.BatchMisses,
			p.since(t.FirstAtLimitNanos), time.Duration(t.ReclaimNanos).Round(time.Microsecond), t.FreedPages)
	}
	w.Flush()
	if n := len(items) - maxLines; n > 0 {
		fmt.Fprintf(&p.b, "and %d more\n", n)
	}
}

func (p *printer) limits() {
	limits := slices.SortedFunc(maps.Values(p.s.Limits), func(a, b *Limit) int {
		return cmp.Or(cmp.Compare(b.Failures, a.Failures), cmp.Compare(b.Hits, a.Hits), cmp.Compare(a.FirstNanos, b.FirstNanos))
	})
	if len(limits) > 0 {
		fmt.Fprintf(&p.b, "\nlimits hit:\n")
	}
	for _, l := range limits[:min(len(limits), maxLines)] {
		size := ""
		switch {
		case l.MaxPages == UnknownLimit:
		case l.Kind == event.Dmem:
			size = fmt.Sprintf(" of %d bytes", l.MaxPages)
		default:
			size = fmt.Sprintf(" of %d pages", l.MaxPages)
		}
		what := fmt.Sprintf("hit %d times, %d charges failed", l.Hits, l.Failures)
		if l.High {
			what = fmt.Sprintf("exceeded, %d charges throttled", l.Hits)
		}
		fmt.Fprintf(&p.b, "  %s: %v%s %s; first at %s by %s\n",
			p.s.Names.Printable(l.Cgroup), l.LimitID, size, what, p.since(l.FirstNanos), l.ByComm.Of(l.ByPID))
	}
	if n := len(limits) - maxLines; n > 0 {
		fmt.Fprintf(&p.b, "  and %d more\n", n)
	}
}

func (p *printer) oomKills() {
	kills := p.s.OOMKills
	if len(kills) > 0 {
		fmt.Fprintf(&p.b, "\nOOM kills:\n")
	}
	if n := len(kills) - maxLines; n > 0 {
		fmt.Fprintf(&p.b, "  %d before these\n", n)
		kills = kills[n:]
	}
	for i := range kills {
		e := &kills[i]
		v := &e.Victim
		fmt.Fprintf(&p.b, "  at %s %s ran out of memory: %s asked for more, %s was killed; it held %d pages (anonymous %d, file %d, shared %d) and %d in swap\n",
			p.since(e.BootNanos), p.s.Names.RanOut(e), e.Comm.Of(e.PID), v.Comm.Of(v.PID),
			v.HeldPages(), v.AnonPages, v.FilePages, v.ShmemPages, v.SwapPages)
	}
}

func (p *printer) coverage() {
	c := &p.s.Counts
	var lines []string
	for _, l := range []struct {
		n    uint64
		what string
	}{
		{c.Predicted, "charges: return not seen, outcome predicted at entry"},
		{c.WalksCut, "charges have more ancestors than were looked at"},
		{c.UnknownKinds, "charges were to counters of an unknown kind"},
	} {
		if l.n > 0 {
			lines = append(lines, fmt.Sprintf("  %d %s\n", l.n, l.what))
		}
	}
	if len(lines) > 0 {
		fmt.Fprintf(&p.b, "\ncoverage:\n%s", strings.Join(lines, ""))
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
