//go:build linux

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// pageSize is the machine's page size in bytes.
var pageSize = int64(os.Getpagesize())

// cgroup is the directory of a cgroup.
type cgroup string

// rootCgroup is the root of cgroup v2.
const rootCgroup = cgroup(cgroupRoot)

// newCgroup makes a cgroup with the memory controller, and removes it after the test.
func newCgroup(t testing.TB) cgroup {
	t.Helper()
	rootCgroup.write(t, "cgroup.subtree_control", "+memory")
	return makeCgroup(t, cgroupRoot)
}

// newTop makes a cgroup whose children have the memory controller.
func newTop(t testing.TB) cgroup {
	t.Helper()
	top := newCgroup(t)
	top.write(t, "cgroup.subtree_control", "+memory")
	return top
}

// makeCgroup makes a cgroup in a directory, and removes it after the test.
func makeCgroup(t testing.TB, parent string) cgroup {
	t.Helper()
	cgroups++ // no random name, so that a test's output is the same in every run
	return cgroup(parent).child(t, fmt.Sprintf("t%d", cgroups))
}

// cgroups counts the calls of makeCgroup.
var cgroups int

// child makes a cgroup below g, and removes it after the test.
func (g cgroup) child(t testing.TB, name string) cgroup {
	t.Helper()
	c := cgroup(filepath.Join(string(g), name))
	if err := os.Mkdir(string(c), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.remove(t) })
	return c
}

// path returns the group's path below the mount of its hierarchy.
func (g cgroup) path() string {
	return strings.TrimPrefix(strings.TrimPrefix(string(g), cgroupRoot), v1Root)
}

// remove removes the group if it still exists.
func (g cgroup) remove(t testing.TB) {
	t.Helper()
	// Its processes have exited, but may not have left the cgroup yet. Cgroup v1 has no
	// file for that; there they leave when they exit.
	if events := filepath.Join(string(g), "cgroup.events"); exists(events) {
		waitForWrite(t, events, func() bool { return !exists(events) || g.number(t, "cgroup.events", "populated") == 0 })
	}
	if err := os.Remove(string(g)); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("remove the cgroup: %v", err)
	}
}

// write writes to a file of the group. It does not use package os, which sets O_NONBLOCK:
// newer kernels do not reclaim for a lower limit then (memory_high_write).
func (g cgroup) write(t testing.TB, name, value string) {
	t.Helper()
	fd, err := unix.Open(filepath.Join(string(g), name), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// number returns the number in a file, or the one after a key.
func (g cgroup) number(t testing.TB, name, key string) int64 {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(string(g), name))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if key == "" && len(fields) == 1 || len(fields) == 2 && fields[0] == key {
			n, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s has no %q:\n%s", name, key, content)
	return 0
}

// usagePages returns memory.current in pages.
func (g cgroup) usagePages(t testing.TB) int64 {
	t.Helper()
	return g.number(t, "memory.current", "") / pageSize
}

// leaveRoom sets a limit with room for 24 pages, less than the smallest batch of 32. The
// group's processes must be on one CPU.
func (g cgroup) leaveRoom(t testing.TB, cpu int) {
	t.Helper()
	// The CPU's stock counts as used. Lowering memory.high drains it (memory_high_write):
	// at once on the writer's CPU, later on others.
	onCPU(t, cpu, func() { g.write(t, "memory.high", "0") })
	g.write(t, "memory.high", "max")
	g.write(t, "memory.max", strconv.FormatInt(g.number(t, "memory.current", "")+24*pageSize, 10))
}
