//go:build linux

package vm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestCached fails to fill a directory twice, and then fills it for both callers.
func TestCached(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	broken := errors.New("broken")
	calls := 0
	fill := func(dir string) error {
		calls++
		if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil || calls < fetchAttempts {
			return errors.Join(err, broken)
		}
		return nil
	}
	for range 2 {
		dir, err := cached("x", fill)
		if err != nil || calls != fetchAttempts {
			t.Errorf("%v, %d calls", err, calls)
		}
		if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
			t.Error(err)
		}
	}
	if _, err := cached("y", func(string) error { return broken }); err != broken {
		t.Errorf("got %v, want fill's error", err)
	}
	left, err := filepath.Glob(filepath.Join(cache, "chargetrace", "vm", "*"))
	if err != nil || len(left) != 3 { // and the locks
		t.Errorf("%v, left are %q", err, left)
	}
}
