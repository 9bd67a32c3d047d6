package watch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
	"chargetrace/internal/verdict"
	"chargetrace/internal/world"
)

const second = uint64(time.Second)

var info = stream.Info{PageSize: 4096, StartBootNanos: 100 * second}

func newVerdict(info stream.Info) *verdict.Verdict {
	return verdict.New(world.New(info), text.Format{})
}

// feed adds events to the state and its Verdict.
func feed(s *state, events []event.Event) {
	s.Feed(stateSink{s}).Write(events)
}

type stateSink struct{ *state }

func (s stateSink) Write(events []event.Event) error {
	for i := range events {
		s.add(&events[i], s.Usages(i))
	}
	return nil
}

func (stateSink) Close(stream.Counts) error { return nil }

func named(id, parent uint64, name string) event.Event {
	return event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: id}, ParentID: parent, Name: name}
}

const (
	root, pod, web, db, free = 1, 2, 3, 4, 5

	unlimited = math.MaxUint64
)

var names = []event.Event{named(root, 0, ""), named(pod, root, "pod"), named(web, pod, "web"), named(db, pod, "db"), named(free, root, "free")}

// charge returns a charge of 64 pages to a cgroup in pod, whose usage is podUsage of a
// limit of 2560 pages.
func charge(at uint64, cgroup uint64, pid uint32, usage, podUsage int64) event.Event {
	e := event.Event{
		Type: event.Charge, BootNanos: info.StartBootNanos + at, PID: pid, TID: pid, Kind: event.Memory, Outcome: event.OK,
		Cgroup: event.CgroupID{ID: cgroup}, RequestedPages: 64, UsagePages: usage, MaxPages: unlimited,
		Limiting: event.Level{CgroupID: pod, UsagePages: podUsage, MaxPages: 2560}, High: event.Level{MaxPages: unlimited},
	}
	copy(e.Comm[:], fmt.Sprintf("p%d", pid))
	if podUsage+64 > 2560 {
		e.Outcome, e.FailedAt = event.Failed, pod
	}
	return e
}

// unlimitedCharge returns a charge to a cgroup without a limit.
func unlimitedCharge(at uint64, usage int64) event.Event {
	e := charge(at, free, 12, usage, 0)
	e.Limiting = event.Level{MaxPages: unlimited}
	return e
}

// fill adds charges of web and db in turn, 4 a second, and ticks.
func fill(s *state, seconds int) {
	feed(s, names)
	var usage [2]int64
	for i := range 4 * seconds {
		at := uint64(i) * second / 4
		if i > 0 && i%4 == 0 {
			s.tick(info.StartBootNanos + at)
		}
		feed(s, []event.Event{charge(at, web+uint64(i%2), uint32(10+i%2), usage[i%2], usage[0]+usage[1])})
		if usage[0]+usage[1]+64 <= 2560 {
			usage[i%2] += 64
		}
	}
	s.tick(info.StartBootNanos + uint64(seconds)*second)
}

// plain returns a screen of 80 columns and 24 lines without colors.
func plain(s *state, k *keys) string {
	var lines []string
	for line := range strings.SplitSeq(ansi.Strip(s.view(k, screen{width: 80, height: 24})), "\n") {
		lines = append(lines, strings.TrimRight(line, " "))
	}
	return strings.Join(lines, "\n")
}

func TestScreen(t *testing.T) {
	s := newState(newVerdict(info))
	fill(s, 7)
	free := unlimitedCharge(6*second, 1)
	reclaim := event.Event{Type: event.ReclaimEnd, BootNanos: free.BootNanos, PID: 10, Cgroup: event.CgroupID{ID: web}, DurationNanos: second / 4}
	feed(s, []event.Event{free, reclaim})
	s.tick(info.StartBootNanos + 8*second)
	want := `chargetrace  8.000 s  3 cgroups  29 charges  0 failed  0 OOM kills
  CGROUP                         LIMIT    ROOM  FILL/S TO LIM FAIL MISS RECL OOM
> /pod/db          ███▒▒▒▒░░░    ^2560     768    +204   3.8s    0    0   0%   0
  /pod/web         ███▒▒▒▒░░░    ^2560     768    +204   3.8s    0    0  25%   0
  /free                            max       -       -      -    0    0   0%   0
── /pod/db ─────────────────────────────────────────────────────────────────────
1792 of 2560 in use, room for 768, full in 3.8s; limit of /pod
     2560


                ██
               ███
              ████
             █████
            ██████
           ███████
        0 ████████
    -7.0s
     PID  COMM              CHARGED/S     IN ALL   FAILED
      11  p11                       0        896        0
── limits hit and kills ────────────────────────────────────────────────────────


q quit  ? help  enter open  / filter  s sort: fullness  p pause  u units  r reve`
	got := plain(s, &keys{})
	if got != want {
		t.Errorf("the screen is\n%s", got)
	}
}

