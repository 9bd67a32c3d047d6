//go:build guest

package main

// The tests in this file run inside the virtual machines of TestKernels: as root, on
// a kernel that may be traced and spoilt. What they run is the real command, at
// /usr/bin/chargetrace.

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"chargetrace/internal/vm"
)

func TestMain(m *testing.M) {
	vm.Init()
	// A charge is to be of one page or a batch, not of a huge page: here, and in
	// all that is started from here.
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	if work := os.Getenv("WORKLOAD"); work != "" {
		if err := workload(strings.Fields(work)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if filepath.Base(os.Args[0]) == "alloc" { // of the README
		os.Args = []string{"alloc", "command", "touch", "20"}
	}
	if len(os.Args) > 2 && os.Args[1] == "command" {
		if err := command(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// patience is how long what must happen may take, on an emulated machine whose
// host has other things to do.
const patience = 3 * time.Minute

const (
	pageSize   = 4096
	batchBytes = 64 * pageSize // what the kernel charges at once, since 6.1
	cgroupRoot = "/sys/fs/cgroup"
)

// workload is what a process of the tests does. It says that it is ready, begins
// when it is told to, prints the CPU time that it took, in nanoseconds, and exits
// when its standard input ends.
func workload(args []string) error {
	debug.SetGCPercent(-1) // its own memory is to stay as it is
	number := func(i int) int {
		n, err := strconv.Atoi(args[i])
		if err != nil {
			panic(err)
		}
		return n
	}
	runtime.LockOSThread()
	var page []byte
	if args[0] == "storm" {
		page = mmap(pageSize)
		page[0] = 1 // with its page tables
		startThreads()
	}
	if args[0] == "swapin" {
		page = mmap(number(1) << 20)
		fillPages(page)
	}
	if args[0] == "listen" {
		if err := listen(number(1)); err != nil {
			return err
		}
	}
	if args[0] == "named" {
		name, err := strconv.Unquote(`"` + args[2] + `"`)
		if err != nil {
			return err
		}
		for _, file := range []string{"/proc/self/comm", "/proc/thread-self/comm"} {
			if err := os.WriteFile(file, []byte(name), 0); err != nil {
				return err
			}
		}
	}
	if args[0] == "exec" { // FILE: it says that it is ready by itself
		return unix.Exec(args[1], args[1:], nil)
	}
	fmt.Println("ready")
	stdin := bufio.NewReader(os.Stdin)
	if _, err := stdin.ReadString('\n'); err != nil {
		return err
	}
	begin := cpuNanos()
	defer func() {
		fmt.Println(cpuNanos() - begin)
		stdin.ReadByte() // until its end
	}()
	switch args[0] {
	case "touch", "named": // SIZE: touch so many MiB, in pieces of 1 MiB
		for range number(1) {
			for piece := mmap(1 << 20); len(piece) > 0; piece = piece[pageSize:] {
				piece[0] = 1
			}
		}
	case "steady": // SIZE MS: touch so many MiB, a batch each so many milliseconds
		ticker := time.NewTicker(time.Duration(number(2)) * time.Millisecond)
		for range number(1) << 20 / batchBytes {
			<-ticker.C
			for piece := mmap(batchBytes); len(piece) > 0; piece = piece[pageSize:] {
				piece[0] = 1
			}
		}
	case "fill": // N: touch so many times three batches, and one
		for range number(1) {
			fillThree()
			fillOne()
		}
	case "release": // SIZE: touch so many MiB, and give them back when told to
		b := mmap(number(1) << 20)
		for i := 0; i < len(b); i += pageSize {
			b[i] = 1
		}
		fmt.Println("touched")
		if _, err := stdin.ReadString('\n'); err != nil {
			return err
		}
		return unix.Munmap(b)
	case "churn": // N: touch so many times 8 MiB
		for range number(1) {
			piece := mmap(8 << 20)
			for i := 0; i < len(piece); i += pageSize {
				piece[i] = 1
			}
			if err := unix.Munmap(piece); err != nil {
				return err
			}
		}
	case "storm": // N: charge a page so many times
		for range number(1) {
			if err := unix.Madvise(page, unix.MADV_DONTNEED); err != nil {
				return err
			}
			page[0] = 1
		}
	case "thp": // N: touch so many huge pages
		if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 0, 0, 0, 0); err != nil {
			return err
		}
		const size = 2 << 20
		b := mmap((number(1) + 1) * size)
		b = b[size-int(uintptr(unsafe.Pointer(&b[0])))%size:]
		if err := unix.Madvise(b, unix.MADV_HUGEPAGE); err != nil {
			return err
		}
		for i := range number(1) {
			b[i*size] = 1
		}
	case "hugetlb": // N: touch so many huge pages of 2 MiB
		b, err := unix.Mmap(-1, 0, number(1)*2<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_HUGETLB)
		if err != nil {
			return err
		}
		for i := range number(1) {
			b[i*2<<20] = 1
		}
	case "read": // FILE SIZE: read so many MiB
		f, err := os.Open(args[1])
		if err != nil {
			return err
		}
		_, err = io.CopyN(io.Discard, f, int64(number(2))<<20)
		return err
	case "cow": // FILE SIZE: read so many MiB of a private mapping, and write to them
		f, err := os.Open(args[1])
		if err != nil {
			return err
		}
		b, err := unix.Mmap(int(f.Fd()), 0, number(2)<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		if err != nil {
			return err
		}
		for i := 0; i < len(b); i += pageSize {
			b[i]++
		}
	case "swapin": // SIZE: touch so many MiB, which it has touched before
		fillPages(page)
	case "bpfmap": // SIZE: make a BPF map of so many MiB
		// The beginning of union bpf_attr (include/uapi/linux/bpf.h).
		attr := struct{ mapType, keySize, valueSize, maxEntries uint32 }{unix.BPF_MAP_TYPE_ARRAY, 4, pageSize, uint32(number(1)) << 20 / pageSize}
		if _, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)); errno != 0 {
			return errno
		}
	case "cgroups": // DIR N: make so many cgroups, and remove them
		for i := range number(2) {
			dir := filepath.Join(args[1], strconv.Itoa(i))
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			defer os.Remove(dir)
		}
	case "run": // FILE N [ARG ...]: run a program so many times, one after the other
		for range number(2) {
			if err := exec.Command(args[1], args[3:]...).Run(); err != nil {
				return err
			}
		}
	case "files": // DIR N: make so many empty files, without memory of its own
		path := append([]byte(args[1]), "/0000000\x00"...)
		for range number(2) {
			for i := len(path) - 2; ; i-- { // the next number
				if path[i]++; path[i] <= '9' {
					break
				}
				path[i] = '0'
			}
			fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, atFDCWD, uintptr(unsafe.Pointer(&path[0])), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o600, 0, 0)
			if errno != 0 {
				return errno
			}
			unix.Close(int(fd))
		}
	case "file": // FILE SIZE: write so many MiB
		f, err := os.OpenFile(args[1], os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		b := make([]byte, 1<<20)
		for range number(2) {
			if _, err := f.Write(b); err != nil {
				return err
			}
		}
		return f.Close()
	case "listen":
	case "send": // N: fill the sockets of listen
		return send(number(1))
	default:
		return fmt.Errorf("unknown workload %q", args)
	}
	return nil
}

//go:noinline
func fillThree() { fillPages(mmap(3 * batchBytes)) }

//go:noinline
func fillOne() { fillPages(mmap(batchBytes)) }

//go:noinline
func fillPages(b []byte) {
	for i := 0; i < len(b); i += pageSize {
		touch(b[i:])
	}
}

// touch has a frame, for it has something in it: without one, the walk of frame
// pointers would leave out its caller.
//
//go:noinline
func touch(b []byte) {
	var frame [8]byte
	frame[len(b)%len(frame)] = 1
	b[0] = frame[len(b)%len(frame)]
}

const firstPort = 40000

// atFDCWD is the current directory, as an argument of a system call.
var atFDCWD = func(fd int) uintptr { return uintptr(fd) }(unix.AT_FDCWD)

// unread are sockets that a collection of garbage would close.
var unread []*net.UDPConn

// listen opens so many sockets, which nobody reads.
func listen(n int) error {
	for i := range n {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: firstPort + i})
		if err != nil {
			return err
		}
		unread = append(unread, conn)
	}
	return nil
}

func send(n int) error {
	for i := range n {
		conn, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: firstPort + i})
		if err != nil {
			return err
		}
		for range 200 {
			if _, err := conn.Write(make([]byte, 1400)); err != nil {
				return err
			}
		}
		conn.Close()
	}
	return nil
}

