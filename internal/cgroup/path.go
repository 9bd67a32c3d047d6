package cgroup

import (
	"path"
	"strings"
)

// Path is where a cgroup is, from the root of its hierarchy. As somebody gave it,
// it can mean another cgroup in cgroup v1, where each controller has a directory.
type Path struct{ V1, V2 string }

// ParsePath returns the path that somebody means: as in /proc/PID/cgroup, or with
// the mount point before it, /sys/fs/cgroup, or in cgroup v1 and on hybrid systems
// /sys/fs/cgroup/memory.
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

// cutDir returns the path of what is in a directory from there.
func cutDir(p, dir string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(p, dir)
	if !ok || rest != "" && rest[0] != '/' {
		return "", false
	}
	return path.Clean("/" + rest), true
}

// In returns the path in a hierarchy.
func (p Path) In(hierarchy uint32) string {
	if hierarchy == 0 {
		return p.V2
	}
	return p.V1
}

// IsWithin reports whether a path is that of a cgroup or of one below it.
func IsWithin(p, cgroup string) bool {
	_, ok := cutDir(p, strings.TrimSuffix(cgroup, "/"))
	return ok
}
