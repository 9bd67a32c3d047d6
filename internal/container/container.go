// Package container labels cgroups by their container, pod, systemd unit or login session. [Of]
// and [Identity.Label] use the path of the cgroup alone; [Finder] reads the names that container
// runtimes and the kubelet keep in files. It must not know events.
package container

import (
	"cmp"
	"regexp"
	"strings"
)

// Identity has the names of a cgroup's container, pod or user. Unknown fields are empty. The names
// can contain any bytes.
type Identity struct {
	// Runtime is docker, containerd, cri-o or podman, or machine for a container or virtual
	// machine of systemd-machined.
	Runtime string
	// ID is the full id of the container; empty for the cgroup of a pod, and for a machine.
	ID string
	// Name is the container's.
	Name string
	// Namespace and Pod are the names of the Kubernetes pod, and PodUID is its UID.
	Namespace, Pod, PodUID string
	// UID is the user of a login session, of a user's systemd, or of a container without root,
	// and User the name.
	UID, User string
}

// ShortID returns the beginning of the id, as long as the runtimes' own commands print it.
func (i Identity) ShortID() string { return i.ID[:min(12, len(i.ID))] }

// IsContainer reports whether the identity is that of a container.
func (i Identity) IsContainer() bool { return i.ID != "" || i.Runtime == machine }

// HasPod reports whether the identity is that of a pod or a container in one.
func (i Identity) HasPod() bool { return i.PodUID != "" || i.Pod != "" }

// PodName returns NAMESPACE/POD, or an empty string if it is unknown.
func (i Identity) PodName() string {
	if i.Pod == "" {
		return ""
	}
	return i.Namespace + "/" + i.Pod
}

// pod returns what the pod is called: NAMESPACE/POD, or else its UID.
func (i Identity) pod() string {
	switch {
	case i.Pod != "":
		return i.PodName()
	case i.PodUID != "":
		return "pod " + i.PodUID
	}
	return ""
}

// user returns the name of the user, or else "user UID".
func (i Identity) user() string {
	if i.User == "" && i.UID != "" {
		return "user " + i.UID
	}
	return i.User
}

// The names of cgroup directories, by their creator:
//
//	Docker      docker-ID.scope, docker/ID
//	containerd  cri-containerd-ID.scope, nerdctl-ID.scope, SLICE:cri-containerd:ID
//	CRI-O       crio-ID.scope, crio-ID
//	Podman      libpod-ID.scope, libpod-ID, libpod_parent/libpod-ID
//	kubelet     ...-podUID.slice with _ for -, podUID, and below it only the ID
//	runc        only the ID
//	machined    machine-NAME.scope, systemd-nspawn@NAME.service
//	logind      user-UID.slice, and below it session-ID.scope and user@UID.service
//
// The first name is that of the systemd driver. The monitors of CRI-O and Podman,
// crio-conmon-ID and libpod-conmon-ID, do not belong to a container.
var (
	prefixedID  = regexp.MustCompile(`^(?:(.*):)?(docker|cri-containerd|nerdctl|crio|libpod)[-:]([0-9a-f]{64})(?:\.scope)?$`)
	plainID     = regexp.MustCompile(`^[0-9a-f]{64}$`)
	podSlice    = regexp.MustCompile(`(?:^|-)pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$`)
	machineUnit = regexp.MustCompile(`^(?:machine-(.+)\.scope|systemd-nspawn@(.+)\.service)$`)
	userSlice   = regexp.MustCompile(`^user-([0-9]{1,10})\.slice$`)
	unitName    = regexp.MustCompile(`^[0-9A-Za-z:_.\\@-]+\.(?:service|scope|socket|mount|swap)$`) // systemd.unit(5)
)

var runtimes = map[string]string{
	"docker": "docker", "cri-containerd": "containerd", "nerdctl": "containerd", "crio": "cri-o", "libpod": "podman",
}

const machine = "machine"

// Of returns the identity of the cgroup with this path, and the part of the path up to the
// cgroup that the identity names: the innermost of nested containers, else the pod, else the
// user's slice. Without any of these, both are empty.
func Of(path string) (i Identity, own string) {
	parent, end := "", 0
	for name := range strings.SplitSeq(path, "/") {
		end += len(name)
		if child := i.child(parent, name); child != i {
			i, own = child, path[:end]
		}
		parent = name
		end++
	}
	return i, own
}

// child returns the identity of a cgroup below that of i. parent and name are the last
// components of the path.
func (i Identity) child(parent, name string) Identity {
	if m := podSlice.FindStringSubmatch(name); m != nil {
		return Identity{PodUID: strings.ReplaceAll(m[1], "_", "-")}
	}
	if m := prefixedID.FindStringSubmatch(name); m != nil {
		c := Identity{Runtime: runtimes[m[2]], ID: m[3], UID: i.UID}
		if i.ID == "" { // otherwise it is a container in that container
			c.PodUID = i.PodUID
		}
		if slice := podSlice.FindStringSubmatch(m[1]); slice != nil {
			c.PodUID = strings.ReplaceAll(slice[1], "_", "-")
		}
		return c
	}
	if plainID.MatchString(name) {
		switch {
		case parent == "docker":
			return Identity{Runtime: "docker", ID: name, UID: i.UID}
		case i.PodUID != "" && i.ID == "":
			return Identity{ID: name, PodUID: i.PodUID}
		}
		return Identity{ID: name, UID: i.UID}
	}
	if m := machineUnit.FindStringSubmatch(name); m != nil && i.ID == "" && i.UID == "" {
		return Identity{Runtime: machine, Name: unescapeUnit(m[1] + m[2])}
	}
	if m := userSlice.FindStringSubmatch(name); m != nil && i == (Identity{}) {
		return Identity{UID: m[1]}
	}
	return i
}

