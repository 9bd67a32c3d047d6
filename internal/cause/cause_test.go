package cause

import (
	"slices"
	"testing"

	"chargetrace/internal/event"
)

func TestOf(t *testing.T) {
	for frames, want := range map[string]Cause{
		"":                   Unknown,
		"0xffffffff81000000": Unknown,
		"page_counter_try_charge+0x1;try_charge_memcg+0xc9;charge_memcg+0x39;__mem_cgroup_charge+0x28;__handle_mm_fault+0x95c;handle_mm_fault+0xdb":        Anon,
		"page_counter_try_charge+0x1;obj_cgroup_charge_pages+0x2;__memcg_kmem_charge_page+0x3;__alloc_pages+0x4;pte_alloc_one+0x5;do_anonymous_page+0x6":   PageTable,
		"try_charge_memcg+0xc9;obj_cgroup_charge+0xb4;kmem_cache_alloc_lru+0xe8;xas_alloc+0x1;__filemap_add_folio+0x2;page_cache_ra_unbounded+0x2":         Slab,
		"charge_memcg+0x39;__filemap_add_folio+0x2;filemap_add_folio+0x1;page_cache_ra_unbounded+0x2;filemap_fault+0x3;__do_fault+0x4;handle_mm_fault+0x2": Readahead,
		"charge_memcg+0x39;__filemap_add_folio+0x2;ext4_da_write_begin [ext4]+0x1;generic_perform_write+0x3":                                               FileWrite,
		"charge_memcg+0x39;wp_page_copy.isra.0+0x2;do_wp_page+0x1":                                                                                         COW,
		"try_charge_memcg+0xe4;__mem_cgroup_charge+0x42;do_fault+0x9a;__handle_mm_fault+0x70d":                                                             COW,
		"charge_memcg+0x39;somefs_fault [somefs]+0x2;__do_fault+0x4;do_fault+0x9a;handle_mm_fault+0x2":                                                     FileRead,
		"try_charge_memcg+0xc9;obj_cgroup_charge+0xb4;__kmalloc_node+0x1;bpf_map_kmalloc_node+0x2;htab_map_alloc+0x3;__sys_bpf+0x4;do_syscall_64+0x2":      BPFMap,
		"try_charge_memcg+0x1;obj_cgroup_charge+0x2;pcpu_memcg_pre_alloc_hook+0x3;pcpu_alloc+0x4;mm_init+0x2":                                              Percpu,
		"page_counter_try_charge+0x1;something_new+0x2;0xffffffffc0123456":                                                                                 Other,
	} {
		if got := Of(frames); got != want {
			t.Errorf("%s: %v, want %v", frames, got, want)
		}
	}
}

func TestFunctions(t *testing.T) {
	got := Functions("a.constprop.0+0x12;b [ext4]+0x3;0xffffffffc0123456")
	if want := []string{"a", "b", "0xffffffffc0123456"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestProfile(t *testing.T) {
	var s Stacks
	s.Add(&event.Event{Type: event.Stack, StackNumber: 3, Frames: "a.isra.0+0x1;b [x]+0x2"})
	s.Add(&event.Event{Type: event.Stack, StackNumber: 5, Frames: "operator+0x [app]+0x1f;[libc.so.6 8f3a]+0x2ab10;0x7f12\x1b"})
	e := event.Event{Type: event.Charge, KernelStack: 3, UserStack: 5, Outcome: event.OK, RequestedPages: 5, Comm: event.Comm{'c', '\n'}}
	bytes, failed, unknown := e, e, e
	bytes.Kind, failed.Outcome, unknown.KernelStack, unknown.UserStack = event.Dmem, event.Failed, 4, 4
	p := make(Profile)
	for _, e := range []event.Event{e, e, bytes, failed, unknown} {
		p.Add(s.Sample(&e), &e)
	}
	known, other := s.Sample(&e), s.Sample(&unknown)
	if len(p) != 2 || *p[known] != (Sums{3, 10, 5}) || *p[other] != (Sums{1, 5, 0}) {
		t.Errorf("%+v", p)
	}
	if got, want := known.Path(), []string{`c\n`, `0x7f12\x1b`, "[libc.so.6 8f3a]+0x2ab10", "operator+0x [app]", "b", "a"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := other.Path(); len(got) != 1 {
		t.Errorf("%q", got)
	}
}

func TestStacks(t *testing.T) {
	var s Stacks
	charge := event.Event{Type: event.Charge, KernelStack: 3}
	if s.Cause(&charge) != Unknown || s.KernelFrames(&charge) != "" {
		t.Error("a stack is known that was not told of")
	}
	s.Add(&event.Event{Type: event.Stack, StackNumber: 3, Frames: "shmem_alloc_folio+0x1"})
	if got := s.Cause(&charge); got != Shmem {
		t.Errorf("it is for %v", got)
	}
	s.Add(&event.Event{Type: event.Stack, StackNumber: 3, Frames: "filemap_fault+0x1"}) // of the next recording
	if got := s.Cause(&charge); got != FileRead {
		t.Errorf("it is for %v", got)
	}
}
