package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// limitFiles makes writes beyond a size fail with EFBIG until the test ends.
func limitFiles(t *testing.T, bytes uint64) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(unix.SIGXFSZ) // else the Go runtime exits
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
			t.Error(err)
		}
		signal.Reset(unix.SIGXFSZ)
	})
}

// TestDiffWriteError has no room for the page: -diff removes a new file, and keeps one
// that existed.
func TestDiffWriteError(t *testing.T) {
	const recording = "testdata/6.1-amd64.ctrace"
	dir := t.TempDir()
	existing := filepath.Join(dir, "existing.html")
	if err := os.WriteFile(existing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	limitFiles(t, 100)
	for _, path := range []string{filepath.Join(dir, "new.html"), existing} {
		var stderr strings.Builder
		status := run([]string{"-r", recording, "-diff", recording, "-o", path, "-force"}, nil, io.Discard, &stderr)
		if status != 1 || !strings.Contains(stderr.String(), "file too large") {
			t.Errorf("%s: status %d, %s", path, status, &stderr)
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) != (path != existing) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestWriteOnceCloseError has a file that cannot be closed, as on a full NFS server.
func TestWriteOnceCloseError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.html")
	cfg := &config{out: outputFlags{outputs: []output{{path, "html"}}}}
	err := cfg.writeOnce(nil, func(w io.Writer) error { return w.(*os.File).Close() })
	if !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed twice without an error: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
}
