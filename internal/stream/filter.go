package stream

import (
	"fmt"
	"slices"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/glob"
)

// Filter selects the events of a source to show. Different fields combine with AND,
// several values of one field with OR. The zero value shows all events.
type Filter struct {
	// PIDs are the processes whose charges and reclaim are shown, and the OOM kills that
	// they cause or are the victim of; none means all.
	PIDs []uint32
	// Follow adds the descendants of PIDs.
	Follow bool
	// Comms match the names of the threads whose events are shown, and of the victims of
	// OOM kills; nil matches all.
	Comms *glob.Set
	// Cgroups and Units, Containers, Pods, and Namespaces select the cgroups whose charges are
	// shown, with their descendants; none means all. Reclaim and OOM kills in their ancestors
	// are shown too. Cgroups are paths; a cgroup matches if its path or its unit does. The
	// others are patterns of names, or the beginnings of the ids of containers; see
	// [container.Identity.MatchContainer].
	Cgroups                             []cgroup.Path
	Units, Containers, Pods, Namespaces []string
	// Kinds are the kinds of counters whose charges are shown; none means all.
	Kinds event.Kinds
	// MinPages drops smaller charges, and all events of [event.Type.IsNet], because a
	// balance needs all charges.
	MinPages uint64
	// OnlyLimited drops charges that neither hit a limit ([event.Event.LimitHit]) nor are
	// throttled ([event.Event.Throttled]) and, like MinPages, all events of
	// [event.Type.IsNet].
	OnlyLimited bool
	// Misses keeps batch misses that OnlyLimited drops.
	Misses bool
	// MaxCharges is the number of charges shown; 0 means no limit.
	MaxCharges uint64
}

// Left returns the part of the filter for the events of a source that has applied it by task and
// by the paths of cgroups.
func (f Filter) Left() Filter {
	left := f
	left.PIDs, left.Follow, left.Comms = nil, false, nil
	if !f.NeedsNames() {
		left.Cgroups = nil
	}
	return left
}

// Balances reports whether the shown charges and uncharges give a balance. Those of
// some processes or threads do not: they uncharge what others charged.
func (f Filter) Balances() bool {
	return len(f.PIDs) == 0 && f.Comms == nil && !f.dropsCharges()
}

// BalancesMemory reports whether the balance can be compared with memory.current.
func (f Filter) BalancesMemory() bool {
	return f.Balances() && (f.Kinds == 0 || f.Kinds.Has(event.Memory))
}

// Info returns the Info of the events that pass the filter, given the Info of their
// source.
func (f Filter) Info(i Info) Info {
	i.Net = i.Net && f.Balances()
	if f.Kinds != 0 {
		i.Kinds = f.Kinds
	}
	return i
}

// FiltersCgroups reports whether the filter selects cgroups.
func (f Filter) FiltersCgroups() bool { return len(f.Cgroups) > 0 || f.NeedsNames() }

// NeedsNames reports whether the filter selects cgroups by names.
func (f Filter) NeedsNames() bool {
	return len(f.Units)+len(f.Containers)+len(f.Pods)+len(f.Namespaces) > 0
}

// dropsCharges reports whether the filter drops charges by their size or limit.
func (f Filter) dropsCharges() bool { return f.MinPages > 0 || f.OnlyLimited }

// matcher applies a Filter.
type matcher struct {
	Filter
	all      bool // the filter shows all events
	pageSize uint64
	// targets are the PIDs and, with Follow, their descendants. children are processes
	// older than the trace, by their parent.
	targets  map[uint32]bool
	children map[uint32][]uint32

	// shownOOM is the OOMNanos of the last event of the OOM killer that was shown: what was
	// read after it is shown too.
	shownOOM uint64

	names  cgroup.Names
	places map[event.CgroupID]place
	// above are the ancestors of those cgroups within the filter that have a place.
	above map[event.CgroupID]bool
	// ids maps each beginning of an id in Filter.Containers to the container.
	ids map[string]event.CgroupID
	err error
}

// place is the position of a cgroup relative to those of the filter.
type place uint8

const (
	placeUnknown place = iota
	unrelated
	above
	within
)

func newMatcher(filter Filter, pageSize int) *matcher {
	m := &matcher{
		Filter: filter, pageSize: uint64(pageSize), targets: make(map[uint32]bool), children: make(map[uint32][]uint32),
		places: make(map[event.CgroupID]place), above: make(map[event.CgroupID]bool), ids: make(map[string]event.CgroupID),
	}
	for _, pid := range filter.PIDs {
		m.targets[pid] = true
	}
	m.all = len(filter.PIDs) == 0 && filter.Comms == nil && !filter.FiltersCgroups() && filter.Kinds == 0 && !filter.dropsCharges()
	return m
}

func (m *matcher) matches(e *event.Event) bool {
	switch e.Type {
	case event.Lost, event.Stack, event.ClockStep:
		return true
	case event.CgroupReleased:
		m.names.Remove(e.Cgroup)
		delete(m.places, e.Cgroup)
		delete(m.above, e.Cgroup)
		return true
	case event.CgroupName:
		if m.FiltersCgroups() {
			if m.names.Replaces(e) {
				clear(m.places) // those below have other names, too
			}
			m.names.Add(e)
			delete(m.places, e.Cgroup)
		}
		return true
	case event.Fork:
		return m.fork(e)
	case event.MemoryStat, event.Held:
		if e.OOMNanos != 0 {
			return e.OOMNanos == m.shownOOM
		}
		return len(m.PIDs) == 0 && m.Comms == nil && (!m.FiltersCgroups() || m.placeOf(e.Cgroup) != unrelated)
	case event.Usage:
		return m.BalancesMemory() && (!m.FiltersCgroups() || m.placeOf(e.Cgroup) == within)
	}
	shown := m.matchesEvent(e)
	if shown && (e.Type == event.OOMKill || e.Type == event.OOM) {
		m.shownOOM = e.OOMNanos
	}
	return shown
}