// TestTimeToLimit has a process charge two batches a second, then four: the fill rate is
// that of the last five ticks.
func TestTimeToLimit(t *testing.T) {
	s := newState(newVerdict(info))
	feed(s, names)
	var usage int64
	for i, tc := range []struct {
		batches   int64 // in this second
		fillRate  float64
		fullAfter float64 // seconds
	}{
		{2, math.NaN(), -1e-9}, {2, 128, 18}, {2, 128, 17}, {2, 128, 16}, {2, 128, 15}, {2, 128, 14}, {2, 128, 13},
		{4, 153.6, 1408 / 153.6}, {4, 179.2, 1152 / 179.2}, {4, 204.8, 896 / 204.8}, {4, 230.4, 640 / 230.4}, {4, 256, 1.5}, {4, 256, 0.5},
		{2, 230.4, 0}, {0, 179.2, 0},
	} {
		for j := range tc.batches {
			at := uint64(i)*second + uint64(j)*second/uint64(tc.batches)
			feed(s, []event.Event{charge(at, web, 10, usage, usage)})
			usage += 64
		}
		s.tick(info.StartBootNanos + uint64(i+1)*second)
		r := s.row(event.CgroupID{ID: web})
		want := time.Duration(tc.fullAfter * float64(time.Second))
		if r.toLimit != want || r.fillRate != tc.fillRate && !(math.IsNaN(r.fillRate) && math.IsNaN(tc.fillRate)) {
			t.Errorf("after %d s it fills at %v pages a second, full in %v; want %v, %v", i+1, r.fillRate, r.toLimit, tc.fillRate, want)
		}
	}
}

func memory(usagePages int64, maxPages, highPages uint64) cgroup.Memory {
	return cgroup.Memory{UsagePages: usagePages, MaxPages: maxPages, HighPages: highPages}
}

// TestReadings has readings without charges.
func TestReadings(t *testing.T) {
	s := newState(newVerdict(info))
	fill(s, 5)
	read := func(webUsage, podUsage int64, webMax, podHigh uint64) row {
		s.read(map[event.CgroupID]cgroup.Memory{
			{ID: web}: memory(webUsage, webMax, unlimited), {ID: pod}: memory(podUsage, 2560, podHigh), {ID: db}: memory(640, unlimited, unlimited),
		})
		s.tick(s.lastTick + second)
		return s.row(event.CgroupID{ID: web})
	}
	if r := read(100, 200, unlimited, unlimited); r.usagePages != 100 || r.limitedBy != "/pod" || r.roomPages() != 2360 || r.fillRate >= 0 || r.toLimit >= 0 {
		t.Errorf("it gave back memory: %+v", r)
	}
	if r := read(100, 740, unlimited, 750); r.limitedBy != "/pod" || r.ownLimit || !r.high || r.roomPages() != 10 {
		t.Errorf("there is a memory.high: %+v", r)
	}
	if r := read(100, 740, 128, unlimited); r.high || r.limitedBy != "/pod/web" || !r.ownLimit || r.roomPages() != 28 {
		t.Errorf("it has a limit of its own: %+v", r)
	}
	s.read(map[event.CgroupID]cgroup.Memory{{ID: pod}: memory(640, 2560, unlimited), {ID: db}: memory(640, unlimited, unlimited)})
	s.tick(s.lastTick + second)
	rows := s.rows(&keys{})
	if len(rows) != 2 || rows[0].name != "/pod/db" || rows[1].name != "/pod/web" || !rows[1].gone {
		t.Errorf("it was removed: %+v", rows)
	}
	if _, ok := s.toRead()[event.CgroupID{ID: web}]; ok {
		t.Error("what was removed is to be read")
	}
	if want := 3; len(s.toRead()) != want { // db, pod, and the root
		t.Errorf("to read: %v", s.toRead())
	}
}