// unescapeUnit replaces the escape of - in the name of a unit (systemd.unit(5)).
func unescapeUnit(s string) string { return strings.ReplaceAll(s, `\x2d`, "-") }

// IsUnit reports whether s is the name of a kind of systemd unit that has cgroups, or a pattern of
// such names.
func IsUnit(s string) bool {
	if strings.Contains(s, "/") {
		return false
	}
	for _, suffix := range []string{".service", ".scope", ".slice", ".socket", ".mount", ".swap"} {
		if strings.HasSuffix(s, suffix) {
			return true
		}
	}
	return false
}

// Unit returns the name of this machine's systemd unit that has exactly this cgroup, or an empty
// string. Units in containers are not of this machine, but a container can be a unit itself.
func Unit(path string) string {
	name := path[strings.LastIndexByte(path, '/')+1:]
	if i, own := Of(path); i.IsContainer() && own != path || !IsUnit(name) {
		return ""
	}
	return name
}

// Separator is between the parts of a label.
const Separator = " · "

// Label returns the label of the cgroup with a path, given its identity with all names, and own as
// [Of] returns it: "java · 3f2a7c1e6b9d · shop/cart-7d9f" for a container, "pod shop/cart-7d9f"
// for a pod, "leaky.service" for a systemd unit, "session-3.scope · alice" for one of a user,
// otherwise the path. A cgroup below a container has its path there after the container's name:
// "java/worker · 3f2a7c1e6b9d".
func (i Identity) Label(path, own string) string {
	inside := path[min(len(own), len(path)):]
	var parts []string
	add := func(s string) {
		if s != "" {
			parts = append(parts, s)
		}
	}
	switch {
	case i.ID != "":
		if i.Name != "" {
			add(i.Name + inside)
			add(i.ShortID())
		} else {
			add(i.ShortID() + inside)
		}
		add(i.pod())
		add(i.user())
	case i.HasPod():
		add("pod " + cmp.Or(i.PodName(), i.PodUID) + inside)
	case i.Runtime == machine:
		if unit := lastUnit(inside); unit != "" {
			add(unit)
			inside = ""
		}
		add("machine " + i.Name + inside)
	default:
		unit := lastUnit(path)
		if unit == "" {
			return path
		}
		add(unit)
		add(i.user())
	}
	return strings.Join(parts, Separator)
}

// lastUnit returns the part of a path from its last component on that is a unit other than a
// slice; empty if there is none.
func lastUnit(path string) string {
	for end := len(path); end > 0; {
		begin := strings.LastIndexByte(path[:end], '/') + 1
		if unitName.MatchString(path[begin:end]) {
			return path[begin:]
		}
		end = begin - 1
	}
	return ""
}

// Update returns i with the fields of names that are not empty. The path alone says which
// container, pod or user it is.
func (i Identity) Update(names Identity) Identity {
	if i.ID == "" {
		names.Runtime = ""
	}
	if i.PodUID != "" {
		names.PodUID = ""
	}
	to, from := i.names(), names.names()
	for n := range to {
		if *from[n].value != "" {
			*to[n].value = *from[n].value
		}
	}
	return i
}

// Map returns i with f applied to the names; the other fields come from expressions that match
// only ASCII.
func (i Identity) Map(f func(string) string) Identity {
	for _, name := range i.names() {
		*name.value = f(*name.value)
	}
	return i
}

// field is a field of an Identity, by its name in [Identity.Encode].
type field struct {
	key   string
	value *string
}

// names are the fields that the path does not have.
func (i *Identity) names() [6]field {
	return [...]field{
		{"runtime", &i.Runtime}, {"name", &i.Name}, {"namespace", &i.Namespace}, {"pod", &i.Pod}, {"pod_uid", &i.PodUID}, {"user", &i.User},
	}
}

// maxValue bounds the fields: a name of a pod has at most 253 bytes.
const maxValue = 255

// Encode returns a line "key=value" for each name that is not empty. It leaves out those that
// are longer than any name, or contain a newline. The result is shorter than 2 KiB.
func (i Identity) Encode() string {
	var b strings.Builder
	for _, f := range i.names() {
		if v := *f.value; v != "" && len(v) <= maxValue && !strings.Contains(v, "\n") {
			b.WriteString(f.key + "=" + v + "\n")
		}
	}
	return b.String()
}

// Decode returns the Identity with the names that were encoded. It ignores unknown keys.
func Decode(s string) (i Identity) {
	names := i.names()
	for line := range strings.Lines(s) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		for _, f := range names {
			if f.key == key && len(value) <= maxValue {
				*f.value = value
			}
		}
	}
	return i
}
