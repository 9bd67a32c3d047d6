package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/summary"
	"chargetrace/internal/text"
)

// Side is one of the two traces of a [Comparison].
type Side struct {
	Name    string // such as its file name
	Summary *summary.Summary
}

// Comparison holds the changes from one trace to another.
type Comparison struct {
	before, after Side
	total         change
	sections      []section
}

// section is a list of changes, the largest first.
type section struct {
	title, column string
	changes       []change
}

// change has the figures of a name in both traces; nil: the trace does not have it.
type change struct {
	name          string
	before, after *figures
}

// figures are [summary.Totals] in bytes: the page sizes of two machines may differ.
type figures struct {
	charges, chargedBytes, failures, misses, reclaimNanos uint64
	// firstNanos is the time of the first limit hit since the start of the trace, or
	// never.
	firstNanos int64
}

const never = -1

// add returns the sum of f, which may be nil, and a side's totals.
func (f *figures) add(s *Side, t *summary.Totals) *figures {
	if f == nil {
		f = &figures{firstNanos: never}
	}
	f.charges += t.Charges
	f.chargedBytes += t.ChargedPages * uint64(s.Summary.Info.PageSize)
	f.failures += t.Failures
	f.misses += t.BatchMisses
	f.reclaimNanos += t.ReclaimNanos
	if t.FirstAtLimitNanos != 0 {
		first := int64(t.FirstAtLimitNanos - s.Summary.Info.StartBootNanos)
		if f.firstNanos == never || first < f.firstNanos {
			f.firstNanos = first
		}
	}
	return f
}

// Compare matches two traces by cgroup, process name and kind of counter: these are the same in
// two runs, IDs are not.
func Compare(before, after Side) *Comparison {
	c := &Comparison{before: before, after: after}
	c.total = change{"all", (*figures)(nil).add(&before, &before.Summary.Total), (*figures)(nil).add(&after, &after.Summary.Total)}
	c.sections = []section{
		c.section("By cgroup", "CGROUP", func(s *Side, add func(string, *summary.Totals)) {
			for id, t := range s.Summary.Cgroups {
				add(labelWithoutID(&s.Summary.Names, id), t)
			}
		}),
		c.section("By process", "COMM", func(s *Side, add func(string, *summary.Totals)) {
			for _, p := range s.Summary.Processes {
				add(p.Comm.String(), &p.Totals)
			}
			if s.Summary.Others.Charges > 0 {
				add("(others)", &s.Summary.Others)
			}
		}),
		c.section("By kind of counter", "KIND", func(s *Side, add func(string, *summary.Totals)) {
			for kind := range s.Summary.Kinds {
				if t := &s.Summary.Kinds[kind]; t.Charges > 0 {
					add(event.Kind(kind).String(), t)
				}
			}
		}),
	}
	return c
}

// labelWithoutID returns the label of a cgroup, which for a container with a name has no id.
func labelWithoutID(names *cgroup.Names, id event.CgroupID) string {
	i, label := names.Identity(id), names.Label(id)
	if i.Name == "" || i.ID == "" {
		return label
	}
	return strings.Replace(label, container.Separator+i.ShortID(), "", 1)
}

func (c *Comparison) section(title, column string, each func(*Side, func(string, *summary.Totals))) section {
	changes := make(map[string]*change)
	at := func(name string) *change {
		if changes[name] == nil {
			changes[name] = &change{name: name}
		}
		return changes[name]
	}
	each(&c.before, func(name string, t *summary.Totals) { x := at(name); x.before = x.before.add(&c.before, t) })
	each(&c.after, func(name string, t *summary.Totals) { x := at(name); x.after = x.after.add(&c.after, t) })
	s := section{title: title, column: column}
	for _, x := range slices.SortedFunc(maps.Values(changes), func(a, b *change) int {
		less := func(of func(*figures) uint64) int { return cmp.Compare(distance(b, of), distance(a, of)) }
		return cmp.Or(
			less(func(f *figures) uint64 { return f.failures }), less(func(f *figures) uint64 { return f.chargedBytes }),
			less(func(f *figures) uint64 { return f.charges }), strings.Compare(a.name, b.name))
	}) {
		s.changes = append(s.changes, *x)
	}
	return s
}

// distance returns the absolute difference of a number.
func distance(x *change, of func(*figures) uint64) uint64 {
	a, b := x.number(of)
	return max(a, b) - min(a, b)
}

func (x *change) number(of func(*figures) uint64) (before, after uint64) {
	if x.before != nil {
		before = of(x.before)
	}
	if x.after != nil {
		after = of(x.after)
	}
	return before, after
}

