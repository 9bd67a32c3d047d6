//go:build guest

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNet fills and frees two cgroups, one of which is made and removed meanwhile,
// in one that has nothing of its own. What that one is charged, less what it gives
// back, must be what its memory.current rises by.
func TestNet(t *testing.T) {
	for name, args := range map[string][]string{"default": nil, "fentry": {"-attach", "fentry"}} {
		t.Run(name, func(t *testing.T) {
			checkNet(t, func() controlGroup {
				top := newCgroup(t)
				top.write(t, "cgroup.subtree_control", "+memory")
				return top
			}, "memory.current", args, func(g controlGroup, work string) *process { return startWorkload(t, g, 0, work) })
		})
	}
}

func TestNetV1(t *testing.T) {
	mount := mountV1(t)
	checkNet(t, func() controlGroup {
		name, err := os.MkdirTemp(mount, "t")
		if err != nil {
			t.Fatal(err)
		}
		top := controlGroup(name)
		top.removeAfter(t)
		if exists(filepath.Join(name, "memory.use_hierarchy")) {
			top.write(t, "memory.use_hierarchy", "1")
		}
		return top
	}, "memory.usage_in_bytes", nil, func(g controlGroup, work string) *process {
		p := startWorkload(t, controlGroup(cgroupRoot), 0, work)
		g.write(t, "cgroup.procs", p.pid())
		return p
	})
}

// checkNet fills and frees cgroups below one that is made for that. Where the kernel
// says that it missed a call, as it does one of an interrupt on top of another
// (__bpf_prog_enter), and there is no balance, it does so again.
func checkNet(t *testing.T, makeTop func() controlGroup, usageFile string, args []string, start func(g controlGroup, work string) *process) {
	for range 3 {
		if fillAndFree(t, makeTop(), usageFile, args, start) {
			return
		}
	}
	t.Error("calls were missed three times")
}

