// Package capture is the live source of events: it loads the BPF programs,
// attaches them to page_counter_try_charge and what else is asked for, drains the
// ring buffer, and stops without losing what is still in it. It is the only package
// that knows cilium/ebpf.
package capture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"chargetrace/internal/event"
	"chargetrace/internal/glob"
	"chargetrace/internal/stream"
)

// Function is the kernel function that is traced.
const Function = "page_counter_try_charge"

// Attach is a way to attach a program to [Function].
type Attach string

const (
	// Default is Kprobe, but Fentry where the kernel has it for what [Options.Net]
	// alone needs.
	Default Attach = ""

	// The values of the -attach flag.

	// Kprobe needs CONFIG_KPROBES.
	Kprobe Attach = "kprobe"
	// Fentry needs BTF and ftrace's direct calls, and no kprobes.
	Fentry Attach = "fentry"
	// Auto is Default, and Fentry where that fails.
	Auto Attach = "auto"
)

// AllAttach is what the flag may say.
var AllAttach = []Attach{Kprobe, Fentry, Auto}

// ParseAttach returns the Attach of that name.
func ParseAttach(name string) (Attach, error) {
	if a := Attach(name); slices.Contains(AllAttach, a) {
		return a, nil
	}
	return "", errors.New("want kprobe, fentry or auto")
}

// DefaultBufferBytes is the size of the ring buffer: over 11,900 charges. The
// reader has it mapped twice, so it counts double in its memory.
const DefaultBufferBytes = 2 << 20

// MaxBufferBytes is the largest ring buffer: the kernel takes its size as a
// power of two in 32 bits.
const MaxBufferBytes = 1 << 31

// RoundBuffer returns the smallest size of a ring buffer that is at least
// bytes: a power of two of at least one page.
func RoundBuffer(bytes int) int {
	size := os.Getpagesize()
	for size < bytes {
		size *= 2
	}
	return size
}

// Options say what to trace and how.
type Options struct {
	// PIDs are the thread groups to trace, by their numbers in the tracer's pid
	// namespace; none means all. The tracer itself is not traced; see Net.
	PIDs []int
	// Follow traces what descends from them too.
	Follow bool
	// Forks sends an event for each fork of a process that is traced, and with
	// Follow for what has descended from them before. Without PIDs it is for
	// all.
	Forks bool
	// Comms are the names of the threads to trace; nil means all.
	Comms *glob.Set
	// Cgroups are those to trace the charges to, with what is below them; none
	// means all. Reclaim and OOM kills are also traced in those that are
	// AboveCgroups.
	Cgroups, AboveCgroups []event.CgroupID
	// Attach is how to attach the programs.
	Attach Attach
	// BufferBytes is DefaultBufferBytes where it is 0, and rounded up with
	// [RoundBuffer].
	BufferBytes int
	// Kinds of counters to trace; none means all.
	Kinds event.Kinds
	// OnlyLimited leaves out charges that did not hit a limit; see
	// [event.Event.LimitHit]. Charges that follow a failed one come all the
	// same: they tell what it was.
	OnlyLimited bool
	// MinPages leaves out smaller charges, with the same exception.
	MinPages uint64
	// KernelStacks takes the kernel stack of each charge, and UserStacks that of
	// the process in user space, as far as it keeps frame pointers.
	KernelStacks, UserStacks bool
	// Net also sends an event for each call that gives pages back, or charges them
	// whatever the limit. So that nothing is missing, the tracer is traced too.
	Net bool
}

