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

// processes holds pidfds of processes. Unlike a pid, a pidfd never refers to another process.
type processes struct {
	pids []uint32
	fds  []unix.PollFd
}

// openProcesses opens pidfds. It fails if one of the processes does not exist.
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

// noProcess explains an error of pidfd_open(2).
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

// threadGroup returns the thread group of a thread, or 0 if there is no such thread.
func threadGroup(tid int) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0
	}
	// The name, which comes before it, has its newlines escaped.
	_, rest, _ := strings.Cut(string(status), "\nTgid:\t")
	line, _, _ := strings.Cut(rest, "\n")
	tgid, err := strconv.Atoi(line)
	if err != nil {
		return 0
	}
	return tgid
}

// wait calls exited for each process that exits. It returns when all have.
func (ps *processes) wait(exited func(pid int)) error {
	fds := slices.Clone(ps.fds)
	for left := len(fds); left > 0; {
		// A pidfd is readable when the whole thread group has exited: pidfd_open(2).
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return err
		}
		for i := range fds {
			if fds[i].Revents != 0 {
				exited(int(ps.pids[i]))
				fds[i] = unix.PollFd{Fd: -1} // poll(2) ignores it
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
