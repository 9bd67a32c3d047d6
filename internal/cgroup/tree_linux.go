package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"chargetrace/internal/event"
)

// Tree is a mounted cgroup hierarchy of this machine.
type Tree struct {
	// Hierarchy is as in [event.CgroupID].
	Hierarchy uint32
	// Dir is its mount point.
	Dir string
}

// Trees returns the hierarchies of this machine with controllers that count pages: cgroup
// v2, and in v1 those with memory and hugetlb.
func Trees() ([]Tree, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	cgroups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	trees := parseTrees(string(mounts), string(cgroups))
	if len(trees) == 0 {
		return nil, errors.New("no cgroup file system is mounted")
	}
	return trees, nil
}

// parseTrees parses the text of /proc/self/mountinfo and /proc/self/cgroup.
func parseTrees(mounts, cgroups string) (trees []Tree) {
	for _, m := range parseMounts(mounts) {
		t := Tree{Dir: m.dir}
		switch m.fsType {
		case "cgroup2":
		case "cgroup":
			if !slices.Contains(m.options, "memory") && !slices.Contains(m.options, "hugetlb") {
				continue
			}
			t.Hierarchy = hierarchyOf(cgroups, m.options)
			if t.Hierarchy == 0 {
				continue
			}
		default:
			continue
		}
		// A hierarchy can have several mount points.
		if !slices.ContainsFunc(trees, func(x Tree) bool { return x.Hierarchy == t.Hierarchy }) {
			trees = append(trees, t)
		}
	}
	return trees
}

// hierarchyOf returns the number of the v1 hierarchy with one of the controllers; 0 if
// there is none.
func hierarchyOf(cgroups string, controllers []string) uint32 {
	for line := range strings.Lines(cgroups) {
		fields := strings.SplitN(line, ":", 3)
		if len(fields) < 3 {
			continue
		}
		for name := range strings.SplitSeq(fields[1], ",") {
			if n, err := strconv.ParseUint(fields[0], 10, 32); err == nil && slices.Contains(controllers, name) {
				return uint32(n)
			}
		}
	}
	return 0
}

// mount is a line of /proc/self/mountinfo; see proc_pid_mountinfo(5).
type mount struct {
	root, dir, fsType string
	options           []string // of the file system; for cgroup v1 they include the controllers
}

func parseMounts(mountinfo string) (mounts []mount) {
	for line := range strings.Lines(mountinfo) {
		here, super, _ := strings.Cut(line, " - ")
		fields, superFields := strings.Fields(here), strings.Fields(super)
		if len(fields) < 5 || len(superFields) < 3 {
			continue
		}
		mounts = append(mounts, mount{mountEscapes.Replace(fields[3]), mountEscapes.Replace(fields[4]), superFields[0], strings.Split(superFields[2], ",")})
	}
	return mounts
}

var mountEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// Target is a cgroup of this machine.
type Target struct {
	ID event.CgroupID
	// Above are the ancestors, the root last.
	Above []event.CgroupID
	Dir   string
}

// Find returns the cgroups with the path in trees, at most one in each.
func (p Path) Find(trees []Tree) ([]Target, error) {
	var targets []Target
	for _, t := range trees {
		dir := filepath.Join(t.Dir, p.In(t.Hierarchy))
		if IsWithin(p.V2, t.Dir) { // the path includes a mount point unknown to ParsePath
			dir = p.V2
		}
		if target, err := t.target(dir); err == nil {
			targets = append(targets, target)
		}
	}
	if len(targets) == 0 {
		return nil, fmt.Errorf("there is no cgroup %s: %w", p.V2, fs.ErrNotExist)
	}
	return targets, nil
}

// target returns the cgroup with the directory dir.
func (t Tree) target(dir string) (Target, error) {
	target := Target{Dir: dir}
	for {
		// Since Linux 5.5 the inode number is the cgroup's ID.
		var stat unix.Stat_t
		if err := unix.Stat(dir, &stat); err != nil {
			return Target{}, err
		}
		id := event.CgroupID{ID: stat.Ino, Hierarchy: t.Hierarchy}
		if dir == target.Dir {
			target.ID = id
		} else {
			target.Above = append(target.Above, id)
		}
		if len(dir) <= len(t.Dir) {
			return target, nil
		}
		dir = filepath.Dir(dir)
	}
}

// Walk yields the cgroups of the trees by tree and path, each after its parent.
func Walk(trees []Tree) iter.Seq2[Tree, string] {
	return func(yield func(Tree, string) bool) {
		for _, t := range trees {
			stopped := false
			// WalkDir fails only for cgroups removed by now.
			filepath.WalkDir(t.Dir, func(dir string, entry fs.DirEntry, err error) error {
				if err != nil || !entry.IsDir() {
					return nil
				}
				if stopped = !yield(t, path.Clean("/"+strings.TrimPrefix(dir, t.Dir))); stopped {
					return fs.SkipAll
				}
				return nil
			})
			if stopped {
				return
			}
		}
	}
}

// Target returns the cgroup with a path.
func (t Tree) Target(cgroupPath string) (Target, error) {
	return t.target(filepath.Join(t.Dir, cgroupPath))
}

// Exists reports whether the cgroup still exists.
func (t *Target) Exists() bool {
	var stat unix.Stat_t
	return unix.Stat(t.Dir, &stat) == nil && stat.Ino == t.ID.ID
}
