package watch

import (
	"maps"
	"math"
	"slices"
	"time"

	"chargetrace/internal/cause"
	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
)

const (
	// interval is the time from one tick to the next.
	interval = time.Second
	// fillWindow is how many ticks the rate is taken over at which a level fills: one
	// that leaps about tells nobody when the limit comes. The causes are of these too.
	fillWindow = 5
	// historyTicks is how long the graph goes back.
	historyTicks = 300
	// maxLog is how many lines the log keeps.
	maxLog = 500
	// maxProcesses is how many of a cgroup are kept that do not charge it now, and
	// maxCharging how many more there can be from one tick to the next.
	maxProcesses = 2000
	maxCharging  = 1 << 16
	// maxGroups is how many cgroups there are at most before those that are gone
	// are forgotten.
	maxGroups = 1000
)

// state adds up a trace for the screen. It knows no clock but what it is told.
type state struct {
	header stream.Header
	names  cgroup.Names
	stacks cause.Stacks
	// totals, kills and lost events are those of the whole trace.
	totals      summary.Totals
	kills, lost uint64

	groups map[event.CgroupID]*group
	// levels are the counters of memory, as they were last seen.
	levels map[event.CgroupID]*level
	// nets is nil where the trace does not tell what was given back.
	nets   *summary.Nets
	log    []*entry
	logged int // all there ever were
	// hits are the limits that were hit, with the last entry of each.
	hits map[summary.LimitKey]hit
	// lastTick is when that was, in BootNanos.
	lastTick uint64
	ticked   bool
}

// group is a cgroup that something was seen of.
type group struct {
	totals summary.Totals
	// limiting is the level with the least room; the zero ID: none has a limit.
	limiting  event.CgroupID
	kills     uint64
	history   []sample            // one for each tick, the last historyTicks
	processes map[uint32]*process // by PID; those that charge it
	charged   byCause
	recent    []byCause // charged at the last fillWindow ticks and one
	// readable says that its files were read, and gone that they no longer can be.
	readable, gone bool
}

// byCause is the pages that were charged for each cause.
type byCause [cause.NumCauses]uint64

// level is a counter of memory.
type level struct {
	usagePages int64
	maxPages   uint64
	history    []point // the last fillWindow ticks and one
}

// point is the usage of a level at a tick.
type point struct {
	bootNanos  uint64
	usagePages int64
}

// sample is what a cgroup had at a tick.
type sample struct {
	bootNanos uint64
	// usagePages is its own; limitingPages of maxPages is where the least room was,
	// at the level limiting.
	limiting                  event.CgroupID
	usagePages, limitingPages int64
	maxPages                  uint64
	// chargedPages and unchargedPages are what was charged until then to the cgroup
	// and those below it, and what they gave back.
	chargedPages, unchargedPages uint64
	totals                       summary.Totals
	kills                        uint64
}

// entry is a line of the log: a limit that was hit, a kill, or a note.
type entry struct {
	// event is the charge that first hit the limit, or the kill.
	event event.Event
	note  string // from elsewhere; otherwise empty

	limit    event.CgroupID
	maxPages uint64
	// hits and failures are how many charges hit the limit, and how many of
	// these failed, until there was a pause.
	hits, failures uint64
}

type hit struct {
	*entry
	lastNanos uint64
}

func newState(header stream.Header) *state {
	s := &state{
		header:   header,
		groups:   make(map[event.CgroupID]*group),
		levels:   make(map[event.CgroupID]*level),
		hits:     make(map[summary.LimitKey]hit),
		lastTick: header.StartBootNanos,
	}
	if header.Net {
		s.nets = summary.NewNets()
	}
	return s
}

