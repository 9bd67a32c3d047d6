//go:build linux

package capture

import (
	"bytes"
	"maps"
	"os"
	"reflect"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"chargetrace/internal/event"
	"chargetrace/internal/glob"
	"chargetrace/internal/stream"
)

// loadSpec returns the committed object.
func loadSpec(t *testing.T) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// settings are the results of configure: values of variables, sizes and contents of maps.
type settings struct {
	variables map[string][]byte
	sizes     map[string]uint32
	contents  map[string][]ebpf.MapKV
}

func configured(t *testing.T, o Options, possibleCPUs, onlineCPUs int) settings {
	t.Helper()
	spec := loadSpec(t)
	if err := configure(spec, &o, possibleCPUs, onlineCPUs); err != nil {
		t.Fatal(err)
	}
	s := settings{make(map[string][]byte), make(map[string]uint32), make(map[string][]ebpf.MapKV)}
	for name, v := range spec.Variables {
		s.variables[name] = v.Value
	}
	for name, m := range spec.Maps {
		s.sizes[name] = m.MaxEntries
		if m.Type == ebpf.Hash && len(m.Contents) > 0 { // other maps contain the variables
			s.contents[name] = m.Contents
		}
	}
	return s
}

// TestConfigure checks what each option changes, and that it changes nothing else.
func TestConfigure(t *testing.T) {
	const cpus, online = 200, 4
	page := os.Getpagesize()
	comms, err := glob.Compile("alloc*")
	if err != nil {
		t.Fatal(err)
	}
	one, two := event.CgroupID{ID: 1, Hierarchy: 2}, event.CgroupID{ID: 3}
	kv := func(id event.CgroupID, value uint8) ebpf.MapKV {
		return ebpf.MapKV{Key: bpfCgroupKey{Cgroup: id.ID, Hierarchy: uint64(id.Hierarchy)}, Value: value}
	}
	pid := func(n uint32) ebpf.MapKV { return ebpf.MapKV{Key: n, Value: uint8(1)} }

	for _, tc := range []struct {
		name      string
		options   Options
		variables map[string]any
		sizes     map[string]uint32
		contents  map[string][]ebpf.MapKV
	}{
		{name: "nothing"},
		{name: "buffer", options: Options{BufferBytes: 5*page - 1}, variables: map[string]any{bpfVarWakeupEvents: uint32(8 * page / 4 / 176 / online)},
			sizes: map[string]uint32{bpfMapEvents: uint32(8 * page)}},
		{name: "tiny buffer", options: Options{BufferBytes: 1}, variables: map[string]any{bpfVarWakeupEvents: uint32(max(1, page/4/176/online))},
			sizes: map[string]uint32{bpfMapEvents: uint32(page)}},
		{name: "kinds", options: Options{Filter: stream.Filter{Kinds: 1<<event.Swap | 1<<event.Memory}}, variables: map[string]any{bpfVarTargetKinds: uint32(0b1010)}},
		{name: "only limited", options: Options{Filter: stream.Filter{OnlyLimited: true}}, variables: map[string]any{bpfVarOnlyLimited: true}},
		{name: "min pages", options: Options{Filter: stream.Filter{MinPages: 1 << 40}}, variables: map[string]any{bpfVarMinPages: uint64(1 << 40)}},
		{name: "net", options: Options{Net: true}, variables: map[string]any{bpfVarTracerTgid: ^uint32(0)}},
		{name: "forks", options: Options{Forks: true}, variables: map[string]any{bpfVarSendForks: true}},
		{name: "processes", options: Options{Filter: stream.Filter{PIDs: []uint32{7, 8, 9}}}, variables: map[string]any{bpfVarFilterTargets: true},
			sizes:    map[string]uint32{bpfMapInitialPids: 3, bpfMapTargets: 3},
			contents: map[string][]ebpf.MapKV{bpfMapInitialPids: {pid(7), pid(8), pid(9)}}},
		{name: "follow one", options: Options{Filter: stream.Filter{PIDs: []uint32{7}, Follow: true}}, variables: map[string]any{bpfVarFilterTargets: true, bpfVarFollow: true},
			sizes:    map[string]uint32{bpfMapTargets: 1 << 14},
			contents: map[string][]ebpf.MapKV{bpfMapInitialPids: {pid(7)}}},
		{name: "names", options: Options{Filter: stream.Filter{Comms: comms}}, variables: map[string]any{
			bpfVarFilterComms: true, bpfVarCommStart: comms.Start, bpfVarCommEnd: comms.End,
			bpfVarCommLoops: comms.Loops, bpfVarCommAccepts: comms.Accepts,
		}},
		// A target above another is a target.
		{name: "cgroups", options: Options{CgroupIDs: []event.CgroupID{one}, AboveIDs: []event.CgroupID{one, two}},
			variables: map[string]any{bpfVarFilterCgroups: true},
			sizes:     map[string]uint32{bpfMapTargetCgroups: 3},
			contents:  map[string][]ebpf.MapKV{bpfMapTargetCgroups: {kv(one, 2), kv(two, 2), kv(one, 1)}}},
		{name: "ancestors of none", options: Options{AboveIDs: []event.CgroupID{one}}},
		{name: "kernel stacks", options: Options{KernelStacks: true}, variables: map[string]any{bpfVarTakeKernelStacks: true},
			sizes: map[string]uint32{bpfMapSentStacks: 16384, bpfMapCallStacks: cpus * 16}},
		{name: "user stacks", options: Options{UserStacks: true}, variables: map[string]any{bpfVarTakeUserStacks: true},
			sizes: map[string]uint32{bpfMapSentStacks: 16384, bpfMapCallStacks: cpus * 16}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := configured(t, Options{}, cpus, online)
			spec := loadSpec(t)
			for name, value := range tc.variables {
				v := spec.Variables[name]
				if err := v.Set(value); err != nil {
					t.Fatal(err)
				}
				want.variables[name] = v.Value
			}
			maps.Copy(want.sizes, tc.sizes)
			maps.Copy(want.contents, tc.contents)
			got := configured(t, tc.options, cpus, online)
			for name, v := range want.variables {
				if !bytes.Equal(got.variables[name], v) {
					t.Errorf("%s is %x, want %x", name, got.variables[name], v)
				}
			}
			if !maps.Equal(got.sizes, want.sizes) {
				t.Errorf("sizes %v, want %v", got.sizes, want.sizes)
			}
			if !reflect.DeepEqual(got.contents, want.contents) {
				t.Errorf("contents %v, want %v", got.contents, want.contents)
			}
		})
	}
}

