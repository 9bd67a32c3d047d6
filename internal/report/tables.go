package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"chargetrace/internal/event"
	"chargetrace/internal/summary"
	"chargetrace/internal/verdict"
)

// table is a table that the script sorts.
type table struct {
	ID, Title, Note string
	Columns         []column
	Rows            [][]cell
}

// column is a column's head. Number columns are aligned to the right.
type column struct {
	Name   string
	Number bool
}

// cell is an entry of a table.
type cell struct {
	Text  string
	Sort  string // the sort key; empty: Text
	Exact string // the tooltip
	Class string
}

// maxRows is the number of rows of a table.
const maxRows = 200

// textCell returns a cell whose class allows a line break if the text is long.
func textCell(s string) cell {
	if len(s) > 28 {
		return cell{Text: s, Class: "long"}
	}
	return cell{Text: s}
}

// none is the cell of an unknown number.
var none = cell{Text: "–", Sort: "-1"}

func countCell(n uint64) cell { return cell{Text: count(n), Sort: fmt.Sprint(n)} }
func durationCell(n uint64) cell {
	return cell{Text: duration(n), Sort: fmt.Sprint(n), Exact: count(n) + " ns"}
}

func (c *collector) sizeCell(n int64, kind event.Kind) cell {
	unit := "page"
	if kind == event.Dmem {
		unit = "byte"
	}
	exact := counted(uint64(max(n, -n)), unit)
	if n < 0 {
		exact = "−" + exact
	}
	return cell{Text: c.size(n, kind), Sort: fmt.Sprint(n), Exact: exact}
}

func (c *collector) timeCell(nanos uint64) cell {
	if nanos == 0 {
		return cell{Text: "–", Sort: "Infinity"}
	}
	return cell{Text: c.since(nanos), Sort: fmt.Sprint(int64(nanos - c.sum.Info.StartBootNanos)), Exact: c.clock(nanos).Format("2006-01-02 15:04:05.000000 UTC")}
}

// limited cuts a table after maxRows rows, with a note.
func (t table) limited() table {
	if n := len(t.Rows); n > maxRows {
		t.Rows = t.Rows[:maxRows]
		t.Note = strings.TrimSpace(fmt.Sprintf("The first %d of %s rows. ", maxRows, count(uint64(n))) + t.Note)
	}
	return t
}

