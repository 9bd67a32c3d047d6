//go:build linux

package capture

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"math/bits"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"chargetrace/internal/event"
)

// These tests compare the BPF program with the packages event and capture. The bpf types
// and constants of bpf_*.go are generated from the committed objects; package event, which
// imports no other, has its own.

// TestGenerated checks that "make generate" built the objects from the current sources.
func TestGenerated(t *testing.T) {
	const sources = "../../bpf"
	files, err := os.ReadDir(sources) // sorted by name
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	for _, f := range files {
		content, err := os.ReadFile(filepath.Join(sources, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		sum.Write(content)
	}
	want, err := os.ReadFile("bpf_sources.sha256")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%x", sum.Sum(nil)); got != strings.Fields(string(want))[0] {
		t.Errorf("bpf/ has changed since the objects were made: make generate")
	}
}

// TestEnums compares the constants of package event with the program's.
func TestEnums(t *testing.T) {
	types := loadSpec(t).Types
	for name, want := range map[string]map[string]uint64{
		"event_type": {
			"EVENT_CHARGE": uint64(event.Charge), "EVENT_LOST": uint64(event.Lost),
			"EVENT_RECLAIM_BEGIN": uint64(event.ReclaimBegin), "EVENT_RECLAIM_END": uint64(event.ReclaimEnd),
			"EVENT_OOM_KILL": uint64(event.OOMKill), "EVENT_CGROUP": uint64(event.CgroupName), "EVENT_FORK": uint64(event.Fork),
			"EVENT_UNCHARGE": uint64(event.Uncharge), "EVENT_FORCED_CHARGE": uint64(event.ForcedCharge),
			"EVENT_STACK": uint64(bpfEventTypeEVENT_STACK), // decoded to an event.Stack
			"EVENT_OOM":   uint64(event.OOM), "EVENT_THROTTLE": uint64(event.Throttle), "EVENT_CGROUP_RELEASED": uint64(event.CgroupReleased),
		},
		"kind": {
			"KIND_UNKNOWN": uint64(event.Unknown), "KIND_MEMORY": uint64(event.Memory), "KIND_MEMSW": uint64(event.Memsw),
			"KIND_SWAP": uint64(event.Swap), "KIND_KMEM": uint64(event.Kmem), "KIND_TCPMEM": uint64(event.Tcpmem),
			"KIND_HUGETLB": uint64(event.Hugetlb), "KIND_HUGETLB_RSVD": uint64(event.HugetlbRsvd), "KIND_DMEM": uint64(event.Dmem),
		},
		"outcome": {"OUTCOME_OK": uint64(event.OK), "OUTCOME_FAILED": uint64(event.Failed)},
		"event_flag": {
			"FLAG_REMOTE": uint64(event.Remote), "FLAG_KTHREAD": uint64(event.KernelThread),
			"FLAG_WALK_CUT": uint64(event.WalkCut), "FLAG_RETRY": uint64(event.Retry), "FLAG_EXISTING": uint64(event.Existing),
			"FLAG_LIMIT_WRITE": uint64(event.LimitWrite), "FLAG_SYSRQ": uint64(event.SysRq), "FLAG_UNKNOWN_CGROUP": uint64(event.UnknownCgroup),
			"FLAG_CPUSET": uint64(event.Cpuset), "FLAG_MEMPOLICY": uint64(event.Mempolicy), "FLAG_GROUP": uint64(event.Group), "FLAG_THRESHOLD": uint64(event.Threshold),
		},
		"oom_result": {
			"OOM_NO_VICTIM": uint64(event.NoVictim), "OOM_VICTIM_EXITS": uint64(event.VictimExits),
			"OOM_TASK_EXITS": uint64(event.TaskExits), "OOM_DISABLED": uint64(event.Disabled), "OOM_NOFS": uint64(event.NoFS),
		},
	} {
		var enum *btf.Enum
		if err := types.TypeByName(name, &enum); err != nil {
			t.Fatal(err)
		}
		got := make(map[string]uint64)
		for _, v := range enum.Values {
			got[v.Name] = v.Value
		}
		if !maps.Equal(got, want) {
			t.Errorf("enum %s\nin C  %v\nin Go %v", name, got, want)
		}
		if name == "kind" && len(want) != bits.OnesCount32(uint32(event.AllKinds)) {
			t.Errorf("package event has kinds %b", event.AllKinds)
		}
	}
	// These types do not come from the program, which must not use their numbers.
	for _, typ := range []event.Type{event.Stack, event.Usage, event.MemoryStat, event.Held, event.ClockStep} {
		if err := new(event.Event).Decode(binary.NativeEndian.AppendUint32(nil, uint32(typ))); err == nil {
			t.Errorf("type %d was decoded", typ)
		}
	}
}

// fill gives each field of a struct a unique value in all of its bytes, so that a field read
// from a wrong offset or with a wrong size differs.
func fill(v reflect.Value, n *byte) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.Name != "_" && f.Name != "Pad" {
				fill(v.Field(i), n)
			}
		}
	case reflect.Array: // a name
		*n++
		for i := range 3 {
			v.Index(i).SetInt(int64(*n))
		}
	case reflect.Int64, reflect.Int32: // the usage in pages and an order can be negative
		*n++
		v.SetInt(-int64(*n) * 0x0101_0101_0101_0101 >> (64 - v.Type().Bits()))
	default:
		*n++
		v.SetUint(0x0101_0101_0101_0101 * uint64(*n) & (1<<v.Type().Bits() - 1))
	}
}

