package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settings returns the files of the limits with their values, in writing order.
func (l Limits) settings(v1 bool) (settings [][2]string, err error) {
	set := func(file string, bytes int64) {
		settings = append(settings, [2]string{file, strconv.FormatInt(bytes, 10)})
	}
	switch {
	case v1 && l.HighBytes > 0:
		return nil, errors.New("cgroup v1 has no memory.high")
	case v1 && l.SwapBytes != nil && l.MemoryBytes == 0:
		return nil, errors.New("cgroup v1 can limit swap only together with memory")
	case v1:
		if l.MemoryBytes > 0 {
			set("memory.limit_in_bytes", l.MemoryBytes)
		}
		if l.SwapBytes != nil {
			// A sum that overflows means no limit.
			sum := l.MemoryBytes + *l.SwapBytes
			if sum < 0 {
				sum = -1
			}
			set("memory.memsw.limit_in_bytes", sum)
		}
		return settings, nil
	}
	if l.MemoryBytes > 0 {
		set("memory.max", l.MemoryBytes)
	}
	if l.HighBytes > 0 {
		set("memory.high", l.HighBytes)
	}
	if l.SwapBytes != nil {
		set("memory.swap.max", *l.SwapBytes)
	}
	return settings, nil
}

// ErrNoController is the error of [Make] on a kernel without the memory controller.
var ErrNoController = errors.New("this kernel has no memory controller for cgroups")

// Group is a cgroup with limits that [Make] made.
type Group struct {
	// Dir is the directory of the cgroup.
	Dir string
}

// Make makes a group below the process's own cgroup, or below the nearest ancestor whose
// children have the memory controller. If the own cgroup was delegated to the process,
// with no other process in it, Make makes the group there, and moves the process to
// another child.
func Make(name string, delegated bool, limits Limits) (*Group, error) {
	selfCgroup, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	h, err := findHierarchy(string(selfCgroup), string(mountinfo))
	if err != nil {
		return nil, err
	}
	settings, err := limits.settings(h.v1)
	if err != nil {
		return nil, err
	}
	parent := h.own
	switch {
	case h.v1:
	case delegated:
		err = vacate(parent)
	default:
		parent, err = h.parent()
	}
	if err != nil {
		return nil, err
	}
	g := &Group{filepath.Join(parent, name)}
	if err := os.Mkdir(g.Dir, 0o755); err != nil {
		return nil, err
	}
	for _, s := range settings {
		if err := g.write(s[0], s[1]); err != nil {
			return nil, errors.Join(err, os.Remove(g.Dir))
		}
	}
	return g, nil
}

// hierarchy is the cgroup hierarchy with the memory controller.
type hierarchy struct {
	v1  bool
	top string // the mount point
	own string // the directory of the process's own cgroup
}

// findHierarchy finds the hierarchy in the text of /proc/self/cgroup and
// /proc/self/mountinfo.
func findHierarchy(selfCgroup, mountinfo string) (h hierarchy, err error) {
	path := ""
	for line := range strings.Lines(selfCgroup) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) < 3 {
			continue
		}
		if slices.Contains(strings.Split(fields[1], ","), "memory") {
			h.v1, path = true, fields[2]
			break
		}
		if fields[1] == "" {
			path = fields[2]
		}
	}
	if path == "" {
		return h, ErrNoController
	}
	for _, m := range parseMounts(mountinfo) {
		if h.v1 && (m.fsType != "cgroup" || !slices.Contains(m.options, "memory")) || !h.v1 && m.fsType != "cgroup2" {
			continue
		}
		if h.top == "" {
			// The fallback if no mount contains the own cgroup, which can happen
			// only in a container.
			h.top, h.own = m.dir, m.dir
		}
		// A path with ".." is outside the cgroup namespace.
		if below, err := filepath.Rel(m.root, path); err == nil && filepath.IsLocal(below) && !strings.HasPrefix(path+"/", "/../") {
			h.top, h.own = m.dir, filepath.Join(m.dir, below)
			return h, nil
		}
	}
	if h.top == "" {
		return h, errors.New("the cgroup hierarchy with the memory controller is not mounted")
	}
	return h, nil
}

const subtreeControl = "cgroup.subtree_control"

// parent returns the nearest cgroup of v2, from the own one upwards, whose children have
// the memory controller. If there is none, it enables the controller for the children of
// the top.
func (h hierarchy) parent() (string, error) {
	for dir := h.own; ; dir = filepath.Dir(dir) {
		has, err := hasWord(filepath.Join(dir, subtreeControl), "memory")
		if err != nil || has {
			return dir, err
		}
		if dir == h.top {
			break
		}
	}
	has, err := hasWord(filepath.Join(h.top, "cgroup.controllers"), "memory")
	if err != nil {
		return "", err
	}
	if !has {
		return "", ErrNoController
	}
	return h.top, write(filepath.Join(h.top, subtreeControl), "+memory")
}

