package container

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// The files with names, below the root. Container runtimes and the kubelet write them for their
// own use; those of containerd, CRI-O and Podman have the annotations of the CRI and of OCI.
const (
	// The kubelet keeps POD_NAMESPACE_CONTAINER-ID.log for each container and NAMESPACE_POD_UID
	// for each pod (pkg/kubelet/kuberuntime/legacy.go, helpers.go).
	containerLogs = "var/log/containers"
	podLogs       = "var/log/pods"
	// Docker keeps ID/config.v2.json below the data-root of daemon.json.
	dockerConfig = "etc/docker/daemon.json"
	dockerRoot   = "var/lib/docker"
	// CRI-O and Podman keep DRIVER-containers/ID/userdata/config.json, and Podman its names in
	// two files of DRIVER-containers (containers/storage). Containers with --rm are volatile.
	storageRun = "run/containers/storage"
	storage    = "var/lib/containers/storage"
	// systemd-logind keeps a file for each user (sd_uid_get_state(3)).
	userStates = "run/systemd/users"
)

// containerdTasks have NAMESPACE/ID/config.json: containerd of a distribution or Docker, and the
// copies of Kubernetes distributions.
var containerdTasks = []string{
	"run/containerd/io.containerd.runtime.v2.task",
	"run/docker/containerd/daemon/io.containerd.runtime.v2.task",
	"run/k3s/containerd/io.containerd.runtime.v2.task",
	"run/k0s/containerd/io.containerd.runtime.v2.task",
	"var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task",
}

// The files belong to others. Larger ones and more entries of a directory are not read.
const (
	maxFile    = 1 << 20
	maxStorage = 8 << 20 // of a file with all of Podman's containers
	maxEntries = 1 << 14
)

// Finder finds the names of containers, pods and users of this machine in files. It keeps the
// names of a directory or file until that changes.
type Finder struct {
	root       int // a file descriptor
	dockerRoot string

	buf []byte // of read

	logs, pods directory
	podman     map[string]*podmanFile // by path
}

// directory has the identities that the names of a directory's entries contain, by id of the
// container or UID of the pod.
type directory struct {
	version version
	names   map[string]Identity
}

// podmanFile has the names of Podman's containers, by id.
type podmanFile struct {
	version version
	names   map[string]string
}

// version identifies the content of a file or directory; the zero value does not.
type version struct {
	inode uint64
	size  int64
	mtime unix.Timespec
}

// NewFinder returns a Finder for the files below a directory, "/" or where another machine's or
// the host's root is mounted. Symbolic links cannot leave it.
func NewFinder(root string) (*Finder, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	f := &Finder{root: fd, dockerRoot: dockerRoot, podman: make(map[string]*podmanFile)}
	var config struct {
		DataRoot string `json:"data-root"`
	}
	if f.readJSON(dockerConfig, maxFile, &config) == nil && config.DataRoot != "" {
		f.dockerRoot = config.DataRoot
	}
	return f, nil
}

// Close frees what the Finder holds.
func (f *Finder) Close() error { return unix.Close(f.root) }

// Find returns the identity of the cgroup with a path, with the names in files. complete is false
// if there are none.
func (f *Finder) Find(cgroupPath string) (i Identity, complete bool) {
	i, _ = Of(cgroupPath)
	var names Identity
	switch {
	case i.UID != "":
		// A container without root has its name in a file of the user.
		names.User = f.user(i.UID)
		return i.Update(names), names.User != ""
	case i.ID != "":
		names = f.container(i)
		if names.Name == "" {
			return i, false
		}
	case i.PodUID != "":
		names = f.pods.find(f, podLogs, i.PodUID, parsePodLog)
		if names.Pod == "" {
			return i, false
		}
	default:
		return i, i.Runtime == machine
	}
	return i.Update(names), true
}

