// Package cgroup tells what a cgroup is called, and which container it is. There
// it asks nobody: what it knows comes with the events of a trace, so that it is
// the same for a recording, and for a cgroup that is long gone. Of the machine's own
// cgroups it finds those to aim at, reads what they hold, and makes some for commands
// that are to have a limit; see [Trees], [Target] and [Make].
package cgroup

import (
	"iter"
	"slices"
	"strconv"
	"strings"

	"chargetrace/internal/event"
)

// Names are the names of cgroups, as a trace tells them. The zero value knows
// none.
type Names struct {
	nodes map[event.CgroupID]*node
}

type node struct {
	parent          uint64
	name            string
	path, printable string // once they were asked for
}

// Add learns from an event of type [event.CgroupName].
func (n *Names) Add(e *event.Event) {
	if n.nodes == nil {
		n.nodes = make(map[event.CgroupID]*node)
	}
	n.nodes[e.Cgroup] = &node{parent: e.ParentID, name: e.Name}
}

// RanOut returns what ran out of memory, as an event of type [event.OOMKill] says:
// the path of a cgroup, as it may be printed, or "the machine".
func (n *Names) RanOut(e *event.Event) string {
	if e.Cgroup.ID == 0 {
		return "the machine"
	}
	return n.Printable(e.Cgroup)
}

// Parent returns the cgroup above another, if the trace names both.
func (n *Names) Parent(id event.CgroupID) (parent event.CgroupID, ok bool) {
	nd := n.nodes[id]
	if nd == nil {
		return event.CgroupID{}, false
	}
	parent = event.CgroupID{ID: nd.parent, Hierarchy: id.Hierarchy}
	return parent, n.nodes[parent] != nil
}

// Lineage returns a cgroup and its ancestors, as far as the trace names them.
func (n *Names) Lineage(id event.CgroupID) iter.Seq[event.CgroupID] {
	return func(yield func(event.CgroupID) bool) {
		for i, ok := 0, true; ok && i < maxDepth && yield(id); i++ {
			id, ok = n.Parent(id)
		}
	}
}

// maxDepth is how many levels a path has at most, so that parents that go round
// in a circle come to an end.
const maxDepth = 256

// Path returns the path of a cgroup from the root of its hierarchy, such as
// "/system.slice/docker-1a2b.scope": the directory's path below the host's
// mount. Where the name of an ancestor is not known, "(cgroup 4711)" stands for
// it, and for the path where the trace does not name the cgroup at all. A path
// can hold any bytes: print it with [event.AppendPrintable], or take
// [Names.Printable].
func (n *Names) Path(id event.CgroupID) string {
	path, _ := n.lookup(id)
	return path
}

// Printable returns the path as [event.AppendPrintable] makes it.
func (n *Names) Printable(id event.CgroupID) string {
	_, printable := n.lookup(id)
	return printable
}

func (n *Names) lookup(id event.CgroupID) (path, printable string) {
	if nd := n.nodes[id]; nd != nil && nd.path != "" {
		return nd.path, nd.printable
	}
	path, complete := n.join(id)
	printable = event.Printable(path)
	if complete {
		nd := n.nodes[id]
		nd.path, nd.printable = path, printable
	}
	return path, printable
}

func (n *Names) join(id event.CgroupID) (path string, complete bool) {
	var names []string
	for range maxDepth {
		nd := n.nodes[id]
		if nd == nil {
			names = append(names, "(cgroup "+strconv.FormatUint(id.ID, 10)+")")
			break
		}
		if nd.parent == 0 {
			complete = true
			break
		}
		names = append(names, nd.name)
		id.ID = nd.parent
	}
	slices.Reverse(names)
	path = strings.Join(names, "/")
	if complete {
		path = "/" + path
	}
	return path, complete
}
