// Package verdict says what ran out of memory in a trace, at which limit, what set it off,
// and who was killed. It is computed once, from the events, and all outputs tell it in its
// words. It must not know a sink.
package verdict

import (
	"cmp"
	"iter"
	"maps"
	"slices"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
	"chargetrace/internal/world"
)

// Verdict is a [stream.Sink]. Its memory grows with the number of limits and of OOM kills.
type Verdict struct {
	*world.World
	// Format is how it writes amounts and times.
	Format text.Format
	// NameWidth is the number of characters of a cgroup's name in a sentence.
	NameWidth int

	// Limits are the limits that were hit; see HitsOf.
	Limits map[LimitID]*Limit
	// OOMs are the runs of the OOM killer, and Kills its victims, in the order of the events.
	OOMs  []*OOM
	Kills []*Kill
	// AtEnd is what cgroups held at the end of the trace in which charges failed.
	AtEnd map[event.CgroupID]*Held
	// Lost means that events other than charges were lost: there may be more OOMs and Kills.
	Lost bool

	// reclaims are the sums of reclaim by the cgroup that it was for.
	reclaims map[event.CgroupID]*Reclaim
	chargers chargers
	failures map[uint32]failure // the last of each thread
	// running is the OOM of the last kill; in older recordings, until its thread charges. The
	// kernel runs one OOM killer at a time (oom_lock in mm/oom_kill.c).
	running *OOM
	// byStart are the OOMs by event.Event.OOMNanos, of several runs the last.
	byStart map[uint64]*OOM
	// idle are the OOMs that killed nobody, and killed the last that did by its cgroup.
	idle    map[idleID]*OOM
	killed  map[event.CgroupID]*OOM
	reading reading
}

// New returns the Verdict on an empty trace.
func New(w *world.World, f text.Format) *Verdict {
	f.PageSize, f.StartBootNanos, f.BootWallNanos = w.Info.PageSize, w.Info.StartBootNanos, w.Info.BootWallNanos
	return &Verdict{
		World: w, Format: f, NameWidth: text.MaxName,
		Limits:   make(map[LimitID]*Limit),
		reclaims: make(map[event.CgroupID]*Reclaim),
		chargers: chargers{byID: make(map[chargerID]*charger)},
		failures: make(map[uint32]failure),
		byStart:  make(map[uint64]*OOM),
		idle:     make(map[idleID]*OOM),
		killed:   make(map[event.CgroupID]*OOM),
		AtEnd:    make(map[event.CgroupID]*Held),
	}
}

// Feed returns a Sink that adds events to the World and to the Verdict, and passes them on.
func (v *Verdict) Feed(dst stream.Sink) stream.Sink { return v.World.Feed(stream.Tee(v, dst)) }

// Write adds the events of a batch. It does not fail.
func (v *Verdict) Write(batch []event.Event) error {
	for i := range batch {
		e := &batch[i]
		switch e.Type {
		case event.Charge:
			if o := v.running; o != nil && o.last == 0 && o.TID == e.TID && e.Flags&event.Remote == 0 {
				v.running = nil
			}
			if e.Kind == event.Memory && e.Outcome == event.OK {
				v.chargers.add(e, v.isCache(e))
			}
			for id, maxPages := range HitsOf(e) {
				v.addHit(e, id, maxPages)
			}
		case event.ForcedCharge, event.Uncharge:
			if e.Kind == event.Memory {
				v.chargers.add(e, false)
			}
		case event.ReclaimEnd:
			v.Reclaim(e.Cgroup).add(e)
		case event.OOMKill:
			v.addKill(e)
		case event.OOM:
			v.addIdle(e)
		case event.Throttle:
			v.addSleep(e)
		case event.MemoryStat:
			v.addStat(e)
		case event.Held:
			v.addHeld(e)
		}
	}
	return nil
}

// Close implements [stream.Sink].
func (v *Verdict) Close(c stream.Counts) error {
	v.Lost = c.LostNonCharge > 0
	return nil
}

// LimitID identifies a limit of a page counter.
type LimitID struct {
	event.CounterID
	// High is set for memory.high, which throttles. Others fail charges.
	High bool
}

// String returns a name such as "memory limit" or "memory.high".
func (id LimitID) String() string {
	if id.High {
		return "memory.high"
	}
	return id.Kind.String() + " limit"
}

