package trace

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// blockEvents is how many events a block has at most: enough to compress well,
// and little enough to lose.
const blockEvents = 1 << 16

// A block is also at its end where its payload has blockBytes, or may have them:
// an event takes no more than eventBytes in the columns. Names and stacks are
// repeated in each block, and a stack of user space can have tens of kilobytes.
const (
	blockBytes = maxPayload / 2
	eventBytes = 80
)

// maxDelay is how long the first event of a block waits to be written.
const maxDelay = time.Second

// Writer is a [stream.Sink] that writes a recording. It is for one goroutine.
type Writer struct {
	w    io.Writer
	info stream.Info
	zstd *zstd.Encoder

	mu    sync.Mutex // the timer writes blocks too
	timer *time.Timer
	err   error // of the timer's
	block blockWriter
	// events and charges are how many were written.
	events, charges uint64
	bytes           int64
}

type cgroupName struct {
	parent uint64
	name   string
}

// NewWriter begins a recording.
func NewWriter(w io.Writer, info stream.Info) (*Writer, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	wr := &Writer{w: w, info: info, zstd: enc, block: newBlockWriter()}
	wr.timer = time.AfterFunc(time.Hour, wr.tick)
	wr.timer.Stop()
	head := binary.LittleEndian.AppendUint32([]byte(signature), Version)
	if _, err := w.Write(head); err != nil {
		return nil, err
	}
	wr.bytes = int64(len(head))
	payload, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	return wr, wr.writeBlock(blockHeader{kind: kindMeta}, payload)
}

// Bytes is how many bytes are written so far.
func (w *Writer) Bytes() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes
}

// Write adds events to the recording. They are in the file after a second.
func (w *Writer) Write(batch []event.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range batch {
		e := &batch[i]
		if e.Type.IsName() {
			// The events before this one have the old name.
			if w.block.contradicts(e) {
				if err := w.flush(); err != nil {
					return err
				}
			}
			w.block.learn(e)
			continue
		}
		if w.block.events == 0 {
			w.timer.Reset(maxDelay)
		}
		w.block.add(e)
		w.events++
		if e.Type == event.Charge {
			w.charges++
		}
		if w.block.events == blockEvents || w.block.size() >= blockBytes {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return w.err
}

// tick writes the block that has waited long enough.
func (w *Writer) tick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = errors.Join(w.err, w.flush())
}

// Close writes what is left and the end, with the counts; of those, RecordedEvents and
// RecordedCharges are this recording's.
func (w *Writer) Close(c stream.Counts) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	if err := errors.Join(w.err, w.flush()); err != nil {
		return err
	}
	c.RecordedEvents, c.RecordedCharges = w.events, w.charges
	payload, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return w.writeBlock(blockHeader{kind: kindEnd}, payload)
}

// flush writes the block of events.
func (w *Writer) flush() error {
	w.timer.Stop()
	if w.block.events == 0 {
		return nil
	}
	h := blockHeader{kind: kindEvents, events: uint32(w.block.events), least: w.block.least, greatest: w.block.greatest}
	payload := w.block.payload()
	w.block.reset()
	return w.writeBlock(h, payload)
}

func (w *Writer) writeBlock(h blockHeader, payload []byte) error {
	buf := make([]byte, headerBytes, headerBytes+len(payload))
	buf = w.zstd.EncodeAll(payload, buf)
	stored := buf[headerBytes:]
	if len(payload) > maxPayload || len(stored) > maxPayload {
		return fmt.Errorf("a block of %d bytes is too large to record", len(payload))
	}
	h.stored, h.size = uint32(len(stored)), uint32(len(payload))
	h.append(buf[:0])
	h.checksum = checksum(buf, stored)
	h.append(buf[:0])
	n, err := w.w.Write(buf)
	w.bytes += int64(n)
	return err
}

