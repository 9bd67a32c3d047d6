// Package capture is the live source of events: it loads the BPF programs,
// attaches them to page_counter_try_charge and what else is asked for, drains the
// ring buffer, and stops without losing what is still in it. It is the only package
// that knows cilium/ebpf.
package capture

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

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

// Counts say what became of the charges since the trace began.
type Counts struct {
	// Seen charges were met by the program: those it put into the ring buffer,
	// Filtered and Lost.
	Seen uint64
	// Filtered charges were none of those asked for, as far as the kernel can
	// tell.
	Filtered uint64
	// Lost charges found the ring buffer full.
	Lost uint64
	// LostOthers is how many events that are not charges found it full.
	LostOthers uint64
	// Missed calls of the function never came to the program, because it or
	// another BPF program was already running on that CPU. They are not part
	// of Seen. Kernels before 6.7 count not all of them.
	Missed uint64
	// Unfollowed processes were forked by those that are traced, but were too
	// many to be traced too.
	Unfollowed uint64
	// Unstacked is how many stacks of charges are missing: the kernel could not take
	// them, or there were too many different ones.
	Unstacked uint64
	// Unnamed is how many processes have user stacks of addresses alone, for they
	// could not be looked at, and how many stacks are that, since it took too long.
	Unnamed uint64
}

// readInterval is how long an event stays in the buffer at most. The reader
// wakes up so often as long as there are events. After an interval without any
// it asks to be woken by the next, and sleeps.
const readInterval = 50 * time.Millisecond

// maxPending is how long an event is held that its thread's next one may tell more about;
// see resolveMisses. That comes at once, unless the thread is preempted, on a busy machine
// for long.
const maxPending = 2 * time.Second

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
	idleIntervals     int
	readerIdle *ebpf.Variable
	unfollowed *ebpf.Variable

	// pending are failed batch charges that wait for the next event of their thread, and the
	// events after them; see resolveMisses.
	pending []event.Event
	// lost is how many lost events of each CPU have been passed on, and
	// queue holds the events to read before the ring buffer.
	lost    []uint64
	queue   []event.Event
	stacks  *stacks // nil: they are not taken

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

// lacksFentry reports whether a kernel that refused fentry has none, or none at some
// function.
func lacksFentry(err error) bool {
	// ENOTSUPP of include/linux/errno.h, which the kernel means to keep to itself.
	const notSupported = unix.Errno(524)
	return errors.Is(err, notSupported) || errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, btf.ErrNotFound)
}

// A hook is a place in the kernel to put a program.
type hook struct {
	// name is that of a function or a tracepoint.
	name string
	// programs for each way to attach.
	programs map[Attach]string
	attach   func(h hook, a Attach, p *ebpf.Program) (link.Link, error)
	// without says what is lost without the hook; nothing is traced without
	// one where that is empty.
	without string
	// needed says whether some options need the hook; nil is always.
	needed func(o *Options) bool
	// netOnly says that the function asks for no limit; see startDefault.
	netOnly bool
	// calls says that the program is to see each call of what is traced; see
	// [Counts.Missed].
	calls bool
}

// by is how the hook is attached.
func (h *hook) by(attach, netOnly Attach) Attach {
	if h.netOnly {
		return netOnly
	}
	return attach
}

func needsNet(o *Options) bool { return o.Net }

