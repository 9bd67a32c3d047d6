package vm

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"
	"golang.org/x/sys/unix"
)

func TestFrames(t *testing.T) {
	var port, stdout, stderr bytes.Buffer
	frames := &frameWriter{w: &port}
	if err := frames.write(frameBooted, nil); err != nil {
		t.Fatal(err)
	}
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
	boots := 0
	status, err := readFrames(bytes.NewReader(whole), &stdout, &stderr, func() { boots++ })
	if boots != 1 {
		t.Errorf("booted %d times", boots)
	}
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
		if _, err := readFrames(bytes.NewReader(whole[:n]), io.Discard, io.Discard, func() {}); err == nil {
			t.Errorf("a stream cut after %d bytes is accepted", n)
		}
	}
	if _, err := readFrames(strings.NewReader("\x09\x00\x00\x00\x00"), io.Discard, io.Discard, func() {}); err == nil {
		t.Error("a frame of unknown kind is accepted")
	}
}

// TestHungBoot runs a machine that hangs when it is booted first, and one that always
// does. They hang until somebody writes to a FIFO, and that is when patience ends.
func TestHungBoot(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	fifo := filepath.Join(bin, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	boots := make(chan func(), maxBoots) // what ends the patience with each
	defer func() { afterFunc = time.AfterFunc }()
	afterFunc = func(d time.Duration, f func()) *time.Timer {
		boots <- f
		return time.AfterFunc(d, f)
	}
	m := &Machine{Arch: "amd64", Kernel: "vmlinuz", Init: "vm_test.go", CountInstructions: true} // and so no KVM
	run := func(hangs int, script string) (status int, output string, err error) {
		if err := os.WriteFile(filepath.Join(bin, "qemu-system-x86_64"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
		var impatient sync.WaitGroup
		impatient.Go(func() {
			for range hangs {
				giveUp := <-boots
				f, err := os.OpenFile(fifo, os.O_WRONLY, 0) // when it hangs
				if err != nil {
					t.Error(err)
				}
				defer f.Close()
				giveUp()
			}
		})
		var stderr bytes.Buffer
		status, err = m.Run(t.Context(), io.Discard, &stderr, "true")
		impatient.Wait()
		return status, stderr.String(), err
	}
	hang := "read x <" + fifo + "\n"
	status, stderr, err := run(1, "[ -e $0.booted ] || { touch $0.booted; echo so far; "+hang+"}\n"+
		`printf '\004\000\000\000\000\003\004\000\000\000\007\000\000\000' >&3`+"\n")
	if status != 7 || err != nil || !strings.Contains(stderr, "hangs") || !strings.Contains(stderr, "so far\n\nbooted again\n") {
		t.Errorf("status %d, %v, %q", status, err, stderr)
	}
	<-boots // the one that did not hang
	if status, stderr, err := run(2, hang); !errors.Is(err, errHung) || strings.Count(stderr, "booted again") != 1 {
		t.Errorf("status %d, %v, %q", status, err, stderr)
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
	if err := m.writeInitramfs(name, []string{"/init", "a b"}); err != nil {
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
		"init": "tool", "argv.json": `["/init","a b"]`,
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
