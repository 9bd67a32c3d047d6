package cgroup

import (
	"slices"
	"strings"
	"testing"

	"chargetrace/internal/event"
)

func name(hierarchy uint32, id, parent uint64, name string) *event.Event {
	return &event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: id, Hierarchy: hierarchy}, ParentID: parent, Name: name}
}

func TestNames(t *testing.T) {
	var n Names
	id := func(id uint64) event.CgroupID { return event.CgroupID{ID: id} }
	if got := n.Path(id(3)); got != "(cgroup 3)" {
		t.Errorf("without names: %q", got)
	}
	// A trace can name a child before its parent.
	n.Add(name(0, 3, 2, "b"))
	if got := n.Path(id(3)); got != "(cgroup 2)/b" {
		t.Errorf("without its parent: %q", got)
	}
	n.Add(name(0, 2, 1, "a\x1b"))
	n.Add(name(0, 1, 0, ""))
	n.Add(name(4, 3, 1, "other"))
	n.Add(name(4, 1, 0, ""))
	n.Add(name(0, 8, 9, "x"))
	n.Add(name(0, 9, 8, "y"))
	for want, cg := range map[string]event.CgroupID{
		"/a\x1b/b": id(3), "/": id(1), "/other": {ID: 3, Hierarchy: 4}, "(cgroup 3)": {ID: 3, Hierarchy: 5},
	} {
		for range 2 {
			if got := n.Path(cg); got != want {
				t.Errorf("%v: %q, want %q", cg, got, want)
			}
		}
	}
	if got := n.Printable(id(3)); got != `/a\x1b/b` {
		t.Errorf("printable: %q", got)
	}
	if got := slices.Collect(n.Lineage(id(3))); !slices.Equal(got, []event.CgroupID{id(3), id(2), id(1)}) {
		t.Errorf("lineage: %v", got)
	}
	if got := slices.Collect(n.Lineage(id(8))); len(got) != maxDepth {
		t.Errorf("lineage in a cycle: %d cgroups", len(got))
	}
	if got := n.Path(id(8)); !strings.HasSuffix(got, "/y/x") {
		t.Errorf("in a cycle: %q", got)
	}
}