// Limit is a limit that was hit.
type Limit struct {
	LimitID
	// MaxPages is the limit at the last hit whose event has it, or [UnknownLimit]; bytes for
	// [event.Dmem]. A limit can be 0.
	MaxPages uint64
	// Hits is the number of charges that failed or found the limit reached, Failures
	// the number of those that failed. For High, Hits are the throttled ones.
	Hits, Failures uint64
	// Sleeps is how often a task slept for High, SleepNanos how long all did, at most, and
	// Sleepers the tasks.
	Sleeps, SleepNanos uint64
	Sleepers           []Sleeper
	// FirstNanos is the time of the first hit, ByPID and ByComm its process.
	FirstNanos uint64
	ByPID      uint32
	ByComm     event.Comm
}

// Sleeper is a process that slept for memory.high.
type Sleeper struct {
	PID   uint32
	Comm  event.Comm
	Nanos uint64
}

// UnknownLimit is the size of a limit that the trace does not have: a charge failed at
// another level than its counter and the one with the least room.
const UnknownLimit = ^uint64(0)

// HitsOf returns the limits that a charge hit: the one that it failed at or found reached, and
// the memory.high that it left exceeded. The sizes may be [UnknownLimit].
func HitsOf(e *event.Event) iter.Seq2[LimitID, uint64] {
	return func(yield func(LimitID, uint64) bool) {
		if e.LimitHit() && !yield(limitOf(e)) {
			return
		}
		if e.Throttled() {
			yield(LimitID{event.CounterID{Cgroup: e.InCgroup(e.High.CgroupID), Kind: e.Kind}, true}, e.High.MaxPages)
		}
	}
}

// limitOf returns the limit that a charge failed at or found reached.
func limitOf(e *event.Event) (id LimitID, maxPages uint64) {
	at, max := e.Limiting.CgroupID, e.Limiting.MaxPages
	if e.Outcome == event.Failed && e.FailedAt != at {
		at, max = e.FailedAt, UnknownLimit
		if at == e.Cgroup.ID {
			max = e.MaxPages
		}
	}
	return LimitID{event.CounterID{Cgroup: e.InCgroup(at), Kind: e.Kind}, false}, max
}

func (v *Verdict) addHit(e *event.Event, id LimitID, maxPages uint64) {
	l := v.Limits[id]
	if l == nil {
		l = NewLimit(id, e)
		v.Limits[id] = l
	}
	l.Add(e, maxPages)
	if e.Outcome == event.Failed && (id.Kind == event.Memory || id.Kind == event.Memsw) {
		if len(v.failures) >= maxFailures {
			clear(v.failures)
		}
		v.failures[e.TID] = failure{id.CounterID, maxPages}
	}
}

// NewLimit returns a limit without hits. e will be the first.
func NewLimit(id LimitID, e *event.Event) *Limit {
	return &Limit{LimitID: id, MaxPages: UnknownLimit, FirstNanos: e.BootNanos, ByPID: e.PID, ByComm: e.Comm}
}

// Add counts a hit of the limit, whose size is maxPages.
func (l *Limit) Add(e *event.Event, maxPages uint64) {
	l.Hits++
	if e.Outcome == event.Failed {
		l.Failures++
	}
	if maxPages != UnknownLimit {
		l.MaxPages = maxPages
	}
}

// maxSleepers bounds the number of Sleepers of a limit.
const maxSleepers = 64

// HighOf returns the limit of a sleep for memory.high.
func HighOf(e *event.Event) LimitID {
	return LimitID{event.CounterID{Cgroup: e.Cgroup, Kind: event.Memory}, true}
}

func (v *Verdict) addSleep(e *event.Event) {
	id := HighOf(e)
	l := v.Limits[id]
	if l == nil {
		l = NewLimit(id, e)
		v.Limits[id] = l
	}
	l.AddSleep(e)
}

// AddSleep adds a sleep for memory.high.
func (l *Limit) AddSleep(e *event.Event) {
	l.MaxPages = e.MaxPages
	l.Sleeps++
	l.SleepNanos += e.DurationNanos
	i := slices.IndexFunc(l.Sleepers, func(s Sleeper) bool { return s.PID == e.PID })
	if i < 0 {
		if i = len(l.Sleepers); i == maxSleepers {
			return
		}
		l.Sleepers = append(l.Sleepers, Sleeper{PID: e.PID})
	}
	l.Sleepers[i].Comm = e.Comm
	l.Sleepers[i].Nanos += e.DurationNanos
}

