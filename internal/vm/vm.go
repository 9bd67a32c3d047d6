// Package vm boots a Linux kernel in QEMU and runs a command in it: for the
// tests, which need kernels that this machine does not run, and for the
// demonstration. No privilege is needed, and no KVM, which is used where it
// works.
//
// The guest is a kernel and an initramfs, no more. Its first process is a
// static executable that calls [Init] before anything else: usually the very
// program that boots the guest.
//
// It knows nothing of chargetrace.
package vm

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is a virtual machine, and what is in it.
type Machine struct {
	// Arch is the processor's GOARCH: amd64 or arm64.
	Arch string
	// Kernel is the path of the kernel's image; see [FetchKernel].
	Kernel string
	// Init is the path of the executable that is the guest's first process.
	Init string
	// Files are the other files of the guest: their absolute paths there, and
	// the path of the file, link or directory that stands there.
	Files map[string]string
	// CPUs is 1 where it is 0.
	CPUs int
	// MemoryMiB is 1024 where it is 0.
	MemoryMiB int
	// DiskMiB is the size of an empty disk, /dev/nvme0n1; 0 is none.
	DiskMiB int
	// CountInstructions makes the guest's clocks count instructions, one a
	// nanosecond, so that a time measured in it is a cost that is the same in
	// every run (QEMU's -icount). It allows one CPU, and no KVM.
	CountInstructions bool
	// KernelArgs are added to the kernel's command line.
	KernelArgs []string
	// Console, where it is not nil, gets what the kernel prints.
	Console io.Writer
}

// Run boots the machine, runs a command in it, and returns the command's exit
// status (128 + n where signal n killed it). The command has no standard input;
// what it prints arrives while it runs. An error means that the command's exit
// status is not known: its text ends with the last lines of the kernel's.
func (m *Machine) Run(ctx context.Context, stdout, stderr io.Writer, argv ...string) (int, error) {
	dir, err := os.MkdirTemp("", "vm-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	initramfs := filepath.Join(dir, "initramfs")
	if err := m.writeInitramfs(initramfs, argv); err != nil {
		return 0, fmt.Errorf("write the initramfs: %w", err)
	}

	disk := ""
	if m.DiskMiB > 0 {
		disk = filepath.Join(dir, "disk")
		if err := createDisk(disk, int64(m.DiskMiB)<<20); err != nil {
			return 0, err
		}
	}
	for boots := 1; ; boots++ {
		status, err := m.boot(ctx, initramfs, disk, stdout, stderr)
		if !errors.Is(err, errHung) || boots == maxBoots {
			return status, err
		}
		fmt.Fprintf(stderr, "%v\nbooted again\n", err)
	}
}

// A kernel was seen to hang while it booted, one of some hundreds, with its CPUs busy.
// Others are up within 40 s on a busy machine.
const (
	bootPatience = 5 * time.Minute
	maxBoots     = 2
)

// afterFunc is that of package time, but in tests.
var afterFunc = time.AfterFunc

var errHung = errors.New("the kernel hangs while it boots")

// boot boots the machine and returns the status of its command.
func (m *Machine) boot(ctx context.Context, initramfs, disk string, stdout, stderr io.Writer) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	hung := afterFunc(bootPatience, func() { cancel(errHung) })
	defer hung.Stop()

	fromGuest, toHost, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer fromGuest.Close()
	console := &tail{}
	qemu, err := m.qemu(ctx, initramfs, disk)
	if err != nil {
		toHost.Close()
		return 0, err
	}
	qemu.Stdout = console
	if m.Console != nil {
		qemu.Stdout = io.MultiWriter(console, m.Console)
	}
	qemu.Stderr = console
	qemu.ExtraFiles = []*os.File{toHost}
	err = qemu.Start()
	toHost.Close()
	if err != nil {
		return 0, err
	}
	status, readErr := readFrames(fromGuest, stdout, stderr, func() { hung.Stop() })
	waitErr := qemu.Wait()
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case readErr != nil:
		err = errors.Join(readErr, waitErr)
	default:
		return status, nil
	}
	return 0, fmt.Errorf("%s: %w; the kernel's last words:\n%s", filepath.Base(m.Kernel), err, console)
}

