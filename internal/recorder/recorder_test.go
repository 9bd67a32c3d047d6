package recorder

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/trace"
)

// The trace starts at 10 s on the clock of BootNanos, at 08:00:10 on the wall clock.
var info = stream.Info{PageSize: 4096, StartBootNanos: 10e9, BootWallNanos: time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC).UnixNano(), Host: "node-7"}

// names are those of the cgroups 1, the root, and 2 to 9 below it.
func names() (events []event.Event) {
	events = append(events, event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}})
	for id := uint64(2); id < 10; id++ {
		events = append(events, event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: id}, ParentID: 1, Name: fmt.Sprintf("c%d.service", id)})
	}
	return events
}

// at returns an event at a time since boot.
func at(d time.Duration, e event.Event) event.Event {
	e.BootNanos = uint64(d)
	return e
}

func charge(cgroup uint64) event.Event {
	return event.Event{Type: event.Charge, PID: 7, TID: 7, Comm: event.Comm{'j'}, Cgroup: event.CgroupID{ID: cgroup}, Kind: event.Memory, Outcome: event.OK, RequestedPages: 1, UsagePages: 10, MaxPages: 100, Limiting: event.Level{CgroupID: cgroup, UsagePages: 10, MaxPages: 100}, High: event.Level{MaxPages: 1 << 60}}
}

func limit(cgroup uint64) event.Event {
	e := charge(cgroup)
	e.UsagePages, e.Outcome, e.FailedAt, e.Limiting.UsagePages = 100, event.Failed, cgroup, 100
	return e
}

func kill(cgroup uint64) event.Event {
	return event.Event{Type: event.OOMKill, PID: 7, TID: 7, Cgroup: event.CgroupID{ID: cgroup}, OOMNanos: 1, Victim: event.Victim{PID: 8, Comm: event.Comm{'v'}, CgroupID: cgroup}}
}

func threshold(cgroup uint64) event.Event {
	e := charge(cgroup)
	e.Flags = event.Threshold
	return e
}

func high(cgroup uint64) event.Event {
	e := charge(cgroup)
	e.High = event.Level{CgroupID: cgroup, UsagePages: 50, MaxPages: 50}
	return e
}

func lost() event.Event { return event.Event{Type: event.Lost, LostCharges: 5} }

// options are those of a replay: 10 s before the trigger, 2 s after it.
func options(when string) Options {
	o := Options{Keep: 10 * time.Second, Memory: make([]byte, trace.MinRingBytes), After: 2 * time.Second, Every: time.Minute}
	o.Saved, o.Failed = func(Save) {}, func(err error) { panic(err) }
	if err := o.When.Parse(when); err != nil {
		panic(err)
	}
	return o
}

