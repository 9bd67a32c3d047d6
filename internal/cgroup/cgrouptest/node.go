// Package cgrouptest has the events of a node for tests of outputs.
package cgrouptest

import (
	"fmt"

	"chargetrace/internal/container"
	"chargetrace/internal/event"
)

// Start is the BootNanos at which the trace of [Node] began.
const Start = 1e9

const (
	ms        = 1e6
	unlimited = 1 << 60
)

// node makes the events.
type node struct {
	names, charges []event.Event
	lastID         uint64
}

// Node returns the events of a node with twenty containers in ten pods, whose names and paths
// begin and end alike, a container of Docker, a unit that was started twice, other units and a
// login session. Each charges at least twice.
func Node() []event.Event {
	n := new(node)
	root := n.cgroup(0, "", container.Identity{})
	kubepods := n.cgroup(root, "kubepods.slice", container.Identity{})
	burstable := n.cgroup(kubepods, "kubepods-burstable.slice", container.Identity{})
	for i := range 10 {
		namespace, pod := "shop", fmt.Sprintf("cart-7d9f6c5b8%d-x2x4q", i)
		if i >= 5 {
			namespace, pod = "payments-production", fmt.Sprintf("checkout-service-6f7b9d4c5-%dbcde", i)
		}
		uid := fmt.Sprintf("8f9a1c2d-0b1e-4f3a-9c5d-6e7f8091827%d", i)
		slice := n.cgroup(burstable, "kubepods-burstable-pod"+underscored(uid)+".slice", container.Identity{PodUID: uid, Namespace: namespace, Pod: pod})
		for j, name := range []string{"java", "istio-proxy"} {
			id := fmt.Sprintf("%02x%062x", 0xa0+2*i+j, 0xfeed)
			names := container.Identity{Runtime: "containerd", ID: id, Name: name, Namespace: namespace, Pod: pod, PodUID: uid}
			if i == 9 && j == 1 {
				names = container.Identity{} // nobody knows its name
			}
			scope := n.cgroup(slice, "cri-containerd-"+id+".scope", names)
			limit := event.Level{CgroupID: scope, MaxPages: 128}
			if i%2 == 1 {
				limit.CgroupID = slice
			}
			n.charge(scope, limit, fmt.Sprintf("%.15s", name))
		}
	}
	system := n.cgroup(root, "system.slice", container.Identity{})
	docker := fmt.Sprintf("%064x", 0xd0c4e4)
	n.charge(n.cgroup(system, "docker-"+docker+".scope", container.Identity{ID: docker, Name: "web-1"}), event.Level{}, "nginx")
	for _, unit := range []string{"leaky.service", "steady.service", "my-very-busy.service", "leaky.service"} {
		n.charge(n.cgroup(system, unit, container.Identity{}), event.Level{}, "unit")
	}
	users := n.cgroup(root, "user.slice", container.Identity{})
	alice := n.cgroup(users, "user-1000.slice", container.Identity{UID: "1000", User: "alice"})
	n.charge(n.cgroup(alice, "session-3.scope", container.Identity{}), event.Level{}, "bash")
	return append(n.names, n.charges...)
}

func underscored(uid string) string {
	b := []byte(uid)
	for i, c := range b {
		if c == '-' {
			b[i] = '_'
		}
	}
	return string(b)
}

// cgroup adds the name of a cgroup and returns its ID.
func (n *node) cgroup(parent uint64, name string, i container.Identity) uint64 {
	n.lastID++
	n.names = append(n.names, event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: n.lastID}, ParentID: parent, Name: name, Identity: i.Encode()})
	return n.lastID
}

// charge adds charges of 64 pages to a cgroup until they fail at a limit, or two without one.
func (n *node) charge(id uint64, limit event.Level, comm string) {
	for i := range 3 {
		if i == 2 && limit.MaxPages == 0 {
			break
		}
		usage := int64(64 * i)
		e := event.Event{
			Type: event.Charge, BootNanos: Start + uint64(len(n.charges)+1)*10*ms, PID: uint32(4000 + id), TID: uint32(4000 + id),
			Cgroup: event.CgroupID{ID: id}, Kind: event.Memory, Outcome: event.OK, RequestedPages: 64, UsagePages: usage,
			MaxPages: unlimited, Limiting: event.Level{MaxPages: unlimited}, High: event.Level{MaxPages: unlimited},
		}
		copy(e.Comm[:], comm)
		if limit.MaxPages > 0 {
			e.Limiting = event.Level{CgroupID: limit.CgroupID, UsagePages: usage, MaxPages: limit.MaxPages}
			if limit.CgroupID == id {
				e.MaxPages = limit.MaxPages
			}
			if usage+64 > int64(limit.MaxPages) {
				e.Outcome, e.FailedAt = event.Failed, limit.CgroupID
			}
		}
		n.charges = append(n.charges, e)
	}
}
