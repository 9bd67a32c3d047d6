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
	// Lost means that events other than charges were lost: there may be more OOMs and Kills.
	Lost bool

	// reclaims are the sums of reclaim by the cgroup that it was for.
	reclaims map[event.CgroupID]*Reclaim
	chargers chargers
	failures map[uint32]failure // the last of each thread
	// running is the OOM of the last kill, until its thread charges. The kernel runs one OOM
	// killer at a time (oom_lock in mm/oom_kill.c).
	running *OOM
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
			if o := v.running; o != nil && o.TID == e.TID && e.Flags&event.Remote == 0 {
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
	// FirstNanos is the time of the first hit, ByPID and ByComm its process.
	FirstNanos uint64
	ByPID      uint32
	ByComm     event.Comm
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

// NewLimit returns a limit without hits, of which e will be the first.
func NewLimit(id LimitID, e *event.Event) *Limit {
	return &Limit{LimitID: id, MaxPages: UnknownLimit, FirstNanos: e.BootNanos, ByPID: e.PID, ByComm: e.Comm}
}

// Add counts a hit, of which maxPages is the size.
func (l *Limit) Add(e *event.Event, maxPages uint64) {
	l.Hits++
	if e.Outcome == event.Failed {
		l.Failures++
	}
	if maxPages != UnknownLimit {
		l.MaxPages = maxPages
	}
}

// SortedLimits returns the limits with the most failures first, then the most hits.
func (v *Verdict) SortedLimits() []*Limit {
	return slices.SortedFunc(maps.Values(v.Limits), func(a, b *Limit) int {
		return cmp.Or(cmp.Compare(b.Failures, a.Failures), cmp.Compare(b.Hits, a.Hits), cmp.Compare(a.FirstNanos, b.FirstNanos),
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
	// NoCharge means that the trace has no failed charge of the task at that level: its
	// limit was lowered below its usage, or a filter dropped the charge.
	NoCharge Trigger = "no_charge"
)

// OOM is a run of the OOM killer.
type OOM struct {
	// Cgroup is the one that ran out of memory; zero: the machine did.
	Cgroup event.CgroupID
	// BootNanos is the time of its first kill.
	BootNanos uint64
	// PID, TID and Comm are the task that ran it.
	PID, TID uint32
	Comm     event.Comm
	Trigger  Trigger
	// Kind is the kind of the limit, and MaxPages its size or [UnknownLimit], for
	// FailedCharge.
	Kind     event.Kind
	MaxPages uint64
	// Reclaim is the reclaim for the cgroup up to then.
	Reclaim Reclaim
	// Chargers are the processes that had charged most memory to the cgroup and those below
	// it; see [Charger].
	Chargers []Charger
	// Kills is the number of Kills. The kernel can kill a process of a group twice.
	Kills int
	// Victims are the killed processes. Several are a group kill (memory.oom.group).
	Victims []event.Victim
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
	if o == nil || o.TID != e.TID || o.Cgroup != e.Cgroup {
		o = &OOM{Cgroup: e.Cgroup, BootNanos: e.BootNanos, PID: e.PID, TID: e.TID, Comm: e.Comm, Trigger: NoCharge, MaxPages: UnknownLimit}
		if f, ok := v.failures[e.TID]; ok && f.counter.Cgroup == e.Cgroup {
			o.Trigger, o.Kind, o.MaxPages = FailedCharge, f.counter.Kind, f.maxPages
		}
		if e.Cgroup.ID == 0 {
			o.Trigger = FailedAllocation
		}
		o.Reclaim = *v.Reclaim(e.Cgroup)
		if len(v.OOMs) < maxWithChargers {
			o.Chargers = v.chargers.most(e.Cgroup, &v.Names)
		}
		v.OOMs = append(v.OOMs, o)
		v.running = o
	}
	if !slices.ContainsFunc(o.Victims, func(x event.Victim) bool { return x.PID == e.Victim.PID }) {
		o.Victims = append(o.Victims, e.Victim)
	}
	o.Kills++
	v.Kills = append(v.Kills, &Kill{o, e.BootNanos, e.Victim, v.chargers.cgroupOf(e.Victim.PID)})
}

// LimitOf returns the limit that was hit where the OOM killer ran, or nil.
func (v *Verdict) LimitOf(o *OOM) *Limit {
	return v.Limits[LimitID{CounterID: event.CounterID{Cgroup: o.Cgroup, Kind: cmp.Or(o.Kind, event.Memory)}}]
}
