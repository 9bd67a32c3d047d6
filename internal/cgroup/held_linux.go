package cgroup

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"chargetrace/internal/event"
)

// The most children and processes of a cgroup that Held yields, and the most cgroups and
// processes that it looks at. It looks at no more of either after budget nanoseconds: the
// events wait in the ring buffer meanwhile.
const (
	maxChildren, maxProcesses = 16, 16
	maxDirs, maxPIDs          = 1024, 1024
	budget                    = 20e6
)

// Held reads what a cgroup of one of these trees holds. It yields an event of type
// [event.MemoryStat] for it, and for each of the largest of its children their name and
// another one, and an event of type [event.Held] for each of the largest processes in it and
// below it, except victim: a process that exits must not free its memory late because it is
// looked at. All have oomNanos and the time that now returns after the reading. There are none
// for a root, or if the cgroup does not exist any more.
func Held(trees []Tree, id event.CgroupID, cgroupPath string, oomNanos uint64, victim uint32, now func() uint64) iter.Seq[event.Event] {
	return func(yield func(event.Event) bool) {
		i := slices.IndexFunc(trees, func(t Tree) bool { return t.Hierarchy == id.Hierarchy })
		if i < 0 || cgroupPath == "/" {
			return
		}
		h := heldReader{tree: trees[i], dir: filepath.Join(trees[i].Dir, cgroupPath), victim: victim, now: now, event: event.Event{Cgroup: id, OOMNanos: oomNanos}}
		if number, err := inodeOf(h.dir); err != nil || number != id.ID {
			return // gone, or a new cgroup with the same path
		}
		for _, e := range h.read(cgroupPath) {
			if !yield(e) {
				return
			}
		}
	}
}

type heldReader struct {
	tree   Tree
	dir    string
	victim uint32
	now    func() uint64
	event  event.Event // the common fields
}

func (h *heldReader) read(cgroupPath string) []event.Event {
	began := h.now()
	own := h.event
	own.Type = event.MemoryStat
	own.UsagePages, own.BootNanos = h.usage(h.dir)
	own.Stat = h.stat()
	if at, ok := h.noSwapAt(cgroupPath); ok {
		own.Stat += fmt.Sprintf(".no_swap_at %d\n", at)
	}
	events := append([]event.Event{own}, h.children(began+budget)...)
	if inInitialPIDNamespace() { // the other events have PIDs of that one
		events = append(events, h.processes(h.now()+budget)...)
	}
	return events
}

// usage returns the usage of a cgroup, -1 for an error, and the time of the reading.
func (h *heldReader) usage(dir string) (pages int64, bootNanos uint64) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, h.now()
	}
	defer unix.Close(fd)
	pages, bootNanos = sampleUsage(fd, h.tree.Hierarchy, h.now)
	return pages, cmp.Or(bootNanos, h.now())
}

// stat returns the lines of memory.stat whose number is not 0.
func (h *heldReader) stat() string {
	f, err := os.Open(filepath.Join(h.dir, "memory.stat"))
	if err != nil {
		return ""
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, 1<<16))
	if err != nil {
		return ""
	}
	const room = 64 // for a line of noSwapAt
	var kept []byte
	for line := range bytes.Lines(content) {
		if !bytes.HasSuffix(line, []byte(" 0\n")) && len(kept)+len(line) <= event.MaxStat-room {
			kept = append(kept, line...)
		}
	}
	return string(kept)
}

// noSwapAt returns the ID of the nearest level whose memory.swap.max is 0. ok is false if there
// is none, or no swap on this machine.
func (h *heldReader) noSwapAt(cgroupPath string) (at uint64, ok bool) {
	if h.tree.Hierarchy != 0 || !machineHasSwap() {
		return 0, false
	}
	for p := cgroupPath; p != "/" && p != "."; p = path.Dir(p) {
		dir := filepath.Join(h.tree.Dir, p)
		if content, err := os.ReadFile(filepath.Join(dir, "memory.swap.max")); err == nil && string(content) == "0\n" {
			number, err := inodeOf(dir)
			return number, err == nil
		}
	}
	return 0, false
}

func machineHasSwap() bool {
	meminfo, err := os.ReadFile("/proc/meminfo")
	return err == nil && statusBytes(meminfo, "SwapTotal") > 0
}