// blockWriter gathers the events of a block.
type blockWriter struct {
	// What is known of cgroups and stacks, whatever the block.
	cgroups map[event.CgroupID]cgroupName
	frames  map[uint32]string

	events          int
	least, greatest uint64

	// mentionedCgroups and mentionedStacks are those that the block mentions; its
	// sections have of them what was known then.
	mentionedCgroups map[event.CgroupID]bool
	mentionedStacks  map[uint32]bool

	// numbered are the contexts, and numbers theirs by what identifies them; last is,
	// for each type, that of the last event, since most are like the one before of
	// their type.
	numbered []context
	numbers  map[event.Event]int
	last     [event.Usage + 1]int
	usages   usages

	names, stacks, contexts                                                 []byte
	context, time, requested, outcome, usage, limiting, high, failed, other []byte
	times                                                                   []uint64
	buf                                                                     []byte
}

func newBlockWriter() blockWriter {
	b := blockWriter{
		cgroups: make(map[event.CgroupID]cgroupName), frames: make(map[uint32]string),
		mentionedCgroups: make(map[event.CgroupID]bool), mentionedStacks: make(map[uint32]bool),
		numbers: make(map[event.Event]int),
	}
	b.reset()
	return b
}

func (b *blockWriter) reset() {
	b.events = 0
	clear(b.mentionedCgroups)
	clear(b.mentionedStacks)
	clear(b.numbers)
	b.numbered = b.numbered[:0]
	for i := range b.last {
		b.last[i] = -1
	}
	b.usages.reset()
	for _, section := range b.sections() {
		*section = (*section)[:0]
	}
	b.times = b.times[:0]
}

// sections returns the sections in the order in which they are stored.
func (b *blockWriter) sections() []*[]byte {
	return []*[]byte{&b.names, &b.stacks, &b.contexts, &b.context, &b.time, &b.requested, &b.outcome, &b.usage, &b.limiting, &b.high, &b.failed, &b.other}
}

// size is how many bytes the payload has at most.
func (b *blockWriter) size() int {
	return len(b.names) + len(b.stacks) + len(b.contexts) + b.events*eventBytes
}

// contradicts reports whether an event gives a name to what the block mentions under
// another, or under none.
func (b *blockWriter) contradicts(e *event.Event) bool {
	if e.Type == event.Stack {
		return b.mentionedStacks[e.StackNumber] && b.frames[e.StackNumber] != e.Frames
	}
	name, ok := b.cgroups[e.Cgroup]
	return b.mentionedCgroups[e.Cgroup] && (!ok || name != cgroupName{e.ParentID, e.Name})
}

// learn learns a name.
func (b *blockWriter) learn(e *event.Event) {
	if e.Type == event.Stack {
		b.frames[e.StackNumber] = e.Frames
	} else {
		b.cgroups[e.Cgroup] = cgroupName{e.ParentID, e.Name}
	}
}

// contextOf returns what of an event is kept in its context.
func contextOf(e *event.Event) event.Event {
	c := event.Event{Type: e.Type, CPU: e.CPU, PID: e.PID, TID: e.TID, Comm: e.Comm, Cgroup: e.Cgroup}
	switch e.Type {
	case event.Lost, event.Fork:
		c.Cgroup = event.CgroupID{}
	case event.Charge:
		c.Kind, c.Flags = e.Kind, e.Flags&^retryOrPredicted
		c.Counter, c.StackPointer, c.MaxPages = e.Counter, e.StackPointer, e.MaxPages
		c.KernelStack, c.UserStack = e.KernelStack, e.UserStack
		c.Limiting = event.Level{CgroupID: e.Limiting.CgroupID, MaxPages: e.Limiting.MaxPages}
		c.High = event.Level{CgroupID: e.High.CgroupID, MaxPages: e.High.MaxPages}
	case event.Uncharge, event.ForcedCharge:
		c.Kind, c.Counter = e.Kind, e.Counter
	}
	return c
}

// sameContext reports whether an event of the type of c has c for its context.
func sameContext(c, e *event.Event) bool {
	same := c.TID == e.TID && c.CPU == e.CPU && c.Counter == e.Counter && c.Cgroup == e.Cgroup && c.Kind == e.Kind && c.PID == e.PID && c.Comm == e.Comm
	if !same || e.Type != event.Charge {
		return same
	}
	return c.StackPointer == e.StackPointer && c.KernelStack == e.KernelStack && c.UserStack == e.UserStack &&
		c.MaxPages == e.MaxPages && c.Limiting.CgroupID == e.Limiting.CgroupID && c.Limiting.MaxPages == e.Limiting.MaxPages &&
		c.High.CgroupID == e.High.CgroupID && c.High.MaxPages == e.High.MaxPages &&
		c.Flags == e.Flags&^retryOrPredicted
}

