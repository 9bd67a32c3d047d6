//go:build linux

// Package guest runs tests of the command in virtual machines, on real kernels.
//
// A test first declares the machines that it needs:
//
//	func TestFollow(t *testing.T) {
//		if !guest.Enter(t, guest.Exact) {
//			return
//		}
//		...
//
// On the host, Enter runs the test in those machines, each a subtest named after its
// kernel, and returns false. In a machine it returns true and the test continues, as root,
// on a kernel that it may trace and break. No test shares a machine with another: each
// starts from the same snapshot, taken after boot.
//
// The rest of the package is for tests in the machine: workloads, cgroups and tracers. It
// uses only the command's flags and outputs.
package guest

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chargetrace/internal/vm"
)

// Kernels are the kernels that tests run on by default.
var Kernels = []vm.Kernel{
	{Release: "5.10", Arch: "amd64"},
	{Release: "6.1", Arch: "amd64"},
	{Release: "6.12", Arch: "amd64"},
	{Release: "7.2", Arch: "amd64"},
	{Release: "6.12", Arch: "arm64"},
}

var (
	// One is a single kernel, for tests that do not depend on the kernel. Ends are the oldest
	// and the newest, and Archs one of each architecture.
	One   = Kernels[1:2]
	Ends  = []vm.Kernel{Kernels[0], Kernels[3]}
	Archs = []vm.Kernel{Kernels[1], Kernels[4]}
	// V1 are the kernels with the memory controller of cgroup v1.
	V1 = Kernels[:2]
	// Short are kernels for a short suite: the experiment, -f, -net and -stack.
	Short = []vm.Kernel{
		{Release: "7.3", Arch: "amd64"},
		{Release: "6.12", Arch: "amd64", Flavor: "rt"},
		{Release: "6.12", Arch: "arm64", Flavor: "16k"},
	}
	// All are [Kernels] and Short.
	All = slices.Concat(Kernels, Short)
)

// Machine describes the machines that a test needs. All count instructions, so that the
// host's load does not affect them.
type Machine struct {
	// CPUs is the number of processors; they share one thread of the host.
	CPUs int
	// Kernels defaults to [Kernels].
	Kernels []vm.Kernel
	// Disk and Systemd add an empty disk at /dev/nvme0n1, and systemd as the first
	// process. Such a machine boots for each test, and has no bpftrace. The times of a
	// disk's interrupts depend on the host, and differ between runs.
	Disk, Systemd bool
	// Nodes is the number of memory nodes, if not one. Such a machine boots for each test too.
	Nodes int
	// Runtimes adds containerd, Podman, runc and runpod. Such a machine boots for each test too.
	Runtimes bool
	// Kept gets the files that the test passes to [Keep], unless it is nil.
	Kept Kept
}

var (
	// Exact is a machine with one processor. Rows, totals and order are the same in every
	// run.
	Exact = Machine{CPUs: 1}
	// SMP is a machine with two processors. Its tests must not depend on the order.
	SMP = Machine{CPUs: 2}
)

// On returns the machine with other kernels.
func (m Machine) On(kernels ...vm.Kernel) Machine {
	m.Kernels = kernels
	return m
}

// WithDisk returns the machine with a disk.
func (m Machine) WithDisk() Machine {
	m.Disk = true
	return m
}

// WithNodes returns the machine with n memory nodes.
func (m Machine) WithNodes(n int) Machine {
	m.Nodes = n
	return m
}

// Keeping returns the machine with a function for kept files.
func (m Machine) Keeping(f Kept) Machine {
	m.Kept = f
	return m
}

// Main is the TestMain of a package whose tests call [Enter].
func Main(m *testing.M) {
	vm.Init()
	if inside() {
		begin()
	}
	status := m.Run()
	writeFailures(os.Stdout, failures.list)
	if scratch.dir != "" {
		os.RemoveAll(scratch.dir)
	}
	os.Exit(status)
}

// inside reports whether this process is in a machine.
func inside() bool { return os.Getenv(vm.GuestVariable) != "" }

// Enter starts a test that needs a machine; see the package comment.
func Enter(t *testing.T, m Machine) bool {
	t.Helper()
	if inside() {
		return true
	}
	t.Parallel()
	kernels := m.Kernels
	if kernels == nil {
		kernels = Kernels
	}
	test := t.Name()
	for _, k := range kernels {
		t.Run(k.String(), func(t *testing.T) {
			t.Parallel()
			m.run(t, k, test)
		})
	}
	return false
}

// timeout far exceeds the time of a test on a busy host, and on the machine's clock.
const timeout = 10 * time.Minute

