//go:build linux

package guest

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"chargetrace/internal/text"
)

// watchLimit is the limit of watched cgroups in pages of 4 KiB: 20 MiB.
const watchLimit = 5120

// TestWatch watches a process on a terminal that fills its cgroup at a steady rate until it
// is killed. The screen must agree with the events of the same trace. TestTimeToLimit, on
// the host, checks the time to the limit.
func TestWatch(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	prepareTerminals(t)
	for _, size := range [][2]int{{80, 24}, {200, 50}} {
		t.Run(fmt.Sprintf("%dx%d", size[0], size[1]), func(t *testing.T) {
			g := newCgroup(t)
			g.write(t, "memory.max", "20M")
			p := startWorkload(t, g, "steady 25 100")
			clearLog(t)
			file, verdict := filepath.Join(t.TempDir(), "x.jsonl"), filepath.Join(t.TempDir(), "x.json")
			x := startTmux(t, size[0], size[1], command, "-watch", "-units", "pages", "-cgroup", g.path(), "-o", file, "-o", verdict)
			// Begin right after a tick, so that no batch is charged at one.
			x.until(t, `^chargetrace  1\.\d+ s .*\n\n  nothing is charged yet`)
			p.begin(t)
			seen, screen := watchUntil(t, x, "OOM in ")
			p.waitKilled(t)

			x.press(t, "?")
			x.until(t, "any key goes back")
			x.press(t, "Enter") // Escape and q would be Alt-q
			x.until(t, "q quit  . help")
			x.press(t, "q")
			after := x.ended(t, 0)
			for _, want := range []string{"── limits hit and kills ", "\nchargetrace: seen ", "\nout of memory:\n"} {
				if !strings.Contains(after, want) {
					t.Errorf("no %q after the end:\n%s", want, after)
				}
			}
			var closing struct{ Text []string }
			if err := json.Unmarshal([]byte(readFile(t, verdict)), &closing); err != nil {
				t.Fatal(err)
			}
			checkVerdict(t, strings.Join(closing.Text, "\n"), g.path(), g, "memory", 20<<20)
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			events := readEvents(t, content)
			hit := checkWatchLog(t, g, p, screen, events)
			checkTicks(t, seen, hit, ofType(events, "charge"))
		})
	}
}

// checkWatchLog checks that the log on the screen has the limit hit and the kill. It
// returns the time of the limit hit, in nanoseconds.
func checkWatchLog(t testing.TB, g cgroup, p *process, screen string, events []event) (hit int64) {
	t.Helper()
	i := slices.IndexFunc(events, func(e event) bool { return e.hitsLimit() })
	kills := ofType(events, "oom_kill")
	if i < 0 || len(kills) != 1 {
		t.Fatalf("no charge at the limit, or %d kills", len(kills))
	}
	v := kills[0].Victim
	for _, want := range []string{
		fmt.Sprintf("%s  %s: memory limit of %d pages hit ", text.Duration(events[i].TimeNanos), g.path(), watchLimit),
		fmt.Sprintf("%s  OOM in %s: workload (%s) allocating; killed workload (%[3]s), rss %[4]d", text.Duration(kills[0].TimeNanos), g.path(), p.pid(), v.AnonPages+v.FilePages+v.ShmemPages),
	} {
		if !strings.Contains(screen, want) {
			t.Errorf("no %q on the screen\n%s", want, screen)
		}
	}
	return events[i].TimeNanos
}

// tick is a cgroup's state on the screen at a tick.
type tick struct {
	millis     int64 // since the trace began
	used, room int64 // pages
	bar, width int   // cells of the bar: filled, and all
}

// watchUntil waits until the screen shows a text. It returns the state at each tick, and
// the last screen.
func watchUntil(t testing.TB, x *tmux, text string) (seen []tick, screen string) {
	t.Helper()
	title := regexp.MustCompile(`^chargetrace  (\d+)\.(\d+) s `)
	bar := regexp.MustCompile(`(?m)^> \S+ +([█▒░]+) `)
	detail := regexp.MustCompile(`(?m)^(\d+) of ` + strconv.Itoa(watchLimit) + ` in use, room for (\d+)`)
	waitForWrite(t, x.output, func() bool {
		screen = x.screen(t)
		at, row, use := title.FindStringSubmatch(screen), bar.FindStringSubmatch(screen), detail.FindStringSubmatch(screen)
		if at != nil && row != nil && use != nil {
			m := tick{bar: strings.Count(row[1], "█"), width: utf8.RuneCountInString(row[1])}
			m.millis, _ = strconv.ParseInt(at[1]+at[2], 10, 64)
			m.used, _ = strconv.ParseInt(use[1], 10, 64)
			m.room, _ = strconv.ParseInt(use[2], 10, 64)
			if len(seen) > 0 && seen[len(seen)-1].millis == m.millis { // the last one was half written
				seen = seen[:len(seen)-1]
			}
			seen = append(seen, m)
		}
		return strings.Contains(screen, text)
	})
	return seen, screen
}

