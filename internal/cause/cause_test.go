package cause

import (
	"slices"
	"testing"

	"chargetrace/internal/event"
)

func TestOf(t *testing.T) {
	const (
		memcg  = "page_counter_try_charge+0x1;try_charge_memcg+0xc9;charge_memcg+0x39;__mem_cgroup_charge+0x28;"
		kernel = "page_counter_try_charge+0x1;try_charge_memcg+0xc9;obj_cgroup_charge_pages+0x2;__memcg_kmem_charge_page+0x3;"
		cache  = memcg + "__filemap_add_folio+0x2;filemap_add_folio+0x1;"
		fault  = ";__handle_mm_fault+0x95c;handle_mm_fault+0xdb;do_user_addr_fault+0x1;exc_page_fault+0x2;asm_exc_page_fault+0x3"
	)
	for frames, want := range map[string]Cause{
		"":                   Unknown,
		"0xffffffff81000000": Unknown,
		"page_counter_try_charge+0x1;something_new+0x2;0xffffffffc0123456": Other,
		memcg + "do_anonymous_page+0x1" + fault:                            Anon,
		memcg + "folio_prealloc+0x1;do_anonymous_page+0x1" + fault:         Anon,
		memcg + fault[1:]: Anon, // 6.1
		"page_counter_try_charge+0x1;try_charge+0xc9;mem_cgroup_charge+0x39;handle_mm_fault+0x95c":                                                 Anon, // 5.10
		kernel + "__alloc_pages+0x4;pte_alloc_one+0x5;do_anonymous_page+0x6" + fault:                                                               PageTable,
		kernel + "__alloc_pages+0x4;something_new+0x5;do_wp_page+0x1" + fault:                                                                      Other,
		kernel + "__alloc_pages+0x4;something_new+0x5" + fault + ";filemap_read+0x1":                                                               Other,
		kernel + "__alloc_pages_noprof+0x198;alloc_pages_mpol_noprof+0x98;alloc_pages_noprof+0x50;__do_fault+0xa8;do_fault+0xb8" + fault:           PageTable, // 6.12 on arm64
		kernel + "__alloc_pages_noprof+0x198;alloc_pages_mpol_noprof+0x98;alloc_pages_noprof+0x50;do_fault+0xb8" + fault:                           PageTable,
		kernel + "__alloc_pages_noprof+0x198;alloc_pages_noprof+0x50;do_huge_pmd_anonymous_page+0x11c" + fault:                                     PageTable, // 6.12 on arm64
		memcg + "do_huge_pmd_anonymous_page+0xf8" + fault:                                                                                          HugePage,
		kernel + "__alloc_pages+0x198;copy_process+0x5":                                                                                            KernelStack,
		kernel + "copy_process+0x5;kernel_clone+0x6":                                                                                               KernelStack, // 5.10
		kernel + "memcg_charge_kernel_stack.part.0+0x1;copy_process+0x5":                                                                           KernelStack,
		kernel + "__alloc_pages+0x4;something_new+0x1;copy_process+0x5":                                                                            Other,
		memcg + "wp_page_copy.isra.0+0x2;do_wp_page+0x1" + fault:                                                                                   COW,
		memcg + "folio_prealloc+0x2;do_wp_page+0x1" + fault:                                                                                        COW,
		memcg + "do_fault+0x9a" + fault:                                                                                                            COW,
		memcg + "folio_prealloc+0x1;do_fault+0x9a" + fault:                                                                                         COW,
		memcg + "folio_prealloc+0x1;copy_present_ptes+0x2;copy_page_range+0x1":                                                                     COW,
		cache + "filemap_fault+0x3;__do_fault+0x4;do_fault+0x2" + fault:                                                                            FileRead,
		cache + "page_cache_ra_unbounded+0x2;filemap_fault+0x3;__do_fault+0x4;do_fault+0x2" + fault:                                                Readahead,
		kernel + "__alloc_pages+0x1;ttm_pool_alloc [ttm]+0x2;ttm_bo_vm_fault [ttm]+0x3;__do_fault+0x4;do_fault+0x9a" + fault + ";filemap_read+0x1": Other,
		kernel + "something_new+0x1;do_fault+0x9a" + fault:                                                                                         Other,
		"try_charge_memcg+0xc9;obj_cgroup_charge+0xb4;kmem_cache_alloc_lru+0xe8;xas_alloc+0x1;__filemap_add_folio+0x2;page_cache_ra_unbounded+0x2": Slab,
		"try_charge_memcg+0x1;obj_cgroup_charge+0x2;pcpu_memcg_pre_alloc_hook+0x3;pcpu_alloc+0x4;mm_init+0x2":                                      Percpu,
		"try_charge_memcg+0xc9;obj_cgroup_charge+0xb4;__kmalloc_node+0x1;bpf_map_kmalloc_node+0x2;htab_map_alloc+0x3;__sys_bpf+0x4":                BPFMap,

		cache + "__filemap_get_folio+0x1;ext4_da_write_begin [ext4]+0x1;generic_perform_write+0x3":                                                      FileWrite,
		cache + "__filemap_get_folio+0x1;iomap_write_begin+0x1;iomap_file_buffered_write+0x3;xfs_file_buffered_write [xfs]+0x2":                         FileWrite,
		cache + "__filemap_get_folio+0x1;nfs_write_begin [nfs]+0x1;generic_perform_write+0x3;nfs_file_write [nfs]+0x4":                                  FileWrite,
		"mem_cgroup_charge+0x1;__add_to_page_cache_locked+0x1;pagecache_get_page+0x1;prepare_pages [btrfs]+0x1;btrfs_buffered_write.isra.0 [btrfs]+0x3": FileWrite, // 5.10
		cache + "__filemap_get_folio+0x1;pagecache_get_page+0x2;prepare_pages.constprop.0 [btrfs]+0x1;btrfs_buffered_write [btrfs]+0x3":                 FileWrite,
		cache + "__filemap_get_folio_mpol+0x1;prepare_one_folio+0x2;copy_one_range [btrfs]+0x1;btrfs_buffered_write [btrfs]+0x3":                        FileWrite, // 7.2
		cache + "__filemap_get_folio+0x1;fuse_fill_write_pages [fuse]+0x1;fuse_perform_write [fuse]+0x3;fuse_file_write_iter [fuse]+0x3":                FileWrite,
		cache + "__filemap_get_folio+0x1;netfs_perform_write [netfs]+0x1;netfs_file_write_iter [netfs]+0x3;cifs_strict_writev [cifs]+0x1":               FileWrite,
		cache + "__filemap_get_folio+0x1;bdev_getblk+0x1;__ext4_get_inode_loc [ext4]+0x3":                                                               FileRead,
		"mem_cgroup_charge+0x1;pagecache_get_page+0x1;__getblk_slow+0x1;__getblk_gfp+0x2;ext4_bread [ext4]+0x3":                                         FileRead, // 5.10
		cache + "alloc_extent_buffer [btrfs]+0x1;read_tree_block [btrfs]+0x3":                                                                           FileRead,

		kernel + "__alloc_pages+0x4;alloc_skb_with_frags+0x1;sock_alloc_send_pskb+0x2;unix_stream_sendmsg+0x3":                                               Socket,
		kernel + "__alloc_pages+0x4;__kvm_mmu_topup_memory_cache [kvm]+0x1;kvm_tdp_page_fault [kvm]+0x2":                                                     PageTable,
		kernel + "__alloc_pages_nodemask+0x4;__get_free_pages+0x1;io_uring_setup+0x2":                                                                        IOUring, // 5.10
		kernel + "__alloc_pages_noprof+0x4;io_pages_map+0x1;io_register_pbuf_ring+0x2":                                                                       IOUring, // 6.12
		kernel + "alloc_pages_bulk_noprof+0x4;io_create_region+0x2;io_uring_create+0x1":                                                                      IOUring, // 7.2
		"try_charge_memcg+0xc9;obj_cgroup_charge+0xb4;kmem_cache_alloc_bulk+0x1;__io_alloc_req_refill+0x2;io_submit_sqes+0x3":                                IOUring, // 6.1
		"try_charge_memcg+0xc9;obj_cgroup_charge+0xb4;__kmem_cache_alloc_bulk+0x1;kmem_cache_alloc_bulk_noprof+0x1;__io_alloc_req_refill+0x2;io_submit_sqes": IOUring, // 7.2
		"try_charge+0xc9;obj_cgroup_charge+0xb4;kmem_cache_alloc+0x1;__do_sys_io_uring_enter+0x2;do_syscall_64":                                              IOUring,
		"try_charge+0xc9;obj_cgroup_charge+0xb4;kmem_cache_alloc+0x1;io_schedule_prepare+0x2;io_read+0x1":                                                    Slab,
		cache + "filemap_read+0x2;io_read+0x3;io_issue_sqe+0x4;io_submit_sqes+0x5":                                                                           FileRead,
		"page_counter_try_charge+0x1;try_charge_memcg+0x2;obj_cgroup_charge+0x1;obj_cgroup_charge_zswap+0x2;zswap_store+0x3;swap_writepage+0x4;shrink_folio_list+0x5;try_to_free_mem_cgroup_pages+0x6;try_charge_memcg+0x2;charge_memcg+0x1;do_anonymous_page+0x2": Zswap,
		"page_counter_try_charge+0x1;try_charge_memcg+0x2;obj_cgroup_charge+0x1;zswap_frontswap_store+0x2;__frontswap_store+0x3":                                                                                                                                   Zswap, // 6.1
		"page_counter_try_charge+0x1;__mem_cgroup_try_charge_swap+0x2;folio_alloc_swap+0x3;add_to_swap+0x4;shrink_folio_list+0x5":                                                                                                                                  SwapOut,
	} {
		if got := Of(frames); got != want {
			t.Errorf("%s: %v, want %v", frames, got, want)
		}
	}
}

