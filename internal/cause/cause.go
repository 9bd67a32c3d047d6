// Package cause derives the cause of a charge from its kernel stack, and sums charges by
// stack. It must not depend on the outputs.
//
// Its rules are names of kernel functions. The names change between kernel versions, so
// the rules have those of all versions. A stack without a rule has the cause "other". A
// recording contains the stacks, not the causes, so better rules improve old recordings
// too.
package cause

import (
	"slices"
	"strings"
)

// Cause is the purpose of charged memory.
type Cause uint8

// The causes. Unknown is for charges without a known stack.
const (
	Unknown Cause = iota
	Anon
	COW
	HugePage
	FileRead
	Readahead
	FileWrite
	Shmem
	SwapIn
	SwapOut
	Slab
	KernelStack
	PageTable
	Socket
	Percpu
	BPFMap
	Hugetlb
	Pipe
	Zswap
	IOUring
	Other
	NumCauses // the number of causes
)

var names = [NumCauses]string{
	"-", "anon", "cow", "huge page", "file read", "readahead", "file write", "shmem", "swap in", "swap out",
	"slab", "kernel stack", "page table", "socket", "percpu", "bpf map", "hugetlb", "pipe", "zswap", "io_uring",
	"other",
}

// String returns a name such as "page table"; "-" for Unknown.
func (c Cause) String() string { return names[c] }

// Words is like String, but returns words for Unknown, for use in a sentence.
func (c Cause) Words() string {
	if c == Unknown {
		return "not known"
	}
	return names[c]
}

// rules are the functions of each cause. The innermost function of a stack with a rule
// decides: a page table that a page fault allocates is a page table. A * at the end of
// a name matches any suffix, and a * at the beginning any prefix.
var rules = []struct {
	Cause
	functions string
}{
	// KVM's are page tables of guests, sec_pagetables in memory.stat.
	{PageTable, "pte_alloc_one __pte_alloc __pte_alloc_one* pmd_alloc_one __pmd_alloc pud_alloc_one __pud_alloc __p4d_alloc pgd_alloc pgd_alloc_* " +
		"*kvm_mmu_topup_memory_cache"},
	{Slab, "kmem_cache_alloc* __kmalloc* kmalloc_* __kmem_cache_alloc* memcg_alloc_page_obj_cgroups " +
		"__memcg_slab_post_alloc_hook memcg_slab_post_alloc_hook alloc_slab_obj_exts krealloc* kvmalloc_node* __kvmalloc_node*"},
	{Percpu, "pcpu_alloc pcpu_alloc_noprof __alloc_percpu* pcpu_memcg_pre_alloc_hook"},
	{KernelStack, "memcg_charge_kernel_stack* alloc_thread_stack_node dup_task_struct"},
	// Unix sockets keep data in pages that are charged as kernel memory.
	{Socket, "mem_cgroup_charge_skmem mem_cgroup_sk_charge __sk_mem_raise_allocated __sk_mem_schedule alloc_skb_with_frags"},
	{Pipe, "pipe_write anon_pipe_write alloc_pipe_info"},
	{Hugetlb, "hugetlb_* alloc_hugetlb_folio* alloc_huge_page* mem_cgroup_hugetlb_* mem_cgroup_charge_hugetlb"},
	{HugePage, "do_huge_pmd_* __do_huge_pmd_* create_huge_pmd vma_alloc_anon_folio_pmd collapse_huge_page alloc_charge_hpage " +
		"alloc_charge_folio collapse_file hpage_collapse_* khugepaged*"},
	{Shmem, "shmem_*"},
	// Compressed data is charged by its size while it is stored.
	{Zswap, "zswap_* obj_cgroup_charge_zswap"},
	{SwapOut, "__mem_cgroup_try_charge_swap mem_cgroup_try_charge_swap add_to_swap folio_alloc_swap"},
	{SwapIn, "do_swap_page alloc_swap_folio mem_cgroup_swapin_charge_* read_swap_cache_async __read_swap_cache_async swap_cluster_readahead " +
		"swapin_readahead swap_vma_readahead"},
	{COW, "wp_page_copy do_cow_fault copy_present_page copy_present_pte* page_copy_prealloc wp_page_copy_*"},
	{Readahead, "page_cache_ra_* __do_page_cache_readahead read_pages ondemand_readahead force_page_cache_ra page_cache_sync_ra " +
		"page_cache_async_ra do_sync_mmap_readahead do_async_mmap_readahead"},
	// Some file systems have their own write paths: btrfs, FUSE, and those on netfs,
	// which are 9p, AFS and SMB.
	{FileWrite, "generic_perform_write iomap_file_buffered_write *_write_begin btrfs_buffered_write fuse_perform_write netfs_perform_write"},
	// The metadata of file systems is in the page cache too; btrfs has extent buffers.
	{FileRead, "filemap_read filemap_fault filemap_create_folio generic_file_buffered_read filemap_get_pages do_read_cache_page " +
		"do_read_cache_folio read_cache_page read_cache_folio bdev_getblk __getblk_gfp __getblk_slow alloc_extent_buffer"},
	{Anon, "do_anonymous_page alloc_anon_folio mfill_atomic* mcopy_atomic*"},
	// Rings and their entries; io_create_region exists since Linux 6.13.
	{IOUring, "io_uring_setup io_pages_map io_create_region*"},
}