// checkTicks checks that the screen showed the cgroup's usage at each tick, from the
// second tick until the limit was hit.
func checkTicks(t testing.TB, seen []tick, hit int64, charges []event) {
	t.Helper()
	seen = slices.DeleteFunc(seen, func(m tick) bool { return m.millis*1e6 > hit })
	if want := int(hit/1e9) - 1; len(seen) != want {
		t.Errorf("%d ticks, want %d", len(seen), want)
	}
	for i, m := range seen {
		var used int64
		for _, e := range charges {
			if e.Outcome == "ok" && e.TimeNanos <= m.millis*1e6 {
				used = e.UsagePages + e.RequestedPages
			}
		}
		bar := int(math.Floor(float64(used) / watchLimit * float64(m.width)))
		if m.millis/1000 != int64(i+2) || m.used != used || m.room != watchLimit-used || m.bar != bar {
			t.Errorf("tick %d is %+v, want %d pages in use", i, m, used)
		}
	}
}

// TestWatchLines runs without a terminal, so that chargetrace prints lines. They must show
// freed memory, which only the cgroup's files contain.
func TestWatchLines(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	g := newCgroup(t)
	g.write(t, "memory.max", "20M")
	watchLines(t, g, startWorkload(t, g, "release 8"), "memory.current")
}

func TestWatchLinesV1(t *testing.T) {
	if !Enter(t, Exact.On(V1...)) {
		return
	}
	mountV1(t)
	g := newCgroupV1(t)
	g.write(t, "memory.limit_in_bytes", "20M")
	watchLines(t, g, startWorkloadV1(t, g, "release 8"), "memory.usage_in_bytes")
}

func watchLines(t *testing.T, g cgroup, p *process, usageFile string) {
	tr := chargetrace(t, "-watch", "-pid", p.pid(), "-units", "pages")
	line := regexp.MustCompile(`(?m)^\d+ s +\d+ +0 +(\d+) +(\d+) +` + strconv.Itoa(watchLimit) + ` +(\d+) .* /` + regexp.QuoteMeta(filepath.Base(string(g))) + "$")
	// shown waits for a line with the cgroup's usage.
	shown := func() (used int64) {
		t.Helper()
		waitForWrite(t, tr.stdout.Name(), func() bool {
			used = g.number(t, usageFile, "") / pageSize
			lines := line.FindAllStringSubmatch(tr.output(t), -1)
			return len(lines) > 0 && slices.Equal(lines[len(lines)-1][1:], []string{fmt.Sprint(used), fmt.Sprint(used), fmt.Sprint(watchLimit - used)})
		})
		return used
	}
	p.begin(t)
	if got := p.readLine(t); got != "touched" {
		t.Fatalf("the workload printed %q", got)
	}
	if used := shown(); used < 2048 {
		t.Errorf("it has touched 8 MiB, but its usage is %d pages", used)
	}
	p.begin(t)
	p.done(t)
	// The program, page tables, and the CPU's stock: less than two batches.
	if used := shown(); used >= 128 {
		t.Errorf("it has freed 8 MiB, but its usage is %d pages", used)
	}
	p.wait(t)
	tr.checkComplete(t)
}

// TestWatchCommand runs a command while the screen shows the causes of its charges. The
// command's output appears after the screen closes.
func TestWatchCommand(t *testing.T) {
	if !Enter(t, Exact.On(One...)) {
		return
	}
	prepareTerminals(t)
	file := filepath.Join(t.TempDir(), "x.jsonl")
	x := startTmux(t, 80, 24, command, "-watch", "-stack", "-memory", "10M", "-o", file, "--", `/bin/sh -c "echo said; exec workload -now touch 20"`)
	after := x.ended(t, 137)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var anon, all int64
	for _, e := range ofType(readEvents(t, content), "charge") {
		if e.Outcome == "ok" {
			all += e.RequestedPages
			if e.Cause == "anon" {
				anon += e.RequestedPages
			}
		}
	}
	want := regexp.MustCompile(fmt.Sprintf(`(?s)\nfor: anon %.0f%%.*limits hit and kills.*OOM in /chargetrace-\d+: workload \(\d+\) allocating; killed workload .*\nsaid\n.*chargetrace: seen .*\(\d+\) was killed by the OOM killer: `,
		100*float64(anon)/float64(all)))
	if !want.MatchString(after) {
		t.Errorf("no %q\n%s", want, after)
	}
	checkRemoved(t, cgroupRoot)
}