// TestNetGrowth has charges and uncharges.
func TestNetGrowth(t *testing.T) {
	h := info
	h.Net = true
	s := newState(newVerdict(h))
	feed(s, names)
	s.tick(h.StartBootNanos)
	uncharge := charge(second/2, web, 11, 64, 0)
	uncharge.Type, uncharge.RequestedPages = event.Uncharge, 32
	forced := charge(second/2, web, 11, 32, 0)
	forced.Type, forced.RequestedPages = event.ForcedCharge, 1
	feed(s, []event.Event{charge(second/2, web, 11, 0, 0), uncharge, forced})
	s.tick(h.StartBootNanos + second)
	k := keys{units: text.Pages}
	lines := strings.Split(ansi.Strip(s.view(&k, screen{width: 80, height: 24})), "\n")
	if len(lines) != 24 || strings.TrimRight(lines[5], " ") != "net growth +33/s: 65/s charged, 32/s given back, here and below" {
		t.Errorf("%d lines: %q", len(lines), lines)
	}
	if l := s.levels[event.CgroupID{ID: web}]; l.usagePages != 33 {
		t.Errorf("it holds %d pages", l.usagePages)
	}
	// The limited parent had the same usage.
	if l := s.levels[event.CgroupID{ID: pod}]; l.usagePages != 33 {
		t.Errorf("above it %d pages are held", l.usagePages)
	}
	// What is read from the files counts as its usage from then on.
	s.read(map[event.CgroupID]cgroup.Memory{{ID: pod}: memory(100, 2560, unlimited)})
	feed(s, []event.Event{uncharge})
	if l := s.levels[event.CgroupID{ID: pod}]; l.usagePages != 68 {
		t.Errorf("after a reading of 100 pages and an uncharge of 32, %d are held", l.usagePages)
	}
}

func TestLog(t *testing.T) {
	s := newState(newVerdict(info))
	fill(s, 12) // 10 s to the limit
	kill := event.Event{Type: event.OOMKill, BootNanos: info.StartBootNanos + 12*second, PID: 11, TID: 11, Cgroup: event.CgroupID{ID: pod}}
	copy(kill.Comm[:], "p11")
	kill.Victim = event.Victim{PID: 10, AnonPages: 1280}
	copy(kill.Victim.Comm[:], "p10")
	swap := charge(12*second+second/2, web, 10, 99, 2560)
	swap.Kind = event.Swap
	feed(s, []event.Event{kill, swap, charge(15*second, web, 10, 1280, 2560)})
	p := painter{state: s, keys: &keys{units: text.Human}}
	var got []string
	for _, x := range s.log {
		got = append(got, ansi.Strip(p.entry(x)))
	}
	want := []string{
		"10.00 s  /pod: memory limit of 10.0 MiB hit 8 times, 8 charges failed, first by p10 (10)",
		"12.00 s  OOM in /pod: p11 (11) allocating; killed p10 (10), rss 5.0 MiB (anon 5.0, file 0, shmem 0)",
		"12.50 s  /pod: swap limit of 10.0 MiB hit once, 1 charge failed, first by p10 (10)",
		"15.00 s  /pod: memory limit of 10.0 MiB hit once, 1 charge failed, first by p10 (10)",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the log is\n%s", strings.Join(got, "\n"))
	}
	for range 3 * maxLog {
		s.append(&entry{note: "x"})
	}
	if len(s.log) > maxLog {
		t.Errorf("the log has %d lines", len(s.log))
	}
}

func paths(rows []*row) string {
	var list []string
	for _, r := range rows {
		list = append(list, r.name)
	}
	return strings.Join(list, " ")
}