// startThreads lets the runtime start more threads than it will need, so that it
// does not do so later.
func startThreads() {
	var started, done sync.WaitGroup
	for range 8 {
		started.Add(1)
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			started.Done()
			started.Wait()
		})
	}
	done.Wait()
}

// cpuNanos returns the CPU time of this process, in nanoseconds.
func cpuNanos() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// kernelRelease returns what uname -r prints.
func kernelRelease(t testing.TB) string {
	t.Helper()
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(uname.Release[:])
}

func mmap(size int) []byte {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return b
}

// controlGroup is a directory of a control group.
type controlGroup string

// newCgroup makes a control group whose memory is accounted, and removes it
// after the test.
func newCgroup(t testing.TB) controlGroup {
	t.Helper()
	if err := os.WriteFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
		t.Fatal(err)
	}
	name, err := os.MkdirTemp(cgroupRoot, "t")
	if err != nil {
		t.Fatal(err)
	}
	g := controlGroup(name)
	g.removeAfter(t)
	return g
}

// child makes a control group below g, and removes it after the test.
func (g controlGroup) child(t testing.TB, name string) controlGroup {
	t.Helper()
	c := controlGroup(filepath.Join(string(g), name))
	if err := os.Mkdir(string(c), 0o755); err != nil {
		t.Fatal(err)
	}
	c.removeAfter(t)
	return c
}

// path is the group's path below the mount.
func (g controlGroup) path() string { return strings.TrimPrefix(string(g), cgroupRoot) }

func (g controlGroup) removeAfter(t testing.TB) {
	t.Cleanup(func() { g.remove(t) })
}

// remove removes the group, if it is still there.
func (g controlGroup) remove(t testing.TB) {
	t.Helper()
	// What was in it has exited, but may not be gone yet. In cgroup v1 there is
	// no telling when; there it is gone with its exit.
	if events := filepath.Join(string(g), "cgroup.events"); exists(events) {
		waitForWrite(t, events, func() bool { return !exists(events) || g.number(t, "cgroup.events", "populated") == 0 })
	}
	if err := os.Remove(string(g)); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("remove the cgroup: %v", err)
	}
}

// waitForDir waits until there is a directory.
func waitForDir(t testing.TB, dir string) {
	t.Helper()
	waitForWrite(t, filepath.Dir(dir), func() bool { return exists(dir) })
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// waitForWrite waits until a condition holds that a write to a file makes true:
// it looks again after each, and when a directory changes (inotify(7),
// which also tells of the kernel's own writes to the files of cgroups).
func waitForWrite(t testing.TB, path string, holds func() bool) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_DELETE|unix.IN_DELETE_SELF); err != nil {
		t.Fatalf("watch %s: %v", path, err)
	}
	deadline := time.Now().Add(patience)
	for !holds() {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, max(0, int(time.Until(deadline).Milliseconds())))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("waited in vain for %s: %v", path, err)
		}
		var events [4096]byte
		if _, err := unix.Read(fd, events[:]); err != nil {
			t.Fatal(err)
		}
	}
}

