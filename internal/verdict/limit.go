package verdict

import (
	"cmp"
	"iter"
	"maps"
	"slices"

	"chargetrace/internal/event"
)

// LimitID identifies a limit of a page counter.
type LimitID struct {
	event.CounterID
	// High is set for memory.high, and for the kind swap memory.swap.high, which throttle.
	// Others fail charges.
	High bool
}

// String returns a name such as "memory limit" or "memory.high".
func (id LimitID) String() string {
	switch {
	case id.High && id.Kind == event.Swap:
		return "memory.swap.high"
	case id.High:
		return "memory.high"
	}
	return id.Kind.String() + " limit"
}

// Limit is a limit that was hit.
type Limit struct {
	LimitID
	// MaxPages is the limit at the last hit whose event has it, FirstMaxPages at the first, or
	// [UnknownLimit]; bytes for [event.Dmem]. A limit can be 0.
	MaxPages, FirstMaxPages uint64
	// Hits is the number of charges that failed or found the limit reached, Failures
	// the number of those that failed. For High, Hits are the throttled ones.
	Hits, Failures uint64
	// Sleeps is how often a task slept for High, SleepNanos how long all did, about, and
	// Sleepers the processes.
	Sleeps, SleepNanos uint64
	Sleepers           []Sleeper
	// FirstNanos is the time of the first hit, ByPID and ByComm its process.
	FirstNanos uint64
	ByPID      uint32
	ByComm     event.Comm
	// SinceNanos and LastNanos are the times of the first and of the last of the latest hits,
	// no two of them more than a second apart.
	SinceNanos, LastNanos uint64
}

// maxPause is the longest time in nanoseconds between hits of a limit that is full.
const maxPause = 1e9

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
		v.failures[e.TID] = failure{id.CounterID, maxPages, e.Flags&event.Remote != 0}
	}
}

// NewLimit returns a limit without hits. e will be the first.
func NewLimit(id LimitID, e *event.Event) *Limit {
	return &Limit{LimitID: id, MaxPages: UnknownLimit, FirstMaxPages: UnknownLimit, FirstNanos: e.BootNanos, ByPID: e.PID, ByComm: e.Comm}
}

// Add counts a hit of the limit, whose size is maxPages.
func (l *Limit) Add(e *event.Event, maxPages uint64) {
	l.Hits++
	if e.BootNanos > l.LastNanos {
		if e.BootNanos-l.LastNanos > maxPause {
			l.SinceNanos = e.BootNanos
		}
		l.LastNanos = e.BootNanos
	}
	if e.Outcome == event.Failed {
		l.Failures++
	}
	if maxPages != UnknownLimit {
		l.setMax(maxPages)
	}
}

func (l *Limit) setMax(maxPages uint64) {
	if l.MaxPages == UnknownLimit {
		l.FirstMaxPages = maxPages
	}
	l.MaxPages = maxPages
}

// maxSleepers bounds the number of Sleepers of a limit.
const maxSleepers = 64

// HighOf returns the limit of a sleep for memory.high or memory.swap.high.
func HighOf(e *event.Event) LimitID {
	return LimitID{e.CounterID(), true}
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
	l.setMax(e.MaxPages)
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

// SortedLimits returns the limits at which the OOM killer ran first, then those with the longest
// sleeps, then the most failures, then the most hits.
func (v *Verdict) SortedLimits() []*Limit {
	ooms := make(map[*Limit]int)
	for _, o := range v.OOMs {
		ooms[v.LimitOf(o)]++
	}
	return slices.SortedFunc(maps.Values(v.Limits), func(a, b *Limit) int {
		return cmp.Or(cmp.Compare(min(1, ooms[b]), min(1, ooms[a])), cmp.Compare(b.SleepNanos, a.SleepNanos), cmp.Compare(b.Failures, a.Failures), cmp.Compare(b.Hits, a.Hits), cmp.Compare(a.FirstNanos, b.FirstNanos),
			cmp.Compare(a.Cgroup.ID, b.Cgroup.ID), cmp.Compare(a.Kind, b.Kind))
	})
}

// failure is a charge that failed at a limit for which the kernel runs the OOM killer.
type failure struct {
	counter  event.CounterID
	maxPages uint64 // or UnknownLimit
	remote   bool   // the task is in another cgroup
}

// maxFailures bounds the number of threads whose last failure is kept.
const maxFailures = 1 << 12
