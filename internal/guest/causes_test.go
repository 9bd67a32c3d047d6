//go:build linux

package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// causeWork is a workload whose charges have few causes.
type causeWork struct {
	work   string
	causes []string
	// pages is the exact number charged for the first cause, or 0 if it varies. It is exact
	// for whole batches, whatever the CPU's stock: a page for another cause charges a batch
	// only if the stock is empty.
	pages int64
	// payer is the charged cgroup, if it is not the workload's own.
	payer cgroup
}

// TestCauses checks that each page charged for a work has one of its causes, and that the
// charges add up to the cgroup's usage.
func TestCauses(t *testing.T) {
	if !Enter(t, Exact) {
		return
	}
	loopbackUp(t)
	rootCgroup.write(t, "cgroup.subtree_control", "+memory +hugetlb")
	dir := t.TempDir()
	filled := filepath.Join(dir, "filled")
	if err := os.WriteFile(filled, make([]byte, 24<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	top := newCgroup(t)
	top.write(t, "cgroup.subtree_control", "+memory +hugetlb")
	parent, receiver := top.child(t, "parent"), top.child(t, "receiver")
	parent.write(t, "cgroup.subtree_control", "+memory")
	startWorkload(t, receiver, "listen 20")
	works := []causeWork{
		{work: "touch 24", causes: []string{"anon", "page table"}, pages: 24 * 256},
		{work: "thp 12", causes: []string{"huge page", "page table"}, pages: 12 * 512},
		{work: "cow " + filled + " 24", causes: []string{"cow", "slab"}},
		{work: "hugetlb 6", causes: []string{"hugetlb", "slab"}, pages: 2 * 6 * 512}, // reserved and used
		{work: "file " + filepath.Join(dir, "x") + " 24", causes: []string{"shmem", "slab"}},
		{work: "files " + dir + " 3000", causes: []string{"slab"}},
		{work: "run " + busybox + " 20 true", causes: []string{"page table", "anon", "cow", "kernel stack", "slab", "percpu"}},
		{work: fmt.Sprintf("cgroups %s 100", parent), causes: []string{"slab", "percpu"}, payer: parent},
		{work: "send 20", causes: []string{"socket"}, payer: receiver},
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(release), "5.10.") { // the memory of BPF maps is not charged to cgroups
		works = append(works, causeWork{work: "bpfmap 24", causes: []string{"bpf map"}}, causeWork{work: "uring 3000", causes: []string{"io_uring"}})
	}
	checkCauses(t, top, works)
}

// TestCausesDisk is TestCauses for the works that need a disk.
func TestCausesDisk(t *testing.T) {
	if !Enter(t, Exact.WithDisk().On(Ends...)) {
		return
	}
	const disk = "/dev/nvme0n1"
	top := newCgroup(t)
	top.write(t, "cgroup.subtree_control", "+memory")
	checkCauses(t, top, []causeWork{{work: "read " + disk + " 4", causes: []string{"readahead", "file read", "slab"}}})
	sysctl(t, "vm/drop_caches", "1")
	checkCauses(t, top, []causeWork{{work: "file " + disk + " 4", causes: []string{"file write", "slab"}}})
	swapOn(t)
	checkCauses(t, top, []causeWork{{work: "swapin 4", causes: []string{"swap in"}}})
}

// checkCauses starts the works in cgroups below top, traces them one after the other, and
// checks the causes of each.
func checkCauses(t *testing.T, top cgroup, works []causeWork) {
	t.Helper()
	var processes []*process
	for i := range works {
		g := makeCgroup(t, string(top))
		processes = append(processes, startWorkload(t, g, works[i].work))
		if works[i].payer == "" {
			works[i].payer = g
		}
	}
	for _, w := range works {
		w.payer.drainStock(t) // also swaps out the memory of swapin
	}
	tr := trace(t, "-stack", "-net", "-cgroup", top.path())
	for _, p := range processes {
		p.begin(t)
		p.done(t)
	}
	waitForFrees(t)
	tr.stop(t)
	tr.checkComplete(t)
	events := tr.events(t)
	for _, w := range works {
		t.Run(strings.Fields(w.work)[0], func(t *testing.T) { w.check(t, events) })
	}
	for _, p := range processes {
		p.wait(t)
	}
}

// check checks the charges of the work's cgroup in the events of a tracer with -net.
func (w *causeWork) check(t *testing.T, events []event) {
	pages, stacks := make(map[string]int64), make(map[string]int64)
	for _, c := range withStacks(events) {
		if c.Cgroup == w.payer.path() && c.Outcome == "ok" {
			pages[c.Cause] += c.RequestedPages
			stacks[c.Cause+": "+c.kernel] += c.RequestedPages
		}
	}
	t.Logf("%v", pages)
	for cause := range pages {
		if !slices.Contains(w.causes, cause) {
			t.Errorf("charges for %s", cause)
		}
	}
	if got := pages[w.causes[0]]; len(pages) == 0 || w.pages != 0 && got != w.pages {
		t.Errorf("%d pages for %s, want %d", got, w.causes[0], w.pages)
	}
	if b := balanceOf(t, events, w.payer); b.net() != b.end-b.begin {
		t.Errorf("memory.current grew by another amount: %+v", b)
	}
	if t.Failed() {
		for stack, n := range stacks {
			t.Logf("%d %s", n, stack)
		}
	}
}
