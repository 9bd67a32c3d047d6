// Package verdict says what ran out of memory in a trace, at which limit, what set it off,
// and who was killed. It is computed once, from the events, and all outputs tell it in its
// words. It must not know a sink.
package verdict

import (
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
	"chargetrace/internal/world"
)

// Verdict is a [stream.Sink]. Its memory grows with the number of limits and of OOMs.
type Verdict struct {
	*world.World
	// Format is how it writes amounts and times.
	Format text.Format
	// NameWidth is the number of characters of a cgroup's name in a sentence, as
	// [container.Fit] shortens it; 0 does not.
	NameWidth int
	// Numbers are the numbers of cgroups with equal labels, such as of a unit that was started
	// again. The summary sets them at the end.
	Numbers map[event.CgroupID]int

	// Limits are the limits that were hit; see HitsOf.
	Limits map[LimitID]*Limit
	// OOMs are the runs of the OOM killer, and Kills its victims, in the order of the events.
	OOMs  []*OOM
	Kills []*Kill
	// AtEnd is what cgroups held at the end of the trace in which charges failed.
	AtEnd map[event.CgroupID]*Held
	// Lost means that events other than charges were lost: there may be more OOMs and Kills.
	Lost bool

	// reclaims are the sums of reclaim by the cgroup that it was for, and before those at its
	// last OOM.
	reclaims map[event.CgroupID]*Reclaim
	before   map[event.CgroupID]Reclaim
	chargers chargers
	// firstNanos is the time of the first event: a part of a trace can begin late.
	firstNanos uint64
	failures   map[uint32]failure // the last of each thread
	// running is the OOM of the last kill; in older recordings, until its thread charges. The
	// kernel runs one OOM killer at a time (oom_lock in mm/oom_kill.c).
	running *OOM
	// byStart are the OOMs by event.Event.OOMNanos, of several runs the last.
	byStart map[uint64]*OOM
	// idle are the OOMs that killed nobody, and killed the last that did.
	idle   map[idleID]*OOM
	killed map[killedID]*OOM
	// killedLast is the last that killed, without a cgroup.
	killedLast *OOM
	reading    reading
}

// New returns the Verdict on an empty trace.
func New(w *world.World, f text.Format) *Verdict {
	f.PageSize, f.StartBootNanos, f.WallClock = w.Info.PageSize, w.Info.StartBootNanos, w.Clock.Wall
	return &Verdict{
		World: w, Format: f,
		Limits:   make(map[LimitID]*Limit),
		reclaims: make(map[event.CgroupID]*Reclaim),
		chargers: chargers{byID: make(map[chargerID]*charger)},
		failures: make(map[uint32]failure),
		byStart:  make(map[uint64]*OOM),
		idle:     make(map[idleID]*OOM),
		killed:   make(map[killedID]*OOM),
		before:   make(map[event.CgroupID]Reclaim),
		AtEnd:    make(map[event.CgroupID]*Held),
	}
}

// Feed returns a Sink that adds events to the World and to the Verdict, and passes them on.
func (v *Verdict) Feed(dst stream.Sink) stream.Sink { return v.World.Feed(stream.Tee(v, dst)) }

// Write adds the events of a batch. It does not fail.
func (v *Verdict) Write(batch []event.Event) error {
	for i := range batch {
		e := &batch[i]
		if v.firstNanos == 0 && !e.Type.IsName() {
			v.firstNanos = e.BootNanos
		}
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

// since returns the reclaim after an earlier sum.
func (r *Reclaim) since(before Reclaim) Reclaim {
	return Reclaim{r.Runs - before.Runs, r.Nanos - before.Nanos, r.FreedPages - before.FreedPages}
}

func (r *Reclaim) add(e *event.Event) {
	r.Runs++
	r.Nanos += e.DurationNanos
	r.FreedPages += e.FreedPages
}
