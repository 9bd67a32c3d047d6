package watch

import (
	"maps"
	"math"
	"slices"
	"time"

	"chargetrace/internal/cause"
	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/summary"
	"chargetrace/internal/verdict"
	"chargetrace/internal/world"
)

const (
	interval = time.Second // between ticks
	// fillWindow is the number of ticks that fill rates and causes cover. A rate of a
	// single tick varies too much to predict when the limit is reached.
	fillWindow = 5
	// historyTicks is the length of the graph.
	historyTicks = 300
	// maxLog is the length of the log.
	maxLog = 500
	// maxProcesses of a cgroup outlive a tick without a charge. maxCharging bounds the
	// processes between two ticks.
	maxProcesses = 2000
	maxCharging  = 1 << 16
	// maxGroups cgroups are kept before removed and idle ones are dropped.
	maxGroups = 1000
	// maxBars bounds the memory of the graphs. With more cgroups they are shorter.
	maxBars = 1 << 19
)

// state sums up a trace for the screen. It reads no clock: tick gets the time.
type state struct {
	*verdict.Verdict
	start       uint64 // BootNanos, at most maxBootNanos
	totals      summary.Totals
	kills, lost uint64

	groups   map[event.CgroupID]*group
	forgetAt int                       // the number of groups at which to forget some
	levels   map[event.CgroupID]*level // the memory counters
	log      []*entry
	logged   int                     // the number of all entries, dropped ones too
	hits     map[verdict.LimitID]hit // the limits that were hit
	idle     map[*verdict.OOM]bool   // those in the log
	lastTick uint64                  // BootNanos
	times    []uint64                // of the last historyTicks ticks
	ticked   bool
}

// group is a cgroup with events.
type group struct {
	totals   summary.Totals
	limiting event.CgroupID // the level with the least room; zero: no limit
	high     event.CgroupID // the same for memory.high
	kills    uint64
	// last and before are the samples of the last two ticks. The graph ends with the last;
	// it has up to historyTicks.
	last, before sample
	graph        []bar
	idleTicks    int                 // since the totals changed
	processes    map[uint32]*process // by PID
	causes       *causes             // nil: the trace has no stacks
	readable     bool                // its files were read once
	gone         bool                // and no longer can be
}

// causes are the pages charged for each cause, in all and at the last fillWindow+1 ticks.
type causes struct {
	charged byCause
	recent  []byCause
}

type byCause [cause.NumCauses]uint64

// level is a memory counter, as last seen.
type level struct {
	usagePages int64
	maxPages   uint64
	highPages  uint64  // its memory.high
	history    []point // of the last fillWindow+1 ticks
}

func (l *level) limited() bool { return l != nil && (&event.Level{MaxPages: l.maxPages}).Limited() }

// point is the usage of a level at a tick.
type point struct {
	bootNanos  uint64
	usagePages int64
}

// bar is a tick in a graph.
type bar struct {
	pages int64 // used of the limiting level; without a limit, of the cgroup
	mark  byte  // 'X' a kill, '!' a failed charge since the tick before, or ' '
}

// sample is the state of a cgroup at a tick.
type sample struct {
	bootNanos  uint64
	usagePages int64
	// limiting is the level with the least room: limitingPages of maxPages are used. high
	// means that maxPages is its memory.high.
	limiting      event.CgroupID
	limitingPages int64
	maxPages      uint64
	high          bool
	// chargedPages and unchargedPages are the totals of the cgroup and its descendants.
	chargedPages, unchargedPages uint64
	totals                       summary.Totals
	kills                        uint64
}

// entry is a line of the log: a series of limit hits, a kill, or a note.
type entry struct {
	bootNanos uint64
	limit     *verdict.Limit // the hits of the series
	kill      *verdict.Kill
	idle      *verdict.OOM // the first of several
	note      string       // a message of [Watch.LogWriter]
}

// hit is the latest series of hits of a limit.
type hit struct {
	limit     *verdict.Limit
	lastNanos uint64
}

func newState(v *verdict.Verdict) *state {
	v.KeepUsages()
	s := &state{
		Verdict:  v,
		start:    min(v.Info.StartBootNanos, maxBootNanos),
		groups:   make(map[event.CgroupID]*group),
		forgetAt: maxGroups,
		levels:   make(map[event.CgroupID]*level),
		hits:     make(map[verdict.LimitID]hit),
		idle:     make(map[*verdict.OOM]bool),
		lastTick: min(v.Info.StartBootNanos, maxBootNanos),
	}
	return s
}