// TestConfigureDefaults checks the settings without options.
func TestConfigureDefaults(t *testing.T) {
	const cpus, online = 200, 4
	var got struct {
		Tracer, Wakeup, Page, Target, Kinds uint32
		Limited, Forks, Kernel, User        bool
		MinPages                            uint64
	}
	spec := loadSpec(t)
	if err := configure(spec, &Options{}, cpus, online); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]any{
		bpfVarTracerTgid: &got.Tracer, bpfVarWakeupEvents: &got.Wakeup, bpfVarPageSize: &got.Page, bpfVarTargetTgid: &got.Target,
		bpfVarTargetKinds: &got.Kinds, bpfVarOnlyLimited: &got.Limited, bpfVarSendForks: &got.Forks,
		bpfVarTakeKernelStacks: &got.Kernel, bpfVarTakeUserStacks: &got.User, bpfVarMinPages: &got.MinPages,
	} {
		if err := spec.Variables[name].Get(to); err != nil {
			t.Fatal(err)
		}
	}
	want := got
	want.Tracer, want.Wakeup, want.Page, want.Target, want.Kinds = uint32(os.Getpid()), DefaultBufferBytes/4/176/online, uint32(os.Getpagesize()), 0, ^uint32(0)
	want.Limited, want.Forks, want.Kernel, want.User, want.MinPages = false, false, false, false, 0
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for name, size := range map[string]uint32{bpfMapEvents: DefaultBufferBytes, bpfMapCpuStates: cpus} {
		if n := spec.Maps[name].MaxEntries; n != size {
			t.Errorf("%s has %d entries, want %d", name, n, size)
		}
	}
}

