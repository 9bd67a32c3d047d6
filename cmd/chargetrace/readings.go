package main

import (
	"io"
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

	batch [256]event.Event
	queue []event.Event // what is to be read of it
	err   error         // what comes after that

	mu sync.Mutex // Stop and Read are at work at the same time
	// begin are the readings of the beginning, and end, in order of time, those of
	// the end, until they are told.
	begin map[event.CgroupID]event.Event
	end   []event.Event
	// named are the cgroups that events are of, or of those below them, until their
	// end is told, and whether a reading of their beginning was. fresh are those
	// of which no event has come yet.
	named map[event.CgroupID]bool
	fresh []event.CgroupID
}

// newReadings reads what some cgroups hold, or all of this machine: src, which
// traces them, has begun.
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
	r := &readings{Source: src, targets: targets, begin: make(map[event.CgroupID]event.Event), named: make(map[event.CgroupID]bool)}
	for _, e := range r.read(event.Existing) {
		r.begin[e.Cgroup] = e
	}
	return r, nil
}

// read reads the files of the cgroups.
func (r *readings) read(flags event.Flags) (usages []event.Event) {
	for i := range r.targets {
		for id, pages := range r.targets[i].Usages() {
			usages = append(usages, event.Event{Type: event.Usage, BootNanos: capture.BootNanos(), Cgroup: id, UsagePages: pages, Flags: flags})
		}
	}
	return usages
}

// Stop reads the files once more while the source still traces: what happens
// after that, and before the trace has come to its end, is told after it.
func (r *readings) Stop() {
	r.stop.Do(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.end = r.read(0)
	})
	r.Source.Stop()
}

// Read implements [stream.Source].
func (r *readings) Read(batch []event.Event) (int, error) {
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
		usage, ok := r.begin[id]
		if ok {
			r.queue = append(r.queue, usage)
			delete(r.begin, id)
		}
		r.named[id] = r.named[id] || ok
	}
	r.fresh = r.fresh[:0]
	for len(r.end) > 0 && r.end[0].BootNanos < bootNanos {
		usage := r.end[0]
		r.end = r.end[1:]
		begun, ok := r.named[usage.Cgroup]
		delete(r.named, usage.Cgroup)
		if !ok {
			continue
		}
		if !begun { // it was made after the trace had begun
			r.queue = append(r.queue, event.Event{
				Type: event.Usage, BootNanos: r.Header().StartBootNanos, Cgroup: usage.Cgroup, Flags: event.Existing,
			})
		}
		r.queue = append(r.queue, usage)
	}
}
