package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
	"chargetrace/internal/text"
	"chargetrace/internal/verdict"
	"chargetrace/internal/world"
)

// TestDiffWriteError has a full disk.
func TestDiffWriteError(t *testing.T) {
	const recording = "testdata/6.1-amd64.ctrace"
	var stderr strings.Builder
	status := run([]string{"-r", recording, "-diff", recording, "-o", "/dev/full", "-format", "html"}, nil, io.Discard, &stderr)
	if status != 1 || !strings.Contains(stderr.String(), "no space left") {
		t.Errorf("status %d, %s", status, &stderr)
	}
}

// TestWriteOnceError cannot write all: it removes a new file, and keeps one that existed.
func TestWriteOnceError(t *testing.T) {
	dir := t.TempDir()
	existing := filepath.Join(dir, "existing.html")
	if err := os.WriteFile(existing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	failure := errors.New("failure")
	for _, path := range []string{filepath.Join(dir, "new.html"), existing} {
		cfg := &config{out: outputFlags{force: true, outputs: []output{{path, "html"}}}}
		err := cfg.writeOnce(nil, func(w io.Writer) error {
			_, err := w.Write([]byte("<!doctype"))
			return errors.Join(err, failure)
		})
		if !errors.Is(err, failure) {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) != (path != existing) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestOutputWriteError cannot write the end of an output: it removes a new page, and keeps
// rows.
func TestOutputWriteError(t *testing.T) {
	dir := t.TempDir()
	for format, kept := range map[string]bool{"html": false, "svg": false, "png": false, "pb.gz": false, "folded": false, "csv": true, "ctrace": true} {
		path := filepath.Join(dir, "x."+format)
		sink, created, err := new(config).openOutput(output{path, format}, nil, io.Discard, summary.New(verdict.New(world.New(stream.Info{PageSize: 4096}), text.Format{})))
		if err != nil || created != path {
			t.Fatalf("%s: created %q, %v", format, created, err)
		}
		if err := sink.(*fileSink).file.Close(); err != nil {
			t.Fatal(err)
		}
		if err := sink.Close(stream.Counts{}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v", format, err)
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) == kept {
			t.Errorf("%s: %v", format, err)
		}
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
	o, err := cfg.open(io.Discard, io.Discard, summary.New(verdict.New(world.New(stream.Info{PageSize: 4096}), text.Format{})))
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
