//go:build linux

package capture

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/tklauser/numcpus"
	"golang.org/x/sys/unix"

	"chargetrace/internal/event"
)

// load loads the programs that the options need. It returns what the trace lacks because
// this kernel lacks a function.
func load(o *Options, attach, attachNet Attach, possibleCPUs int) (coll *ebpf.Collection, lacking []string, err error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, nil, err
	}
	onlineCPUs, err := numcpus.GetOnline()
	if err != nil || onlineCPUs == 0 {
		onlineCPUs = possibleCPUs // only wakes the reader more often
	}
	if err := configure(spec, o, possibleCPUs, onlineCPUs); err != nil {
		return nil, nil, err
	}
	selectPrograms(spec, o, attach, attachNet)
	opts := ebpf.CollectionOptions{Cache: btf.NewCache()}
	opts.Programs.KernelTypes, err = kernelTypes(spec, opts.Cache)
	if err != nil {
		return nil, nil, fmt.Errorf("read the kernel's types: %w", err)
	}
	if attach == Fentry {
		lacking = adaptToKernel(spec, opts.Programs.KernelTypes)
	}
	coll, err = ebpf.NewCollectionWithOptions(spec, opts)
	if err != nil {
		return nil, nil, fmt.Errorf("load the BPF programs: %w", err)
	}
	return coll, lacking, nil
}

// selectPrograms keeps the programs that will be run or attached: a kernel may refuse the
// others.
func selectPrograms(spec *ebpf.CollectionSpec, o *Options, attach, attachNet Attach) {
	selected := map[string]*ebpf.ProgramSpec{bpfProgLearnRoots: spec.Programs[bpfProgLearnRoots]}
	for _, h := range hooks {
		if h.needed == nil || h.needed(o) {
			if name, ok := h.programs[h.attachFor(attach, attachNet)]; ok {
				selected[name] = spec.Programs[name]
			}
		}
	}
	spec.Programs = selected
}

// adaptToKernel gives fentry programs the name that their function has in the kernel's BTF,
// and removes optional ones whose function is not there. It returns what the trace lacks
// without them.
func adaptToKernel(spec *ebpf.CollectionSpec, kernel *btf.Spec) (lacking []string) {
	has := func(name string) bool {
		_, err := kernel.AnyTypesByName(name)
		return !errors.Is(err, btf.ErrNotFound)
	}
	for _, h := range hooks {
		name := h.programs[Fentry]
		p := spec.Programs[name]
		switch {
		case p == nil || p.Type != ebpf.Tracing || h.without == "" || has(h.name):
		case h.laterName != "" && has(h.laterName):
			p.AttachTo = h.laterName
		default:
			delete(spec.Programs, name)
			lacking = h.addLacking(lacking)
		}
	}
	return lacking
}

// addLacking adds what a trace lacks without the hook, once.
func (h *hook) addLacking(lacking []string) []string {
	if h.feature || slices.Contains(lacking, h.without) {
		return lacking
	}
	return append(lacking, h.without)
}