// createDisk makes a file of that size that takes no space.
func createDisk(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// qemu returns the command that runs the machine. An empty disk is none.
func (m *Machine) qemu(ctx context.Context, initramfs, disk string) (*exec.Cmd, error) {
	var name, console string
	var args []string
	var emulated string // the CPU, where it is emulated
	switch m.Arch {
	case "amd64":
		name, console = "qemu-system-x86_64", "ttyS0"
		args = []string{"-machine", "q35", "-cpu", "max"}
		emulated = "max,-erms" // with which a page is cleared and copied byte by byte
	case "arm64":
		name, console = "qemu-system-aarch64", "ttyAMA0"
		args = []string{"-machine", "virt", "-cpu", "max"}
		emulated = "max,pauth-impdef=on" // the default authentication of pointers is slow
	default:
		return nil, fmt.Errorf("no machine for %q: want amd64 or arm64", m.Arch)
	}
	switch {
	case m.CountInstructions:
		args = append(args, "-accel", "tcg", "-icount", "shift=0,sleep=off")
	case m.Arch == runtime.GOARCH && kvmBoots(ctx, m.Kernel, name, args):
		args = append(args, "-accel", "kvm")
	default:
		// All CPUs in one thread. In a thread each, QEMU 7.2 was seen to run code
		// as it was before another CPU had changed it, and the kernel changes its
		// code with every probe: it died of a breakpoint that was gone.
		args = append(args, "-accel", "tcg,thread=single", "-cpu", emulated)
	}
	kernelArgs := append([]string{"console=" + console, "panic=-1", "quiet"}, m.KernelArgs...)
	args = append(args,
		"-smp", strconv.Itoa(max(1, m.CPUs)),
		"-m", fmt.Sprintf("%dM", cmp.Or(m.MemoryMiB, 1024)),
		"-nodefaults", "-nographic", "-no-reboot",
		"-serial", "stdio",
		// What the command prints and its exit status come on a port of their
		// own: the kernel prints on the first.
		"-chardev", "file,id=frames,path=/dev/fd/3",
		"-device", "pci-serial,chardev=frames",
		"-kernel", m.Kernel,
		"-initrd", initramfs,
		"-append", strings.Join(kernelArgs, " "),
	)
	if disk != "" {
		// The kernels have its driver built in.
		args = append(args, "-drive", "file="+disk+",if=none,id=disk,format=raw,cache=unsafe", "-device", "nvme,drive=disk,serial=disk")
	}
	return exec.CommandContext(ctx, name, args...), nil
}

// kvmPatience is enough for a kernel that KVM runs to find no root file system:
// it takes 2 s.
const kvmPatience = 15 * time.Second

var kvm struct {
	sync.Mutex
	tried, boots bool
}

// kvmBoots reports whether KVM runs a kernel: it boots one, once, without an
// initramfs, for it to panic and so to end. Inside some virtual machines there
// is a /dev/kvm with which none boots.
func kvmBoots(ctx context.Context, kernel, qemu string, args []string) bool {
	kvm.Lock()
	defer kvm.Unlock()
	if !kvm.tried && unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) == nil {
		ctx, cancel := context.WithTimeout(ctx, kvmPatience)
		defer cancel()
		args = append(slices.Clip(args), "-accel", "kvm", "-nodefaults", "-nographic", "-no-reboot", "-kernel", kernel, "-append", "panic=-1")
		kvm.boots = exec.CommandContext(ctx, qemu, args...).Run() == nil
	}
	kvm.tried = true
	return kvm.boots
}

// What a frame on the second serial port holds.
const (
	frameStdout = 1
	frameStderr = 2
	frameExit   = 3 // the exit status as 4 bytes
	frameBooted = 4 // nothing; the first
)

// A frame is its kind, the length of its payload as 4 bytes, little-endian, and
// the payload.
const frameHeader = 5

// readFrames passes on that the guest has booted and what it prints, until its exit
// status comes.
func readFrames(r io.Reader, stdout, stderr io.Writer, booted func()) (status int, err error) {
	for {
		var header [frameHeader]byte
		if _, err := io.ReadFull(r, header[:]); err != nil {
			if err == io.EOF {
				err = errors.New("the machine stopped before the command did")
			}
			return 0, err
		}
		size := int64(binary.LittleEndian.Uint32(header[1:]))
		switch header[0] {
		case frameBooted:
			booted()
		case frameStdout:
			_, err = io.CopyN(stdout, r, size)
		case frameStderr:
			_, err = io.CopyN(stderr, r, size)
		case frameExit:
			var payload [4]byte
			if _, err := io.ReadFull(r, payload[:]); err != nil {
				return 0, err
			}
			return int(binary.LittleEndian.Uint32(payload[:])), nil
		default:
			return 0, fmt.Errorf("frame of unknown kind %d", header[0])
		}
		if err != nil {
			return 0, err
		}
	}
}

// tail is a Writer that keeps the end of what is written.
type tail struct{ buf []byte }

const tailBytes = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*tailBytes {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailBytes:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	b := t.buf
	if len(b) > tailBytes {
		b = b[len(b)-tailBytes:]
	}
	return string(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")))
}
