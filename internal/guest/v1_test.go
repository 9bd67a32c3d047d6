//go:build linux

package guest

import (
	"testing"
)

// TestCgroupV1 fills cgroups of v1 up to their limits of memory, and of memory plus swap.
func TestCgroupV1(t *testing.T) {
	if !Enter(t, Exact.On(V1...)) {
		return
	}
	mountV1(t)
	for _, kind := range []string{"memory", "memsw"} {
		t.Run(kind, func(t *testing.T) { fillV1(t, kind) })
	}
}

func fillV1(t *testing.T, kind string) {
	clearLog(t)
	a := newCgroupV1(t)
	a.write(t, "memory.limit_in_bytes", "10M")
	failcnt := "memory.failcnt"
	if kind == "memsw" {
		a.write(t, "memory.memsw.limit_in_bytes", "10M")
		failcnt = "memory.memsw.failcnt"
	}
	b := a.child(t, "b")
	p := startWorkloadV1(t, b, "touch 20")
	tr := trace(t, "-pid", p.pid())
	p.begin(t)
	p.waitKilled(t)

	charges := tr.charges(t)
	for _, e := range charges {
		if e.Cgroup != b.path() || e.has("remote") {
			t.Errorf("charge %+v", e)
		}
		// The kernel counts the misses of batches too.
		if e.Outcome != "ok" && (e.Kind != kind || e.FailedAt != a.path() || e.Limiting.Cgroup != a.path() || e.Limiting.MaxPages != 2560) {
			t.Errorf("a failure not at the limit of %s: %+v", a.path(), e)
		}
	}
	failed := len(charges) - len(withOutcome(charges, "ok"))
	if want := a.number(t, failcnt, ""); int64(failed) != want || len(withOutcome(charges, "failed")) == 0 {
		t.Errorf("%d charges failed, but %s says %d", failed, failcnt, want)
	}
	// Each charge to memory follows one to memsw (try_charge).
	memory, memsw := ofKind(charges, "memory"), withOutcome(ofKind(charges, "memsw"), "ok")
	if len(memory) != len(memsw) || okPages(memory) == 0 {
		t.Errorf("%d charges to memory, %d to memsw", len(memory), len(memsw))
	}
	tr.checkVerdict(t, a, b, kind, 10<<20)
}
