//go:build linux

package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// handles are pidfds of processes: unlike a pid, a pidfd never refers to another process.
type handles []unix.PollFd

// openProcesses opens running processes, and closes the handles after the test.
func openProcesses(t testing.TB, pids []int) (hs handles) {
	t.Helper()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatalf("open process %d: %v", pid, err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		hs = append(hs, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	return hs
}

// waitExited waits until all of the processes have exited.
func (hs handles) waitExited(t testing.TB) {
	t.Helper()
	deadline := time.Now().Add(waitTimeout)
	for i := range hs {
		n, err := unix.Poll(hs[i:i+1], max(0, int(time.Until(deadline).Milliseconds())))
		for err == unix.EINTR {
			n, err = unix.Poll(hs[i:i+1], max(0, int(time.Until(deadline).Milliseconds())))
		}
		if err != nil || n == 0 {
			t.Fatalf("a process has not exited: %v", err)
		}
	}
}

// checkExited checks that the processes have exited.
func (hs handles) checkExited(t testing.TB) {
	t.Helper()
	if n, err := unix.Poll(hs, 0); n != len(hs) || err != nil {
		t.Errorf("%d of %d processes have exited, %v", n, len(hs), err)
	}
}

// childrenOf returns the pids of a process's children.
func childrenOf(t testing.TB, pid int) (pids []int) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for field := range strings.FieldsSeq(string(content)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, child)
		}
	}
	return pids
}