// matchesEvent reports whether an event with a task passes the filter.
func (m *matcher) matchesEvent(e *event.Event) bool {
	if !m.matchesTask(e.PID, &e.Comm) &&
		(e.Type != event.OOMKill || !m.matchesTask(e.Victim.PID, &e.Victim.Comm)) {
		return false
	}
	if m.FiltersCgroups() {
		paying := e.Cgroup
		if e.Type == event.OOMKill && e.Flags&event.UnknownCgroup != 0 {
			paying = e.VictimCgroup()
		}
		if p := m.placeOf(paying); p != within && (p != above || e.Type == event.Charge || e.Type.IsNet()) {
			return false
		}
	}
	switch ofKind := m.Kinds == 0 || m.Kinds.Has(e.Kind); {
	case e.Type.IsNet():
		return ofKind && !m.dropsCharges()
	case e.Type != event.Charge:
		return true
	case !ofKind:
		return false
	}
	minimum := m.MinPages
	if e.Kind == event.Dmem {
		minimum *= m.pageSize
	}
	return e.RequestedPages >= minimum &&
		(!m.OnlyLimited || e.LimitHit() || e.Throttled() || e.Flags&event.Threshold != 0 || m.Misses && e.Outcome == event.BatchMiss)
}

func (m *matcher) matchesTask(pid uint32, comm *event.Comm) bool {
	return (len(m.PIDs) == 0 || m.targets[pid]) && (m.Comms == nil || m.Comms.Match(comm.Bytes()))
}

// fork updates the targets. It reports whether the fork passes the filter.
func (m *matcher) fork(e *event.Event) bool {
	if len(m.PIDs) == 0 {
		return true
	}
	byTarget := m.targets[e.PID]
	switch {
	case !m.Follow:
	case byTarget:
		m.follow(e.ChildPID)
	case e.Flags&event.Existing != 0:
		// These events come in the order of the PIDs, which wrap around: the child can
		// come before its parent.
		m.children[e.PID] = append(m.children[e.PID], e.ChildPID)
	case !slices.Contains(m.PIDs, e.ChildPID):
		delete(m.targets, e.ChildPID) // the target with this PID has exited
	}
	return byTarget
}

func (m *matcher) follow(pid uint32) {
	m.targets[pid] = true
	children := m.children[pid]
	delete(m.children, pid)
	for _, child := range children {
		m.follow(child)
	}
}

// placeOf returns the place of a cgroup. The machine as a whole is above all cgroups.
func (m *matcher) placeOf(id event.CgroupID) place {
	if id.ID == 0 {
		return above
	}
	p, ok := m.places[id]
	if !ok {
		p = m.findPlace(id)
		m.places[id] = p
	}
	return p
}

func (m *matcher) findPlace(id event.CgroupID) place {
	if m.isWithin(id) {
		for ancestor := range m.names.Lineage(id) {
			if ancestor != id && !m.above[ancestor] {
				m.above[ancestor] = true
				delete(m.places, ancestor)
			}
		}
		return within
	}
	path := m.names.Path(id)
	isAbove := func(target cgroup.Path) bool { return cgroup.IsWithin(target.In(id.Hierarchy), path) }
	if m.above[id] || !m.NeedsNames() && slices.ContainsFunc(m.Cgroups, isAbove) {
		return above
	}
	return unrelated
}

// isWithin reports whether the cgroup or one above it matches each of the filter's lists.
func (m *matcher) isWithin(id event.CgroupID) bool {
	return m.anyMatches(id, len(m.Cgroups)+len(m.Units), m.matchesPath) &&
		m.anyMatches(id, len(m.Containers), m.matchesContainer) &&
		m.anyMatches(id, len(m.Pods), func(id event.CgroupID) bool {
			return slices.ContainsFunc(m.Pods, m.names.Identity(id).MatchPod)
		}) &&
		m.anyMatches(id, len(m.Namespaces), func(id event.CgroupID) bool {
			return slices.ContainsFunc(m.Namespaces, m.names.Identity(id).MatchNamespace)
		})
}

// anyMatches reports whether the cgroup or one above it matches; all do if there are no patterns.
func (m *matcher) anyMatches(id event.CgroupID, patterns int, matches func(event.CgroupID) bool) bool {
	if patterns == 0 {
		return true
	}
	for ancestor := range m.names.Lineage(id) {
		if matches(ancestor) {
			return true
		}
	}
	return false
}

func (m *matcher) matchesPath(id event.CgroupID) bool {
	path := m.names.Path(id)
	if slices.ContainsFunc(m.Cgroups, func(target cgroup.Path) bool { return target.In(id.Hierarchy) == path }) {
		return true
	}
	unit := container.Unit(path)
	return slices.ContainsFunc(m.Units, func(pattern string) bool { return container.Match(pattern, unit) })
}

func (m *matcher) matchesContainer(id event.CgroupID) (matches bool) {
	i := m.names.Identity(id)
	for _, pattern := range m.Containers {
		byName, byID := i.MatchContainer(pattern)
		matches = matches || byName || byID
		if !byID {
			continue
		}
		other, ok := m.ids[pattern]
		if !ok {
			m.ids[pattern] = id
		} else if m.names.Identity(other).ID != i.ID && m.err == nil {
			m.err = fmt.Errorf("-container %s is ambiguous: it matches %s and %s", pattern, m.names.Label(other), m.names.Label(id))
		}
	}
	return matches
}
