//go:build linux

package guest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestAllocationToOOM is the article's experiment: a process in a cgroup of 10 MiB
// allocates until it is killed. With kprobes and with fentry, the rows must equal those of
// the bpftrace script, and the number of failures that of the kernel.
func TestAllocationToOOM(t *testing.T) {
	if !Enter(t, Exact.On(All...)) {
		return
	}
	script := startBpftrace(t)
	g := newCgroup(t)
	g.write(t, "memory.max", "10M")
	alloc := startWorkload(t, g, "touch 20")
	tr := chargetrace(t, "-pid", alloc.pid())
	all := trace(t, "-pid", alloc.pid())
	fentry := trace(t, "-pid", alloc.pid(), "-attach", "fentry")
	hitBefore := g.number(t, "memory.events", "max")
	alloc.begin(t)
	alloc.waitKilled(t)

	rows, others := tr.table(t) // the tracer ends with the process
	checkRows(t, rows, alloc)
	killed := fmt.Sprintf("--- OOM in %s: workload (%s) allocating; killed workload (%[2]s), rss ", g.path(), alloc.pid())
	if len(others) != 1 || !strings.HasPrefix(others[0], killed) {
		t.Errorf("beside the rows there are %q, want %q", others, killed)
	}
	if n := g.number(t, "memory.events", "oom_kill"); n != 1 {
		t.Errorf("oom_kill is %d", n)
	}

	all.checkVerdict(t, g, g, "memory", 10<<20)

	var failed int64
	charges := all.charges(t)
	for i, e := range charges {
		r := rows[min(i, len(rows)-1)]
		if e.RequestedPages != r.requested || e.UsagePages != r.current {
			t.Errorf("row %d is %v, as an event %v", i, r, e)
		}
		if e.Outcome == "failed" {
			failed++
			if e.FailedAt != g.path() || e.Limiting.RoomPages >= e.RequestedPages {
				t.Errorf("a failure not at the limit: %v", e)
			}
		}
	}
	if len(charges) != len(rows) {
		t.Errorf("%d rows, but %d events", len(rows), len(charges))
	}
	sameEvents(t, fentry.charges(t), charges)
	if want := g.number(t, "memory.events", "max") - hitBefore; failed != want {
		t.Errorf("%d charges failed, but memory.events counts %d", failed, want)
	}

	scripts := scriptRows(t, script, int64(alloc.Process.Pid))
	scripts = scripts[max(0, len(scripts)-len(rows)):] // the script also saw the start of the process
	same := func(a, b tableRow) bool { return a.asScript() == b.asScript() }
	if !slices.EqualFunc(rows, scripts, same) {
		t.Errorf("the rows and the script's differ:\n%v\n%v", rows, scripts)
	}
}

// TestSameRows checks that the experiment has the same rows in two machines.
func TestSameRows(t *testing.T) {
	t.Parallel()
	var rows [2]string
	for i := range rows {
		var out bytes.Buffer
		status, err := Exact.start(t.Context(), One[0], &out, "-test.v", "-test.run", "^TestAllocationToOOM$")
		if err != nil || status != 0 {
			t.Fatalf("exit status %d, %v\n%s", status, err, &out)
		}
		rows[i] = rowsOf(out.String())
	}
	if rows[0] != rows[1] || strings.Count(rows[0], "\n") < 40 {
		t.Errorf("first\n%s\nthen\n%s", rows[0], rows[1])
	}
}

// checkRows checks the rows of a process in a cgroup of 10 MiB, and their marks.
func checkRows(t *testing.T, rows []tableRow, p *process) {
	t.Helper()
	limit := 10 << 20 / pageSize
	if int64(len(rows)) < limit/64 {
		t.Fatalf("%d rows cannot charge %d pages", len(rows), limit)
	}
	reached := 0
	for i, r := range rows {
		if r.pid != int64(p.Process.Pid) || r.comm != "workload" || r.limit != limit || r.time < 0 || i > 0 && r.time < rows[i-1].time {
			t.Errorf("row %d: %+v", i, r)
		}
		want := ""
		switch at := r.current >= r.limit; {
		case at && i > 0 && rows[i-1].current < rows[i-1].limit:
			want = "* LIMIT REACHED"
			reached++
		case at:
			want = "*"
		}
		if r.mark != want {
			t.Errorf("row %d, %+v: want the mark %q", i, r, want)
		}
	}
	if reached == 0 {
		t.Error("the limit was never reached")
	}
}
