// Package cgroup resolves the paths and labels of cgroups in a trace. [Names] uses only the
// events of the trace, never this machine, so that recordings and removed cgroups have the same
// names.
//
// It also finds cgroups of this machine for filters, reads their usage, and makes cgroups
// with limits for commands; see [Trees], [Target] and [Make].
package cgroup

import (
	"iter"
	"slices"
	"strconv"
	"strings"

	"chargetrace/internal/container"
	"chargetrace/internal/event"
)

// Names are the names of the cgroups in a trace. The zero value is empty.
type Names struct {
	nodes map[event.CgroupID]*node
	// replaced counts the names that replaced others: those below them have other paths and
	// labels from then on.
	replaced int
}

// node has the fields of an event of type [event.CgroupName].
type node struct {
	parent         uint64
	name, identity string
	described      *description // cached by describe
}

// description is what the names of a cgroup and its ancestors say.
type description struct {
	path, printable, label string
	identity               container.Identity
	replaced               int // of Names
}

// Add adds the name in an event of type [event.CgroupName].
func (n *Names) Add(e *event.Event) {
	if n.nodes == nil {
		n.nodes = make(map[event.CgroupID]*node)
	}
	if n.Replaces(e) {
		n.replaced++
	}
	n.nodes[e.Cgroup] = &node{parent: e.ParentID, name: e.Name, identity: e.Identity}
}

// Remove forgets the name of a cgroup that is gone, after those below it.
func (n *Names) Remove(id event.CgroupID) { delete(n.nodes, id) }

// Has reports whether a cgroup has a name.
func (n *Names) Has(id event.CgroupID) bool { return n.nodes[id] != nil }

// Replaces reports whether an event of type [event.CgroupName] has another name, parent or
// identity for a cgroup than the event before it.
func (n *Names) Replaces(e *event.Event) bool {
	nd := n.nodes[e.Cgroup]
	return nd != nil && (nd.parent != e.ParentID || nd.name != e.Name || nd.identity != e.Identity)
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
func (n *Names) Path(id event.CgroupID) string { return n.describe(id).path }

// Printable returns the path as [event.AppendPrintable] prints it.
func (n *Names) Printable(id event.CgroupID) string { return n.describe(id).printable }

// Label returns the printable label of the cgroup; see [container.Identity.Label].
func (n *Names) Label(id event.CgroupID) string { return n.describe(id).label }

// Identity returns the container, pod or user of the cgroup, printable.
func (n *Names) Identity(id event.CgroupID) container.Identity { return n.describe(id).identity }

func (n *Names) describe(id event.CgroupID) *description {
	nd := n.nodes[id]
	if nd != nil && nd.described != nil && nd.described.replaced == n.replaced {
		return nd.described
	}
	path, complete := n.join(id)
	i, own := container.Of(path)
	if own != "" {
		i = i.Update(n.namesOf(id, i, len(path)-len(own)))
	}
	d := &description{path, event.Printable(path), event.Printable(i.Label(path, own)), i.Map(event.Printable[string]), n.replaced}
	if complete {
		nd.described = d
	}
	return d
}

// namesOf returns the names in the events of a cgroup's ancestors: those of its container, pod or
// user, whose path is shorter by some bytes, and of the pod that the container is in.
func (n *Names) namesOf(id event.CgroupID, i container.Identity, shorter int) (names container.Identity) {
	for ancestor := range n.Lineage(id) {
		nd := n.nodes[ancestor]
		if nd == nil {
			break
		}
		if known := container.Decode(nd.identity); shorter == 0 {
			names = known
		} else if shorter < 0 && names.Pod == "" && i.PodUID != "" && known.PodUID == i.PodUID {
			names.Namespace, names.Pod = known.Namespace, known.Pod
		}
		shorter -= len("/") + len(nd.name)
	}
	return names
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
