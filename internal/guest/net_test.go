//go:build linux

package guest

import (
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

// hierarchy are the differences between cgroup v1 and v2.
type hierarchy struct {
	newTop       func(t testing.TB) cgroup
	usage, limit string // files
	start        func(t testing.TB, g cgroup, work string) *process
}

var (
	hierarchyV2 = hierarchy{newTop, "memory.current", "memory.max", startWorkload}
	hierarchyV1 = hierarchy{newCgroupV1, "memory.usage_in_bytes", "memory.limit_in_bytes", startWorkloadV1}
)

// TestNet fills and frees cgroups below an empty one, and makes and removes some during
// the trace. The net growth of each must be the rise of its memory.current.
func TestNet(t *testing.T) {
	if !Enter(t, Exact.On(All...)) {
		return
	}
	fillAndFree(t, hierarchyV2, "auto")
}

// TestNetKprobe uses kprobes for the -net hooks too. The kernel skips them in an interrupt
// on top of another kprobe.
func TestNetKprobe(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	fillAndFree(t, hierarchyV2, "kprobe")
}

func TestNetV1(t *testing.T) {
	if !Enter(t, Exact.On(V1...)) {
		return
	}
	mountV1(t)
	fillAndFree(t, hierarchyV1, "auto")
}

// netTracer is a tracer with -net that has ended.
type netTracer struct {
	*tracer
	attach, record string
	all            []event
	counted        counted
	before, after  []int64 // usages in pages before and after its end
}

// duringTrace returns those events of another tracer that are not later than the last usage
// that this one read.
func (tr *netTracer) duringTrace(other []event) (during []event) {
	var end time.Time
	for _, e := range tr.all {
		if e.Type == "usage" && !e.Existing {
			end = e.WallTime
		}
	}
	for _, e := range other {
		if !e.WallTime.After(end) {
			during = append(during, e)
		}
	}
	return during
}

// fillAndFree compares two tracers of the same charges, one of them with fentry. They miss
// different calls: in an interrupt on top of a tracer's program, the kernel skips that
// program, but not the other tracer's.
func fillAndFree(t *testing.T, h hierarchy, attach string) {
	clearLog(t)
	top := h.newTop(t)
	kept := top.child(t, "kept")
	p := h.start(t, kept, "release 8")
	waitForFrees(t)
	begin := h.usages(t, top, kept)
	var tracers []*netTracer
	for _, attach := range []string{attach, "fentry"} {
		record := filepath.Join(t.TempDir(), "x.ctrace")
		tr := trace(t, "-attach", attach, "-net", "-cgroup", string(top), "-o", record)
		tracers = append(tracers, &netTracer{tracer: tr, attach: attach, record: record})
	}
	groups := append([]cgroup{top, kept}, h.work(t, top, kept, p)...)
	waitForFrees(t)
	// The kernel frees some objects seconds later (KFREE_DRAIN_JIFFIES), perhaps between the ends
	// of two tracers.
	for _, tr := range tracers {
		tr.before = h.usages(t, groups...)
		tr.stop(t)
		tr.counted, tr.all = tr.tracer.counted(t), tr.events(t)
		tr.after = h.usages(t, groups...)
	}
	killed := groups[2]
	for i, tr := range tracers {
		tr.checkVerdict(t, killed, killed, "memory", 4<<20)
		missing := missingEvents(netEvents(tr.all, top), netEvents(tr.duringTrace(tracers[1-i].all), top))
		checkMissing(t, tr, missing)
		for i, g := range groups {
			var usage int64 // 0 for a cgroup made during the trace
			if i < len(begin) {
				usage = begin[i]
			}
			b := balanceOf(t, tr.all, g)
			t.Logf("%s %s: %+v", tr.attach, g.path(), b)
			net := b.net() + sumOf(missing, g).net()
			if b.begin != usage || b.end != tr.before[i] && b.end != tr.after[i] || net != b.end-usage {
				t.Errorf("%s: %+v, net %d with missed events, but its usage was %d, then %d, and at last %d", g.path(), b, net, usage, tr.before[i], tr.after[i])
			}
			checkRow(t, tr.tracer, g, b)
		}
		checkReplay(t, tr)
	}
}

// checkMissing checks that a tracer misses very few calls, and that the kernel counts them.
func checkMissing(t *testing.T, tr *netTracer, missing []event) {
	t.Helper()
	for _, e := range missing {
		t.Logf("%s missed %v, %d pages", tr.attach, e, e.Pages)
	}
	const most = 3
	if tr.counted.lost != 0 || tr.counted.missed > most || len(missing) > most {
		t.Errorf("%s: %+v: %s", tr.attach, tr.counted, tr.stderr)
	}
	// Before Linux 6.7 the kernel does not count all skipped kprobes (trace_call_bpf).
	if uncounted := tr.attach == "kprobe" && kernelBefore(t, 6, 7); uint64(len(missing)) > tr.counted.missed && !uncounted {
		t.Errorf("%s: %d events are missing: %s", tr.attach, len(missing), tr.stderr)
	}
}

// kernelBefore reports whether the kernel is older than a release.
func kernelBefore(t testing.TB, major, minor int) bool {
	t.Helper()
	var gotMajor, gotMinor int
	if _, err := fmt.Sscanf(kernelRelease(t), "%d.%d.", &gotMajor, &gotMinor); err != nil {
		t.Fatal(err)
	}
	return gotMajor < major || gotMajor == major && gotMinor < minor
}

// netEvents returns the events that change the memory usage of a cgroup or its descendants.
func netEvents(events []event, g cgroup) (net []event) {
	for _, e := range events {
		if e.Kind == "memory" && (e.Outcome == "ok" || e.Type == "uncharge" || e.Type == "forced_charge") &&
			(e.Cgroup == g.path() || strings.HasPrefix(e.Cgroup, g.path()+"/")) {
			net = append(net, e)
		}
	}
	return net
}

// missingEvents returns the events of another tracer that got lacks.
func missingEvents(got, other []event) (missing []event) {
	type key struct {
		kind, cgroup string
		pid          int
		pages        int64
	}
	keyOf := func(e event) key { return key{e.Type, e.Cgroup, e.PID, e.Pages + e.RequestedPages} }
	left := map[key]int{}
	for _, e := range got {
		left[keyOf(e)]++
	}
	for _, e := range other {
		if left[keyOf(e)]--; left[keyOf(e)] < 0 {
			missing = append(missing, e)
		}
	}
	return missing
}

// work fills and frees cgroups, one of them with a process that releases its memory. It
// returns the cgroups that it made and did not remove.
func (h hierarchy) work(t *testing.T, top, kept cgroup, p *process) (made []cgroup) {
	t.Helper()
	dir := t.TempDir()
	empties := filepath.Join(dir, "empty")
	if err := os.Mkdir(empties, 0o700); err != nil {
		t.Fatal(err)
	}
	p.begin(t)
	if line := p.readLine(t); line != "touched" {
		t.Fatalf("%q", line)
	}
	h.start(t, kept, "file "+filepath.Join(dir, "stays")+" 3").run(t)
	h.start(t, kept, "file "+filepath.Join(dir, "goes")+" 4").run(t)
	p.begin(t) // to release its memory
	removed := top.child(t, "removed")
	h.start(t, removed, "file "+filepath.Join(dir, "outlives")+" 2").run(t)
	h.start(t, removed, "files "+empties+" 3000").run(t)
	removed.remove(t)
	p.wait(t)
	killed := top.child(t, "killed")
	killed.write(t, h.limit, "4M")
	victim := h.start(t, killed, "touch 8")
	victim.begin(t)
	victim.waitKilled(t)
	for _, name := range []string{empties, filepath.Join(dir, "goes")} {
		if err := os.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
	}
	if h.usage != hierarchyV2.usage {
		return []cgroup{killed}
	}
	flooded := top.child(t, "flooded")
	flood(t, flooded)
	return []cgroup{killed, flooded}
}

// checkReplay checks that a replay has the same output as the live trace.
func checkReplay(t *testing.T, tr *netTracer) {
	t.Helper()
	live, err := os.ReadFile(tr.jsonl)
	if err != nil {
		t.Fatal(err)
	}
	played, stderr := chargetraceOutput(t, "-r", tr.record, "-o", "-", "-format", "jsonl")
	if played != string(live) {
		t.Errorf("live\n%s\nplayed\n%s", live, played)
	}
	_, liveSummary, _ := strings.Cut(tr.stderr.String(), "\n\n")
	if _, got, _ := strings.Cut(stderr, "\n\n"); got != liveSummary {
		t.Errorf("live summary\n%s\nplayed\n%s", liveSummary, got)
	}
	attached := map[string]string{"auto": "kprobe and fentry", "kprobe": "kprobe", "fentry": "fentry"}[tr.attach]
	page, _ := chargetraceOutput(t, "-r", tr.record, "-to", "0s", "-o", "-", "-format", "html")
	if !strings.Contains(page, "<dt>Attached with</dt><dd>"+attached+"</dd>") {
		t.Errorf("the report does not say %s", attached)
	}
}

// waitForFrees waits for frees that RCU defers: of objects, and then of the pages of freed
// objects (SLAB_TYPESAFE_BY_RCU).
func waitForFrees(t testing.TB) {
	t.Helper()
	waitForRCU(t)
	waitForRCU(t)
}

// usages returns the usage of cgroups in pages.
func (h hierarchy) usages(t testing.TB, groups ...cgroup) (pages []int64) {
	t.Helper()
	for _, g := range groups {
		pages = append(pages, g.number(t, h.usage, "")/pageSize)
	}
	return pages
}

// balance is the number of pages charged and uncharged in a cgroup and its descendants
// between two readings of its usage.
type balance struct{ charged, forced, uncharged, begin, end int64 }

func (b balance) net() int64 { return b.charged + b.forced - b.uncharged }

// sumOf adds up the events of a cgroup and its descendants.
func sumOf(events []event, g cgroup) (b balance) {
	for _, e := range netEvents(events, g) {
		switch e.Type {
		case "charge":
			b.charged += e.RequestedPages
		case "forced_charge":
			b.forced += e.Pages
		case "uncharge":
			b.uncharged += e.Pages
		}
	}
	return b
}

// balanceOf adds up the events between the tracer's two readings of a cgroup.
func balanceOf(t testing.TB, events []event, g cgroup) balance {
	t.Helper()
	var begin, end []event
	for _, e := range ofType(events, "usage") {
		if e.Cgroup == g.path() && e.Existing {
			begin = append(begin, e)
		} else if e.Cgroup == g.path() {
			end = append(end, e)
		}
	}
	if len(begin) != 1 || len(end) != 1 {
		t.Fatalf("%s was read as %v at the start and %v at the end", g.path(), begin, end)
	}
	between := slices.DeleteFunc(slices.Clone(events), func(e event) bool {
		return e.TimeNanos <= begin[0].TimeNanos || e.TimeNanos > end[0].TimeNanos
	})
	b := sumOf(between, g)
	b.begin, b.end = begin[0].UsagePages, end[0].UsagePages
	return b
}

// checkRow checks the balance of a cgroup in the summary.
func checkRow(t *testing.T, tr *tracer, g cgroup, b balance) {
	t.Helper()
	row := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(g.path()) + `( +-?\d+){7}$`).FindString(tr.stderr.String())
	want := fmt.Sprintln(g.path(), b.charged, b.forced, b.uncharged, b.net(), b.begin, b.end, b.end-b.begin-b.net())
	if got := strings.Join(strings.Fields(row), " ") + "\n"; got != want {
		t.Errorf("the summary's row is %q, want %q: %s", got, want, tr.stderr)
	}
}

