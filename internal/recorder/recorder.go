// Package recorder is the flight recorder: a sink that keeps the last events of a trace in
// memory, and saves them as a recording when something happens, such as an OOM kill.
//
//	events -> Recorder -> trace.Ring          (in memory, all the time)
//	             | triggers
//	             v
//	          pending  -> trace.Snapshot -> Folder  (some time after the trigger)
//
// The package must not know other sinks or sources: what follows a saved recording, such as a
// report, is up to its creator.
package recorder

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/trace"
	"chargetrace/internal/verdict"
)

// Options configure a Recorder.
type Options struct {
	// Keep is how much time before a trigger is in a recording, and Memory holds it.
	Keep   time.Duration
	Memory []byte
	When   Triggers
	// After is how much time after a trigger is in the recording. A further trigger of the same
	// cgroup extends it, up to Keep in all.
	After time.Duration
	// Every is the time in which a cgroup has at most one recording for triggers of one rank.
	Every time.Duration
	// Counts returns the counts of the trace so far; nil: unknown.
	Counts func() (stream.Counts, error)
	// Now returns the time on the clock of [event.Event.BootNanos]. nil plays a recording: time
	// is that of its events, and Write saves recordings itself.
	Now func() uint64
	// Latency is how late Write gets an event at most.
	Latency time.Duration
	// Urgent is called for a trigger of Triggers.Percent at once, in Write, if it is not nil.
	Urgent func(Save)
	// Saved is called for each saved recording, on another goroutine than Write.
	Saved func(Save)
	// Failed is called for each error of saving.
	Failed func(error)
}

// Save is a recording that is saved.
type Save struct {
	// Path and Name are those of the file; empty for Urgent, which is called before it is saved.
	Path, Name string
	// Trigger is the one with the highest rank. Identity is the container or pod of its cgroup;
	// of a kill by a limit above the container, that of the victim.
	Trigger  stream.Trigger
	Identity container.Identity
	// Levels are the cgroup of the charge and those above it. Only Urgent gets them.
	Levels []Level
	// Alerted means that Urgent was called for this trigger.
	Alerted bool
	// Suppressed is as in [stream.Saved].
	Suppressed uint64
}

// Level is a cgroup with its path, which can have any bytes.
type Level struct {
	ID   event.CgroupID
	Path string
}

// Recorder is a [stream.Sink]. Save may be called by any goroutine.
type Recorder struct {
	o      Options
	folder *Folder
	info   stream.Info
	ring   *trace.Ring
	writer sync.WaitGroup // the goroutine that saves, if there is one

	mu         sync.Mutex
	names      cgroup.Names
	clock      *event.Clock
	last       uint64 // time of the last event
	pending    map[event.CgroupID]*pending
	due        uint64 // the earliest deadline; MaxUint64: none
	timer      *time.Timer
	queue      []*pending // to be saved
	saving     *pending
	saved      map[event.CgroupID]lastSave
	suppressed uint64
}

// pending is a recording to be saved.
type pending struct {
	first, deadline uint64
	cgroup          event.CgroupID
	isLabeled       bool // the triggers have the names of the cgroup
	// triggers are the first ones of each reason, and worst is the index of the one with the
	// highest rank.
	triggers []stream.Trigger
	worst    int
	identity container.Identity
	alerted  bool // Options.Urgent was called for the worst
}

func (p *pending) reason() Reason { return Reason(p.triggers[p.worst].Reason) }

// lastSave is the last recording of a cgroup.
type lastSave struct {
	bootNanos uint64 // of its first trigger
	rank      int
}

// maxSaved is the number of entries in Recorder.saved before old ones are removed.
const maxSaved = 4096

// New returns a Recorder that saves in a folder.
func New(info stream.Info, folder *Folder, o Options) (*Recorder, error) {
	ring, err := trace.NewRing(info, trace.RingOptions{Keep: o.Keep, Memory: o.Memory, Counts: o.Counts})
	if err != nil {
		return nil, err
	}
	r := &Recorder{
		o: o, folder: folder, info: info, ring: ring, clock: event.NewClock(info.BootWallNanos), last: info.StartBootNanos,
		pending: make(map[event.CgroupID]*pending), due: math.MaxUint64, saved: make(map[event.CgroupID]lastSave),
	}
	r.timer = time.AfterFunc(time.Hour, r.tick)
	r.timer.Stop()
	return r, nil
}

