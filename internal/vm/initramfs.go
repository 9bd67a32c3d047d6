//go:build linux

package vm

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/cavaliergopher/cpio"
)

// markFile exists in every guest. Without it, process 1 is not in a guest.
const markFile = "/vm"

// writeInitramfs writes the guest's files as a cpio archive for the kernel
// (Documentation/driver-api/early-userspace/buffer-format.rst).
func (m *Machine) writeInitramfs(name string) (err error) {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	defer file.Close()
	buf := bufio.NewWriterSize(file, 1<<20)
	a := &archive{w: cpio.NewWriter(buf), dirs: map[string]bool{"/": true}}

	if err := a.add("/init", m.Init); err != nil {
		return err
	}
	if err := a.addBytes(markFile, nil); err != nil {
		return err
	}
	paths := make([]string, 0, len(m.Files))
	for inGuest := range m.Files {
		paths = append(paths, inGuest)
	}
	slices.Sort(paths)
	for _, inGuest := range paths {
		if err := a.add(inGuest, m.Files[inGuest]); err != nil {
			return err
		}
	}
	if err := a.w.Close(); err != nil {
		return err
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	return file.Close()
}

type archive struct {
	w    *cpio.Writer
	dirs map[string]bool
}

// add writes the file, link or directory at onHost, and the directories above it.
func (a *archive) add(inGuest, onHost string) error {
	info, err := os.Stat(onHost)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return a.addEntry(inGuest, onHost, info)
	}
	return filepath.WalkDir(onHost, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(onHost, name)
		if err != nil {
			return err
		}
		return a.addEntry(path.Join(inGuest, filepath.ToSlash(rel)), name, info)
	})
}

func (a *archive) addEntry(inGuest, onHost string, info fs.FileInfo) error {
	switch {
	case info.IsDir():
		return a.addDir(inGuest)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(onHost)
		if err != nil {
			return err
		}
		return a.write(inGuest, cpio.TypeSymlink|0o777, int64(len(target)), func(w io.Writer) error {
			_, err := io.WriteString(w, target)
			return err
		})
	case info.Mode().IsRegular():
		return a.write(inGuest, cpio.TypeReg|cpio.FileMode(info.Mode().Perm()), info.Size(), func(w io.Writer) error {
			file, err := os.Open(onHost)
			if err != nil {
				return err
			}
			defer file.Close()
			_, err = io.Copy(w, file)
			return err
		})
	}
	return fmt.Errorf("%s is not a file, link or directory", onHost)
}

func (a *archive) addBytes(inGuest string, content []byte) error {
	return a.write(inGuest, cpio.TypeReg|0o644, int64(len(content)), func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

func (a *archive) addDir(inGuest string) error {
	if a.dirs[inGuest] {
		return nil
	}
	a.dirs[inGuest] = true
	return a.write(inGuest, cpio.TypeDir|0o755, 0, func(io.Writer) error { return nil })
}

func (a *archive) write(inGuest string, mode cpio.FileMode, size int64, content func(io.Writer) error) error {
	if dir := path.Dir(inGuest); !a.dirs[dir] {
		if err := a.addDir(dir); err != nil {
			return err
		}
	}
	// Names in the archive are relative to the root.
	header := &cpio.Header{Name: inGuest[1:], Mode: mode, Size: size}
	if err := a.w.WriteHeader(header); err != nil {
		return err
	}
	return content(a.w)
}
