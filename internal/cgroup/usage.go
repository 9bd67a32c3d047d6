package cgroup

import (
	"math"
	"os"
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
		dir := filepath.Join(t.Dir, path)
		if t.Hierarchy != id.Hierarchy || path == "/" || !(&Target{ID: id, Dir: dir}).Exists() {
			continue
		}
		usage, limit := "memory.current", "memory.max"
		if t.Hierarchy != 0 {
			usage, limit = "memory.usage_in_bytes", "memory.limit_in_bytes"
		}
		usageBytes, usageOK := readBytes(filepath.Join(dir, usage))
		maxBytes, maxOK := readBytes(filepath.Join(dir, limit))
		pageSize := uint64(unix.Getpagesize())
		return int64(usageBytes / pageSize), maxBytes / pageSize, usageOK && maxOK
	}
	return 0, 0, false
}

// readBytes reads a number of bytes; "max" is the largest.
func readBytes(path string) (n uint64, ok bool) {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	s := strings.TrimSuffix(string(content), "\n")
	if s == "max" {
		return math.MaxUint64, true
	}
	n, err = strconv.ParseUint(s, 10, 64)
	return n, err == nil
}
