package stream

import (
	"fmt"
	"slices"
	"strings"

	"chargetrace/internal/cgroup"
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
	// Cgroups are the cgroups whose charges are shown, with their descendants; none means
	// all. Reclaim and OOM kills in their ancestors are shown too.
	Cgroups []cgroup.Path
	// Containers are prefixes of container ids. Their cgroups are added to Cgroups.
	Containers []string
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

// ByCharge returns the part of the filter that depends only on the charge. A live source
// has already filtered by task and cgroup.
func (f Filter) ByCharge() Filter {
	return Filter{Kinds: f.Kinds, MinPages: f.MinPages, OnlyLimited: f.OnlyLimited, Misses: f.Misses, MaxCharges: f.MaxCharges}
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
func (f Filter) FiltersCgroups() bool { return len(f.Cgroups)+len(f.Containers) > 0 }

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
	// found maps each prefix in Filter.Containers to the full id; containers are their
	// cgroups.
	found      map[string]string
	containers []cgroup.Path
	err        error
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
		places: make(map[event.CgroupID]place), found: make(map[string]string),
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
	case event.CgroupName:
		if m.FiltersCgroups() {
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
		(!m.OnlyLimited || e.LimitHit() || e.Throttled() || m.Misses && e.Outcome == event.BatchMiss)
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
		p = m.findPlace(id, m.names.Path(id))
		m.places[id] = p
	}
	return p
}

func (m *matcher) findPlace(id event.CgroupID, path string) place {
	m.findContainer(path)
	p := unrelated
	for _, target := range slices.Concat(m.Cgroups, m.containers) {
		in := target.In(id.Hierarchy)
		switch {
		case cgroup.IsWithin(path, in):
			return within
		case cgroup.IsWithin(in, path):
			p = above
		}
	}
	return p
}

// findContainer adds the container of a path to m.containers if the filter selects it.
func (m *matcher) findContainer(path string) {
	container := cgroup.ContainerOf(path)
	for _, prefix := range m.Containers {
		if container.ID == "" || !strings.HasPrefix(container.ID, prefix) {
			continue
		}
		switch other, ok := m.found[prefix]; {
		case !ok:
			m.found[prefix] = container.ID
		case other != container.ID:
			m.err = fmt.Errorf("-container %s is ambiguous: it matches %s and %s", prefix, other, container.ID)
		}
		end := strings.Index(path, container.ID) + len(container.ID)
		if slash := strings.IndexByte(path[end:], '/'); slash >= 0 {
			path = path[:end+slash]
		}
		target := cgroup.Path{V1: path, V2: path}
		if !slices.Contains(m.containers, target) {
			m.containers = append(m.containers, target)
			clear(m.places)
		}
	}
}
