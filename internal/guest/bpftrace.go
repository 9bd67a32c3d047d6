//go:build linux

package guest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// tableRow is a row of the table, or of the bpftrace script with the same format.
type tableRow struct {
	time, pid                 int64
	comm                      string
	requested, current, limit int64
	mark                      string // the text after the columns
}

// noLimit is the script's number for no limit: PAGE_COUNTER_MAX.
var noLimit = int64(1<<63-1) / pageSize

// asScript clears the fields that differ from the script's.
func (r tableRow) asScript() tableRow {
	r.time, r.mark = 0, ""
	return r
}

// String returns the fields that are the same in all runs of a test on one CPU.
func (r tableRow) String() string {
	return fmt.Sprintf("%s %d %d %d %s", r.comm, r.requested, r.current, r.limit, r.mark)
}

const tableHeader = "TIME     PID    COMM             REQUESTED  CURRENT    LIMIT     "

// parseTable returns the rows of a table, and the other lines. Names must have no spaces.
func parseTable(t testing.TB, text string) (rows []tableRow, others []string) {
	t.Helper()
	_, table, ok := strings.Cut(text, tableHeader+"\n") // warnings of bpftrace come before
	if !ok {
		t.Fatalf("no header: %q", text)
	}
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 6 {
			others = append(others, strings.TrimSpace(line))
			continue
		}
		var r tableRow
		var err error
		for i, n := range map[int]*int64{0: &r.time, 1: &r.pid, 3: &r.requested, 4: &r.current, 5: &r.limit} {
			if f[i] == "max" {
				*n = noLimit
			} else if *n, err = strconv.ParseInt(f[i], 10, 64); err != nil {
				break
			}
		}
		if err != nil {
			others = append(others, strings.TrimSpace(line))
			continue
		}
		r.comm, r.mark = f[2], strings.Join(f[6:], " ")
		rows = append(rows, r)
	}
	return rows, others
}

// table waits for the end of a tracer, and returns the rows of its table and the other
// lines. The tracer must have lost and missed nothing.
func (tr *tracer) table(t testing.TB) (rows []tableRow, others []string) {
	t.Helper()
	tr.checkComplete(t)
	rows, others = parseTable(t, tr.output(t))
	if c := tr.counted(t); c.shown != uint64(len(rows)) {
		t.Errorf("%d rows, but %+v", len(rows), c)
	}
	logRows(t, rows)
	return rows, others
}

// startBpftrace starts the bpftrace script and waits until it traces.
func startBpftrace(t testing.TB) *tracer {
	t.Helper()
	tr := startTracer(t, "", "/usr/bin/bpftrace", "-B", "line", "/try-charge-counter.bt")
	// It prints the header before it attaches, so wait until it prints a charge.
	g := newCgroup(t)
	for deadline := time.Now().Add(waitTimeout); ; {
		p := startWorkload(t, g, "touch 1")
		p.run(t)
		if strings.Contains(tr.output(t), " "+p.pid()+" ") {
			return tr
		}
		if time.Now().After(deadline) {
			t.Fatalf("bpftrace does not trace: %s%s", tr.output(t), tr.stderr)
		}
	}
}

// scriptRows waits until the script has printed all rows of a process that has exited, and
// returns them.
func scriptRows(t testing.TB, script *tracer, pid int64) (rows []tableRow) {
	t.Helper()
	// The script prints them before those of a later process.
	later := startWorkload(t, newCgroup(t), "touch 1")
	later.run(t)
	row := " " + later.pid() + " "
	waitForWrite(t, script.stdout.Name(), func() bool { return strings.Contains(script.output(t), row) })
	text := script.output(t)
	all, _ := parseTable(t, text[:strings.LastIndexByte(text, '\n')+1]) // the last line may be incomplete
	for _, r := range all {
		if r.pid == pid {
			rows = append(rows, r)
		}
	}
	return rows
}

// sysctl writes to a file of /proc/sys.
func sysctl(t testing.TB, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}
