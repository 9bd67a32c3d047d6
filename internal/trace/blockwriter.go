package trace

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"

	"chargetrace/internal/event"
)

// A block ends at blockEvents events, few enough to lose, or earlier where its payload
// has blockBytes or could have: an event takes at most eventBytes in the columns. Each
// block repeats names and stacks, and a user stack can have tens of kilobytes.
const (
	blockEvents = 1 << 16
	blockBytes  = maxPayload / 2
	eventBytes  = 80
)

// blockWriter encodes the events of a block.
type blockWriter struct {
	// cgroups and frames are the names and stacks of all blocks so far.
	cgroups map[event.CgroupID]cgroup
	frames  map[uint32]string

	coder
	limit               int // see blockBytes
	events              int
	firstTime, lastTime uint64
	least, greatest     uint64 // time

	// mentionedCgroups and mentionedStacks are those of the sections names and stacks,
	// or without a name so far.
	mentionedCgroups map[event.CgroupID]bool
	mentionedStacks  map[uint32]bool
	// renamed are the cgroups with another name than the last that was written.
	renamed map[event.CgroupID]bool
	// released are cgroups whose names are forgotten after this block: what is read of a cgroup
	// late can come after its end.
	released []event.CgroupID

	// numbers are the numbers of the contexts by their encoding. last is the number of
	// the last context of each type, -1 for none: most events of a type share one.
	numbers map[string]int
	last    [len(codecs)]int

	buf []byte
}

// cgroup has the fields of an event of type [event.CgroupName].
type cgroup struct {
	parent         uint64
	name, identity string
}

func cgroupOf(e *event.Event) cgroup { return cgroup{e.ParentID, e.Name, e.Identity} }

func newBlockWriter() blockWriter {
	b := blockWriter{
		cgroups: make(map[event.CgroupID]cgroup), frames: make(map[uint32]string),
		mentionedCgroups: make(map[event.CgroupID]bool), mentionedStacks: make(map[uint32]bool), renamed: make(map[event.CgroupID]bool),
		numbers: make(map[string]int),
		coder:   coder{encoding: true, version: Version},
		limit:   blockBytes,
	}
	b.reset()
	return b
}

func (b *blockWriter) reset() {
	b.events = 0
	for _, id := range b.released {
		delete(b.cgroups, id)
		delete(b.renamed, id)
	}
	b.released = b.released[:0]
	clear(b.mentionedCgroups)
	clear(b.mentionedStacks)
	clear(b.numbers)
	for i := range b.last {
		b.last[i] = -1
	}
	b.forget()
	for _, s := range b.sections() {
		s.b = s.b[:0]
	}
}

// maxReleased is the number of released cgroups that wait for the next event.
const maxReleased = 1024

// release forgets the name of a cgroup that is gone.
func (b *blockWriter) release(id event.CgroupID) {
	if b.released = append(b.released, id); b.events == 0 && len(b.released) >= maxReleased {
		b.reset()
	}
}

func (b *blockWriter) full() bool {
	size := len(b.names.b) + len(b.stacks.b) + len(b.contexts.b) + b.events*eventBytes
	return b.events == blockEvents || size >= b.limit
}

// redefines reports whether e gives another name to a cgroup or stack of the block.
func (b *blockWriter) redefines(e *event.Event) bool {
	if e.Type == event.Stack {
		return b.mentionedStacks[e.StackNumber] && b.frames[e.StackNumber] != e.Frames
	}
	known, ok := b.cgroups[e.Cgroup]
	return b.mentionedCgroups[e.Cgroup] && (!ok || known != cgroupOf(e))
}

// define stores a name or a stack for the contexts that follow.
func (b *blockWriter) define(e *event.Event) {
	if e.Type == event.Stack {
		b.frames[e.StackNumber] = e.Frames
		return
	}
	known, ok := b.cgroups[e.Cgroup]
	if ok && known != cgroupOf(e) {
		b.renamed[e.Cgroup] = true
	}
	b.cgroups[e.Cgroup] = cgroupOf(e)
}