func (r *Report) killTable() table {
	t := table{ID: "kills", Title: "OOM kills", Columns: []column{
		{"Time", true}, {"Ran out", false}, {"By", false}, {"Killed", false}, {"Rss", true}, {"Anon", true}, {"File", true}, {"Shmem", true}, {"Swap", true},
	}}
	for i := range r.sum.Kills {
		k := r.sum.Kills[i]
		v := &k.Victim
		row := []cell{r.timeCell(k.BootNanos), textCell(r.sum.Name(k.Cgroup)), textCell(k.Comm.Of(k.PID)), textCell(v.Comm.Of(v.PID))}
		for _, pages := range []uint64{v.HeldPages(), v.AnonPages, v.FilePages, v.ShmemPages, v.SwapPages} {
			row = append(row, r.sizeCell(int64(pages), event.Memory))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func (r *Report) limitTable() table {
	t := table{ID: "limits", Title: "Limits that were hit", Columns: []column{
		{"Cgroup", false}, {"Kind", false}, {"Limit", true}, {"Hits", true}, {"Failed charges", true}, {"Slept", true}, {"First", true}, {"By", false},
	}}
	for _, l := range r.sum.SortedLimits() {
		kind := l.Kind.String()
		if l.High {
			kind = l.LimitID.String()
		}
		limit := textCell("–")
		if l.MaxPages != verdict.UnknownLimit {
			limit = r.sizeCell(int64(l.MaxPages), l.Kind)
		}
		t.Rows = append(t.Rows, []cell{
			textCell(r.name(l.Cgroup)), textCell(kind), limit,
			countCell(l.Hits), countCell(l.Failures), durationCell(l.SleepNanos), r.timeCell(l.FirstNanos), textCell(l.ByComm.Of(l.ByPID)),
		})
	}
	return t
}

var totalsColumns = []column{{"Charges", true}, {"Charged", true}, {"Failed", true}, {"Misses", true}, {"First hit", true}, {"Reclaim", true}, {"Freed", true}}

func (c *collector) totals(t *summary.Totals) []cell {
	return []cell{
		countCell(t.Charges), c.sizeCell(int64(t.ChargedPages), event.Memory), countCell(t.Failures), countCell(t.BatchMisses),
		c.timeCell(t.FirstAtLimitNanos), durationCell(t.ReclaimNanos), c.sizeCell(int64(t.FreedPages), event.Memory),
	}
}

// worst compares by failures, then by charged pages, the greatest first.
func worst(a, b *summary.Totals) int {
	return cmp.Or(cmp.Compare(b.Failures, a.Failures), cmp.Compare(b.ChargedPages, a.ChargedPages), cmp.Compare(b.Charges, a.Charges))
}

func (r *Report) processTable() table {
	t := table{ID: "processes", Title: "By process", Columns: append([]column{{"PID", true}, {"Name", false}}, totalsColumns...)}
	for _, p := range slices.SortedFunc(maps.Values(r.sum.Processes), func(a, b *summary.Process) int {
		return cmp.Or(worst(&a.Totals, &b.Totals), cmp.Compare(a.PID, b.PID))
	}) {
		pid := cell{Text: fmt.Sprint(p.PID), Sort: fmt.Sprint(p.PID)}
		t.Rows = append(t.Rows, append([]cell{pid, textCell(p.Comm.String())}, r.totals(&p.Totals)...))
	}
	if r.sum.Others.Charges > 0 {
		t.Rows = append(t.Rows, append([]cell{textCell("–"), textCell("all others")}, r.totals(&r.sum.Others)...))
	}
	return t
}

func (r *Report) cgroupTable() table {
	t := table{ID: "cgroups", Title: "By cgroup", Columns: append([]column{{"Cgroup", false}}, totalsColumns...)}
	for _, id := range slices.SortedFunc(maps.Keys(r.sum.Cgroups), func(a, b event.CgroupID) int {
		return cmp.Or(worst(r.sum.Cgroups[a], r.sum.Cgroups[b]), cmp.Compare(a.Hierarchy, b.Hierarchy), cmp.Compare(a.ID, b.ID))
	}) {
		label := textCell(r.name(id))
		if path := r.sum.Names.Printable(id); path != r.sum.Names.Label(id) {
			label.Exact = shorten(path)
		}
		t.Rows = append(t.Rows, append([]cell{label}, r.totals(r.sum.Cgroups[id])...))
	}
	return t
}

// netTable returns the balances of the summary's text.
func (r *Report) netTable() table {
	t := table{ID: "net", Title: "Charged and given back, by cgroup and those below it", Columns: []column{
		{"Cgroup", false}, {"Kind", false}, {"Charged", true}, {"Forced", true}, {"Given back", true}, {"Net", true},
		{"At begin", true}, {"At end", true}, {"Difference", true},
	}}
	if r.sum.Balances == nil {
		return t
	}
	nets := r.sum.Balances.Sorted(&r.sum.Names)
	for _, n := range nets {
		kind := n.Counter.Kind
		row := []cell{
			textCell(r.name(n.Counter.Cgroup)), textCell(kind.String()), r.sizeCell(int64(n.ChargedPages), kind),
			r.sizeCell(int64(n.ForcedPages), kind), r.sizeCell(int64(n.UnchargedPages), kind), r.sizeCell(n.Pages(), kind),
		}
		if difference, ok := n.Difference(); ok {
			begin, end, _ := n.Readings()
			row = append(row, r.sizeCell(begin, kind), r.sizeCell(end, kind), r.sizeCell(difference, kind))
		} else {
			row = append(row, none, none, none)
		}
		t.Rows = append(t.Rows, row)
	}
	t.Note = strings.Join(r.sum.BalanceNotes(nets), " ")
	return t
}

// kindTable has no rows if all charges are of one kind.
func (r *Report) kindTable() table {
	t := table{ID: "kinds", Title: "By kind of counter", Columns: append([]column{{"Kind", false}}, totalsColumns[:5]...)}
	for kind := range r.sum.Kinds {
		if k := &r.sum.Kinds[kind]; k.Charges > 0 {
			t.Rows = append(t.Rows, append([]cell{textCell(event.Kind(kind).String())}, r.totals(k)[:5]...))
		}
	}
	if len(t.Rows) == 1 {
		t.Rows = nil
	}
	return t
}
