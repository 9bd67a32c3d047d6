//go:build linux

package guest

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"chargetrace/internal/vm"
)

const (
	// bpftraceSuite is a Debian suite whose bpftrace works on all the kernels.
	bpftraceSuite = "forky"
	// clangVersion is the same as in the Makefile.
	clangVersion = "19"
)

// start runs the tests of this package that args select in a machine.
func (m Machine) start(ctx context.Context, k vm.Kernel, out io.Writer, args ...string) (int, error) {
	argv := append([]string{"/init"}, args...)
	if m.Disk || m.Systemd || m.Runtimes || m.Nodes > 0 { // no snapshot
		machine, err := m.machine(ctx, k)
		if err != nil {
			return 0, err
		}
		return machine.Run(ctx, out, out, argv...)
	}
	snapshot, err := once(fmt.Sprintf("%s-%dcpu", k, m.CPUs), func(dir string) (*vm.Snapshot, error) {
		// The snapshot outlives the context of the first test that needs it.
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		machine, err := m.machine(ctx, k)
		if err != nil {
			return nil, err
		}
		return machine.Snapshot(ctx, dir)
	})
	if err != nil {
		return 0, err
	}
	return snapshot.Run(ctx, out, out, argv...)
}

// machine returns a machine with the command, the tests of this package, and their tools.
func (m Machine) machine(ctx context.Context, k vm.Kernel) (*vm.Machine, error) {
	kernel, err := vm.FetchKernel(ctx, k)
	if err != nil {
		return nil, err
	}
	suite, packages := bpftraceSuite, []string{"busybox-static", "libc-bin", "ncurses-base", "runc", "tmux", "trace-cmd"}
	switch {
	case m.Systemd:
		suite, packages = "trixie", []string{"busybox-static", "systemd", "systemd-container"}
	case m.Runtimes:
		packages = []string{"busybox-static", "containerd", "podman", "runc"}
	case !m.Disk:
		packages = append(packages, "bpftrace")
	}
	tree, err := vm.FetchTree(ctx, suite, k.Arch, packages...)
	if err != nil {
		return nil, err
	}
	bin, err := once("bin-"+k.Arch, func(dir string) (string, error) { return dir, build(ctx, dir, k.Arch) })
	if err != nil {
		return nil, err
	}
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	machine := &vm.Machine{
		Arch:   k.Arch,
		Kernel: kernel,
		Init:   filepath.Join(bin, "guest"),
		Files: map[string]string{
			"/":                      tree,
			"/usr/bin/chargetrace":   filepath.Join(bin, "chargetrace"),
			"/usr/bin/workload":      filepath.Join(bin, "workload"),
			"/usr/bin/leak":          filepath.Join(bin, "leak"),
			"/README.md":             filepath.Join(root, "README.md"),
			"/try-charge-counter.bt": filepath.Join(root, "internal/guest/testdata/try-charge-counter.bt"),
		},
		CPUs:              m.CPUs,
		Nodes:             m.Nodes,
		MemoryMiB:         2048,
		CountInstructions: true,
		KernelArgs: []string{
			"hugepages=8", // reserved at boot: later memory may be fragmented
			"norandmaps",  // the same page tables in every run
		},
	}
	if m.Disk {
		machine.DiskMiB = 64 // for swap
	}
	if m.Runtimes {
		machine.Files["/usr/bin/runpod"] = filepath.Join(bin, "runpod")
	}
	if m.Systemd {
		machine.Files["/etc/systemd/system/guest.service"] = filepath.Join(root, "internal/guest/testdata/guest.service")
		machine.KernelArgs = append(machine.KernelArgs, "rdinit=/usr/lib/systemd/systemd", "systemd.unit=guest.service")
	}
	return machine, nil
}

// moduleRoot returns the top directory of the source.
func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

// build builds the programs of the guest, including the tests in the current directory.
func build(ctx context.Context, dir, arch string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	target := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[arch] + "-linux-gnu"
	for _, args := range [][]string{
		{"go", "build", "-trimpath", "-o", filepath.Join(dir, "chargetrace"), "chargetrace/cmd/chargetrace"},
		{"go", "test", "-c", "-trimpath", "-o", filepath.Join(dir, "guest"), "."},
		{"go", "build", "-trimpath", "-o", filepath.Join(dir, "runpod"), "chargetrace/internal/guest/runpod"},
		{"go", "build", "-trimpath", "-o", filepath.Join(dir, "leak"), "chargetrace/internal/guest/leak"},
		{"clang-" + clangVersion, "--target=" + target, "-fuse-ld=lld", "-nostdlib", "-static", "-O2", "-Wall", "-Werror", "-fno-builtin",
			"-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer", "-Wl,-z,max-page-size=65536",
			"-o", filepath.Join(dir, "workload"), filepath.Join(root, "internal/guest/testdata/workload.c")},
	} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}