// Write implements [stream.Sink].
func (r *Recorder) Write(batch []event.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := 0
	for i := range batch {
		e := &batch[i]
		switch {
		case e.Type == event.CgroupName:
			r.names.Add(e)
			continue
		case e.Type == event.CgroupReleased:
			if p := r.pending[e.Cgroup]; p != nil {
				r.label(p) // before the name is gone
			}
			r.names.Remove(e.Cgroup)
			delete(r.saved, e.Cgroup)
			continue
		case e.Type.IsName():
			continue
		case e.Type == event.ClockStep:
			r.clock.Add(e)
			continue
		}
		if e.BootNanos >= r.due && r.o.Now == nil {
			if err := r.ring.Write(batch[kept:i]); err != nil {
				return err
			}
			kept = i
			r.saveDue(e.BootNanos)
		}
		r.last = max(r.last, e.BootNanos)
		if reason, id := r.o.When.reasonOf(e); reason != "" {
			r.trigger(reason, id, e)
		}
	}
	return r.ring.Write(batch[kept:])
}

// Save saves what is kept, for a reason of the whole machine.
func (r *Recorder) Save(reason Reason) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trigger(reason, event.CgroupID{}, &event.Event{BootNanos: r.now()})
	r.schedule()
}

func (r *Recorder) now() uint64 {
	if r.o.Now != nil {
		return r.o.Now()
	}
	return r.last
}

// Close implements [stream.Sink]. It saves what is pending, and waits until it is saved.
func (r *Recorder) Close(c stream.Counts) error {
	err := r.ring.Close(c)
	r.mu.Lock()
	if r.o.When.Exit {
		r.trigger(Exit, event.CgroupID{}, &event.Event{BootNanos: r.now()})
	}
	r.saveDue(math.MaxUint64)
	r.timer.Stop()
	r.mu.Unlock()
	r.writer.Wait()
	return err
}

// Suppressed is the number of triggers since the last recording that saved nothing.
func (r *Recorder) Suppressed() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.suppressed
}

// trigger adds a trigger to the pending recording of its cgroup.
func (r *Recorder) trigger(reason Reason, id event.CgroupID, e *event.Event) {
	p, isPending := r.pending[id]
	if !isPending {
		if s, ok := r.saved[id]; ok && reason.rank() <= s.rank && e.BootNanos < s.bootNanos+uint64(r.o.Every) && reason != Signal && reason != Exit {
			r.suppressed++
			return
		}
		if e.Type != 0 { // Write calls
			if err := r.ring.UpdateCounts(); err != nil {
				r.o.Failed(err)
			}
		}
		p = &pending{first: e.BootNanos, cgroup: id}
		r.pending[id] = p
	}
	p.deadline = min(e.BootNanos+uint64(r.o.After), p.first+uint64(r.o.Keep))
	if reason == Signal || reason == Exit {
		p.deadline = e.BootNanos
	}
	if !isPending {
		r.schedule() // an extension is found at the old deadline
	}
	if i := slices.IndexFunc(p.triggers, func(t stream.Trigger) bool { return t.Reason == string(reason) }); i >= 0 {
		t := &p.triggers[i]
		if t.Times++; t.PID == 0 && e.Type == event.OOMKill { // the first run killed nobody
			t.PID, t.Comm = e.Victim.PID, e.Victim.Comm.String()
		}
		return
	}
	t := triggerOf(reason, id, e)
	p.triggers = append(p.triggers, t)
	if len(p.triggers) > 1 && reason.rank() < p.reason().rank() {
		return
	}
	p.worst, p.alerted = len(p.triggers)-1, false
	p.identity = r.names.Identity(id)
	if p.identity.ID == "" { // the limit is above the container
		switch e.Type {
		case event.OOMKill:
			p.identity = r.names.Identity(e.VictimCgroup())
		case event.Charge:
			p.identity = r.names.Identity(e.Cgroup)
		}
	}
	if r.o.When.Percent > 0 && reason == r.o.When.percentReason() && r.o.Urgent != nil {
		r.label(p)
		p.alerted = true
		save := Save{Trigger: p.triggers[p.worst], Identity: p.identity}
		for level := range r.names.Lineage(e.Cgroup) {
			save.Levels = append(save.Levels, Level{level, r.names.Path(level)})
		}
		r.o.Urgent(save)
	}
}

// triggerOf returns the trigger for an event, without the names of its cgroup.
func triggerOf(reason Reason, id event.CgroupID, e *event.Event) stream.Trigger {
	t := stream.Trigger{Reason: string(reason), BootNanos: e.BootNanos, Times: 1}
	switch e.Type {
	case event.Charge:
		t.PID, t.Comm, t.Kind, t.MaxPages = e.PID, e.Comm.String(), e.Kind.String(), e.Limiting.MaxPages
		for limit, maxPages := range verdict.HitsOf(e) {
			if limit.Cgroup == id && limit.High == (reason == High) {
				t.MaxPages = maxPages
				if maxPages == verdict.UnknownLimit {
					t.MaxPages = 0
				}
			}
		}
	case event.Throttle:
		t.PID, t.Comm, t.Kind, t.MaxPages = e.PID, e.Comm.String(), e.Kind.String(), e.MaxPages
	case event.OOMKill:
		t.PID, t.Comm = e.Victim.PID, e.Victim.Comm.String()
	}
	return t
}

