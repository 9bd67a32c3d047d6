package cgroup

import (
	"regexp"
	"strings"
)

// Container is the container whose cgroup it is.
type Container struct {
	// Runtime is docker, containerd, cri-o or podman, or empty where the path
	// does not tell.
	Runtime string
	// ID is the container's id in full; empty for the cgroup of a pod.
	ID string
	// Pod is the UID of its Kubernetes pod, if it has one.
	Pod string
}

// String returns the container as docker:1a2b3c4d5e6f, or pod:UID, or the empty
// string where there is none.
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
	// As the runtimes' own commands shorten it.
	return runtime + ":" + c.ID[:min(12, len(c.ID))]
}

// The names of directories, by what makes them:
//
//	Docker      docker-ID.scope, docker/ID
//	containerd  cri-containerd-ID.scope, nerdctl-ID.scope, SLICE:cri-containerd:ID
//	CRI-O       crio-ID.scope, crio-ID
//	Podman      libpod-ID.scope, libpod-ID, libpod_parent/libpod-ID
//	kubelet     ...-podUID.slice with _ for -, podUID, and below it the ID alone
//	runc        ID alone
//
// The first of each are those of the systemd driver. The monitors of CRI-O and
// Podman, crio-conmon-ID and libpod-conmon-ID, are not in their containers.
var (
	prefixedID = regexp.MustCompile(`^(?:(.*):)?(docker|cri-containerd|nerdctl|crio|libpod)[-:]([0-9a-f]{64})(?:\.scope)?$`)
	plainID    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	podSlice   = regexp.MustCompile(`(?:^|-)pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$`)
)

var runtimes = map[string]string{
	"docker": "docker", "cri-containerd": "containerd", "nerdctl": "containerd", "crio": "cri-o", "libpod": "podman",
}

// ContainerOf returns the container that the cgroup at a path belongs to: the
// innermost, where there are containers in containers.
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
