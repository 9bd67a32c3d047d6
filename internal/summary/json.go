package summary

import (
	"cmp"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"time"

	"chargetrace/internal/cause"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/verdict"
)

// jsonVersion is the version of the form below. It changes when a member is removed or
// changes its meaning, not when one is added.
const jsonVersion = 2

// NewJSON returns a Sink that writes the summary as one JSON object when it is closed. Events
// go to the summary first.
//
// The members have the units in their names: _ns for nanoseconds, those of times since the
// trace began, and _pages; amounts of device memory (kind dmem) are bytes instead. null stands
// for a missing value. Names are escaped as in the table. label is the cgroup's in the table,
// and container its runtime, id, name, namespace, pod, and pod_uid, or null. Arrays have the order
// of the tables:
//
//	version      2; it changes when a member is removed or changes its meaning
//	program, command_line, host, kernel_release, architecture, attach
//	page_size    in bytes
//	start        wall-clock time
//	counts       of charges: seen, shown, filtered, lost; lost_others are other events, missed
//	             are calls that no program saw, whole is false if these are unknown
//	headline     the trace in a line
//	text         what ran out and which limits were hit, in sentences
//	ooms         runs of the OOM killer: time_ns, wall_time, scope (whose memory ran out:
//	             cgroup; machine, or for the results task_exits and nofs perhaps some of its
//	             memory nodes; cpuset and mempolicy, its memory nodes; unknown_cgroup, the
//	             victim's or one above it, since the start was not seen), cgroup (null for
//	             another scope), cgroup_id, hierarchy, label, container, pid, tid, comm of its task,
//	             trigger (failed_charge, failed_allocation, limit_lowered, requested, or
//	             unknown: an older recording, or the start was not seen), kind, max_pages of the
//	             limit, usage_pages, full_since_ns (charges hit the limit from then on),
//	             order (of a failed allocation, of 1 << order pages), remote (the task was
//	             charging another cgroup than its own), reclaim up to then, since the OOM before, chargers up to
//	             then, recent_chargers in the last recent_ns, kills, victims, group (whether
//	             by memory.oom.group), result and runs: how often it ran and killed nobody
//	             (no_victim, victim_exits, task_exits, disabled, nofs), null if it killed;
//	             again, how often it ran right after that without a kill; last_ns, the time of
//	             the last kill or run
//	  reclaim    runs, duration_ns, freed_pages
//	  chargers   pid, comm, pages, cache_pages: who charged most to the cgroup;
//	             recent_chargers, without cache_pages, are empty if the trace is shorter than
//	             about a minute
//	  kills      how often it killed: the kernel can kill a process of a group twice
//	  held       what the cgroup held afterwards, null if unknown: time_ns, usage_pages, bytes
//	             (those that are not 0 of anon, page_cache, shmem, slab, kernel_stack,
//	             page_tables, sec_page_tables, sock, percpu, vmalloc, zswap, hugetlb), children
//	             (cgroup, usage_pages), processes (like victims), no_swap_at: the cgroup whose
//	             memory.swap.max is 0, on a machine with swap
//	  victims    pid, comm, rss_pages, anon_pages, file_pages, shmem_pages, swap_pages,
//	             page_table_bytes
//	limits       those that were hit: cgroup, cgroup_id, hierarchy, label, container, kind, high
//	             (whether it is memory.high or memory.swap.high), max_pages, hits, failures,
//	             first_ns, pid, comm, held at the end of the trace, and for memory.high sleeps
//	             and sleep_ns, how often and about how long tasks slept
//	total, kinds, cgroups, processes, causes
//	             charges, charged_pages, failures, batch_misses, first_hit_ns, reclaims,
//	             reclaim_ns, freed_pages, first_ns, last_ns; in all, by kind, by cgroup, by pid
//	             and comm, by cause.
//	             A process with pid null has all that are too many to list
//	balances     of counters and those below them, in a trace with -net: cgroup, cgroup_id,
//	             hierarchy, label, container, kind, charged_pages, forced_pages, uncharged_pages,
//	             begin_pages and end_pages, the readings of memory.current
func NewJSON(w io.Writer, s *Summary) stream.Sink { return &jsonSink{w, s} }

