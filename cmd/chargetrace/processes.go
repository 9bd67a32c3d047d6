package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// processes are handles (pidfds) of running processes: unlike a pid, a handle
// cannot come to mean another process.
type processes struct {
	pids []uint32
	fds  []unix.PollFd
}

// openProcesses opens the processes with these pids. All must exist.
func openProcesses(pids []uint32) (*processes, error) {
	ps := &processes{pids: pids}
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(int(pid), 0)
		if err != nil {
			ps.close()
			return nil, noProcess(int(pid), err)
		}
		ps.fds = append(ps.fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	return ps, nil
}

// noProcess explains why the process with that pid could not be opened.
func noProcess(pid int, err error) error {
	if tgid := threadGroup(pid); tgid != 0 && tgid != pid {
		return &hintedError{
			fmt.Errorf("%d is not a process, but a thread of process %d", pid, tgid),
			fmt.Sprintf("-pid %d traces all threads of that process", tgid),
		}
	}
	if errors.Is(err, syscall.ESRCH) {
		return &hintedError{
			fmt.Errorf("there is no process %d", pid),
			"pgrep -a NAME finds the pid of a running process",
		}
	}
	return fmt.Errorf("open process %d: %w", pid, err)
}

// threadGroup returns the thread group that a thread belongs to, or 0 where
// there is no such thread.
func threadGroup(tid int) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0
	}
	// The name comes before it, but with its newlines escaped.
	_, rest, _ := strings.Cut(string(status), "\nTgid:\t")
	line, _, _ := strings.Cut(rest, "\n")
	tgid, err := strconv.Atoi(line)
	if err != nil {
		return 0
	}
	return tgid
}

// wait returns when all the processes have exited, and tells of each.
func (ps *processes) wait(exited func(pid int)) error {
	fds := slices.Clone(ps.fds)
	for left := len(fds); left > 0; {
		// A pidfd is readable once the whole thread group has exited.
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return err
		}
		for i := range fds {
			if fds[i].Revents != 0 {
				exited(int(ps.pids[i]))
				fds[i] = unix.PollFd{Fd: -1} // is left out
				left--
			}
		}
	}
	return nil
}

func (ps *processes) close() {
	for _, p := range ps.fds {
		unix.Close(int(p.Fd))
	}
}
