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

// settings returns the files that hold the limits, and what to write to them, in
// that order.
func (l Limits) settings(v1 bool) (settings [][2]string, err error) {
	set := func(file string, bytes int64) {
		settings = append(settings, [2]string{file, strconv.FormatInt(bytes, 10)})
	}
	switch {
	case v1 && l.HighBytes > 0:
		return nil, errors.New("cgroup v1 has no limit such as memory.high")
	case v1 && l.SwapBytes != nil && l.MemoryBytes == 0:
		return nil, errors.New("cgroup v1 limits swap together with memory only")
	case v1:
		if l.MemoryBytes > 0 {
			set("memory.limit_in_bytes", l.MemoryBytes)
		}
		if l.SwapBytes != nil {
			// Beyond what the kernel can count it is no limit.
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

// ErrNoController is what [Make] fails with where no cgroup can have a limit.
var ErrNoController = errors.New("this kernel has no memory controller for cgroups")

// Group is a control group with limits.
type Group struct {
	// Dir is its directory.
	Dir string
}

// Make makes a group of that name: below the process's own cgroup, or below the
// nearest ancestor whose children can have the memory controller. Where the
// process's own cgroup was delegated to it, with nothing else in it, the group
// is made there, and the process moves to another one beside it.
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

// hierarchy is the tree of cgroups that has the memory controller.
type hierarchy struct {
	v1  bool
	top string // where it is mounted
	own string // the directory of the process's own cgroup
}

// findHierarchy finds it from the process's /proc/PID/cgroup and mountinfo.
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
			// Where the own cgroup is not below any mount, as at most in a
			// container, this will do.
			h.top, h.own = m.dir, m.dir
		}
		// In a cgroup namespace, ".." leads out of it.
		if below, err := filepath.Rel(m.root, path); err == nil && filepath.IsLocal(below) && !strings.HasPrefix(path+"/", "/../") {
			h.top, h.own = m.dir, filepath.Join(m.dir, below)
			return h, nil
		}
	}
	if h.top == "" {
		return h, errors.New("the cgroups that have the memory controller are not mounted")
	}
	return h, nil
}

const subtreeControl = "cgroup.subtree_control"

// parent returns the nearest cgroup of v2, from the own one up, whose children
// have the memory controller. If none has it yet, the top gives it to them.
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

// vacate moves this process from its cgroup of v2 to a child of that, since one
// with processes in it cannot give the memory controller to its children.
func vacate(dir string) error {
	child := Group{filepath.Join(dir, "keeper")}
	if err := os.Mkdir(child.Dir, 0o755); err != nil {
		return err
	}
	if err := child.Add(os.Getpid()); err != nil {
		return err
	}
	return write(filepath.Join(dir, subtreeControl), "+memory")
}

// hasWord reports whether a file holds a word.
func hasWord(file, word string) (bool, error) {
	content, err := os.ReadFile(file)
	return slices.Contains(strings.Fields(string(content)), word), err
}

// write writes to a file that must be there: to make one in these file systems
// is forbidden, which would be a misleading error.
func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func (g *Group) write(name, value string) error { return write(filepath.Join(g.Dir, name), value) }

// Add moves a process to the group.
func (g *Group) Add(pid int) error { return g.write("cgroup.procs", strconv.Itoa(pid)) }

// Remove kills what is left in the group, waits until it is empty and removes
// it, with all groups below it. It returns how many processes it killed.
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

// dirs returns the directories of the group and of all below it, parents first.
func (g *Group) dirs() (dirs []string, err error) {
	err = filepath.WalkDir(g.Dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			return nil
		}
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	return dirs, err
}

// pids returns the processes in the group and below it.
func (g *Group) pids() (map[int]bool, error) {
	dirs, err := g.dirs()
	if err != nil {
		return nil, err
	}
	pids := map[int]bool{}
	for _, dir := range dirs {
		content, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		// Removed meanwhile, or threaded: then its parent lists them.
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

// kill kills what is in the group, waits until it has exited, and returns how
// many processes that were. It may miss some, such as are made meanwhile.
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
	// A pidfd never refers to another process: it is that of a pid that is still listed.
	pids, err = g.pids()
	if err != nil {
		return 0, err
	}
	// Linux 5.14 can kill them at a stroke.
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

// openAll opens pidfds of the processes that still exist, at least one: out of file
// descriptors, it leaves the others for the next time.
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

// waitEmpty waits until v2 says that there is no process left in the group or
// below it: they may have exited, but not be gone yet.
func (g *Group) waitEmpty() error {
	events, err := os.Open(filepath.Join(g.Dir, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		// v1 does not tell.
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

// poll waits for an event of a file.
func poll(fd int, event int16) error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: event}}, -1)
		if err != unix.EINTR {
			return err
		}
	}
}
