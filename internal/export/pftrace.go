package export

import (
	"io"

	"google.golang.org/protobuf/encoding/protowire"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/world"
)

// Perfetto is a [stream.Sink] that writes a trace for Perfetto's user interface and
// trace processor. Each cgroup and kind of counter has a track, with usage, limit and
// room as counters, and OOM kills as instants. Each thread has a track with reclaim as
// slices, and failed charges and OOM kills as instants. Times are on CLOCK_BOOTTIME, the
// default clock of Perfetto's own traces of a machine.
type Perfetto struct {
	writer
	tracks  uint64 // the last track's number
	started bool
	levels  map[event.CounterID]*levelTracks
	threads map[threadKey]uint64
	procs   map[uint32]uint64
	packet  []byte
	message []byte
}

// levelTracks are the tracks of a level.
type levelTracks struct {
	track, usage uint64
	limit, room  uint64 // 0 before the first limit
	maxPages     uint64 // the last limit
}

// threadKey has the name too, because a later thread can have the same number.
type threadKey struct {
	tid  uint32
	comm event.Comm
}

// NewPerfetto returns a Perfetto that writes the events of a World's trace to w.
func NewPerfetto(w io.Writer, world *world.World) *Perfetto {
	world.KeepUsages()
	return &Perfetto{
		writer: newWriter(w, world),
		levels: make(map[event.CounterID]*levelTracks), threads: make(map[threadKey]uint64), procs: make(map[uint32]uint64),
	}
}

// Write writes the packets of a batch.
func (p *Perfetto) Write(batch []event.Event) error {
	for i := range batch {
		usages := p.world.Usages(i)
		for j := range usages {
			p.setUsage(&batch[i], &usages[j])
		}
		p.encode(&batch[i])
	}
	return p.flush()
}

// Close does nothing: a trace can end after any packet.
func (p *Perfetto) Close(stream.Counts) error { return nil }

// The numbers of fields and values in Perfetto's protos/perfetto/trace/.
const (
	tracePacket = 1 // Trace

	packetTimestamp       = 8 // TracePacket
	packetSequenceID      = 10
	packetTrackEvent      = 11
	packetSequenceFlags   = 13
	packetTrackDescriptor = 60

	descriptorUUID       = 1 // TrackDescriptor
	descriptorName       = 2
	descriptorProcess    = 3
	descriptorThread     = 4
	descriptorParentUUID = 5
	descriptorCounter    = 8

	processPID  = 1 // ProcessDescriptor
	processName = 6
	threadPID   = 1 // ThreadDescriptor
	threadTID   = 2
	threadName  = 5

	counterUnit   = 3 // CounterDescriptor
	unitSizeBytes = 3

	eventAnnotations  = 4 // TrackEvent
	eventType         = 9
	eventTrackUUID    = 11
	eventCategories   = 22
	eventName         = 23
	eventCounterValue = 30

	typeSliceBegin = 1
	typeSliceEnd   = 2
	typeInstant    = 3
	typeCounter    = 4

	annotationUint   = 3 // DebugAnnotation
	annotationString = 6
	annotationName   = 10

	incrementalStateCleared = 1 // SequenceFlags
)

func (p *Perfetto) encode(e *event.Event) {
	switch e.Type {
	case event.Charge:
		if e.Outcome == event.Failed {
			p.failure(e)
		}
	case event.ReclaimBegin:
		p.begin(typeSliceBegin, p.thread(e), "reclaim")
		p.annotate("cgroup", p.world.Names.Printable(e.Cgroup))
		p.end(e)
	case event.ReclaimEnd:
		p.begin(typeSliceEnd, p.thread(e), "")
		p.annotateUint("freed_pages", e.FreedPages)
		p.end(e)
	case event.OOMKill:
		tracks := []uint64{p.thread(e)}
		if e.Cgroup.ID != 0 {
			tracks = append(tracks, p.level(event.CounterID{Cgroup: e.Cgroup, Kind: event.Memory}).track)
		}
		for _, track := range tracks {
			v := &e.Victim
			p.begin(typeInstant, track, "OOM kill")
			p.annotateUint("victim_pid", uint64(v.PID))
			p.annotate("victim", v.Comm.String())
			for _, pages := range victimPages {
				p.annotateUint(pages.name, pages.of(v))
			}
			p.end(e)
		}
	case event.OOM:
		p.begin(typeInstant, p.thread(e), "OOM without a kill")
		p.annotate("cgroup", p.world.Names.Printable(e.Cgroup))
		p.annotate("result", e.Result.String())
		p.end(e)
	case event.Throttle:
		high := "memory.high"
		if e.Kind == event.Swap {
			high = "memory.swap.high"
		}
		p.begin(typeSliceBegin, p.thread(e), "sleep for "+high)
		p.annotate("cgroup", p.world.Names.Printable(e.Cgroup))
		p.end(e)
		woken := *e
		woken.BootNanos += e.DurationNanos
		p.begin(typeSliceEnd, p.thread(e), "")
		p.end(&woken)
	case event.Lost:
		p.begin(typeInstant, 0, "events lost")
		p.annotateUint("events", e.LostCharges)
		p.end(e)
	}
}