// hooks are in the order in which they are attached: a charge that is seen to
// begin is also seen to end.
var hooks = []hook{
	{
		name:     "oom_kill_process",
		programs: map[Attach]string{Kprobe: bpfProgKprobeOom, Fentry: bpfProgFentryOom},
		attach:   attachEntry,
		without:  "which cgroup ran out of memory at an OOM kill",
	},
	{
		name:     "__oom_kill_process",
		programs: map[Attach]string{Kprobe: bpfProgKprobeOomKill, Fentry: bpfProgFentryOomKill},
		attach:   attachEntry,
		without:  "OOM kills",
	},
	{
		name:     "mm_vmscan_memcg_reclaim_end",
		programs: map[Attach]string{Kprobe: bpfProgReclaimEnd, Fentry: bpfProgReclaimEnd},
		attach:   attachTracepoint,
		without:  "the end of reclaim",
	},
	{
		name:     "try_to_free_mem_cgroup_pages",
		programs: map[Attach]string{Kprobe: bpfProgKprobeReclaimBegin, Fentry: bpfProgFentryReclaimBegin},
		attach:   attachEntry,
		without:  "reclaim",
	},
	{
		name:     "sched_migrate_task",
		programs: map[Attach]string{Kprobe: bpfProgTaskMigrates, Fentry: bpfProgTaskMigrates},
		attach:   attachTracepoint,
		without:  "the return of charges that begin on one CPU and end on another",
	},
	{
		name:     Function,
		programs: map[Attach]string{Kprobe: bpfProgKretprobeTryCharge, Fentry: bpfProgFexitTryCharge},
		attach:   attachReturn,
	},
	{
		name:     Function,
		programs: map[Attach]string{Kprobe: bpfProgKprobeTryCharge, Fentry: bpfProgFentryTryCharge},
		attach:   attachEntry,
		calls:    true,
	},
	{
		name:     "page_counter_charge",
		programs: map[Attach]string{Kprobe: bpfProgKprobeForcedCharge, Fentry: bpfProgFentryForcedCharge},
		attach:   attachEntry,
		needed:   needsNet,
		netOnly:  true,
		calls:    true,
	},
	{
		name:     "page_counter_uncharge",
		programs: map[Attach]string{Kprobe: bpfProgKprobeUncharge, Fentry: bpfProgFentryUncharge},
		attach:   attachEntry,
		needed:   needsNet,
		netOnly:  true,
		calls:    true,
	},
	// Before the processes that there are are looked at, so that none is born
	// unseen.
	{
		name:     "sched_process_fork",
		programs: map[Attach]string{Kprobe: bpfProgProcessFork, Fentry: bpfProgProcessFork},
		attach:   attachTracepoint,
		needed:   func(o *Options) bool { return o.Forks || o.hasTargets() },
	},
	{
		name:     "sched_process_free",
		programs: map[Attach]string{Kprobe: bpfProgProcessFree, Fentry: bpfProgProcessFree},
		attach:   attachTracepoint,
		needed:   (*Options).hasTargets,
	},
	{
		name:     "task",
		programs: map[Attach]string{Kprobe: bpfProgFindProcesses, Fentry: bpfProgFindProcesses},
		attach:   iterate,
		needed:   func(o *Options) bool { return o.Forks || o.hasTargets() },
	},
}

// hasTargets reports whether the processes to trace are in a map. One alone, with
// the number that it has everywhere, is compared with.
func (o *Options) hasTargets() bool {
	return len(o.PIDs) > 1 || len(o.PIDs) == 1 && (o.Follow || !inInitialPIDNamespace())
}

func inInitialPIDNamespace() bool { return machine{root: "/"}.initialPIDNamespace() }

func attachEntry(h hook, a Attach, p *ebpf.Program) (link.Link, error) {
	if a == Kprobe {
		return link.Kprobe(h.name, p, nil)
	}
	return link.AttachTracing(link.TracingOptions{Program: p})
}

func attachReturn(h hook, a Attach, p *ebpf.Program) (link.Link, error) {
	if a == Kprobe {
		return link.Kretprobe(h.name, p, nil)
	}
	return link.AttachTracing(link.TracingOptions{Program: p})
}

func attachTracepoint(h hook, _ Attach, p *ebpf.Program) (link.Link, error) {
	return link.AttachRawTracepoint(link.RawTracepointOptions{Name: h.name, Program: p})
}

