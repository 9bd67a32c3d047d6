package export

import (
	"io"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/world"
)

// Perfetto is a [stream.Sink] that writes a trace for Perfetto's user interface and
// trace processor. Cgroups have a tree of tracks, with usage, limit and room as counters, those
// of other kinds than memory below a track of the kind, and OOM kills as instants. Each thread
// has a track with reclaim as slices, and failed charges and OOM kills as instants. Times are on
// CLOCK_BOOTTIME, the default clock of Perfetto's own traces of a machine.
type Perfetto struct {
	writer
	tracks  uint64 // the last track's number
	started bool
	trees   map[event.CgroupID]cgroupTrack
	levels  map[event.CounterID]*levelTracks
	threads map[threadKey]uint64
	procs   map[uint32]uint64
	packet  []byte
	message []byte

	// Strings that events refer to by number. newStrings are those of the event in message.
	categories, names, annotationNames, annotationValues interned
	newStrings                                           []byte
	refers                                               bool // message refers to strings
}

// levelTracks are the tracks of a level.
type levelTracks struct {
	track, usage uint64
	limit, room  uint64 // 0 before the first limit
	maxPages     uint64 // the last limit
}

// interned numbers the strings of a field of Perfetto's InternedData, from 1 on.
type interned struct {
	field   protowire.Number
	numbers map[string]uint64
	bytes   int
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
		writer: newWriter(w, world), trees: make(map[event.CgroupID]cgroupTrack),
		levels: make(map[event.CounterID]*levelTracks), threads: make(map[threadKey]uint64), procs: make(map[uint32]uint64),

		categories:       interned{field: internedCategories, numbers: make(map[string]uint64)},
		names:            interned{field: internedNames, numbers: make(map[string]uint64)},
		annotationNames:  interned{field: internedAnnotationNames, numbers: make(map[string]uint64)},
		annotationValues: interned{field: internedAnnotationValues, numbers: make(map[string]uint64)},
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
	packetInternedData    = 12
	packetSequenceFlags   = 13
	packetTrackDescriptor = 60

	descriptorUUID       = 1 // TrackDescriptor
	descriptorName       = 2
	descriptorProcess    = 3
	descriptorThread     = 4
	descriptorParentUUID = 5
	descriptorCounter    = 8
	descriptorMerge      = 15
	mergeNone            = 2 // two tracks with the same name stay two

	processPID  = 1 // ProcessDescriptor
	processName = 6
	threadPID   = 1 // ThreadDescriptor
	threadTID   = 2
	threadName  = 5

	counterUnit   = 3 // CounterDescriptor
	unitSizeBytes = 3

	eventCategoryIIDs = 3 // TrackEvent
	eventAnnotations  = 4
	eventType         = 9
	eventNameIID      = 10
	eventTrackUUID    = 11
	eventCategories   = 22
	eventName         = 23
	eventCounterValue = 30

	internedCategories       = 1 // InternedData
	internedNames            = 2
	internedAnnotationNames  = 3
	internedAnnotationValues = 29

	internedIID    = 1 // EventName, DebugAnnotationName, InternedString
	internedString = 2

	typeSliceBegin = 1
	typeSliceEnd   = 2
	typeInstant    = 3
	typeCounter    = 4

	annotationNameIID   = 1 // DebugAnnotation
	annotationUint      = 3
	annotationString    = 6
	annotationName      = 10
	annotationStringIID = 17

	incrementalStateCleared = 1 // SequenceFlags
	needsIncrementalState   = 2
)

