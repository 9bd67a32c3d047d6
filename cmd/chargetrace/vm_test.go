//go:build !guest

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"chargetrace/internal/vm"
)

// kernels are what the command is tested on.
var kernels = []struct{ release, arch string }{
	{"5.10", "amd64"},
	{"6.1", "amd64"},
	{"6.12", "amd64"},
	{"7.2", "amd64"},
	{"6.12", "arm64"},
}

// bpftraceSuite is the Debian suite whose bpftrace is run beside chargetrace:
// one that works on all the kernels.
const bpftraceSuite = "forky"

// clangVersion is that of the Makefile.
const clangVersion = "19"

// machine returns a machine that holds the command, the tests for it, and
// bpftrace.
func machine(tb testing.TB, release, arch string) *vm.Machine {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	kernel, err := vm.FetchKernel(ctx, release, arch)
	if err != nil {
		tb.Fatal(err)
	}
	bpftrace, err := vm.FetchTree(ctx, bpftraceSuite, arch, "bpftrace", "busybox-static", "libc-bin", "ncurses-base", "runc", "tmux", "trace-cmd")
	if err != nil {
		tb.Fatal(err)
	}
	dir := tb.TempDir()
	command, guest, pprof, fill := filepath.Join(dir, "chargetrace"), filepath.Join(dir, "guest"), filepath.Join(dir, "pprof"), filepath.Join(dir, "fill")
	target := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[arch] + "-linux-gnu"
	for _, args := range [][]string{
		{"go", "build", "-trimpath", "-o", command, "."},
		{"go", "test", "-c", "-tags", "guest", "-o", guest, "."},
		{"go", "build", "-o", pprof, "cmd/pprof"},
		{"clang-" + clangVersion, "--target=" + target, "-fuse-ld=lld", "-nostdlib", "-static", "-O2", "-Wall", "-Werror", "-fno-builtin",
			"-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer", "-o", fill, "testdata/fill.c"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
		if out, err := cmd.CombinedOutput(); err != nil {
			tb.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	return &vm.Machine{
		Arch:   arch,
		Kernel: kernel,
		Init:   guest,
		Files: map[string]string{
			"/":                      bpftrace,
			"/usr/bin/chargetrace":   command,
			"/usr/bin/fill":          fill,
			"/usr/bin/pprof":         pprof,
			"/README.md":             "../../README.md",
			"/try-charge-counter.bt": "testdata/try-charge-counter.bt",
		},
		CPUs:      2,
		MemoryMiB: 2048,
		DiskMiB:   64, // for swap
		// Later there may be none left.
		KernelArgs: []string{"hugepages=8"},
	}
}

// anyKernel are tests of which one kernel is enough: it has no part in what they are
// about, or others test that on each.
const anyKernel = "^(TestReadme|TestLaunchIdentity|TestLaunchStatus|TestLaunchStdio|TestRotation|TestRecordingDiskFull)$"

// TestKernels runs the tests of the guest on each kernel.
func TestKernels(t *testing.T) {
	t.Parallel()
	for _, k := range kernels {
		t.Run(k.release+"-"+k.arch, func(t *testing.T) {
			t.Parallel()
			skip := "V1$|Systemd$"
			if k.release != "6.1" {
				skip += "|" + anyKernel
			}
			out := runGuestTests(t, machine(t, k.release, k.arch), "-test.run", os.Getenv("GUEST_RUN"), "-test.skip", skip)
			if os.Getenv("UPDATE_RECORDINGS") != "" {
				updateRecording(t, k.release+"-"+k.arch, out)
			}
		})
	}
}

// TestKernelsCgroupV1 runs the tests of cgroup v1, where Debian's kernels have it.
// A machine that has once used the memory controller with v2 may not give it to
// v1.
func TestKernelsCgroupV1(t *testing.T) {
	t.Parallel()
	for _, k := range kernels[:2] {
		t.Run(k.release+"-"+k.arch, func(t *testing.T) {
			t.Parallel()
			runGuestTests(t, machine(t, k.release, k.arch), "-test.run", "V1$")
		})
	}
}

// TestKernelsSystemd runs the test of a machine whose first process is systemd.
func TestKernelsSystemd(t *testing.T) {
	t.Parallel()
	const release, arch = "6.12", "amd64"
	m := machine(t, release, arch)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	tree, err := vm.FetchTree(ctx, "trixie", arch, "systemd")
	if err != nil {
		t.Fatal(err)
	}
	service := filepath.Join(t.TempDir(), "guest.service")
	content := "[Unit]\nDefaultDependencies=no\n[Service]\nEnvironment=" + vm.InitVariable + "=1 TMPDIR=/run\nExecStart=/init\n"
	if err := os.WriteFile(service, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	m.Files["/"] = tree
	m.Files["/etc/systemd/system/guest.service"] = service
	m.KernelArgs = append(m.KernelArgs, "rdinit=/usr/lib/systemd/systemd", "systemd.unit=guest.service")
	runGuestTests(t, m, "-test.run", "Systemd$")
}

// recordingPrefix is what TestRecording puts before its recording.
const recordingPrefix = " recording: "

// updateRecording keeps the recording that TestRecording made on a kernel, for
// the tests that have none.
func updateRecording(t *testing.T, kernel, out string) {
	t.Helper()
	_, encoded, ok := strings.Cut(out, recordingPrefix)
	encoded, _, _ = strings.Cut(encoded, "\n")
	content, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil {
		t.Fatalf("no recording: %v", err)
	}
	if err := os.WriteFile(filepath.Join("testdata", kernel+".ctrace"), content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// guestTimeout is far above what all tests take on a busy machine: 15 minutes.
const guestTimeout = 40 * time.Minute

func runGuestTests(t *testing.T, m *vm.Machine, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), guestTimeout+time.Minute)
	defer cancel()
	var out, console bytes.Buffer
	m.Console = &console
	argv := append([]string{
		"/init", "-test.v", "-test.timeout", guestTimeout.String(), "-test.count", cmp.Or(os.Getenv("GUEST_COUNT"), "1"),
	}, args...)
	status, err := m.Run(ctx, &out, &out, argv...)
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if status != 0 || !strings.HasSuffix(out.String(), "\nPASS\n") {
		noteFailures(t.Name(), out.String())
		t.Fatalf("the guest's tests exited with %d:\n%s\nwhat the kernel printed:\n%s", status, &out, &console)
	}
	for line := range strings.Lines(out.String()) {
		if (strings.Contains(line, "--- ") || strings.Contains(line, ".go:")) && !strings.Contains(line, recordingPrefix) {
			t.Log(strings.TrimRight(line, "\n"))
		}
	}
	return out.String()
}

// guestFailures are what the tests that failed in a guest printed, to stand at
// the end of the long output of all.
var guestFailures struct {
	sync.Mutex
	strings.Builder
}

// noteFailures takes from the output of a guest's tests what is about those that
// failed, or did not end.
func noteFailures(kernel, out string) {
	guestFailures.Lock()
	defer guestFailures.Unlock()
	const maxBytes = 4000 // of each
	tests := topLevelRun.Split(out, -1)
	for i, test := range tests {
		unfinished := i == len(tests)-1 && !strings.Contains(test, "\n--- ")
		if strings.Contains(test, "--- FAIL: ") || unfinished {
			fmt.Fprintf(&guestFailures, "%s: %s\n", kernel, test[:min(maxBytes, len(test))])
		}
	}
}

var topLevelRun = regexp.MustCompile(`(?m)^=== RUN +(?:[^/\s]+$)`)

// BenchmarkKernel runs the benchmarks of guest_bench_test.go in a machine whose
// clock counts instructions, and passes on what they print.
func BenchmarkKernel(b *testing.B) {
	for line := range strings.Lines(runGuestBenchmarks(b)) {
		if strings.HasPrefix(line, "Benchmark") {
			os.Stdout.WriteString(line)
		}
	}
}

func runGuestBenchmarks(tb testing.TB) string {
	tb.Helper()
	m := machine(tb, "6.1", "amd64")
	m.CPUs, m.CountInstructions = 1, true
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	var out bytes.Buffer
	status, err := m.Run(ctx, &out, &out, "/init", "-test.run", "^$", "-test.bench", cmp.Or(os.Getenv("GUEST_RUN"), "."), "-test.benchtime", "1x", "-test.timeout", "1h")
	if err != nil || status != 0 {
		tb.Fatalf("exit status %d, %v\n%s", status, err, &out)
	}
	return out.String()
}