// flood sends packets to sockets of a cgroup that is at its limit: interrupts force the
// charges.
func flood(t *testing.T, g cgroup) {
	t.Helper()
	loopbackUp(t)
	const sockets = 16
	listener := startWorkload(t, g, fmt.Sprintf("listen %d", sockets))
	g.leaveRoom(t, 0)
	sender := startWorkload(t, rootCgroup, fmt.Sprintf("send %d", sockets))
	sender.begin(t)
	sender.wait(t)
	if usage := g.number(t, "memory.current", ""); usage <= g.number(t, "memory.max", "") {
		t.Errorf("the flood forced nothing: memory.current is %d", usage)
	}
	g.write(t, "memory.max", "max") // or it would be OOM-killed
	listener.begin(t)
	listener.wait(t)
}

// TestNetDeep checks that a cgroup's balance includes a descendant deeper than the levels
// that a charge records.
func TestNetDeep(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	top := newCgroup(t)
	g := top
	for range 40 {
		g.write(t, "cgroup.subtree_control", "+memory")
		g = g.child(t, "d")
	}
	p := startWorkload(t, g, "churn 100")
	tr := trace(t, "-net", "-cgroup", top.path())
	p.run(t)
	waitForFrees(t) // or some frees could fall between the readings of two levels
	tr.stop(t)
	if c := tr.counted(t); c.lost != 0 {
		t.Errorf("%+v: %s", c, tr.stderr)
	}
	b := balanceOf(t, tr.events(t), g)
	if b.charged < 100*8<<20/pageSize {
		t.Errorf("%s: %+v", g.path(), b)
	}
	rows := regexp.MustCompile(`(?m)^`+top.path()+`(?:/d)* +(\d+) +(\d+) +(\d+) +(-?\d+) +\d+ +\d+ +(-?\d+)$`).FindAllStringSubmatch(tr.stderr.String(), -1)
	// The summary prints 10, the top first.
	if len(rows) != 10 || !strings.HasPrefix(rows[0][0], top.path()+" ") {
		t.Fatalf("the rows are %q: %s", rows, tr.stderr)
	}
	want := strings.Fields(fmt.Sprint(b.charged, b.forced, b.uncharged, b.net(), b.end-b.begin-b.net()))
	for _, row := range rows {
		if !slices.Equal(row[1:], want) {
			t.Errorf("%q, want %q", row, want)
		}
	}
}