// fillAndFree returns false where calls were missed, and are in no balance.
func fillAndFree(t *testing.T, top controlGroup, usageFile string, args []string, start func(g controlGroup, work string) *process) bool {
	mount := filepath.Dir(string(top))
	path := strings.TrimPrefix(string(top), mount)
	dir := t.TempDir()
	empties := filepath.Join(dir, "empty")
	if err := os.Mkdir(empties, 0o700); err != nil {
		t.Fatal(err)
	}
	run := func(g controlGroup, work string) {
		t.Helper()
		p := start(g, work)
		p.begin(t)
		p.wait(t)
	}
	kept := top.child(t, "kept")
	groups := []controlGroup{top, kept}
	usages := func() (pages []int64) {
		t.Helper()
		for _, g := range groups {
			pages = append(pages, g.number(t, usageFile, "")/pageSize)
		}
		return pages
	}
	p := start(kept, "release 8")
	record, live := filepath.Join(dir, "x.ctrace"), filepath.Join(dir, "x.jsonl")
	tr := chargetrace(t, append(args, "-net", "-cgroup", string(top), "-o", record, "-o", live)...)
	begin, from := settled(usages)

	p.begin(t)
	if line, err := p.stdout.ReadString('\n'); line != "touched\n" {
		t.Fatalf("%q, %v: %s", line, err, &p.stderr)
	}
	run(kept, "file "+filepath.Join(dir, "stays")+" 3")
	run(kept, "file "+filepath.Join(dir, "goes")+" 4")
	p.begin(t) // to give back
	removed := top.child(t, "removed")
	run(removed, "file "+filepath.Join(dir, "outlives")+" 2")
	run(removed, "files "+empties+" 3000")
	removed.remove(t)
	p.wait(t)
	killed := top.child(t, "killed")
	groups, begin = append(groups, killed), append(begin, 0)
	if v2 := filepath.Join(string(killed), "memory.max"); exists(v2) {
		killed.write(t, "memory.max", "4M")
	} else {
		killed.write(t, "memory.limit_in_bytes", "4M")
	}
	victim := start(killed, "touch 8")
	victim.begin(t)
	victim.waitKilled(t)
	for _, name := range []string{empties, filepath.Join(dir, "goes")} {
		if err := os.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
	}
	if usageFile == "memory.current" {
		flood(t, top.child(t, "flooded"))
	}
	end, to := settled(usages)
	tr.stop(t)
	if err := tr.Cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, tr.stderr)
	}

	content, err := os.ReadFile(live)
	if err != nil {
		t.Fatal(err)
	}
	events := netEvents(t, string(content))
	for _, e := range events {
		if e.Kind != "" && e.Cgroup != path && !strings.HasPrefix(e.Cgroup, path+"/") {
			t.Errorf("of another cgroup: %v", e)
		}
	}
	for i, g := range groups {
		path := strings.TrimPrefix(string(g), mount)
		sums := netOf(events, path, from, to)
		rise := end[i] - begin[i]
		t.Logf("%s %s: %v, %s from %d by %d", args, path, sums, usageFile, begin[i], rise)
		if sums.net() != rise && strings.Contains(tr.stderr.String(), "the kernel missed ") {
			return false
		}
		if sums.net() != rise {
			t.Errorf("%s: %v: net %d, but %s rose by %d\n%s", path, sums, sums.net(), usageFile, rise, tr.stderr)
		}
		if g != top {
			continue
		}
		if usageFile == "memory.current" && sums["forced_charge"] < 16 {
			t.Errorf("%v: the flood forced nothing", sums)
		}
		if sums["charge"] < (8+3+4+2+4)<<20/pageSize || sums["uncharge"] < (8+4)<<20/pageSize {
			t.Errorf("%v: the workload did more", sums)
		}
	}
	// The summary adds up what is between its own readings.
	for _, g := range groups {
		path := strings.TrimPrefix(string(g), mount)
		beginRead, endRead := readingsOf(t, events, path)
		sums := netOf(events, path, beginRead.at, endRead.at)
		want := []int64{sums["charge"], sums["forced_charge"], sums["uncharge"], sums.net(), beginRead.pages, endRead.pages, 0}
		if got := netRow(t, tr, path); !slices.Equal(got, want) {
			t.Errorf("the summary's row of %s is %d, want %d: %s", path, got, want, tr.stderr)
		}
	}
	if tr.counted(t).lost != 0 {
		t.Errorf("lost: %s", tr.stderr)
	}

	// Played it is the same.
	played, stderr := chargetraceOutput(t, "-r", record, "-o", "-", "-format", "jsonl")
	if played != string(content) {
		t.Errorf("live\n%s\nplayed\n%s", content, played)
	}
	_, liveSummary, _ := strings.Cut(tr.stderr.String(), "\n\n")
	if _, got, _ := strings.Cut(stderr, "\n\n"); got != liveSummary {
		t.Errorf("live summary\n%s\nplayed\n%s", liveSummary, got)
	}
	page, _ := chargetraceOutput(t, "-r", record, "-o", "-", "-format", "html")
	if want := map[bool]string{true: "kprobe and fentry", false: "fentry"}[args == nil]; !strings.Contains(page, "<dt>Attached with</dt><dd>"+want+"</dd>") {
		t.Errorf("the report does not say %s", want)
	}
	// A part of it is as it is in the whole.
	keptRow := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(strings.TrimPrefix(string(kept), mount)) + `( +-?\d+){7}$`)
	_, stderr = chargetraceOutput(t, "-r", record, "-cgroup", path+"/kept")
	if got, want := keptRow.FindString(stderr), keptRow.FindString(tr.stderr.String()); got == "" || strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("played in part %q, live %q", got, want)
	}
	return true
}

// flood has packets come for sockets of a cgroup that is at its limit: interrupts
// charge them all the same.
func flood(t *testing.T, g controlGroup) {
	t.Helper()
	loopbackUp(t)
	const sockets = 16
	listener := startWorkload(t, g, 0, fmt.Sprintf("listen %d", sockets))
	g.leaveRoom(t, 0)
	sender := startWorkload(t, controlGroup(cgroupRoot), 0, fmt.Sprintf("send %d", sockets))
	sender.begin(t)
	sender.wait(t)
	g.write(t, "memory.max", "max") // or it would be killed for what it does now
	listener.begin(t)
	listener.wait(t)
}

