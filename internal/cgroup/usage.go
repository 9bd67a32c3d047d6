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

// Usage returns what a cgroup of one of these trees holds, and its limit, in
// pages, as its files say: memory.current and memory.max, in v1
// memory.usage_in_bytes and memory.limit_in_bytes. ok is false where the cgroup is
// not there, and for a root, which has no limit.
func Usage(trees []Tree, id event.CgroupID, path string) (usagePages int64, maxPages uint64, ok bool) {
	for _, t := range trees {
		if t.Hierarchy == id.Hierarchy && path != "/" {
			return t.usage(id, path)
		}
	}
	return 0, 0, false
}

// usage is called for each cgroup on a screen each second, hence without what
// package os does for files that may block.
func (t Tree) usage(id event.CgroupID, path string) (usagePages int64, maxPages uint64, ok bool) {
	dir, number, err := openDir(filepath.Join(t.Dir, path))
	if err != nil {
		return 0, 0, false
	}
	defer unix.Close(dir)
	if number != id.ID {
		return 0, 0, false // another of that name
	}
	limit := "memory.max"
	if t.Hierarchy != 0 {
		limit = "memory.limit_in_bytes"
	}
	usagePages, usageOK := readUsage(dir, t.Hierarchy, nil)
	maxBytes, maxOK := readBytes(dir, limit)
	return usagePages, maxBytes / uint64(unix.Getpagesize()), usageOK && maxOK
}

// A Reading is what a cgroup held at a time.
type Reading struct {
	ID event.CgroupID
	// Pages is -1 where the usage cannot be read.
	Pages int64
	// At is the time right after the kernel summed it up.
	At uint64
}

// Readings reads what the cgroup holds, and each below it, in pages, as [Usage] does, with
// the time that now returns. It cannot read a root, nor a cgroup whose parents do not
// count it too: the counters of cgroup v1 without memory.use_hierarchy, which is there
// until Linux 5.10.
func (t *Target) Readings(now func() uint64) iter.Seq[Reading] {
	return func(yield func(Reading) bool) {
		// An error is that of a cgroup that was removed meanwhile.
		filepath.WalkDir(t.Dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.IsDir() {
				return nil
			}
			dir, number, err := openDir(path)
			if err != nil {
				return nil
			}
			defer unix.Close(dir)
			r := Reading{ID: event.CgroupID{ID: number, Hierarchy: t.ID.Hierarchy}, Pages: -1}
			if isRoot := path == t.Dir && len(t.Above) == 0; !isRoot && countsBelow(dir, t.ID.Hierarchy) {
				// Before the file is closed: that gives back what reading it took, perhaps
				// to this very cgroup.
				if pages, ok := readUsage(dir, t.ID.Hierarchy, func() { r.At = now() }); ok {
					r.Pages = pages
				}
			}
			if !yield(r) {
				return fs.SkipAll
			}
			return nil
		})
	}
}

// countsBelow reports whether the cgroup of a directory counts what those below it
// hold too.
func countsBelow(dir int, hierarchy uint32) bool {
	if hierarchy == 0 {
		return true
	}
	n, ok := readBytes(dir, "memory.use_hierarchy")
	return !ok || n != 0
}

// openDir opens the directory of a cgroup, and tells its number.
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

// readUsage reads what the cgroup of a directory holds, and calls whenRead, if it is not
// nil, while the file is still open.
func readUsage(dir int, hierarchy uint32, whenRead func()) (pages int64, ok bool) {
	name := "memory.current"
	if hierarchy != 0 {
		name = "memory.usage_in_bytes"
	}
	n, ok := readBytesThen(dir, name, whenRead)
	return int64(n / uint64(unix.Getpagesize())), ok
}

// readBytes reads a number of bytes from a file; "max" is the largest.
func readBytes(dir int, name string) (n uint64, ok bool) { return readBytesThen(dir, name, nil) }

// readBytesThen is readBytes, and calls whenRead, if it is not nil, while the file is still
// open.
func readBytesThen(dir int, name string, whenRead func()) (n uint64, ok bool) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	var buf [32]byte
	length, err := unix.Read(fd, buf[:])
	if whenRead != nil {
		whenRead()
	}
	if err != nil {
		return 0, false
	}
	s := strings.TrimSuffix(string(buf[:length]), "\n")
	if s == "max" {
		return math.MaxUint64, true
	}
	n, err = strconv.ParseUint(s, 10, 64)
	return n, err == nil
}
