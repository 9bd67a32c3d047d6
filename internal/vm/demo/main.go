//go:build linux

// Demo runs the experiment of the article that chargetrace grew out of: chargetrace traces
// a program that allocates 20 MiB in steps of 1 MiB in a cgroup limited to 10 MiB, until it
// is OOM-killed. It runs on this machine's kernel if that can be traced, else, or with
// -kernel IMAGE, in a virtual machine.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"chargetrace/internal/vm"
)

const (
	allocMiB = 20
	release  = "6.12" // of the kernel in the virtual machine
	killed   = 128 + int(unix.SIGKILL)
)

// experiment is the command, looked up in PATH.
var experiment = []string{"chargetrace", "-memory", "10M", "--", "alloc"}

func main() {
	vm.Init()
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case filepath.Base(os.Args[0]) == "alloc":
		return alloc()
	case len(args) == 0:
		return demo("")
	case args[0] == "-kernel" && len(args) == 2:
		return demo(args[1])
	}
	return fmt.Errorf("unexpected arguments: %q", args)
}

// demo runs the experiment on this machine if possible, or else on a given or downloaded
// kernel.
func demo(kernel string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "chargetrace-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	command := filepath.Join(dir, "chargetrace")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", command, "./cmd/chargetrace")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build chargetrace: %w\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if kernel == "" {
		obstacle := localObstacle(ctx, command)
		if obstacle == "" {
			return runHere(dir, self)
		}
		fmt.Fprintf(os.Stderr, "Cannot use this machine's kernel: %s.\nBooting Linux %s in QEMU.\n", obstacle, release)
		if kernel, err = vm.FetchKernel(ctx, vm.Kernel{Release: release, Arch: runtime.GOARCH}); err != nil {
			return err
		}
	}
	m := vm.Machine{
		Arch:   runtime.GOARCH,
		Kernel: kernel,
		Init:   self,
		Files:  map[string]string{"/usr/bin/chargetrace": command, "/usr/bin/alloc": self},
	}
	fmt.Fprintf(os.Stderr, "# %s\n", strings.Join(experiment, " "))
	status, err := m.Run(ctx, os.Stdout, os.Stderr, experiment...)
	if err == nil && status != killed {
		err = fmt.Errorf("the experiment exited with %d", status)
	}
	return err
}

// localObstacle returns the reason why this machine cannot run the experiment, or "".
func localObstacle(ctx context.Context, command string) string {
	if os.Getuid() != 0 {
		return "only root can make a cgroup"
	}
	var stderr bytes.Buffer
	check := exec.CommandContext(ctx, command, "-check")
	check.Stderr = &stderr
	if out, err := check.Output(); err != nil {
		// The first check that failed.
		for line := range strings.Lines(string(out)) {
			if name, rest, ok := strings.Cut(line, " lacking "); ok {
				return strings.TrimSpace(name) + ": " + strings.TrimSpace(rest)
			}
		}
		return strings.TrimSpace(stderr.String())
	}
	return ""
}

// runHere runs the experiment on this machine with the command in dir.
func runHere(dir, self string) error {
	if err := os.Symlink(self, filepath.Join(dir, "alloc")); err != nil {
		return err
	}
	os.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	// With SUDO_UID set, chargetrace would run alloc as that user, who cannot read dir.
	os.Unsetenv("SUDO_UID")
	fmt.Fprintf(os.Stderr, "# %s\n", strings.Join(experiment, " "))
	cmd := exec.Command(experiment[0], experiment[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == killed {
		return nil
	}
	return fmt.Errorf("the experiment did not exit with %d: %v", killed, err)
}

// alloc allocates memory in steps of 1 MiB.
func alloc() error {
	for range allocMiB {
		step, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return err
		}
		for i := range step {
			step[i] = 'A'
		}
	}
	return nil
}
