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
)

// blockEvents is how many events a block has at most: enough to compress well,
// and little enough to lose.
const blockEvents = 1 << 16

// maxDelay is how long the first event of a block waits to be written.
const maxDelay = time.Second

// Writer is a [stream.Sink] that writes a recording. It is for one goroutine.
type Writer struct {
	w      io.Writer
	meta   Meta
	totals func() (Totals, error)
	zstd   *zstd.Encoder

	mu     sync.Mutex // the timer writes blocks too
	timer  *time.Timer
	err    error // of the timer's
	block  blockWriter
	names  map[event.CgroupID]cgroupName
	stacks map[uint32]string
	counts Totals
	// batches is how many charges asked for 32 and for 64 pages.
	batches [2]uint64
	bytes   int64
}

type cgroupName struct {
	parent uint64
	name   string
}

// NewWriter begins a recording. At its end totals is asked for what the kernel
// has counted; Events and Charges are the Writer's to count.
func NewWriter(w io.Writer, meta Meta, totals func() (Totals, error)) (*Writer, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	wr := &Writer{w: w, meta: meta, totals: totals, zstd: enc, names: make(map[event.CgroupID]cgroupName), stacks: make(map[uint32]string)}
	wr.timer = time.AfterFunc(time.Hour, wr.tick)
	wr.timer.Stop()
	wr.block.reset()
	head := binary.LittleEndian.AppendUint32([]byte(signature), Version)
	if _, err := w.Write(head); err != nil {
		return nil, err
	}
	wr.bytes = int64(len(head))
	payload, err := json.Marshal(meta)
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
		switch e.Type {
		case event.CgroupName:
			w.names[e.Cgroup] = cgroupName{e.ParentID, e.Name}
			continue
		case event.Stack:
			w.stacks[e.StackNumber] = e.Frames
			continue
		}
		if w.block.events == 0 {
			w.timer.Reset(maxDelay)
		}
		w.block.add(e)
		w.counts.Events++
		if e.Type == event.Charge {
			w.counts.Charges++
			switch e.RequestedPages {
			case 32:
				w.batches[0]++
			case 64:
				w.batches[1]++
			}
		}
		if w.block.events == blockEvents {
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

// Close writes what is left and the end.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	if err := errors.Join(w.err, w.flush()); err != nil {
		return err
	}
	totals, err := w.totals()
	if err != nil {
		return err
	}
	totals.Events, totals.Charges = w.counts.Events, w.counts.Charges
	if n := w.batches; n[0] > n[1] {
		totals.BatchPages = 32
	} else if n[1] > 0 {
		totals.BatchPages = 64
	}
	payload, err := json.Marshal(totals)
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
	payload := w.block.payload(w.names, w.stacks)
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
	events          int
	least, greatest uint64

	// contexts by what identifies them; lastContext is the one of the last
	// charge, since most are like the one before.
	index       map[event.Event]int
	contexts    []context
	lastContext int
	usages      usages

	context, time, requested, outcome, usage, limiting, high, failed, other []byte
	times                                                                   []uint64
	buf, section                                                            []byte
}

func (b *blockWriter) reset() {
	if b.index == nil {
		b.index = make(map[event.Event]int)
	}
	clear(b.index)
	b.events = 0
	b.contexts = b.contexts[:0]
	b.lastContext = -1
	b.usages.reset()
	for _, column := range b.columns() {
		*column = (*column)[:0]
	}
	b.times = b.times[:0]
}