// SortedLimits returns the limits with the most failures first, then those with the longest
// sleeps, then the most hits.
func (v *Verdict) SortedLimits() []*Limit {
	return slices.SortedFunc(maps.Values(v.Limits), func(a, b *Limit) int {
		return cmp.Or(cmp.Compare(b.Failures, a.Failures), cmp.Compare(b.SleepNanos, a.SleepNanos), cmp.Compare(b.Hits, a.Hits), cmp.Compare(a.FirstNanos, b.FirstNanos),
			cmp.Compare(a.Cgroup.ID, b.Cgroup.ID), cmp.Compare(a.Kind, b.Kind))
	})
}

// failure is a charge that failed at a limit for which the kernel runs the OOM killer.
type failure struct {
	counter  event.CounterID
	maxPages uint64 // or UnknownLimit
}

// maxFailures bounds the number of threads whose last failure is kept.
const maxFailures = 1 << 12

// Reclaim is the sum of reclaim for a cgroup.
type Reclaim struct{ Runs, Nanos, FreedPages uint64 }

// Reclaim returns the sum of reclaim for a cgroup.
func (v *Verdict) Reclaim(id event.CgroupID) *Reclaim {
	r := v.reclaims[id]
	if r == nil {
		r = new(Reclaim)
		v.reclaims[id] = r
	}
	return r
}

func (r *Reclaim) add(e *event.Event) {
	r.Runs++
	r.Nanos += e.DurationNanos
	r.FreedPages += e.FreedPages
}

// Trigger says why the OOM killer ran.
type Trigger string

const (
	// FailedCharge means that a charge of the task failed at the limit of the cgroup.
	FailedCharge Trigger = "failed_charge"
	// FailedAllocation means that the machine had no free page for the task.
	FailedAllocation Trigger = "failed_allocation"
	// LimitLowered means that the task set the limit of the cgroup below its usage.
	LimitLowered Trigger = "limit_lowered"
	// Requested means that a user asked for it (SysRq-f).
	Requested Trigger = "requested"
	// Unknown means that the trace, an older recording, does not have it: there is no failed
	// charge of the task at that level, or the machine ran out.
	Unknown Trigger = "unknown"
)

// OOM is a run of the OOM killer, or all runs in a cgroup that killed nobody with the same
// Result.
type OOM struct {
	// Cgroup is the one that ran out of memory; zero: the machine did.
	Cgroup event.CgroupID
	// BootNanos is the time when it started; in older recordings, of its first kill.
	BootNanos uint64
	last      uint64 // event.Event.OOMNanos, of several runs the last
	// PID, TID and Comm are the task that ran it.
	PID, TID uint32
	Comm     event.Comm
	Trigger  Trigger
	// Kind is the kind of the limit, and MaxPages its size or [UnknownLimit], for
	// FailedCharge and LimitLowered. UsagePages is what the cgroup held then; -1: unknown.
	Kind       event.Kind
	MaxPages   uint64
	UsagePages int64
	// Result is how the runs ended that killed nobody, and Runs their number; 0: it killed
	// Victims. Again is how often it ran later, in vain, until these had exited.
	Result      event.OOMResult
	Runs, Again uint64
	// Reclaim is the reclaim for the cgroup up to then.
	Reclaim Reclaim
	// Chargers are the processes that had charged most memory to the cgroup and those below
	// it; see [Charger].
	Chargers []Charger
	// Kills is the number of Kills. The kernel can kill a process of a group twice.
	Kills int
	// Victims are the killed processes. Several are a group kill (memory.oom.group); in older
	// recordings they can be of successive runs.
	Victims []event.Victim
	killed  map[uint32]bool // the PIDs of Victims
	// Held is what the cgroup held afterwards; nil: unknown.
	Held *Held
}

// Kill is the kill of a process by a run of the OOM killer.
type Kill struct {
	*OOM
	BootNanos uint64
	Victim    event.Victim
	// VictimCgroup is the cgroup to which the victim had charged most in this trace; zero:
	// none.
	VictimCgroup event.CgroupID
}