// TestConfigureOne checks that a single pid is a constant only in the initial pid
// namespace.
func TestConfigureOne(t *testing.T) {
	o := Options{Filter: stream.Filter{PIDs: []uint32{4711}}}
	spec := loadSpec(t)
	if err := configure(spec, &o, 1, 1); err != nil {
		t.Fatal(err)
	}
	var target uint32
	var filter bool
	if err := spec.Variables[bpfVarTargetTgid].Get(&target); err != nil {
		t.Fatal(err)
	}
	if err := spec.Variables[bpfVarFilterTargets].Get(&filter); err != nil {
		t.Fatal(err)
	}
	if want := !inInitialPIDNamespace(); filter != want || (target == 4711) == want || (len(spec.Maps[bpfMapInitialPids].Contents) == 1) != want {
		t.Errorf("target %d, filter %v, initial pids %v", target, filter, spec.Maps[bpfMapInitialPids].Contents)
	}
}

// TestAdaptToKernel uses kernels that lack functions, with the name that one has since 6.18.
func TestAdaptToKernel(t *testing.T) {
	kernel := func(functions ...string) *btf.Spec {
		b, err := btf.NewBuilder(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range functions {
			if _, err := b.Add(&btf.Func{Name: name, Type: &btf.FuncProto{Return: &btf.Void{}}, Linkage: btf.StaticFunc}); err != nil {
				t.Fatal(err)
			}
		}
		spec, err := b.Spec()
		if err != nil {
			t.Fatal(err)
		}
		return spec
	}
	optional := []string{"out_of_memory", "memory_max_write", "__mem_cgroup_handle_over_high", "schedule_timeout_killable"}
	for _, tc := range []struct {
		functions []string
		lacking   []string
		dropped   []string
	}{
		{append(optional[:len(optional):len(optional)], "__oom_kill_process", "try_to_free_mem_cgroup_pages", "mem_cgroup_oom_synchronize", TracedFunction), nil, nil},
		{
			append(optional[:len(optional):len(optional)], TracedFunction), []string{"OOM kills", "reclaim"},
			[]string{bpfProgFentryOomKill, bpfProgFentryReclaimBegin, bpfProgFentryOomWait},
		},
		{
			[]string{"out_of_memory", "__oom_kill_process", "try_to_free_mem_cgroup_pages", TracedFunction},
			[]string{"whether a lowered limit set off the OOM killer", "sleeps for memory.high"},
			[]string{bpfProgFexitLimitWrite, bpfProgFentryLimitWrite, bpfProgFentryOverHigh, bpfProgFentrySleep, bpfProgFentryOomWait},
		},
		// The traced function is required: loading fails.
		{append(optional[:len(optional):len(optional)], "__oom_kill_process", "try_to_free_mem_cgroup_pages"), nil, []string{bpfProgFentryOomWait}},
	} {
		spec := loadSpec(t)
		selectPrograms(spec, &Options{Net: true}, Fentry, Fentry)
		before := slices.Sorted(maps.Keys(spec.Programs))
		if got := adaptToKernel(spec, kernel(tc.functions...)); !slices.Equal(got, tc.lacking) {
			t.Errorf("%q: lacks %q, want %q", tc.functions, got, tc.lacking)
		}
		if p := spec.Programs[bpfProgFentryOverHigh]; p != nil && p.AttachTo != "__mem_cgroup_handle_over_high" {
			t.Errorf("%s is attached to %s", p.Name, p.AttachTo)
		}
		for _, name := range before {
			if _, kept := spec.Programs[name]; kept == slices.Contains(tc.dropped, name) {
				t.Errorf("%q: %s is kept: %t", tc.functions, name, kept)
			}
		}
	}
}