type jsonSink struct {
	w io.Writer
	s *Summary
}

func (j *jsonSink) Write([]event.Event) error { return nil }

func (j *jsonSink) Close(c stream.Counts) error {
	e := json.NewEncoder(j.w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(j.s.document(c))
}

type document struct {
	Version     int              `json:"version"`
	Program     string           `json:"program"`
	CommandLine []string         `json:"command_line"`
	Host        string           `json:"host"`
	Kernel      string           `json:"kernel_release"`
	Arch        string           `json:"architecture"`
	Attach      string           `json:"attach"`
	PageSize    int              `json:"page_size"`
	Start       string           `json:"start"`
	Counts      jsonCounts       `json:"counts"`
	Headline    string           `json:"headline"`
	Text        []string         `json:"text"`
	OOMs        []jsonOOM        `json:"ooms"`
	Limits      []jsonLimit      `json:"limits"`
	Total       jsonTotals       `json:"total"`
	Kinds       []jsonKind       `json:"kinds"`
	Cgroups     []jsonCgroupSums `json:"cgroups"`
	Processes   []jsonProcess    `json:"processes"`
	Causes      []jsonCause      `json:"causes"`
	Balances    []jsonBalance    `json:"balances"`
}

type jsonCounts struct {
	Whole      bool   `json:"whole"`
	Seen       uint64 `json:"seen"`
	Shown      uint64 `json:"shown"`
	Filtered   uint64 `json:"filtered"`
	Lost       uint64 `json:"lost"`
	LostOthers uint64 `json:"lost_others"`
	Missed     uint64 `json:"missed"`
}

type jsonCgroup struct {
	Cgroup    *string        `json:"cgroup"`
	CgroupID  uint64         `json:"cgroup_id"`
	Hierarchy uint32         `json:"hierarchy"`
	Label     *string        `json:"label"`
	Container *jsonContainer `json:"container"`
}

type jsonContainer struct {
	Runtime   string `json:"runtime"`
	ID        string `json:"id"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	PodUID    string `json:"pod_uid"`
}

type jsonOOM struct {
	TimeNanos int64         `json:"time_ns"`
	WallTime  string        `json:"wall_time"`
	Scope     verdict.Scope `json:"scope"`
	jsonCgroup
	PID         uint32          `json:"pid"`
	TID         uint32          `json:"tid"`
	Comm        string          `json:"comm"`
	Trigger     verdict.Trigger `json:"trigger"`
	Kind        *string         `json:"kind"`
	MaxPages    *uint64         `json:"max_pages"`
	Usage       *int64          `json:"usage_pages"`
	FullSince   *int64          `json:"full_since_ns"`
	Order       *int32          `json:"order"`
	Remote      bool            `json:"remote"`
	Reclaim     jsonReclaim     `json:"reclaim"`
	Chargers    []jsonCharger   `json:"chargers"`
	Recent      []jsonCharger   `json:"recent_chargers"`
	RecentNanos uint64          `json:"recent_ns"`
	Kills       int             `json:"kills"`
	Result      *string         `json:"result"`
	Runs        uint64          `json:"runs"`
	Again       uint64          `json:"again"`
	Group       bool            `json:"group"`
	LastNanos   int64           `json:"last_ns"`
	Victims     []jsonVictim    `json:"victims"`
	Held        *jsonHeld       `json:"held"`
}

type jsonHeld struct {
	TimeNanos int64             `json:"time_ns"`
	Usage     *int64            `json:"usage_pages"`
	Parts     map[string]uint64 `json:"bytes"`
	Children  []jsonChild       `json:"children"`
	Processes []jsonVictim      `json:"processes"`
	NoSwapAt  *string           `json:"no_swap_at"`
}

type jsonChild struct {
	Cgroup     string `json:"cgroup"`
	UsagePages int64  `json:"usage_pages"`
}

type jsonReclaim struct {
	Runs       uint64 `json:"runs"`
	Nanos      uint64 `json:"duration_ns"`
	FreedPages uint64 `json:"freed_pages"`
}

type jsonCharger struct {
	PID        uint32 `json:"pid"`
	Comm       string `json:"comm"`
	Pages      int64  `json:"pages"`
	CachePages *int64 `json:"cache_pages"`
}

type jsonVictim struct {
	PID        uint32 `json:"pid"`
	Comm       string `json:"comm"`
	RSSPages   uint64 `json:"rss_pages"`
	AnonPages  uint64 `json:"anon_pages"`
	FilePages  uint64 `json:"file_pages"`
	ShmemPages uint64 `json:"shmem_pages"`
	SwapPages  uint64 `json:"swap_pages"`
	PageTables uint64 `json:"page_table_bytes"`
}

type jsonLimit struct {
	jsonCgroup
	Kind       string  `json:"kind"`
	High       bool    `json:"high"`
	MaxPages   *uint64 `json:"max_pages"`
	Hits       uint64  `json:"hits"`
	Failures   uint64  `json:"failures"`
	FirstNanos int64   `json:"first_ns"`
	PID        uint32  `json:"pid"`
	Comm       string  `json:"comm"`
	Sleeps     uint64  `json:"sleeps"`
	SleepNanos uint64  `json:"sleep_ns"`

	Held *jsonHeld `json:"held"`
}

type jsonTotals struct {
	Charges       uint64 `json:"charges"`
	ChargedPages  uint64 `json:"charged_pages"`
	Failures      uint64 `json:"failures"`
	BatchMisses   uint64 `json:"batch_misses"`
	FirstHitNanos *int64 `json:"first_hit_ns"`
	Reclaims      uint64 `json:"reclaims"`
	ReclaimNanos  uint64 `json:"reclaim_ns"`
	FreedPages    uint64 `json:"freed_pages"`
	FirstNanos    *int64 `json:"first_ns"`
	LastNanos     *int64 `json:"last_ns"`
}

type jsonKind struct {
	Kind string `json:"kind"`
	jsonTotals
}

type jsonCgroupSums struct {
	jsonCgroup
	jsonTotals
}

type jsonProcess struct {
	PID  *uint32 `json:"pid"`
	Comm *string `json:"comm"`
	jsonTotals
}

type jsonCause struct {
	Cause string `json:"cause"`
	jsonTotals
}

type jsonBalance struct {
	jsonCgroup
	Kind           string `json:"kind"`
	ChargedPages   uint64 `json:"charged_pages"`
	ForcedPages    uint64 `json:"forced_pages"`
	UnchargedPages uint64 `json:"uncharged_pages"`
	BeginPages     *int64 `json:"begin_pages"`
	EndPages       *int64 `json:"end_pages"`
}

// document returns the object. Its arrays are not nil, so that they are never null.
func (s *Summary) document(c stream.Counts) *document {
	d := &document{
		Version: jsonVersion, Program: s.Info.Program, CommandLine: []string{}, Host: event.Printable(s.Info.Host),
		Kernel: event.Printable(s.Info.Kernel), Arch: event.Printable(s.Info.Arch), Attach: event.Printable(s.Info.Attach),
		PageSize: s.Info.PageSize, Start: s.wallTime(s.Info.StartBootNanos),
		Counts:   jsonCounts{c.Whole, c.Seen, c.Shown, c.Filtered + c.Read - c.Shown, c.Lost, c.LostNonCharge, c.Missed},
		Headline: s.Headline(), Text: []string{}, OOMs: []jsonOOM{}, Limits: []jsonLimit{}, Total: s.totals(&s.Total),
		Kinds: []jsonKind{}, Cgroups: []jsonCgroupSums{}, Processes: []jsonProcess{}, Causes: []jsonCause{}, Balances: []jsonBalance{},
	}
	for _, arg := range s.Info.CommandLine {
		d.CommandLine = append(d.CommandLine, event.Printable(arg))
	}
	for _, o := range s.OOMs {
		d.Text = append(d.Text, s.Story(o)...)
		d.OOMs = append(d.OOMs, s.oom(o))
	}
	for _, l := range s.SortedLimits() {
		d.Text = append(d.Text, s.LimitStory(l)...)
		d.Limits = append(d.Limits, jsonLimit{s.cgroupOf(l.Cgroup), l.Kind.String(), l.High, known(l.MaxPages), l.Hits, l.Failures,
			s.sinceStart(l.FirstNanos), l.ByPID, l.ByComm.String(), l.Sleeps, l.SleepNanos, s.held(s.AtEnd[l.Cgroup])})
	}
	for k := range s.Kinds {
		if t := &s.Kinds[k]; t.Charges > 0 || t.Reclaims > 0 {
			d.Kinds = append(d.Kinds, jsonKind{event.Kind(k).String(), s.totals(t)})
		}
	}
	for _, id := range s.sortedCgroups() {
		d.Cgroups = append(d.Cgroups, jsonCgroupSums{s.cgroupOf(id), s.totals(s.Cgroups[id])})
	}
	for _, p := range s.sortedProcesses() {
		comm := p.Comm.String()
		d.Processes = append(d.Processes, jsonProcess{&p.PID, &comm, s.totals(&p.Totals)})
	}
	if s.Others.Charges > 0 {
		d.Processes = append(d.Processes, jsonProcess{nil, nil, s.totals(&s.Others)})
	}
	for _, cause := range s.sortedCauses() {
		d.Causes = append(d.Causes, jsonCause{cause.String(), s.totals(s.Causes[cause])})
	}
	if s.Balances != nil {
		for _, b := range s.Balances.Sorted(&s.Names) {
			j := jsonBalance{s.cgroupOf(b.Counter.Cgroup), b.Counter.Kind.String(), b.ChargedPages, b.ForcedPages, b.UnchargedPages, nil, nil}
			if begin, end, ok := b.Readings(); ok {
				j.BeginPages, j.EndPages = &begin, &end
			}
			d.Balances = append(d.Balances, j)
		}
	}
	return d
}

func (s *Summary) oom(o *verdict.OOM) jsonOOM {
	j := jsonOOM{
		TimeNanos: s.sinceStart(o.BootNanos), WallTime: s.wallTime(o.BootNanos), Scope: o.Scope, jsonCgroup: s.cgroupOf(o.Cgroup),
		PID: o.PID, TID: o.TID, Comm: o.Comm.String(), Trigger: o.Trigger, MaxPages: known(o.MaxPages),
		Reclaim:  jsonReclaim{o.Reclaim.Runs, o.Reclaim.Nanos, o.Reclaim.FreedPages},
		Chargers: s.chargers(o.Chargers, s.Info.KernelStacks), Recent: s.chargers(o.Recent, false), RecentNanos: o.RecentNanos,
		Kills: o.Kills, Runs: max(1, o.Runs), Again: o.Again, Victims: processes(o.Victims), Held: s.held(o.Held),
	}
	if o.Trigger == verdict.FailedCharge || o.Trigger == verdict.LimitLowered {
		kind := o.Kind.String()
		j.Kind = &kind
	}
	if o.UsagePages >= 0 {
		j.Usage = &o.UsagePages
	}
	if o.Result != 0 {
		result := o.Result.String()
		j.Result = &result
	}
	j.Remote, j.Group, j.LastNanos = o.Remote, o.Group, s.sinceStart(o.LastNanos)
	if o.Trigger == verdict.FailedAllocation && o.Order >= 0 {
		j.Order = &o.Order
	}
	j.FullSince = s.sinceStartOrNil(o.FullSinceNanos)
	return j
}

func (s *Summary) chargers(all []verdict.Charger, withCache bool) []jsonCharger {
	list := []jsonCharger{}
	for i := range all {
		c := &all[i]
		charger := jsonCharger{PID: c.PID, Comm: c.Comm.String(), Pages: c.Pages}
		if withCache {
			charger.CachePages = &c.CachePages
		}
		list = append(list, charger)
	}
	return list
}

func processes(all []event.Victim) []jsonVictim {
	list := []jsonVictim{}
	for i := range all {
		v := &all[i]
		list = append(list, jsonVictim{v.PID, v.Comm.String(), v.HeldPages(), v.AnonPages, v.FilePages, v.ShmemPages, v.SwapPages, v.PageTableBytes})
	}
	return list
}

func (s *Summary) held(h *verdict.Held) *jsonHeld {
	if h == nil {
		return nil
	}
	j := &jsonHeld{TimeNanos: s.sinceStart(h.BootNanos), Parts: make(map[string]uint64), Children: []jsonChild{}, Processes: processes(h.Processes)}
	if h.UsagePages >= 0 {
		j.Usage = &h.UsagePages
	}
	for _, p := range h.Parts {
		j.Parts[p.Key] = p.Bytes
	}
	for _, c := range h.Children {
		j.Children = append(j.Children, jsonChild{s.Names.Printable(c.Cgroup), c.UsagePages})
	}
	if h.NoSwapAt.ID != 0 {
		path := s.Names.Printable(h.NoSwapAt)
		j.NoSwapAt = &path
	}
	return j
}

func (s *Summary) cgroupOf(id event.CgroupID) jsonCgroup {
	j := jsonCgroup{CgroupID: id.ID, Hierarchy: id.Hierarchy}
	if id.ID == 0 {
		return j
	}
	path, label := s.Names.Printable(id), s.Names.Label(id)
	j.Cgroup, j.Label = &path, &label
	if i := s.Names.Identity(id); i.IsContainer() || i.HasPod() {
		j.Container = &jsonContainer{i.Runtime, i.ID, i.Name, i.Namespace, i.Pod, i.PodUID}
	}
	return j
}

func (s *Summary) totals(t *Totals) jsonTotals {
	return jsonTotals{
		t.Charges, t.ChargedPages, t.Failures, t.BatchMisses, s.sinceStartOrNil(t.FirstAtLimitNanos), t.Reclaims, t.ReclaimNanos, t.FreedPages,
		s.sinceStartOrNil(t.FirstNanos), s.sinceStartOrNil(t.LastNanos),
	}
}

func (s *Summary) sinceStartOrNil(bootNanos uint64) *int64 {
	if bootNanos == 0 {
		return nil
	}
	nanos := s.sinceStart(bootNanos)
	return &nanos
}

// known returns the size of a limit, or nil if it is unknown.
func known(maxPages uint64) *uint64 {
	if maxPages == verdict.UnknownLimit {
		return nil
	}
	return &maxPages
}

func (s *Summary) sinceStart(bootNanos uint64) int64 { return int64(bootNanos - s.Info.StartBootNanos) }

func (s *Summary) wallTime(bootNanos uint64) string {
	return s.Format.Wall(bootNanos).UTC().Format(time.RFC3339Nano)
}

// sortedCgroups returns the cgroups that charged most first.
func (s *Summary) sortedCgroups() []event.CgroupID {
	return slices.SortedFunc(maps.Keys(s.Cgroups), func(a, b event.CgroupID) int {
		return cmp.Or(byCharged(s.Cgroups[a], s.Cgroups[b]), cmp.Compare(a.Hierarchy, b.Hierarchy), cmp.Compare(a.ID, b.ID))
	})
}

// sortedProcesses returns the processes that charged most first.
func (s *Summary) sortedProcesses() []*Process {
	return slices.SortedFunc(maps.Values(s.Processes), func(a, b *Process) int {
		return cmp.Or(byCharged(&a.Totals, &b.Totals), cmp.Compare(a.PID, b.PID))
	})
}

// sortedCauses returns the causes of most charged pages first.
func (s *Summary) sortedCauses() []cause.Cause {
	return slices.SortedFunc(maps.Keys(s.Causes), func(a, b cause.Cause) int {
		return cmp.Or(byCharged(s.Causes[a], s.Causes[b]), cmp.Compare(a, b))
	})
}

// byCharged compares by charged pages, the most first.
func byCharged(a, b *Totals) int {
	return cmp.Or(cmp.Compare(b.ChargedPages, a.ChargedPages), cmp.Compare(b.Charges, a.Charges))
}
