//go:build guest

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tmux is a terminal in tmux, in which chargetrace runs.
type tmux struct {
	socket string
	output string // the file to which goes what is written to the terminal
}

// mountDevpts lets there be terminals.
func mountDevpts(t testing.TB) {
	t.Helper()
	if err := os.MkdirAll("/dev/pts", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("devpts", "/dev/pts", "devpts", 0, "ptmxmode=666"); err != nil && err != unix.EBUSY {
		t.Fatal(err)
	}
}

// startTmux runs a command in a terminal of that size.
func startTmux(t *testing.T, width, height int, argv ...string) *tmux {
	t.Helper()
	mountDevpts(t)
	if err := os.MkdirAll("/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(busybox, "/bin/sh"); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	dir := t.TempDir()
	x := &tmux{filepath.Join(dir, "socket"), filepath.Join(dir, "output")}
	if err := os.WriteFile(x.output, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	x.run(t, "new-session", "-d", "-x", strconv.Itoa(width), "-y", strconv.Itoa(height), busybox+" sh -c 'read line; "+strings.Join(argv, " ")+"; echo exit status $?; read line'")
	t.Cleanup(func() { exec.Command("/usr/bin/tmux", "-S", x.socket, "kill-server").Run() })
	// cat would copy in the kernel, which then does not tell of writes.
	x.run(t, "pipe-pane", busybox+" dd bs=64k of="+x.output)
	x.run(t, "send-keys", "Enter")
	return x
}

func (x *tmux) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("/usr/bin/tmux", append([]string{"-u", "-f", "/dev/null", "-S", x.socket}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "SHELL=/bin/sh")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("tmux %s: %v\n%s", args, err, out)
	}
	return string(out)
}

// screen returns what is on the screen.
func (x *tmux) screen(t *testing.T) string {
	t.Helper()
	return x.run(t, "capture-pane", "-p")
}

// until waits until the screen shows what a pattern matches.
func (x *tmux) until(t *testing.T, pattern string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	waitForWrite(t, x.output, func() bool { return re.MatchString(x.screen(t)) })
}

// seconds parses a time as the screen shows it.
func seconds(t *testing.T, s string) float64 {
	t.Helper()
	if s == "now" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d.Seconds()
}

// fill is how a cgroup was filled: how many pages it held from when on, in seconds since
// the trace began.
type fill []struct{ at, pages float64 }

// readFill returns it by the charges in a .jsonl.
func readFill(t *testing.T, file string) (f fill) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(content) {
		var e struct {
			Type           string  `json:"type"`
			TimeNanos      float64 `json:"time_ns"`
			Kind           string  `json:"kind"`
			Outcome        string  `json:"outcome"`
			RequestedPages float64 `json:"requested_pages"`
			UsagePages     float64 `json:"usage_pages"`
		}
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if e.Type == "charge" && e.Kind == "memory" && e.Outcome == "ok" {
			f = append(f, struct{ at, pages float64 }{e.TimeNanos / 1e9, e.UsagePages + e.RequestedPages})
		}
	}
	return f
}

// pages returns how many it held at a time.
func (f fill) pages(at float64) (pages float64) {
	for _, p := range f {
		if p.at <= at {
			pages = p.pages
		}
	}
	return pages
}

// rate returns how many more it held with each second from one time to another.
func (f fill) rate(from, to float64) float64 { return (f.pages(to) - f.pages(from)) / (to - from) }

// TestWatch has a process fill its cgroup at a steady rate, to the end. What the screen
// says the limit is away is held against the recording of the same trace: an emulated
// machine stalls now and then, and what is filled up after that no screen can foretell.
func TestWatch(t *testing.T) {
	const batches, limit = 200, "40M" // 50 MiB, a batch each
	const milliseconds = 100
	const limitPages = 40 << 20 / pageSize
	for _, size := range [][2]int{{80, 24}, {200, 50}} {
		t.Run(fmt.Sprintf("%dx%d", size[0], size[1]), func(t *testing.T) {
			g := newCgroup(t)
			g.write(t, "memory.max", limit)
			p := startWorkload(t, g, 1, fmt.Sprintf("steady %d %d", batches*batchBytes>>20, milliseconds))
			file := filepath.Join(t.TempDir(), "x.jsonl")
			x := startTmux(t, size[0], size[1], "/usr/bin/chargetrace", "-watch", "-cgroup", g.path(), "-o", file)
			x.until(t, "nothing is charged yet")
			p.begin(t)

			title := regexp.MustCompile(`(?m)^chargetrace  (\d+\.\d+) s `)
			line := regexp.MustCompile(`(?m)^> \S+ +([█▒░]+) .* (\d+\.\ds|\d+s|now) +\d+ +\d+ +\d+% +\d+`)
			type moment struct {
				at, toLimit float64
				bar         int
			}
			var seen []moment
			killed := regexp.MustCompile(`OOM kill of exe \(` + p.pid() + `\), which held \d+\.\dM: ` + regexp.QuoteMeta(g.path()) + ` ran out`)
			screen := ""
			waitForWrite(t, x.output, func() bool {
				screen = x.screen(t)
				at, row := title.FindStringSubmatch(screen), line.FindStringSubmatch(screen)
				if at != nil && row != nil {
					m := moment{seconds(t, at[1]+"s"), seconds(t, row[2]), strings.Count(row[1], "█")}
					if len(seen) > 0 && seen[len(seen)-1].at == m.at { // it was half written then
						seen = seen[:len(seen)-1]
					}
					seen = append(seen, m)
				}
				return killed.MatchString(screen)
			})
			t.Logf("the screen is\n%s", screen)
			p.waitKilled(t)
			hit := regexp.MustCompile(`(\d+\.\d+) s  \S+: memory limit of 40\.0M reached by exe`).FindStringSubmatch(screen)
			if hit == nil {
				t.Fatalf("no limit was hit:\n%s", screen)
			}
			end := seconds(t, hit[1]+"s")
			// What comes then is the end of the process, which gives all back.
			seen = slices.DeleteFunc(seen, func(m moment) bool { return m.at > end })
			if len(seen) < 2 { // tmux takes long to tell on an emulated machine
				t.Fatalf("too few moments: %v", seen)
			}
			for i, m := range seen {
				if i > 0 && m.bar < seen[i-1].bar {
					t.Errorf("the bar falls: %v", seen)
				}
			}
			if seen[len(seen)-1].bar <= seen[0].bar {
				t.Errorf("the bar does not grow: %v", seen)
			}
			t.Logf("%v, the limit at %v", seen, end)

			x.run(t, "send-keys", "?")
			x.until(t, "any key goes back")
			x.run(t, "send-keys", "Enter") // Escape and q would be Alt-q
			x.until(t, "q quit  . help")
			x.run(t, "send-keys", "q")
			x.until(t, "exit status 0")
			after := x.run(t, "capture-pane", "-p", "-S", "-200")
			for _, want := range []string{"limits hit and kills", "chargetrace: seen ", "OOM kills:"} {
				if !strings.Contains(after, want) {
					t.Errorf("afterwards there is no %q:\n%s", want, after)
				}
			}

			filled := readFill(t, file)
			late, steady := 0, 0
			for _, m := range seen {
				const window = 5 // seconds that the rate is taken over
				if m.at < (seen[0].at+end)/2 || m.at == end {
					continue
				}
				late++
				rate := filled.rate(m.at-window, m.at)
				// A batch is charged before it is filled.
				if want := (limitPages - filled.pages(m.at)) / rate; math.Abs(m.toLimit-want) > max(0.2*want, 0.5) {
					t.Errorf("at %v s the limit is said to be %v s away, not %v", m.at, m.toLimit, want)
				}
				left := end - m.at
				if next := filled.rate(m.at, end); math.Abs(next-rate) > 0.05*rate {
					continue
				}
				steady++
				if math.Abs(m.toLimit-left) > max(0.2*left, 0.5) {
					t.Errorf("at %v s the limit is said to be %v s away, but is %v", m.at, m.toLimit, left)
				}
			}
			if late == 0 {
				t.Errorf("nothing was seen of the second half: %v", seen)
			}
			t.Logf("%d moments of the second half, %d with a steady rate from then on", late, steady)
		})
	}
}

// TestWatchLines is for what is no terminal. It must see, from the files of the
// cgroup, that memory is given back.
func TestWatchLines(t *testing.T) { watchLines(t, newCgroup(t), "memory.max") }

func TestWatchLinesV1(t *testing.T) {
	watchLines(t, controlGroup(mountV1(t)).child(t, "watched"), "memory.limit_in_bytes")
}

func watchLines(t *testing.T, g controlGroup, limitFile string) {
	g.write(t, limitFile, "20M")
	p := startWorkload(t, controlGroup(cgroupRoot), 0, "release 8")
	g.write(t, "cgroup.procs", p.pid())
	tr := chargetrace(t, "-watch", "-pid", p.pid(), "-units", "pages")
	line := regexp.MustCompile(`(?m)^\d+ s +\d+ +0 +(\d+) +(\d+) +5120 +(\d+) .* /` + regexp.QuoteMeta(filepath.Base(string(g))) + "$")
	t.Cleanup(func() {
		if t.Failed() {
			content, _ := os.ReadFile(tr.stdout.Name())
			t.Logf("it prints\n%s", content)
		}
	})
	// used waits for a line whose usage is as it should be.
	used := func(holds func(usage int) bool) {
		waitForWrite(t, tr.stdout.Name(), func() bool {
			content, err := os.ReadFile(tr.stdout.Name())
			if err != nil {
				t.Fatal(err)
			}
			matches := line.FindAllSubmatch(content, -1)
			if len(matches) == 0 {
				return false
			}
			m := matches[len(matches)-1]
			usage, _ := strconv.Atoi(string(m[1]))
			room, _ := strconv.Atoi(string(m[3]))
			if !bytes.Equal(m[1], m[2]) || usage+room != 5120 {
				t.Errorf("%s", m[0])
			}
			return holds(usage)
		})
	}
	p.begin(t)
	used(func(usage int) bool { return usage >= 2048 })
	p.begin(t)
	used(func(usage int) bool { return usage < 1024 })
	p.wait(t)
	if err := tr.Cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, tr.stderr)
	}
	tr.counted(t)
}

// TestWatchCommand runs a command beside the screen, which says what that is charged
// for: what it prints comes when the screen is left.
func TestWatchCommand(t *testing.T) {
	x := startTmux(t, 80, 24, "/usr/bin/chargetrace", "-watch", "-stack", "-memory", "10M", "--", `/bin/sh -c "echo said; exec /init command touch 20"`)
	x.until(t, "exit status 137")
	after := x.run(t, "capture-pane", "-p", "-S", "-200")
	want := regexp.MustCompile(`(?s)\nfor: anon \d\d%.*limits hit and kills.*OOM kill of init \(\d+\), which held \d+\.\dM: /chargetrace-\d+ ran out.*\nsaid\n.*chargetrace: seen .*\(\d+\) was killed by the OOM killer: `)
	if !want.MatchString(after) {
		t.Errorf("it shows\n%s", after)
	}
	checkRemoved(t, cgroupRoot)
}