// filled returns a filled struct for a type of event, and the Event with the common fields.
func filled[T any](t *testing.T, typ event.Type) (raw *T, common event.Event) {
	t.Helper()
	raw = new(T)
	n := byte(0)
	fill(reflect.ValueOf(raw).Elem(), &n)
	e := (*bpfEvent)(unsafe.Pointer(raw)) // its first field
	e.Type, e.Kind, e.Outcome = uint32(typ), uint8(event.Dmem), uint8(event.Failed)
	return raw, event.Event{
		Type: typ, CPU: e.Cpu, BootNanos: e.BootNs, PID: e.Tgid, TID: e.Tid, Comm: event.Comm(name(e.Comm[:])),
		Cgroup: event.CgroupID{ID: e.Cgroup, Hierarchy: e.Hierarchy}, Kind: event.Dmem, Outcome: event.Failed, Flags: event.Flags(e.Flags),
	}
}

// name returns the bytes of a char array of the program.
func name(c []int8) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(&c[0])), len(c)) }

func level(l bpfLevel) event.Level {
	return event.Level{CgroupID: l.Cgroup, UsagePages: l.Usage, MaxPages: l.Max}
}

// TestEventLayout decodes each struct of the ring buffer in the program's layout, and
// encodes it again.
func TestEventLayout(t *testing.T) {
	for _, typ := range []event.Type{event.Charge, event.Lost} {
		c, want := filled[bpfChargeEvent](t, typ)
		want.Counter, want.StackPointer, want.RequestedPages, want.UsagePages, want.MaxPages = c.Counter, c.Sp, c.Requested, c.Usage, c.Max
		want.Limiting, want.High = level(c.Limiting), level(c.High)
		want.FailedAt, want.LostCharges, want.KernelStack, want.UserStack = c.Failed, c.Lost, c.KernelStack, c.UserStack
		checkLayout(t, c, want)
	}
	for _, typ := range []event.Type{event.ReclaimBegin, event.ReclaimEnd} {
		r, want := filled[bpfReclaimEvent](t, typ)
		want.FreedPages, want.DurationNanos = r.Freed, r.Ns
		checkLayout(t, r, want)
	}
	k, want := filled[bpfOomKillEvent](t, event.OOMKill)
	want.Victim = event.Victim{
		PID: k.VictimTgid, Comm: event.Comm(name(k.VictimComm[:])),
		AnonPages: k.Anon, FilePages: k.File, ShmemPages: k.Shmem, SwapPages: k.Swap, PageTableBytes: k.PageTables, CgroupID: k.VictimCgroup,
	}
	want.OOMNanos, want.UsagePages, want.MaxPages = k.Oom.BeginNs, k.Oom.Usage, k.Oom.Max
	want.Order = k.Order
	checkLayout(t, k, want)

	o, want := filled[bpfOomEvent](t, event.OOM)
	o.Result = uint32(event.Disabled)
	want.OOMNanos, want.UsagePages, want.MaxPages, want.Result = o.Oom.BeginNs, o.Oom.Usage, o.Oom.Max, event.Disabled
	want.Order = o.Order
	checkLayout(t, o, want)

	h, want := filled[bpfThrottleEvent](t, event.Throttle)
	want.UsagePages, want.MaxPages, want.DurationNanos = h.Usage, h.High, h.Ns
	checkLayout(t, h, want)

	f, want := filled[bpfForkEvent](t, event.Fork)
	want.ChildPID = f.ChildTgid
	checkLayout(t, f, want)

	for _, typ := range []event.Type{event.Uncharge, event.ForcedCharge} {
		u, want := filled[bpfUnchargeEvent](t, typ)
		want.Counter, want.RequestedPages, want.UsagePages = u.Counter, u.Pages, u.Usage
		checkLayout(t, u, want)
	}

	var g bpfCgroupEvent
	n := byte(0)
	fill(reflect.ValueOf(&g).Elem(), &n)
	g.Type = uint32(event.CgroupName)
	checkLayout(t, &g, event.Event{
		Type: event.CgroupName, Cgroup: event.CgroupID{ID: g.Cgroup, Hierarchy: g.Hierarchy}, ParentID: g.Parent, Name: string(name(g.Name[:3])),
	})
}