// iterate runs a program for each of the kernel's objects of that name.
func iterate(_ hook, _ Attach, p *ebpf.Program) (link.Link, error) {
	it, err := link.AttachIter(link.IterOptions{Program: p})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return nil, err
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

// dropUnknown drops the fentry programs that can be done without and whose
// function the kernel's type information does not have, and returns what is lost
// with them.
func dropUnknown(spec *ebpf.CollectionSpec, kernel *btf.Spec) (lacking []string) {
	for _, h := range hooks {
		name := h.programs[Fentry]
		if p := spec.Programs[name]; p == nil || p.Type != ebpf.Tracing || h.without == "" {
			continue
		}
		if _, err := kernel.AnyTypesByName(h.name); errors.Is(err, btf.ErrNotFound) {
			delete(spec.Programs, name)
			lacking = append(lacking, h.without)
		}
	}
	return lacking
}

// configure sets the sizes of the maps and the constants of the program.
func configure(spec *ebpf.CollectionSpec, o Options, possibleCPUs int) error {
	bufferBytes := o.BufferBytes
	if bufferBytes == 0 {
		bufferBytes = DefaultBufferBytes
	}
	bufferBytes = RoundBuffer(bufferBytes)
	spec.Maps[bpfMapEvents].MaxEntries = uint32(bufferBytes)
	spec.Maps[bpfMapCounters].MaxEntries = uint32(possibleCPUs)
	spec.Maps[bpfMapCalls].MaxEntries = uint32(possibleCPUs)

	// All CPUs together wake the reader before the buffer is a quarter full.
	const recordBytes = 8 + event.ChargeSize // struct bpf_ringbuf_hdr
	wakeupEvents := max(1, bufferBytes/4/recordBytes/possibleCPUs)

	values := map[string]any{
		bpfVarTracerTgid:   uint32(os.Getpid()),
		bpfVarWakeupEvents: uint32(wakeupEvents),
		bpfVarOnlyLimited:  o.OnlyLimited,
	}
	if o.Net {
		// What interrupts the tracer gives back for others.
		values[bpfVarTracerTgid] = ^uint32(0)
	}
	if o.Kinds != 0 {
		values[bpfVarTargetKinds] = uint32(o.Kinds)
	}
	switch {
	case o.hasTargets():
		values[bpfVarFilterTargets] = true
		values[bpfVarFollow] = o.Follow
		for _, pid := range o.PIDs {
			addToSet(spec.Maps[bpfMapWanted], uint32(pid), uint8(1))
		}
		spec.Maps[bpfMapTargets].MaxEntries = uint32(len(o.PIDs))
		if o.Follow {
			spec.Maps[bpfMapTargets].MaxEntries = maxFollowed
		}
	case len(o.PIDs) == 1:
		values[bpfVarTargetTgid] = uint32(o.PIDs[0])
	}
	values[bpfVarTellForks] = o.Forks
	if o.Comms != nil {
		values[bpfVarFilterComms] = true
		values[bpfVarCommStart] = o.Comms.Start
		values[bpfVarCommEnd] = o.Comms.End
		values[bpfVarCommLoops] = o.Comms.Loops
		values[bpfVarCommAccepts] = o.Comms.Accepts
	}
	if len(o.Cgroups) > 0 {
		values[bpfVarFilterCgroups] = true
		for _, id := range o.AboveCgroups {
			addToSet(spec.Maps[bpfMapTargetCgroups], bpfCgroupKey{Cgroup: id.ID, Hierarchy: uint64(id.Hierarchy)}, uint8(cgroupAboveTarget))
		}
		for _, id := range o.Cgroups {
			addToSet(spec.Maps[bpfMapTargetCgroups], bpfCgroupKey{Cgroup: id.ID, Hierarchy: uint64(id.Hierarchy)}, uint8(cgroupTarget))
		}
	}
	if o.KernelStacks || o.UserStacks {
		values[bpfVarTakeKernelStacks], values[bpfVarTakeUserStacks] = o.KernelStacks, o.UserStacks
		spec.Maps[bpfMapTold].MaxEntries = toldStacks
		spec.Maps[bpfMapCallStacks].MaxEntries = uint32(possibleCPUs * len(bpfCalls{}.Call))
	}
	values[bpfVarMinPages] = o.MinPages
	values[bpfVarPageSize] = uint32(os.Getpagesize())
	for name, value := range values {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("configure the BPF program: %s: %w", name, err)
		}
	}
	return nil
}

// maxFollowed is how many processes are followed at once.
const maxFollowed = 1 << 14

// The values of target_cgroups.
const (
	cgroupTarget      = 1
	cgroupAboveTarget = 2
)

