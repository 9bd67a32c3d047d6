package cgroup

import (
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
	dir, err := unix.Open(filepath.Join(t.Dir, path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, false
	}
	defer unix.Close(dir)
	var stat unix.Stat_t
	if err := unix.Fstat(dir, &stat); err != nil || stat.Ino != id.ID {
		return 0, 0, false // another of that name
	}
	usage, limit := "memory.current", "memory.max"
	if t.Hierarchy != 0 {
		usage, limit = "memory.usage_in_bytes", "memory.limit_in_bytes"
	}
	usageBytes, usageOK := readBytes(dir, usage)
	maxBytes, maxOK := readBytes(dir, limit)
	pageSize := uint64(unix.Getpagesize())
	return int64(usageBytes / pageSize), maxBytes / pageSize, usageOK && maxOK
}

// readBytes reads a number of bytes from a file; "max" is the largest.
func readBytes(dir int, name string) (n uint64, ok bool) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	var buf [32]byte
	length, err := unix.Read(fd, buf[:])
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