// add adds an event and its usages.
func (s *state) add(e *event.Event, usages []world.Usage) {
	s.addUsages(usages)
	switch e.Type {
	case event.Lost:
		s.lost += e.LostCharges
	case event.Charge:
		addsUp := e.Kind.AddsUp(s.Info.Kinds)
		s.totals.AddCharge(e, addsUp)
		g := s.group(e.Cgroup)
		before := g.totals.ChargedPages
		g.totals.AddCharge(e, addsUp)
		if g.causes != nil {
			g.causes.charged[s.Stacks.Cause(e)] += g.totals.ChargedPages - before
		}
		g.process(e).add(e, addsUp)
		if e.Kind == event.Memory {
			g.gone = false
			g.limiting = event.CgroupID{}
			if e.Limiting.Limited() {
				g.limiting = e.InCgroup(e.Limiting.CgroupID)
			}
			g.high = event.CgroupID{}
			if e.High.Limited() {
				g.high = e.InCgroup(e.High.CgroupID)
				s.level(g.high).highPages = e.High.MaxPages
			}
		}
		for id, maxPages := range verdict.HitsOf(e) {
			s.series(e, id).Add(e, maxPages)
		}
	case event.ReclaimEnd:
		s.group(e.Cgroup).totals.AddReclaim(e)
	case event.OOMKill:
		k := s.Kills[s.kills]
		s.kills++
		if e.Cgroup.ID != 0 {
			s.group(e.Cgroup).kills++
		}
		s.append(&entry{bootNanos: e.BootNanos, kill: k})
	case event.OOM:
		if o := s.Idle(e); o != nil && !s.idle[o] {
			s.idle[o] = true
			s.append(&entry{bootNanos: e.BootNanos, idle: o})
		}
	case event.Throttle:
		s.series(e, verdict.HighOf(e)).AddSleep(e)
	}
}

func (s *state) group(id event.CgroupID) *group {
	g := s.groups[id]
	if g == nil {
		if len(s.groups) >= s.forgetAt {
			s.forget()
			// Not for each new cgroup, if all are needed.
			s.forgetAt = max(maxGroups, 2*len(s.groups))
		}
		g = &group{processes: make(map[uint32]*process)}
		if s.Info.KernelStacks {
			g.causes = new(causes)
		}
		s.groups[id] = g
	}
	return g
}

// forget drops the removed cgroups, or if there are none, those without a charge since
// the oldest tick. It also drops levels that no other cgroup is below, and limits that
// were not hit recently.
func (s *state) forget() {
	n := len(s.groups)
	maps.DeleteFunc(s.groups, func(_ event.CgroupID, g *group) bool { return g.gone })
	if len(s.groups) == n {
		maps.DeleteFunc(s.groups, func(_ event.CgroupID, g *group) bool {
			return g.idleTicks >= historyTicks
		})
	}
	used := make(map[event.CgroupID]bool)
	for id := range s.groups {
		for id := range s.Names.Lineage(id) {
			used[id] = true
		}
	}
	maps.DeleteFunc(s.levels, func(id event.CgroupID, _ *level) bool { return !used[id] })
	maps.DeleteFunc(s.hits, func(_ verdict.LimitID, h hit) bool { return h.lastNanos+uint64(interval) < s.lastTick })
}

// addUsages sets the usage of memory counters after an event.
func (s *state) addUsages(usages []world.Usage) {
	for _, u := range usages {
		if l := s.levels[u.Counter.Cgroup]; u.Counter.Kind == event.Memory && (!u.Computed || l != nil) {
			maxPages := u.MaxPages
			if l != nil && maxPages == noLimit { // the event has no limit of this level
				maxPages = l.maxPages
			}
			s.setLevel(u.Counter.Cgroup, u.AfterPages, maxPages)
		}
	}
}

func (s *state) setLevel(id event.CgroupID, usagePages int64, maxPages uint64) {
	l := s.level(id)
	l.usagePages, l.maxPages = usagePages, maxPages
}

// noLimit stands for a limit that is not known.
const noLimit = ^uint64(0)

func (s *state) level(id event.CgroupID) *level {
	l := s.levels[id]
	if l == nil {
		l = &level{maxPages: noLimit, highPages: noLimit}
		s.levels[id] = l
	}
	return l
}

// series returns the current series of hits of a limit. It logs a new one if the last hit is
// not recent.
func (s *state) series(e *event.Event, id verdict.LimitID) *verdict.Limit {
	h := s.hits[id]
	if h.limit == nil || e.BootNanos > h.lastNanos+uint64(interval) {
		h.limit = verdict.NewLimit(id, e)
		s.append(&entry{bootNanos: e.BootNanos, limit: h.limit})
	}
	h.lastNanos = e.BootNanos
	s.hits[id] = h
	return h.limit
}

func (s *state) append(x *entry) {
	if len(s.log) == maxLog {
		s.log = slices.Delete(s.log, 0, maxLog/10)
	}
	s.log = append(s.log, x)
	s.logged++
}