// find returns the number of an event's context.
func (b *blockWriter) find(e *event.Event) int {
	last := &b.last[e.Type]
	if *last >= 0 && sameContext(&b.numbered[*last].Event, e) {
		return *last
	}
	key := contextOf(e)
	i, ok := b.numbers[key]
	if !ok {
		i = len(b.numbered)
		b.numbers[key] = i
		b.addContext(&key)
	}
	*last = i
	return i
}

// addContext adds a context, and what it mentions.
func (b *blockWriter) addContext(e *event.Event) {
	c := context{Event: *e}
	switch e.Type {
	case event.Uncharge, event.ForcedCharge:
		c.own = b.usages.of(e.Cgroup, e.Kind)
	case event.Charge:
		c.own = b.usages.of(e.Cgroup, e.Kind)
		c.limiting = b.usages.of(e.InCgroup(e.Limiting.CgroupID), e.Kind)
		c.high = b.usages.of(e.InCgroup(e.High.CgroupID), e.Kind)
		b.mentionStack(e.KernelStack)
		b.mentionStack(e.UserStack)
	}
	b.numbered = append(b.numbered, c)
	b.contexts = appendContext(b.contexts, e)
	// Every level is an ancestor of the cgroup that pays.
	b.mentionCgroup(e.Cgroup)
}

// mentionCgroup adds the names of a cgroup and its ancestors, as far as they are
// known.
func (b *blockWriter) mentionCgroup(id event.CgroupID) {
	for !b.mentionedCgroups[id] {
		b.mentionedCgroups[id] = true
		n, ok := b.cgroups[id]
		if !ok {
			return
		}
		b.names = binary.AppendUvarint(b.names, uint64(id.Hierarchy))
		b.names = binary.AppendUvarint(b.names, id.ID)
		b.names = binary.AppendUvarint(b.names, n.parent)
		b.names = binary.AppendUvarint(b.names, uint64(len(n.name)))
		b.names = append(b.names, n.name...)
		id.ID = n.parent
	}
}

// mentionStack adds a stack, if it is known.
func (b *blockWriter) mentionStack(number uint32) {
	if b.mentionedStacks[number] {
		return
	}
	b.mentionedStacks[number] = true
	if frames, ok := b.frames[number]; ok {
		b.stacks = binary.AppendUvarint(b.stacks, uint64(number))
		b.stacks = binary.AppendUvarint(b.stacks, uint64(len(frames)))
		b.stacks = append(b.stacks, frames...)
	}
}

func (b *blockWriter) add(e *event.Event) {
	if b.events == 0 {
		b.least, b.greatest = e.BootNanos, e.BootNanos
	}
	b.events++
	b.least, b.greatest = min(b.least, e.BootNanos), max(b.greatest, e.BootNanos)
	b.times = append(b.times, e.BootNanos)
	i := b.find(e)
	b.context = binary.AppendUvarint(b.context, uint64(i))
	switch e.Type {
	case event.Charge:
		b.addCharge(&b.numbered[i], e)
	case event.Lost:
		b.other = binary.AppendUvarint(b.other, e.LostEvents)
	case event.ReclaimEnd:
		b.other = binary.AppendUvarint(b.other, e.FreedPages)
		b.other = binary.AppendUvarint(b.other, e.DurationNanos)
	case event.OOMKill:
		v := &e.Victim
		b.other = binary.AppendUvarint(b.other, uint64(v.PID))
		b.other = appendComm(b.other, &v.Comm)
		for _, n := range []uint64{v.AnonPages, v.FilePages, v.ShmemPages, v.SwapPages} {
			b.other = binary.AppendUvarint(b.other, n)
		}
	case event.Fork:
		b.other = binary.AppendUvarint(b.other, uint64(e.ChildPID)<<1|existing(e))
	case event.Usage:
		b.other = binary.AppendUvarint(b.other, uint64(e.UsagePages)<<1|existing(e))
	case event.Uncharge, event.ForcedCharge:
		b.requested = binary.AppendUvarint(b.requested, e.RequestedPages)
		own := b.numbered[i].own
		b.usage = binary.AppendVarint(b.usage, e.UsagePages-b.usages.next[own])
		b.usages.next[own] = e.UsageAfterPages()
	}
}

