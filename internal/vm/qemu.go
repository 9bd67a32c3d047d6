//go:build linux

package vm

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// architecture are QEMU's settings to emulate an architecture.
type architecture struct {
	emulator, machine, cpu, console string
}

var architectures = map[string]architecture{
	// With erms and fsrm the kernel clears and copies pages with one instruction per
	// byte, and 5.10 and 6.1 hang while they start a second CPU.
	"amd64": {"qemu-system-x86_64", "q35,hpet=off", "max,-erms,-fsrm", "ttyS0"},
	// The architected algorithm of pointer authentication is slow to emulate.
	"arm64": {"qemu-system-aarch64", "virt", "max,pauth-impdef=on", "ttyAMA0"},
}

func (m *Machine) memoryMiB() int { return cmp.Or(m.MemoryMiB, 1024) }

func (m *Machine) commandLine() string {
	args := []string{"console=" + architectures[m.Arch].console, "panic=-1", "quiet"}
	if m.CountInstructions {
		// The kernel distrusts a clock that skips idle time.
		args = append(args, "tsc=reliable")
	}
	return strings.Join(append(args, m.KernelArgs...), " ")
}

// The file descriptors that QEMU inherits.
const (
	frameFD   = 3 // frames from the guest
	mailboxFD = 4 // the command for the guest; see mailbox.go
	monitorFD = 5 // QEMU's protocol, QMP
	ramFD     = 6 // the RAM, if it is a file
)

// args returns QEMU's command line except for the files that the machine boots from.
func (m *Machine) args(ctx context.Context) ([]string, error) {
	arch, ok := architectures[m.Arch]
	if !ok {
		return nil, fmt.Errorf("no machine for %q: want amd64 or arm64", m.Arch)
	}
	args, err := fetchQEMU(ctx, arch.emulator)
	if err != nil {
		return nil, err
	}
	args = append(args, "-machine", arch.machine)
	switch {
	case m.CountInstructions:
		args = append(args, "-cpu", arch.cpu,
			// All CPUs take turns in one thread, for a number of instructions each.
			"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off",
			// No other clock and no randomness affects the timing.
			"-rtc", "base=2026-01-01T00:00:00,clock=vm", "-seed", "1")
	case m.Arch == runtime.GOARCH && kvmBoots(ctx, m.Kernel, args):
		args = append(args, "-cpu", "max", "-accel", "kvm")
	default:
		args = append(args, "-cpu", arch.cpu, "-accel", "tcg,thread=single")
	}
	return append(args,
		"-smp", strconv.Itoa(max(1, m.CPUs)),
		"-m", fmt.Sprintf("%dM", m.memoryMiB()),
		"-nodefaults", "-nographic", "-no-reboot",
		"-serial", "stdio",
		// The command's output has its own port: the kernel prints on the first.
		"-chardev", fmt.Sprintf("file,id=frames,path=/dev/fd/%d", frameFD),
		"-device", "pci-serial,chardev=frames",
		"-object", fmt.Sprintf("memory-backend-file,id=mailbox,size=%d,mem-path=/dev/fd/%d,share=off", mailboxBytes, mailboxFD),
		"-device", "ivshmem-plain,memdev=mailbox,master=on",
		// The guest stops itself with this device; see stopMachine.
		"-device", "pvpanic-pci", "-action", "panic=pause",
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", monitorFD),
		"-mon", "chardev=monitor,mode=control",
	), nil
}

// kvmTimeout is enough for a kernel under KVM to find no root file system, which takes
// 2 s.
const kvmTimeout = 15 * time.Second

var kvm struct {
	sync.Mutex
	tried, boots bool
}

// kvmBoots reports whether a kernel boots under KVM. It tries once, without an initramfs:
// the kernel panics and QEMU exits. Some virtual machines have a /dev/kvm with which no
// kernel boots.
func kvmBoots(ctx context.Context, kernel string, qemu []string) bool {
	kvm.Lock()
	defer kvm.Unlock()
	if !kvm.tried && unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) == nil {
		ctx, cancel := context.WithTimeout(ctx, kvmTimeout)
		defer cancel()
		args := append(slices.Clip(qemu[1:]), "-cpu", "max", "-accel", "kvm", "-nodefaults", "-nographic", "-no-reboot", "-kernel", kernel, "-append", "panic=-1")
		kvm.boots = exec.CommandContext(ctx, qemu[0], args...).Run() == nil
	}
	kvm.tried = true
	return kvm.boots
}

// qemu is a running QEMU.
type qemu struct {
	kernel  string
	ctx     context.Context
	cmd     *exec.Cmd
	console tail     // output of the kernel and QEMU
	frames  *os.File // from the guest
	monitor *json.Decoder
	net.Conn
}