// record writes events in batches, and returns the recordings as contents does.
func record(t *testing.T, o Options, events ...event.Event) []string {
	t.Helper()
	dir := t.TempDir()
	folder, err := OpenFolder(dir, FolderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	r, err := New(info, folder, o)
	if err != nil {
		t.Fatal(err)
	}
	for batch := range slices.Chunk(append(names(), events...), 5) {
		if err := r.Write(batch); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(stream.Counts{}); err != nil {
		t.Fatal(err)
	}
	list := contents(t, dir)
	if n := r.Suppressed(); n > 0 {
		list = append(list, fmt.Sprintf("suppressed %d", n))
	}
	return list
}

// contents describes the recordings in a directory: their names, the times of their first and last
// event, and the triggers.
func contents(t *testing.T, dir string) (list []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		src, err := trace.NewReader(f, trace.Options{})
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		var first, last uint64
		for batch := make([]event.Event, 100); err == nil; {
			var n int
			n, err = src.Read(batch)
			for i := range batch[:n] {
				if e := &batch[i]; !e.Type.IsName() {
					if first == 0 {
						first = e.BootNanos
					}
					last = e.BootNanos
				}
			}
		}
		if err != io.EOF {
			t.Fatalf("%s: %v", file, err)
		}
		s := src.Info().Saved
		text := fmt.Sprintf("%s %gs-%gs", filepath.Base(file), float64(first)/1e9, float64(last)/1e9)
		if s.File != filepath.Base(file) {
			text += " is not " + s.File
		}
		for _, trigger := range s.Triggers {
			text += fmt.Sprintf(" %s*%d@%gs", trigger.Reason, trigger.Times, float64(trigger.BootNanos)/1e9)
			if trigger.Label != "" {
				text += " " + trigger.Label
			}
		}
		if s.Suppressed > 0 {
			text += fmt.Sprintf(" suppressed %d", s.Suppressed)
		}
		list = append(list, text)
	}
	return list
}

func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// tick returns a charge to cgroup 9 in each second of some time.
func ticks(from, to time.Duration) (events []event.Event) {
	for d := from; d < to; d += time.Second {
		events = append(events, at(d, charge(9)))
	}
	return events
}

func sorted(lists ...[]event.Event) []event.Event {
	all := slices.Concat(lists...)
	slices.SortStableFunc(all, func(a, b event.Event) int { return int(int64(a.BootNanos - b.BootNanos)) })
	return all
}

// TestTriggers has a trigger of each kind, among charges.
func TestTriggers(t *testing.T) {
	const s = time.Second
	for _, tc := range []struct {
		when    string
		trigger event.Event
		want    string
	}{
		{"oom", kill(2), "oom-20261129T080030Z-c2.service.ctrace 20s-32s oom*1@30s c2.service"},
		{"oom", event.Event{Type: event.OOM, Cgroup: event.CgroupID{ID: 3}, Result: event.NoVictim}, "oom-20261129T080030Z-c3.service.ctrace 20s-32s oom*1@30s c3.service"},
		{"oom", event.Event{Type: event.OOMKill}, "oom-20261129T080030Z-node-7.ctrace 20s-32s oom*1@30s"},
		{"oom", event.Event{Type: event.OOMKill, Flags: event.UnknownCgroup, Victim: event.Victim{CgroupID: 4}}, "oom-20261129T080030Z-c4.service.ctrace 20s-32s oom*1@30s c4.service"},
		{"limit", limit(5), "limit-20261129T080030Z-c5.service.ctrace 20s-32s limit*1@30s c5.service"},
		{"high", high(6), "high-20261129T080030Z-c6.service.ctrace 20s-32s high*1@30s c6.service"},
		{"high", event.Event{Type: event.Throttle, Cgroup: event.CgroupID{ID: 6}}, "high-20261129T080030Z-c6.service.ctrace 20s-32s high*1@30s c6.service"},
		{"95%", threshold(7), "95pct-20261129T080030Z-c7.service.ctrace 20s-32s 95%*1@30s c7.service"},
		{"lost", lost(), "lost-20261129T080030Z-node-7.ctrace 20s-32s lost*1@30s"},
		{"exit", charge(9), "exit-20261129T080059Z-node-7.ctrace 49s-59s exit*1@59s"},
		{"oom,limit,95%", high(6), ""},
		{"limit,high,lost", kill(6), ""},
		{"oom", limit(6), ""},
	} {
		// The charge of 32 s is in the batch of the deadline.
		got := record(t, options(tc.when), sorted(ticks(10*s, 60*s), []event.Event{at(30*s, tc.trigger), at(32*s-1, charge(9))})...)
		want := []string{strings.Replace(tc.want, "-32s", "-31.999999999s", 1)}
		if tc.want == "" {
			want = nil
		}
		t.Run(tc.when, func(t *testing.T) { same(t, got, want...) })
	}
}

// TestExtension has triggers that extend a recording, and cannot extend it without an end.
func TestExtension(t *testing.T) {
	const s = time.Second
	var triggers []event.Event
	for d := 30 * s; d < 60*s; d += s {
		triggers = append(triggers, at(d, limit(2)))
	}
	same(t, record(t, options("oom,limit"), sorted(ticks(10*s, 70*s), triggers[:4], []event.Event{at(34*s, kill(2))})...),
		"oom-20261129T080034Z-c2.service.ctrace 20s-35s limit*4@30s c2.service oom*1@34s c2.service")
	same(t, record(t, options("oom,limit"), sorted(ticks(10*s, 70*s), triggers)...),
		"limit-20261129T080030Z-c2.service.ctrace 20s-39s limit*10@30s c2.service", "suppressed 20")
}

// TestEvery has triggers within the time of a recording before them: a kill is not suppressed by
// the recording of a limit hit, and each cgroup has its own.
func TestEvery(t *testing.T) {
	const s = time.Second
	same(t, record(t, options("oom,limit,95%"), sorted(ticks(10*s, 200*s), []event.Event{
		at(30*s, limit(2)), at(40*s, limit(2)), at(41*s, limit(2)), at(41*s, limit(3)), at(50*s, kill(2)), at(60*s, kill(2)), at(65*s, threshold(2)), at(91*s, limit(2)), at(111*s, limit(2)), at(112*s, limit(2)),
	})...),
		"limit-20261129T080030Z-c2.service.ctrace 20s-31s limit*1@30s c2.service",
		"limit-20261129T080041Z-c3.service.ctrace 31s-42s limit*1@41s c3.service suppressed 2",
		"oom-20261129T080050Z-c2.service.ctrace 40s-51s oom*1@50s c2.service",
		"limit-20261129T080151Z-c2.service.ctrace 101s-113s limit*2@111s c2.service suppressed 3")
}

// TestStorm has 1000 kills in 8 cgroups within a minute.
func TestStorm(t *testing.T) {
	events := ticks(10*time.Second, 20*time.Second)
	for i := range 1000 {
		events = append(events, at(30*time.Second+time.Duration(i)*50*time.Millisecond, kill(uint64(2+i%8))))
	}
	var kills, suppressed, files int
	for _, file := range record(t, options("oom"), events...) {
		var n int
		if _, after, ok := strings.Cut(file, "oom*"); ok {
			fmt.Sscanf(after, "%d@", &n)
			files++
			kills += n
		}
		if _, after, ok := strings.Cut(file, "suppressed "); ok {
			fmt.Sscan(after, &n)
			suppressed += n
		}
	}
	// A recording ends 10 s after its first kill, and each trigger extends it until then.
	if files != 8 || kills != 1000*10/50 || kills+suppressed != 1000 {
		t.Errorf("%d files with %d kills, suppressed %d", files, kills, suppressed)
	}
}

// TestLive saves with a timer while no events come, at a signal, and what is pending at the end.
func TestLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		now := func() uint64 { return info.StartBootNanos + uint64(time.Since(begin)) }
		o := options("oom,95%")
		o.Now, o.Latency = now, 200*time.Millisecond
		var urgent, saved []string
		o.Urgent = func(s Save) {
			urgent = append(urgent, fmt.Sprintf("%s %s %s %v", s.Path, s.Trigger.Reason, s.Trigger.Label, s.Levels))
		}
		o.Saved = func(s Save) {
			saved = append(saved, fmt.Sprintf("%s %s %v", s.Name, s.Trigger.Reason, s.Alerted))
		}
		dir := t.TempDir()
		folder, err := OpenFolder(dir, FolderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer folder.Close()
		r, err := New(info, folder, o)
		if err != nil {
			t.Fatal(err)
		}
		r.Write(names())
		write := func(e event.Event) {
			e.BootNanos = now()
			if err := r.Write([]event.Event{e}); err != nil {
				t.Fatal(err)
			}
		}
		wait := func(d time.Duration, files int) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := contents(t, dir); len(got) != files {
				t.Errorf("after %v: %q", time.Since(begin), got)
			}
		}
		wait(time.Minute, 0)
		write(threshold(2)) // at 08:01:10
		if want := " 95% c2.service [{{2 0} /c2.service} {{1 0} /}]"; !slices.Equal(urgent, []string{want}) {
			t.Errorf("%q", urgent)
		}
		wait(time.Second, 0)
		write(charge(2))
		wait(1199*time.Millisecond, 0)
		wait(time.Millisecond, 1)
		wait(time.Minute, 1)
		r.Save(Signal)   // at 08:02:12
		write(charge(4)) // of that time, but late
		wait(199*time.Millisecond, 1)
		wait(time.Millisecond, 2)
		write(kill(3))
		if err := r.Close(stream.Counts{}); err != nil {
			t.Fatal(err)
		}
		same(t, contents(t, dir),
			"95pct-20261129T080110Z-c2.service.ctrace 70s-71s 95%*1@70s c2.service",
			"signal-20261129T080212Z-node-7.ctrace 132.2s-132.2s signal*1@132.2s",
			"oom-20261129T080212Z-c3.service.ctrace 132.2s-132.4s oom*1@132.4s c3.service")
		if want := []string{
			"95pct-20261129T080110Z-c2.service.ctrace 95% true", "signal-20261129T080212Z-node-7.ctrace signal false", "oom-20261129T080212Z-c3.service.ctrace oom false",
		}; !slices.Equal(saved, want) {
			t.Errorf("%q", saved)
		}
		if files, _ := fs.Glob(os.DirFS(dir), ".*"); len(files) != 0 {
			t.Errorf("%q is left", files)
		}
	})
}

// TestUrgentKill has a kill soon after a part of the limit: the recording is named after the kill,
// and the command runs for it too.
func TestUrgentKill(t *testing.T) {
	o := options("oom,90%")
	told := 0
	o.Urgent = func(Save) { told++ }
	var last Save
	o.Saved = func(s Save) { last = s }
	got := record(t, o, at(30*time.Second, threshold(2)), at(31*time.Second, kill(2)))
	same(t, got, "oom-20261129T080031Z-c2.service.ctrace 30s-31s 90%*1@30s c2.service oom*1@31s c2.service")
	if told != 1 || last.Alerted || last.Trigger.Reason != "oom" || last.Trigger.PID != 8 {
		t.Errorf("told %d times, %+v", told, last)
	}
}

func TestParse(t *testing.T) {
	var got Triggers
	if err := got.Parse("oom,limit,high,lost,exit,95%"); err != nil || got != (Triggers{true, true, true, true, true, 95}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "oom,", "OOM", "0%", "9%", "100%", "%", "95", "-95%", "90%,95%"} {
		if err := new(Triggers).Parse(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// list returns the names in a directory, sorted.
func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
