package cgroup

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chargetrace/internal/event"
)

func TestParsePath(t *testing.T) {
	for given, want := range map[string]Path{
		"/":                             {"/", "/"},
		"/a/b":                          {"/a/b", "/a/b"},
		"/a//b/../c/":                   {"/a/c", "/a/c"},
		"/sys/fs/cgroup":                {"/", "/"},
		"/sys/fs/cgroup/a":              {"/a", "/a"},
		"/sys/fs/cgroup2/a":             {"/sys/fs/cgroup2/a", "/sys/fs/cgroup2/a"},
		"/sys/fs/cgroup/unified/a":      {"/a", "/a"},
		"/sys/fs/cgroup/memory/a":       {"/a", "/memory/a"},
		"/sys/fs/cgroup/memory.slice/a": {"/memory.slice/a", "/memory.slice/a"},
	} {
		if got := ParsePath(given); got != want {
			t.Errorf("%s: %q, want %q", given, got, want)
		}
	}
	for _, tc := range []struct {
		path, in string
		want     bool
	}{
		{"/a", "/a", true}, {"/a/b", "/a", true}, {"/ab", "/a", false}, {"/", "/a", false}, {"/a", "/", true}, {"/", "/", true},
	} {
		if got := IsWithin(tc.path, tc.in); got != tc.want {
			t.Errorf("%s is within %s: %v", tc.path, tc.in, got)
		}
	}
}

func TestParseTrees(t *testing.T) {
	const mounts = `25 1 0:22 / /proc rw - proc proc rw
30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/my\040memory rw shared:9 - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/hugetlb rw - cgroup cgroup rw,hugetlb
35 30 0:28 / /mnt rw - cgroup cgroup rw,memory
short
`
	const cgroups = "12:hugetlb:/\n7:memory:/user.slice\n3:cpu,cpuacct:/\n0::/user.slice\n"
	want := []Tree{{0, "/sys/fs/cgroup/unified"}, {7, "/sys/fs/cgroup/my memory"}, {12, "/sys/fs/cgroup/hugetlb"}}
	if got := parseTrees(mounts, cgroups); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestFind(t *testing.T) {
	root := t.TempDir()
	id := strings.Repeat("ab", 32)
	container := filepath.Join("a", "docker", id)
	if err := os.MkdirAll(filepath.Join(root, container, "inner"), 0o755); err != nil {
		t.Fatal(err)
	}
	trees := []Tree{{0, root}, {5, t.TempDir()}}
	if _, err := ParsePath("/none").Find(trees); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	for _, path := range []string{"/a/docker", filepath.Join(root, "a", "docker")} {
		targets, err := ParsePath(path).Find(trees)
		if err != nil || len(targets) != 1 {
			t.Fatalf("%v, %v", targets, err)
		}
		got := targets[0]
		above := []event.CgroupID{inode(t, filepath.Join(root, "a")), inode(t, root)}
		if got.ID != inode(t, filepath.Join(root, "a", "docker")) || !slices.Equal(got.Above, above) || !got.Exists() {
			t.Errorf("%s: %+v", path, got)
		}
	}
	var paths []string
	for tree, path := range Walk(trees) {
		paths = append(paths, path)
		target, err := tree.Target(path)
		if err != nil || target.Dir != filepath.Join(tree.Dir, path) {
			t.Errorf("%s: %+v, %v", path, target, err)
		}
	}
	if want := []string{"/", "/a", "/a/docker", "/" + container, "/" + container + "/inner", "/"}; !slices.Equal(paths, want) {
		t.Errorf("%q, want %q", paths, want)
	}
	for range Walk(trees) {
		break // it can be stopped
	}
}

// inode returns the ID that a directory would have as a cgroup.
func inode(t *testing.T, dir string) event.CgroupID {
	t.Helper()
	target, err := Tree{0, dir}.target(dir)
	if err != nil {
		t.Fatal(err)
	}
	return target.ID
}

// TestSamples reads the usage in trees of v2 and of v1.
func TestSamples(t *testing.T) {
	root := t.TempDir()
	for file, content := range map[string]string{
		"memory.current": "409600", "memory.usage_in_bytes": "409600", // of the root
		"a/memory.current": "8192\n", "a/memory.usage_in_bytes": "12288\n", "a/memory.use_hierarchy": "1\n",
		"a/b/memory.current": "0\n", "a/d/memory.usage_in_bytes": "0\n", "a/d/memory.use_hierarchy": "0\n",
		"a/d/memory.current": "16384\n", // v2 has no memory.use_hierarchy
		"a/c/memory.max":     "max\n",
	} {
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pages := func(n int64) int64 { return n * 4096 / int64(os.Getpagesize()) }
	id := func(path string) uint64 { return inode(t, filepath.Join(root, path)).ID }
	top, a, b, c, d := id(""), id("a"), id("a/b"), id("a/c"), id("a/d")
	for _, tc := range []struct {
		hierarchy uint32
		path      string
		want      map[event.CgroupID]int64
	}{
		{0, "/", map[event.CgroupID]int64{{ID: top}: -1, {ID: a}: pages(2), {ID: b}: 0, {ID: c}: -1, {ID: d}: pages(4)}},
		{0, "/a/c", map[event.CgroupID]int64{{ID: c}: -1}},
		{7, "/", map[event.CgroupID]int64{{ID: top, Hierarchy: 7}: -1, {ID: a, Hierarchy: 7}: pages(3), {ID: b, Hierarchy: 7}: -1, {ID: c, Hierarchy: 7}: -1, {ID: d, Hierarchy: 7}: -1}},
		{7, "/a/b", map[event.CgroupID]int64{{ID: b, Hierarchy: 7}: -1}},
	} {
		targets, err := ParsePath(tc.path).Find([]Tree{{tc.hierarchy, root}})
		if err != nil {
			t.Fatal(err)
		}
		got := map[event.CgroupID]int64{}
		clock := uint64(0)
		for e := range targets[0].Samples(func() uint64 { clock++; return clock }) {
			got[e.Cgroup] = e.UsagePages
			if e.Type != event.Usage || e.UsagePages >= 0 && e.BootNanos != clock {
				t.Errorf("read %+v at %d", e, clock)
			}
		}
		if !maps.Equal(got, tc.want) {
			t.Errorf("%d, %s: %v, want %v", tc.hierarchy, tc.path, got, tc.want)
		}
	}
}
