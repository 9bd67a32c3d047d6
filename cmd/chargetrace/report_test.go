package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/trace"
)

// record makes a recording of the events that write passes to its argument.
func record(t testing.TB, info stream.Info, write func(func(...event.Event))) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.ctrace")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var charges uint64
	w, err := trace.NewWriter(f, info)
	if err != nil {
		t.Fatal(err)
	}
	write(func(events ...event.Event) {
		for _, e := range events {
			if e.Type == event.Charge {
				charges++
			}
		}
		if err := w.Write(events); err != nil {
			t.Fatal(err)
		}
	})
	if err := w.Close(stream.Counts{Seen: charges}); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// crowd writes n charges of many processes to many cgroups that share a limit, with
// failures, reclaim and kills.
func crowd(n int, write func(...event.Event)) {
	const cgroups, processes, unlimited = 60, 300, 1 << 62
	name := func(id, parent uint64, name string) event.Event {
		return event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: id}, ParentID: parent, Name: name}
	}
	write(name(1, 0, ""), name(2, 1, "kubepods.slice"))
	for i := range uint64(cgroups) {
		write(name(10+i, 2, "pod"+string(rune('A'+i%26))+string(rune('a'+i/26))))
	}
	r := rand.New(rand.NewPCG(3, 4))
	e := event.Event{Type: event.Charge, BootNanos: 1e9, Kind: event.Memory, High: event.Level{MaxPages: unlimited}}
	const limit = 500_000
	total := int64(100_000)
	var held [cgroups]int64
	for i := range n {
		e.BootNanos += 20_000 + r.Uint64N(100_000)
		e.PID = 100 + uint32(min(r.ExpFloat64()/6, 1)*processes)
		e.TID = e.PID
		e.Comm = [16]byte{'w', 'o', 'r', 'k', 'e', 'r', '-', byte('a' + e.PID%20)}
		c := uint64(e.PID % cgroups)
		e.Cgroup.ID = 10 + c
		e.RequestedPages = 64
		e.UsagePages, e.MaxPages = held[c], 60_000
		e.Limiting = event.Level{CgroupID: 2, UsagePages: total, MaxPages: limit}
		e.Outcome, e.FailedAt = event.OK, 0
		if total+64 > limit {
			e.Outcome, e.FailedAt = event.Failed, 2
		}
		write(e)
		if e.Outcome == event.OK {
			held[c] += 64
			total += 64
		} else if r.IntN(50) == 0 {
			free := e
			free.Type, free.Cgroup.ID, free.DurationNanos, free.FreedPages = event.ReclaimEnd, 2, 15_000, uint64(held[c])
			write(free)
			total -= held[c]
			held[c] = 0
		} else if i%(n/6) == 0 {
			dead := e
			dead.Type, dead.Cgroup.ID = event.OOMKill, 2
			dead.Victim = event.Victim{PID: e.PID, Comm: e.Comm, AnonPages: uint64(held[c])}
			write(dead)
		}
		// Some memory is uncharged unseen.
		if give := held[c] / 16; r.IntN(30) == 0 {
			held[c] -= give
			total -= give
		}
	}
}

// stacks maps a cause to a kernel stack.
var stacks = map[string]string{
	"anon":       "charge_memcg+0x2;__mem_cgroup_charge+0x3;alloc_anon_folio+0x4;do_anonymous_page+0x5;__handle_mm_fault+0x6;handle_mm_fault+0x7;do_user_addr_fault+0x8;exc_page_fault+0x9;asm_exc_page_fault+0xa",
	"page table": "obj_cgroup_charge_pages+0x2;__alloc_pages_noprof+0x3;pte_alloc_one+0x4;__pte_alloc+0x5;do_anonymous_page+0x6;__handle_mm_fault+0x7;handle_mm_fault+0x8;do_user_addr_fault+0x9;exc_page_fault+0xa;asm_exc_page_fault+0xb",
	"cow":        "charge_memcg+0x2;__mem_cgroup_charge+0x3;folio_prealloc+0x4;wp_page_copy+0x5;__handle_mm_fault+0x6;handle_mm_fault+0x7;do_user_addr_fault+0x8;exc_page_fault+0x9;asm_exc_page_fault+0xa",
	"readahead":  "charge_memcg+0x2;__mem_cgroup_charge+0x3;filemap_add_folio+0x4;page_cache_ra_unbounded+0x5;filemap_get_pages+0x6;filemap_read+0x7;vfs_read+0x8;ksys_read+0x9;do_syscall_64+0xa;entry_SYSCALL_64_after_hwframe+0xb",
	"file write": "charge_memcg+0x2;__mem_cgroup_charge+0x3;filemap_add_folio+0x4;ext4_da_write_begin [ext4]+0x5;generic_perform_write+0x6;vfs_write+0x7;ksys_write+0x8;do_syscall_64+0x9;entry_SYSCALL_64_after_hwframe+0xa",
	"slab":       "obj_cgroup_charge+0x2;kmem_cache_alloc_lru_noprof+0x3;__d_alloc+0x4;d_alloc+0x5;lookup_open+0x6;path_openat+0x7;do_filp_open+0x8;__x64_sys_openat+0x9;do_syscall_64+0xa;entry_SYSCALL_64_after_hwframe+0xb",
	"socket":     "mem_cgroup_charge_skmem+0x2;__sk_mem_raise_allocated+0x3;tcp_sendmsg+0x4;__sys_sendto+0x5;do_syscall_64+0x6;entry_SYSCALL_64_after_hwframe+0x7",
	"pipe":       "obj_cgroup_charge_pages+0x2;anon_pipe_write+0x3;vfs_write+0x4;ksys_write+0x5;do_syscall_64+0x6;entry_SYSCALL_64_after_hwframe+0x7",
	"shmem":      "charge_memcg+0x2;shmem_alloc_folio+0x3;shmem_write_begin+0x4;generic_perform_write+0x5;vfs_write+0x6;ksys_write+0x7;do_syscall_64+0x8;entry_SYSCALL_64_after_hwframe+0x9",
	"other":      "something_new+0x2;do_syscall_64+0x3;entry_SYSCALL_64_after_hwframe+0x4",
}

