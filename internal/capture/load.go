package capture

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"chargetrace/internal/event"
)

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
