package export

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/pprof/profile"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/world"
)

func stackedEvents() []event.Event {
	charge := func(stack uint32, pages uint64, o event.Outcome) event.Event {
		e := event.Event{Type: event.Charge, PID: 7, Kind: event.Memory, Outcome: o, RequestedPages: pages, KernelStack: stack, Cgroup: event.CgroupID{ID: 2}}
		copy(e.Comm[:], "a;\x1b")
		return e
	}
	bytes := charge(1, 1<<20, event.OK)
	bytes.Kind = event.Dmem
	return []event.Event{
		{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 2}, ParentID: 1, Name: "g"}, {Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}},
		{Type: event.Stack, StackNumber: 1, Frames: "charge_memcg+0x1;shmem_fault+0x2;do_fault+0x3"},
		{Type: event.Stack, StackNumber: 2, Frames: "charge_memcg+0x9;shmem_fault+0x2;do_fault+0x3"},
		charge(1, 64, event.OK), charge(2, 3, event.OK), charge(1, 64, event.Failed), charge(1, 1, event.BatchMiss), charge(0, 5, event.OK), bytes,
	}
}

func TestFolded(t *testing.T) {
	var out bytes.Buffer
	p := fed(NewFolded, &out, info)
	if err := p.Write(stackedEvents()); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(stream.Counts{}); err != nil {
		t.Fatal(err)
	}
	if want := "a:\\x1b 5\na:\\x1b;do_fault;shmem_fault;charge_memcg 67\n"; out.String() != want {
		t.Errorf("%q, want %q", &out, want)
	}
}

// TestFoldedKeeps checks that the samples do not grow with processes, cgroups and offsets,
// which are not in the lines.
func TestFoldedKeeps(t *testing.T) {
	w := world.New(info)
	p := NewFolded(new(bytes.Buffer), w)
	fed := w.Feed(p)
	for i := range uint32(100) {
		events := stackedEvents()
		for j := range events {
			events[j].PID, events[j].Cgroup.ID = i, uint64(i)
		}
		events[2].Frames = fmt.Sprintf("charge_memcg+0x%x;shmem_fault+0x2;do_fault+0x3", i)
		if err := fed.Write(events); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.samples) != 2 {
		t.Errorf("%d samples, want one of a stack and one of none", len(p.samples))
	}
}

func TestPprof(t *testing.T) {
	var out bytes.Buffer
	p := fed(NewPprof, &out, info)
	if err := p.Write(stackedEvents()); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(stream.Counts{}); err != nil {
		t.Fatal(err)
	}
	got, err := profile.Parse(&out)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.CheckValid(); err != nil {
		t.Fatal(err)
	}
	var sums [3]int64
	for _, s := range got.Sample {
		for i := range sums {
			sums[i] += s.Value[i]
		}
		if len(s.Location) == 0 {
			continue
		}
		if s.Label["cause"][0] != "shmem" || s.Label["cgroup"][0] != "/g" || s.NumLabel["pid"][0] != 7 || s.Location[0].Line[0].Function.Name != "shmem_fault" {
			t.Errorf("%+v", s)
		}
	}
	pageSize := int64(info.PageSize)
	if want := [3]int64{5, 72 * pageSize, 64 * pageSize}; sums != want || got.DefaultSampleType != "bytes" {
		t.Errorf("charges, bytes, failed bytes: %v, want %v", sums, want)
	}
}

// TestWithoutCharging trims stacks to what needed the memory.
func TestWithoutCharging(t *testing.T) {
	for stack, want := range map[string]string{
		"page_counter_try_charge;try_charge_memcg;charge_memcg;__mem_cgroup_charge;shmem_fault": "shmem_fault",
		"try_charge_memcg;obj_cgroup_charge;__memcg_slab_post_alloc_hook;kmem_cache_alloc;dup":  "kmem_cache_alloc;dup",
		"page_counter_try_charge;charge_memcg":                                                  "page_counter_try_charge;charge_memcg", // all there is
		"do_fault":                                                                              "do_fault", "0xffffffff81234567;a": "0xffffffff81234567;a",
	} {
		if got := strings.Join(withoutCharging(strings.Split(stack, ";")), ";"); got != want {
			t.Errorf("%s: %s, want %s", stack, got, want)
		}
	}
}