// settled returns numbers once they stay the same, and when that was: what is freed by
// RCU is counted by then, which is waited for.
func settled(numbers func() []int64) ([]int64, time.Time) {
	const membarrierGlobal = 1 // include/uapi/linux/membarrier.h
	var at time.Time
	for last, same := numbers(), 0; ; {
		unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
		now := numbers()
		switch same++; {
		case !slices.Equal(now, last):
			last, same = now, 0
		case same == 5:
			at = time.Now()
		case same == 10:
			return now, at
		}
	}
}

// pagesByType are sums of pages, by the types of events in a .jsonl.
type pagesByType map[string]int64

func (p pagesByType) net() int64 { return p["charge"] + p["forced_charge"] - p["uncharge"] }

// netEvent is a line of a .jsonl, as far as it concerns a balance.
type netEvent struct {
	Type, Kind, Outcome, Cgroup string
	WallTime                    time.Time `json:"wall_time"`
	Pages                       int64
	RequestedPages              int64 `json:"requested_pages"`
	UsagePages                  int64 `json:"usage_pages"`
	Existing                    bool
}

func netEvents(t *testing.T, jsonl string) (events []netEvent) {
	t.Helper()
	for line := range strings.Lines(jsonl) {
		var e netEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		events = append(events, e)
	}
	return events
}

// netOf adds up the pages that memory of a cgroup or one below it was charged or gave
// back in a time.
func netOf(events []netEvent, path string, from, to time.Time) pagesByType {
	sums := make(pagesByType)
	for _, e := range events {
		if e.Kind != "memory" || e.Outcome != "" && e.Outcome != "ok" || !e.WallTime.After(from) || e.WallTime.After(to) {
			continue
		}
		if e.Cgroup == path || strings.HasPrefix(e.Cgroup, path+"/") {
			sums[e.Type] += e.Pages + e.RequestedPages
		}
	}
	return sums
}

// netReading is what the tracer read of a cgroup's usage.
type netReading struct {
	at    time.Time
	pages int64
}

func readingsOf(t *testing.T, events []netEvent, path string) (begin, end netReading) {
	t.Helper()
	for _, e := range events {
		if e.Type != "usage" || e.Cgroup != path {
			continue
		}
		if e.Existing {
			begin = netReading{e.WallTime, e.UsagePages}
		} else {
			end = netReading{e.WallTime, e.UsagePages}
		}
	}
	if begin.at.IsZero() || end.at.IsZero() {
		t.Errorf("%s was read as %v at the beginning and %v at the end", path, begin, end)
	}
	return begin, end
}

// netRow returns the row of a cgroup in the summary's balance: what it was charged,
// what it was forced to, what it gave back, net, at begin, at end, and the difference.
func netRow(t *testing.T, tr *tracer, path string) (row []int64) {
	t.Helper()
	match := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(path) + ` +(\d+) +(\d+) +(\d+) +(-?\d+) +(\d+) +(\d+) +(-?\d+)$`).FindStringSubmatch(tr.stderr.String())
	if match == nil {
		t.Fatalf("no row of %s: %s", path, tr.stderr)
	}
	for _, s := range match[1:] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		row = append(row, n)
	}
	return row
}

// TestNetKprobe has kprobes see what asks for no limit, of which the kernel may miss
// some: then the balance must say so.
func TestNetKprobe(t *testing.T) {
	g := newCgroup(t)
	p := startWorkload(t, g, 0, "release 8")
	record := filepath.Join(t.TempDir(), "x.ctrace")
	tr := chargetrace(t, "-net", "-cgroup", g.path(), "-attach", "kprobe", "-o", record)
	p.begin(t)
	if line, err := p.stdout.ReadString('\n'); line != "touched\n" {
		t.Fatalf("%q, %v: %s", line, err, &p.stderr)
	}
	p.begin(t)
	p.wait(t)
	usage := func() []int64 { return []int64{g.number(t, "memory.current", "") / pageSize} }
	end, _ := settled(usage)
	tr.stop(t)
	if err := tr.Cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, tr.stderr)
	}
	late := !slices.Equal(usage(), end)
	row := netRow(t, tr, g.path())
	charged, forced, uncharged, net, atBegin, atEnd, difference := row[0], row[1], row[2], row[3], row[4], row[5], row[6]
	if charged < 8<<20/pageSize || uncharged < 8<<20/pageSize || net != charged+forced-uncharged || !late && atEnd != end[0] || atBegin+net+difference != atEnd {
		t.Errorf("the row is %d, and memory.current is %d", row, end)
	}
	if told := strings.Contains(tr.stderr.String(), "The difference is not 0 in 1 of the 1 that were read: "); told != (difference != 0) {
		t.Errorf("it says that there is a difference: %t, and the row is %d", told, row)
	}
	page, _ := chargetraceOutput(t, "-r", record, "-o", "-", "-format", "html")
	if !strings.Contains(page, "<dt>Attached with</dt><dd>kprobe</dd>") {
		t.Error("the report does not say how it was attached")
	}
}