// measures are the columns of a comparison.
var measures = []struct {
	head, name string
	of         func(*figures) uint64
	text       func(*figures) string
	badIfMore  bool
}{
	{"CHARGES", "Charges", func(f *figures) uint64 { return f.charges }, func(f *figures) string { return count(f.charges) }, false},
	{"CHARGED", "Charged", func(f *figures) uint64 { return f.chargedBytes }, func(f *figures) string { return size(float64(f.chargedBytes)) }, false},
	{"FAILED", "Failed", func(f *figures) uint64 { return f.failures }, func(f *figures) string { return count(f.failures) }, true},
	{"MISSES", "Misses", func(f *figures) uint64 { return f.misses }, func(f *figures) string { return count(f.misses) }, false},
	{"RECLAIM", "Reclaim", func(f *figures) uint64 { return f.reclaimNanos }, func(f *figures) string { return duration(f.reclaimNanos) }, true},
	{"FIRST HIT", "First hit", func(f *figures) uint64 { return uint64(f.firstNanos) }, func(f *figures) string {
		if f.firstNanos == never {
			return "never"
		}
		return text.Duration(f.firstNanos)
	}, false},
}

// text writes a cell: 44 -> 278, or 44 if both are equal.
func (x *change) text(of func(*figures) string, none, arrow string) string {
	show := func(f *figures) string {
		if f == nil {
			return none
		}
		return of(f)
	}
	before, after := show(x.before), show(x.after)
	if before == after {
		return after
	}
	return before + arrow + after
}

// maxLines is the number of lines of each list of a text.
const maxLines = 10

// Text writes the comparison as tables of text.
func (c *Comparison) Text(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "before: %s\nafter:  %s\n", shown(c.before.Name), shown(c.after.Name))
	for _, warning := range c.warnings() {
		fmt.Fprintf(&b, "incomplete: %s\n", warning)
	}
	for _, s := range append([]section{{column: "IN ALL", changes: []change{c.total}}}, c.sections...) {
		if len(s.changes) == 0 {
			continue
		}
		tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		fmt.Fprintf(tw, "\n%s", s.column)
		for _, m := range measures {
			fmt.Fprintf(tw, "\t%s", m.head)
		}
		fmt.Fprintln(tw)
		for _, x := range s.changes[:min(len(s.changes), maxLines)] {
			fmt.Fprint(tw, x.name)
			for _, m := range measures {
				fmt.Fprintf(tw, "\t%s", x.text(m.text, "-", " -> "))
			}
			fmt.Fprintln(tw)
		}
		tw.Flush()
		if n := len(s.changes) - maxLines; n > 0 {
			fmt.Fprintf(&b, "and %d more\n", n)
		}
	}
	fmt.Fprintf(&b, "\nOOM kills: %s\n", c.kills())
	_, err := io.WriteString(w, b.String())
	return err
}

// kills writes the numbers of OOM kills, at least those if events were lost.
func (c *Comparison) kills() string {
	number := func(s *Side) string {
		n := count(uint64(len(s.Summary.Kills)))
		if s.Summary.Lost {
			return "at least " + n
		}
		return n
	}
	return tellChange(number(&c.before), number(&c.after))
}

// warnings say what is missing in which of the traces.
func (c *Comparison) warnings() (all []string) {
	for _, s := range []*Side{&c.before, &c.after} {
		for _, warning := range warnings(s.Summary) {
			all = append(all, shown(s.Name)+": "+warning)
		}
	}
	return all
}

// HTML writes the comparison as a page.
func (c *Comparison) HTML(w io.Writer) error {
	before, after := shown(c.before.Name), shown(c.after.Name)
	failures := tellChange(count(c.total.before.failures), count(c.total.after.failures))
	p := page{
		Title: before + " and " + after + " – chargetrace", Headline: "Failed charges: " + failures, Dateline: "before: " + before + " · after: " + after,
		Story: []string{fmt.Sprintf("Failed charges: %s. OOM kills: %s. Memory charged: %s.", failures,
			c.kills(),
			tellChange(size(float64(c.total.before.chargedBytes)), size(float64(c.total.after.chargedBytes))))},
	}
	for _, m := range measures[:len(measures)-1] {
		p.Figures = append(p.Figures, figure{c.total.text(m.text, "–", " → "), strings.ToLower(m.name), ""})
	}
	for i := range c.sections {
		p.addTables(c.sections[i].table())
	}
	p.Warnings = c.warnings()
	for _, s := range []*Side{&c.before, &c.after} {
		r := Report{collector: collector{sum: s.Summary}}
		p.Facts = append(p.Facts, fact{"Recording", shown(s.Name)})
		p.Facts = append(p.Facts, r.facts()...)
	}
	return p.write(w)
}

func (s *section) table() table {
	name := strings.TrimPrefix(s.title, "By ")
	t := table{ID: strings.ToLower(s.column), Title: s.title, Columns: []column{{strings.ToUpper(name[:1]) + name[1:], false}}}
	for _, m := range measures {
		t.Columns = append(t.Columns, column{m.name, true})
	}
	for _, x := range s.changes {
		row := []cell{textCell(shorten(x.name))}
		for _, m := range measures {
			a, b := x.number(m.of)
			c := cell{Text: x.text(m.text, "–", " → "), Sort: fmt.Sprint(int64(b - a))}
			if m.badIfMore && a < b {
				c.Class = "worse"
			} else if m.badIfMore && a > b {
				c.Class = "better"
			}
			row = append(row, c)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// tellChange writes a number and, if it changed, the one before.
func tellChange(before, after string) string {
	if before == after {
		return after + ", as before"
	}
	return after + ", before " + before
}
