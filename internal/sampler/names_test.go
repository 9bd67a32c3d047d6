//go:build linux

package sampler

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"chargetrace/internal/container"
	"chargetrace/internal/event"
)

// TestNameSampler names the cgroups of a pod whose name is unknown until its first container
// starts, of a container whose name is found only at the end, and of one that is named again.
func TestNameSampler(t *testing.T) {
	const uid = "8f9a1c2d-0b1e-4f3a-9c5d-6e7f80918273"
	java, late := strings.Repeat("1", 64), strings.Repeat("2", 64)
	found := map[string]container.Identity{
		"/pod" + uid + "/" + java: {ID: java, Name: "java", Namespace: "shop", Pod: "cart", PodUID: uid},
	}
	asked := make(map[string]int)
	find := func(path string) (container.Identity, bool) {
		asked[path]++
		i, ok := found[path]
		if !ok {
			i, _ = container.Of(path)
		}
		return i, ok
	}
	src := &eventSource{batches: make(chan []event.Event, 4)}
	clock := uint64(1)
	s := NewNames(src, find, func() uint64 { return clock })
	name := func(id, parent uint64, name string) event.Event {
		return event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: id}, ParentID: parent, Name: name}
	}
	var got []string
	batch := make([]event.Event, 16)
	read := func() bool {
		n, err := s.Read(batch)
		for _, e := range batch[:n] {
			if e.Type == event.CgroupName {
				i := container.Decode(e.Identity)
				got = append(got, fmt.Sprintf("%d: %s %s", e.Cgroup.ID, i.Name, i.PodName()))
			} else {
				got = append(got, "event")
			}
		}
		return err == nil
	}
	src.batches <- []event.Event{name(2, 1, "pod"+uid), name(1, 0, ""), name(3, 2, "x"), {Type: event.Charge}} // as the kernel sends them
	src.batches <- []event.Event{name(4, 2, java), name(5, 2, late), name(4, 2, java)}
	for len(got) < 8 && read() {
	}
	found["/pod"+uid+"/"+late] = container.Identity{ID: late, Name: "late", PodUID: uid}
	src.batches <- []event.Event{name(4, 1, java)} // renamed, as in cgroup v1
	close(src.batches)
	for read() {
	}
	want := []string{
		"2:  ", "1:  ", "3:  ", "event",
		"4: java shop/cart", "5:  ", "4: java shop/cart", "2:  shop/cart",
		"4:  ", "5: late ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if n := asked["/pod"+uid+"/"+java]; n != 1 || asked["/pod"+uid+"/x"] != 0 {
		t.Errorf("looked for the names of the first container %d times, of cgroups in all: %v", n, asked)
	}
}
