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

// readings is a live source that also tells what the cgroups in its events held
// when the trace began and when it ends, as their files say.
type readings struct {
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

	// begin is what was there at the beginning; where it could not be read, of -1
	// pages.
	begin map[event.CgroupID]event.Event
	names cgroup.Names
	// fresh are the cgroups that were named since the last event, and told those
	// whose beginning was told, if it is known.
	fresh []event.CgroupID
	told  map[event.CgroupID]bool

	mu sync.Mutex // Stop and Read are at work at the same time
	// end are the readings of the end, in order of time, until they are told.
	end []event.Event
}

// newReadings reads what some cgroups hold, or all of this machine: src, which
// traces them, has begun. Close is to be called before src is closed.
func newReadings(src stream.Source, targets []cgroup.Target) (*readings, error) {
	if len(targets) == 0 {
		trees, err := cgroup.Trees()
		if err != nil {
			return nil, err
		}
		if targets, err = cgroup.ParsePath("/").Find(trees); err != nil {
			return nil, err
		}
	}
	r := &readings{
		Source: src, targets: targets, drained: make(chan struct{}),
		begin: make(map[event.CgroupID]event.Event), told: make(map[event.CgroupID]bool),
	}
	walked := make(chan struct{})
	go r.drain(walked)
	for e := range r.read(event.Existing) {
		r.begin[e.Cgroup] = e
	}
	close(walked)
	return r, nil
}

// drain keeps the source's buffer from filling up.
func (r *readings) drain(walked <-chan struct{}) {
	defer close(r.drained)
	for r.err == nil {
		var n int
		n, r.err = r.Source.Read(r.batch[:])
		r.early = append(r.early, r.batch[:n]...)
		select {
		case <-walked:
			return
		default:
		}
	}
}

// read reads the files of the cgroups.
func (r *readings) read(flags event.Flags) iter.Seq[event.Event] {
	return func(yield func(event.Event) bool) {
		for i := range r.targets {
			for e := range r.targets[i].Samples(capture.BootNanos) {
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
func (r *readings) Stop() {
	r.stop.Do(func() {
		// From before a file is read until that is in end, Read must pass on
		// nothing: it may have happened later.
		r.mu.Lock()
		defer r.mu.Unlock()
		for e := range r.read(0) {
			if e.UsagePages >= 0 {
				r.end = append(r.end, e)
			}
			r.mu.Unlock()
			r.mu.Lock()
		}
	})
	r.Source.Stop()
}

// Close ends what newReadings began.
func (r *readings) Close() {
	r.Source.Stop()
	<-r.drained
}

// Read implements [stream.Source].
func (r *readings) Read(batch []event.Event) (int, error) {
	<-r.drained
	if early := r.early; early != nil {
		r.early = nil
		r.take(early)
	}
	for len(r.queue) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		var n int
		n, r.err = r.Source.Read(r.batch[:])
		r.take(r.batch[:n])
	}
	n := copy(batch, r.queue)
	r.queue = r.queue[n:]
	return n, nil
}

// take queues events, and between them the readings: that of a cgroup's beginning
// before the first event that counts in it, that of its end before the first that
// happened later.
func (r *readings) take(batch []event.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = r.queue[:0]
	for i := range batch {
		e := &batch[i]
		if e.Type == event.CgroupName {
			r.names.Add(e)
			r.fresh = append(r.fresh, e.Cgroup)
		} else if !e.Type.IsName() {
			r.tellUntil(e.BootNanos)
		}
		r.queue = append(r.queue, *e)
	}
	if r.err == io.EOF {
		r.tellUntil(math.MaxUint64)
	}
}

// tellUntil queues the readings that come before what happened at a time.
func (r *readings) tellUntil(bootNanos uint64) {
	for _, id := range r.fresh {
		if r.told[id] {
			continue
		}
		r.told[id] = true
		if begin, ok := r.beginOf(id); ok {
			r.queue = append(r.queue, begin)
		}
	}
	r.fresh = r.fresh[:0]
	for len(r.end) > 0 && r.end[0].BootNanos < bootNanos {
		if r.told[r.end[0].Cgroup] {
			r.queue = append(r.queue, r.end[0])
		}
		r.end = r.end[1:]
	}
}

// beginOf returns the reading of a cgroup's beginning, if that is known.
func (r *readings) beginOf(id event.CgroupID) (event.Event, bool) {
	if e, ok := r.begin[id]; ok {
		return e, e.UsagePages >= 0
	}
	for above := range r.names.Lineage(id) {
		if _, ok := r.begin[above]; ok { // it was made after the trace had begun
			return event.Event{Type: event.Usage, BootNanos: r.Info().StartBootNanos, Cgroup: id, Flags: event.Existing}, true
		}
	}
	return event.Event{}, false // above those that are read
}
