package verdict

import (
	"slices"
	"strings"
	"testing"

	"chargetrace/internal/event"
	"chargetrace/internal/text"
)

// stat returns what was read of a cgroup.
func stat(at, oomNanos, id uint64, usage int64, content string) event.Event {
	return event.Event{Type: event.MemoryStat, BootNanos: info.StartBootNanos + at*ms, Cgroup: event.CgroupID{ID: id}, OOMNanos: oomNanos, UsagePages: usage, Stat: content}
}

// child makes it what was read of a child of /a.
func child(e event.Event) event.Event {
	e.ParentID = 2
	return e
}

func held(oomNanos, id uint64, pid uint32, anon uint64) event.Event {
	return event.Event{Type: event.Held, Cgroup: event.CgroupID{ID: id}, OOMNanos: oomNanos, Victim: event.Victim{PID: pid, Comm: comm("q"), AnonPages: anon}}
}

func TestHeld(t *testing.T) {
	k := started(kill(10, 7, 2, 8), 100, 100, 0)
	at := k.OOMNanos
	again := idle(12, 7, event.NoVictim)
	const full = "anon 8192\nfile 20971520\nshmem 16777216\nslab 4096\nkernel_stack 16384\npagetables 1\nsock 3\npgfault 99999999\nbroken\nanon_thp x\n"
	for _, tc := range []struct {
		name   string
		events []event.Event
		want   []string // the sentences after the first
	}{
		{"all", []event.Event{k, stat(12, at, 2, 5125, full+".no_swap_at 1\n"), child(stat(12, at, 3, 5000, "")), held(at, 2, 20, 512), held(at, 2, 8, 500), held(at, 2, 21, 1)}, []string{
			"2.5 ms later it held 20.0 MiB: shmem (tmpfs, shared memory) 16.0 MiB, page cache 4.0 MiB, kernel stacks 16 KiB, anon 8 KiB, slab 4 KiB, sockets 3 B, and more.",
			"Largest children then: /a/b 19.5 MiB.",
			"Largest other processes then, by rss: q (20) 2.0 MiB, q (21) 4 KiB.",
			"It could not swap: memory.swap.max of / is 0.",
		}},
		{"only the usage", []event.Event{k, stat(12, at, 2, 25, "")}, []string{"2.5 ms later it held 100 KiB."}},
		{"no usage", []event.Event{k, stat(12, at, 2, -1, "anon 4096\n")}, []string{"2.5 ms later it held this: anon 4 KiB."}},
		{"after a run without a kill", []event.Event{again, stat(13, again.OOMNanos, 2, 25, "anon 4096\n")}, []string{"1.5 ms later it held 100 KiB: anon 4 KiB, other 96 KiB."}},
		{"of another run", []event.Event{k, stat(12, at+1, 2, 25, ""), held(at+1, 2, 20, 1)}, nil},
		{"of another cgroup", []event.Event{k, stat(12, at, 9, 25, ""), child(stat(12, at, 3, 25, "")), held(at, 2, 20, 1)}, nil},
	} {
		v := newVerdict(t, text.Format{}, tc.events...)
		got := v.Story(v.OOMs[0])[1:]
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s:\n%s\nwant\n%s", tc.name, strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
		}
	}
}

// TestHeldV1 has the names of cgroup v1, whose total_cache includes shmem too.
func TestHeldV1(t *testing.T) {
	e := stat(12, 0, 2, 25, "cache 1\nrss 2\ntotal_cache 12288\ntotal_rss 4096\ntotal_shmem 8192\nanon 77\n")
	e.Cgroup.Hierarchy = 4
	var h Held
	h.addStat(&e)
	if want := []Part{{"shmem (tmpfs, shared memory)", "shmem", 8192}, {"anon", "anon", 4096}, {"page cache", "page_cache", 4096}}; !slices.Equal(h.Parts, want) {
		t.Errorf("%v, want %v", h.Parts, want)
	}
}

// TestHeldNested reads a cgroup and its child, both full, at the end.
func TestHeldNested(t *testing.T) {
	own := with(charge(1, 7, 1, 100, event.Failed), func(e *event.Event) { e.FailedAt = 3 })
	v := newVerdict(t, text.Format{}, charge(1, 7, 1, 100, event.Failed), own,
		stat(12, 0, 2, 25, "anon 4096\n"), child(stat(12, 0, 3, 5, "")), held(0, 2, 20, 1), stat(13, 0, 3, 6, "anon 8192\n"), held(0, 3, 21, 1))
	var got []string
	for _, l := range v.SortedLimits() {
		got = append(got, v.LimitStory(l)[1:]...)
	}
	want := []string{
		"At the end it holds 100 KiB: anon 4 KiB, other 96 KiB.", "Largest children then: /a/b 20 KiB.", "Largest processes then, by rss: q (20) 4 KiB.",
		"At the end it holds 24 KiB: anon 8 KiB, other 16 KiB.", "Largest processes then, by rss: q (21) 4 KiB.",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestHeldAtEnd(t *testing.T) {
	v := newVerdict(t, text.Format{}, charge(1, 7, 1, 100, event.Failed), stat(12, 0, 2, 25, "anon 4096\n"), child(stat(12, 0, 3, 5, "")))
	want := []string{
		"/a: memory limit of 100 pages (400 KiB) hit once, 1 charge failed; first at 1.0 ms by p (7).",
		"At the end it holds 100 KiB: anon 4 KiB, other 96 KiB.", "Largest children then: /a/b 20 KiB.",
	}
	if got := v.LimitStory(v.SortedLimits()[0]); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
