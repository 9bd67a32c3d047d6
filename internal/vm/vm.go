//go:build linux

// Package vm boots a Linux kernel in QEMU and runs a command in it: for the
// tests, which need kernels that this machine does not run, and for the
// demonstration. It needs no privilege and no KVM. Kernels, packages and QEMU
// itself come from Debian, into a cache: see [FetchKernel].
//
// The guest is a kernel and an initramfs, no more. Its first process is a
// static executable that calls [Init] before anything else: usually the very
// program that boots the guest.
//
// Package vm knows nothing of chargetrace.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

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
	// DiskMiB is the size of an empty disk, /dev/nvme0n1; 0 is none. A machine
	// with a disk has no [Snapshot]: QEMU cannot save the state of its NVMe device.
	DiskMiB int
	// CountInstructions makes the guest's clocks count instructions, one a
	// nanosecond, and skip idle time (QEMU's -icount shift=0,sleep=off). What
	// happens in the guest then does not depend on how busy the host is, and a CPU
	// time is a cost. It excludes KVM.
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
	args, err := m.bootArgs(ctx, dir)
	if err != nil {
		return 0, err
	}
	mailbox, err := newMailbox()
	if err != nil {
		return 0, err
	}
	defer mailbox.Close()
	if err := writeMailbox(mailbox, m.command(argv)); err != nil {
		return 0, err
	}
	q, err := m.start(ctx, args, nil, mailbox)
	if err != nil {
		return 0, err
	}
	defer q.kill()
	return q.wait(stdout, stderr)
}

// command returns what the machine is told to run.
func (m *Machine) command(argv []string) *command {
	return &command{Argv: argv, Settle: m.CountInstructions}
}

// bootArgs writes to dir the files that the machine boots from, and returns
// QEMU's arguments for them.
func (m *Machine) bootArgs(ctx context.Context, dir string) ([]string, error) {
	initramfs := filepath.Join(dir, "initramfs")
	if err := m.writeInitramfs(initramfs); err != nil {
		return nil, fmt.Errorf("write the initramfs: %w", err)
	}
	args, err := m.args(ctx)
	if err != nil {
		return nil, err
	}
	args = append(args, "-kernel", m.Kernel, "-initrd", initramfs, "-append", m.commandLine())
	if m.DiskMiB > 0 {
		disk := filepath.Join(dir, "disk")
		if err := createDisk(disk, int64(m.DiskMiB)<<20); err != nil {
			return nil, err
		}
		// The kernels have its driver built in.
		args = append(args, "-drive", "file="+disk+",if=none,id=disk,format=raw,cache=unsafe", "-device", "nvme,drive=disk,serial=disk")
	}
	return args, nil
}

// createDisk makes a file of that size that takes no space.
func createDisk(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// Snapshot is a machine that has booted and waits for its command. Each
// [Snapshot.Run] goes on from there, in a machine of its own: what one command
// does to the machine no other sees.
type Snapshot struct {
	machine Machine
	ram     *os.File // in memory, as it was when the machine had booted
	state   string   // the file with the state of its devices
}

// Snapshot boots the machine and keeps it as it is then: its RAM in memory, the state
// of its devices in a directory. It must count instructions.
func (m *Machine) Snapshot(ctx context.Context, dir string) (_ *Snapshot, err error) {
	if m.DiskMiB > 0 || !m.CountInstructions {
		return nil, errors.New("only a machine that counts instructions and has no disk has a snapshot")
	}
	args, err := m.bootArgs(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer os.Remove(filepath.Join(dir, "initramfs"))
	fd, err := unix.MemfdCreate("ram", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the machine's RAM: %w", err)
	}
	s := &Snapshot{machine: *m, ram: os.NewFile(uintptr(fd), "ram"), state: filepath.Join(dir, "state")}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	mailbox, err := newMailbox()
	if err != nil {
		return nil, err
	}
	defer mailbox.Close()
	q, err := m.start(ctx, append(args, m.ramArgs("on")...), s.ram, mailbox)
	if err != nil {
		return nil, err
	}
	defer q.kill()
	if err := q.save(s.state); err != nil {
		return nil, fmt.Errorf("save the machine: %w", err)
	}
	return s, nil
}

// Close frees the snapshot.
func (s *Snapshot) Close() error { return errors.Join(s.ram.Close(), os.RemoveAll(s.state)) }

// ramArgs make a file that QEMU inherits the guest's RAM. Where it is shared, the guest
// writes to the file; where it is not, to pages of its own.
func (m *Machine) ramArgs(share string) []string {
	return []string{
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=/dev/fd/%d,share=%s", m.memoryMiB(), ramFD, share),
		"-machine", "memory-backend=ram",
	}
}

// Run runs a command in the machine, as [Machine.Run] does.
func (s *Snapshot) Run(ctx context.Context, stdout, stderr io.Writer, argv ...string) (int, error) {
	args, err := s.machine.args(ctx)
	if err != nil {
		return 0, err
	}
	mailbox, err := newMailbox()
	if err != nil {
		return 0, err
	}
	defer mailbox.Close()
	q, err := s.machine.start(ctx, append(append(args, s.machine.ramArgs("off")...), "-incoming", "defer"), s.ram, mailbox)
	if err != nil {
		return 0, err
	}
	defer q.kill()
	if err := q.load(s.state); err != nil {
		return 0, fmt.Errorf("load the machine: %w", err)
	}
	// Until now it is empty, as it was when the machine was saved.
	if err := writeMailbox(mailbox, s.machine.command(argv)); err != nil {
		return 0, err
	}
	if err := q.execute("cont", nil); err != nil {
		return 0, err
	}
	return q.wait(stdout, stderr)
}