// toRead returns the paths of the cgroups to read: all that exist, and their ancestors.
func (s *state) toRead() map[event.CgroupID]string {
	paths := make(map[event.CgroupID]string)
	for id, g := range s.groups {
		if g.gone {
			continue
		}
		for id := range s.Names.Lineage(id) {
			if paths[id] != "" {
				break
			}
			paths[id] = s.Names.Path(id)
		}
	}
	return paths
}

// read adds the readings of toRead's cgroups. One that was readable once and is missing
// has been removed.
func (s *state) read(readings map[event.CgroupID]cgroup.Memory) {
	for id, r := range readings {
		s.setLevel(id, r.UsagePages, r.MaxPages)
		s.levels[id].highPages = r.HighPages
		s.SetUsage(event.CounterID{Cgroup: id, Kind: event.Memory}, r.UsagePages, r.MaxPages)
	}
	for id, g := range s.groups {
		_, ok := readings[id]
		g.readable = g.readable || ok
		g.gone = g.readable && !ok
		if !ok {
			continue
		}
		g.limiting, g.high = event.CgroupID{}, event.CgroupID{}
		room, below := int64(math.MaxInt64), int64(math.MaxInt64)
		for id := range s.Names.Lineage(id) {
			r, known := readings[id]
			if !known {
				continue
			}
			if l := (event.Level{UsagePages: r.UsagePages, MaxPages: r.MaxPages}); l.Limited() && l.RoomPages() < room {
				g.limiting, room = id, l.RoomPages()
			}
			if l := (event.Level{UsagePages: r.UsagePages, MaxPages: r.HighPages}); l.Limited() && l.RoomPages() < below {
				g.high, below = id, l.RoomPages()
			}
		}
	}
}

// tick takes a sample of all cgroups and levels. A tick soon after another replaces it:
// a rate over a moment means nothing.
func (s *state) tick(bootNanos uint64) {
	elapsed := bootNanos - s.lastTick
	amend := s.ticked && elapsed < uint64(interval)/2
	s.times = appendLast(s.times, bootNanos, historyTicks, amend)
	bars := max(fillWindow+1, min(historyTicks, maxBars/max(1, len(s.groups))))
	for _, l := range s.levels {
		l.history = appendLast(l.history, point{bootNanos, l.usagePages}, fillWindow+1, amend)
	}
	for id, g := range s.groups {
		x := sample{bootNanos: bootNanos, totals: g.totals, kills: g.kills}
		if l := s.levels[id]; l != nil {
			x.usagePages = l.usagePages
		}
		if s.Balances != nil {
			if n := s.Balances.Of(event.CounterID{Cgroup: id, Kind: event.Memory}); n != nil {
				x.chargedPages, x.unchargedPages = n.ChargedPages+n.ForcedPages, n.UnchargedPages
			}
		}
		limiting := g.limiting
		if limiting == (event.CgroupID{}) && s.levels[id].limited() { // known by reclaim or an OOM kill alone
			limiting = id
		}
		if l := s.levels[limiting]; l != nil {
			x.limiting, x.limitingPages, x.maxPages = limiting, l.usagePages, l.maxPages
		}
		if l := s.levels[g.high]; l != nil {
			below := sample{limiting: g.high, limitingPages: l.usagePages, maxPages: l.highPages, high: true}
			if x.limiting == (event.CgroupID{}) || below.roomPages() < x.roomPages() {
				x.limiting, x.limitingPages, x.maxPages, x.high = below.limiting, below.limitingPages, below.maxPages, true
			}
		}
		g.addSample(x, bars, amend)
		if c := g.causes; c != nil {
			c.recent = appendLast(c.recent, c.charged, fillWindow+1, amend)
		}
		for pid, p := range g.processes {
			if !amend {
				p.tick(float64(elapsed) / float64(time.Second))
			}
			if p.idleTicks > historyTicks || p.idleTicks > 0 && len(g.processes) > maxProcesses {
				delete(g.processes, pid)
			}
		}
	}
	s.lastTick, s.ticked = bootNanos, true
}

// addSample adds a sample, and its bar to the graph of at most n.
func (g *group) addSample(x sample, n int, amend bool) {
	g.idleTicks++
	if x.totals != g.last.totals {
		g.idleTicks = 0
	}
	if !amend {
		g.before = g.last
	}
	b := bar{x.usagePages, ' '}
	if x.limiting != (event.CgroupID{}) {
		b.pages = x.limitingPages
	}
	if x.kills > g.before.kills {
		b.mark = 'X'
	} else if x.totals.Failures > g.before.totals.Failures {
		b.mark = '!'
	}
	g.last = x
	g.graph = appendLast(g.graph, b, n, amend)
}

// appendLast appends x to a history of at most n, or replaces the last with it.
func appendLast[T any](history []T, x T, n int, amend bool) []T {
	if amend && len(history) > 0 {
		history = history[:len(history)-1]
	}
	if len(history) >= n {
		history = slices.Delete(history, 0, len(history)-n+1)
	}
	return append(history, x)
}