// container returns the names of a container. The kubelet's link has them all, but comes after
// the container has started.
func (f *Finder) container(i Identity) (names Identity) {
	if names = f.logs.find(f, containerLogs, i.ID, parseContainerLog); names.Name != "" {
		return names
	}
	for _, read := range []struct {
		runtime string
		names   func(id string) Identity
	}{
		{"containerd", f.containerd}, {"docker", f.docker}, {"cri-o", f.crio}, {"podman", f.podmanName},
	} {
		// Without a runtime in the path, it can be any.
		if i.Runtime == "" || i.Runtime == read.runtime {
			if names = read.names(i.ID); names.Name != "" {
				names.Runtime = cmp.Or(i.Runtime, read.runtime)
				return names
			}
		}
	}
	return Identity{}
}

func (f *Finder) user(uid string) string {
	content, err := f.read(path.Join(userStates, uid), maxFile)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(content)) {
		if name, ok := strings.CutPrefix(line, "NAME="); ok {
			return clean(strings.TrimSuffix(name, "\n"))
		}
	}
	return ""
}

// config is a config.json of OCI (opencontainers/runtime-spec), for its annotations.
type config struct {
	Annotations map[string]string `json:"annotations"`
}

// identity returns the names in annotations. containerd and CRI-O have their own keys.
func (c *config) identity() Identity {
	get := func(keys ...string) string {
		for _, key := range keys {
			if value := clean(c.Annotations[key]); value != "" {
				return value
			}
		}
		return ""
	}
	i := Identity{
		Name:      get("io.kubernetes.cri.container-name", "io.kubernetes.container.name", "nerdctl/name"),
		Namespace: get("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
		Pod:       get("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
		PodUID:    get("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"),
	}
	if get("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType") == "sandbox" {
		i.Name = "sandbox" // it has no name of its own, or that of the image
	}
	return i
}

func (f *Finder) containerd(id string) Identity {
	for _, tasks := range containerdTasks {
		for _, namespace := range f.list(tasks) {
			var c config
			if f.readJSON(path.Join(tasks, namespace, id, "config.json"), maxFile, &c) == nil {
				if i := c.identity(); i.Name != "" {
					return i
				}
			}
		}
	}
	return Identity{}
}

func (f *Finder) crio(id string) Identity {
	for _, dir := range f.storageDirs(storageRun) {
		var c config
		if f.readJSON(path.Join(dir, id, "userdata/config.json"), maxFile, &c) == nil {
			return c.identity()
		}
	}
	return Identity{}
}

// storageDirs returns the directories of containers below a storage, one for each storage driver.
func (f *Finder) storageDirs(storage string) (dirs []string) {
	for _, name := range f.list(storage) {
		if strings.HasSuffix(name, "-containers") {
			dirs = append(dirs, path.Join(storage, name))
		}
	}
	return dirs
}

func (f *Finder) docker(id string) Identity {
	var c struct {
		Name   string
		Config struct{ Labels map[string]string }
	}
	if f.readJSON(path.Join(f.dockerRoot, "containers", id, "config.v2.json"), maxFile, &c) != nil {
		return Identity{}
	}
	// cri-dockerd labels the containers of pods.
	labels := config{c.Config.Labels}
	i := labels.identity()
	i.Name = cmp.Or(i.Name, clean(strings.TrimPrefix(c.Name, "/")))
	return i
}

func (f *Finder) podmanName(id string) Identity {
	for _, dir := range f.storageDirs(storage) {
		for _, file := range []string{"containers.json", "volatile-containers.json"} {
			file = path.Join(dir, file)
			if f.podman[file] == nil {
				f.podman[file] = new(podmanFile)
			}
			if name := f.podman[file].name(f, file, id); name != "" {
				return Identity{Name: name}
			}
		}
	}
	return Identity{}
}

func (p *podmanFile) name(f *Finder, name, id string) string {
	if v, err := f.version(name); err != nil {
		return ""
	} else if p.names == nil || v != p.version || v == (version{}) {
		var containers []struct {
			ID    string   `json:"id"`
			Names []string `json:"names"`
		}
		*p = podmanFile{v, make(map[string]string)}
		if f.readJSON(name, maxStorage, &containers) == nil {
			for _, c := range containers {
				if len(c.Names) > 0 {
					p.names[c.ID] = clean(c.Names[0])
				}
			}
		}
	}
	return p.names[id]
}

// find returns the identity that an entry of a directory contains. parse returns it, and its key,
// or an empty key.
func (d *directory) find(f *Finder, name, key string, parse func(entry string) (string, Identity)) Identity {
	if i, ok := d.names[key]; ok {
		return i
	}
	v, err := f.version(name)
	if err != nil || d.names != nil && v == d.version && v != (version{}) {
		return Identity{}
	}
	*d = directory{v, make(map[string]Identity)}
	for _, entry := range f.list(name) {
		if key, i := parse(entry); key != "" {
			d.names[key] = i
		}
	}
	return d.names[key]
}

// parseContainerLog parses POD_NAMESPACE_CONTAINER-ID.log. None of the names has a _.
func parseContainerLog(entry string) (id string, i Identity) {
	const idLength = 64
	name, ok := strings.CutSuffix(entry, ".log")
	parts := strings.Split(name, "_")
	if !ok || len(parts) != 3 || len(parts[2]) < idLength+2 {
		return "", Identity{}
	}
	dash := len(parts[2]) - idLength - 1
	i = Identity{Pod: clean(parts[0]), Namespace: clean(parts[1]), Name: clean(parts[2][:dash])}
	if parts[2][dash] != '-' || i.Pod == "" || i.Namespace == "" || i.Name == "" {
		return "", Identity{}
	}
	return parts[2][dash+1:], i
}

// parsePodLog parses NAMESPACE_POD_UID.
func parsePodLog(entry string) (uid string, i Identity) {
	parts := strings.Split(entry, "_")
	if len(parts) != 3 {
		return "", Identity{}
	}
	i = Identity{Namespace: clean(parts[0]), Pod: clean(parts[1])}
	if i.Namespace == "" || i.Pod == "" {
		return "", Identity{}
	}
	return parts[2], i
}

// clean returns a name, or an empty string if it is none: no runtime allows control characters,
// or more than 255 bytes.
func clean(name string) string {
	if len(name) > maxValue || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return ""
	}
	return name
}

var errNoFile = errors.New("neither a file of reasonable size nor a directory")

// open opens a regular file or a directory below the root. Any user can have put something else
// there: opening a FIFO or a device can block, or do something.
func (f *Finder) open(name string, typ uint32) (*os.File, unix.Stat_t, error) {
	var stat unix.Stat_t
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(f.root, name, &how)
	if err != nil {
		return nil, stat, err
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, stat, err
	}
	if stat.Mode&unix.S_IFMT != typ {
		return nil, stat, errNoFile
	}
	file, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	return file, stat, err
}

// read returns the content of a file, until the next call.
func (f *Finder) read(name string, most int64) ([]byte, error) {
	file, stat, err := f.open(name, unix.S_IFREG)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if stat.Size > most {
		return nil, errNoFile
	}
	f.buf = slices.Grow(f.buf[:0], int(stat.Size))[:stat.Size]
	n, err := io.ReadFull(file, f.buf)
	if err == io.ErrUnexpectedEOF || err == io.EOF {
		err = nil // it is shorter by now
	}
	return f.buf[:n], err
}

func (f *Finder) readJSON(name string, most int64, v any) error {
	content, err := f.read(name, most)
	if err != nil {
		return err
	}
	return json.Unmarshal(content, v)
}

// list returns the names of a directory's entries.
func (f *Finder) list(name string) []string {
	dir, _, err := f.open(name, unix.S_IFDIR)
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(maxEntries) // those before an error
	return names
}

// version returns the version of a file or directory. Something that changed a moment ago has
// none: the clock of file systems ticks every few milliseconds, so that it can change unseen.
func (f *Finder) version(name string) (v version, err error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(f.root, name, &how)
	if err != nil {
		return version{}, err
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return version{}, err
	}
	if time.Since(time.Unix(stat.Mtim.Unix())) < time.Second {
		return version{}, nil
	}
	return version{stat.Ino, stat.Size, stat.Mtim}, nil
}