// TestNetTracer runs a tracer in the cgroup that it traces: the balance includes its own
// charges, such as for the file that it writes.
func TestNetTracer(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	g := newCgroup(t)
	p := startWorkload(t, g, "churn 100")
	tr := trace(t, "-net", "-cgroup", g.path())
	g.write(t, "cgroup.procs", strconv.Itoa(tr.Process.Pid))
	p.run(t)
	tr.stop(t)
	c, events := tr.counted(t), tr.events(t)
	own := slices.DeleteFunc(ofType(events, "charge"), func(e event) bool { return e.PID != tr.Process.Pid })
	b := balanceOf(t, events, g)
	if okPages(own) == 0 || c.lost != 0 || min(b.charged, b.uncharged) < 100*8<<20/pageSize || c.missed == 0 && b.net() != b.end-b.begin {
		t.Errorf("%+v, including %d pages for the tracer, %+v: %s", b, okPages(own), c, tr.stderr)
	}
	checkRow(t, tr, g, b)
}

// TestNetLost stops a tracer with the smallest buffer while a process charges and
// uncharges: it must report the losses, and that its balance may be incomplete.
func TestNetLost(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	g := newCgroup(t)
	p := startWorkload(t, g, "churn 10")
	whole := trace(t, "-net", "-cgroup", g.path())
	tr := trace(t, "-net", "-cgroup", g.path(), "-buffer", "1")
	if err := tr.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	p.run(t)
	if err := tr.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	tr.stop(t)
	whole.stop(t)
	whole.checkComplete(t)
	all, some := whole.events(t), tr.events(t)
	lost := func(name string) int { return len(ofType(all, name)) - len(ofType(some, name)) }
	charges, others := lost("charge"), lost("uncharge")+lost("forced_charge")
	if c := tr.counted(t); charges == 0 || others == 0 || c.lost != uint64(charges) || c.missed != 0 {
		t.Errorf("%d charges and %d others were lost: %+v", charges, others, c)
	}
	for _, want := range []string{
		fmt.Sprintf("warning: %d other events were lost as well\n", others),
		fmt.Sprintf("This may not be whole: %d calls or events were lost or missed.\n", charges+others),
	} {
		if !strings.Contains(tr.stderr.String(), want) {
			t.Errorf("no %q in %s", want, tr.stderr)
		}
	}
}