// addToSet adds what a map holds from the beginning; what is added last counts.
func addToSet(m *ebpf.MapSpec, key, value any) {
	m.Contents = append(m.Contents, ebpf.MapKV{Key: key, Value: value})
	m.MaxEntries = uint32(len(m.Contents))
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

// Read implements [stream.Source]. Where events were lost, a [event.Lost]
// event stands before the next charge of that CPU; losses that no charge
// followed come at the end, as do charges whose return was not seen.
func (t *Tracer) Read(batch []event.Event) (int, error) {
	n := copy(batch, t.pending)
	t.pending = append(t.pending[:0], t.pending[n:]...)
	for {
		added, err := t.fill(batch[n:], n > 0)
		n += added
		if err != nil && err != io.EOF {
			return 0, err
		}
		final := resolveMisses(batch[:n])
		// What has had no successor for that long will have none.
		for final < n && BootNanos() > batch[final].BootNanos+uint64(maxPending) {
			final++
			final += resolveMisses(batch[final:n])
		}
		// A full batch has to go.
		if err == io.EOF || final == 0 && n == len(batch) {
			final = n
		}
		if final > 0 {
			t.pending = append(t.pending, batch[final:n]...)
			return final, nil
		}
		if err == io.EOF {
			return 0, io.EOF
		}
	}
}

// fill reads events into batch: those there are, and at least one, unless an
// interval ends before. At the end it returns io.EOF. While events are pending it
// does not wait for longer.
func (t *Tracer) fill(batch []event.Event, pending bool) (n int, err error) {
	for n < len(batch) {
		if len(t.queue) > 0 {
			batch[n] = t.queue[0]
			t.queue = t.queue[1:]
			n++
			continue
		}
		if t.flushed {
			break
		}
		if n > 0 && t.record.Remaining == 0 && t.ring.AvailableBytes() == 0 {
			return n, nil
		}
		err := t.ring.ReadInto(&t.record)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return n, t.endInterval(pending)
		case errors.Is(err, ringbuf.ErrFlushed):
			t.flushed = true
			t.Stop() // has flushed, but may not have returned yet
			if t.stopErr != nil {
				return n, t.stopErr
			}
			if err := t.queueFinal(); err != nil {
				return n, err
			}
			continue
		default:
			return n, fmt.Errorf("read the ring buffer: %w", err)
		}

		if t.idleIntervals > 2 { // woken
			t.ring.SetDeadline(time.Now().Add(readInterval))
		}
		t.idleIntervals = 0
		e := &batch[n]
		if isStack(t.record.RawSample) {
			told, err := t.stacks.learn(e, t.record.RawSample)
			if err != nil {
				return n, fmt.Errorf("read the ring buffer: %w", err)
			}
			if told {
				n++
			}
			continue
		}
		if err := e.Decode(t.record.RawSample); err != nil {
			return n, fmt.Errorf("read the ring buffer: %w", err)
		}
		n++
		if e.Type != event.Charge {
			continue
		}
		if int(e.CPU) >= len(t.lost) {
			return n, fmt.Errorf("read the ring buffer: event of CPU %d of %d", e.CPU, len(t.lost))
		}
		if t.stacks != nil {
			t.stacks.number(e)
		}
		if e.LostEvents > t.lost[e.CPU] {
			t.queue = append(t.queue, *e)
			e.Type = event.Lost
			e.LostEvents -= t.lost[e.CPU]
			t.lost[e.CPU] = t.queue[0].LostEvents
		}
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// endInterval sets how long the ring buffer is waited for next.
func (t *Tracer) endInterval(pending bool) error {
	deadline := time.Now().Add(readInterval)
	if pending {
		t.ring.SetDeadline(deadline)
		return nil
	}
	t.idleIntervals++
	switch t.idleIntervals {
	case 1: // there were events in the interval that ends now
	case 2:
		// A program that runs just now may not see it and not wake us, so the
		// next interval still ends by itself.
		if err := t.readerIdle.Set(true); err != nil {
			return fmt.Errorf("go to sleep: %w", err)
		}
	default:
		deadline = time.Time{}
	}
	t.ring.SetDeadline(deadline)
	return nil
}

// queueFinal makes the last events what has not come through the ring buffer:
// losses that no charge has reported, and charges whose return was not seen.
func (t *Tracer) queueFinal() error {
	counts, err := t.Counts()
	if err != nil {
		return err
	}
	for _, lost := range t.lost {
		counts.Lost -= lost
	}
	if counts.Lost > 0 {
		t.queue = append(t.queue, event.Event{Type: event.Lost, BootNanos: BootNanos(), LostEvents: counts.Lost})
	}
	for _, u := range t.inflight {
		for _, raw := range u.stacks {
			var e event.Event
			if told, err := t.stacks.learn(&e, raw); err != nil {
				return fmt.Errorf("read the calls under way: %w", err)
			} else if told {
				t.queue = append(t.queue, e)
			}
		}
		if t.stacks != nil {
			t.stacks.number(&u.charge)
		}
		t.queue = append(t.queue, u.charge)
	}
	return nil
}

// Stop detaches the programs, waits until no CPU runs them any more, and lets
// Read come to its end.
func (t *Tracer) Stop() {
	t.stop.Do(func() {
		// No charge begins any more, and then none is under way.
		var begins, rest []attachment
		for _, l := range t.links {
			if l.calls {
				begins = append(begins, l)
			} else {
				rest = append(rest, l)
			}
		}
		t.links = nil
		if err := errors.Join(t.detach(begins), t.detach(rest)); err != nil {
			t.stopErr = fmt.Errorf("detach: %w", err)
		}
		t.stopErr = errors.Join(t.stopErr, t.takeInflight())
		if err := t.ring.Flush(); err != nil {
			t.stopErr = errors.Join(t.stopErr, fmt.Errorf("flush the ring buffer: %w", err))
		}
	})
}

// detach closes links, all at once, since for each the kernel waits a while, and
// returns when none of their programs runs.
func (t *Tracer) detach(links []attachment) error {
	errs := make([]error, len(links))
	var closing sync.WaitGroup
	for i, l := range links {
		if l.calls {
			t.missed += kprobeMissed(l.Link)
		}
		closing.Go(func() { errs[i] = l.Close() })
	}
	closing.Wait()
	waitForPrograms()
	return errors.Join(errs...)
}

// waitForPrograms waits until every CPU has left the programs that it was in.
// They run inside RCU read-side sections, and this waits for all of those
// (kernel/sched/membarrier.c): not where there is one CPU, where they can be under way
// only if one was preempted, nor with nohz_full. To detach the last program of a
// function the kernel waits itself.
func waitForPrograms() {
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
}

// inflightCall is a charge of which only the entry was seen, and what the program has of
// its stacks.
type inflightCall struct {
	charge event.Event
	stacks [][]byte
}

// takeInflight makes the charges of which only the entry was seen left over.
func (t *Tracer) takeInflight() error {
	for cpu := range t.lost {
		var calls bpfCalls
		if err := t.calls.Lookup(uint32(cpu), &calls); err != nil {
			return fmt.Errorf("read the calls under way: %w", err)
		}
		for i := range calls.Call {
			call := &calls.Call[i]
			if call.Stack == 0 {
				continue
			}
			var e event.Event
			if err := e.Decode(structBytes(&call.Event)); err != nil {
				return fmt.Errorf("read the calls under way: %w", err)
			}
			e.Flags |= event.Predicted
			u := inflightCall{charge: e}
			if e.KernelStack != 0 || e.UserStack != 0 {
				var s bpfCallStacks
				if err := t.callStacks.Lookup(call.Stacks, &s); err != nil {
					return fmt.Errorf("read the stacks of the calls under way: %w", err)
				}
				if e.KernelStack != 0 {
					u.stacks = append(u.stacks, structBytes(&s.Kernel)[:stackHeader+8*min(s.KernelFrames, stackDepth)])
				}
				if e.UserStack != 0 {
					u.stacks = append(u.stacks, structBytes(&s.User)[:stackHeader+8*min(s.UserFrames, stackDepth)])
				}
			}
			t.inflight = append(t.inflight, u)
		}
	}
	slices.SortFunc(t.inflight, func(a, b inflightCall) int { return cmp.Compare(a.charge.BootNanos, b.charge.BootNanos) })
	return nil
}

// structBytes returns the memory of a struct that the BPF program shares.
func structBytes[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of include/uapi/linux/membarrier.h.
const membarrierGlobal = 1

// kprobeMissed returns how often the kprobe was hit while a kprobe was being
// handled on that CPU, as far as the kernel tells (6.7 or later).
func kprobeMissed(l link.Link) uint64 {
	info, err := l.Info()
	if err != nil || info.PerfEvent() == nil || info.PerfEvent().Kprobe() == nil {
		return 0
	}
	return info.PerfEvent().Kprobe().Missed
}

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

// Counts returns what the kernel has counted. After Read has returned io.EOF
// the figures are final, and exact.
func (t *Tracer) Counts() (Counts, error) {
	c := Counts{Missed: t.missed, Seen: uint64(len(t.inflight))}
	for cpu := range t.lost {
		var n bpfCounters
		if err := t.counters.Lookup(uint32(cpu), &n); err != nil {
			return Counts{}, fmt.Errorf("read the counters: %w", err)
		}
		c.Seen += n.Delivered + n.Filtered + n.Lost
		c.Filtered += n.Filtered
		c.Lost += n.Lost
		c.LostOthers += n.LostOthers
		c.Unstacked += n.LostStacks
	}
	if t.stacks != nil {
		c.Unstacked += t.stacks.missing
		if p := t.stacks.programs; p != nil {
			c.Unnamed = p.last.unknown + p.late
		}
	}
	if err := t.unfollowed.Get(&c.Unfollowed); err != nil {
		return Counts{}, fmt.Errorf("read the counters: %w", err)
	}
	for _, p := range t.programs {
		// Counted since 5.12; not every kernel tells.
		if stats, err := p.Stats(); err == nil && p.calls {
			c.Missed += stats.RecursionMisses
		}
	}
	return c, nil
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
