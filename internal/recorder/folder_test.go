//go:build unix

package recorder

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"chargetrace/internal/stream"
	"chargetrace/internal/trace"
)

// recordingOf returns a function that writes an empty recording of some size at least.
func recordingOf(size int) func(io.Writer, string) error {
	return func(w io.Writer, name string) error {
		i := info
		i.Saved = &stream.Saved{File: name}
		out, err := trace.NewWriter(w, i)
		if err != nil {
			return err
		}
		_, err = w.Write(make([]byte, size))
		return errors.Join(err, out.Close(stream.Counts{}))
	}
}

func open(t *testing.T, dir string, o FolderOptions) *Folder {
	t.Helper()
	f, err := OpenFolder(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// name returns the name of a recording of the n-th minute.
func name(n int) string {
	return fileName(OOM, time.Date(2026, 11, 29, 8, n, 0, 0, time.UTC), "/a/b · c")
}

// TestRetention drops the oldest recordings, those of an earlier run too, and touches no other
// file: of another program, renamed, a link, a pipe, a page made by hand.
func TestRetention(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	save := func(f *Folder, n int, page bool) {
		t.Helper()
		saved, err := f.Save(name(n), 1000, recordingOf(1000))
		if err != nil || saved != name(n) {
			t.Fatalf("%q, %v", saved, err)
		}
		if page {
			if err := f.SavePage(saved, func(w io.Writer) error { _, err := w.Write(make([]byte, 5000)); return err }); err != nil {
				t.Fatal(err)
			}
		}
	}
	first := open(t, dir, FolderOptions{})
	for n := range 5 {
		save(first, n, n == 1)
	}
	os.Rename(filepath.Join(dir, name(0)), filepath.Join(dir, "kept.ctrace"))
	page := strings.TrimSuffix(name(2), extension) + pageExtension
	others := []string{name(50), "oom-20200101T000000Z-x.ctrace", "notes.txt", page}
	// page is of a recording that is dropped.
	for _, other := range others {
		if err := os.WriteFile(filepath.Join(dir, other), []byte("other"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	copied := "oom-20200102T000000Z-x.ctrace"
	if err := os.Link(filepath.Join(dir, "kept.ctrace"), filepath.Join(dir, copied)); err != nil {
		t.Fatal(err)
	}
	link, fifo := "oom-20200103T000000Z-x.ctrace", "oom-20200104T000000Z-x.ctrace"
	if err := errors.Join(os.Symlink(name(3), filepath.Join(dir, link)), syscall.Mkfifo(filepath.Join(dir, fifo), 0o600)); err != nil {
		t.Fatal(err)
	}
	others = append(others, "kept.ctrace", copied, link, fifo)

	second := open(t, dir, FolderOptions{MaxFiles: 3})
	save(second, 5, false)
	want := slices.Concat(others, []string{name(3), name(4), name(5)})
	slices.Sort(want)
	if got := list(t, dir); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	// The clock was set back: the last recording is kept nevertheless.
	save(second, 1, true)
	if got := list(t, dir); !slices.Contains(got, name(1)) || slices.Contains(got, name(3)) {
		t.Errorf("%q", got)
	}
	// Of 7,000 bytes, the page has 5,000.
	third := open(t, dir, FolderOptions{MaxBytes: 3500})
	save(third, 6, false)
	want = slices.Concat(others, []string{name(5), name(6)})
	slices.Sort(want)
	if got := list(t, dir); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestFolderNames never overwrites a file, and gives the recording the next free name.
func TestFolderNames(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir, FolderOptions{})
	if err := os.WriteFile(filepath.Join(dir, name(1)), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	second := strings.TrimSuffix(name(1), extension) + "-2" + extension
	third := strings.TrimSuffix(name(1), extension) + "-3" + extension
	made := false
	saved, err := f.Save(name(1), 1000, func(w io.Writer, name string) error {
		if !made { // another program is faster
			made = true
			os.WriteFile(filepath.Join(dir, second), []byte("other"), 0o600)
		}
		return recordingOf(0)(w, name)
	})
	if err != nil || saved != third {
		t.Errorf("%q, %v", saved, err)
	}
	if !f.wrote(third) {
		t.Error("the recording does not have its name")
	}
	for _, other := range []string{name(1), second} {
		if content, _ := os.ReadFile(filepath.Join(dir, other)); string(content) != "other" {
			t.Errorf("%s was overwritten", other)
		}
	}
	if err := f.SavePage(third, func(io.Writer) error { return nil }); err != nil {
		t.Error(err)
	}
	if err := f.SavePage(third, func(io.Writer) error { return nil }); !errors.Is(err, os.ErrExist) {
		t.Errorf("the second page: %v", err)
	}
}

// TestDiskFull fails to write until two recordings are dropped, and forever.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	var dropped []string
	f := open(t, dir, FolderOptions{Dropped: func(path string) { dropped = append(dropped, filepath.Base(path)) }})
	for n := range 4 {
		if _, err := f.Save(name(n), 1000, recordingOf(0)); err != nil {
			t.Fatal(err)
		}
	}
	full := func(least int) func(io.Writer, string) error {
		return func(w io.Writer, name string) error {
			if len(list(t, dir)) > least+1 { // and the part
				return fmt.Errorf("write: %w", syscall.ENOSPC)
			}
			return recordingOf(0)(w, name)
		}
	}
	if saved, err := f.Save(name(9), 1000, full(2)); err != nil || saved != name(9) {
		t.Errorf("%q, %v", saved, err)
	}
	if want := []string{name(0), name(1)}; !slices.Equal(dropped, want) {
		t.Errorf("dropped %q", dropped)
	}
	// Not more is dropped than it needs.
	if _, err := f.Save(name(10), 10, full(-1)); !errors.Is(err, syscall.ENOSPC) || len(list(t, dir)) != 2 {
		t.Errorf("%v, left %q", err, list(t, dir))
	}
	if _, err := f.Save(name(10), 1<<20, full(-1)); !errors.Is(err, syscall.ENOSPC) || !errors.Is(err, errNothingToDrop) || len(list(t, dir)) != 0 {
		t.Errorf("%v, left %q", err, list(t, dir))
	}
	// Another error drops nothing.
	f.Save(name(11), 1000, recordingOf(0))
	if _, err := f.Save(name(12), 1000, func(io.Writer, string) error { return syscall.EIO }); !errors.Is(err, syscall.EIO) || !slices.Equal(list(t, dir), []string{name(11)}) {
		t.Errorf("%v, left %q", err, list(t, dir))
	}
}

// TestParts removes what a killed process has left, and not what another one is writing.
func TestParts(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, partPrefix+"left")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f := open(t, dir, FolderOptions{})
	if _, err := os.Stat(left); err == nil {
		t.Error("a part is left")
	}
	var during []string
	if _, err := f.Save(name(1), 1000, func(w io.Writer, name string) error {
		if during != nil {
			return recordingOf(0)(w, name)
		}
		other := open(t, dir, FolderOptions{})
		during = list(t, dir)
		_, err := other.Save(name, 1000, recordingOf(0))
		return errors.Join(err, recordingOf(0)(w, name))
	}); err != nil {
		t.Error(err)
	}
	taken := 0
	if _, err := f.Save(name(2), 1000, func(_ io.Writer, name string) error {
		taken++
		return os.WriteFile(filepath.Join(dir, name), nil, 0o600)
	}); !errors.Is(err, os.ErrExist) || taken != maxTaken+1 {
		t.Errorf("%d names were taken: %v", taken, err)
	}
	for range taken {
		os.Remove(filepath.Join(dir, list(t, dir)[2]))
	}
	if len(during) != 1 || !strings.HasPrefix(during[0], partPrefix) {
		t.Errorf("while it is written: %q", during)
	}
	if got := list(t, dir); len(got) != 2 {
		t.Errorf("%q", got)
	}
}

func TestFileName(t *testing.T) {
	moment := time.Date(2026, 11, 29, 17, 6, 25, 999, time.UTC)
	for label, want := range map[string]string{
		"java · 3f2a7c1e6b9d · shop/cart-7d9f": "oom-20261129T170625Z-java-3f2a7c1e6b9d-shop_cart-7d9f.ctrace",
		"/system.slice/a b\x1b.service":        "oom-20261129T170625Z-system.slice_a_b_.service.ctrace",
		"/":                                    "oom-20261129T170625Z-machine.ctrace",
		"../é":                                 "oom-20261129T170625Z-.._é.ctrace",
		strings.Repeat("x", 300):               "oom-20261129T170625Z-" + strings.Repeat("x", 100) + ".ctrace",
	} {
		want = strings.ReplaceAll(want, "é", "_")
		if got := fileName(OOM, moment, label); got != want || !ownName.MatchString(got) {
			t.Errorf("%q: %q, want %q", label, got, want)
		}
	}
	if got := fileName("95%", moment, "x"); got != "95pct-20261129T170625Z-x.ctrace" || !ownName.MatchString(got) {
		t.Error(got)
	}
}
