package watch

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// print prints a line. It stops the trace if there is no reader. It needs w.mu.
func (w *Watch) print(line string) {
	if w.err != nil {
		return
	}
	if _, err := io.WriteString(w.out, line+"\n"); err != nil {
		w.err = err
		go w.o.Stop()
	}
}

// printLine prints the line of a tick, on the cgroup closest to its limit.
func (w *Watch) printLine() {
	const format = "%-8s %9s %8s %8s %8s %8s %8s %8s %7s  %s"
	p := w.painter()
	if !w.headed {
		w.headed = true
		w.print(fmt.Sprintf(format, "TIME", "CHARGES", "FAILED", "USAGE", "USED", "LIMIT", "ROOM", "FILL/S", "TO LIM", w.afterFor("FOR", "CGROUP")))
	}
	t := w.state.totals
	cells := []any{fmt.Sprintf("%d s", (w.state.lastTick-w.state.start+5e8)/1e9),
		fmt.Sprint(t.Charges), fmt.Sprint(t.Failures)}
	rows := w.state.rows(&w.keys)
	if len(rows) == 0 {
		w.print(strings.TrimRight(fmt.Sprintf(format, append(cells, "-", "-", "-", "-", "-", "-", "-")...), " "))
		return
	}
	r := rows[0]
	cgroup := r.name
	limit := []any{"-", "max", "-"}
	if r.limitedBy != "" {
		limit = []any{p.amount(r.limitingPages), p.amount(int64(r.maxPages)), p.amount(r.roomPages())}
		switch {
		case r.high && r.ownLimit:
			cgroup += ", limited by its memory.high"
		case r.high:
			cgroup += ", limited by memory.high of " + r.limitedBy
		case !r.ownLimit:
			cgroup += ", limited by " + r.limitedBy
		}
	}
	if n := len(rows) - 1; n > 0 {
		cgroup += fmt.Sprintf(", of %d cgroups", n+1)
	}
	most := "-"
	if shares := r.group.shares(); len(shares) > 0 {
		most = shares[0].String()
	}
	cells = slices.Concat(cells, []any{p.amount(r.usagePages)}, limit, []any{p.rate(r.fillRate), r.timeToLimit(), w.afterFor(most, cgroup)})
	w.print(fmt.Sprintf(format, cells...))
}

// afterFor returns the last field of a line, after the one of the largest cause if the
// trace has stacks.
func (w *Watch) afterFor(most, last string) string {
	if !w.state.Info.KernelStacks {
		return last
	}
	return fmt.Sprintf("%-17s  %s", most, last)
}