func checkLayout[T any](t *testing.T, raw *T, want event.Event) {
	t.Helper()
	var got event.Event
	if err := got.Decode(structBytes(raw)); err != nil {
		t.Fatalf("type %d: %v", want.Type, err)
	}
	if got != want {
		t.Errorf("type %d: got %+v\nwant %+v", want.Type, got, want)
	}
	if encoded := want.AppendEncoded(nil); !bytes.Equal(encoded, structBytes(raw)) {
		t.Errorf("type %d: encoded %x\nwant    %x", want.Type, encoded, structBytes(raw))
	}
}

// TestStackLayout decodes a stack in the program's layout.
func TestStackLayout(t *testing.T) {
	raw := bpfStackEvent{Type: 12, Id: 5, Tgid: 7, Layout: 8}
	raw.Address[0], raw.Address[1] = 0x10, 0x11
	sample := structBytes(&raw)[:unsafe.Offsetof(raw.Address)+2*unsafe.Sizeof(raw.Address[0])]
	if !isStack(sample) {
		t.Error("not recognized as a stack")
	}
	namer := &namer{questions: make(chan question, 1), answers: make(chan answer, 1), timeout: 1 << 40}
	namer.answers <- answer{frames: "f;g"}
	s := &stacks{numbers: make(map[string]uint32), programs: namer}
	var e event.Event
	if ok, err := s.learn(&e, sample); !ok || err != nil || e != (event.Event{Type: event.Stack, StackNumber: 1, Frames: "f;g"}) {
		t.Errorf("%v, %v: %+v", ok, err, e)
	}
	if q := <-namer.questions; q.of.PID != 7 || q.of.Layout != 8 || !slices.Equal(q.addresses, []uint64{0x10, 0x11}) {
		t.Errorf("question %+v", q)
	}
	charge := event.Event{KernelStack: 5}
	if s.number(&charge); charge.KernelStack != 1 {
		t.Errorf("number %d", charge.KernelStack)
	}
}

// objects are the committed objects by GOARCH.
var objects = map[string]string{
	"amd64": "bpf_x86_bpfel.o", "arm64": "bpf_arm64_bpfel.o", "ppc64le": "bpf_powerpc_bpfel.o", "riscv64": "bpf_riscv_bpfel.o", "s390x": "bpf_s390_bpfeb.o",
}

func loadObject(t *testing.T, arch string) *ebpf.CollectionSpec {
	t.Helper()
	raw, err := os.ReadFile(objects[arch])
	if err != nil {
		t.Fatal(err)
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%s: %v", arch, err)
	}
	return spec
}