// add encodes an event.
func (b *blockWriter) add(e *event.Event) {
	t := e.BootNanos
	if b.events == 0 {
		// The payload has the first time relative to the least, which is not known yet.
		b.firstTime, b.least, b.greatest = t, t, t
	} else {
		b.time.appendUvarint(zigzag(int64(t - b.lastTime)))
	}
	b.events++
	b.lastTime, b.least, b.greatest = t, min(b.least, t), max(b.greatest, t)
	i := b.contextOf(e)
	b.context.appendUvarint(uint64(i))
	codecs[e.Type].columns.encode(&b.coder, &b.numbered[i].levels, e)
}

// contextOf returns the number of an event's context, and adds the context if it is new.
func (b *blockWriter) contextOf(e *event.Event) int {
	last := &b.last[e.Type]
	if *last >= 0 {
		if c := &b.numbered[*last].Event; sameTask(c, e) && codecs[e.Type].context.same(c, e) {
			return *last
		}
	}
	begin := len(b.contexts.b)
	codeContext(&b.coder, e)
	encoded := b.contexts.b[begin:]
	i, ok := b.numbers[string(encoded)]
	if ok {
		b.contexts.b = b.contexts.b[:begin]
	} else {
		i = len(b.numbered)
		b.numbers[string(encoded)] = i
		b.addContext(begin)
	}
	*last = i
	return i
}

// addContext adds the context that was encoded last, and the names of its cgroups and
// stacks. It decodes the context: the event had arbitrary values in the fields of other
// types.
func (b *blockWriter) addContext(begin int) {
	b.encoding, b.contexts.pos = false, begin
	c := b.readContext()
	b.encoding = true
	b.mentionStack(c.KernelStack)
	b.mentionStack(c.UserStack)
	// The other levels are ancestors of this cgroup.
	b.mentionCgroup(c.Cgroup)
	b.mentionCgroup(c.VictimCgroup())
}

// mentionCgroup adds the names of a cgroup and its ancestors, as far as they are known.
func (b *blockWriter) mentionCgroup(id event.CgroupID) {
	for !b.mentionedCgroups[id] {
		b.mentionedCgroups[id] = true
		delete(b.renamed, id)
		known, ok := b.cgroups[id]
		if !ok {
			return
		}
		codeCgroupName(&b.coder, &event.Event{Cgroup: id, ParentID: known.parent, Name: known.name, Identity: known.identity})
		id.ID = known.parent
	}
}

// mentionRenamed adds the names of renamed cgroups to a block without events, as many as fit.
func (b *blockWriter) mentionRenamed() {
	b.firstTime, b.least, b.greatest = b.lastTime, b.lastTime, b.lastTime
	ids := slices.SortedFunc(maps.Keys(b.renamed), func(x, y event.CgroupID) int {
		return cmp.Or(cmp.Compare(x.Hierarchy, y.Hierarchy), cmp.Compare(x.ID, y.ID))
	})
	for _, id := range ids {
		if len(b.names.b) < blockBytes {
			b.mentionCgroup(id)
		}
	}
}

// mentionStack adds a stack if it is known.
func (b *blockWriter) mentionStack(number uint32) {
	if b.mentionedStacks[number] {
		return
	}
	b.mentionedStacks[number] = true
	if frames, ok := b.frames[number]; ok {
		codeStack(&b.coder, &event.Event{StackNumber: number, Frames: frames})
	}
}

// payload ends the block and returns its payload, which is valid until the next call.
func (b *blockWriter) payload() []byte {
	b.flush()
	first := binary.AppendVarint(nil, int64(b.firstTime-b.least))
	b.time.b = slices.Insert(b.time.b, 0, first...)
	b.buf = b.buf[:0]
	for _, s := range b.sections() {
		b.buf = binary.AppendUvarint(b.buf, uint64(len(s.b)))
		b.buf = append(b.buf, s.b...)
	}
	return b.buf
}
