package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// RaisedLimit is a memory limit that was raised for some time.
type RaisedLimit struct {
	file          string
	before, after string // the contents of the file
}

// errNoLimit is the error of RaiseLimit for a cgroup without a limit.
var errNoLimit = errors.New("it has no memory limit")

// RaiseLimit raises the memory limit of the cgroup with a directory and its inode number.
func RaiseLimit(dir string, inode uint64, bytes int64) (*RaisedLimit, error) {
	now, err := inodeOf(dir)
	if err != nil {
		return nil, err
	}
	if now != inode {
		return nil, fmt.Errorf("%s is another cgroup by now", dir)
	}
	r := &RaisedLimit{file: filepath.Join(dir, "memory.max")}
	if _, err := os.Stat(r.file); err != nil {
		r.file = filepath.Join(dir, "memory.limit_in_bytes")
	}
	if r.before, err = r.read(); err != nil {
		return nil, err
	}
	limit, err := strconv.ParseInt(r.before, 10, 64)
	if r.before == "max" || err == nil && limit > 1<<62 { // v1 has no "max"
		return nil, errNoLimit
	}
	if err != nil {
		return nil, err
	}
	if err := write(r.file, strconv.FormatInt(limit+bytes, 10)); err != nil {
		return nil, err
	}
	r.after, err = r.read()
	return r, err
}

// Restore puts the limit back, unless it was changed since or the cgroup is gone. If the cgroup
// holds more by then, the kernel reclaims and kills, in this call or at the next charge.
func (r *RaisedLimit) Restore() error {
	now, err := r.read()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || err == nil && now != r.after {
		return nil
	}
	if err != nil {
		return err
	}
	return write(r.file, r.before)
}

func (r *RaisedLimit) read() (string, error) {
	content, err := os.ReadFile(r.file)
	return strings.TrimSpace(string(content)), err
}
