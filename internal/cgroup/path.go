package cgroup

import (
	"path"
	"strings"
)

// Path is the path of a cgroup from the root of its hierarchy. It can differ between v1
// and v2, because in v1 each controller has its own directory.
type Path struct{ V1, V2 string }

// ParsePath parses a path as in /proc/PID/cgroup, or with the mount point before it:
// /sys/fs/cgroup, or in cgroup v1 and on hybrid systems /sys/fs/cgroup/memory.
func ParsePath(s string) Path {
	v2 := path.Clean("/" + s)
	if rest, ok := cutDir(v2, "/sys/fs/cgroup"); ok {
		v2 = rest
		if rest, ok := cutDir(v2, "/unified"); ok {
			return Path{rest, rest}
		}
		for _, controller := range []string{"/memory", "/hugetlb", "/dmem"} {
			if rest, ok := cutDir(v2, controller); ok {
				return Path{rest, v2}
			}
		}
	}
	return Path{v2, v2}
}

// cutDir returns p relative to dir, with a leading slash. ok is false if p is outside dir.
func cutDir(p, dir string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(p, dir)
	if !ok || rest != "" && rest[0] != '/' {
		return "", false
	}
	return path.Clean("/" + rest), true
}

// In returns the path in a hierarchy; 0 is v2.
func (p Path) In(hierarchy uint32) string {
	if hierarchy == 0 {
		return p.V2
	}
	return p.V1
}

// IsWithin reports whether p is the path of the cgroup or of one below it.
func IsWithin(p, cgroup string) bool {
	_, ok := cutDir(p, strings.TrimSuffix(cgroup, "/"))
	return ok
}