func (p *Perfetto) encode(e *event.Event) {
	switch e.Type {
	case event.CgroupName:
		p.renameCgroup(e.Cgroup)
	case event.Charge:
		if e.Outcome == event.Failed {
			p.failure(e)
		}
	case event.ReclaimBegin:
		p.begin(typeSliceBegin, p.thread(e), "reclaim")
		p.annotateCgroup("cgroup", e.Cgroup)
		p.end(e)
	case event.ReclaimEnd:
		p.begin(typeSliceEnd, p.thread(e), "")
		p.annotateUint("freed_pages", e.FreedPages)
		p.end(e)
	case event.OOMKill:
		tracks := []uint64{p.thread(e)}
		if e.Cgroup.ID != 0 {
			tracks = append(tracks, p.cgroup(e.Cgroup))
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
		p.annotateCgroup("cgroup", e.Cgroup)
		p.annotate("result", e.Result.String())
		p.end(e)
	case event.Throttle:
		high := "memory.high"
		if e.Kind == event.Swap {
			high = "memory.swap.high"
		}
		p.begin(typeSliceBegin, p.thread(e), "sleep for "+high)
		p.annotateCgroup("cgroup", e.Cgroup)
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
	p.annotateCgroup("cgroup", e.Cgroup)
	p.annotateCgroup("failed_at", e.InCgroup(e.FailedAt))
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
		t = &levelTracks{track: p.cgroup(key.Cgroup), maxPages: ^uint64(0)}
		if key.Kind != event.Memory {
			cgroup := t.track
			t.track = p.describe(func(d []byte) []byte {
				return appendVarint(appendString(d, descriptorName, "["+key.Kind.String()+"]"), descriptorParentUUID, cgroup)
			})
		}
		t.usage = p.describeCounter(t.track, "usage")
		p.levels[key] = t
	}
	return t
}

// cgroupTrack is the track of a cgroup, and that of its parent, 0 if the parent is unknown.
type cgroupTrack struct{ track, parent uint64 }

// cgroup returns the track of a cgroup. It describes the tracks of the cgroup and its ancestors
// before their first use.
func (p *Perfetto) cgroup(id event.CgroupID) uint64 {
	for _, ancestor := range slices.Backward(slices.Collect(p.world.Names.Lineage(id))) {
		if p.trees[ancestor].track == 0 {
			p.tracks++
			t := cgroupTrack{p.tracks, p.parentTrack(ancestor)}
			p.trees[ancestor] = t
			p.describeCgroup(t, ancestor)
		}
	}
	return p.trees[id].track
}

func (p *Perfetto) parentTrack(id event.CgroupID) uint64 {
	parent, _ := p.world.Names.Parent(id)
	return p.trees[parent].track
}

// renameCgroup describes the track of a cgroup again, which has another name now. With another
// parent, the cgroup gets another track.
func (p *Perfetto) renameCgroup(id event.CgroupID) {
	switch t := p.trees[id]; {
	case t.track == 0:
	case t.parent == p.parentTrack(id):
		p.describeCgroup(t, id)
	default:
		delete(p.trees, id)
		for kind := event.Unknown; event.AllKinds.Has(kind); kind++ {
			delete(p.levels, event.CounterID{Cgroup: id, Kind: kind})
		}
	}
}

// describeCgroup writes the descriptor of a cgroup's track, with the cgroup's name below its
// parent.
func (p *Perfetto) describeCgroup(t cgroupTrack, id event.CgroupID) {
	name := p.world.Names.Label(id)
	if path := p.world.Names.Printable(id); t.parent != 0 && name == path {
		name = path[strings.LastIndexByte(path, '/')+1:]
	}
	p.describeTrack(t.track, func(d []byte) []byte {
		d = appendString(d, descriptorName, name)
		if t.parent != 0 {
			d = appendVarint(d, descriptorParentUUID, t.parent)
		}
		return appendVarint(d, descriptorMerge, mergeNone)
	})
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
	p.describeTrack(p.tracks, fill)
	return p.tracks
}

func (p *Perfetto) describeTrack(track uint64, fill func([]byte) []byte) {
	descriptor := fill(appendVarint(nil, descriptorUUID, track))
	p.writePacket(appendBytes(p.packet[:0], packetTrackDescriptor, descriptor), 0)
}

// begin starts an event in p.message. Callers append fields to it until end.
func (p *Perfetto) begin(typ, track uint64, name string) {
	p.message = appendVarint(p.message[:0], eventType, typ)
	p.message = appendVarint(p.message, eventTrackUUID, track)
	if name != "" {
		p.message = p.appendInterned(p.message, &p.names, eventNameIID, eventName, name)
		p.message = p.appendInterned(p.message, &p.categories, eventCategoryIIDs, eventCategories, "chargetrace")
	}
}

func (p *Perfetto) annotate(name, value string) {
	a := p.appendInterned(nil, &p.annotationNames, annotationNameIID, annotationName, name)
	a = p.appendInterned(a, &p.annotationValues, annotationStringIID, annotationString, value)
	p.message = appendBytes(p.message, eventAnnotations, a)
}

// annotateCgroup adds the path of a cgroup, and its label if that differs.
func (p *Perfetto) annotateCgroup(name string, id event.CgroupID) {
	path, label := p.world.Names.Printable(id), p.world.Names.Label(id)
	p.annotate(name, path)
	if label != path {
		p.annotate(name+"_label", label)
	}
}

func (p *Perfetto) annotateUint(name string, value uint64) {
	a := p.appendInterned(nil, &p.annotationNames, annotationNameIID, annotationName, name)
	p.message = appendBytes(p.message, eventAnnotations, appendVarint(a, annotationUint, value))
}

// maxInterned bounds the bytes of the numbered strings of a field. Others are written in full.
const maxInterned = 16 << 20

// appendInterned appends a string by its number to the field iid. The first event with the string
// carries it. Beyond maxInterned bytes it appends the string itself to the field plain.
func (p *Perfetto) appendInterned(b []byte, in *interned, iid, plain protowire.Number, s string) []byte {
	number, ok := in.numbers[s]
	if !ok && in.bytes+len(s) > maxInterned {
		return appendString(b, plain, s)
	}
	if !ok {
		number = uint64(len(in.numbers) + 1)
		in.numbers[s] = number
		in.bytes += len(s)
		entry := appendString(appendVarint(nil, internedIID, number), internedString, s)
		p.newStrings = appendBytes(p.newStrings, in.field, entry)
	}
	p.refers = true
	return appendVarint(b, iid, number)
}

// end writes the event that begin started.
func (p *Perfetto) end(e *event.Event) {
	p.packet = appendVarint(p.packet[:0], packetTimestamp, e.BootNanos)
	p.packet = appendBytes(p.packet, packetTrackEvent, p.message)
	if len(p.newStrings) > 0 {
		p.packet = appendBytes(p.packet, packetInternedData, p.newStrings)
		p.newStrings = p.newStrings[:0]
	}
	flags := uint64(0)
	if p.refers {
		flags, p.refers = needsIncrementalState, false
	}
	p.writePacket(p.packet, flags)
}

func (p *Perfetto) writePacket(packet []byte, flags uint64) {
	packet = appendVarint(packet, packetSequenceID, 1)
	if !p.started {
		p.started = true
		flags |= incrementalStateCleared
	}
	if flags != 0 {
		packet = appendVarint(packet, packetSequenceFlags, flags)
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
