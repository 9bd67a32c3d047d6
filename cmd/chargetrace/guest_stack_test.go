//go:build guest

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCauses has processes charge for one cause each, as far as that can be. What
// they are charged must be put down to it. All charge so much that the few batches of
// 64 pages that go to the memory of the Go runtime are little beside it.
func TestCauses(t *testing.T) {
	const disk = "/dev/nvme0n1"
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"), []byte("+hugetlb"), 0); err != nil {
		t.Fatal(err)
	}
	filled := filepath.Join(dir, "filled")
	if err := os.WriteFile(filled, make([]byte, 24<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	type phase struct {
		work   string
		causes []string
	}
	phases := []phase{
		{"touch 24", []string{"anon", "page table"}},
		{"thp 12", []string{"huge page", "page table"}},
		{"read " + disk + " 24", []string{"readahead", "file read"}},
		{"file " + disk + " 24", []string{"file write", "slab"}}, // a head for each buffer
		{"file " + filepath.Join(dir, "x") + " 24", []string{"shmem"}},
		{"files " + dir + " 30000", []string{"slab"}},
		{"run " + busybox + " 500 true", []string{"anon", "cow", "kernel stack", "page table", "slab", "percpu", "readahead", "file read"}},
		{"cow " + filled + " 24", []string{"cow", "page table"}},
		{"hugetlb 6", []string{"hugetlb", "page table"}},
		{"swapin 24", []string{"swap in"}},
		{"cgroups", []string{"percpu", "slab"}},
	}
	if kernelRelease(t) >= "5.11" { // before, a map counts against RLIMIT_MEMLOCK
		phases = append(phases, phase{"bpfmap 24", []string{"bpf map"}})
	}
	for _, phase := range phases {
		t.Run(strings.Fields(phase.work)[0], func(t *testing.T) {
			g := newCgroup(t)
			payer := g
			switch phase.work {
			case "cgroups":
				payer = newCgroup(t)
				payer.write(t, "cgroup.subtree_control", "+memory")
				phase.work = "cgroups " + string(payer) + " 100"
			case "swapin 24":
				swapOn(t)
			}
			file := filepath.Join(t.TempDir(), "x.jsonl")
			p := startWorkload(t, g, 0, phase.work)
			if phase.work == "swapin 24" {
				// The kernel reclaims what it can (memory_high_write).
				g.write(t, "memory.high", "0")
				g.write(t, "memory.high", "max")
			}
			tr := chargetrace(t, "-stack", "-cgroup", payer.path(), "-o", file)
			p.begin(t)
			if _, err := p.stdout.ReadString('\n'); err != nil {
				t.Fatalf("%v: %s", err, &p.stderr)
			}
			checkCauses(t, tr, file, phase.causes...)
			p.wait(t)
		})
	}
	t.Run("socket", func(t *testing.T) {
		loopbackUp(t)
		const sockets = 100
		g := newCgroup(t)
		file := filepath.Join(t.TempDir(), "x.jsonl")
		startWorkload(t, g, 0, fmt.Sprintf("listen %d", sockets)) // it pays for what it gets
		sender := startWorkload(t, newCgroup(t), 0, fmt.Sprintf("send %d", sockets))
		tr := chargetrace(t, "-stack", "-cgroup", g.path(), "-o", file)
		sender.begin(t)
		sender.wait(t)
		checkCauses(t, tr, file, "socket")
	})
}

// checkCauses ends a tracer that writes a .jsonl, and holds that nearly all pages
// are put down to these causes.
func checkCauses(t *testing.T, tr *tracer, file string, causes ...string) {
	t.Helper()
	tr.stop(t)
	if err := tr.Cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, tr.stderr)
	}
	tr.counted(t)
	pages, stacks := causesIn(t, file)
	var all, right uint64
	for cause, n := range pages {
		all += n
		if slices.Contains(causes, cause) {
			right += n
		}
	}
	if right*100 < all*95 || all < 64 || pages["other"]*100 > all*2 {
		t.Errorf("%d of %d pages are for %v: %v\n%s", right, all, causes, pages, stacks)
	}
	t.Logf("%v", pages)
}

// stackedCharge is a charge in a .jsonl, with the frames of its stacks, the innermost
// first.
type stackedCharge struct {
	PID            uint32 `json:"pid"`
	Comm           string `json:"comm"`
	Outcome        string `json:"outcome"`
	Cause          string `json:"cause"`
	RequestedPages uint64 `json:"requested_pages"`
	kernel, user   string
}

