//go:build linux

package guest

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// waitTimeout is the time that a test waits for something before it fails, on the machine's
// clock.
const waitTimeout = 3 * time.Minute

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// waitForDir waits until a directory exists.
func waitForDir(t testing.TB, dir string) {
	t.Helper()
	waitForWrite(t, filepath.Dir(dir), func() bool { return exists(dir) })
}

// waitForWrite waits until a condition holds. It checks the condition after each write to
// a file, or each change of a directory. inotify(7) also reports the kernel's own writes to
// files of cgroups.
func waitForWrite(t testing.TB, path string, holds func() bool) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_DELETE|unix.IN_DELETE_SELF); err != nil {
		t.Fatalf("watch %s: %v", path, err)
	}
	deadline := time.Now().Add(waitTimeout)
	for !holds() {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, max(0, int(time.Until(deadline).Milliseconds())))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("timeout waiting for %s: %v", path, err)
		}
		var events [4096]byte
		if _, err := unix.Read(fd, events[:]); err != nil {
			t.Fatal(err)
		}
	}
}

// waitForRCU waits until each CPU has run its pending RCU callbacks (call_rcu). A CPU runs
// them in order, and a removed cgroup is dying until one of its own has run
// (percpu_ref_kill in cgroup_destroy_locked). membarrier(2) does not wait on a single CPU.
func waitForRCU(t testing.TB) {
	t.Helper()
	for cpu := range runtime.NumCPU() {
		parent := makeCgroup(t, cgroupRoot)
		onCPU(t, cpu, func() { parent.child(t, "removed").remove(t) })
		for deadline := time.Now().Add(waitTimeout); parent.number(t, "cgroup.stat", "nr_dying_descendants") > 0; runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatal("timeout waiting for RCU")
			}
		}
		parent.remove(t)
	}
}

// onCPU calls a function on one CPU.
func onCPU(t testing.TB, cpu int, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	f()
	if err := unix.SchedSetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
}
