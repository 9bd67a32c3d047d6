package verdict

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"chargetrace/internal/event"
	"chargetrace/internal/text"
)

// Held is what a cgroup held when its files were read: after the OOM killer ran, or at the end
// of the trace.
type Held struct {
	BootNanos uint64
	// UsagePages is its usage; -1: unknown.
	UsagePages int64
	// Parts are what of it is charged for, the largest first.
	Parts []Part
	// Children are the largest ones, and Processes those with the largest rss in it and below
	// it, victims aside.
	Children  []Child
	Processes []event.Victim
	// NoSwapAt is the nearest level whose memory.swap.max is 0, on a machine with swap; zero:
	// none.
	NoSwapAt event.CgroupID
}

// Part is a part of a cgroup's memory.
type Part struct {
	Name  string // in a sentence
	Key   string // for programs
	Bytes uint64
}

// Child is a child of a cgroup.
type Child struct {
	Cgroup     event.CgroupID
	UsagePages int64
}

// statParts are the parts in memory.stat, of cgroup v2 and v1.
var statParts = []struct{ name, key, v2, v1 string }{
	{"anon", "anon", "anon", "total_rss"},
	{"page cache", "page_cache", "file", "total_cache"},
	{"shmem (tmpfs, shared memory)", "shmem", "shmem", "total_shmem"},
	{"slab", "slab", "slab", ""},
	{"kernel stacks", "kernel_stack", "kernel_stack", ""},
	{"page tables", "page_tables", "pagetables", ""},
	{"sockets", "sock", "sock", ""},
	{"percpu", "percpu", "percpu", ""},
	{"vmalloc", "vmalloc", "vmalloc", ""},
	{"zswap", "zswap", "zswap", ""},
	{"hugetlb", "hugetlb", "hugetlb", ""},
	{"page tables of guests", "sec_page_tables", "sec_pagetables", ""},
}

const cachePart, shmemPart = 1, 2

// addStat adds what was read of a cgroup or of one of its children.
func (v *Verdict) addStat(e *event.Event) {
	r := &v.reading
	if e.ParentID != 0 {
		if r.Held != nil && r.cgroup == e.InCgroup(e.ParentID) && r.oomNanos == e.OOMNanos && len(r.Children) < maxHeld {
			r.Children = append(r.Children, Child{e.Cgroup, e.UsagePages})
		}
		return
	}
	h := &Held{BootNanos: e.BootNanos, UsagePages: e.UsagePages}
	h.addStat(e)
	*r = reading{h, e.Cgroup, e.OOMNanos, nil}
	if e.OOMNanos == 0 {
		v.AtEnd[e.Cgroup] = h
		return
	}
	if r.oom = v.byStart[e.OOMNanos]; r.oom != nil && r.oom.Cgroup == e.Cgroup && r.oom.Held == nil {
		r.oom.Held = h
	}
}

// addHeld adds a process, unless it was killed and has not exited yet.
func (v *Verdict) addHeld(e *event.Event) {
	r := &v.reading
	if r.Held == nil || r.cgroup != e.Cgroup || r.oomNanos != e.OOMNanos || len(r.Processes) == maxHeld || r.oom != nil && r.oom.killed[e.Victim.PID] {
		return
	}
	r.Processes = append(r.Processes, e.Victim)
}

// maxHeld bounds the numbers of children and of processes.
const maxHeld = 64

// reading is the latest reading of a cgroup, to which events of its children and processes
// belong.
type reading struct {
	*Held
	cgroup   event.CgroupID
	oomNanos uint64
	oom      *OOM // nil: at the end of the trace
}

// addStat adds the content of memory.stat.
func (h *Held) addStat(e *event.Event) {
	values := make(map[string]uint64)
	for line := range strings.Lines(e.Stat) {
		name, number, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if n, err := strconv.ParseUint(number, 10, 63); err == nil {
			values[name] = n
		}
	}
	if at, ok := values[".no_swap_at"]; ok {
		h.NoSwapAt = e.InCgroup(at)
	}
	h.Parts = make([]Part, len(statParts))
	for i, p := range statParts {
		name := p.v2
		if e.Cgroup.Hierarchy != 0 {
			name = p.v1
		}
		h.Parts[i] = Part{p.name, p.key, values[name]}
	}
	// The page cache of memory.stat includes shmem and the swap cache, which is anon too.
	h.Parts[cachePart].Bytes -= min(h.Parts[cachePart].Bytes, h.Parts[shmemPart].Bytes+values["swapcached"])
	h.Parts = slices.DeleteFunc(h.Parts, func(p Part) bool { return p.Bytes == 0 })
	slices.SortStableFunc(h.Parts, func(a, b Part) int { return cmp.Compare(b.Bytes, a.Bytes) })
}

// TellHeld writes what a cgroup held, in sentences: "2.1 ms later it held 28.3 MiB: shmem (tmpfs,
// shared memory) 28.0 MiB, anon 120 KiB". when is how they begin. victims reports whether
// others were killed there.
func (v *Verdict) TellHeld(h *Held, when string, victims bool) (sentences []string) {
	s := when + " "
	if h.UsagePages >= 0 {
		s += v.Format.Size(h.UsagePages)
	} else {
		s += "this"
	}
	parts := h.Parts
	rest := h.UsagePages * int64(v.Format.PageSize)
	for _, p := range parts {
		rest -= int64(p.Bytes)
	}
	if len(parts) > 0 && rest > h.UsagePages*int64(v.Format.PageSize)/20 {
		parts = append(slices.Clip(parts), Part{Name: "other", Bytes: uint64(rest)})
	}
	sentences = append(sentences, s+list(parts, func(p *Part) string { return p.Name + " " + v.Format.Bytes(int64(p.Bytes)) })+".")
	if len(h.Children) > 0 {
		sentences = append(sentences, "Largest children then"+list(h.Children, func(c *Child) string { return v.Name(c.Cgroup) + " " + v.Format.Size(c.UsagePages) })+".")
	}
	if len(h.Processes) > 0 {
		processes := "Largest processes then, by rss"
		if victims {
			processes = "Largest other processes then, by rss"
		}
		sentences = append(sentences, processes+list(h.Processes, func(p *event.Victim) string { return p.Comm.Of(p.PID) + " " + v.Format.Size(int64(p.HeldPages())) })+".")
	}
	if h.NoSwapAt.ID != 0 {
		sentences = append(sentences, "It could not swap: memory.swap.max of "+v.Name(h.NoSwapAt)+" is 0.")
	}
	return sentences
}

// list writes the first items after a colon, or nothing.
func list[T any](items []T, tell func(*T) string) string {
	const most = 6
	var words []string
	for i := range items[:min(len(items), most)] {
		words = append(words, tell(&items[i]))
	}
	if len(items) > most {
		words = append(words, "and more")
	}
	if len(words) == 0 {
		return ""
	}
	return ": " + strings.Join(words, ", ")
}

// later writes the time between two events.
func later(from, to uint64) string { return text.Duration(int64(to - min(from, to))) }
