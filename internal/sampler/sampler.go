//go:build linux

// Package sampler adds to a live trace what is read elsewhere: the usage of cgroups at the start
// and at the end, which a balance of charges and uncharges needs ([Sampler]), what a cgroup holds
// after the OOM killer ran ([HeldSampler]), and steps of the wall clock ([ClockSampler]).
//
// A Sampler is a [stream.Source] that wraps another one. It must not depend on a tracer: its
// creator passes the trace's clock. It reads memory.current, or memory.usage_in_bytes of cgroup
// v1, while the source traces, and puts each sample into the stream by its time.
package sampler

import (
	"io"
	"math"
	"sync"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// Sampler is a source that also delivers the first and the last usage of each cgroup named in its
// events, as events of type [event.Usage].
type Sampler struct {
	stream.Source
	targets []cgroup.Target // and all cgroups below them
	now     func() uint64
	stop    sync.Once

	// While New reads files, drain moves events from the source to early. It ends after the read in
	// flight at that time.
	early   []event.Event
	drained chan struct{}

	batch [256]event.Event
	queue []event.Event // merged, not yet delivered by Read
	err   error         // of the source, returned after queue

	// first are the samples at the start. A usage of -1 could not be read.
	first map[event.CgroupID]event.Event
	names cgroup.Names
	// named are the cgroups named since the last event of another type.
	named []event.CgroupID
	// started are the cgroups named before: their first sample, if any, is sent.
	started map[event.CgroupID]bool

	mu sync.Mutex // guards last: Stop and Read run concurrently
	// last are the samples at the end that are not sent yet, in order of time.
	last []event.Event
}

// New samples the targets and their descendants, or all cgroups of this machine if targets is
// empty. src must be tracing. now is the clock of [event.Event.BootNanos]. Close the Sampler before
// src.
func New(src stream.Source, targets []cgroup.Target, now func() uint64) (*Sampler, error) {
	if len(targets) == 0 {
		trees, err := cgroup.Trees()
		if err != nil {
			return nil, err
		}
		if targets, err = cgroup.ParsePath("/").Find(trees); err != nil {
			return nil, err
		}
	}
	s := &Sampler{
		Source: src, targets: targets, now: now, drained: make(chan struct{}),
		first: make(map[event.CgroupID]event.Event), started: make(map[event.CgroupID]bool),
	}
	sampled := make(chan struct{})
	go s.drain(sampled)
	for i := range targets {
		for e := range targets[i].Samples(now) {
			e.Flags = event.Existing
			s.first[e.Cgroup] = e
		}
	}
	close(sampled)
	return s, nil
}

// drain reads the source, so that its buffer does not fill up while New samples.
func (s *Sampler) drain(sampled <-chan struct{}) {
	defer close(s.drained)
	for s.err == nil {
		var n int
		n, s.err = s.Source.Read(s.batch[:])
		s.early = append(s.early, s.batch[:n]...)
		select {
		case <-sampled:
			return
		default:
		}
	}
}

// Stop implements [stream.Source]. It samples again while the source still traces: Read delivers
// events later than a sample after the sample.
func (s *Sampler) Stop() {
	s.stop.Do(func() {
		// Hold mu from before the read of a file until its sample is in last. During that time Read must
		// not merge events: they may be later than the sample.
		s.mu.Lock()
		defer s.mu.Unlock()
		for i := range s.targets {
			for e := range s.targets[i].Samples(s.now) {
				if e.UsagePages >= 0 {
					s.last = append(s.last, e)
				}
				s.mu.Unlock() // let Read continue between two files
				s.mu.Lock()
			}
		}
	})
	s.Source.Stop()
}

// Close waits until drain has ended.
func (s *Sampler) Close() {
	s.Source.Stop()
	<-s.drained
}

// Read implements [stream.Source].
func (s *Sampler) Read(batch []event.Event) (int, error) {
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

// merge queues events with samples between them. A cgroup's first sample comes after its name and
// before the first event that may change its usage, its last before the first event after its time.
func (s *Sampler) merge(batch []event.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = s.queue[:0]
	for i := range batch {
		e := &batch[i]
		if e.Type == event.CgroupName {
			s.names.Add(e)
			s.named = append(s.named, e.Cgroup)
		} else if e.Type == event.CgroupReleased {
			s.names.Remove(e.Cgroup)
			delete(s.started, e.Cgroup)
			delete(s.first, e.Cgroup)
		} else if !e.Type.IsName() && e.Type != event.MemoryStat && e.Type != event.Held {
			// The excluded types are later than the events after them.
			s.queueSamples(e.BootNanos)
		}
		s.queue = append(s.queue, *e)
	}
	if s.err == io.EOF {
		s.queueSamples(math.MaxUint64)
	}
}

// queueSamples queues the samples that precede an event at a time.
func (s *Sampler) queueSamples(bootNanos uint64) {
	for _, id := range s.named {
		if s.started[id] {
			continue
		}
		s.started[id] = true
		if e, ok := s.firstOf(id); ok {
			s.queue = append(s.queue, e)
		}
	}
	s.named = s.named[:0]
	for len(s.last) > 0 && s.last[0].BootNanos < bootNanos {
		if s.started[s.last[0].Cgroup] {
			s.queue = append(s.queue, s.last[0])
		}
		s.last = s.last[1:]
	}
}

// firstOf returns the first sample of a cgroup. For a cgroup made later, that is 0 pages at the
// start of the trace. ok is false if its usage could not be read, or if it is not within the
// targets.
func (s *Sampler) firstOf(id event.CgroupID) (e event.Event, ok bool) {
	if e, ok := s.first[id]; ok {
		return e, e.UsagePages >= 0
	}
	for above := range s.names.Lineage(id) {
		if _, ok := s.first[above]; ok {
			return event.Event{Type: event.Usage, BootNanos: s.Info().StartBootNanos, Cgroup: id, Flags: event.Existing}, true
		}
	}
	return event.Event{}, false
}