// add takes the events of a batch.
func (s *state) add(batch []event.Event) {
	for i := range batch {
		e := &batch[i]
		if s.nets != nil {
			s.nets.Add(e, &s.names)
		}
		switch e.Type {
		case event.CgroupName:
			s.names.Add(e)
		case event.Stack:
			s.stacks.Add(e)
		case event.Lost:
			s.lost += e.LostEvents
		case event.Charge:
			s.totals.AddCharge(e)
			g := s.group(e.Cgroup)
			before := g.totals.ChargedPages
			g.totals.AddCharge(e)
			g.charged[s.stacks.Cause(e)] += g.totals.ChargedPages - before
			g.process(e).add(e)
			if e.Kind == event.Memory {
				s.addUsage(g, e)
			}
			if key, maxPages, hit := summary.HitLimit(e); hit {
				s.addHit(e, key, maxPages)
			}
		case event.Uncharge, event.ForcedCharge:
			if e.Kind == event.Memory {
				if l := s.levels[e.Cgroup]; l != nil {
					l.usagePages = e.UsageAfterPages()
				}
				s.moveAbove(e)
			}
		case event.ReclaimEnd:
			s.group(e.Cgroup).totals.AddReclaim(e)
		case event.OOMKill:
			s.kills++
			if e.Cgroup.ID != 0 {
				s.group(e.Cgroup).kills++
			}
			s.append(&entry{event: *e})
		}
	}
}

func (s *state) group(id event.CgroupID) *group {
	g := s.groups[id]
	if g == nil {
		if len(s.groups) >= maxGroups {
			s.forget()
		}
		g = &group{processes: make(map[uint32]*process)}
		s.groups[id] = g
	}
	return g
}

// forget makes room for more cgroups: those go that are gone, and where none is,
// those that nothing was seen of since the oldest tick. With them go the levels
// that are none of the others', and the limits that were not hit of late.
func (s *state) forget() {
	n := len(s.groups)
	maps.DeleteFunc(s.groups, func(_ event.CgroupID, g *group) bool { return g.gone })
	if len(s.groups) == n {
		maps.DeleteFunc(s.groups, func(_ event.CgroupID, g *group) bool {
			return len(g.history) == historyTicks && g.history[0].totals == g.totals
		})
	}
	used := make(map[event.CgroupID]bool)
	for id := range s.groups {
		for id := range s.names.Lineage(id) {
			used[id] = true
		}
	}
	if s.nets != nil {
		s.nets.Forget(func(id event.CgroupID) bool { return !used[id] })
	}
	maps.DeleteFunc(s.levels, func(id event.CgroupID, _ *level) bool { return !used[id] })
	maps.DeleteFunc(s.hits, func(_ summary.LimitKey, h hit) bool { return h.lastNanos+uint64(interval) < s.lastTick })
}

// addUsage learns from a charge what its levels hold after it.
func (s *state) addUsage(g *group, e *event.Event) {
	var charged int64
	if e.Outcome == event.OK {
		charged = int64(e.RequestedPages)
	}
	g.gone = false
	s.setLevel(e.Cgroup, e.UsagePages+charged, e.MaxPages)
	g.limiting = event.CgroupID{}
	if e.Limiting.Limited() {
		g.limiting = e.InCgroup(e.Limiting.CgroupID)
		s.setLevel(g.limiting, e.Limiting.UsagePages+charged, e.Limiting.MaxPages)
	}
	s.moveAbove(e)
}

// moveAbove moves what the levels above an event's held last by what it changes. Of
// them a charge tells only those with the least room, and an uncharge none. What is
// no part of the trace is missing until the next charge or reading tells.
func (s *state) moveAbove(e *event.Event) {
	if s.nets == nil {
		return
	}
	for _, n := range s.nets.Lineage(summary.LimitKey{Cgroup: e.Cgroup, Kind: e.Kind}, &s.names)[1:] {
		if e.Type == event.Charge && n.Key.Cgroup.ID == e.Limiting.CgroupID && e.Limiting.Limited() {
			continue // it was told
		}
		if l := s.levels[n.Key.Cgroup]; l != nil {
			l.usagePages += e.UsageAfterPages() - e.UsagePages
		}
	}
}