// stacked writes charges of 10,000 pages with stacks: half by java, and the rest by a few
// other processes.
func stacked(write func(...event.Event)) {
	const limit = 20_000
	write(event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}}, event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 2}, ParentID: 1, Name: "web"})
	numbers := make(map[string]uint32)
	for i, name := range slices.Sorted(maps.Keys(stacks)) {
		numbers[name] = uint32(i + 1)
		write(event.Event{Type: event.Stack, StackNumber: numbers[name], Frames: "page_counter_try_charge+0x1;try_charge_memcg+0x2;" + stacks[name]})
	}
	usage := int64(0)
	for i := range 100 {
		for pid, charges := range [][]struct {
			cause string
			pages uint64
		}{
			{{"anon", 45}, {"page table", 3}, {"readahead", 2}}, // java
			{{"readahead", 13}, {"anon", 7}},
			{{"file write", 10}, {"slab", 5}},
			{{"shmem", 6}, {"cow", 3}},
			{{"socket", 3}, {"pipe", 1}},
			{{"other", 1}, {"anon", 1}},
		} {
			for _, c := range charges {
				e := event.Event{
					Type: event.Charge, BootNanos: 1e9 + uint64(i*i)*1e5, PID: uint32(pid + 10), TID: 1, Cgroup: event.CgroupID{ID: 2}, Kind: event.Memory, Outcome: event.OK,
					RequestedPages: c.pages, UsagePages: usage, MaxPages: limit, Limiting: event.Level{CgroupID: 2, UsagePages: usage, MaxPages: limit},
					High: event.Level{MaxPages: 1 << 62}, KernelStack: numbers[c.cause],
				}
				copy(e.Comm[:], []string{"java", "nginx", "postgres", "rsync", "curl", "kworker/0:1"}[pid])
				usage += int64(c.pages)
				write(e)
			}
		}
	}
}

// millions are recordings of a million events, without stacks, and with the largest number
// of stacks.
var millions = []struct {
	name   string
	frames int
}{{"million", 0}, {"million-stacks", 1 << 14}}

// recordMillion makes one of these recordings.
func recordMillion(t testing.TB, frames int) string {
	t.Helper()
	return record(t, stream.Info{PageSize: 4096, StartBootNanos: 1e9, KernelStacks: frames > 0}, func(write func(...event.Event)) {
		causes := slices.Sorted(maps.Keys(stacks))
		for i := range frames {
			write(event.Event{Type: event.Stack, StackNumber: uint32(i + 1), Frames: stacks[causes[i%len(causes)]] + fmt.Sprintf(";f%d+0x1;f%d+0x2", i%50, i)})
		}
		r := rand.New(rand.NewPCG(5, 6))
		crowd(1e6, func(events ...event.Event) {
			for i := range events {
				if e := &events[i]; e.Type == event.Charge && frames > 0 {
					e.KernelStack = 1 + uint32(min(r.ExpFloat64()/50, 0.999)*float64(frames)) // a few are frequent
				}
			}
			write(events...)
		})
	})
}

// makeReport runs the command to make a report, and returns the report's path.
func makeReport(t testing.TB, recording string) (cmd *exec.Cmd, page string) {
	t.Helper()
	page = filepath.Join(t.TempDir(), "x.html")
	cmd = exec.Command("chargetrace", "-r", recording, "-o", page) // installed by testscript.Main
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	return cmd, page
}

// TestMillionEvents checks that a report of a million events is at most 2 MiB.
func TestMillionEvents(t *testing.T) {
	for _, m := range millions {
		t.Run(m.name, func(t *testing.T) {
			_, path := makeReport(t, recordMillion(t, m.frames))
			page, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) > 2<<20 || !strings.Contains(string(page), "1,000,000 charges in this report") {
				t.Errorf("%d bytes: %.2000s", len(page), page)
			}
			if dir := os.Getenv("KEEP_REPORTS"); dir != "" {
				if err := os.WriteFile(filepath.Join(dir, m.name+".html"), page, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