// label looks up the names of a recording's cgroup, which can be known later than its events.
func (r *Recorder) label(p *pending) {
	id := p.cgroup
	if id.ID == 0 || p.isLabeled && !r.names.Has(id) {
		return
	}
	p.isLabeled = true
	for i := range p.triggers {
		p.triggers[i].Cgroup, p.triggers[i].Label = r.names.Printable(id), r.names.Label(id)
	}
	if i := r.names.Identity(id); i.ID != "" {
		p.identity = i
	}
}

// schedule computes the earliest deadline, and makes the Ring keep what precedes the earliest
// trigger.
func (r *Recorder) schedule() {
	r.due = math.MaxUint64
	first := uint64(math.MaxUint64)
	for _, p := range r.pending {
		r.due, first = min(r.due, p.deadline), min(first, p.first)
	}
	for _, p := range r.queue {
		first = min(first, p.first)
	}
	if r.saving != nil {
		first = min(first, r.saving.first)
	}
	if first == math.MaxUint64 {
		first = 0
	}
	r.ring.Hold(first)
	r.timer.Stop()
	if r.o.Now != nil && r.due != math.MaxUint64 {
		r.timer.Reset(time.Duration(r.due-min(r.due, r.o.Now())) + r.o.Latency)
	}
}

func (r *Recorder) tick() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.saveDue(r.o.Now() - uint64(r.o.Latency))
}

// saveDue queues the recordings whose deadline is reached. It starts the goroutine that saves
// them, or for a replay saves them itself.
func (r *Recorder) saveDue(bootNanos uint64) {
	for id, p := range r.pending {
		if p.deadline > bootNanos {
			continue
		}
		delete(r.pending, id)
		r.label(p)
		if len(r.saved) >= maxSaved {
			r.forgetOld(bootNanos)
		}
		if reason := p.reason(); reason != Signal && reason != Exit {
			r.saved[id] = lastSave{p.first, reason.rank()}
		}
		r.queue = append(r.queue, p)
	}
	slices.SortStableFunc(r.queue, func(a, b *pending) int { return cmp.Compare(a.first, b.first) })
	r.schedule()
	switch {
	case len(r.queue) == 0 || r.saving != nil:
	case r.o.Now == nil:
		r.saveQueue()
	default:
		r.saving = r.queue[0]
		r.writer.Go(func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.saveQueue()
		})
	}
}

// forgetOld removes the entries that suppress nothing any more.
func (r *Recorder) forgetOld(bootNanos uint64) {
	for id, s := range r.saved {
		if s.bootNanos+uint64(r.o.Every) <= bootNanos {
			delete(r.saved, id)
		}
	}
}

// saveQueue saves the queued recordings. It holds the mutex only between them.
func (r *Recorder) saveQueue() {
	for len(r.queue) > 0 {
		p := r.queue[0]
		r.queue = r.queue[1:]
		r.saving = p
		suppressed, name := r.suppressed, r.fileName(p)
		r.suppressed = 0
		r.mu.Unlock()
		s, err := r.save(p, name, suppressed)
		if err != nil {
			r.o.Failed(err)
		}
		isSaved := s.Path != ""
		if isSaved {
			suppressed = 0
			r.o.Saved(s)
		}
		r.mu.Lock()
		if !isSaved && r.saved[p.cgroup].bootNanos == p.first {
			delete(r.saved, p.cgroup)
		}
		r.suppressed += suppressed
		r.saving = nil
		r.schedule()
	}
	r.queue = nil
}

func (r *Recorder) save(p *pending, name string, suppressed uint64) (Save, error) {
	snapshot, err := r.ring.Snapshot(p.first - min(p.first, uint64(r.o.Keep)))
	if err != nil {
		return Save{}, err
	}
	saved := stream.Saved{Triggers: p.triggers, Suppressed: suppressed}
	path := r.folder.Path(name)
	name, err = r.folder.Save(name, snapshot.Bytes(), func(w io.Writer, name string) error {
		saved.File = name
		snapshot.Info.Saved = &saved
		return snapshot.Write(w)
	})
	if name == "" {
		return Save{}, fmt.Errorf("cannot save %s: %w", path, err)
	}
	return Save{
		Path: r.folder.Path(name), Name: name, Trigger: p.triggers[p.worst], Identity: p.identity,
		Alerted: p.alerted, Suppressed: suppressed,
	}, err
}

// fileName returns "oom-20261129T170625Z-NAME.ctrace".
func (r *Recorder) fileName(p *pending) string {
	t := &p.triggers[p.worst]
	return fileName(Reason(t.Reason), r.clock.Wall(t.BootNanos), cmp.Or(t.Label, r.info.Host))
}
