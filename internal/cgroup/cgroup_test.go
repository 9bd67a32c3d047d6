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

func TestContainerOf(t *testing.T) {
	id, id2 := strings.Repeat("0123456789abcdef", 4), strings.Repeat("fedcba9876543210", 4)
	const pod, podUnder = "8f9a1c2d-0b1e-4f3a-9c5d-6e7f80918273", "8f9a1c2d_0b1e_4f3a_9c5d_6e7f80918273"
	for path, want := range map[string]Container{
		"/":                                     {},
		"/system.slice/ssh.service":             {},
		"/docker":                               {},
		"/docker/short":                         {},
		"/" + id:                                {"", id, ""}, // runc
		"/docker/" + id:                         {"docker", id, ""},
		"/docker/" + id + "/inner":              {"docker", id, ""},
		"/system.slice/docker-" + id + ".scope": {"docker", id, ""},
		"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + id + ".scope":                            {"docker", id, ""},
		"/system.slice/nerdctl-" + id + ".scope":                                                                      {"containerd", id, ""},
		"/machine.slice/libpod-" + id + ".scope/container":                                                            {"podman", id, ""},
		"/machine.slice/libpod-conmon-" + id + ".scope":                                                               {},
		"/libpod_parent/libpod-" + id:                                                                                 {"podman", id, ""},
		"/kubepods/burstable/pod" + pod:                                                                               {"", "", pod},
		"/kubepods/burstable/pod" + pod + "/" + id:                                                                    {"", id, pod},
		"/kubepods/pod" + pod + "/crio-" + id:                                                                         {"cri-o", id, pod},
		"/kubepods/pod" + pod + "/crio-conmon-" + id:                                                                  {"", "", pod},
		"/kubepods/besteffort/pod" + strings.ReplaceAll(pod, "-", "") + "/" + id:                                      {"", id, strings.ReplaceAll(pod, "-", "")},
		"/kubepods.slice/kubepods-pod" + podUnder + ".slice/cri-containerd-" + id + ".scope":                          {"containerd", id, pod},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + podUnder + ".slice/crio-" + id + ".scope": {"cri-o", id, pod},
		"/system.slice/containerd.service/kubepods-besteffort-pod" + podUnder + ".slice:cri-containerd:" + id:         {"containerd", id, pod},
		"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + podUnder + ".slice/docker-" + id + ".scope":    {"docker", id, pod},
		// kind, where a node is a container.
		"/docker/" + id2 + "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + podUnder + ".slice/cri-containerd-" + id + ".scope": {"containerd", id, pod},
		// Docker in the container of a pod.
		"/kubepods/pod" + pod + "/" + id2 + "/docker/" + id: {"docker", id, ""},
	} {
		if got := ContainerOf(path); got != want {
			t.Errorf("%s: %+v, want %+v", path, got, want)
		}
	}
	for want, c := range map[string]Container{
		"": {}, "pod:" + pod: {Pod: pod}, "docker:0123456789ab": {"docker", id, ""}, "container:0123456789ab": {"", id, pod},
	} {
		if got := c.String(); got != want {
			t.Errorf("%+v: %q, want %q", c, got, want)
		}
	}
}
