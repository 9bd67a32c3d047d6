//go:build guest

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestCauses has processes charge for one cause each, as far as that can be. What
// they are charged must be put down to it.
func TestCauses(t *testing.T) {
	const disk = "/dev/nvme0n1"
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"), []byte("+hugetlb"), 0); err != nil {
		t.Fatal(err)
	}
	type phase struct {
		work   string
		causes []string
	}
	phases := []phase{
		{"touch 8", []string{"anon", "page table"}},
		{"thp 4", []string{"huge page", "page table"}},
		{"read " + disk + " 8", []string{"readahead", "file read"}},
		{"file " + disk + " 24", []string{"file write", "slab"}}, // a head for each buffer
		{"file " + filepath.Join(dir, "x") + " 24", []string{"shmem"}},
		{"files " + dir + " 10000", []string{"slab"}},
		{"fork 500", []string{"anon", "cow", "kernel stack", "page table", "slab", "percpu", "readahead", "file read"}},
		{"cow /init 8", []string{"cow", "page table"}},
		{"hugetlb 3", []string{"hugetlb", "page table"}},
		{"swapin 8", []string{"swap in"}},
		{"cgroups", []string{"percpu", "slab"}},
	}
	if kernelRelease(t) >= "5.11" { // before, a map counts against RLIMIT_MEMLOCK
		phases = append(phases, phase{"bpfmap 8", []string{"bpf map"}})
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
			case "swapin 8":
				swapOn(t)
			}
			file := filepath.Join(t.TempDir(), "x.jsonl")
			p := startWorkload(t, g, 0, phase.work)
			if phase.work == "swapin 8" {
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
		const sockets = 50
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

// causesIn adds up the pages of each cause in a .jsonl, and tells all stacks.
func causesIn(t *testing.T, file string) (pages map[string]uint64, stacks string) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pages = make(map[string]uint64)
	frames := make(map[uint32]string)
	seen := make(map[uint32]bool)
	for line := range strings.Lines(string(content)) {
		var e struct {
			Type           string   `json:"type"`
			Outcome        string   `json:"outcome"`
			Cause          string   `json:"cause"`
			RequestedPages uint64   `json:"requested_pages"`
			KernelStack    uint32   `json:"kernel_stack"`
			Stack          uint32   `json:"stack"`
			Frames         []string `json:"frames"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		switch {
		case e.Type == "stack":
			frames[e.Stack] = strings.Join(e.Frames, " ")
		case e.Type != "charge":
		case e.Outcome == "ok":
			if e.KernelStack == 0 {
				t.Errorf("without a stack: %s", line)
			}
			pages[e.Cause] += e.RequestedPages
		}
		if e.Type == "charge" && !seen[e.KernelStack] {
			seen[e.KernelStack] = true
			stacks += e.Cause + ": " + frames[e.KernelStack] + "\n"
		}
	}
	return pages, stacks
}

// TestStackRecording records stacks: played, they must show what they did live.
func TestStackRecording(t *testing.T) {
	g := newCgroup(t)
	dir := t.TempDir()
	file, livePage := filepath.Join(dir, "x.ctrace"), filepath.Join(dir, "x.html")
	p := startWorkload(t, g, 0, "touch 4")
	tr := chargetrace(t, "-stack", "-wide", "-pid", p.pid(), "-o", file, "-o", livePage, "-o", "-")
	p.begin(t)
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
	if !strings.Contains(folded, ";handle_mm_fault;") {
		t.Errorf("%s", folded)
	}
	page, _ := chargetraceOutput(t, "-r", file, "-o", "-", "-format", "html")
	if content, err := os.ReadFile(livePage); err != nil || string(content) != page {
		t.Errorf("%v, the page that was made live is another", err)
	}
	// The process, and below it what it entered the kernel for most.
	blocks := regexp.MustCompile(`y="(\d+)" width="([0-9.]+)%".*<rect class="f p0".*>(\S+)</text>`).FindAllStringSubmatch(page, 3)
	if len(blocks) < 3 || blocks[0][3] != "all" || blocks[0][2] != "100.00" || blocks[1][1] != "18" || blocks[1][3] != "exe" || blocks[2][1] != "36" ||
		!slices.Contains([]string{"asm_exc_page_fault", "el0t_64_sync"}, blocks[2][3]) {
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
// much memory as the other. pprof must say so, of the functions alone and of the
// kernel's on top of them.
func TestProfile(t *testing.T) {
	for _, program := range []struct{ name, work, three, one string }{
		{"C", "exec /usr/bin/fill", "fill_three [fill]", "fill_one [fill]"},
		{"Go", "fill 100", "chargetrace/cmd/chargetrace.fillThree [init]", "chargetrace/cmd/chargetrace.fillOne [init]"},
	} {
		for _, stacks := range [][]string{{"-ustack"}, {"-ustack", "-stack"}} {
			t.Run(program.name+strings.Join(stacks, ""), func(t *testing.T) {
				p := startWorkload(t, newCgroup(t), 0, program.work)
				file := filepath.Join(t.TempDir(), "x.pb.gz")
				tr := chargetrace(t, append(stacks, "-pid", p.pid(), "-o", file)...)
				p.begin(t)
				p.wait(t)
				if err := tr.Cmd.Wait(); err != nil {
					t.Fatalf("%v: %s", err, tr.stderr)
				}
				out, err := exec.Command("/usr/bin/pprof", "-top", "-sample_index=pages", file).CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				for function, want := range map[string]float64{program.three: 75, program.one: 25} {
					if share := cumulative(t, string(out), function); share < want-5 || share > want+5 {
						t.Errorf("%s has %.1f %%, want %.0f:\n%s", function, share, want, out)
					}
				}
			})
		}
	}
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