// write writes to a file of the group. Package os would make it non-blocking, and
// then new kernels do not reclaim for a lower limit (memory_high_write).
func (g controlGroup) write(t testing.TB, name, value string) {
	t.Helper()
	fd, err := unix.Open(filepath.Join(string(g), name), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// number returns the number that a file holds, or that stands behind key in it.
func (g controlGroup) number(t testing.TB, name, key string) int64 {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(string(g), name))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if key == "" && len(fields) == 1 || len(fields) == 2 && fields[0] == key {
			n, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s has no %q:\n%s", name, key, content)
	return 0
}

// leaveRoom sets a limit that leaves room for 24 pages, which is less than the
// smallest batch, 32, to a group whose processes are on one CPU.
func (g controlGroup) leaveRoom(t testing.TB, cpu int) {
	t.Helper()
	// What the CPU holds of a batch that it charged counts as used. To lower
	// memory.high makes the kernel take it back (memory_high_write), but it waits for
	// that on the CPU alone that it does so on, and not at all while it does the same
	// for another group, such as one that was removed (drain_all_stock).
	for range 3 {
		onCPU(t, cpu, func() { g.write(t, "memory.high", "0") })
		g.write(t, "memory.high", "max")
	}
	g.write(t, "memory.max", strconv.FormatInt(g.number(t, "memory.current", "")+24*pageSize, 10))
}

// spare keeps a process with little room from being killed for want of it: what
// another CPU has in stock can be all the room that there is.
func (p *process) spare(t testing.TB) {
	t.Helper()
	if err := os.WriteFile("/proc/"+p.pid()+"/oom_score_adj", []byte("-1000"), 0); err != nil {
		t.Fatal(err)
	}
}

// process is a running workload.
type process struct {
	*exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr bytes.Buffer
}

// startWorkload starts a workload in a cgroup, on one CPU: its threads cannot
// charge at the same moment. It is ready, and waits.
func startWorkload(t testing.TB, g controlGroup, cpu int, work string) *process {
	t.Helper()
	dir, err := os.Open(string(g))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	p := &process{Cmd: exec.Command("/proc/self/exe")}
	p.Env = append(os.Environ(), "WORKLOAD="+work)
	p.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	p.Stderr = &p.stderr
	p.stdin, err = p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	startOnCPU(t, p.Cmd, cpu)
	t.Cleanup(func() {
		p.Process.Kill()
		stuck := time.AfterFunc(patience, func() { panic(kernelStacks(p.Process.Pid)) })
		defer stuck.Stop()
		p.Wait()
	})
	p.stdout = bufio.NewReader(stdout)
	if line, err := p.stdout.ReadString('\n'); line != "ready\n" {
		t.Fatalf("workload %s: %q, %v: %s", work, line, err, &p.stderr)
	}
	return p
}

// kernelStacks says where in the kernel the threads of a process are.
func kernelStacks(pid int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "process %d was killed, but has not exited\n", pid)
	for _, name := range []string{"status", "stack", "wchan", "syscall"} {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/%s", pid, name))
		for _, file := range files {
			content, err := os.ReadFile(file)
			fmt.Fprintf(&b, "%s: %v\n%s\n", file, err, content)
		}
	}
	return b.String()
}

// startOnCPU starts a command on one CPU.
func startOnCPU(t testing.TB, cmd *exec.Cmd, cpu int) {
	t.Helper()
	var err error
	onCPU(t, cpu, func() { err = cmd.Start() }) // which inherits it
	if err != nil {
		t.Fatal(err)
	}
	var got, want unix.CPUSet
	want.Set(cpu)
	if err := unix.SchedGetaffinity(cmd.Process.Pid, &got); err != nil || got != want {
		t.Fatalf("%s is on %d CPUs, %v", cmd, got.Count(), err)
	}
}

// onCPU calls a function on one CPU.
func onCPU(t testing.TB, cpu int, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	f()
	if err := unix.SchedSetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
}

func (p *process) pid() string { return strconv.Itoa(p.Process.Pid) }

// begin lets the workload begin.
func (p *process) begin(t testing.TB) {
	t.Helper()
	if _, err := io.WriteString(p.stdin, "\n"); err != nil {
		t.Fatal(err)
	}
}

// suspend stops workloads until resume is called. While it waits a Go program can charge:
// what several tracers are to see alike may not begin between their beginnings.
func suspend(t *testing.T, processes ...*process) (resume func()) {
	t.Helper()
	for _, p := range processes {
		if err := p.Process.Signal(unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		var status unix.WaitStatus
		if _, err := unix.Wait4(p.Process.Pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
			t.Fatalf("%v, status %#x", err, status)
		}
	}
	return func() {
		t.Helper()
		for _, p := range processes {
			if err := p.Process.Signal(unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// wait lets the workload exit when it is done, and waits for that.
func (p *process) wait(t testing.TB) {
	t.Helper()
	p.stdin.Close()
	if err := p.Wait(); err != nil {
		t.Fatalf("workload: %v: %s", err, &p.stderr)
	}
}

// waitKilled waits until the workload is killed by SIGKILL.
func (p *process) waitKilled(t testing.TB) {
	t.Helper()
	p.Wait()
	if ws := p.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("workload ended with %v, want it killed: %s", p.ProcessState, &p.stderr)
	}
}

// lineBuffer keeps what is written to it, and tells when that holds a text.
type lineBuffer struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	text  string
	found chan struct{}
}

func (b *lineBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	had := strings.Contains(b.buf.String(), b.text)
	b.buf.Write(p)
	if !had && strings.Contains(b.buf.String(), b.text) {
		close(b.found)
	}
	return len(p), nil
}

func (b *lineBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// tracer is a running chargetrace, or another tracer.
type tracer struct {
	*exec.Cmd
	stdout *os.File
	stderr *lineBuffer
}

// startTracer starts a command and waits until it has printed ready on stderr;
// it does not wait for the empty string.
func startTracer(t testing.TB, ready string, argv ...string) *tracer {
	t.Helper()
	return startTracerAs(t, nil, ready, argv...)
}

// startTracerAs is startTracer for a process with other attributes.
func startTracerAs(t testing.TB, as *syscall.SysProcAttr, ready string, argv ...string) *tracer {
	t.Helper()
	tr := &tracer{Cmd: exec.Command(argv[0], argv[1:]...), stderr: &lineBuffer{text: ready, found: make(chan struct{})}}
	var err error
	tr.stdout, err = os.Create(filepath.Join(t.TempDir(), "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	tr.Stdout, tr.Cmd.Stderr, tr.SysProcAttr = tr.stdout, tr.stderr, as
	tr.Env = append(os.Environ(), "COLUMNS=400") // paths in full
	if err := tr.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tr.Process.Kill()
		tr.Cmd.Wait()
	})
	if ready == "" {
		return tr
	}
	handle, err := openProcesses([]int{tr.Process.Pid})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(handle.close)
	exited := make(chan error, 1)
	go func() { exited <- handle.wait(func(int) {}) }()
	select {
	case <-tr.stderr.found:
	case err := <-exited:
		tr.Wait() // with all it has printed
		t.Fatalf("%s is not ready, but has exited: %v\n%s", argv, err, tr.stderr)
	case <-time.After(patience):
		t.Fatalf("%s is not ready: %s", argv, tr.stderr)
	}
	return tr
}

// chargetrace starts the command and waits until it traces.
func chargetrace(t testing.TB, args ...string) *tracer {
	t.Helper()
	return startTracer(t, "Tracing ", append([]string{"/usr/bin/chargetrace"}, args...)...)
}

// end waits for the end of the tracer, which must have no error.
func (tr *tracer) end(t testing.TB) {
	t.Helper()
	if tr.ProcessState != nil {
		return
	}
	if err := tr.Cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s", tr.Args, err, tr.stderr)
	}
}

// missedCalls waits for the end of the tracer, and reports whether it says that the
// kernel missed calls.
func (tr *tracer) missedCalls(t testing.TB) bool {
	t.Helper()
	tr.end(t)
	return strings.Contains(tr.stderr.String(), "the kernel missed ")
}

// rows waits for the end of the tracer, and returns what it printed.
func (tr *tracer) rows(t testing.TB) printed {
	t.Helper()
	tr.end(t)
	content, err := os.ReadFile(tr.stdout.Name())
	if err != nil {
		t.Fatal(err)
	}
	return parseTable(t, string(content))
}

// hasRow waits until a row is printed: what runs has been looked at then.
func (tr *tracer) hasRow(t testing.TB) {
	t.Helper()
	waitForWrite(t, tr.stdout.Name(), func() bool {
		content, err := os.ReadFile(tr.stdout.Name())
		return err == nil && bytes.Count(content, []byte("\n")) > 1
	})
}

func (tr *tracer) stop(t testing.TB) {
	t.Helper()
	if err := tr.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

var summaryLine = regexp.MustCompile(`(?m)^chargetrace: seen (\d+) = shown (\d+) \+ filtered (\d+) \+ lost (\d+)$`)

// counted is the closing line of chargetrace.
type counted struct{ seen, shown, filtered, lost uint64 }

func (tr *tracer) counted(t testing.TB) counted {
	t.Helper()
	m := summaryLine.FindStringSubmatch(tr.stderr.String())
	if m == nil {
		t.Fatalf("no summary: %s", tr.stderr)
	}
	var n [4]uint64
	for i := range n {
		n[i], _ = strconv.ParseUint(m[i+1], 10, 64)
	}
	s := counted{n[0], n[1], n[2], n[3]}
	if s.seen != s.shown+s.filtered+s.lost {
		t.Errorf("the summary does not add up: %+v", s)
	}
	return s
}

// row is a row of the table.
type row struct {
	time, pid                 int64
	comm                      string
	requested, current, limit int64
	mark                      string
	kind                      string // [swap], and so on; empty for memory
}

const noLimit = int64(1<<63-1) / pageSize

func (r row) String() string {
	return fmt.Sprintf("%d %d %q %d %d %d %s", r.time, r.pid, r.comm, r.requested, r.current, r.limit, r.mark)
}

// sameCounts compares what the bpftrace script and chargetrace have in common.
func sameCounts(a, b row) bool {
	return a.requested == b.requested && a.current == b.current && a.limit == b.limit
}

func (r row) fails() bool { return r.current+r.requested > r.limit }

// printed is what chargetrace or the bpftrace script printed.
type printed struct {
	rows []row
	lost []uint64
	ooms []string
}

func (out printed) ofPID(pid string) []row {
	var rows []row
	for _, r := range out.rows {
		if strconv.FormatInt(r.pid, 10) == pid {
			rows = append(rows, r)
		}
	}
	return rows
}

var (
	rowLine  = regexp.MustCompile(`^(\d+) +(\d+) +(.{16,}?) (-?\d+) +(-?\d+) +(\d+|max) *(\*.*?)? *(\[\w+\])?$`)
	lostLine = regexp.MustCompile(`^--- (\d+) events lost ---$`)
)

const headerLine = "TIME     PID    COMM             REQUESTED  CURRENT    LIMIT     "

func parseTable(t testing.TB, text string) (out printed) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	header := slices.Index(lines, headerLine)
	if header < 0 {
		t.Fatalf("no header: %q", text)
	}
	for _, line := range lines[header+1:] {
		if m := rowLine.FindStringSubmatch(line); m != nil {
			r := row{comm: strings.TrimRight(m[3], " "), mark: m[7], kind: m[8], limit: noLimit}
			for i, n := range map[int]*int64{1: &r.time, 2: &r.pid, 4: &r.requested, 5: &r.current, 6: &r.limit} {
				if m[i] != "max" {
					var err error
					if *n, err = strconv.ParseInt(m[i], 10, 64); err != nil {
						t.Fatal(err)
					}
				}
			}
			out.rows = append(out.rows, r)
		} else if m := lostLine.FindStringSubmatch(line); m != nil {
			n, _ := strconv.ParseUint(m[1], 10, 64)
			out.lost = append(out.lost, n)
		} else if strings.HasPrefix(line, "--- OOM: ") {
			out.ooms = append(out.ooms, line)
		} else if line != "" && !strings.HasPrefix(line, "@epoch: ") { // how bpftrace ends
			t.Fatalf("neither a row nor a loss: %q", line)
		}
	}
	return out
}

// startBpftrace starts the bpftrace script and waits until it traces.
func startBpftrace(t testing.TB) *tracer {
	t.Helper()
	tr := startTracer(t, "", "/usr/bin/bpftrace", "-B", "line", "/try-charge-counter.bt")
	// It prints the header before it attaches, so the first row tells.
	g := newCgroup(t)
	for deadline := time.Now().Add(patience); ; {
		p := startWorkload(t, g, 0, "touch 1")
		p.begin(t)
		p.wait(t)
		content, err := os.ReadFile(tr.stdout.Name())
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content, []byte(" "+p.pid()+" ")) {
			return tr
		}
		if time.Now().After(deadline) {
			t.Fatalf("bpftrace is not ready: %s%s", content, tr.stderr)
		}
	}
}

// checkMarks holds the marks of rows of one counter against their numbers.
func checkMarks(t *testing.T, rows []row) {
	t.Helper()
	var reached int
	for i, r := range rows {
		want := ""
		switch at := r.current >= r.limit; {
		case at && i > 0 && rows[i-1].current < rows[i-1].limit:
			want = "* LIMIT REACHED"
			reached++
		case at:
			want = "*"
		}
		if r.mark != want {
			t.Errorf("row %d, %v: want the mark %q", i, r, want)
		}
	}
	if reached == 0 {
		t.Error("the limit was never reached")
	}
}

// startReader starts a process that keeps up to 20 MiB of what is written to input.
// It has one thread and gives nothing back, so that nothing changes its counter
// between the moments when two tracers read that for the same call.
func startReader(t *testing.T, g controlGroup) (p *process, input *os.File) {
	t.Helper()
	fifo := filepath.Join(t.TempDir(), "input")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(string(g))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	p = &process{Cmd: exec.Command(busybox, "dd", "if="+fifo, "of=/dev/null", "bs=20M", "count=1", "iflag=fullblock")}
	p.Stderr = &p.stderr
	p.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	startOnCPU(t, p.Cmd, 0)
	t.Cleanup(func() {
		p.Process.Kill()
		p.Wait()
	})
	if input, err = os.OpenFile(fifo, os.O_WRONLY, 0); err != nil { // once it reads
		t.Fatal(err)
	}
	t.Cleanup(func() { input.Close() })
	// What it did until then is given back after a grace period or two.
	for range 2 {
		if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
			t.Fatalf("membarrier: %v", errno)
		}
	}
	return p, input
}

// fillUp has a reader take memory until it is gone.
func fillUp(input *os.File) {
	var err error
	for zeros := make([]byte, 1<<16); err == nil; {
		_, err = input.Write(zeros)
	}
}

// membarrierGlobal waits for a grace period of RCU: MEMBARRIER_CMD_GLOBAL
// (include/uapi/linux/membarrier.h).
const membarrierGlobal = 1

// TestAllocationToOOM is the article's experiment: a process in a cgroup of 10 MiB
// allocates until it is killed. What chargetrace prints is held against the kernel's
// own counts and, where there is bpftrace, against the script's rows.
func TestAllocationToOOM(t *testing.T) { withEachAttach(t, allocationToOOM) }

// withEachAttach has a test for kprobes and for fentry. With the latter a kernel that
// preempts itself misses a call while another task on that CPU is in the middle of the
// program, and the tracer says so: then the test returns false, and is done again.
func withEachAttach(t *testing.T, test func(t *testing.T, attach string) bool) {
	for _, attach := range []string{"kprobe", "fentry"} {
		t.Run(attach, func(t *testing.T) {
			for range 5 {
				if test(t, attach) {
					return
				}
			}
			t.Error("calls were missed five times")
		})
	}
}

func allocationToOOM(t *testing.T, attach string) bool {
	var script *tracer
	if _, err := os.Stat("/usr/bin/bpftrace"); err == nil {
		script = startBpftrace(t)
	}
	g := newCgroup(t)
	g.write(t, "memory.max", "10M")
	alloc, input := startReader(t, g)
	wide := chargetrace(t, "-pid", alloc.pid(), "-attach", attach, "-wide")
	tr := chargetrace(t, "-pid", alloc.pid(), "-attach", attach)
	maxBefore := g.number(t, "memory.events", "max")
	fillUp(input)
	alloc.waitKilled(t)
	if wide.missedCalls(t) || tr.missedCalls(t) { // they end with their process
		return false
	}
	out := tr.rows(t)
	rows := out.ofPID(alloc.pid())
	if len(rows) < 30 || len(rows) != len(out.rows) || len(out.lost) != 0 {
		t.Fatalf("%d rows of the process, %d in all, lost %v", len(rows), len(out.rows), out.lost)
	}
	for i, r := range rows {
		if r.limit != 2560 || r.comm != "busybox" || r.time < 0 || i > 0 && r.time < rows[i-1].time {
			t.Errorf("row %d: %v", i, r)
		}
	}
	checkMarks(t, rows)
	wideRows := wide.wideRows(t)
	checkFailures(t, wideRows, g, g.number(t, "memory.events", "max")-maxBefore)
	if len(wideRows) != len(rows) {
		t.Errorf("%d rows, but %d wide ones", len(rows), len(wideRows))
	}
	killed := fmt.Sprintf("--- OOM: %s ran out; busybox (%s) asked; killed busybox (%[2]s), which held anonymous ", g.path(), alloc.pid())
	if len(out.ooms) != 1 || !strings.HasPrefix(out.ooms[0], killed) {
		t.Errorf("OOM kills are %q, want %q", out.ooms, killed)
	}
	if n := g.number(t, "memory.events", "oom_kill"); n != 1 {
		t.Errorf("oom_kill is %d", n)
	}
	if s := tr.counted(t); s.shown != uint64(len(rows)) || s.lost != 0 {
		t.Errorf("%d rows, summary %+v", len(rows), s)
	}

	if script != nil {
		compareWithScript(t, rows, script, alloc.pid())
	}
	return true
}

// compareWithScript waits until the script has printed the same rows.
func compareWithScript(t *testing.T, rows []row, script *tracer, pid string) {
	t.Helper()
	var got []row
	same := func() bool {
		content, err := os.ReadFile(script.stdout.Name())
		if err != nil {
			t.Fatal(err)
		}
		// The last line may not be whole yet.
		got = parseTable(t, string(content[:bytes.LastIndexByte(content, '\n')+1])).ofPID(pid)
		// The script has also seen the process start.
		return len(got) >= len(rows) && slices.EqualFunc(rows, got[len(got)-len(rows):], sameCounts)
	}
	// The script goes on: what this process charges is behind it when it has
	// printed a later charge.
	later := startWorkload(t, newCgroup(t), 0, "touch 1")
	later.begin(t)
	later.wait(t)
	waitForWrite(t, script.stdout.Name(), func() bool {
		content, err := os.ReadFile(script.stdout.Name())
		return err == nil && bytes.Contains(content, []byte(" "+later.pid()+" "))
	})
	if same() {
		t.Logf("%d rows are those of the bpftrace script", len(rows))
		return
	}
	t.Errorf("%d rows, and %d of the script, are not the same:", len(rows), len(got))
	for i := 1; i <= min(len(rows), len(got)); i++ {
		if a, b := rows[len(rows)-i], got[len(got)-i]; !sameCounts(a, b) {
			t.Errorf("the %dth last: %v\nscript: %v", i, a, b)
			return
		}
	}
}

// checkFailures holds the rows of failures at the limit of g against how often
// the kernel says that it was hit. It does not count batch misses.
func checkFailures(t *testing.T, rows []wideRow, g controlGroup, want int64) {
	t.Helper()
	var failures int64
	for _, r := range rows {
		if r.outcome != "failed" || r.kind != "memory" {
			continue
		}
		failures++
		if limitedBy := cmp.Or(strings.TrimPrefix(r.limitedBy, "="), r.cgroup); limitedBy != g.path() || r.room >= r.requested {
			t.Errorf("a failure not at the limit of %s: %+v", g.path(), r)
		}
	}
	if failures != want {
		t.Errorf("%d failures in the rows, but memory.events says %d", failures, want)
	}
}

// startStorm starts four processes that fail a charge as fast as they can: the
// cgroup of each has less room than a batch, so the kernel tries in vain to
// charge a batch before each page. Each charges n pages.
func startStorm(t *testing.T, n int) (storm []*process, pids string) {
	t.Helper()
	var list []string
	for i := range 4 {
		g := newCgroup(t)
		p := startWorkload(t, g, i%2, fmt.Sprintf("storm %d", n))
		g.leaveRoom(t, i%2)
		p.spare(t)
		storm = append(storm, p)
		list = append(list, p.pid())
	}
	return storm, strings.Join(list, ",")
}

// blow lets a storm begin.
func blow(t *testing.T, storm []*process) {
	t.Helper()
	for _, p := range storm {
		p.begin(t)
	}
}

// calm waits until a storm is over.
func calm(t *testing.T, storm []*process) {
	t.Helper()
	for _, p := range storm {
		p.wait(t)
	}
}

func TestStormLosesNothing(t *testing.T) {
	const n = 5000
	storm, pids := startStorm(t, n)
	tr := chargetrace(t, "-pid", pids)
	blow(t, storm)
	calm(t, storm)
	out := tr.rows(t)
	s := tr.counted(t)
	if s.lost != 0 || len(out.lost) != 0 || s.shown != uint64(len(out.rows)) {
		t.Errorf("%d rows, lost %v, summary %+v", len(out.rows), out.lost, s)
	}
	// Each touch fails one, unless a process has found room for a batch.
	var failed int
	for _, r := range out.rows {
		if r.fails() {
			failed++
		}
	}
	if failed < n/2 {
		t.Errorf("the four processes failed %d charges: no storm", failed)
	}
	t.Logf("%d of %d charges failed", failed, len(out.rows))
}

// TestMigration moves a process that charges from one CPU to the other, all the
// time. From where a kernel preempts itself, that is also in the middle of a
// charge, which then returns on another CPU than it began on.
func TestMigration(t *testing.T) {
	g := newCgroup(t)
	p := startWorkload(t, g, 0, "storm 20000")
	g.leaveRoom(t, 0)
	p.spare(t)
	tr := chargetrace(t, "-wide", "-pid", p.pid())
	p.begin(t)
	stop := make(chan struct{})
	var moves int
	var moving sync.WaitGroup
	moving.Go(func() {
		for ; ; moves++ {
			select {
			case <-stop:
				return
			default:
			}
			var cpu unix.CPUSet
			cpu.Set(moves % 2)
			if err := unix.SchedSetaffinity(p.Process.Pid, &cpu); err != nil {
				t.Error(err)
				return
			}
		}
	})
	if _, err := p.stdout.ReadString('\n'); err != nil { // it is done
		t.Error(err)
	}
	close(stop)
	moving.Wait()
	p.wait(t)
	rows := tr.wideRows(t)
	content, err := os.ReadFile(tr.stdout.Name())
	if err != nil {
		t.Fatal(err)
	}
	last := make(map[string]int) // of each thread
	for line := range strings.Lines(string(content)) {
		f := strings.Fields(line)
		at, err := strconv.Atoi(f[0])
		if err != nil {
			continue // the header
		}
		if at < last[f[2]] {
			t.Errorf("%d ms later: %s", last[f[2]], line)
		}
		last[f[2]] = at
	}
	t.Logf("%d moves in %d charges", moves, len(rows))
}

// TestPreempted has processes charge on one CPU, under tracers enough to make a charge
// last about as long as a process runs at a time: where a kernel preempts itself, many
// charges are under way at once. None may be given up. Of more than ten at once the
// kernel would not see the return.
func TestPreempted(t *testing.T) {
	const n = 9
	g := newCgroup(t)
	var processes []*process
	for range n {
		processes = append(processes, startWorkload(t, g, 0, "touch 4"))
	}
	resume := suspend(t, processes...)
	var tracers []*tracer
	for range 8 {
		tracers = append(tracers, chargetrace(t, "-cgroup", string(g), "-wide"))
	}
	resume()
	for _, p := range processes {
		p.begin(t)
	}
	// None gives back what it has charged before all have.
	for _, p := range processes {
		if _, err := p.stdout.ReadString('\n'); err != nil {
			t.Fatalf("%v: %s", err, &p.stderr)
		}
	}
	for _, p := range processes {
		p.wait(t)
	}
	var first int
	for i, tr := range tracers {
		tr.stop(t)
		rows := tr.wideRows(t) // and no charge's outcome is foretold
		if i == 0 {
			first = len(rows)
		}
		if len(rows) != first || len(rows) < n*4<<20/pageSize/64 {
			t.Errorf("tracer %d has %d rows, the first %d", i, len(rows), first)
		}
	}
}

// TestSmallestBuffer stops a tracer with a buffer of one page in a storm, and
// lets another with the usual buffer count what happens meanwhile.
func TestSmallestBuffer(t *testing.T) {
	storm, pids := startStorm(t, 2000)
	resume := suspend(t, storm...)
	whole := chargetrace(t, "-pid", pids)
	tr := chargetrace(t, "-pid", pids, "-buffer", "1")
	if err := tr.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume()
	blow(t, storm)
	calm(t, storm)
	if err := tr.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	out, wholeOut := tr.rows(t), whole.rows(t)
	s := tr.counted(t)
	var lost uint64
	for _, n := range out.lost {
		lost += n
	}
	if s.lost == 0 || s.lost != lost || s.shown != uint64(len(out.rows)) {
		t.Errorf("%d rows and %d lost in the table, summary %+v", len(out.rows), lost, s)
	}
	if want := uint64(len(wholeOut.rows)); s.shown+s.lost != want || whole.counted(t).lost != 0 {
		t.Errorf("shown %d + lost %d, but there were %d charges: %s\n%s", s.shown, s.lost, want, tr.stderr, whole.stderr)
	}
	if want := fmt.Sprintf("warning: %d events were lost", s.lost); !strings.Contains(tr.stderr.String(), want) {
		t.Errorf("no %q in %s", want, tr.stderr)
	}
}

func TestTerminatedInStorm(t *testing.T) {
	for _, attach := range []string{"kprobe", "fentry"} {
		t.Run(attach, func(t *testing.T) {
			storm, pids := startStorm(t, 1_000_000)
			tr := chargetrace(t, "-pid", pids, "-attach", attach)
			blow(t, storm)
			// Two batches of rows: it is in full swing.
			waitForWrite(t, tr.stdout.Name(), func() bool {
				info, err := tr.stdout.Stat()
				return err == nil && info.Size() > 64<<10
			})
			tr.stop(t)
			out := tr.rows(t)
			// That what the kernel delivered was shown is in the summary's sum.
			if s := tr.counted(t); s.shown != uint64(len(out.rows)) || s.lost != 0 {
				t.Errorf("%d rows, summary %+v", len(out.rows), s)
			}
		})
	}
}

// quietCPUNanos returns the CPU time of a tracer once it has nothing to do, but
// to look every now and then whether it has. That is a rate, which takes an
// interval to tell.
func quietCPUNanos(t testing.TB, pid int) float64 {
	t.Helper()
	const interval = 200 * time.Millisecond
	for last := cpuNanosOf(t, pid); ; {
		time.Sleep(interval)
		now := cpuNanosOf(t, pid)
		if now-last < float64(interval)/100 {
			return now
		}
		last = now
	}
}

// cpuNanosOf returns the CPU time of another process, in nanoseconds.
func cpuNanosOf(t testing.TB, pid int) float64 {
	t.Helper()
	// clock_getcpuclockid(3)
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		t.Fatal(err)
	}
	return float64(ts.Nano())
}

// TestLive starts to charge when the tracer has gone to sleep: it must print
// what is charged, and go on to print, while the process lives.
func TestLive(t *testing.T) {
	p := startWorkload(t, newCgroup(t), 0, "touch 8")
	tr := chargetrace(t, "-pid", p.pid())
	quietCPUNanos(t, tr.Process.Pid)
	p.begin(t)
	const rows = 8 << 20 / pageSize / 64
	waitForWrite(t, tr.stdout.Name(), func() bool {
		content, err := os.ReadFile(tr.stdout.Name())
		return err == nil && bytes.Count(content, []byte("\n")) > rows*3/4
	})
	p.wait(t)
	tr.rows(t)
}

func TestHostileName(t *testing.T) {
	p := startWorkload(t, newCgroup(t), 0, `named 1 \x1b[31mx\n\xffy`)
	tr := chargetrace(t, "-pid", p.pid())
	p.begin(t)
	p.wait(t)
	out := tr.rows(t)
	if len(out.rows) == 0 {
		t.Fatal("no rows")
	}
	for _, r := range out.rows {
		// What its other threads charge has their name.
		if r.comm == `\x1b[31mx\n\xffy` {
			return
		}
	}
	t.Errorf("no row has the name: %v", out.rows)
}

func TestStops(t *testing.T) {
	t.Run("rows", func(t *testing.T) {
		p := startWorkload(t, newCgroup(t), 0, "touch 2")
		tr := chargetrace(t, "-pid", p.pid(), "-n", "3", "-attach", "auto")
		p.begin(t)
		if n := len(tr.rows(t).rows); n != 3 {
			t.Errorf("%d rows", n)
		}
		if s := tr.counted(t); s.shown != 3 {
			t.Errorf("summary %+v", s)
		}
		if !strings.Contains(tr.stderr.String(), "attached with kprobe\n") {
			t.Errorf("it does not say how it is attached: %s", tr.stderr)
		}
	})
	t.Run("duration", func(t *testing.T) {
		if out := chargetrace(t, "-for", "100ms").rows(t); len(out.lost) != 0 {
			t.Errorf("lost %v", out.lost)
		}
	})
	t.Run("reader gone", func(t *testing.T) {
		storm, pids := startStorm(t, 1_000_000)
		cmd := exec.Command("/usr/bin/chargetrace", "-pid", pids)
		cmd.Stderr = &bytes.Buffer{}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		blow(t, storm)
		if line, err := bufio.NewReader(stdout).ReadString('\n'); line != headerLine+"\n" {
			t.Errorf("%q, %v", line, err)
		}
		stdout.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, cmd.Stderr)
		}
		if got, want := fmt.Sprint(cmd.Stderr), "Tracing page_counter_try_charge... Hit Ctrl-C to end.\n"; got != want {
			t.Errorf("stderr is %q", got)
		}
	})
	t.Run("disk full", func(t *testing.T) {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer full.Close()
		cmd := exec.Command("/usr/bin/chargetrace", "-for", "1ms")
		cmd.Stdout = full
		mustFail(t, cmd, 1, "no space left on device", "hint: the disk is full")
	})
}