// TestArchitectures compares the objects of all architectures: the types shared with Go,
// programs, maps and variables.
func TestArchitectures(t *testing.T) {
	files, err := filepath.Glob("bpf_*.o")
	if err != nil {
		t.Fatal(err)
	}
	if want := slices.Sorted(maps.Values(objects)); !slices.Equal(files, want) {
		t.Errorf("the objects are %q, want %q", files, want)
	}
	describe := func(arch string) map[string]string {
		spec := loadObject(t, arch)
		shared := make(map[string]string)
		for _, name := range []string{
			"charge_event", "reclaim_event", "oom_kill_event", "fork_event", "uncharge_event", "cgroup_event", "stack_event",
			"event", "level", "cpu_state", "call", "call_stacks", "cgroup_key",
			"event_type", "kind", "outcome", "event_flag", "cgroup_verdict", "stack_slots",
		} {
			types, err := spec.Types.AnyTypesByName(name) // a map can have the name too
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for _, typ := range types {
				shared[name] += layout(typ)
			}
			if shared[name] == "" {
				t.Errorf("%s is neither struct nor enum", name)
			}
		}
		for name, p := range spec.Programs {
			shared["program "+name] = fmt.Sprintln(p.Type, p.AttachType, p.AttachTo, p.SectionName)
		}
		for name, m := range spec.Maps {
			shared["map "+name] = fmt.Sprintln(m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
		}
		for name, v := range spec.Variables {
			shared["variable "+name] = fmt.Sprintln(v.SectionName, v.Offset, len(v.Value))
		}
		return shared
	}
	want := describe("amd64")
	for arch := range objects {
		got := describe(arch)
		for name := range want {
			if got[name] != want[name] {
				t.Errorf("%s on %s\n%s\non amd64\n%s", name, arch, got[name], want[name])
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s has %d types, programs, maps and variables, want %d", arch, len(got), len(want))
		}
	}
}

// TestRegisters checks the offsets of registers that CO-RE does not relocate: those in
// struct pt_regs of arch/ARCH/include/uapi/asm/ptrace.h.
func TestRegisters(t *testing.T) {
	const word = 8
	for arch, want := range map[string]struct {
		args   [3]int16
		sp, rc int16
	}{
		"ppc64le": {[3]int16{3 * word, 4 * word, 5 * word}, 1 * word, 3 * word},                                // gpr[3], gpr[1]
		"riscv64": {[3]int16{10 * word, 11 * word, 12 * word}, 2 * word, 10 * word},                            // a0, sp
		"s390x":   {[3]int16{(3 + 2) * word, (3 + 3) * word, (3 + 4) * word}, (3 + 15) * word, (3 + 2) * word}, // args and psw, gprs[2], gprs[15]
	} {
		spec := loadObject(t, arch)
		for program, offsets := range map[string][]int16{
			bpfProgKprobeTryCharge:    append(want.args[:], want.sp),
			bpfProgKretprobeTryCharge: {want.rc, want.sp},
			bpfProgKprobeUncharge:     want.args[:2],
			bpfProgKprobeReclaimBegin: want.args[:1],
		} {
			slices.Sort(offsets)
			if got := contextLoads(t, spec.Programs[program]); !slices.Equal(got, offsets) {
				t.Errorf("%s on %s reads its context at %d, want %d", program, arch, got, offsets)
			}
		}
	}
}

// contextLoads returns the offsets at which a program reads its context before its first
// jump.
func contextLoads(t *testing.T, p *ebpf.ProgramSpec) (offsets []int16) {
	t.Helper()
	contexts := map[asm.Register]bool{asm.R1: true}
	for _, ins := range p.Instructions {
		switch class := ins.OpCode.Class(); {
		case ins.IsFunctionCall() || ins.IsBuiltinCall():
			delete(contexts, asm.R1)
			continue
		case class.IsJump():
			return slices.Sorted(slices.Values(offsets))
		case class.IsLoad() && contexts[ins.Src]:
			if ins.OpCode.Size() != asm.DWord || btf.CORERelocationMetadata(&ins) != nil {
				t.Errorf("%s: %v", p.Name, ins)
			}
			offsets = append(offsets, ins.Offset)
		}
		if class := ins.OpCode.Class(); class.IsLoad() || class.IsALU() {
			isCopy := ins.OpCode.ALUOp() == asm.Mov && class.IsALU() && ins.OpCode.Source() == asm.RegSource
			contexts[ins.Dst] = isCopy && contexts[ins.Src]
		}
	}
	return nil
}

// layout describes a struct's fields, or an enum's values.
func layout(t btf.Type) (s string) {
	switch t := t.(type) {
	case *btf.Struct:
		s = fmt.Sprintln(t.Size, "bytes")
		for _, m := range t.Members {
			size, _ := btf.Sizeof(m.Type)
			s += fmt.Sprintln(m.Name, m.Offset, m.BitfieldSize, size)
		}
	case *btf.Enum:
		s = fmt.Sprintln(t.Size, t.Values)
	}
	return s
}

// structBytes returns the memory of a struct shared with the BPF program.
func structBytes[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
