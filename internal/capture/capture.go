//go:build linux

// Package capture is the live source of events. It loads the BPF programs, attaches them
// to page_counter_try_charge and other functions, drains the ring buffer, and stops
// without losing the events still in it. No other package imports cilium/ebpf. It must not
// know sinks.
package capture

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// TracedFunction is the traced kernel function.
const TracedFunction = "page_counter_try_charge"

// Options configure a trace.
type Options struct {
	// Filter is applied in the kernel, except Cgroups, Containers and MaxCharges. Its PIDs
	// are those of the tracer's pid namespace. The tracer itself is not traced; see Net.
	// MinPages and OnlyLimited keep the charge after a failed one, which shows whether that
	// was a batch miss.
	stream.Filter
	// CgroupIDs are the cgroups of Filter.Cgroups and Filter.Containers. Reclaim and OOM
	// kills are also traced in their ancestors, AboveIDs.
	CgroupIDs, AboveIDs []event.CgroupID
	// Forks sends an event for each fork of a traced process, and for the descendants
	// that Follow finds at the start. Without PIDs all processes are traced.
	Forks bool
	// Attach is how to attach the programs.
	Attach Attach
	// BufferBytes is the size of the ring buffer, rounded up with [RoundBuffer]; 0 means
	// DefaultBufferBytes.
	BufferBytes int
	// KernelStacks collects the kernel stack of each charge, and UserStacks the user stack,
	// as far as the process keeps frame pointers.
	KernelStacks, UserStacks bool
	// Interval is the maximum time that an event stays in the ring buffer; 0 means
	// DefaultInterval. The reader wakes up at this interval while there are events, which
	// costs as much as some of them. After an interval without events it asks the programs
	// to wake it, and sleeps.
	Interval time.Duration
	// Releases sends an event when a cgroup is gone ([event.CgroupReleased]).
	Releases bool
	// ThresholdPercent flags the charges that take their limiting level to this part of its memory
	// limit ([event.Threshold]), and wakes the reader for them; 0 flags none. A level is flagged
	// again once it was 5 percent of the limit below that.
	ThresholdPercent int
	// Net also sends an event for each uncharge, and for each charge that ignores the
	// limit. The tracer is traced too, so that the balance is complete.
	Net bool
}

// Tracer is a running trace, and a [stream.Source]. Read, Counts and Close are
// for one goroutine; Stop is for any.
type Tracer struct {
	*reader
	programs *programs

	// asked is Options.Attach. attachedNet is the way in which the hooks that only
	// Options.Net needs are attached.
	asked, attachedNet Attach

	info    stream.Info
	lacking []string
}

var _ stream.Source = (*Tracer)(nil)

// Start loads and attaches the programs. Charges are traced when it returns.
func Start(o Options) (*Tracer, error) {
	// Before 5.11 maps count against RLIMIT_MEMLOCK.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raise RLIMIT_MEMLOCK: %w", err)
	}
	return startAny(&o, func(attach, attachNet Attach) (*Tracer, error) { return start(o, attach, attachNet) })
}

// startAny calls start with the ways to attach that the options allow, until one works.
// attachNet is for the hooks that only Options.Net needs.
func startAny(o *Options, start func(attach, attachNet Attach) (*Tracer, error)) (*Tracer, error) {
	if o.Attach == Kprobe || o.Attach == Fentry {
		return start(o.Attach, o.Attach)
	}
	var t *Tracer
	var err error
	// Use fentry for the -net hooks: interrupts uncharge much, and a kprobe hit inside
	// another kprobe's handler is skipped (kprobe_ftrace_handler), which not every kernel
	// counts.
	if o.Net {
		t, err = start(Kprobe, Fentry)
	}
	if !o.Net || lacksFentry(err) {
		t, err = start(Kprobe, Kprobe)
	}
	if err == nil || o.Attach == Default {
		return t, err
	}
	t, fentryErr := start(Fentry, Fentry)
	if fentryErr != nil {
		return nil, fmt.Errorf("%w; %w", err, fentryErr)
	}
	return t, nil
}