// children returns the names and usages of the largest children. It looks at no more after until.
func (h *heldReader) children(until uint64) (events []event.Event) {
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return nil
	}
	var children []event.Event
	dirs := 0
	for _, entry := range entries {
		dir := filepath.Join(h.dir, entry.Name())
		if !entry.IsDir() {
			continue
		}
		if dirs++; dirs > maxDirs || h.now() > until {
			break
		}
		number, err := inodeOf(dir)
		if err != nil {
			continue
		}
		e := h.event
		e.Type, e.Cgroup.ID, e.ParentID, e.Name = event.MemoryStat, number, h.event.Cgroup.ID, entry.Name()
		if e.UsagePages, e.BootNanos = h.usage(dir); e.UsagePages > 0 {
			children = append(children, e)
		}
	}
	slices.SortStableFunc(children, func(a, b event.Event) int { return cmp.Compare(b.UsagePages, a.UsagePages) })
	for _, e := range children[:min(len(children), maxChildren)] {
		name := event.Event{Type: event.CgroupName, Cgroup: e.Cgroup, ParentID: h.event.Cgroup.ID, Name: e.Name}
		e.Name = ""
		events = append(events, name, e)
	}
	return events
}

// processes returns the largest processes. It looks at no more after until.
func (h *heldReader) processes(until uint64) (events []event.Event) {
	dirs, pids := 0, 0
	// WalkDir fails only for cgroups removed by now.
	filepath.WalkDir(h.dir, func(dir string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil
		}
		if dirs++; dirs > maxDirs || h.now() > until {
			return fs.SkipAll
		}
		number, err := inodeOf(dir)
		if err != nil {
			return nil
		}
		content, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return nil
		}
		for line := range strings.FieldsSeq(string(content)) {
			pid, err := strconv.ParseUint(line, 10, 32)
			if err != nil || uint32(pid) == h.victim {
				continue
			}
			if pids++; pids > maxPIDs || h.now() > until {
				return fs.SkipAll
			}
			e := h.event
			e.Type, e.Victim.PID, e.Victim.CgroupID = event.Held, uint32(pid), number
			if readProcess(&e.Victim) {
				e.BootNanos = h.now()
				events = append(events, e)
			}
		}
		return nil
	})
	slices.SortStableFunc(events, func(a, b event.Event) int {
		return cmp.Compare(b.Victim.HeldPages(), a.Victim.HeldPages())
	})
	return events[:min(len(events), maxProcesses)]
}

// readProcess fills in a process from /proc/PID/status. It returns false for one without
// memory of its own: a kernel thread, or a process that exits.
func readProcess(v *event.Victim) bool {
	proc := fmt.Sprintf("/proc/%d", v.PID)
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		return false
	}
	comm, err := os.ReadFile(proc + "/comm")
	if err != nil {
		return false
	}
	copy(v.Comm[:len(v.Comm)-1], bytes.TrimSuffix(comm, []byte("\n")))
	pages := func(name string) uint64 { return statusBytes(status, name) / uint64(unix.Getpagesize()) }
	v.AnonPages, v.FilePages, v.ShmemPages, v.SwapPages = pages("RssAnon"), pages("RssFile"), pages("RssShmem"), pages("VmSwap")
	v.PageTableBytes = statusBytes(status, "VmPTE")
	return v.HeldPages() > 0
}

// statusBytes returns the size in a line such as "RssAnon:	  12 kB"; 0 if there is none.
func statusBytes(status []byte, name string) uint64 {
	_, after, ok := bytes.Cut(append([]byte("\n"), status...), []byte("\n"+name+":"))
	if !ok {
		return 0
	}
	fields := bytes.Fields(after[:min(len(after), 64)])
	if len(fields) == 0 {
		return 0
	}
	kib, err := strconv.ParseUint(string(fields[0]), 10, 64)
	if err != nil || kib > math.MaxUint64>>10 {
		return 0
	}
	return kib << 10
}

func inInitialPIDNamespace() bool {
	const initial = 0xeffffffc // PROC_PID_INIT_INO of include/linux/proc_ns.h
	number, err := inodeOf("/proc/self/ns/pid")
	return err == nil && number == initial
}

// inodeOf returns the inode number of a file. That of a directory is the ID of a cgroup.
func inodeOf(dir string) (number uint64, err error) {
	var stat unix.Stat_t
	if err := unix.Stat(dir, &stat); err != nil {
		return 0, err
	}
	return stat.Ino, nil
}
