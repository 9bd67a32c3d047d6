//go:build linux

package vm

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
)

func TestFrames(t *testing.T) {
	var port, stdout, stderr bytes.Buffer
	frames := &frameWriter{w: &port}
	for _, text := range []string{"one\n", "", strings.Repeat("x", 100_000)} {
		if _, err := io.WriteString(frames.stream(frameStdout), text); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(frames.stream(frameStderr), "talk\n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := frames.write(frameExit, []byte{130, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	whole := port.Bytes()
	status, err := readFrames(bytes.NewReader(whole), &stdout, &stderr)
	if err != nil || status != 130 {
		t.Errorf("status %d, %v", status, err)
	}
	if want := "one\n" + strings.Repeat("x", 100_000); stdout.String() != want {
		t.Errorf("stdout has %d bytes, want %d", stdout.Len(), len(want))
	}
	if stderr.String() != "talk\ntalk\ntalk\n" {
		t.Errorf("stderr is %q", &stderr)
	}

	for _, n := range []int{0, 3, 7, len(whole) - 1} {
		if _, err := readFrames(bytes.NewReader(whole[:n]), io.Discard, io.Discard); err == nil {
			t.Errorf("a stream cut after %d bytes is accepted", n)
		}
	}
	if _, err := readFrames(strings.NewReader("\x09\x00\x00\x00\x00"), io.Discard, io.Discard); err == nil {
		t.Error("a frame of unknown kind is accepted")
	}
}

// TestAlignClock aligns clocks that skipped to the next timer and one that did not.
func TestAlignClock(t *testing.T) {
	state := func(skipped, executed uint64) []byte {
		s := append([]byte("QEVM\x05\x05timer"), "\x05\x0ctimer/icount\x00\x00\x00\x01"...)
		s = binary.BigEndian.AppendUint64(s, skipped)
		s = binary.BigEndian.AppendUint64(s, executed)
		return append(s, 0x7e)
	}
	for _, skipped := range []uint64{0, 1_782_828, 800_000_000} {
		got := state(skipped, 2_200_000_000)
		if err := alignClock(got); err != nil || !bytes.Equal(got, state(800_000_000, 2_200_000_000)) {
			t.Errorf("%d skipped: %q, %v", skipped, got, err)
		}
	}
	whole := state(1, 2)
	for _, bad := range [][]byte{nil, whole[:len(whole)-2], append(state(1, 2), whole...)} {
		if err := alignClock(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestInitramfs(t *testing.T) {
	tree := t.TempDir()
	for name, content := range map[string]string{"usr/bin/tool": "tool", "etc/conf": "conf"} {
		if err := os.MkdirAll(filepath.Join(tree, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/bin", filepath.Join(tree, "bin")); err != nil {
		t.Fatal(err)
	}
	m := &Machine{Init: filepath.Join(tree, "usr/bin/tool"), Files: map[string]string{
		"/":            tree,
		"/opt/x/alone": filepath.Join(tree, "etc/conf"),
	}}
	name := filepath.Join(t.TempDir(), "initramfs")
	if err := m.writeInitramfs(name); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	got := make(map[string]string)
	for r := cpio.NewReader(file); ; {
		header, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := got[header.Name]; twice {
			t.Errorf("%s is there twice", header.Name)
		}
		if header.Mode.IsDir() {
			content = []byte("directory")
		}
		got[header.Name] = string(content) + header.Linkname
	}
	want := map[string]string{
		"init": "tool", "vm": "",
		"usr": "directory", "usr/bin": "directory", "usr/bin/tool": "tool",
		"etc": "directory", "etc/conf": "conf", "bin": "usr/bin",
		"opt": "directory", "opt/x": "directory", "opt/x/alone": "conf",
	}
	for name, content := range want {
		if got[name] != content {
			t.Errorf("%s is %q, want %q", name, got[name], content)
		}
	}
	if len(got) != len(want) {
		t.Errorf("the archive holds %v", got)
	}
}