// configure sets the sizes of the maps and the constants of the programs.
func configure(spec *ebpf.CollectionSpec, o *Options, possibleCPUs, onlineCPUs int) error {
	bufferBytes := o.BufferBytes
	if bufferBytes == 0 {
		bufferBytes = DefaultBufferBytes
	}
	bufferBytes = RoundBuffer(bufferBytes)
	spec.Maps[bpfMapEvents].MaxEntries = uint32(bufferBytes)
	spec.Maps[bpfMapCpuStates].MaxEntries = uint32(possibleCPUs)
	if o.KernelStacks || o.UserStacks {
		spec.Maps[bpfMapSentStacks].MaxEntries = uint32(sentStacks)
		spec.Maps[bpfMapCallStacks].MaxEntries = uint32(possibleCPUs * len(bpfCpuState{}.Call))
	}

	if o.ThresholdPercent == 0 {
		spec.Maps[bpfMapAboveThreshold].MaxEntries = 1
	}

	// All CPUs that are online now together wake the reader before a quarter of the buffer is full.
	const recordBytes = 8 + event.ChargeSize // struct bpf_ringbuf_hdr
	wakeupEvents := max(1, bufferBytes/4/recordBytes/onlineCPUs)

	values := map[string]any{
		bpfVarTracerTgid:       uint32(os.Getpid()),
		bpfVarWakeupEvents:     uint32(wakeupEvents),
		bpfVarPageSize:         uint32(os.Getpagesize()),
		bpfVarOnlyLimited:      o.OnlyLimited,
		bpfVarMinPages:         o.MinPages,
		bpfVarSendForks:        o.Forks,
		bpfVarTakeKernelStacks: o.KernelStacks,
		bpfVarTakeUserStacks:   o.UserStacks,
		bpfVarJiffyNs:          uint64(jiffy()),
		bpfVarThresholdPercent: uint32(o.ThresholdPercent),
	}
	if o.Net {
		// Do not exclude the tracer: interrupts on top of it uncharge for others.
		values[bpfVarTracerTgid] = ^uint32(0)
	}
	if o.Kinds != 0 {
		values[bpfVarTargetKinds] = uint32(o.Kinds)
	}
	if o.Comms != nil {
		values[bpfVarFilterComms] = true
		values[bpfVarCommStart] = o.Comms.Start
		values[bpfVarCommEnd] = o.Comms.End
		values[bpfVarCommLoops] = o.Comms.Loops
		values[bpfVarCommAccepts] = o.Comms.Accepts
	}
	filterProcesses(spec, o, values)
	filterCgroups(spec, o, values)
	for name, value := range values {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("configure the BPF program: %s: %w", name, err)
		}
	}
	return nil
}

// jiffy returns the kernel's tick, 1/HZ: the resolution of its coarse clocks
// (kernel/time/posix-timers.c).
func jiffy() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &t); err != nil {
		return 4 * time.Millisecond // HZ=250, the most common
	}
	return time.Duration(t.Nano())
}

// maxFollowed is the maximum number of processes followed at a time.
const maxFollowed = 1 << 14

func filterProcesses(spec *ebpf.CollectionSpec, o *Options, values map[string]any) {
	if !o.hasTargets() {
		if len(o.PIDs) == 1 {
			values[bpfVarTargetTgid] = o.PIDs[0]
		}
		return
	}
	values[bpfVarFilterTargets] = true
	values[bpfVarFollow] = o.Follow
	for _, pid := range o.PIDs {
		addToSet(spec.Maps[bpfMapInitialPids], uint32(pid), uint8(1))
	}
	spec.Maps[bpfMapTargets].MaxEntries = uint32(len(o.PIDs))
	if o.Follow {
		spec.Maps[bpfMapTargets].MaxEntries = maxFollowed
	}
}

func filterCgroups(spec *ebpf.CollectionSpec, o *Options, values map[string]any) {
	if len(o.CgroupIDs) == 0 {
		return
	}
	values[bpfVarFilterCgroups] = true
	add := func(ids []event.CgroupID, verdict bpfCgroupVerdict) {
		for _, id := range ids {
			addToSet(spec.Maps[bpfMapTargetCgroups], bpfCgroupKey{Cgroup: id.ID, Hierarchy: uint64(id.Hierarchy)}, uint8(verdict))
		}
	}
	// A target above another target is a target: the last value wins.
	add(o.AboveIDs, bpfCgroupVerdictCGROUP_ABOVE_TARGET)
	add(o.CgroupIDs, bpfCgroupVerdictCGROUP_TARGET)
}

// addToSet adds an initial entry to a map.
func addToSet(m *ebpf.MapSpec, key, value any) {
	m.Contents = append(m.Contents, ebpf.MapKV{Key: key, Value: value})
	m.MaxEntries = uint32(len(m.Contents))
}