// start attaches the hooks that only Options.Net needs with attachNet, all others with
// attach.
func start(o Options, attach, attachNet Attach) (_ *Tracer, err error) {
	possibleCPUs, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count the CPUs: %w", err)
	}
	coll, lacking, err := load(&o, attach, attachNet, possibleCPUs)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	p, err := newPrograms(coll)
	if err != nil {
		return nil, err
	}
	t := &Tracer{
		reader: newReader(p.ring, p, systemClock, possibleCPUs, cmp.Or(o.Interval, DefaultInterval)), programs: p,
		asked: o.Attach, attachedNet: attachNet, lacking: lacking,
	}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	t.batches.fixed = o.MinPages > 1
	if o.KernelStacks || o.UserStacks {
		if t.stacks, err = newStacks(&o); err != nil {
			return nil, err
		}
	}
	// Run it before anything is attached, so that all programs see the result.
	if _, err := coll.Programs[bpfProgLearnRoots].Run(new(ebpf.RunOptions)); err != nil {
		return nil, fmt.Errorf("run the BPF program %s (requires Linux 5.10): %w", bpfProgLearnRoots, err)
	}
	t.info = newInfo(&o, attach, attachNet)
	lacking, err = p.attach(coll, hooks, attach, attachNet)
	if err != nil {
		return nil, err
	}
	t.lacking = append(t.lacking, lacking...)
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

// maxReading is the longest time in nanoseconds for reading two clocks: a longer one means an
// interruption.
const maxReading = 1e6

// newInfo returns the Info of a trace that starts now.
func newInfo(o *Options, attach, attachNet Attach) stream.Info {
	boot, wall := BootNanos(), time.Now()
	for BootNanos()-boot > maxReading {
		boot, wall = BootNanos(), time.Now()
	}
	info := stream.Info{
		PageSize:       os.Getpagesize(),
		StartBootNanos: boot,
		BootWallNanos:  wall.UnixNano() - int64(boot),
		KernelStacks:   o.KernelStacks,
		UserStacks:     o.UserStacks,
		Net:            o.Net,
		Arch:           runtime.GOARCH,
		Attach:         string(attach),
	}
	if o.Net && attachNet != attach {
		info.Attach = string(attach + " and " + attachNet)
	}
	var uname unix.Utsname
	if unix.Uname(&uname) == nil {
		info.Host, info.Kernel = unix.ByteSliceToString(uname.Nodename[:]), unix.ByteSliceToString(uname.Release[:])
	}
	return info
}

// LacksFentry reports whether the hooks that only [Options.Net] needs use kprobes because
// this kernel has no fentry for them.
func (t *Tracer) LacksFentry() bool {
	return t.info.Net && t.asked != Kprobe && t.attachedNet == Kprobe
}

// NoFentryWarning is the warning for [Tracer.LacksFentry].
const NoFentryWarning = "this kernel has no fentry for the hooks of -net: kprobes can miss calls in interrupts"

// Lacking returns what cannot be traced because this kernel lacks the hooks.
func (t *Tracer) Lacking() []string { return t.lacking }

// Info implements [stream.Source].
func (t *Tracer) Info() stream.Info { return t.info }

// WaitTargets waits until no process traced with [Options.Follow] is left, or ctx is done.
func (t *Tracer) WaitTargets(ctx context.Context) error {
	// The kernel does not report that a map became empty.
	const interval = 100 * time.Millisecond
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		var pid uint32
		if err := t.programs.targets.NextKey(nil, &pid); errors.Is(err, ebpf.ErrKeyNotExist) {
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

// Close stops the trace and frees its resources. Events that were not read are dropped. It
// returns what Stop failed with, unless Read did.
func (t *Tracer) Close() error {
	t.Stop()
	if t.stacks != nil && t.stacks.programs != nil {
		t.stacks.programs.close()
	}
	return errors.Join(t.stopErr, t.programs.free())
}
