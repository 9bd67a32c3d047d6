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

	"chargetrace/internal/stream"
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

// TestReportWriteError has no room for a page: it removes a new one, and keeps rows.
func TestReportWriteError(t *testing.T) {
	dir := t.TempDir()
	limitFiles(t, 100)
	for name, kept := range map[string]bool{"x.html": false, "x.svg": false, "x.png": false, "x.folded": true, "x.csv": true} {
		path := filepath.Join(dir, name)
		var stderr strings.Builder
		status := run([]string{"-r", "testdata/6.1-amd64.ctrace", "-o", path}, nil, io.Discard, &stderr)
		if full := strings.Contains(stderr.String(), "file too large"); full != (name != "x.folded") || full != (status == 1) {
			t.Errorf("%s: status %d, %s", name, status, &stderr)
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) == kept {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRotateError cannot end a part: the next one does not stay behind.
func TestRotateError(t *testing.T) {
	dir := t.TempDir()
	r, err := newRotator(filepath.Join(dir, "x.ctrace"), new(config), stream.Info{PageSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.rotate(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v", err)
	}
	if err := r.Close(stream.Counts{}); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 || filepath.Base(files[0]) != "x-1.ctrace" {
		t.Errorf("%q, %v", files, err)
	}
}

// TestDiscard abandons a session before its first event.
func TestDiscard(t *testing.T) {
	dir := t.TempDir()
	existing := filepath.Join(dir, "existing.csv")
	if err := os.WriteFile(existing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := new(config)
	cfg.out.force = true
	for _, name := range []string{"x.ctrace", "x.html", "existing.csv"} {
		cfg.out.outputs = append(cfg.out.outputs, output{filepath.Join(dir, name), name[strings.Index(name, ".")+1:]})
	}
	o, err := cfg.open(io.Discard, stream.Info{PageSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	failure := errors.New("failure")
	if err := new(session).abandon(o, o, failure); !errors.Is(err, failure) || err.Error() != "failure" {
		t.Errorf("%v", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 || files[0] != existing {
		t.Errorf("%q, %v", files, err)
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