// stackedCharges returns the charges in a .jsonl.
func stackedCharges(t *testing.T, file string) (charges []stackedCharge) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	frames := make(map[uint32]string)
	for line := range strings.Lines(string(content)) {
		var e struct {
			stackedCharge
			Type        string   `json:"type"`
			Stack       uint32   `json:"stack"`
			Frames      []string `json:"frames"`
			KernelStack uint32   `json:"kernel_stack"`
			UserStack   uint32   `json:"user_stack"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		switch e.Type {
		case "stack":
			frames[e.Stack] = strings.Join(e.Frames, ";")
		case "charge":
			e.kernel, e.user = frames[e.KernelStack], frames[e.UserStack]
			charges = append(charges, e.stackedCharge)
		}
	}
	return charges
}

// causesIn adds up the pages of each cause in a .jsonl, and tells all stacks.
func causesIn(t *testing.T, file string) (pages map[string]uint64, stacks string) {
	t.Helper()
	pages = make(map[string]uint64)
	seen := make(map[string]bool)
	for _, c := range stackedCharges(t, file) {
		if c.Outcome == "ok" {
			pages[c.Cause] += c.RequestedPages
			if c.kernel == "" {
				t.Errorf("without a stack: %+v", c)
			}
		}
		if !seen[c.kernel] {
			seen[c.kernel] = true
			stacks += c.Cause + ": " + c.kernel + "\n"
		}
	}
	return pages, stacks
}

// TestStackRecording records stacks: played, they must show what they did live.
func TestStackRecording(t *testing.T) {
	g := newCgroup(t)
	dir := t.TempDir()
	file, livePage := filepath.Join(dir, "x.ctrace"), filepath.Join(dir, "x.html")
	liveFolded := filepath.Join(dir, "x.folded")
	p := startWorkload(t, g, 0, "touch 4")
	tr := chargetrace(t, "-stack", "-ustack", "-wide", "-pid", p.pid(), "-o", file, "-o", livePage, "-o", liveFolded, "-o", "-")
	p.begin(t)
	tr.hasRow(t)
	p.wait(t)
	if err := tr.Cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, tr.stderr)
	}
	live, err := os.ReadFile(tr.stdout.Name())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/chargetrace", "-r", file, "-wide")
	cmd.Env = tr.Env
	played, err := cmd.Output()
	if err != nil || string(played) != string(live) || strings.Count(string(played), " anon") < 8 {
		t.Errorf("%v, live\n%s\nplayed\n%s", err, live, played)
	}
	folded, _ := chargetraceOutput(t, "-r", file, "-o", "-", "-format", "folded")
	if content, err := os.ReadFile(liveFolded); err != nil || string(content) != folded {
		t.Errorf("%v, live\n%s\nplayed\n%s", err, content, folded)
	}
	if !regexp.MustCompile(`(?m)^exe;.*;chargetrace/cmd/chargetrace\.workload \[init\];.*;handle_mm_fault;.* \d+$`).MatchString(folded) {
		t.Errorf("%s", folded)
	}
	page, _ := chargetraceOutput(t, "-r", file, "-o", "-", "-format", "html")
	if content, err := os.ReadFile(livePage); err != nil || string(content) != page {
		t.Errorf("%v, the page that was made live is another", err)
	}
	// The process, and below it where it began.
	blocks := regexp.MustCompile(`y="(\d+)" width="([0-9.]+)%".*<rect class="f p0".*>([^<]+)</text>`).FindAllStringSubmatch(page, 3)
	if len(blocks) < 3 || blocks[0][3] != "all" || blocks[0][2] != "100.00" || blocks[1][1] != "18" || blocks[1][3] != "exe" || blocks[2][1] != "36" ||
		!strings.HasSuffix(blocks[2][3], " [init]") {
		t.Errorf("%q in\n%s", blocks, page)
	}
	if !strings.Contains(page, "<td>anon</td>") || !strings.Contains(page, `id="plot-cause"`) {
		t.Errorf("no causes in\n%s", page)
	}
	lines, _ := chargetraceOutput(t, "-r", file, "-watch")
	if !regexp.MustCompile(`(?m)^\d+ s .*  anon \d+% +/` + regexp.QuoteMeta(filepath.Base(string(g))) + "$").MatchString(lines) {
		t.Errorf("%s", lines)
	}
}

// TestProfile has programs with two functions of which one touches three times as
// much memory as the other, in a third that both call. pprof must say so, of the
// functions alone and of the kernel's on top of them, and a .folded who called whom.
func TestProfile(t *testing.T) {
	const goPackage = "chargetrace/cmd/chargetrace."
	for _, program := range []struct {
		name, work string
		callers    []string
		three, one string
		below      []string
	}{
		{"C", "exec /usr/bin/fill", []string{"_start [fill]", "fill [fill]"}, "fill_three [fill]", "fill_one [fill]", []string{"touch [fill]"}},
		{"Go", "fill 100", []string{goPackage + "workload [init]"}, goPackage + "fillThree [init]", goPackage + "fillOne [init]",
			[]string{goPackage + "fillPages [init]", goPackage + "touch [init]"}},
	} {
		for _, stacks := range [][]string{{"-ustack"}, {"-ustack", "-stack"}} {
			t.Run(program.name+strings.Join(stacks, ""), func(t *testing.T) {
				p := startWorkload(t, newCgroup(t), 0, program.work)
				dir := t.TempDir()
				file, folded := filepath.Join(dir, "x.pb.gz"), filepath.Join(dir, "x.folded")
				tr := chargetrace(t, append(stacks, "-pid", p.pid(), "-o", file, "-o", folded, "-o", "-")...)
				p.begin(t)
				tr.hasRow(t)
				p.wait(t)
				if err := tr.Cmd.Wait(); err != nil {
					t.Fatalf("%v: %s", err, tr.stderr)
				}
				out, err := exec.Command("/usr/bin/pprof", "-top", "-nodefraction=0", "-sample_index=pages", file).CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				shares := map[string]float64{program.three: 75, program.one: 25}
				for _, function := range slices.Concat(program.callers, program.below) {
					shares[function] = 100
				}
				for function, want := range shares {
					if share := cumulative(t, string(out), function); share < want-5 || share > want+5 {
						t.Errorf("%s has %.1f %%, want %.0f:\n%s", function, share, want, out)
					}
				}
				for function, want := range map[string]float64{program.three: 75, program.one: 25} {
					chain := slices.Concat(program.callers, []string{function}, program.below)
					if share := below(t, folded, chain); share < want-5 || share > want+5 {
						t.Errorf("%q has %.1f %%, want %.0f", chain, share, want)
					}
				}
			})
		}
	}
}

// below returns how much of a .folded, in percent, is where each of some functions was
// called by the one before it.
func below(t *testing.T, folded string, functions []string) float64 {
	t.Helper()
	content, err := os.ReadFile(folded)
	if err != nil {
		t.Fatal(err)
	}
	chain := ";" + strings.Join(functions, ";") + ";"
	var all, found float64
	for line := range strings.Lines(string(content)) {
		i := strings.LastIndexByte(line, ' ')
		pages, err := strconv.ParseFloat(strings.TrimSpace(line[i:]), 64)
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all += pages
		if strings.Contains(line[:i]+";", chain) {
			found += pages
		}
	}
	t.Logf("%.1f of %.0f pages: %s", found, all, chain)
	return 100 * found / all
}

// cumulative returns a function's share of the whole, in percent, in what pprof
// -top has printed: flat, flat%, sum%, cum, cum%, function.
func cumulative(t *testing.T, top, function string) float64 {
	t.Helper()
	for line := range strings.Lines(top) {
		f := strings.Fields(line)
		if len(f) < 6 || strings.Join(f[5:], " ") != function {
			continue
		}
		share, err := strconv.ParseFloat(strings.TrimSuffix(f[4], "%"), 64)
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		return share
	}
	t.Errorf("no %s:\n%s", function, top)
	return 0
}

// userStacksIn returns the user stacks of the charges in a .jsonl by the process that
// was charged, each in a line.
func userStacksIn(t *testing.T, file string) map[string]string {
	t.Helper()
	stacks := make(map[string]string)
	for _, c := range stackedCharges(t, file) {
		if c.user != "" {
			stacks[c.Comm+" "+strconv.FormatUint(uint64(c.PID), 10)] += c.user + "\n"
		}
	}
	return stacks
}

// touched is the stack of a charge that fill.c makes, with all its names.
var touched = regexp.MustCompile(`(?m)^touch \[fill\]\+0x[0-9a-f]+;fill_(?:three|one) \[fill\]\+0x[0-9a-f]+;fill \[fill\]\+0x[0-9a-f]+;_start \[fill\]\+0x[0-9a-f]+`)

// TestShortLived has programs that charge 1 MiB and are gone. The first charge of a
// program wakes the tracer, which comes before them on their CPU. Without that none is
// named, but by chance.
func TestShortLived(t *testing.T) {
	const programs = 10
	g := newCgroup(t)
	file := filepath.Join(t.TempDir(), "x.jsonl")
	var tr *tracer
	first(t, func() { tr = chargetrace(t, "-ustack", "-cgroup", g.path(), "-o", file) })
	run := func(n int) *process {
		p := startWorkload(t, g, 0, fmt.Sprintf("run /usr/bin/fill %d", n))
		p.begin(t)
		p.wait(t)
		return p
	}
	// To read the symbols of this program takes longer than the kernel lets a process
	// come first.
	run(1)
	waitForWrite(t, file, func() bool {
		content, err := os.ReadFile(file)
		return err == nil && bytes.Contains(content, []byte(" [init]+"))
	})
	p := run(programs)
	tr.stop(t)
	if err := tr.Cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, tr.stderr)
	}
	named := 0
	stacks := userStacksIn(t, file)
	for process, stacks := range stacks {
		var pid int
		if n, _ := fmt.Sscanf(process, "fill %d", &pid); n == 1 && pid > p.Process.Pid && touched.MatchString(stacks) {
			named++
		}
	}
	if named < programs {
		t.Errorf("%d of %d are named: %v\n%s", named, programs, stacks, tr.stderr)
	}
}

// first calls a function with the scheduling that what it starts is to have: on the CPU
// of workloads, and there before any of them, however long: the kernel keeps a twentieth
// of a CPU for them otherwise.
func first(t *testing.T, f func()) {
	t.Helper()
	// In this order: as long as the first has a limit, 6.12 may refuse the second.
	for _, s := range []struct{ file, none string }{
		{"/proc/sys/kernel/sched_rt_runtime_us", "-1"},
		{"/sys/kernel/debug/sched/fair_server/cpu0/runtime", "0"}, // from 6.12 on
	} {
		was, err := os.ReadFile(s.file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := errors.Join(err, os.WriteFile(s.file, []byte(s.none), 0)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.WriteFile(s.file, was, 0); err != nil {
				t.Error(err)
			}
		})
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	one.Set(0)
	set := func(cpus *unix.CPUSet, policy, priority uint32) {
		t.Helper()
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy, Priority: priority}
		if err := errors.Join(unix.SchedSetaffinity(0, cpus), unix.SchedSetAttr(0, &attr, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	set(&one, unix.SCHED_FIFO, 1)
	defer set(&all, unix.SCHED_NORMAL, 0)
	f()
}

// TestForkedAndGone has a child that is gone before the tracer, which is stopped, hears
// of it. It must have its parent's names.
func TestForkedAndGone(t *testing.T) {
	p := startWorkload(t, newCgroup(t), 0, "exec /usr/bin/fill")
	file := filepath.Join(t.TempDir(), "x.jsonl")
	tr := chargetrace(t, "-ustack", "-pid", p.pid(), "-f", "-o", file)
	done := func() {
		t.Helper()
		if _, err := p.stdout.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	p.begin(t)
	done()
	waitForWrite(t, file, func() bool {
		content, err := os.ReadFile(file)
		return err == nil && bytes.Contains(content, []byte(`"touch [fill]+`))
	})
	if err := tr.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(p.stdin, "f"); err != nil {
		t.Fatal(err)
	}
	done()
	if err := tr.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.wait(t)
	if err := tr.Cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, tr.stderr)
	}
	stacks := userStacksIn(t, file)
	if len(stacks) != 2 {
		t.Errorf("want the parent and its child: %v", stacks)
	}
	for process, stacks := range stacks {
		if !touched.MatchString(stacks) {
			t.Errorf("%s: %s\n%s", process, stacks, tr.stderr)
		}
	}
}