func TestKeys(t *testing.T) {
	s := newState(newVerdict(info))
	fill(s, 5)
	feed(s, []event.Event{unlimitedCharge(5*second, 5000)})
	s.tick(s.lastTick + second)
	k := keys{}
	press := func(list ...string) {
		for _, key := range list {
			k.press(key, s.rows(&k))
		}
	}
	for _, tc := range []struct {
		keys []string
		want string // the cgroups listed
	}{
		{nil, "/pod/db /pod/web /free"},                // alike but for their names
		{[]string{"s", "s"}, "/free /pod/db /pod/web"}, // usage
		{[]string{"r"}, "/pod/web /pod/db /free"},
		{[]string{"r", "S", "S"}, "/pod/db /pod/web /free"},
		{[]string{"/", "W", "e", "x", "backspace"}, "/pod/web"},
		{[]string{"b", "enter"}, "/pod/web"},
		{[]string{"enter"}, "/pod/web /pod /"}, // with what is above it
		{[]string{"down", "esc"}, "/pod/web"},
		{[]string{"esc"}, "/pod/db /pod/web /free"},
		{[]string{"end", "enter"}, "/free /"},
		{[]string{"left", "up", "up", "up", "enter"}, "/pod/db /pod /"},
		{[]string{"left", "/", "q", "esc"}, "/pod/db /pod/web /free"},
		{[]string{"?", "enter"}, "/pod/db /pod/web /free"}, // any key leaves the help
	} {
		press(tc.keys...)
		if got := paths(s.rows(&k)); got != tc.want {
			t.Errorf("after %q: %s, want %s", tc.keys, got, tc.want)
		}
	}
	press("u", "p")
	if k.units != text.Pages || !k.paused || k.quit {
		t.Errorf("%+v", k)
	}
	press("q")
	if !k.quit {
		t.Error("q does not quit")
	}
}

// TestAnySize holds that a screen has the size of the terminal, whatever that is, and
// that hostile names do not change it.
func TestAnySize(t *testing.T) {
	s := newState(newVerdict(stackedInfo))
	fill(s, 12)
	feed(s, stacks)
	feed(s, []event.Event{chargeFor(12*second, 1, 5), chargeFor(12*second, 2, 5)})
	feed(s, []event.Event{named(db, pod, "\x1b[2J\x9b31m日本語\u202e"), named(web, pod, strings.Repeat("w", 200))})
	hostile := charge(12*second, db, 13, 1, 2560)
	copy(hostile.Comm[:], "\x1b]0;x\x07\r\n")
	feed(s, []event.Event{hostile})
	s.append(&entry{note: event.Printable("a\x1bb")})
	s.tick(s.lastTick + second)
	for _, k := range []keys{{}, {units: text.Bytes}, {entered: true, selected: event.CgroupID{ID: db}}, {help: true}, {filter: "\x1b", filtering: true}, {filter: "nothing"}} {
		for _, ascii := range []bool{false, true} {
			for width := 1; width < 220; width += 3 {
				for _, height := range []int{1, 2, 5, 10, 24, 60} {
					view := s.view(&k, screen{width, height, ascii, true})
					lines := strings.Split(view, "\n")
					if len(lines) != height {
						t.Fatalf("%d lines on %dx%d", len(lines), width, height)
					}
					for _, line := range lines {
						if ansi.StringWidth(line) > width {
							t.Fatalf("%d columns on %dx%d: %q", ansi.StringWidth(line), width, height, line)
						}
						line := ansi.Strip(line)
						if i := strings.IndexFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\u202e' || r == '\u009b' }); i >= 0 {
							t.Fatalf("%q", line)
						}
						if ascii && strings.IndexFunc(line, func(r rune) bool { return r > 0x7e }) >= 0 {
							t.Fatalf("not ASCII: %q", line)
						}
					}
				}
			}
		}
	}
}

// stackedInfo is the info of a trace with stacks; each of stacks has another cause.
var (
	stackedInfo = stream.Info{PageSize: 4096, StartBootNanos: 100 * second, KernelStacks: true}
	stacks      = []event.Event{
		{Type: event.Stack, StackNumber: 1, Frames: "do_anonymous_page+0x1"},
		{Type: event.Stack, StackNumber: 2, Frames: "filemap_fault+0x1"},
		{Type: event.Stack, StackNumber: 3, Frames: "pte_alloc_one+0x1"},
		{Type: event.Stack, StackNumber: 4, Frames: "0xffffffff81000000"},
	}
)

// chargeFor returns a charge to web with a stack.
func chargeFor(at uint64, stack uint32, pages uint64) event.Event {
	e := charge(at, web, 10, 0, 0)
	e.KernelStack, e.RequestedPages = stack, pages
	return e
}