// mustFail runs a command that must exit with that status, having said these
// things on stderr.
func mustFail(t *testing.T, cmd *exec.Cmd, status int, want ...string) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != status {
		t.Errorf("%s: exit status %d, want %d", cmd.Args, got, status)
	}
	for _, text := range want {
		if !strings.Contains(stderr.String(), text) {
			t.Errorf("%s: no %q in %s", cmd.Args, text, &stderr)
		}
	}
}

func TestNoSuchProcess(t *testing.T) {
	mustFail(t, exec.Command("/usr/bin/chargetrace", "-pid", "2000000000"), 1, "there is no process 2000000000", "hint: ")
	// The test has more threads than one.
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	thread := threads[len(threads)-1].Name()
	mustFail(t, exec.Command("/usr/bin/chargetrace", "-pid", thread), 1,
		fmt.Sprintf("%s is not a process, but a thread of process %d", thread, os.Getpid()), "hint: ")
}

// unprivileged are attributes of a process that is not root's.
func unprivileged(caps ...uintptr) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: caps}
}

// enough returns the capabilities that take the place of root.
func enough(t testing.TB) []uintptr {
	t.Helper()
	caps := []uintptr{unix.CAP_BPF, unix.CAP_PERFMON}
	if strings.HasPrefix(kernelRelease(t), "5.10.") {
		caps = append(caps, unix.CAP_SYS_RESOURCE)
	}
	return caps
}