// TestUnreadable has a tracer that may not look at the process: it has the addresses,
// and says what it lacks.
func TestUnreadable(t *testing.T) {
	setParanoid(t, "2")
	p := startWorkload(t, newCgroup(t), 0, "exec /usr/bin/fill")
	tr := startTracerAs(t, unprivileged(enough(t)...), "Tracing ", "/usr/bin/chargetrace", "-ustack", "-pid", p.pid(), "-o", "-", "-format", "jsonl")
	p.begin(t)
	p.wait(t)
	if err := tr.Cmd.Wait(); err != nil || !strings.Contains(tr.stderr.String(), "CAP_SYS_PTRACE") {
		t.Errorf("%v: %s", err, tr.stderr)
	}
	stacks := userStacksIn(t, tr.stdout.Name())["fill "+p.pid()]
	if !regexp.MustCompile(`^(?:0x[0-9a-f]+(?:;0x[0-9a-f]+){3,}\n)+$`).MatchString(stacks) {
		t.Errorf("%s", stacks)
	}
}

// TestHiddenSymbols has a kernel that tells nobody where its functions are.
func TestHiddenSymbols(t *testing.T) {
	const restrict = "/proc/sys/kernel/kptr_restrict"
	if err := os.WriteFile(restrict, []byte("2"), 0); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(restrict, []byte("0"), 0)
	p := startWorkload(t, newCgroup(t), 0, "touch 2")
	file := filepath.Join(t.TempDir(), "x.jsonl")
	tr := chargetrace(t, "-stack", "-pid", p.pid(), "-o", file)
	p.begin(t)
	p.wait(t)
	if err := tr.Cmd.Wait(); err != nil || !strings.Contains(tr.stderr.String(), "the kernel hides where its functions are") {
		t.Errorf("%v: %s", err, tr.stderr)
	}
	if pages, stacks := causesIn(t, file); len(pages) != 1 || pages["-"] == 0 || !strings.Contains(stacks, " 0xffff") {
		t.Errorf("%v\n%s", pages, stacks)
	}
}