func TestCauses(t *testing.T) {
	s := newState(newVerdict(stackedInfo))
	feed(s, names)
	feed(s, stacks)
	line := func() string {
		for line := range strings.Lines(plain(s, &keys{})) {
			if strings.HasPrefix(line, "for: ") {
				return strings.TrimSpace(line)
			}
		}
		return ""
	}
	failed := chargeFor(0, 2, 1000)
	failed.Outcome = event.Failed
	bytes := chargeFor(0, 2, 1000)
	bytes.Kind = event.Dmem
	for i, tc := range []struct {
		events []event.Event
		want   string
	}{
		{[]event.Event{chargeFor(0, 1, 710), chargeFor(0, 2, 226), chargeFor(0, 3, 60), chargeFor(0, 4, 4), failed, bytes}, "for: anon 71%  file read 23%  page table 6%"},
		{nil, "for: anon 71%  file read 23%  page table 6%"},
		{[]event.Event{chargeFor(0, 4, 3000)}, "for: not known 75%  anon 18%  file read 6%  page table 2%"},
		{nil, "for: not known 75%  anon 18%  file read 6%  page table 2%"},
		{nil, "for: not known 75%  anon 18%  file read 6%  page table 2%"},
		{nil, "for: not known 100%"}, // the first is more than five seconds ago
		{nil, "for: not known 100%"},
		{nil, "for: nothing now"},
	} {
		feed(s, tc.events)
		s.tick(s.lastTick + second)
		if got := line(); got != tc.want {
			t.Errorf("after %d s: %q, want %q", i+1, got, tc.want)
		}
	}
	// Each cgroup has its own causes. A narrow screen has the first.
	other := chargeFor(0, 3, 1)
	other.Cgroup.ID = db
	feed(s, []event.Event{chargeFor(0, 1, 3), chargeFor(0, 2, 1), other})
	s.tick(s.lastTick + second)
	if got := line(); got != "for: page table 100%" {
		t.Errorf("of the first cgroup: %q", got)
	}
	view := ansi.Strip(s.view(&keys{selected: event.CgroupID{ID: web}}, screen{width: 20, height: 24}))
	if !strings.Contains(view, "\nfor: anon 75%\n") {
		t.Errorf("the narrow screen is\n%s", view)
	}
	if got := strings.Count(plain(s, &keys{}), "\n"); got != 23 {
		t.Errorf("%d lines", got+1)
	}
}

// play plays a recording of some events.
func play(w *Watch, events ...event.Event) error {
	paced := w.Pace(w.state.Feed(w))
	return errors.Join(paced.Write(events), paced.Close(stream.Counts{}))
}

// batches is a Sink that keeps the batches.
type batches [][]event.Event

func (b *batches) Write(batch []event.Event) error {
	*b = append(*b, slices.Clone(batch))
	return nil
}

func (b *batches) Close(stream.Counts) error { return nil }