// Tracer is a running trace, and a [stream.Source]. Read, Counts and Close are
// for one goroutine; Stop is for any.
type Tracer struct {
	// asked is what Start was asked for, attached what came of it, and
	// attachedNet that of what asks for no limit.
	asked, attached, attachedNet Attach

	header  stream.Header
	lacking []string

	programs   []program
	links      []attachment // in the order in which they were attached
	counters   *ebpf.Map
	calls      *ebpf.Map
	callStacks *ebpf.Map
	targets    *ebpf.Map

	ring    *ringbuf.Reader
	record  ringbuf.Record
	flushed bool
	// idleIntervals counts the intervals without an event in which none was pending.
	idleIntervals int
	readerIdle    *ebpf.Variable
	unfollowed    *ebpf.Variable

	// pending are failed batch charges that wait for the next event of their thread, and the
	// events after them; see resolveMisses.
	pending []event.Event
	// lost is how many lost events of each CPU have been passed on, and
	// queue holds the events to read before the ring buffer.
	lost   []uint64
	queue  []event.Event
	stacks *stacks // nil: they are not taken

	stop     sync.Once
	missed   uint64
	inflight []inflightCall
	stopErr  error
}

// program and attachment are of a hook, of which calls says the same.
type program struct {
	*ebpf.Program
	calls bool
}

type attachment struct {
	link.Link
	calls bool
}

var _ stream.Source = (*Tracer)(nil)

// Start loads and attaches the programs. When it returns, charges are traced.
func Start(o Options) (*Tracer, error) {
	// Before 5.11 maps count against RLIMIT_MEMLOCK.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raise RLIMIT_MEMLOCK: %w", err)
	}
	switch o.Attach {
	case Kprobe, Fentry:
		return start(o, o.Attach, o.Attach)
	case Auto:
		t, kprobeErr := startDefault(o)
		if kprobeErr == nil {
			return t, nil
		}
		t, fentryErr := start(o, Fentry, Fentry)
		if fentryErr == nil {
			return t, nil
		}
		return nil, fmt.Errorf("%w; %w", kprobeErr, fentryErr)
	}
	return startDefault(o)
}

// startDefault starts with kprobes, but looks at what asks for no limit with fentry
// where it can: much is given back in interrupts, and where one comes on top of a
// kprobe's program there is no other kprobe (kprobe_ftrace_handler), nor does
// every kernel count it.
func startDefault(o Options) (*Tracer, error) {
	if o.Net {
		if t, err := start(o, Kprobe, Fentry); !lacksFentry(err) {
			return t, err
		}
	}
	return start(o, Kprobe, Kprobe)
}

// start attaches all in one way, but what asks for no limit in another.
func start(o Options, attach, netOnly Attach) (_ *Tracer, err error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	possibleCPUs, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count the CPUs: %w", err)
	}
	if err := configure(spec, o, possibleCPUs); err != nil {
		return nil, err
	}

	t := &Tracer{asked: o.Attach, attached: attach, attachedNet: netOnly, lost: make([]uint64, possibleCPUs)}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	// A kernel may refuse the programs that are not to be attached.
	wanted := make(map[string]*ebpf.ProgramSpec)
	for _, h := range hooks {
		if h.needed == nil || h.needed(&o) {
			name := h.programs[h.by(attach, netOnly)]
			wanted[name] = spec.Programs[name]
		}
	}
	spec.Programs = wanted
	opts := ebpf.CollectionOptions{Cache: btf.NewCache()}
	opts.Programs.KernelTypes, err = kernelTypes(spec, opts.Cache)
	if err != nil {
		return nil, fmt.Errorf("read the kernel's types: %w", err)
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, opts)
	if errors.Is(err, btf.ErrNotFound) && attach == Fentry {
		t.lacking = dropUnknown(spec, opts.Programs.KernelTypes)
		coll, err = ebpf.NewCollectionWithOptions(spec, opts)
	}
	if err != nil {
		return nil, fmt.Errorf("load the BPF programs: %w", err)
	}
	// The programs keep the maps alive, and the reader its mapping.
	defer coll.Close()
	t.counters = coll.DetachMap(bpfMapCounters)
	t.calls = coll.DetachMap(bpfMapCalls)
	t.callStacks = coll.DetachMap(bpfMapCallStacks)
	t.targets = coll.DetachMap(bpfMapTargets)
	if o.KernelStacks || o.UserStacks {
		if t.stacks, err = newStacks(&o); err != nil {
			return nil, err
		}
	}
	t.readerIdle = coll.Variables[bpfVarReaderIdle]
	t.unfollowed = coll.Variables[bpfVarUnfollowed]
	t.ring, err = ringbuf.NewReader(coll.Maps[bpfMapEvents])
	if err != nil {
		return nil, fmt.Errorf("map the ring buffer: %w", err)
	}
	t.ring.SetDeadline(time.Now().Add(readInterval))

	t.header = newHeader()
	t.header.KernelStacks, t.header.UserStacks = o.KernelStacks, o.UserStacks
	t.header.Net = o.Net
	for _, h := range hooks {
		how := h.by(attach, netOnly)
		p := coll.DetachProgram(h.programs[how])
		if p == nil {
			continue
		}
		t.programs = append(t.programs, program{p, h.calls})
		l, err := h.attach(h, how, p)
		switch {
		case err == nil && l != nil:
			t.links = append(t.links, attachment{l, h.calls})
		case err == nil: // it has done its work
		case h.without == "":
			return nil, fmt.Errorf("attach a %s to %s: %w", how, h.name, err)
		case errors.Is(err, os.ErrNotExist): // inlined in this kernel
			t.lacking = append(t.lacking, h.without)
		default:
			return nil, fmt.Errorf("attach to %s: %w", h.name, err)
		}
	}
	if o.hasTargets() {
		var found uint32
		if err := coll.Variables[bpfVarFound].Get(&found); err != nil {
			return nil, fmt.Errorf("count the processes to trace: %w", err)
		}
		if int(found) != len(o.PIDs) {
			return nil, fmt.Errorf("%d of the %d processes to trace are gone", len(o.PIDs)-int(found), len(o.PIDs))
		}
	}
	return t, nil
}