// existing is the bit of an event that is flagged so.
func existing(e *event.Event) uint64 {
	if e.Flags&event.Existing != 0 {
		return 1
	}
	return 0
}

func (b *blockWriter) addCharge(c *context, e *event.Event) {
	b.requested = binary.AppendUvarint(b.requested, e.RequestedPages)
	outcome := byte(e.Outcome)
	if e.Flags&event.Retry != 0 {
		outcome |= 1 << 2
	}
	if e.Flags&event.Predicted != 0 {
		outcome |= 1 << 3
	}
	b.outcome = append(b.outcome, outcome)
	if e.Outcome != event.OK {
		switch e.FailedAt {
		case e.Limiting.CgroupID:
			b.failed = append(b.failed, 0)
		case e.Cgroup.ID:
			b.failed = append(b.failed, 1)
		default:
			b.failed = binary.AppendUvarint(append(b.failed, 2), e.FailedAt)
		}
	}
	next := b.usages.next
	b.usage = binary.AppendVarint(b.usage, e.UsagePages-next[c.own])
	next[c.own] = e.UsagePages
	b.limiting = binary.AppendVarint(b.limiting, e.Limiting.UsagePages-next[c.limiting])
	next[c.limiting] = e.Limiting.UsagePages
	b.high = binary.AppendVarint(b.high, e.High.UsagePages-next[c.high])
	next[c.high] = e.High.UsagePages
	c.charged(next, e)
}

// charged makes what an event has charged part of what is expected.
func (c *context) charged(next []int64, e *event.Event) {
	if e.Outcome != event.OK {
		return
	}
	next[c.own] += int64(e.RequestedPages)
	if c.limiting != c.own {
		next[c.limiting] += int64(e.RequestedPages)
	}
	if c.high != c.own && c.high != c.limiting {
		next[c.high] += int64(e.RequestedPages)
	}
}

// payload returns the block, which is valid until the next call.
func (b *blockWriter) payload() []byte {
	last := b.least
	for _, t := range b.times {
		b.time = binary.AppendVarint(b.time, int64(t-last))
		last = t
	}
	b.buf = b.buf[:0]
	for _, section := range b.sections() {
		b.buf = binary.AppendUvarint(b.buf, uint64(len(*section)))
		b.buf = append(b.buf, *section...)
	}
	return b.buf
}

func appendContext(dst []byte, c *event.Event) []byte {
	dst = append(dst, byte(c.Type))
	dst = binary.AppendUvarint(dst, uint64(c.CPU))
	dst = binary.AppendUvarint(dst, uint64(c.PID))
	dst = binary.AppendUvarint(dst, uint64(c.TID))
	dst = appendComm(dst, &c.Comm)
	if c.Type == event.Lost || c.Type == event.Fork {
		return dst
	}
	dst = binary.AppendUvarint(dst, uint64(c.Cgroup.Hierarchy))
	dst = binary.AppendUvarint(dst, c.Cgroup.ID)
	switch c.Type {
	case event.Uncharge, event.ForcedCharge:
		dst = binary.AppendUvarint(append(dst, byte(c.Kind)), c.Counter)
	case event.Charge:
		dst = append(dst, byte(c.Kind))
		for _, n := range []uint64{
			uint64(c.Flags), c.Counter, c.StackPointer, c.MaxPages,
			c.Limiting.CgroupID, c.Limiting.MaxPages, c.High.CgroupID, c.High.MaxPages,
			uint64(c.KernelStack), uint64(c.UserStack),
		} {
			dst = binary.AppendUvarint(dst, n)
		}
	}
	return dst
}

func appendComm(dst []byte, comm *event.Comm) []byte {
	n := len(comm)
	for n > 0 && comm[n-1] == 0 {
		n--
	}
	return append(append(dst, byte(n)), comm[:n]...)
}