func (p *Perfetto) failure(e *event.Event) {
	p.begin(typeInstant, p.thread(e), "charge failed")
	p.annotateUint("requested_"+unit(e), e.RequestedPages)
	p.annotate("kind", e.Kind.String())
	p.annotate("cgroup", p.world.Names.Printable(e.Cgroup))
	p.annotate("failed_at", p.world.Names.Printable(e.InCgroup(e.FailedAt)))
	p.end(e)
}

// unitBytes returns the size of the unit of a counter.
func (p *Perfetto) unitBytes(kind event.Kind) int64 {
	if kind == event.Dmem {
		return 1
	}
	return int64(p.world.Info.PageSize)
}

// setUsage writes the limit, usage and room of a level after an event.
func (p *Perfetto) setUsage(e *event.Event, u *world.Usage) {
	t := p.level(u.Counter)
	unitBytes := p.unitBytes(u.Counter.Kind)
	if u.Limited() && t.limit == 0 {
		t.limit = p.describeCounter(t.track, "limit")
		t.room = p.describeCounter(t.track, "room")
	}
	if u.Limited() && t.maxPages != u.MaxPages {
		p.counter(e, t.limit, int64(u.MaxPages)*unitBytes)
	}
	t.maxPages = u.MaxPages
	p.counter(e, t.usage, u.AfterPages*unitBytes)
	if u.Limited() {
		p.counter(e, t.room, (int64(u.MaxPages)-u.AfterPages)*unitBytes)
	}
}

func (p *Perfetto) counter(e *event.Event, track uint64, value int64) {
	p.begin(typeCounter, track, "")
	p.message = appendVarint(p.message, eventCounterValue, uint64(value))
	p.end(e)
}

// level returns the tracks of a level. It describes them before their first use.
func (p *Perfetto) level(key event.CounterID) *levelTracks {
	t := p.levels[key]
	if t == nil {
		name := p.world.Names.Printable(key.Cgroup)
		if key.Kind != event.Memory {
			name += " [" + key.Kind.String() + "]"
		}
		t = &levelTracks{track: p.describe(func(d []byte) []byte { return appendString(d, descriptorName, name) }), maxPages: ^uint64(0)}
		t.usage = p.describeCounter(t.track, "usage")
		p.levels[key] = t
	}
	return t
}

// describeCounter adds a track for a counter of bytes below another track.
func (p *Perfetto) describeCounter(parent uint64, name string) uint64 {
	return p.describe(func(d []byte) []byte {
		d = appendString(d, descriptorName, name)
		d = appendVarint(d, descriptorParentUUID, parent)
		return appendBytes(d, descriptorCounter, appendVarint(nil, counterUnit, unitSizeBytes))
	})
}

// thread returns the track of the thread of an event. It describes the thread and its
// process before their first use.
func (p *Perfetto) thread(e *event.Event) uint64 {
	key := threadKey{e.TID, e.Comm}
	if track, ok := p.threads[key]; ok {
		return track
	}
	name := e.Comm.String()
	if _, ok := p.procs[e.PID]; !ok {
		p.procs[e.PID] = p.describe(func(d []byte) []byte {
			process := appendVarint(nil, processPID, uint64(e.PID))
			return appendBytes(d, descriptorProcess, appendString(process, processName, name))
		})
	}
	track := p.describe(func(d []byte) []byte {
		thread := appendVarint(nil, threadPID, uint64(e.PID))
		thread = appendVarint(thread, threadTID, uint64(e.TID))
		return appendBytes(d, descriptorThread, appendString(thread, threadName, name))
	})
	p.threads[key] = track
	return track
}

// describe writes the descriptor of a new track, and returns the track's number.
func (p *Perfetto) describe(fill func([]byte) []byte) uint64 {
	p.tracks++
	descriptor := fill(appendVarint(nil, descriptorUUID, p.tracks))
	p.writePacket(appendBytes(p.packet[:0], packetTrackDescriptor, descriptor))
	return p.tracks
}

// begin starts an event in p.message. Callers append fields to it until end.
func (p *Perfetto) begin(typ, track uint64, name string) {
	p.message = appendVarint(p.message[:0], eventType, typ)
	p.message = appendVarint(p.message, eventTrackUUID, track)
	if name != "" {
		p.message = appendString(p.message, eventName, name)
		p.message = appendString(p.message, eventCategories, "chargetrace")
	}
}

func (p *Perfetto) annotate(name, value string) {
	a := appendString(nil, annotationName, name)
	p.message = appendBytes(p.message, eventAnnotations, appendString(a, annotationString, value))
}

func (p *Perfetto) annotateUint(name string, value uint64) {
	a := appendString(nil, annotationName, name)
	p.message = appendBytes(p.message, eventAnnotations, appendVarint(a, annotationUint, value))
}

// end writes the event that begin started.
func (p *Perfetto) end(e *event.Event) {
	p.packet = appendVarint(p.packet[:0], packetTimestamp, e.BootNanos)
	p.writePacket(appendBytes(p.packet, packetTrackEvent, p.message))
}

func (p *Perfetto) writePacket(packet []byte) {
	packet = appendVarint(packet, packetSequenceID, 1)
	if !p.started {
		p.started = true
		packet = appendVarint(packet, packetSequenceFlags, incrementalStateCleared)
	}
	p.packet = packet
	p.buf = appendBytes(p.buf, tracePacket, packet)
}

func appendVarint(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}