// newHeader reads the clocks: the trace begins now.
func newHeader() stream.Header {
	boot := BootNanos()
	return stream.Header{
		PageSize:       os.Getpagesize(),
		StartBootNanos: boot,
		BootWallNanos:  time.Now().UnixNano() - int64(boot),
	}
}

// BootNanos is the time on the clock of [event.Event.BootNanos].
func BootNanos() uint64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // it is there since Linux 2.6.39
	}
	return uint64(t.Nano())
}

// Attached says how the programs are attached: "kprobe" or "fentry", or where what
// [Options.Net] alone needs is attached otherwise, "kprobe and fentry".
func (t *Tracer) Attached() string {
	if t.header.Net && t.attachedNet != t.attached {
		return string(t.attached + " and " + t.attachedNet)
	}
	return string(t.attached)
}

// LacksFentry reports whether [Options.Net] makes do with kprobes, since this kernel
// lacks what [Default] asks for.
func (t *Tracer) LacksFentry() bool {
	return t.header.Net && t.asked != Kprobe && t.attachedNet == Kprobe
}

// NoFentry says what that means.
const NoFentry = "this kernel has no fentry for what is of -net alone: with kprobes, calls in interrupts can be missed"

// Lacking says what this kernel gives no way to see, for the reader.
func (t *Tracer) Lacking() []string { return t.lacking }

// Header implements [stream.Source].
func (t *Tracer) Header() stream.Header { return t.header }

// WaitTargets returns when no process is left that is traced with
// [Options.Follow], or ctx is done.
func (t *Tracer) WaitTargets(ctx context.Context) error {
	// The kernel has no way to tell when a map becomes empty.
	const interval = 100 * time.Millisecond
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		var pid uint32
		if err := t.targets.NextKey(nil, &pid); errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		} else if err != nil {
			return fmt.Errorf("look for the traced processes: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Close stops the trace and frees what it holds. Events that were not read are
// gone.
func (t *Tracer) Close() error {
	var errs []error
	if t.ring != nil {
		t.Stop()
		errs = append(errs, t.stopErr, t.ring.Close())
	}
	if t.stacks != nil && t.stacks.programs != nil {
		t.stacks.programs.close()
	}
	for _, m := range []*ebpf.Map{t.counters, t.calls, t.callStacks, t.targets} {
		errs = append(errs, m.Close())
	}
	for _, p := range t.programs {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}
