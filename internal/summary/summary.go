// Package summary adds up a trace: charges by cgroup, process and cause, balances, and
// reclaim. The limits that were hit and the OOM kills are in its Verdict. Its Sink writes
// nothing by itself: the command prints the tables at the end, another Sink writes them as
// JSON, and reports read the fields. It must not know sources or other sinks.
package summary

import (
	"chargetrace/internal/cause"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/verdict"
)

// Totals are sums over charges and reclaims.
type Totals struct {
	// Charges is the number of all charges, ChargedPages the pages of those that
	// succeeded. Sums over several kinds have those of kinds that add up
	// ([event.Kind.AddsUp]).
	Charges, ChargedPages uint64
	// Failures and BatchMisses are the numbers of charges that failed.
	Failures, BatchMisses uint64
	// FirstAtLimitNanos is the time of the first charge that hit a limit, on the clock
	// of [event.Event.BootNanos]; 0 if none did.
	FirstAtLimitNanos uint64
	// FirstNanos and LastNanos are the times of the first and the last charge or reclaim, on
	// the same clock.
	FirstNanos, LastNanos uint64
	// Reclaims is the number of reclaims, ReclaimNanos their total time, and FreedPages
	// the pages they freed.
	Reclaims, ReclaimNanos, FreedPages uint64
}

// AddCharge adds a charge, and its pages if they add up.
func (t *Totals) AddCharge(e *event.Event, addsUp bool) {
	t.Charges++
	t.lived(e.BootNanos, e.BootNanos)
	switch e.Outcome {
	case event.OK:
		if addsUp {
			t.ChargedPages += e.RequestedPages
		}
	case event.BatchMiss:
		t.BatchMisses++
	case event.Failed:
		t.Failures++
	}
	if t.FirstAtLimitNanos == 0 && (e.LimitHit() || e.Throttled()) {
		t.FirstAtLimitNanos = e.BootNanos
	}
}

// lived adds a time in which there were charges or reclaim.
func (t *Totals) lived(from, to uint64) {
	if t.FirstNanos == 0 {
		t.FirstNanos = from
	}
	t.LastNanos = to
}

// add adds the charges of later totals.
func (t *Totals) add(o *Totals) {
	t.lived(o.FirstNanos, o.LastNanos)
	t.Charges += o.Charges
	t.ChargedPages += o.ChargedPages
	t.Failures += o.Failures
	t.BatchMisses += o.BatchMisses
	if t.FirstAtLimitNanos == 0 {
		t.FirstAtLimitNanos = o.FirstAtLimitNanos
	}
}

// AddReclaim adds the end of a reclaim.
func (t *Totals) AddReclaim(e *event.Event) {
	t.lived(e.BootNanos, e.BootNanos)
	t.Reclaims++
	t.ReclaimNanos += e.DurationNanos
	t.FreedPages += e.FreedPages
}

// Process is a process, by its PID in the initial pid namespace.
type Process struct {
	PID uint32
	// Comm is the name of the last thread that charged.
	Comm event.Comm
	Totals
}

// maxProcesses limits the number of processes, so that a trace of weeks does not fill
// the memory.
const maxProcesses = 1 << 16

// Summary is a [stream.Sink]. Its memory grows with the number of cgroups and
// processes in the trace.
type Summary struct {
	*verdict.Verdict
	// Total is the sum over the whole trace.
	Total Totals
	// Causes are the charges with a stack by [cause.Cause], and OtherStacks the pages
	// charged with stacks of [cause.Other].
	Causes      map[cause.Cause]*Totals
	OtherStacks map[*cause.Stack]uint64
	// SlabCallers are the pages charged for slabs by the function that allocates.
	SlabCallers map[string]uint64
	// Kinds are the charges by [event.Kind]. Reclaim counts as memory's.
	Kinds []Totals
	// Cgroups are the charged cgroups, and those with reclaim.
	Cgroups map[event.CgroupID]*Totals
	// Processes are the charging processes by PID; Others is the sum of those beyond
	// maxProcesses.
	Processes map[uint32]*Process
	Others    Totals
	// Counts is set by Close.
	Counts stream.Counts
	// Columns is the width of the terminal that the summary is printed on; 0 is none, which
	// shortens no name.
	Columns int

	// run sums up the last charges with the same process, cgroup and kind. Until the end of
	// a Write its Totals are missing in the sums above.
	run run

	// Caches indexed by the ID or PID modulo the length: most events are of the few
	// processes that charge at the time.
	recentCgroups   [16]recentCgroup
	recentProcesses [16]*Process
}