// start starts QEMU. A guest whose mailbox is empty stops after it booted. ram is nil for a
// machine without a snapshot.
func (m *Machine) start(ctx context.Context, args []string, ram, mailbox *os.File) (_ *qemu, err error) {
	q := &qemu{kernel: filepath.Base(m.Kernel), ctx: ctx}
	frames, fromGuest, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer fromGuest.Close()
	// If the pipe is full, QEMU writes again at an unpredictable time.
	if _, err := unix.FcntlInt(fromGuest.Fd(), unix.F_SETPIPE_SZ, 1<<20); err != nil {
		return nil, fmt.Errorf("enlarge a pipe: %w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	mine, theirs := os.NewFile(uintptr(pair[0]), "monitor"), os.NewFile(uintptr(pair[1]), "monitor")
	defer mine.Close()
	defer theirs.Close()
	if q.Conn, err = net.FileConn(mine); err != nil {
		return nil, err
	}
	q.frames, q.monitor = frames, json.NewDecoder(q.Conn)

	q.cmd = exec.CommandContext(ctx, args[0], args[1:]...)
	q.cmd.Stdout = &q.console
	if m.Console != nil {
		q.cmd.Stdout = io.MultiWriter(&q.console, m.Console)
	}
	q.cmd.Stderr = q.cmd.Stdout
	q.cmd.ExtraFiles = []*os.File{frameFD - 3: fromGuest, mailboxFD - 3: mailbox, monitorFD - 3: theirs, ramFD - 3: ram}
	// QEMU must not outlive a test that is killed.
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := q.cmd.Start(); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

func (q *qemu) close() {
	q.frames.Close()
	q.Conn.Close()
}

// kill kills QEMU if it still runs.
func (q *qemu) kill() {
	if q.cmd.ProcessState == nil {
		q.cmd.Process.Kill()
		q.cmd.Wait()
	}
	q.close()
}

// fail kills QEMU, and returns an error with the last lines of the console.
func (q *qemu) fail(err error) error {
	q.cmd.Process.Kill()
	waitErr := q.cmd.Wait()
	if cause := context.Cause(q.ctx); cause != nil {
		err = cause
	} else if !strings.Contains(fmt.Sprint(waitErr), "signal: killed") {
		err = errors.Join(err, waitErr)
	}
	return fmt.Errorf("%s: %w; the kernel's last output:\n%s", q.kernel, err, &q.console)
}

// wait copies the command's output, and returns its exit status.
func (q *qemu) wait(stdout, stderr io.Writer) (int, error) {
	status, err := readFrames(q.frames, stdout, stderr)
	if err != nil {
		return 0, q.fail(err)
	}
	return status, nil
}

// save waits until the guest stops itself, and writes the state of the machine's devices
// to a file. QEMU leaves out the RAM (x-ignore-shared), which is in a file already.
func (q *qemu) save(file string) error {
	if err := q.negotiate(); err != nil {
		return err
	}
	for event := ""; event != "STOP"; {
		var message struct{ Event string }
		if err := q.monitor.Decode(&message); err != nil {
			readFrames(q.frames, &q.console, &q.console) // the guest's own message
			return q.fail(err)
		}
		event = message.Event
	}
	if err := q.migrate("migrate", file); err != nil {
		return err
	}
	state, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := alignClock(state); err != nil {
		return err
	}
	return os.WriteFile(file, state, 0o600)
}

// alignClock sets the clock of a saved machine to the next full second. After the guest
// stops, the clock may skip to the next timer before QEMU notices, because QEMU takes the
// stopped CPU for an idle one (icount_start_warp_timer). Aligning it hides whether it did.
func alignClock(state []byte) error {
	// The clock is the skipped time plus the executed instructions
	// (icount_vmstate_timers).
	header := []byte("\x05\x0ctimer/icount\x00\x00\x00\x01")
	before, fields, found := bytes.Cut(state, header)
	if !found || bytes.Contains(fields, header) || len(fields) < 16 {
		return errors.New("the state of the machine has no clock that counts instructions")
	}
	fields = state[len(before)+len(header):]
	skipped, executed := binary.BigEndian.Uint64(fields), binary.BigEndian.Uint64(fields[8:])
	const second = 1e9
	clock := (skipped + executed + second - 1) / second * second
	binary.BigEndian.PutUint64(fields, clock-executed)
	return nil
}

// load loads the state that save wrote into a machine started for that. The machine stays
// stopped.
func (q *qemu) load(file string) error {
	if err := q.negotiate(); err != nil {
		return err
	}
	return q.migrate("migrate-incoming", file)
}

// negotiate opens the session with QEMU's monitor.
func (q *qemu) negotiate() error {
	if err := q.execute("qmp_capabilities", nil); err != nil {
		return err
	}
	ignoreShared := map[string]any{"capability": "x-ignore-shared", "state": true}
	return q.execute("migrate-set-capabilities", map[string]any{"capabilities": []any{ignoreShared}})
}

// migrate saves the machine to a file, or loads it, and waits for completion.
func (q *qemu) migrate(command, file string) error {
	if err := q.execute(command, map[string]any{"uri": "file:" + file}); err != nil {
		return err
	}
	for {
		var info struct {
			Status    string
			ErrorDesc string `json:"error-desc"`
		}
		if err := q.query("query-migrate", nil, &info); err != nil {
			return err
		}
		switch info.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("%s %s: %s", command, info.Status, info.ErrorDesc)
		}
		time.Sleep(time.Millisecond) // QEMU has no command that waits
	}
}

// execute runs a monitor command.
func (q *qemu) execute(command string, arguments any) error {
	return q.query(command, arguments, new(any))
}

// query runs a monitor command and decodes its result.
func (q *qemu) query(command string, arguments, result any) error {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := json.NewEncoder(q.Conn).Encode(request); err != nil {
		return q.fail(err)
	}
	for {
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := q.monitor.Decode(&reply); err != nil {
			return q.fail(err)
		}
		switch {
		case reply.Error != nil:
			return fmt.Errorf("%s: %s", command, reply.Error.Desc)
		case reply.Return != nil: // neither greeting nor event
			return json.Unmarshal(reply.Return, result)
		}
	}
}

// tail is a Writer that keeps the last bytes.
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
