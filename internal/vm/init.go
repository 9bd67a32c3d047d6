//go:build linux

package vm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"

	"golang.org/x/sys/unix"
)

// Init makes a program the first process of a [Machine]: it mounts the usual file systems,
// runs the machine's command, reports its exit status, and does not return. In any other
// process it does nothing, unless another init(8) starts it with [InitVariable] in its
// environment; then Init mounts nothing.
func Init() {
	if os.Getpid() != 1 && os.Getenv(InitVariable) == "" {
		return
	}
	if _, err := os.Stat(markFile); err != nil {
		return
	}
	if err := guest(); err != nil {
		// This goes to the kernel's console; there is no other output.
		fmt.Fprintf(os.Stderr, "init: %v\n", err)
	}
	// QEMU runs with -no-reboot: a restart ends it.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

const (
	// InitVariable is an environment variable; see [Init].
	InitVariable = "VM_INIT"
	// GuestVariable is set in the environment of a machine's command.
	GuestVariable = "VM_GUEST"
)

func guest() error {
	var mountErr error
	if os.Getpid() == 1 {
		mountErr = mountAll()
	}
	os.Unsetenv(InitVariable)
	port, err := openPort()
	if err != nil {
		return errors.Join(mountErr, err)
	}
	defer port.Close()
	frames := &frameWriter{w: port}
	stderr := frames.stream(frameStderr)
	if mountErr != nil {
		fmt.Fprintf(stderr, "init: %v\n", mountErr)
	}
	status, err := runCommand(frames.stream(frameStdout), stderr)
	if err != nil {
		fmt.Fprintf(stderr, "init: %v\n", err)
	}
	if err := frames.write(frameExit, binary.LittleEndian.AppendUint32(nil, uint32(status))); err != nil {
		return err
	}
	// Wait until the port has sent everything (tcdrain(3)).
	return unix.IoctlSetInt(int(port.Fd()), unix.TCSBRK, 1)
}

// runCommand reads the machine's command, runs it and returns its exit status.
func runCommand(stdout, stderr io.Writer) (int, error) {
	c, err := readMailbox()
	if err != nil {
		return 127, fmt.Errorf("read the command: %w", err)
	}
	argv := c.Argv
	if c.Settle {
		if err := settle(); err != nil {
			return 127, err
		}
	}
	if len(argv) == 0 {
		return 127, errors.New("no command to run")
	}
	// exec.Command looks up the command in this PATH too.
	os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	os.Setenv("HOME", "/root")
	os.Setenv(GuestVariable, "1")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 127, err
	}
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// mountAll mounts the usual file systems of a Linux system.
func mountAll() error {
	var errs []error
	for _, m := range []struct{ fstype, dir string }{
		{"devtmpfs", "/dev"},
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"tmpfs", "/tmp"},
		{"tmpfs", "/run"},
		{"securityfs", "/sys/kernel/security"},
		{"debugfs", "/sys/kernel/debug"},
		{"tracefs", "/sys/kernel/tracing"},
		{"bpf", "/sys/fs/bpf"},
		{"cgroup2", "/sys/fs/cgroup"},
	} {
		err := os.MkdirAll(m.dir, 0o755)
		if err == nil {
			err = unix.Mount(m.fstype, m.dir, m.fstype, 0, "")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("mount %s at %s: %w", m.fstype, m.dir, err))
		}
	}
	// The links that udev makes.
	for name, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, name); err != nil && !os.IsExist(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// openPort opens the serial port for the frames: the one that is a PCI device.
func openPort() (*os.File, error) {
	devices, err := filepath.Glob("/sys/class/tty/ttyS*/device")
	if err != nil {
		return nil, err
	}
	pciAddress := regexp.MustCompile(`/[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7](/|$)`)
	for _, device := range devices {
		target, err := filepath.EvalSymlinks(device)
		if err != nil || !pciAddress.MatchString(target) {
			continue
		}
		port, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(device)), os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			return nil, err
		}
		raw := unix.Termios{Cflag: unix.B115200 | unix.CS8 | unix.CLOCAL}
		if err := unix.IoctlSetTermios(int(port.Fd()), unix.TCSETS, &raw); err != nil {
			return nil, errors.Join(err, port.Close())
		}
		return port, nil
	}
	return nil, errors.New("no serial port is a PCI device")
}
