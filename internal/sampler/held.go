//go:build linux

package sampler

import (
	"io"
	"math"
	"slices"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// HeldSampler is a source that also delivers what a cgroup holds after the OOM killer ran in
// it, and at the end what those hold in which charges failed, if they are still at their
// limit; see [cgroup.Held].
type HeldSampler struct {
	stream.Source
	trees []cgroup.Tree
	now   func() uint64

	queue []event.Event // to deliver from next on
	next  int
	err   error // of the source, returned after queue
	names cgroup.Names
	known map[event.CgroupID]bool   // that have a name
	read  map[event.CgroupID]uint64 // when a cgroup was read last
	// full are the cgroups in which charges failed.
	full []event.CgroupID
}

// NewHeld returns a source that reads the cgroups of these trees. now is the clock of
// [event.Event.BootNanos].
func NewHeld(src stream.Source, trees []cgroup.Tree, now func() uint64) *HeldSampler {
	return &HeldSampler{Source: src, trees: trees, now: now, known: make(map[event.CgroupID]bool), read: make(map[event.CgroupID]uint64)}
}

// minInterval is the least time in nanoseconds between two readings of a cgroup, and maxFull
// the number of cgroups that are read at the end.
const minInterval, maxFull = 1e9, 64

// Read implements [stream.Source]. It copies events only after one of the OOM killer.
func (s *HeldSampler) Read(batch []event.Event) (int, error) {
	for {
		if s.next < len(s.queue) {
			n := copy(batch, s.queue[s.next:])
			s.next += n
			return n, nil
		}
		if s.err != nil {
			return 0, s.err
		}
		s.queue, s.next = s.queue[:0], 0
		var n int
		n, s.err = s.Source.Read(batch)
		n = s.add(batch[:n])
		if s.err == io.EOF {
			for _, id := range s.full {
				if s.atLimit(id) {
					s.sample(id, &event.Event{})
				}
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

// add looks at a batch. After an event of the OOM killer it queues what the cgroup holds now,
// and the rest of the batch. It returns the number of events before those.
func (s *HeldSampler) add(batch []event.Event) (before int) {
	before = len(batch)
	for i := range batch {
		e := &batch[i]
		if i >= before {
			s.queue = append(s.queue, *e)
		}
		switch e.Type {
		case event.CgroupName:
			s.names.Add(e)
			s.known[e.Cgroup] = true
		case event.CgroupReleased:
			s.names.Remove(e.Cgroup)
			delete(s.known, e.Cgroup)
			delete(s.read, e.Cgroup)
			s.full = slices.DeleteFunc(s.full, func(id event.CgroupID) bool { return id == e.Cgroup })
		case event.Charge:
			if e.Outcome == event.Failed && e.Kind == event.Memory && len(s.full) < maxFull {
				if id := e.InCgroup(e.FailedAt); !slices.Contains(s.full, id) {
					s.full = append(s.full, id)
				}
			}
		case event.OOM, event.OOMKill:
			before = min(before, i+1)
			s.sample(e.Cgroup, e)
		}
	}
	return before
}

// atLimit reports whether a cgroup has no room for a batch of charges.
func (s *HeldSampler) atLimit(id event.CgroupID) bool {
	const batchPages = 64 // MEMCG_CHARGE_BATCH
	m, ok := cgroup.ReadMemory(s.trees, id, s.names.Path(id))
	return ok && m.UsagePages+batchPages > int64(min(m.MaxPages, math.MaxInt64))
}

// sample queues what a cgroup holds after an event of the OOM killer; the zero Event: at the
// end.
func (s *HeldSampler) sample(id event.CgroupID, after *event.Event) {
	if id.ID == 0 || after.OOMNanos != 0 && s.read[id] != 0 && s.now() < s.read[id]+minInterval {
		return
	}
	for e := range cgroup.Held(s.trees, id, s.names.Path(id), after.OOMNanos, after.Victim.PID, s.now) {
		s.read[id] = e.BootNanos
		if e.Type == event.CgroupName {
			if s.known[e.Cgroup] {
				continue
			}
			s.names.Add(&e)
			s.known[e.Cgroup] = true
		}
		s.queue = append(s.queue, e)
	}
}
