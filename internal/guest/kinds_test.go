//go:build linux

package guest

import (
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// TestSwap fills a cgroup and its swap up to their limits.
func TestSwap(t *testing.T) {
	if !Enter(t, Exact.WithDisk().On(Ends...)) {
		return
	}
	swapOn(t)
	g := newCgroup(t)
	g.write(t, "memory.max", "6M")
	g.write(t, "memory.swap.max", "2M")
	p := startWorkload(t, g, "touch 20")
	all := trace(t, "-net", "-cgroup", g.path())
	swap := trace(t, "-counter", "swap")
	p.begin(t)
	p.waitKilled(t)
	all.stop(t)
	swap.stop(t)

	charges := ofKind(all.charges(t), "swap")
	all.checkVerdict(t, g, g, "memory", 6<<20)
	for _, e := range charges {
		if e.Cgroup != g.path() || e.Limiting == nil || e.Limiting.Cgroup != g.path() || e.Limiting.MaxPages != 512 || e.Outcome == "miss" {
			t.Errorf("charge %+v", e)
		}
	}
	failed := int64(len(withOutcome(charges, "failed")))
	if want := g.number(t, "memory.swap.events", "max"); failed != want {
		t.Errorf("%d charges failed, but memory.swap.events says %d", failed, want)
	}
	var back int64
	for _, e := range ofType(all.events(t), "uncharge") {
		if e.Kind == "swap" {
			back += e.Pages
		}
	}
	charged, left := okPages(charges), g.number(t, "memory.swap.current", "")/pageSize
	if charged-back != left {
		t.Errorf("%d pages charged to swap, %d given back, but memory.swap.current is %d", charged, back, left)
	}
	var peak int64
	for _, e := range withOutcome(charges, "ok") {
		peak = max(peak, e.UsagePages+e.RequestedPages)
	}
	want := int64(512)
	if exists(filepath.Join(string(g), "memory.swap.peak")) { // since Linux 6.5
		want = g.number(t, "memory.swap.peak", "") / pageSize
	}
	if peak != want || peak == 0 {
		t.Errorf("%d pages of swap at most, want %d", peak, want)
	}
	swap.checkComplete(t)
	sameEvents(t, ofType(swap.events(t), "charge"), charges)
}

func TestHugetlb(t *testing.T) {
	if !Enter(t, Exact) {
		return
	}
	rootCgroup.write(t, "cgroup.subtree_control", "+hugetlb")
	g := newCgroup(t)
	g.write(t, "hugetlb.2MB.max", "4M")
	p := startWorkload(t, g, "hugetlb 4")
	tr := trace(t, "-pid", p.pid(), "-counter", "hugetlb,hugetlb_rsvd")
	p.begin(t)
	p.stdin.Close()
	p.Wait()
	if ws := p.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGBUS {
		t.Errorf("%s ended with %v, want SIGBUS", p.Args, p.ProcessState)
	}
	name := fmt.Sprintf("charge workload %s ", g.path())
	limit := g.path() + " %d/1024"
	want := []string{
		name + "hugetlb_rsvd ok 0+2048",
		name + "hugetlb ok 0+512 " + fmt.Sprintf(limit, 0),
		name + "hugetlb ok 512+512 " + fmt.Sprintf(limit, 512),
		name + "hugetlb failed 1024+512 " + fmt.Sprintf(limit, 1024) + " failed at " + g.path(),
	}
	var got []string
	for _, e := range tr.charges(t) {
		got = append(got, e.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if n := g.number(t, "hugetlb.2MB.events", "max"); n != 1 {
		t.Errorf("hugetlb.2MB.events says %d", n)
	}
}

func TestTransparentHugePages(t *testing.T) {
	if !Enter(t, Exact) {
		return
	}
	g := newCgroup(t)
	p := startWorkload(t, g, "thp 4")
	tr := trace(t, "-pid", p.pid())
	charges := checkRise(t, g, tr, p)
	if len(charges) != 4 || okPages(charges) != 4*512 {
		t.Errorf("charges %v, want 4 of a huge page", charges)
	}
}

// checkRise runs a workload, and checks that its charges add up to the rise of its cgroup's
// usage.
func checkRise(t *testing.T, g cgroup, tr *tracer, p *process) []event {
	t.Helper()
	before := g.usagePages(t)
	p.begin(t)
	p.done(t)
	after := g.usagePages(t)
	p.wait(t)
	charges := tr.charges(t)
	for _, e := range charges {
		if e.Kind != "memory" || e.Cgroup != g.path() || e.Outcome != "ok" || len(e.Flags) > 0 {
			t.Errorf("charge %+v", e)
		}
	}
	if got := okPages(charges); got != after-before {
		t.Errorf("%d pages were charged, but the usage rose from %d to %d", got, before, after)
	}
	return charges
}

func TestTmpfs(t *testing.T) {
	if !Enter(t, Exact) {
		return
	}
	g := newCgroup(t)
	p := startWorkload(t, g, "file "+filepath.Join(t.TempDir(), "file")+" 8")
	tr := trace(t, "-pid", p.pid())
	if charges := checkRise(t, g, tr, p); okPages(charges) < 8<<20/pageSize {
		t.Errorf("%d pages were charged for 8 MiB", okPages(charges))
	}
}