func (v *Verdict) addKill(e *event.Event) {
	o := v.running
	if o == nil || o.TID != e.TID || o.Cgroup != e.Cgroup || o.last != e.OOMNanos {
		o = v.newOOM(e)
		if len(v.OOMs) < maxWithChargers {
			o.Chargers = v.chargers.most(e.Cgroup, &v.Names)
		}
		v.OOMs = append(v.OOMs, o)
		o.killed = make(map[uint32]bool)
		v.byStart[o.last] = o
		v.running = o
		v.killed[e.Cgroup] = o
	}
	if !o.killed[e.Victim.PID] {
		o.killed[e.Victim.PID] = true
		o.Victims = append(o.Victims, e.Victim)
	}
	o.Kills++
	k := &Kill{o, e.BootNanos, e.Victim, e.VictimCgroup()}
	if e.Victim.CgroupID == 0 && len(v.Kills) < maxWithChargers {
		k.VictimCgroup = v.chargers.cgroupOf(e.Victim.PID)
	}
	v.Kills = append(v.Kills, k)
}

// idleID identifies the runs of the OOM killer that one OOM stands for.
type idleID struct {
	cgroup   event.CgroupID
	result   event.OOMResult
	trigger  Trigger
	maxPages uint64
}

func (o *OOM) idleID(r event.OOMResult) idleID { return idleID{o.Cgroup, r, o.Trigger, o.MaxPages} }

// addIdle adds a run of the OOM killer that killed nobody.
func (v *Verdict) addIdle(e *event.Event) {
	if o := v.killed[e.Cgroup]; o != nil && (e.Result == event.VictimExits || e.Result == event.TaskExits) {
		o.Again++
		return
	}
	run := v.newOOM(e)
	id := run.idleID(e.Result)
	o := v.idle[id]
	if o == nil {
		o = run
		o.Result = e.Result
		v.idle[id] = o
		v.OOMs = append(v.OOMs, o)
	}
	o.Runs++
	delete(v.byStart, o.last)
	o.last = e.OOMNanos
	v.byStart[o.last] = o
}

// Idle returns the OOM that an event of type [event.OOM] was added to, unless it ran in vain
// until earlier victims had exited.
func (v *Verdict) Idle(e *event.Event) *OOM { return v.idle[v.newOOM(e).idleID(e.Result)] }

// newOOM returns the OOM of an event of the OOM killer.
func (v *Verdict) newOOM(e *event.Event) *OOM {
	o := &OOM{
		Cgroup: e.Cgroup, BootNanos: cmp.Or(e.OOMNanos, e.BootNanos), last: e.OOMNanos, PID: e.PID, TID: e.TID, Comm: e.Comm,
		Trigger: Unknown, MaxPages: UnknownLimit, UsagePages: -1, Reclaim: *v.Reclaim(e.Cgroup),
	}
	known := e.OOMNanos != 0 && e.Cgroup.ID != 0
	if known {
		o.UsagePages = e.UsagePages
	}
	f, failed := v.failures[e.TID]
	switch {
	case e.Flags&event.SysRq != 0:
		o.Trigger = Requested
	case e.Cgroup.ID == 0 && e.OOMNanos == 0: // perhaps SysRq
	case e.Cgroup.ID == 0:
		o.Trigger = FailedAllocation
	case e.Flags&event.LimitWrite != 0:
		o.Trigger, o.Kind, o.MaxPages = LimitLowered, event.Memory, e.MaxPages
	case failed && f.counter.Cgroup == e.Cgroup:
		o.Trigger, o.Kind, o.MaxPages = FailedCharge, f.counter.Kind, f.maxPages
		if known && o.Kind == event.Memory {
			o.MaxPages = e.MaxPages
		}
	case known:
		// A filter dropped the charge. In v1 it may have failed at the limit of memory and swap.
		o.Trigger, o.Kind, o.MaxPages = FailedCharge, event.Memory, e.MaxPages
		if room := int64(e.MaxPages) - e.UsagePages; e.Cgroup.Hierarchy != 0 && room > maxChargePages {
			o.Kind, o.MaxPages = event.Memsw, UnknownLimit
		}
	}
	return o
}

// maxChargePages is the largest charge of memory: a huge page, on arm64 with pages of 64 KiB
// of 512 MiB.
const maxChargePages = 8192

// LimitOf returns the limit that was hit where the OOM killer ran, or nil.
func (v *Verdict) LimitOf(o *OOM) *Limit {
	return v.Limits[LimitID{CounterID: event.CounterID{Cgroup: o.Cgroup, Kind: cmp.Or(o.Kind, event.Memory)}}]
}