// columns returns the columns in the order in which they are stored.
func (b *blockWriter) columns() []*[]byte {
	return []*[]byte{&b.context, &b.time, &b.requested, &b.outcome, &b.usage, &b.limiting, &b.high, &b.failed, &b.other}
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

func sameContext(c, e *event.Event) bool {
	return c.TID == e.TID && c.CPU == e.CPU && c.StackPointer == e.StackPointer && c.KernelStack == e.KernelStack && c.UserStack == e.UserStack && c.Counter == e.Counter && c.Cgroup == e.Cgroup &&
		c.MaxPages == e.MaxPages && c.Limiting.CgroupID == e.Limiting.CgroupID && c.Limiting.MaxPages == e.Limiting.MaxPages &&
		c.High.CgroupID == e.High.CgroupID && c.High.MaxPages == e.High.MaxPages &&
		c.Flags == e.Flags&^retryOrPredicted && c.Kind == e.Kind && c.PID == e.PID && c.Comm == e.Comm
}

// find returns the number of an event's context.
func (b *blockWriter) find(e *event.Event) int {
	if e.Type == event.Charge && b.lastContext >= 0 && sameContext(&b.contexts[b.lastContext].Event, e) {
		return b.lastContext
	}
	key := contextOf(e)
	i, ok := b.index[key]
	if !ok {
		i = len(b.contexts)
		b.index[key] = i
		c := context{Event: key}
		switch e.Type {
		case event.Uncharge, event.ForcedCharge:
			c.own = b.usages.of(e.Cgroup, e.Kind)
		case event.Charge:
			c.own = b.usages.of(e.Cgroup, e.Kind)
			c.limiting = b.usages.of(e.InCgroup(e.Limiting.CgroupID), e.Kind)
			c.high = b.usages.of(e.InCgroup(e.High.CgroupID), e.Kind)
		}
		b.contexts = append(b.contexts, c)
	}
	if e.Type == event.Charge {
		b.lastContext = i
	}
	return i
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
		b.addCharge(&b.contexts[i], e)
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
		b.usage = binary.AppendVarint(b.usage, e.UsagePages-b.usages.next[b.contexts[i].own])
		b.usages.next[b.contexts[i].own] = e.UsageAfterPages()
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
func (b *blockWriter) payload(names map[event.CgroupID]cgroupName, stacks map[uint32]string) []byte {
	last := b.least
	for _, t := range b.times {
		b.time = binary.AppendVarint(b.time, int64(t-last))
		last = t
	}
	b.buf = b.buf[:0]
	b.appendSection(b.appendNames(b.section[:0], names))
	b.appendSection(b.appendStacks(b.section[:0], stacks))
	b.appendSection(b.appendContexts(b.section[:0]))
	for _, column := range b.columns() {
		b.buf = binary.AppendUvarint(b.buf, uint64(len(*column)))
		b.buf = append(b.buf, *column...)
	}
	return b.buf
}

func (b *blockWriter) appendSection(section []byte) {
	b.section = section
	b.buf = binary.AppendUvarint(b.buf, uint64(len(section)))
	b.buf = append(b.buf, section...)
}

// appendNames appends the names of the cgroups that the block mentions, as far
// as they are known, and of their ancestors.
func (b *blockWriter) appendNames(dst []byte, names map[event.CgroupID]cgroupName) []byte {
	done := make(map[event.CgroupID]bool)
	add := func(id event.CgroupID) {
		for !done[id] {
			n, ok := names[id]
			if !ok {
				return
			}
			done[id] = true
			dst = binary.AppendUvarint(dst, uint64(id.Hierarchy))
			dst = binary.AppendUvarint(dst, id.ID)
			dst = binary.AppendUvarint(dst, n.parent)
			dst = binary.AppendUvarint(dst, uint64(len(n.name)))
			dst = append(dst, n.name...)
			id.ID = n.parent
		}
	}
	for i := range b.contexts {
		c := &b.contexts[i]
		// Every level is an ancestor of the cgroup that pays.
		add(c.Cgroup)
	}
	return dst
}

// appendStacks appends the stacks that the block mentions.
func (b *blockWriter) appendStacks(dst []byte, stacks map[uint32]string) []byte {
	done := make(map[uint32]bool)
	for i := range b.contexts {
		for _, number := range []uint32{b.contexts[i].KernelStack, b.contexts[i].UserStack} {
			frames, ok := stacks[number]
			if !ok || done[number] {
				continue
			}
			done[number] = true
			dst = binary.AppendUvarint(dst, uint64(number))
			dst = binary.AppendUvarint(dst, uint64(len(frames)))
			dst = append(dst, frames...)
		}
	}
	return dst
}

func (b *blockWriter) appendContexts(dst []byte) []byte {
	for i := range b.contexts {
		c := &b.contexts[i].Event
		dst = append(dst, byte(c.Type))
		dst = binary.AppendUvarint(dst, uint64(c.CPU))
		dst = binary.AppendUvarint(dst, uint64(c.PID))
		dst = binary.AppendUvarint(dst, uint64(c.TID))
		dst = appendComm(dst, &c.Comm)
		if c.Type == event.Lost || c.Type == event.Fork {
			continue
		}
		dst = binary.AppendUvarint(dst, uint64(c.Cgroup.Hierarchy))
		dst = binary.AppendUvarint(dst, c.Cgroup.ID)
		switch c.Type {
		case event.Charge:
		case event.Uncharge, event.ForcedCharge:
			dst = binary.AppendUvarint(append(dst, byte(c.Kind)), c.Counter)
			continue
		default:
			continue
		}
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
