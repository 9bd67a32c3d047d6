package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestRaiseLimit raises a limit and puts it back, unless it was changed since.
func TestRaiseLimit(t *testing.T) {
	dir := t.TempDir()
	inode, err := inodeOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "memory.max")
	set := func(value string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	has := func(want string) {
		t.Helper()
		if got, _ := os.ReadFile(file); string(got) != want {
			t.Errorf("the limit is %q, want %q", got, want)
		}
	}
	set("1048576")
	r, err := RaiseLimit(dir, inode, 4096)
	if err != nil {
		t.Fatal(err)
	}
	has("1052672")
	if err := r.Restore(); err != nil {
		t.Error(err)
	}
	has("1048576")

	if r, err = RaiseLimit(dir, inode, 4096); err != nil {
		t.Fatal(err)
	}
	set("777")
	if err := r.Restore(); err != nil {
		t.Error(err)
	}
	has("777")

	if _, err := RaiseLimit(dir, inode+1, 4096); err == nil {
		t.Error("the limit of another cgroup is raised")
	}
	set("max")
	if _, err := RaiseLimit(dir, inode, 4096); !errors.Is(err, errNoLimit) {
		t.Error(err)
	}
	has("max")
	os.Remove(file)
	if err := r.Restore(); err != nil {
		t.Errorf("of a cgroup that is gone: %v", err)
	}
	file = filepath.Join(dir, "memory.limit_in_bytes")
	set("9223372036854771712") // v1 without a limit
	if _, err := RaiseLimit(dir, inode, 4096); !errors.Is(err, errNoLimit) {
		t.Error(err)
	}
	set("8192")
	if _, err := RaiseLimit(dir, inode, 4096); err != nil {
		t.Error(err)
	}
	has("12288")
}
