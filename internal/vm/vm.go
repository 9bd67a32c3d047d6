//go:build linux

// Package vm boots a Linux kernel in QEMU and runs a command in it. The tests use it to run
// other kernels than this machine's, and so does the demonstration. It needs no privilege
// and no KVM. Kernels, packages and QEMU itself come from Debian, into a cache: see
// [FetchKernel].
//
// The guest consists of a kernel and an initramfs. Its first process is a static executable
// that calls [Init] before anything else, usually the program that boots the guest.
//
// Package vm must not depend on chargetrace.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Machine is a virtual machine and its files.
type Machine struct {
	// Arch is the processor's GOARCH: amd64 or arm64.
	Arch string
	// Kernel is the path of the kernel's image; see [FetchKernel].
	Kernel string
	// Init is the path of the executable that is the guest's first process.
	Init string
	// Files maps absolute paths in the guest to files, links or directories on the host.
	Files map[string]string
	// CPUs defaults to 1.
	CPUs int
	// MemoryMiB defaults to 1024.
	MemoryMiB int
	// Nodes is the number of memory nodes (NUMA), each with the same part of the memory; 0 is
	// one node. A machine with Nodes has no [Snapshot].
	Nodes int
	// DiskMiB is the size of an empty disk, /dev/nvme0n1; 0 is none. A machine
	// with a disk has no [Snapshot]: QEMU cannot save the state of its NVMe device.
	DiskMiB int
	// CountInstructions makes the guest's clocks count instructions, one per nanosecond,
	// and skip idle time (QEMU's -icount shift=0,sleep=off). Then the guest's timing does
	// not depend on the host's load, and CPU time measures cost. It excludes KVM.
	CountInstructions bool
	// KernelArgs are added to the kernel's command line.
	KernelArgs []string
	// Console gets the kernel's output unless it is nil.
	Console io.Writer
}

// Run boots the machine, runs a command in it, and returns the command's exit status
// (128 + n if signal n killed it). The command has no standard input. Its output arrives
// while it runs. An error means that the exit status is unknown; its text ends with the
// kernel's last lines.
func (m *Machine) Run(ctx context.Context, stdout, stderr io.Writer, argv ...string) (int, error) {
	dir, err := os.MkdirTemp("", "vm-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	mailbox, err := newMailbox()
	if err != nil {
		return 0, err
	}
	defer mailbox.Close()
	args, err := m.bootArgs(ctx, dir)
	if err != nil {
		return 0, err
	}
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

// command returns the command for the machine.
func (m *Machine) command(argv []string) *command {
	return &command{Argv: argv, Settle: m.CountInstructions}
}

// bootArgs writes the files that the machine boots from to dir, and returns QEMU's
// arguments.
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
	for i := range m.Nodes {
		args = append(args,
			"-object", fmt.Sprintf("memory-backend-ram,id=node%d,size=%dM", i, m.memoryMiB()/m.Nodes),
			"-numa", fmt.Sprintf("node,nodeid=%d,memdev=node%[1]d", i))
	}
	if m.DiskMiB > 0 {
		disk := filepath.Join(dir, "disk")
		if err := createDisk(disk, int64(m.DiskMiB)<<20); err != nil {
			return nil, err
		}
		// The kernels have the driver of NVMe built in.
		args = append(args, "-drive", "file="+disk+",if=none,id=disk,format=raw,cache=unsafe", "-device", "nvme,drive=disk,serial=disk")
	}
	return args, nil
}

// createDisk makes a sparse file.
func createDisk(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// Snapshot is a machine that has booted and waits for its command. Each [Snapshot.Run]
// continues from there in a separate machine, so that commands do not affect each other.
type Snapshot struct {
	machine Machine
	ram     *os.File // the contents after boot
	state   string   // the file with the state of the devices
}

// Snapshot boots the machine and saves it in dir: the RAM and the state of the devices. The
// machine must count instructions.
func (m *Machine) Snapshot(ctx context.Context, dir string) (_ *Snapshot, err error) {
	if m.DiskMiB > 0 || m.Nodes > 0 || !m.CountInstructions {
		return nil, errors.New("only a machine that counts instructions, and has no disk and no nodes, has a snapshot")
	}
	args, err := m.bootArgs(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer os.Remove(filepath.Join(dir, "initramfs"))
	// A file, since the host can evict it from memory: each snapshot has about 1 GiB.
	name := filepath.Join(dir, "ram")
	ram, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{machine: *m, ram: ram, state: filepath.Join(dir, "state")}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := os.Remove(name); err != nil { // it is gone when the last machine ends
		return nil, err
	}
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

// ramArgs are arguments that make an inherited file the guest's RAM. The guest writes to
// the file if share is "on", and to private copies of its pages if it is "off".
func (m *Machine) ramArgs(share string) []string {
	return []string{
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=/dev/fd/%d,share=%s", m.memoryMiB(), ramFD, share),
		"-machine", "memory-backend=ram",
	}
}

// Run runs a command in a copy of the machine, like [Machine.Run].
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
	// The mailbox must be empty until now, as it was when the machine was saved.
	if err := writeMailbox(mailbox, s.machine.command(argv)); err != nil {
		return 0, err
	}
	if err := q.execute("cont", nil); err != nil {
		return 0, err
	}
	return q.wait(stdout, stderr)
}