// inlined are functions into which some kernels inline functions of rules, with the
// causes of their own charges and of the kernel pages they allocate. If they call another
// function without a rule, its charges are [Other], to show the gap: an example is a
// driver with its own fault handler.
var inlined = map[string]caller{
	"do_wp_page":        {COW, Other},       // wp_page_copy
	"__do_fault":        {Other, PageTable}, // pte_alloc_one, on arm64
	"do_fault":          {COW, PageTable},   // do_cow_fault; do_fault_around
	"handle_pte_fault":  {Anon, PageTable},  // do_anonymous_page, as in the next two
	"__handle_mm_fault": {Anon, PageTable},
	"handle_mm_fault":   {Anon, PageTable},
	"copy_process":      {KernelStack, KernelStack}, // dup_task_struct
	// pte_alloc_one, on arm64: the page table for a later split of the huge page.
	"do_huge_pmd_anonymous_page":   {HugePage, PageTable},
	"__do_huge_pmd_anonymous_page": {HugePage, PageTable},
}

type caller struct{ charged, allocated Cause }

// of returns the cause of the caller's charge through a function that it calls.
func (c caller) of(function string) Cause {
	switch {
	case strings.Contains(function, "charge"), function == "folio_prealloc":
		return c.charged
	case strings.Contains(function, "alloc_pages"), strings.Contains(function, "get_free_page"):
		return c.allocated
	}
	return Other
}

// anywhere are functions that decide the cause of all charges below them.
var anywhere = []struct {
	Cause
	function string
}{
	{BPFMap, "__sys_bpf"},
	{BPFMap, "__do_sys_bpf"},
	{BPFMap, "bpf_map_update_value"},
	{BPFMap, "htab_map_update_elem"},
}

// index has the functions of rules without a *, prefixes and suffixes those with one.
var index, prefixes, suffixes = func() (index map[string]Cause, prefixes, suffixes []affix) {
	index = make(map[string]Cause)
	for _, r := range rules {
		for f := range strings.FieldsSeq(r.functions) {
			switch {
			case strings.HasSuffix(f, "*"):
				prefixes = append(prefixes, affix{strings.TrimSuffix(f, "*"), r.Cause})
			case strings.HasPrefix(f, "*"):
				suffixes = append(suffixes, affix{strings.TrimPrefix(f, "*"), r.Cause})
			default:
				index[f] = r.Cause
			}
		}
	}
	return index, prefixes, suffixes
}()

type affix struct {
	text string
	Cause
}

// Of returns the cause of a charge from the frames of its kernel stack, in the form of
// [event.Event.Frames].
func Of(frames string) Cause {
	if frames == "" {
		return Unknown
	}
	names := functions(frames, kernelFunction)
	if !slices.ContainsFunc(names, func(f string) bool { return !strings.HasPrefix(f, "0x") }) {
		return Unknown // the kernel returned no names
	}
	for _, a := range anywhere {
		if slices.Contains(names, a.function) {
			return a.Cause
		}
	}
	for i, f := range names {
		if caller, ok := inlined[f]; ok && i > 0 {
			return caller.of(names[i-1])
		}
		c, ok := rule(f)
		if !ok {
			continue
		}
		if c == Slab && isIOUring(slabCaller(names[i:])) {
			return IOUring
		}
		return c
	}
	return Other
}

// rule returns the cause of a function that has a rule.
func rule(function string) (c Cause, ok bool) {
	if c, ok := index[function]; ok {
		return c, true
	}
	for _, p := range prefixes {
		if strings.HasPrefix(function, p.text) {
			return p.Cause, true
		}
	}
	for _, s := range suffixes {
		if strings.HasSuffix(function, s.text) {
			return s.Cause, true
		}
	}
	return 0, false
}

// slabCaller returns the function that allocates from a slab, from the functions of a stack
// whose first one is of the allocator. It says what the memory is for: d_alloc, getname_flags.
func slabCaller(names []string) string {
	for _, f := range names {
		if c, ok := rule(f); !ok || c != Slab {
			return f
		}
	}
	return ""
}

// isIOUring reports whether a function is one of io_uring, whose requests are in a slab.
func isIOUring(function string) bool {
	if strings.HasPrefix(function, "io_schedule") {
		return false
	}
	return strings.HasPrefix(function, "io_") || strings.HasPrefix(function, "__io_") || strings.Contains(function, "sys_io_uring_")
}