// setParanoid sets how much the kernel asks of who sets a kprobe. Debian's kernels can
// ask for more than CAP_PERFMON.
func setParanoid(t testing.TB, level string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/kernel/perf_event_paranoid", []byte(level), 0); err != nil {
		t.Fatal(err)
	}
}

func TestPrivileges(t *testing.T) {
	as := func(caps ...uintptr) *exec.Cmd {
		cmd := exec.Command("/usr/bin/chargetrace", "-for", "10ms")
		cmd.SysProcAttr = unprivileged(caps...)
		return cmd
	}
	mustFail(t, as(), 1, "missing CAP_BPF and CAP_PERFMON", "hint: run it with sudo")
	mustFail(t, as(unix.CAP_BPF), 1, "missing CAP_PERFMON")
	enough := enough(t)
	if slices.Contains(enough, unix.CAP_SYS_RESOURCE) {
		mustFail(t, as(unix.CAP_BPF, unix.CAP_PERFMON), 1, "missing CAP_SYS_RESOURCE")
	}
	setParanoid(t, "3")
	if out, err := as(enough...).CombinedOutput(); err != nil {
		mustFail(t, as(enough...), 1, "kernel.perf_event_paranoid is 3", "hint: ")
		t.Logf("this kernel asks for more: %s", out)
	}
	setParanoid(t, "2")
	if out, err := as(enough...).CombinedOutput(); err != nil {
		t.Errorf("with all it needs, but not root: %v\n%s", err, out)
	}
}