// TestNetDeep holds that a cgroup counts what one is charged that is deeper below it
// than a charge looks.
func TestNetDeep(t *testing.T) {
	top := newCgroup(t)
	g := top
	for range 40 {
		g.write(t, "cgroup.subtree_control", "+memory")
		g = g.child(t, "d")
	}
	p := startWorkload(t, g, 0, "churn 100")
	tr := chargetrace(t, "-net", "-cgroup", top.path(), "-o", filepath.Join(t.TempDir(), "x.jsonl"))
	p.begin(t)
	p.wait(t)
	tr.stop(t)
	if err := tr.Cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, tr.stderr)
	}
	rows := regexp.MustCompile(`(?m)^`+top.path()+`(?:/d)* +([1-9]\d*) `).FindAllStringSubmatch(tr.stderr.String(), -1)
	// As many as are printed, that of the top among them.
	if len(rows) != 10 || !slices.ContainsFunc(rows, func(row []string) bool { return strings.HasPrefix(row[0], top.path()+" ") }) {
		t.Fatalf("the rows are %q: %s", rows, tr.stderr)
	}
	for _, row := range rows {
		// What is given back may be so between two readings of the end.
		if row[1] != rows[0][1] {
			t.Errorf("%q, but another has charged %s", row[0], rows[0][1])
		}
	}
}

// TestNetTracer has a tracer trace the cgroup that it is in: what it is charged
// itself, here for the file that it writes, is part of that.
func TestNetTracer(t *testing.T) {
	g := newCgroup(t)
	p := startWorkload(t, g, 0, "churn 100")
	tr := chargetrace(t, "-net", "-cgroup", g.path(), "-o", filepath.Join(t.TempDir(), "x.jsonl"))
	g.write(t, "cgroup.procs", strconv.Itoa(tr.Process.Pid))
	p.begin(t)
	p.wait(t)
	tr.stop(t)
	if err := tr.Cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, tr.stderr)
	}
	for _, want := range []string{`(?m)^` + g.path() + `( +[1-9]\d*)( +\d+){2} +-?\d+( +[1-9]\d*){2} +-?\d+$`, `(?m)^\d+ +chargetrace +[1-9]`} {
		if !regexp.MustCompile(want).MatchString(tr.stderr.String()) {
			t.Errorf("no %s in %s", want, tr.stderr)
		}
	}
}

// TestNetLost stops a tracer with the smallest buffer while a process charges and
// gives back: its balance must say that it may not be whole.
func TestNetLost(t *testing.T) {
	g := newCgroup(t)
	p := startWorkload(t, g, 0, "churn 10")
	tr := chargetrace(t, "-net", "-cgroup", g.path(), "-buffer", "1")
	if err := tr.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	p.begin(t)
	p.wait(t)
	if err := tr.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	tr.stop(t)
	if err := tr.Cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, tr.stderr)
	}
	others := regexp.MustCompile(`warning: ([1-9]\d*) events that are no charges were lost as well`).FindStringSubmatch(tr.stderr.String())
	if others == nil {
		t.Fatalf("nothing else was lost: %s", tr.stderr)
	}
	n, _ := strconv.ParseUint(others[1], 10, 64)
	if missed := regexp.MustCompile(`the kernel missed (\d+) calls`).FindStringSubmatch(tr.stderr.String()); missed != nil {
		calls, _ := strconv.ParseUint(missed[1], 10, 64)
		n += calls
	}
	if m := regexp.MustCompile(`This may not be whole: (\d+) calls or events were lost or missed\.`).FindStringSubmatch(tr.stderr.String()); m == nil || m[1] != fmt.Sprint(n+tr.counted(t).lost) {
		t.Errorf("it does not say that it may not be whole: %s", tr.stderr)
	}
}