// vacate moves this process from its cgroup of v2 to a child, and enables the memory
// controller for the children. The kernel refuses that for a cgroup with processes
// (cgroups(7), "no internal processes").
func vacate(dir string) error {
	child := Group{filepath.Join(dir, "chargetrace")}
	if err := os.Mkdir(child.Dir, 0o755); err != nil {
		return err
	}
	if err := child.Add(os.Getpid()); err != nil {
		return err
	}
	return write(filepath.Join(dir, subtreeControl), "+memory")
}

// hasWord reports whether a file contains a word.
func hasWord(file, word string) (bool, error) {
	content, err := os.ReadFile(file)
	return slices.Contains(strings.Fields(string(content)), word), err
}

// write writes to an existing file. With O_CREAT, a missing file would fail with a
// misleading EACCES: cgroup file systems do not allow new files.
func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func (g *Group) write(name, value string) error { return write(filepath.Join(g.Dir, name), value) }

// Add moves a process into the group.
func (g *Group) Add(pid int) error { return g.write("cgroup.procs", strconv.Itoa(pid)) }

// Remove kills the remaining processes of the group, waits until it is empty, and removes
// it with all groups below it. It returns the number of processes it killed.
func (g *Group) Remove() (killed int, err error) {
	for {
		n, err := g.kill()
		killed += n
		if err != nil {
			return killed, err
		}
		if n > 0 {
			continue
		}
		dirs, err := g.dirs()
		if err != nil {
			return killed, err
		}
		for _, dir := range slices.Backward(dirs) {
			if err = os.Remove(dir); err != nil {
				break
			}
		}
		if !errors.Is(err, unix.EBUSY) {
			return killed, err
		}
		if err := g.waitEmpty(); err != nil {
			return killed, err
		}
	}
}

// dirs returns the directories of the group and of all groups below it, parents first.
func (g *Group) dirs() (dirs []string, err error) {
	err = filepath.WalkDir(g.Dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // removed by now
			return nil
		}
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	return dirs, err
}

// pids returns the PIDs in the group and below it.
func (g *Group) pids() (map[int]bool, error) {
	dirs, err := g.dirs()
	if err != nil {
		return nil, err
	}
	pids := map[int]bool{}
	for _, dir := range dirs {
		content, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		// The group has been removed, or is threaded: then its parent lists the PIDs.
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for field := range strings.FieldsSeq(string(content)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return nil, err
			}
			pids[pid] = true
		}
	}
	return pids, nil
}

// kill kills the processes in the group, waits for their exit, and returns their number.
// It can miss new processes.
func (g *Group) kill() (killed int, err error) {
	pids, err := g.pids()
	if err != nil || len(pids) == 0 {
		return 0, err
	}
	handles, err := openAll(pids)
	defer func() {
		for _, fd := range handles {
			unix.Close(fd)
		}
	}()
	if err != nil {
		return 0, err
	}
	// A pidfd keeps referring to the same process. If its PID is still listed now, that
	// process is in the group.
	pids, err = g.pids()
	if err != nil {
		return 0, err
	}
	// cgroup.kill exists since Linux 5.14.
	err = g.write("cgroup.kill", "1")
	killedAll := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	for pid, fd := range handles {
		if !pids[pid] {
			continue
		}
		if !killedAll {
			err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			if err == unix.ESRCH {
				continue
			}
			if err != nil {
				return killed, fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		killed++
	}
	for pid, fd := range handles {
		if !pids[pid] {
			continue
		}
		if err := poll(fd, unix.POLLIN); err != nil {
			return killed, err
		}
	}
	return killed, nil
}

// openAll opens pidfds of the processes that still exist. If the file descriptors run
// out after the first, it leaves the other processes for the next kill.
func openAll(pids map[int]bool) (handles map[int]int, err error) {
	handles = make(map[int]int)
	for pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err == unix.ESRCH {
			continue
		}
		if err == unix.EMFILE && len(handles) > 0 {
			break
		}
		if err != nil {
			return handles, fmt.Errorf("open process %d: %w", pid, err)
		}
		handles[pid] = fd
	}
	return handles, nil
}

// waitEmpty waits until cgroup.events of v2 says that the group is unpopulated: exited
// processes leave their cgroup with a delay. It returns early if there is a new process.
func (g *Group) waitEmpty() error {
	events, err := os.Open(filepath.Join(g.Dir, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		// v1 has no such file.
		time.Sleep(time.Millisecond)
		return nil
	}
	if err != nil {
		return err
	}
	defer events.Close()
	for {
		var content [256]byte
		n, err := unix.Pread(int(events.Fd()), content[:], 0)
		if err != nil {
			return err
		}
		if !strings.Contains(string(content[:n]), "populated 1") {
			return nil
		}
		if left, err := g.pids(); err != nil || len(left) > 0 {
			return err
		}
		if err := poll(int(events.Fd()), unix.POLLPRI); err != nil {
			return err
		}
	}
}

// poll waits for an event on a file.
func poll(fd int, event int16) error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: event}}, -1)
		if err != unix.EINTR {
			return err
		}
	}
}
