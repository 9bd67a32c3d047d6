//go:build linux

package guest

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/google/pprof/profile"
	"golang.org/x/sys/unix"
)

// profileRounds is the number of times that a program of TestProfile touches three batches
// in one function and one batch in another.
const profileRounds = 10

// TestProfile runs programs with two functions: one charges three times as many pages as
// the other. The profiles must show that, with the callers.
func TestProfile(t *testing.T) {
	if !Enter(t, Exact.On(Archs...)) {
		return
	}
	inGo := func(functions ...string) string {
		const prefix = "chargetrace/internal/guest."
		return prefix + strings.Join(functions, " [init];"+prefix) + " [init]"
	}
	for _, program := range []struct {
		name       string
		command    *exec.Cmd
		three, one string
	}{
		{
			"C", exec.Command(workloadPath, "profile", fmt.Sprint(profileRounds)),
			workloadChain("_start", "start", "main", "profile", "fill", "fill_three", "touch"),
			workloadChain("_start", "start", "main", "profile", "fill", "fill_one", "touch"),
		},
		{"Go", goProgram(), inGo("goWorkload", "fillThree", "fillPages", "touchPage"), inGo("goWorkload", "fillOne", "fillPages", "touchPage")},
	} {
		t.Run(program.name, func(t *testing.T) {
			g := newCgroup(t)
			p := startReady(t, 0, g, program.command)
			start := func(stacks ...string) (tr *tracer, dir string) {
				dir = t.TempDir()
				return chargetrace(t, append(stacks, "-pid", p.pid(), "-o", filepath.Join(dir, "x.pb.gz"), "-o", filepath.Join(dir, "x.folded"))...), dir
			}
			user, userDir := start("-ustack")
			both, bothDir := start("-ustack", "-stack")
			p.run(t)
			user.checkComplete(t)
			both.checkComplete(t)
			checkProfile(t, userDir, program.three, program.one)
			checkProfile(t, bothDir, program.three, program.one)
		})
	}
}

// checkProfile checks that a .pb.gz and a .folded have the same stacks, and the pages
// charged in two call chains.
func checkProfile(t *testing.T, dir, three, one string) {
	t.Helper()
	folded := make(map[string]int64)
	for line := range strings.Lines(readFile(t, filepath.Join(dir, "x.folded"))) {
		i := strings.LastIndexByte(line, ' ')
		var pages int64
		if _, err := fmt.Sscan(line[i:], &pages); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		folded[line[:i]] += pages
	}
	needed := make(map[string]int64) // without the functions that charge, as a .pb.gz has them
	for stack, pages := range folded {
		functions := strings.Split(stack, ";")
		for charges(functions[len(functions)-1]) {
			functions = functions[:len(functions)-1]
		}
		needed[strings.Join(functions, ";")] += pages * pageSize
	}
	f, err := os.Open(filepath.Join(dir, "x.pb.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := profile.Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	value := slices.IndexFunc(p.SampleType, func(v *profile.ValueType) bool { return v.Type == p.DefaultSampleType })
	sampled := make(map[string]int64)
	for _, s := range p.Sample {
		names := slices.Clone(s.Label["comm"])
		for _, l := range slices.Backward(s.Location) {
			names = append(names, l.Line[0].Function.Name)
		}
		sampled[strings.Join(names, ";")] += s.Value[value]
	}
	if p.DefaultSampleType != "bytes" || !maps.Equal(sampled, needed) {
		t.Errorf(".pb.gz\n%v\n.folded\n%v", sampled, needed)
	}
	const pages = profileRounds * 64 // a batch per round
	for chain, want := range map[string]int64{three: 3 * pages, one: pages, "": 4 * pages} {
		var got int64
		for stack, pages := range folded {
			if strings.Contains(stack+";", chain+";") {
				got += pages
			}
		}
		if got != want {
			t.Errorf("%d pages in %q, want %d: %v", got, chain, want, folded)
		}
	}
}

// charges reports whether a function of the kernel only charges.
func charges(function string) bool {
	return !strings.Contains(function, " ") && slices.ContainsFunc([]string{"page_counter_", "charge", "memcg"}, func(part string) bool { return strings.Contains(function, part) })
}

// goVariable is set in the environment of goWorkload.
const goVariable = "GO_WORKLOAD"

func goProgram() *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	// Signals of asynchronous preemption would be charged.
	cmd.Env = append(os.Environ(), goVariable+"=1", "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=1")
	return cmd
}

// goWorkload is the work profile of workload.c as a Go program, with the same protocol
// except for the CPU time. After "ready" the runtime allocates no memory and runs no other
// goroutine: raw system calls keep the only P.
func goWorkload() {
	debug.SetGCPercent(-1)
	runtime.LockOSThread()
	const batch = 64 << 12
	memory, err := unix.Mmap(-1, 0, profileRounds*4*batch, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	var line [1]byte
	call := func(number uintptr, fd int, b []byte) int {
		n, _, errno := syscall.RawSyscall(number, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if errno != 0 {
			panic(errno)
		}
		return int(n)
	}
	// A first pass makes the page tables, which MADV_DONTNEED keeps below 2 MiB.
	for b := memory; len(b) > 0; b = b[4*batch:] {
		fillThree(b[:3*batch])
		fillOne(b[3*batch : 4*batch])
		if err := unix.Madvise(b[:4*batch], unix.MADV_DONTNEED); err != nil {
			panic(err)
		}
	}
	call(unix.SYS_WRITE, 1, []byte("ready\n"))
	call(unix.SYS_READ, 0, line[:])
	for b := memory; len(b) > 0; b = b[4*batch:] {
		fillThree(b[:3*batch])
		fillOne(b[3*batch : 4*batch])
	}
	call(unix.SYS_READ, 0, line[:]) // until the end of stdin
}

//go:noinline
func fillThree(b []byte) { fillPages(b) }

//go:noinline
func fillOne(b []byte) { fillPages(b) }

//go:noinline
func fillPages(b []byte) {
	for ; len(b) > 0; b = b[min(os.Getpagesize(), len(b)):] {
		touchPage(b)
	}
}

// touchPage has variables, so that it has a frame: a frame pointer walk omits the caller of
// a function without one.
//
//go:noinline
func touchPage(b []byte) {
	var frame [8]byte
	frame[len(b)%len(frame)] = 1
	b[0] = frame[len(b)%len(frame)]
}
