package stream

import (
	"fmt"
	"slices"
	"strings"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/glob"
)

// Aim says which events of a source are shown. Several kinds of aim must all hold;
// of several values of one kind, any. A live source leaves out what is not aimed
// at by itself, in the kernel.
type Aim struct {
	// PIDs are the processes whose charges and reclaim are shown, and the OOM
	// kills that they ask for or fall victim to; none is all.
	PIDs []uint32
	// Follow adds what descends from them.
	Follow bool
	// Comms are the names of the threads whose events are shown, or that an OOM
	// kill has for its victim; nil is all.
	Comms *glob.Set
	// Cgroups are those that are to pay, with what is below them; none is all.
	// Reclaim and OOM kills are also shown of what is above them.
	Cgroups []cgroup.Path
	// Containers are likewise, by the beginnings of their ids.
	Containers []string
	// Kinds are those of the counters that charges are to; none is all.
	Kinds event.Kinds
	// MinPages leaves out charges of fewer pages, and since there is no balance of
	// some charges, all events that [event.Type.IsNet] names.
	MinPages uint64
	// OnlyLimited leaves out charges for which [event.Event.LimitHit] is false, and
	// these events too.
	OnlyLimited bool
	// MaxCharges is how many are shown; 0 is no limit.
	MaxCharges uint64
}

// Balances reports whether what is shown to be given back can be held against what
// is shown to be charged: processes give back what others charged.
func (a Aim) Balances() bool {
	return len(a.PIDs) == 0 && a.Comms == nil && !a.chargesSome()
}

// BalancesMemory reports whether what cgroups held, which is memory, can be held
// against both.
func (a Aim) BalancesMemory() bool {
	return a.Balances() && (a.Kinds == 0 || a.Kinds.Has(event.Memory))
}

// Header returns the header of what is shown of a source that has that header.
func (a Aim) Header(h Header) Header {
	h.Net = h.Net && a.Balances()
	return h
}

// chargesSome reports whether charges are left out by what they are.
func (a Aim) chargesSome() bool { return a.MinPages > 0 || a.OnlyLimited }

// chooser tells which events are aimed at.
type chooser struct {
	Aim
	pageSize uint64
	// targets are the PIDs, and with Follow what descends from them. children
	// are those that were forked before the trace.
	targets  map[uint32]bool
	children map[uint32][]uint32

	names  cgroup.Names
	places map[event.CgroupID]place
	// found are the ids of the containers that are aimed at, by their
	// beginnings, and containers where they are.
	found      map[string]string
	containers []cgroup.Path
	err        error
}

// place is where a cgroup is from those that are aimed at.
type place uint8

const (
	placeUnknown place = iota
	elsewhere
	above
	within
)

func newChooser(aim Aim, pageSize int) *chooser {
	c := &chooser{
		Aim: aim, pageSize: uint64(pageSize), targets: make(map[uint32]bool), children: make(map[uint32][]uint32),
		places: make(map[event.CgroupID]place), found: make(map[string]string),
	}
	for _, pid := range aim.PIDs {
		c.targets[pid] = true
	}
	return c
}

func (c *chooser) includes(e *event.Event) bool {
	switch e.Type {
	case event.Lost, event.Stack:
		return true
	case event.CgroupName:
		if c.aimsAtCgroups() {
			c.names.Add(e)
			delete(c.places, e.Cgroup)
		}
		return true
	case event.Fork:
		return c.fork(e)
	case event.Usage:
		return c.BalancesMemory() && (!c.aimsAtCgroups() || c.placeOf(e.Cgroup) == within)
	}
	if !c.includesTask(e.PID, &e.Comm) &&
		(e.Type != event.OOMKill || !c.includesTask(e.Victim.PID, &e.Victim.Comm)) {
		return false
	}
	if c.aimsAtCgroups() {
		if p := c.placeOf(e.Cgroup); p != within && (p != above || e.Type == event.Charge || e.Type.IsNet()) {
			return false
		}
	}
	switch ofKind := c.Kinds == 0 || c.Kinds.Has(e.Kind); {
	case e.Type.IsNet():
		return ofKind && !c.chargesSome()
	case e.Type != event.Charge:
		return true
	case !ofKind:
		return false
	}
	minimum := c.MinPages
	if e.Kind == event.Dmem {
		minimum *= c.pageSize
	}
	return e.RequestedPages >= minimum && (!c.OnlyLimited || e.LimitHit())
}

func (c *chooser) aimsAtCgroups() bool { return len(c.Cgroups)+len(c.Containers) > 0 }

func (c *chooser) includesTask(pid uint32, comm *event.Comm) bool {
	return (len(c.PIDs) == 0 || c.targets[pid]) && (c.Comms == nil || c.Comms.Match(comm.Bytes()))
}

// fork learns of a process. A fork is shown where its parent is aimed at.
func (c *chooser) fork(e *event.Event) bool {
	if len(c.PIDs) == 0 {
		return true
	}
	byTarget := c.targets[e.PID]
	switch {
	case !c.Follow:
	case byTarget:
		c.follow(e.ChildPID)
	case e.Flags&event.Existing != 0:
		// They come by their numbers, which go round: the parent may be next.
		c.children[e.PID] = append(c.children[e.PID], e.ChildPID)
	case !slices.Contains(c.PIDs, e.ChildPID):
		delete(c.targets, e.ChildPID) // what had that number is gone
	}
	return byTarget
}

func (c *chooser) follow(pid uint32) {
	c.targets[pid] = true
	children := c.children[pid]
	delete(c.children, pid)
	for _, child := range children {
		c.follow(child)
	}
}

// placeOf returns where a cgroup is. The machine as a whole is above all.
func (c *chooser) placeOf(id event.CgroupID) place {
	if id.ID == 0 {
		return above
	}
	p, ok := c.places[id]
	if !ok {
		p = c.findPlace(id, c.names.Path(id))
		c.places[id] = p
	}
	return p
}

func (c *chooser) findPlace(id event.CgroupID, path string) place {
	c.findContainer(path)
	p := elsewhere
	for _, target := range slices.Concat(c.Cgroups, c.containers) {
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

// findContainer makes the container of a path a target, if it is aimed at.
func (c *chooser) findContainer(path string) {
	container := cgroup.ContainerOf(path)
	for _, prefix := range c.Containers {
		if container.ID == "" || !strings.HasPrefix(container.ID, prefix) {
			continue
		}
		switch other, ok := c.found[prefix]; {
		case !ok:
			c.found[prefix] = container.ID
		case other != container.ID:
			c.err = fmt.Errorf("-container %s is ambiguous: there are %s and %s", prefix, other, container.ID)
		}
		end := strings.Index(path, container.ID) + len(container.ID)
		if slash := strings.IndexByte(path[end:], '/'); slash >= 0 {
			path = path[:end+slash]
		}
		target := cgroup.Path{V1: path, V2: path}
		if !slices.Contains(c.containers, target) {
			c.containers = append(c.containers, target)
			clear(c.places)
		}
	}
}