func (s *state) setLevel(id event.CgroupID, usagePages int64, maxPages uint64) {
	l := s.levels[id]
	if l == nil {
		l = new(level)
		s.levels[id] = l
	}
	l.usagePages, l.maxPages = usagePages, maxPages
}

// addHit logs that a limit is hit, once for as long as that goes on.
func (s *state) addHit(e *event.Event, key summary.LimitKey, maxPages uint64) {
	h := s.hits[key]
	if h.entry == nil || e.BootNanos > h.lastNanos+uint64(interval) {
		h.entry = &entry{event: *e, limit: key.Cgroup}
		s.append(h.entry)
	}
	h.lastNanos = e.BootNanos
	h.hits++
	if e.Outcome == event.Failed {
		h.failures++
	}
	if maxPages != 0 {
		h.maxPages = maxPages
	}
	s.hits[key] = h
}

func (s *state) append(x *entry) {
	if len(s.log) == maxLog {
		s.log = slices.Delete(s.log, 0, maxLog/10)
	}
	s.log = append(s.log, x)
	s.logged++
}

// reading is what the files of a cgroup say of it.
type reading struct {
	usagePages int64
	maxPages   uint64
}

// toRead are the cgroups whose files are to be read: all that there are, and what
// is above them.
func (s *state) toRead() map[event.CgroupID]string {
	paths := make(map[event.CgroupID]string)
	for id, g := range s.groups {
		if g.gone {
			continue
		}
		for id := range s.names.Lineage(id) {
			if paths[id] != "" {
				break
			}
			paths[id] = s.names.Path(id)
		}
	}
	return paths
}

// read takes what was read of toRead, at one time. A cgroup that was there once and
// is missing is gone.
func (s *state) read(readings map[event.CgroupID]reading) {
	for id, r := range readings {
		s.setLevel(id, r.usagePages, r.maxPages)
	}
	for id, g := range s.groups {
		_, ok := readings[id]
		g.readable = g.readable || ok
		g.gone = g.readable && !ok
		if !ok {
			continue
		}
		g.limiting = event.CgroupID{}
		room := int64(math.MaxInt64)
		for id := range s.names.Lineage(id) {
			r, known := readings[id]
			l := event.Level{UsagePages: r.usagePages, MaxPages: r.maxPages}
			if known && l.Limited() && l.RoomPages() < room {
				g.limiting, room = id, l.RoomPages()
			}
		}
	}
}

// tick takes a sample of everything. Soon after another it takes the place of that
// one: rates over a moment say nothing.
func (s *state) tick(bootNanos uint64) {
	elapsed := bootNanos - s.lastTick
	amend := s.ticked && elapsed < uint64(interval)/2
	for _, l := range s.levels {
		l.history = appendLast(l.history, point{bootNanos, l.usagePages}, fillWindow+1, amend)
	}
	for id, g := range s.groups {
		x := sample{bootNanos: bootNanos, totals: g.totals, kills: g.kills}
		if l := s.levels[id]; l != nil {
			x.usagePages = l.usagePages
		}
		if s.nets != nil {
			if n := s.nets.Of(summary.LimitKey{Cgroup: id, Kind: event.Memory}); n != nil {
				x.chargedPages, x.unchargedPages = n.ChargedPages+n.ForcedPages, n.UnchargedPages
			}
		}
		if l := s.levels[g.limiting]; l != nil {
			x.limiting, x.limitingPages, x.maxPages = g.limiting, l.usagePages, l.maxPages
		}
		g.history = appendLast(g.history, x, historyTicks, amend)
		g.recent = appendLast(g.recent, g.charged, fillWindow+1, amend)
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

// appendLast appends x to a history of at most n, or puts it in the place of the
// last.
func appendLast[T any](history []T, x T, n int, amend bool) []T {
	if amend && len(history) > 0 {
		history = history[:len(history)-1]
	}
	if len(history) >= n {
		history = slices.Delete(history, 0, len(history)-n+1)
	}
	return append(history, x)
}