type run struct {
	cgroup event.CgroupID
	pid    uint32
	comm   event.Comm // the last
	kind   event.Kind
	Totals
}

type recentCgroup struct {
	id     event.CgroupID
	totals *Totals
}

// New returns an empty Summary of a trace. It reads v, and does not feed it.
func New(v *verdict.Verdict) *Summary {
	return &Summary{
		Verdict: v,

		Kinds: make([]Totals, len(event.KindNames())+1),

		Causes:      make(map[cause.Cause]*Totals),
		OtherStacks: make(map[*cause.Stack]uint64),
		SlabCallers: make(map[string]uint64),
		Cgroups:     make(map[event.CgroupID]*Totals),
		Processes:   make(map[uint32]*Process),
	}
}

// Write adds the events of a batch. It does not fail.
func (s *Summary) Write(batch []event.Event) error {
	for i := range batch {
		e := &batch[i]
		switch e.Type {
		case event.Charge:
			s.addCharge(e)
		case event.ReclaimEnd:
			s.endRun()
			s.Total.AddReclaim(e)
			s.Kinds[event.Memory].AddReclaim(e)
			s.cgroup(e.Cgroup).AddReclaim(e)
			s.process(e.PID, &e.Comm).AddReclaim(e)
		}
	}
	s.endRun()
	return nil
}

// endRun adds the run to the sums.
func (s *Summary) endRun() {
	r := &s.run
	if r.Charges == 0 {
		return
	}
	s.Kinds[r.kind].add(&r.Totals)
	if !r.kind.AddsUp(s.Info.Kinds) {
		r.ChargedPages = 0
	}
	s.Total.add(&r.Totals)
	s.cgroup(r.cgroup).add(&r.Totals)
	s.process(r.pid, &r.comm).add(&r.Totals)
	r.Totals = Totals{}
}

// Close implements [stream.Sink].
func (s *Summary) Close(c stream.Counts) error {
	s.Lock() // a screen can still be shown
	defer s.Unlock()
	s.Counts, s.Numbers = c, s.numbers()
	return nil
}

func (s *Summary) addCharge(e *event.Event) {
	r := &s.run
	if r.pid != e.PID || r.cgroup != e.Cgroup || r.kind != e.Kind {
		s.endRun()
		r.pid, r.cgroup, r.kind = e.PID, e.Cgroup, e.Kind
	}
	r.comm = e.Comm
	r.AddCharge(e, e.Kind != event.Dmem)
	if e.KernelStack != 0 {
		s.addCause(e)
	}
}

// maxOtherStacks limits the numbers of OtherStacks and of SlabCallers.
const maxOtherStacks = 1 << 10

func (s *Summary) addCause(e *event.Event) {
	c := s.Stacks.Cause(e)
	t := s.Causes[c]
	if t == nil {
		t = new(Totals)
		s.Causes[c] = t
	}
	t.AddCharge(e, e.Kind.AddsUp(s.Info.Kinds))
	switch stack := s.Stacks.Kernel(e); c {
	case cause.Other:
		addBounded(s.OtherStacks, stack, e.RequestedPages)
	case cause.Slab:
		if e.Outcome == event.OK {
			addBounded(s.SlabCallers, stack.SlabCaller(), e.RequestedPages)
		}
	}
}

// addBounded adds to the sum of a key, unless it is new and there are maxOtherStacks.
func addBounded[K comparable](sums map[K]uint64, key K, pages uint64) {
	if _, ok := sums[key]; ok || len(sums) < maxOtherStacks {
		sums[key] += pages
	}
}

func (s *Summary) cgroup(id event.CgroupID) *Totals {
	recent := &s.recentCgroups[id.ID%uint64(len(s.recentCgroups))]
	if recent.totals != nil && recent.id == id {
		return recent.totals
	}
	t := s.Cgroups[id]
	if t == nil {
		t = new(Totals)
		s.Cgroups[id] = t
	}
	*recent = recentCgroup{id, t}
	return t
}

func (s *Summary) process(pid uint32, comm *event.Comm) *Totals {
	recent := &s.recentProcesses[pid%uint32(len(s.recentProcesses))]
	p := *recent
	if p == nil || p.PID != pid {
		p = s.Processes[pid]
	}
	if p == nil {
		if len(s.Processes) >= maxProcesses {
			return &s.Others
		}
		p = &Process{PID: pid}
		s.Processes[pid] = p
	}
	*recent = p
	p.Comm = *comm
	return &p.Totals
}
