package cgroup

import (
	"io/fs"
	"iter"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"chargetrace/internal/event"
)

// ReadMemory reads the Memory of a cgroup of one of these trees. ok is false if there is no such
// cgroup, and for a root, which has no limit.
func ReadMemory(trees []Tree, id event.CgroupID, path string) (m Memory, ok bool) {
	for _, t := range trees {
		if t.Hierarchy == id.Hierarchy && path != "/" {
			return t.memory(id, path)
		}
	}
	return Memory{}, false
}

// memory runs for each cgroup on a screen each second. It avoids package os, which adds each file
// that supports poll(2), as these do, to an epoll instance.
func (t Tree) memory(id event.CgroupID, path string) (m Memory, ok bool) {
	dir, number, err := openDir(filepath.Join(t.Dir, path))
	if err != nil {
		return Memory{}, false
	}
	defer unix.Close(dir)
	if number != id.ID {
		return Memory{}, false // a new cgroup with the same path
	}
	limit := "memory.max"
	m.HighPages = math.MaxUint64
	if t.Hierarchy != 0 {
		limit = "memory.limit_in_bytes"
	} else if highBytes, ok := readBytes(dir, "memory.high"); ok {
		m.HighPages = highBytes / uint64(unix.Getpagesize())
	}
	usageBytes, usageOK := readBytes(dir, usageFile(t.Hierarchy))
	maxBytes, maxOK := readBytes(dir, limit)
	m.UsagePages, m.MaxPages = pagesOf(usageBytes), maxBytes/uint64(unix.Getpagesize())
	return m, usageOK && maxOK
}

// Samples reads the usage of the cgroup and of each below it. It yields events of type
// [event.Usage], with the time that now returns right after the kernel summed the usage up. The
// usage is -1 if it cannot be read: of a root, and in cgroup v1 without memory.use_hierarchy (until
// Linux 5.10), where a cgroup does not count those below it.
func (t *Target) Samples(now func() uint64) iter.Seq[event.Event] {
	return func(yield func(event.Event) bool) {
		// WalkDir fails only for cgroups removed by now.
		filepath.WalkDir(t.Dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.IsDir() {
				return nil
			}
			dir, number, err := openDir(path)
			if err != nil {
				return nil
			}
			defer unix.Close(dir)
			e := event.Event{Type: event.Usage, Cgroup: event.CgroupID{ID: number, Hierarchy: t.ID.Hierarchy}, UsagePages: -1}
			if isRoot := path == t.Dir && len(t.Above) == 0; !isRoot && countsBelow(dir, t.ID.Hierarchy) {
				e.UsagePages, e.BootNanos = sampleUsage(dir, t.ID.Hierarchy, now)
			}
			if !yield(e) {
				return fs.SkipAll
			}
			return nil
		})
	}
}

// sampleUsage returns the usage of a cgroup, or -1 for an error, and the time right after read(2).
func sampleUsage(dir int, hierarchy uint32, now func() uint64) (pages int64, bootNanos uint64) {
	fd, err := openFile(dir, usageFile(hierarchy))
	if err != nil {
		return -1, 0
	}
	// After now: close(2) uncharges the buffer that read(2) charged, perhaps to this very cgroup
	// (fs/seq_file.c, seq_buf_alloc).
	defer unix.Close(fd)
	content := readFile(fd)
	bootNanos = now()
	n, ok := parseBytes(content)
	if !ok {
		return -1, bootNanos
	}
	return pagesOf(n), bootNanos
}

// countsBelow reports whether the usage of a cgroup includes those below it.
func countsBelow(dir int, hierarchy uint32) bool {
	if hierarchy == 0 {
		return true
	}
	n, ok := readBytes(dir, "memory.use_hierarchy")
	return !ok || n != 0
}

// usageFile returns the name of the file with a cgroup's usage.
func usageFile(hierarchy uint32) string {
	if hierarchy == 0 {
		return "memory.current"
	}
	return "memory.usage_in_bytes"
}

func pagesOf(bytes uint64) int64 { return int64(bytes / uint64(unix.Getpagesize())) }

// openDir opens the directory of a cgroup and returns the cgroup's ID.
func openDir(path string) (dir int, number uint64, err error) {
	dir, err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, 0, err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(dir, &stat); err != nil {
		unix.Close(dir)
		return -1, 0, err
	}
	return dir, stat.Ino, nil
}

// readBytes reads a number of bytes from a file of a cgroup.
func readBytes(dir int, name string) (n uint64, ok bool) {
	fd, err := openFile(dir, name)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	return parseBytes(readFile(fd))
}

func openFile(dir int, name string) (fd int, err error) {
	return unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

// readFile returns the content of a short file, or an empty string for an error.
func readFile(fd int) string {
	var buf [32]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// parseBytes parses a number of bytes; "max" is the largest.
func parseBytes(content string) (n uint64, ok bool) {
	s := strings.TrimSuffix(content, "\n")
	if s == "max" {
		return math.MaxUint64, true
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil
}
