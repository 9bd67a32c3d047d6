package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/trace"
)

// recordNet makes a recording with the balances of /job/app, which is charged and
// uncharged, and of /job, which has uncharged a page unseen.
func recordNet(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "net.ctrace")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const start, ms, unlimited = 1_000_000_000, 1_000_000, 1 << 60
	w, err := trace.NewWriter(f, stream.Info{PageSize: 4096, StartBootNanos: start, Net: true})
	if err != nil {
		t.Fatal(err)
	}
	root, job, app := event.CgroupID{ID: 1}, event.CgroupID{ID: 2}, event.CgroupID{ID: 3}
	of := func(at uint64, typ event.Type, pid uint32, pages uint64, usage int64) event.Event {
		e := event.Event{
			Type: typ, BootNanos: start + at*ms, PID: pid, TID: pid, Cgroup: app, Kind: event.Memory, Counter: 9,
			RequestedPages: pages, UsagePages: usage,
		}
		copy(e.Comm[:], map[uint32]string{7: "web", 8: "kworker/0:1"}[pid])
		return e
	}
	charge := of(1, event.Charge, 7, 64, 4)
	charge.Outcome, charge.MaxPages = event.OK, unlimited
	charge.Limiting, charge.High = event.Level{CgroupID: 2, UsagePages: 10, MaxPages: 100}, event.Level{MaxPages: unlimited}
	failed := of(4, event.Charge, 7, 512, 40)
	failed.Outcome, failed.MaxPages, failed.FailedAt = event.Failed, unlimited, 2
	failed.Limiting, failed.High = event.Level{CgroupID: 2, UsagePages: 46, MaxPages: 100}, charge.High
	swapped := of(5, event.Uncharge, 8, 5, 9)
	swapped.Kind = event.Swap
	reading := func(at uint64, id event.CgroupID, pages int64, flags event.Flags) event.Event {
		return event.Event{Type: event.Usage, BootNanos: start + at*ms, Cgroup: id, UsagePages: pages, Flags: flags}
	}
	err = w.Write([]event.Event{
		{Type: event.CgroupName, Cgroup: app, ParentID: 2, Name: "app"},
		{Type: event.CgroupName, Cgroup: job, ParentID: 1, Name: "job"},
		{Type: event.CgroupName, Cgroup: root},
		reading(0, app, 4, event.Existing), reading(0, job, 10, event.Existing),
		charge, of(2, event.Uncharge, 8, 30, 68), of(3, event.ForcedCharge, 7, 2, 38), failed, swapped,
		reading(6, app, 40, 0), reading(6, job, 45, 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(stream.Counts{Seen: 2}); err != nil {
		t.Fatal(err)
	}
	return path
}

// runOK runs the command, which must succeed.
func runOK(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, talk strings.Builder
	if status := run(args, nil, &out, &talk); status != 0 {
		t.Fatalf("%q: status %d: %s", args, status, &talk)
	}
	return out.String(), talk.String()
}

const (
	netRows = `
CGROUP, AND BELOW  CHARGED  FORCED  GIVEN BACK  NET  AT BEGIN  AT END  DIFFERENCE
/job               64       2       30          36   10        45      -1
/job/app           64       2       30          36   4         40      0
/job/app [swap]    0        0       5           -5   -         -       -
At begin and at end is what memory.current was; the difference is by how much more it rose than net, which is charged + forced - given back.
The difference is not 0 in 1 of the 2 that were read: calls were under way while memory.current was read, or were missed, which before Linux 6.7 the kernel does not always count.
Of what a cgroup holds, each CPU can have a batch in stock, charged but not in use: 64 pages, before Linux 6.1 32.
`
	noBalance = "chargetrace: no net growth is shown: filters by process, thread or charge leave no balance\n"
)

func TestNetRecording(t *testing.T) {
	path := recordNet(t)
	table, stderr := runOK(t, "-r", path)
	if want := "TIME     PID    COMM             REQUESTED  CURRENT    LIMIT     \n" +
		"1        7      web              64         4          max       \n" +
		"4        7      web              512        40         max       \n"; table != want {
		t.Errorf("got\n%s\nwant\n%s", table, want)
	}
	if !strings.Contains(stderr, netRows) || strings.Contains(stderr, noBalance) {
		t.Errorf("got\n%s\nwant\n%s", stderr, netRows)
	}
	csv, _ := runOK(t, "-r", path, "-o", "-", "-format", "csv")
	for _, want := range []string{
		"usage,0,1970-01-01T00:00:01.000000000Z,,,,,/job,2,0,,,,pages,,10,,,,,,,,,,existing,,,,,,,,,,,,,,,,/job,,,,,\r\n",
		"usage,6000000,1970-01-01T00:00:01.006000000Z,,,,,/job,2,0,,,,pages,,45,,,,,,,,,,,,,,,,,,,,,,,,,,/job,,,,,\r\n",
		"uncharge,2000000,1970-01-01T00:00:01.002000000Z,0,8,8,kworker/0:1,/job/app,3,0,,memory,,pages,30,68,,,,,,,,,,,,,,,,,,,,,,,,,,/job/app,,,,,\r\n",
		"forced_charge,3000000,1970-01-01T00:00:01.003000000Z,0,7,7,web,/job/app,3,0,,memory,,pages,2,38,,,,,,,,,,,,,,,,,,,,,,,,,,/job/app,,,,,\r\n",
	} {
		if !strings.Contains(csv, "\r\n"+want) {
			t.Errorf("no %q in\n%s", want, csv)
		}
	}
	html, _ := runOK(t, "-r", path, "-o", "-", "-format", "html")
	_, html, _ = strings.Cut(html, "Charged and given back, by cgroup and those below it")
	row := regexp.MustCompile(`<tr><td>/job</td><td>memory</td>.*</tr>`).FindString(html)
	cells := regexp.MustCompile(`title="([^"]*)"`).FindAllStringSubmatch(row, -1)
	var exact []string
	for _, c := range cells {
		exact = append(exact, c[1])
	}
	if got, want := strings.Join(exact, ", "), "64 pages, 2 pages, 30 pages, 36 pages, 10 pages, 45 pages, −1 page"; got != want {
		t.Errorf("the report has %q, want %q: %s", got, want, row)
	}
	// Its last usage is the reading at the end; the events before it add up to one page more.
	watch, _ := runOK(t, "-r", path, "-watch", "-units", "pages")
	want := "--- 4.0 ms  /job: memory limit of 100 pages hit once, 1 charge failed, first by web (7)\n" +
		"TIME       CHARGES   FAILED    USAGE     USED    LIMIT     ROOM   FILL/S  TO LIM  CGROUP\n" +
		"0 s              2        1       40       45      100       55        -       -  /job/app, limited by /job\n"
	if watch != want {
		t.Errorf("got\n%s\nwant\n%s", watch, want)
	}
}

// TestNetRecordingPart plays parts that have no balance. Neither the summary nor a
// recording of the part may contain one.
func TestNetRecordingPart(t *testing.T) {
	path := recordNet(t)
	for _, part := range [][]string{{"-limited"}, {"-min-pages", "2"}, {"-pid", "7"}, {"-comm", "web"}} {
		again := filepath.Join(t.TempDir(), "again.ctrace")
		page, stderr := runOK(t, append([]string{"-r", path, "-o", again, "-o", "-", "-format", "html"}, part...)...)
		if strings.Contains(stderr, "CGROUP, AND BELOW") || !strings.HasPrefix(stderr, noBalance) || strings.Contains(page, "Given back") {
			t.Errorf("%q: there is a balance: %s", part, stderr)
		}
		if _, stderr := runOK(t, "-r", again); strings.Contains(stderr, "CGROUP, AND BELOW") || strings.Contains(stderr, noBalance) {
			t.Errorf("%q, once more: there is a balance: %s", part, stderr)
		}
	}
	// The first part of a trace has a net growth, but no reading at the end.
	_, stderr := runOK(t, "-r", path, "-n", "1")
	const want = `
CGROUP, AND BELOW  CHARGED  FORCED  GIVEN BACK  NET  AT BEGIN  AT END  DIFFERENCE
/job/app           64       0       0           64   -         -       -
Of what`
	if !strings.Contains(stderr, want) {
		t.Errorf("got\n%s\nwant\n%s", stderr, want)
	}
	// A single cgroup has the same balance as in the whole trace.
	_, stderr = runOK(t, "-r", path, "-cgroup", "/job/app", "-counter", "memory")
	if want := "/job/app           64       2       30          36   4         40      0\nAt begin"; !strings.Contains(stderr, want) {
		t.Errorf("got\n%s\nwant\n%s", stderr, want)
	}
}
