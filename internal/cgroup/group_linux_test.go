package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindHierarchy(t *testing.T) {
	const (
		v2       = "30 22 0:27 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
		v1       = "33 30 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n34 30 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
		unified  = "40 30 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
		confined = "34 30 0:31 /docker/1a /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
	)
	for _, tc := range []struct {
		name, selfCgroup, mountinfo string
		want                        hierarchy
		err                         string
	}{
		{"v2", "0::/user.slice/x\n", v2, hierarchy{false, "/sys/fs/cgroup", "/sys/fs/cgroup/user.slice/x"}, ""},
		{"v2, root", "0::/\n", v2, hierarchy{false, "/sys/fs/cgroup", "/sys/fs/cgroup"}, ""},
		{"v1", "4:memory:/a\n3:cpuset:/b\n0::/c\n", v1 + unified, hierarchy{true, "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/a"}, ""},
		{"v1 without memory", "3:cpuset:/b\n0::/c\n", v1 + unified, hierarchy{false, "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/c"}, ""},
		{"a part is mounted", "4:memory:/docker/1a/b\n", confined, hierarchy{true, "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/b"}, ""},
		{"another part", "4:memory:/docker/1ab\n", confined, hierarchy{true, "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory"}, ""},
		{"outside the namespace", "0::/../../x\n", v2, hierarchy{false, "/sys/fs/cgroup", "/sys/fs/cgroup"}, ""},
		{"the first mount that contains it", "4:memory:/x\n", confined + strings.ReplaceAll(v1, "/sys", "/other"), hierarchy{true, "/other/fs/cgroup/memory", "/other/fs/cgroup/memory/x"}, ""},
		{"a space", "0::/a b:c\n", strings.ReplaceAll(v2, "/sys/fs", `/my\040\134fs`), hierarchy{false, `/my \fs/cgroup`, `/my \fs/cgroup/a b:c`}, ""},
		{"no mount", "0::/\n", v1, hierarchy{}, "not mounted"},
		{"no controller", "3:cpuset:/b\n", v1, hierarchy{}, ErrNoController.Error()},
		{"nonsense", "x\n", "y\n - \n", hierarchy{}, ErrNoController.Error()},
	} {
		got, err := findHierarchy(tc.selfCgroup, tc.mountinfo)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %+v, %v, want an error with %q", tc.name, got, err, tc.err)
			}
		} else if got != tc.want || err != nil {
			t.Errorf("%s: %+v, %v, want %+v", tc.name, got, err, tc.want)
		}
	}
}

func TestParent(t *testing.T) {
	for _, tc := range []struct {
		name         string
		controllers  string
		subtree      [3]string // of /, /a and /a/b
		want, writes string
		err          error
	}{
		{"its own", "memory\n", [3]string{"memory", "memory", "io memory\n"}, "a/b", "", nil},
		{"the nearest", "memory\n", [3]string{"memory", "cpu memory\n", "cpu\n"}, "a", "", nil},
		{"the top", "memory\n", [3]string{"memory\n", "cpu\n", "memory_recursive\n"}, "", "", nil},
		{"none has it yet", "cpu memory\n", [3]string{"cpu", "", ""}, "", "+memory", nil},
		{"no controller", "cpu\n", [3]string{"cpu", "", ""}, "", "", ErrNoController},
	} {
		top := t.TempDir()
		for i, dir := range []string{"", "a", "a/b"} {
			if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
				t.Fatal(err)
			}
			for name, content := range map[string]string{"cgroup.controllers": tc.controllers, subtreeControl: tc.subtree[i]} {
				if err := os.WriteFile(filepath.Join(top, dir, name), []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		got, err := hierarchy{top: top, own: filepath.Join(top, "a/b")}.parent()
		if !errors.Is(err, tc.err) || err == nil && got != filepath.Join(top, tc.want) {
			t.Errorf("%s: %s, %v", tc.name, got, err)
		}
		if content, err := os.ReadFile(filepath.Join(top, subtreeControl)); err != nil || !strings.HasPrefix(string(content), tc.writes) {
			t.Errorf("%s: wrote %q, %v", tc.name, content, err)
		}
	}
}

func TestSettings(t *testing.T) {
	zero, some, most := int64(0), int64(5), int64(1<<63-1)
	for _, tc := range []struct {
		limits Limits
		v1     bool
		want   string
	}{
		{Limits{}, false, "[]"},
		{Limits{10, 7, &zero}, false, "[[memory.max 10] [memory.high 7] [memory.swap.max 0]]"},
		{Limits{0, 0, &some}, false, "[[memory.swap.max 5]]"},
		{Limits{10, 0, nil}, true, "[[memory.limit_in_bytes 10]]"},
		{Limits{10, 0, &some}, true, "[[memory.limit_in_bytes 10] [memory.memsw.limit_in_bytes 15]]"},
		{Limits{10, 0, &most}, true, "[[memory.limit_in_bytes 10] [memory.memsw.limit_in_bytes -1]]"},
		{Limits{10, 7, nil}, true, "cgroup v1 has no memory.high"},
		{Limits{0, 0, &some}, true, "cgroup v1 can limit swap only together with memory"},
	} {
		settings, err := tc.limits.settings(tc.v1)
		got := fmt.Sprint(settings)
		if err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%+v, v1 %v: %s, want %s", tc.limits, tc.v1, got, tc.want)
		}
	}
}
