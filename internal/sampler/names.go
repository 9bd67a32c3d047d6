//go:build linux

package sampler

import (
	"cmp"
	"io"
	"maps"
	"slices"
	"strings"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// NameSampler is a source that adds to the names of cgroups the names of containers, pods and
// users; see [container.Finder]. If these are found later, such as that of a pod when its first
// container starts, it delivers the name of the cgroup again.
type NameSampler struct {
	stream.Source
	find func(cgroupPath string) (i container.Identity, complete bool)
	now  func() uint64

	names cgroup.Names
	// sent are the names as they were delivered last: the source can deliver them again.
	sent map[event.CgroupID]event.Event
	// unknown are cgroups whose names were not found so far, each with the number of attempts.
	unknown   map[event.CgroupID]int
	nextRetry uint64

	queue []event.Event // to deliver before other events
	err   error         // of the source, returned after queue
}

// Names that were not found are looked for again after these intervals in nanoseconds, and once
// more at the end, if there are not too many.
const (
	retryInterval = 1e9
	maxRetries    = 3
	maxUnknown    = 1024
)

// NewNames returns a NameSampler. find is [container.Finder.Find], and now the clock of
// [event.Event.BootNanos].
func NewNames(src stream.Source, find func(cgroupPath string) (container.Identity, bool), now func() uint64) *NameSampler {
	return &NameSampler{
		Source: src, find: find, now: now, nextRetry: now() + retryInterval,
		sent: make(map[event.CgroupID]event.Event), unknown: make(map[event.CgroupID]int),
	}
}

// Read implements [stream.Source].
func (s *NameSampler) Read(batch []event.Event) (int, error) {
	for {
		if len(s.queue) > 0 {
			n := copy(batch, s.queue)
			s.queue = s.queue[n:]
			return n, nil
		}
		if s.err != nil {
			return 0, s.err
		}
		var n int
		n, s.err = s.Source.Read(batch)
		s.identify(batch[:n])
		if s.err == io.EOF || s.now() >= s.nextRetry {
			s.retry()
		}
		if n > 0 {
			return n, nil
		}
	}
}

// identify sets the Identity of the names of cgroups. The names of ancestors can follow in the
// batch, or the next one, but all come before the first event with the cgroup.
func (s *NameSampler) identify(batch []event.Event) {
	isNew := func(e *event.Event) bool {
		sent, ok := s.sent[e.Cgroup]
		return !ok || sent.Name != e.Name || sent.ParentID != e.ParentID
	}
	for i := range batch {
		if e := &batch[i]; e.Type == event.CgroupName && isNew(e) {
			s.names.Add(e)
		}
	}
	for i := range batch {
		e := &batch[i]
		if e.Type == event.CgroupReleased {
			s.names.Remove(e.Cgroup)
			delete(s.sent, e.Cgroup)
			delete(s.unknown, e.Cgroup)
		}
		if e.Type != event.CgroupName {
			continue
		}
		if isNew(e) {
			delete(s.unknown, e.Cgroup)
			e.Identity = s.lookUp(e.Cgroup)
			s.names.Add(e)
			s.sent[e.Cgroup] = *e
		}
		e.Identity = s.sent[e.Cgroup].Identity
	}
}

// lookUp returns the Identity of a cgroup, encoded, if it is a container, a pod or a user's.
func (s *NameSampler) lookUp(id event.CgroupID) string {
	path := s.names.Path(id)
	if _, own := container.Of(path); own != path || own == "" {
		return ""
	}
	if len(s.unknown) < maxUnknown {
		s.unknown[id] += 0
	}
	if !strings.HasPrefix(path, "/") { // the name of an ancestor is in the next batch
		s.nextRetry = 0
		return ""
	}
	i, complete := s.find(path)
	if complete {
		delete(s.unknown, id)
		s.identifyPod(id, i)
	} else if attempts, ok := s.unknown[id]; ok {
		s.unknown[id] = attempts + 1
	}
	return i.Encode()
}

// identifyPod queues the name of a container's pod again if it lacks what the container's has.
func (s *NameSampler) identifyPod(id event.CgroupID, of container.Identity) {
	if of.ID == "" || of.Pod == "" {
		return
	}
	for ancestor := range s.names.Lineage(id) {
		i := s.names.Identity(ancestor)
		if _, ok := s.unknown[ancestor]; ok && i.ID == "" && i.PodUID != "" && i.PodUID == of.PodUID {
			i.Namespace, i.Pod = of.Namespace, of.Pod
			delete(s.unknown, ancestor)
			s.send(ancestor, i.Encode())
		}
	}
}

// send queues the name of a cgroup with another identity.
func (s *NameSampler) send(id event.CgroupID, identity string) {
	e := s.sent[id]
	e.Identity = identity
	s.names.Add(&e)
	s.sent[id] = e
	s.queue = append(s.queue, e)
}

// retry looks for the missing names again.
func (s *NameSampler) retry() {
	ids := slices.SortedFunc(maps.Keys(s.unknown), func(a, b event.CgroupID) int {
		return cmp.Or(cmp.Compare(a.Hierarchy, b.Hierarchy), cmp.Compare(a.ID, b.ID))
	})
	for _, id := range ids {
		if s.unknown[id] > maxRetries && s.err == nil {
			continue
		}
		if identity := s.lookUp(id); identity != s.sent[id].Identity {
			s.send(id, identity)
		}
	}
	s.nextRetry = s.now() + retryInterval
}
