//go:build linux

package guest

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// v1Root is the mount point of mountV1.
const v1Root = "/run/cgroup-v1"

// mountV1 mounts the memory controller of cgroup v1 at [v1Root]. Call it before
// [newCgroup]: the kernel refuses the mount while the controller has cgroups in v2.
func mountV1(t testing.TB) {
	t.Helper()
	if err := os.Mkdir(v1Root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("memory", v1Root, "cgroup", 0, "memory"); err != nil {
		t.Fatal(err)
	}
}

// newCgroupV1 makes a cgroup below [v1Root] that includes its children's memory, and
// removes it after the test.
func newCgroupV1(t testing.TB) cgroup {
	t.Helper()
	g := makeCgroup(t, v1Root)
	g.write(t, "memory.use_hierarchy", "1") // the default since Linux 5.11
	return g
}

// startWorkloadV1 is startWorkload for a cgroup of v1. Until it is ready, the process
// charges the root cgroup, which is not accounted.
func startWorkloadV1(t testing.TB, g cgroup, work string) *process {
	t.Helper()
	p := startWorkload(t, rootCgroup, work)
	g.write(t, "cgroup.procs", p.pid())
	return p
}