// TestPace checks that events without a tick between them stay together.
func TestPace(t *testing.T) {
	at := func(nanos uint64) event.Event { return charge(nanos, web, 1, 0, 0) }
	events := []event.Event{names[0], at(1), at(second - 1), at(second), names[1], at(second + 5), at(second + 3), at(9 * second)}
	var got batches
	if err := New(io.Discard, newVerdict(info), Options{}).Pace(&got).Write(events); err != nil {
		t.Fatal(err)
	}
	want := batches{events[:3], events[3:7], events[7:]}
	if !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestLines pins the lines for an output that is no terminal.
func TestLines(t *testing.T) {
	var out bytes.Buffer
	w := New(&out, newVerdict(info), Options{Units: text.Human})
	events := slices.Clone(names)
	for i := range 6 {
		usage := int64(i) * 500
		events = append(events, charge(uint64(i)*second+1, web, 10, usage, usage))
	}
	if err := play(w, events...); err != nil {
		t.Fatal(err)
	}
	want := `TIME       CHARGES   FAILED    USAGE     USED    LIMIT     ROOM   FILL/S  TO LIM  CGROUP
1 s              1        0     256K     256K    10.0M     9.7M        -       -  /pod/web, limited by /pod
2 s              2        0     2.2M     2.2M    10.0M     7.7M    +1.9M    4.0s  /pod/web, limited by /pod
3 s              3        0     4.1M     4.1M    10.0M     5.8M    +1.9M    3.0s  /pod/web, limited by /pod
4 s              4        0     6.1M     6.1M    10.0M     3.8M    +1.9M    2.0s  /pod/web, limited by /pod
5 s              5        0     8.0M     8.0M    10.0M     1.9M    +1.9M    1.0s  /pod/web, limited by /pod
--- 5.00 s  /pod: memory limit of 10.0 MiB hit once, 1 charge failed, first by p10 (10)
5 s              6        1     9.7M     9.7M    10.0M     240K    +2.3M    0.1s  /pod/web, limited by /pod
`
	if out.String() != want {
		t.Errorf("%s", &out)
	}
}

// TestHigh shows a memory.high where it leaves the least room: an own one, an ancestor's, and
// one above the room that a limit leaves.
func TestHigh(t *testing.T) {
	high := func(cgroup, at uint64, usage int64, maxPages uint64) event.Event {
		e := charge(second/2, cgroup, 10, 1000, 1500)
		e.High = event.Level{CgroupID: at, UsagePages: usage, MaxPages: maxPages}
		return e
	}
	for _, tc := range []struct {
		charge               event.Event
		column, detail, line string
	}{
		{high(web, web, 1000, 1100), "~1100      36", "1064 of 1100 in use, room for 36; its own memory.high", "/pod/web, limited by its memory.high"},
		{high(web, pod, 1500, 1500), "^~1500     -64", "1564 of 1500 in use, room for -64; memory.high of /pod", "/pod/web, limited by memory.high of /pod"},
		{high(web, web, 1000, 2500), "^2560     996", "1564 of 2560 in use, room for 996; limit of /pod", "/pod/web, limited by /pod"},
		{with(high(web, web, 1000, 2500), func(e *event.Event) { e.Limiting = event.Level{MaxPages: unlimited} }),
			"~2500    1436", "1064 of 2500 in use, room for 1436; its own memory.high", "/pod/web, limited by its memory.high"},
	} {
		s := newState(newVerdict(info))
		feed(s, append(names[:5:5], tc.charge))
		s.tick(info.StartBootNanos + second)
		if got := plain(s, &keys{}); !strings.Contains(got, tc.column) || !strings.Contains(got, "\n"+tc.detail+"\n") {
			t.Errorf("no %q and %q in\n%s", tc.column, tc.detail, got)
		}
		var out bytes.Buffer
		if err := play(New(&out, newVerdict(info), Options{}), append(names[:5:5], tc.charge)...); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(out.String(), "  "+tc.line+"\n") {
			t.Errorf("no %q in\n%s", tc.line, &out)
		}
	}
}

func with(e event.Event, f func(*event.Event)) event.Event {
	f(&e)
	return e
}

func TestLinesWithCauses(t *testing.T) {
	var out bytes.Buffer
	w := New(&out, newVerdict(stackedInfo), Options{Units: text.Human})
	other := chargeFor(second+1, 3, 5)
	other.Cgroup.ID = free
	if err := play(w, slices.Concat(stacks, names, []event.Event{chargeFor(1, 1, 3), chargeFor(1, 2, 1), other})...); err != nil {
		t.Fatal(err)
	}
	const want = `TIME       CHARGES   FAILED    USAGE     USED    LIMIT     ROOM   FILL/S  TO LIM  FOR                CGROUP
1 s              2        0       4K       4K    10.0M     9.9M        -       -  anon 75%           /pod/web, limited by /pod
1 s              3        0      20K      20K    10.0M     9.9M        -       -  page table 100%    /free, limited by /pod, of 2 cgroups
`
	if out.String() != want {
		t.Errorf("%s", &out)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, syscall.EPIPE }

// TestReaderGone holds that the trace stops when the lines have no reader, even without
// charges.
func TestReaderGone(t *testing.T) {
	stopped := make(chan struct{})
	now := info.StartBootNanos
	w := New(failingWriter{}, newVerdict(info), Options{Stop: func() { close(stopped) }, Now: func() uint64 { now += second; return now }})
	<-stopped
	if err := w.Close(stream.Counts{}); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("error %v", err)
	}
}

// TestHostileRecording has a cycle of parents, and huge times.
func TestHostileRecording(t *testing.T) {
	s := newState(newVerdict(info))
	feed(s, []event.Event{named(5, 5, "x"), charge(0, 5, 1, 1, 1)})
	s.tick(info.StartBootNanos + second)
	k := keys{}
	k.press("enter", s.rows(&k))
	if rows := s.rows(&k); len(rows) != 256 {
		t.Errorf("%d levels", len(rows))
	}
	s.toRead()

	var out bytes.Buffer
	w := New(&out, newVerdict(info), Options{})
	late := charge(0, 5, 1, 1, 1)
	late.BootNanos = math.MaxUint64
	if err := play(w, late, late); err != nil || bytes.Count(out.Bytes(), []byte("\n")) > historyTicks+3 {
		t.Errorf("%v, %d lines", err, bytes.Count(out.Bytes(), []byte("\n")))
	}
}

// TestManyProcesses holds that a process that charges now is shown among many that no
// longer do, and that those and idle cgroups are dropped.
func TestManyProcesses(t *testing.T) {
	s := newState(newVerdict(info))
	feed(s, names)
	for i := range 3 * maxCharging {
		if i%maxCharging == 0 {
			s.tick(s.lastTick + second)
		}
		feed(s, []event.Event{charge(0, web, uint32(i), 1, 1)})
	}
	s.tick(s.lastTick + second)
	feed(s, []event.Event{charge(0, web, 1<<30, 1, 1)})
	s.tick(s.lastTick + second)
	g := s.groups[event.CgroupID{ID: web}]
	if got := g.byRate()[0].pid; got != 1<<30 {
		t.Errorf("the first is %d", got)
	}
	if len(g.processes) > maxProcesses+1 {
		t.Errorf("%d processes are kept", len(g.processes))
	}

	for i := range uint64(2 * maxGroups) { // of a pod each
		pod, group := 1000+2*i, 1001+2*i
		e := charge(s.lastTick-info.StartBootNanos, group, 1, 1, 2560)
		e.Limiting.CgroupID, e.FailedAt = pod, pod
		feed(s, []event.Event{named(pod, root, "p"), named(group, pod, "c"), e})
		s.read(map[event.CgroupID]cgroup.Memory{{ID: group}: memory(1, 2, unlimited)})
		s.tick(s.lastTick + 2*second)
	}
	if len(s.groups) > maxGroups || len(s.levels) > 2*maxGroups+10 || len(s.hits) > maxGroups {
		t.Errorf("%d cgroups, %d levels, %d limits", len(s.groups), len(s.levels), len(s.hits))
	}
}

// TestOldFailure holds that a failure before the graph has no mark.
func TestOldFailure(t *testing.T) {
	s := newState(newVerdict(info))
	feed(s, names)
	feed(s, []event.Event{charge(0, web, 1, 1, 2560)})
	for range historyTicks + 5 {
		s.tick(s.lastTick + second)
	}
	if screen := plain(s, &keys{}); strings.Contains(screen, "!") {
		t.Errorf("%s", screen)
	}
}

// benchmarkState has 100 cgroups, of 10 processes each.
func benchmarkState() *state {
	s := newState(newVerdict(info))
	feed(s, names)
	for i := range 100 {
		id := uint64(100 + i)
		feed(s, []event.Event{named(id, pod, fmt.Sprintf("service-with-a-long-name-%d.service", i))})
		for j := range 10 {
			feed(s, []event.Event{charge(uint64(j), id, uint32(10*i+j), int64(i), int64(i))})
		}
	}
	return s
}

// BenchmarkRefresh measures a tick without reading files. The budget is 20 ms of a CPU.
func BenchmarkRefresh(b *testing.B) {
	s := benchmarkState()
	for b.Loop() {
		s.toRead()
		s.tick(s.lastTick + second)
		io.WriteString(io.Discard, s.view(&keys{}, screen{width: 200, height: 50}))
	}
}

// BenchmarkCgroups measures ticks of many cgroups that all charge, for longer than the
// graph.
func BenchmarkCgroups(b *testing.B) {
	for _, n := range []int{100, 1000, 5000, 20_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			const ticks = 310
			var heap, before runtime.MemStats
			for b.Loop() {
				runtime.GC()
				runtime.ReadMemStats(&before)
				s := newState(newVerdict(info))
				feed(s, names)
				var events []event.Event
				for i := range uint64(n) {
					events = append(events, named(100+i, pod, fmt.Sprintf("cri-containerd-%064x.scope", i)))
				}
				feed(s, events)
				events = events[:0]
				for i := range uint64(n) {
					events = append(events, charge(0, 100+i, uint32(i), 1, 1))
				}
				for range ticks {
					feed(s, events)
					s.toRead()
					s.tick(s.lastTick + second)
					io.WriteString(io.Discard, s.view(&keys{}, screen{width: 200, height: 50}))
				}
				runtime.GC()
				runtime.ReadMemStats(&heap)
				runtime.KeepAlive(s)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n*ticks), "ns/cgroup-tick")
			b.ReportMetric(float64(heap.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
		})
	}
}
