package cgroup

import (
	"regexp"
	"strings"
)

// Container identifies the container of a cgroup.
type Container struct {
	// Runtime is docker, containerd, cri-o or podman, or empty if the path does not
	// contain it.
	Runtime string
	// ID is the full id of the container; empty for the cgroup of a pod.
	ID string
	// Pod is the UID of the Kubernetes pod, if any.
	Pod string
}

// String returns docker:1a2b3c4d5e6f for a container, pod:UID for a pod, and otherwise
// the empty string.
func (c Container) String() string {
	if c.ID == "" {
		if c.Pod == "" {
			return ""
		}
		return "pod:" + c.Pod
	}
	runtime := c.Runtime
	if runtime == "" {
		runtime = "container"
	}
	// The runtimes' own commands shorten ids to 12 characters.
	return runtime + ":" + c.ID[:min(12, len(c.ID))]
}

// The names of cgroup directories, by their creator:
//
//	Docker      docker-ID.scope, docker/ID
//	containerd  cri-containerd-ID.scope, nerdctl-ID.scope, SLICE:cri-containerd:ID
//	CRI-O       crio-ID.scope, crio-ID
//	Podman      libpod-ID.scope, libpod-ID, libpod_parent/libpod-ID
//	kubelet     ...-podUID.slice with _ for -, podUID, and below it only the ID
//	runc        only the ID
//
// The first name is that of the systemd driver. The monitors of CRI-O and Podman,
// crio-conmon-ID and libpod-conmon-ID, do not belong to a container.
var (
	prefixedID = regexp.MustCompile(`^(?:(.*):)?(docker|cri-containerd|nerdctl|crio|libpod)[-:]([0-9a-f]{64})(?:\.scope)?$`)
	plainID    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	podSlice   = regexp.MustCompile(`(?:^|-)pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$`)
)

var runtimes = map[string]string{
	"docker": "docker", "cri-containerd": "containerd", "nerdctl": "containerd", "crio": "cri-o", "libpod": "podman",
}

// ContainerOf returns the container of the cgroup with this path, the innermost of
// nested ones.
func ContainerOf(path string) Container {
	var c Container
	parent := ""
	for name := range strings.SplitSeq(path, "/") {
		if m := podSlice.FindStringSubmatch(name); m != nil {
			c = Container{Pod: strings.ReplaceAll(m[1], "_", "-")}
		}
		if m := prefixedID.FindStringSubmatch(name); m != nil {
			pod := c.Pod
			if c.ID != "" { // a container in that container
				pod = ""
			}
			if slice := podSlice.FindStringSubmatch(m[1]); slice != nil {
				pod = strings.ReplaceAll(slice[1], "_", "-")
			}
			c = Container{Runtime: runtimes[m[2]], ID: m[3], Pod: pod}
		} else if plainID.MatchString(name) {
			switch {
			case parent == "docker":
				c = Container{Runtime: "docker", ID: name}
			case c.Pod != "" && c.ID == "":
				c.ID = name
			default:
				c = Container{ID: name}
			}
		}
		parent = name
	}
	return c
}