func TestFunctions(t *testing.T) {
	got := functions("a.constprop.0+0x12;b [ext4]+0x3;0xffffffffc0123456", kernelFunction)
	if want := []string{"a", "b", "0xffffffffc0123456"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestSlabCaller(t *testing.T) {
	for frames, want := range map[string]string{
		"try_charge_memcg+0xc9;obj_cgroup_charge+0xb4;kmem_cache_alloc_lru+0xe8;__d_alloc+0x1;d_alloc+0x2": "__d_alloc",
		"try_charge_memcg+0xc9;__kmalloc_node+0x1;kvmalloc_node+0x2":                                       "",
		"try_charge_memcg+0xc9;do_anonymous_page+0x1":                                                      "",
	} {
		var s Stacks
		s.Add(&event.Event{Type: event.Stack, StackNumber: 3, Frames: frames})
		if got := s.Kernel(&event.Event{KernelStack: 3}).SlabCaller(); got != want {
			t.Errorf("%s: %q, want %q", frames, got, want)
		}
	}
	var none *Stack
	if none.SlabCaller() != "" {
		t.Error("no stack has a caller")
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
		p.Add(s.Sample(&e), &e, 0)
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
	if s.Cause(&charge) != Unknown || s.Kernel(&charge) != nil {
		t.Error("found a stack before its event")
	}
	s.Add(&event.Event{Type: event.Stack, StackNumber: 3, Frames: "shmem_alloc_folio+0x1"})
	if got := s.Cause(&charge); got != Shmem {
		t.Errorf("cause %v, want %v", got, Shmem)
	}
	first := s.Kernel(&charge)
	s.Add(&event.Event{Type: event.Stack, StackNumber: 3, Frames: "filemap_fault+0x1"}) // of the next recording
	if got := s.Cause(&charge); got != FileRead {
		t.Errorf("cause %v, want %v", got, FileRead)
	}
	s.Add(&event.Event{Type: event.Stack, StackNumber: 3, Frames: "shmem_alloc_folio.part.0+0x9"})
	if got := s.Kernel(&charge); got != first || got.Functions() != "shmem_alloc_folio" {
		t.Errorf("another Stack for the same functions, %q", got.Functions())
	}
}
