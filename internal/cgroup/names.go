// Package cgroup resolves the paths and containers of cgroups in a trace. [Names] and
// [ContainerOf] use only the events of the trace, never this machine, so that recordings
// and removed cgroups have the same names.
//
// It also finds cgroups of this machine for filters, reads their usage, and makes cgroups
// with limits for commands; see [Trees], [Target] and [Make].
package cgroup

import (
	"iter"
	"slices"
	"strconv"
	"strings"

	"chargetrace/internal/event"
)

// Names are the names of the cgroups in a trace. The zero value is empty.
type Names struct {
	nodes map[event.CgroupID]*node
}

type node struct {
	parent          uint64
	name            string
	path, printable string     // cached by lookup
	container       *Container // cached by Container
}

// Add adds the name in an event of type [event.CgroupName].
func (n *Names) Add(e *event.Event) {
	if n.nodes == nil {
		n.nodes = make(map[event.CgroupID]*node)
	}
	n.nodes[e.Cgroup] = &node{parent: e.ParentID, name: e.Name}
}

// Replaces reports whether an event of type [event.CgroupName] has another name or parent
// for a cgroup than the event before it.
func (n *Names) Replaces(e *event.Event) bool {
	nd := n.nodes[e.Cgroup]
	return nd != nil && (nd.parent != e.ParentID || nd.name != e.Name)
}

// Parent returns the parent of a cgroup. ok is false unless both have names.
func (n *Names) Parent(id event.CgroupID) (parent event.CgroupID, ok bool) {
	nd := n.nodes[id]
	if nd == nil {
		return event.CgroupID{}, false
	}
	parent = event.CgroupID{ID: nd.parent, Hierarchy: id.Hierarchy}
	return parent, n.nodes[parent] != nil
}

// Lineage returns a cgroup and its ancestors, up to the first one without a name.
func (n *Names) Lineage(id event.CgroupID) iter.Seq[event.CgroupID] {
	return func(yield func(event.CgroupID) bool) {
		for i, ok := 0, true; ok && i < maxDepth && yield(id); i++ {
			id, ok = n.Parent(id)
		}
	}
}

// maxDepth limits the levels of a path, so that a cycle of parents ends.
const maxDepth = 256

// Path returns the path of a cgroup from the root of its hierarchy, such as
// "/system.slice/docker-1a2b.scope": the directory's path below the host's mount.
// "(cgroup 4711)" replaces a cgroup without a name and everything above it. A path can
// contain any bytes: print it with [event.AppendPrintable], or use [Names.Printable].
func (n *Names) Path(id event.CgroupID) string {
	path, _ := n.lookup(id)
	return path
}

// Printable returns the path as [event.AppendPrintable] prints it.
func (n *Names) Printable(id event.CgroupID) string {
	_, printable := n.lookup(id)
	return printable
}

// Container returns the container of a cgroup; see [ContainerOf].
func (n *Names) Container(id event.CgroupID) Container {
	path, _ := n.lookup(id)
	nd := n.nodes[id]
	if nd == nil || nd.path == "" {
		return ContainerOf(path)
	}
	if nd.container == nil {
		c := ContainerOf(path)
		nd.container = &c
	}
	return *nd.container
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