func TestCheck(t *testing.T) {
	out, err := exec.Command("/usr/bin/chargetrace", "-check").CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("lacking")) || !bytes.Contains(out, []byte("attach fentry      ok ")) ||
		!bytes.Contains(out, []byte("attach -net        ok       attached with kprobe and fentry, and removed again\n")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestReadme runs each chargetrace command of the README: what traces, on a
// process that charges and then exits.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("/README.md")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	if err := os.Symlink("/init", "alloc"); err != nil {
		t.Fatal(err)
	}
	g := newCgroup(t)
	var ran int
	for line := range strings.Lines(string(readme)) {
		command, sudo := strings.CutPrefix(strings.TrimSpace(line), "sudo ")
		command, ok := strings.CutPrefix(command, "chargetrace -")
		if !ok {
			continue
		}
		ran++
		command, _, _ = strings.Cut("-"+command, "  ") // what it is for
		command, pipe, piped := strings.Cut(command, "|")
		if piped && !strings.HasPrefix(strings.TrimSpace(pipe), "grep ") {
			t.Errorf("no test for a pipe into %q", pipe)
		}
		if strings.HasSuffix(command, "-memory 10M -- ./alloc") {
			tr := startTracer(t, "", append([]string{"/usr/bin/chargetrace"}, strings.Fields(command)...)...)
			tr.status(t, 128+int(unix.SIGKILL))
			if s := tr.counted(t); s.shown == 0 {
				t.Errorf("chargetrace %s showed nothing: %+v", command, s)
			}
			continue
		}
		if !sudo || strings.Contains(command, "-check") {
			// What is played was recorded by a command before.
			args := strings.Fields(strings.NewReplacer("before.ctrace", "oom.ctrace", "after.ctrace", "oom.ctrace").Replace(command))
			if slices.Contains(args, "-o") {
				args = append(args, "-force")
			}
			if out, err := exec.Command("/usr/bin/chargetrace", args...).CombinedOutput(); err != nil {
				t.Errorf("chargetrace %s: %v\n%s", command, err, out)
			}
			continue
		}
		p, q := startWorkload(t, g, 0, "touch 8"), startWorkload(t, g, 0, "touch 8")
		command = strings.NewReplacer(
			"4711", p.pid(), "4712", q.pid(), "-for 10s", "-for 2s", "/system.slice", g.path(),
			"'ngin?'", "ex?", "'java*'", "ex*", "-min-pages 512", "-min-pages 2",
		).Replace(command)
		args := strings.Fields(command)
		if slices.Contains(args, "-o") {
			args = append(args, "-force") // more than one records to oom.ctrace
		}
		tr := chargetrace(t, args...)
		p.begin(t)
		q.begin(t)
		p.wait(t)
		q.wait(t)
		if !slices.Contains(args, "-pid") && !slices.Contains(args, "-for") {
			tr.stop(t) // as Ctrl-C would
		}
		if err := tr.Cmd.Wait(); err != nil {
			t.Errorf("chargetrace %s: %v\n%s", command, err, tr.stderr)
		}
		if s := tr.counted(t); s.seen == 0 || s.shown == 0 && !slices.Contains(args, "-limited") {
			t.Errorf("chargetrace %s showed nothing: %+v", command, s)
		}
	}
	if ran < 10 {
		t.Errorf("ran only %d commands", ran)
	}
}

// TestLockdown must be the last, as it is in the last of the guest's files by name:
// what it does lasts until the machine stops.
func TestLockdown(t *testing.T) {
	if err := os.WriteFile("/sys/kernel/security/lockdown", []byte("confidentiality"), 0); err != nil {
		t.Fatal(err)
	}
	mustFail(t, exec.Command("/usr/bin/chargetrace"), 1, "locked down (confidentiality)", "hint: boot without lockdown")
	mustFail(t, exec.Command("/usr/bin/chargetrace", "-check"), 1, "cannot be traced by this user")
}