// run runs a test in a machine.
func (m Machine) run(t *testing.T, k vm.Kernel, test string) {
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	var out bytes.Buffer
	status, err := m.start(ctx, k, &out, "-test.v", "-test.run", "^"+regexp.QuoteMeta(test)+"$", "-test.timeout", timeout.String())
	output, kept, keepErr := takeKept(out.String())
	err = errors.Join(err, keepErr)
	passed := strings.Contains(output, "\n--- PASS: "+test+" ")
	if err != nil || status != 0 || !passed {
		t.Errorf("exit status %d, %v\n%s", status, err, output)
		failures.Lock()
		defer failures.Unlock()
		failures.list = append(failures.list, failure{t.Name(), fmt.Sprintf("%s\nexit status %d, %v", output, status, err)})
		return
	}
	t.Log(output)
	if m.CPUs == 1 && !m.Disk && m.Nodes == 0 && *rowsDir != "" {
		file := filepath.Join(*rowsDir, strings.ReplaceAll(t.Name(), "/", "-"))
		if err := os.WriteFile(file, []byte(rowsOf(output)), 0o644); err != nil {
			t.Error(err)
		}
	}
	if m.Kept != nil {
		for name, content := range kept {
			m.Kept(t, k, name, content)
		}
	}
}

// rowsDir is a directory where tests in machines with one CPU and no disk write the rows of
// their traces, one file per test. Two runs write the same rows.
var rowsDir = flag.String("rows", "", "write the rows of traces to files in this directory")

// rowsOf returns the rows that a test logged.
func rowsOf(output string) string {
	var b strings.Builder
	for line := range strings.Lines(output) {
		if _, row, ok := strings.Cut(line, ": row: "); ok {
			b.WriteString(row)
		}
	}
	return b.String()
}

// failure is a test that failed in a machine.
type failure struct{ test, output string }

var failures struct {
	sync.Mutex
	list []failure
}

// writeFailures writes a command to run each failed test, and an excerpt of its output, in
// at most 60 lines.
func writeFailures(w io.Writer, list []failure) {
	const maxLines = 60
	if len(list) > maxLines/4 {
		fmt.Fprintf(w, "%d tests failed in machines; the first:\n", len(list))
		list = list[:maxLines/4]
	}
	for _, f := range list {
		fmt.Fprintf(w, "go test %s -run '^%s$'\n", testedPackage(), strings.ReplaceAll(f.test, "/", "$/^"))
		for _, line := range excerpt(f.output, maxLines/len(list)-2) {
			fmt.Fprintf(w, "    %s\n", line)
		}
	}
}

// testedPackage returns the package of this test binary, relative to the top directory of
// the source. go test runs the binary in the package's directory.
func testedPackage() string {
	root, err := moduleRoot()
	if err != nil {
		return "."
	}
	dir, err := os.Getwd()
	if err != nil {
		return "."
	}
	dir, err = filepath.Rel(root, dir)
	if err != nil {
		return "."
	}
	return "./" + dir
}

// excerpt returns the first and the last lines of a test's output, without logged rows.
func excerpt(output string, maxLines int) []string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, ": row: ") })
	for i, line := range lines {
		const maxBytes = 300
		lines[i] = line[:min(maxBytes, len(line))]
	}
	if len(lines) <= maxLines {
		return lines
	}
	from := len(lines) - maxLines/2
	return append(append(lines[:maxLines-maxLines/2-1:maxLines], "..."), lines[from:]...)
}

// scratch is a directory on the host for binaries and snapshots.
var scratch struct {
	sync.Mutex
	dir string
	// made maps a name to a function that makes the thing once.
	made map[string]func() (any, error)
}

// once calls make once per name, and returns its result to all callers. Only callers with
// the same name wait.
func once[T any](name string, make func(dir string) (T, error)) (T, error) {
	scratch.Lock()
	if scratch.dir == "" {
		dir, err := os.MkdirTemp("", "guest-")
		if err != nil {
			panic(err)
		}
		scratch.dir, scratch.made = dir, map[string]func() (any, error){}
	}
	f, ok := scratch.made[name]
	if !ok {
		f = sync.OnceValues(func() (any, error) {
			dir := filepath.Join(scratch.dir, name)
			if err := os.Mkdir(dir, 0o700); err != nil {
				return nil, err
			}
			return make(dir)
		})
		scratch.made[name] = f
	}
	scratch.Unlock()
	v, err := f()
	if err != nil {
		var zero T
		return zero, err
	}
	return v.(T), nil
}
