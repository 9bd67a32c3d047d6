package main

import (
	"io"
	"iter"
	"math"
	"sync"

	"chargetrace/internal/capture"
	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// usageSampler is a live source that also tells what the cgroups in its events held
// when the trace began and when it ends, as their files say.
type usageSampler struct {
	stream.Source
	targets []cgroup.Target // those to read, with what is below them
	stop    sync.Once

	// While the files of the beginning are read, and until the read of the source is
	// over that was under way then, what it has is drained into early.
	drained chan struct{}
	early   []event.Event

	batch [256]event.Event
	queue []event.Event // what is to be read of it
	err   error         // what comes after that

	// first is what was there at the beginning; where it could not be read, of -1
	// pages.
	first map[event.CgroupID]event.Event
	names cgroup.Names
	// named are the cgroups that were named since the last event, and sent those
	// whose beginning was sent, if it is known.
	named []event.CgroupID
	sent  map[event.CgroupID]bool

	mu sync.Mutex // Stop and Read are at work at the same time
	// last are the readings of the end, in order of time, until they are told.
	last []event.Event
}

// newUsageSampler reads what some cgroups hold, or all of this machine: src, which
// traces them, has begun. Close is to be called before src is closed.
func newUsageSampler(src stream.Source, targets []cgroup.Target) (*usageSampler, error) {
	if len(targets) == 0 {
		trees, err := cgroup.Trees()
		if err != nil {
			return nil, err
		}
		if targets, err = cgroup.ParsePath("/").Find(trees); err != nil {
			return nil, err
		}
	}
	s := &usageSampler{
		Source: src, targets: targets, drained: make(chan struct{}),
		first: make(map[event.CgroupID]event.Event), sent: make(map[event.CgroupID]bool),
	}
	walked := make(chan struct{})
	go s.drain(walked)
	for e := range s.sample(event.Existing) {
		s.first[e.Cgroup] = e
	}
	close(walked)
	return s, nil
}

// drain keeps the source's buffer from filling up.
func (s *usageSampler) drain(walked <-chan struct{}) {
	defer close(s.drained)
	for s.err == nil {
		var n int
		n, s.err = s.Source.Read(s.batch[:])
		s.early = append(s.early, s.batch[:n]...)
		select {
		case <-walked:
			return
		default:
		}
	}
}

// sample reads the files of the cgroups.
func (s *usageSampler) sample(flags event.Flags) iter.Seq[event.Event] {
	return func(yield func(event.Event) bool) {
		for i := range s.targets {
			for e := range s.targets[i].Samples(capture.BootNanos) {
				e.Flags = flags
				if !yield(e) {
					return
				}
			}
		}
	}
}

// Stop reads the files once more while the source still traces: what happens
// after that, and before the trace has come to its end, is told after it.
func (s *usageSampler) Stop() {
	s.stop.Do(func() {
		// From before a file is read until that is in last, Read must pass on
		// nothing: it may have happened later.
		s.mu.Lock()
		defer s.mu.Unlock()
		for e := range s.sample(0) {
			if e.UsagePages >= 0 {
				s.last = append(s.last, e)
			}
			s.mu.Unlock()
			s.mu.Lock()
		}
	})
	s.Source.Stop()
}

// Close ends what newUsageSampler began.
func (s *usageSampler) Close() {
	s.Source.Stop()
	<-s.drained
}

// Read implements [stream.Source].
func (s *usageSampler) Read(batch []event.Event) (int, error) {
	<-s.drained
	if early := s.early; early != nil {
		s.early = nil
		s.merge(early)
	}
	for len(s.queue) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		var n int
		n, s.err = s.Source.Read(s.batch[:])
		s.merge(s.batch[:n])
	}
	n := copy(batch, s.queue)
	s.queue = s.queue[n:]
	return n, nil
}

// merge queues events, and between them the readings: that of a cgroup's beginning
// before the first event that counts in it, that of its end before the first that
// happened later.
func (s *usageSampler) merge(batch []event.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = s.queue[:0]
	for i := range batch {
		e := &batch[i]
		if e.Type == event.CgroupName {
			s.names.Add(e)
			s.named = append(s.named, e.Cgroup)
		} else if !e.Type.IsName() {
			s.sendUntil(e.BootNanos)
		}
		s.queue = append(s.queue, *e)
	}
	if s.err == io.EOF {
		s.sendUntil(math.MaxUint64)
	}
}

// sendUntil queues the readings that come before what happened at a time.
func (s *usageSampler) sendUntil(bootNanos uint64) {
	for _, id := range s.named {
		if s.sent[id] {
			continue
		}
		s.sent[id] = true
		if begin, ok := s.firstOf(id); ok {
			s.queue = append(s.queue, begin)
		}
	}
	s.named = s.named[:0]
	for len(s.last) > 0 && s.last[0].BootNanos < bootNanos {
		if s.sent[s.last[0].Cgroup] {
			s.queue = append(s.queue, s.last[0])
		}
		s.last = s.last[1:]
	}
}

// firstOf returns the reading of a cgroup's beginning, if that is known.
func (s *usageSampler) firstOf(id event.CgroupID) (event.Event, bool) {
	if e, ok := s.first[id]; ok {
		return e, e.UsagePages >= 0
	}
	for above := range s.names.Lineage(id) {
		if _, ok := s.first[above]; ok { // it was made after the trace had begun
			return event.Event{Type: event.Usage, BootNanos: s.Info().StartBootNanos, Cgroup: id, Flags: event.Existing}, true
		}
	}
	return event.Event{}, false // above those that are read
}
