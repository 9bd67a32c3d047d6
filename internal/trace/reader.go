package trace

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// Options say how a recording is read.
type Options struct {
	// Name is what errors call the recording.
	Name string
	// Follow waits, at the end of a recording that is still being made, for what
	// comes, as tail -f does.
	Follow bool
}

// Reader is a [stream.Source] that plays a recording.
type Reader struct {
	r       *bufio.Reader
	seeker  io.Seeker // nil where it cannot seek
	options Options
	from    uint64
	to      uint64 // 0 for no bound
	zstd    *zstd.Decoder
	info    stream.Info
	stopped atomic.Bool

	header [headerBytes]byte // of a block, as it is in the file
	stored []byte            // likewise the payload
	block  blockReader
	// damaged is how many blocks were left out, at least in part.
	damaged uint64
	// toldNames and toldStacks are what was passed on last.
	toldNames  map[event.CgroupID]cgroupName
	toldStacks map[uint32]string

	totals *stream.Counts // nil: the end was not read
	err    error          // what it ended with, io.EOF or another
	events uint64
}

var _ stream.Source = (*Reader)(nil)

// ErrEndsEarly says that a recording was not brought to its end: what made it
// was killed, or its disk was full, or it is still at work.
var ErrEndsEarly = errors.New("the recording ends early")

// ErrDamaged says that blocks of a recording were left out.
var ErrDamaged = errors.New("the recording is damaged")

// NewReader reads the beginning of a recording.
func NewReader(r io.Reader, o Options) (*Reader, error) {
	rd := &Reader{options: o, toldNames: make(map[event.CgroupID]cgroupName), toldStacks: make(map[uint32]string)}
	rd.seeker, _ = r.(io.Seeker)
	if rd.seeker != nil {
		if _, err := rd.seeker.Seek(0, io.SeekCurrent); err != nil {
			rd.seeker = nil // a pipe
		}
	}
	rd.r = bufio.NewReaderSize(r, 64<<10)
	var err error
	rd.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPayload), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	if err := rd.begin(); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	return rd, nil
}

// begin reads what comes before the blocks of events.
func (r *Reader) begin() error {
	var head [len(signature) + 4]byte
	if err := r.readFull(head[:]); err != nil {
		return fmt.Errorf("not a recording of chargetrace: %w", err)
	}
	if string(head[:len(signature)]) != signature {
		return errors.New("not a recording of chargetrace")
	}
	v := binary.LittleEndian.Uint32(head[len(signature):])
	if v == 0 || v > Version {
		return fmt.Errorf("a recording of version %d, and this program reads versions up to %d", v, Version)
	}
	r.block.version = v
	if err := r.readMeta(); err != nil {
		return fmt.Errorf("the beginning of the recording: %w", err)
	}
	return nil
}

func (r *Reader) readMeta() error {
	h, err := r.readHeader()
	if err != nil {
		return err
	}
	payload, err := r.readPayload(&h)
	if err != nil {
		return err
	}
	if h.kind != kindMeta {
		return errDamaged
	}
	if err := json.Unmarshal(payload, &r.info); err != nil {
		return err
	}
	if n := r.info.PageSize; n < 1<<12 || n > 1<<20 || n&(n-1) != 0 {
		return fmt.Errorf("a page size of %d", n)
	}
	return nil
}

// Limit bounds the BootNanos of the events that are read from now on: from is
// part of them, to is not, and 0 for no bound. Blocks that have none are skipped.
func (r *Reader) Limit(from, to uint64) { r.from, r.to = from, to }

// Info implements [stream.Source].
func (r *Reader) Info() stream.Info { return r.info }

// Counts implements [stream.Source]. They are Whole once the recording's end was read.
func (r *Reader) Counts() (c stream.Counts, err error) {
	if r.totals != nil {
		c = *r.totals
		c.Whole = true
	}
	c.DamagedBlocks += r.damaged
	return c, nil
}

// Events is how many events were read so far, names aside.
func (r *Reader) Events() uint64 { return r.events }

// Stop implements [stream.Source].
func (r *Reader) Stop() { r.stopped.Store(true) }

// Read implements [stream.Source]. Where a recording has no end, or goes on with
// what is no block, its last events are followed by [ErrEndsEarly], and where blocks
// were left out, by [ErrDamaged].
func (r *Reader) Read(batch []event.Event) (n int, err error) {
	for n == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if r.stopped.Load() {
			r.err = r.end(io.EOF)
			continue
		}
		if r.block.done() {
			r.err = r.nextBlock()
			continue
		}
		n, err = r.block.read(batch)
		if err != nil {
			r.leaveOut()
			continue
		}
		n = r.choose(batch[:n])
	}
	return n, nil
}

// leaveOut leaves out what was not read yet of a damaged block.
func (r *Reader) leaveOut() {
	r.damaged++
	r.block.left, r.block.names, r.block.stacks = 0, cursor{}, cursor{}
}

// end returns what reading ends with: err, which may be io.EOF, and what was damaged
// until then.
func (r *Reader) end(err error) error {
	if r.damaged > 0 {
		damaged := fmt.Errorf("%w: %d of its blocks could not be read", ErrDamaged, r.damaged)
		if err == io.EOF {
			err = damaged
		} else {
			err = fmt.Errorf("%w; %w", err, damaged)
		}
	}
	if err == io.EOF {
		return err
	}
	return fmt.Errorf("%s: %w", r.options.Name, err)
}

func (r *Reader) endEarly(err error) error { return r.end(fmt.Errorf("%w: %w", ErrEndsEarly, err)) }

// choose keeps the events that are asked for, and the names that were not told so:
// what is made of several traces has numbers that come to mean something else.
func (r *Reader) choose(batch []event.Event) int {
	kept := 0
	for i := range batch {
		e := &batch[i]
		switch {
		case e.Type == event.CgroupName:
			name := cgroupName{e.ParentID, e.Name}
			if told, ok := r.toldNames[e.Cgroup]; ok && told == name {
				continue
			}
			r.toldNames[e.Cgroup] = name
		case e.Type == event.Stack:
			if told, ok := r.toldStacks[e.StackNumber]; ok && told == e.Frames {
				continue
			}
			r.toldStacks[e.StackNumber] = e.Frames
		case e.BootNanos < r.from || r.to != 0 && e.BootNanos >= r.to:
			continue
		default:
			r.events++
		}
		if kept != i {
			batch[kept] = *e
		}
		kept++
	}
	return kept
}

// nextBlock reads the next block of events that has any that are asked for. At
// the end it returns io.EOF, or why that is not all.
func (r *Reader) nextBlock() error {
	for {
		h, err := r.readHeader()
		if err != nil {
			return r.endEarly(err)
		}
		if h.kind == kindEvents && (h.greatest < r.from || r.to != 0 && h.least >= r.to) {
			if err := r.skip(int(h.stored)); err != nil {
				return r.endEarly(err)
			}
			continue
		}
		payload, err := r.readPayload(&h)
		if err != nil && !errors.Is(err, errDamaged) {
			return r.endEarly(err)
		}
		switch {
		case err != nil:
		case h.kind == kindEvents:
			if err = r.block.start(h, payload); err == nil {
				return nil
			}
		case h.kind == kindEnd:
			var t stream.Counts
			if err = json.Unmarshal(payload, &t); err == nil {
				r.totals = &t
				return r.end(io.EOF)
			}
		default:
			return r.endEarly(fmt.Errorf("a block of unknown kind %d", h.kind))
		}
		r.leaveOut()
	}
}

func (r *Reader) readHeader() (h blockHeader, err error) {
	if err := r.readFull(r.header[:]); err != nil {
		return h, err
	}
	return h, h.parse(r.header[:])
}

// readPayload reads the payload of the block whose header was read, and which is
// valid until the next call. Where it is damaged, the next header comes after it.
func (r *Reader) readPayload(h *blockHeader) ([]byte, error) {
	r.stored = grow(r.stored, int(h.stored))
	if err := r.readFull(r.stored); err != nil {
		return nil, err
	}
	if checksum(r.header[:], r.stored) != h.checksum {
		return nil, errDamaged
	}
	payload, err := r.zstd.DecodeAll(r.stored, r.block.payload[:0])
	r.block.payload = payload
	if err != nil || len(payload) != int(h.size) {
		return nil, errors.Join(errDamaged, err)
	}
	return payload, nil
}

func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// skip goes past n bytes without reading them, where that can be.
func (r *Reader) skip(n int) error {
	buffered := r.r.Buffered()
	if r.seeker != nil && n > buffered && !r.options.Follow {
		r.r.Discard(buffered)
		_, err := r.seeker.Seek(int64(n-buffered), io.SeekCurrent)
		return err
	}
	for {
		skipped, err := r.r.Discard(n)
		n -= skipped
		if n == 0 || !r.awaits(err) {
			return err
		}
	}
}

// readFull fills b.
func (r *Reader) readFull(b []byte) error {
	for {
		n, err := io.ReadFull(r.r, b)
		b = b[n:]
		if len(b) == 0 || !r.awaits(err) {
			return err
		}
	}
}

// pollInterval is how often a recording that is followed is looked at.
const pollInterval = 100 * time.Millisecond

// awaits reports whether there may be more after an error, once it has waited: at the
// end of a recording that is followed.
func (r *Reader) awaits(err error) bool {
	if !r.options.Follow || r.stopped.Load() || err != io.EOF && err != io.ErrUnexpectedEOF {
		return false
	}
	time.Sleep(pollInterval)
	return true
}

// blockReader reads the events of a block.
type blockReader struct {
	payload []byte
	left    uint64 // events
	last    uint64 // time

	version  uint32
	names    cursor
	stacks   cursor
	contexts []context
	usages   usages

	context, time, requested, outcome, usage, limiting, high, failed, other cursor
}

func (b *blockReader) done() bool { return b.left == 0 && len(b.names.b) == 0 && len(b.stacks.b) == 0 }

// start begins to read a block.
func (b *blockReader) start(h blockHeader, payload []byte) error {
	all := cursor{b: payload}
	b.names = cursor{b: all.bytes(all.uvarint())}
	b.stacks = cursor{}
	if b.version >= 2 {
		b.stacks = cursor{b: all.bytes(all.uvarint())}
	}
	contexts := cursor{b: all.bytes(all.uvarint())}
	for _, column := range []*cursor{&b.context, &b.time, &b.requested, &b.outcome, &b.usage, &b.limiting, &b.high, &b.failed, &b.other} {
		*column = cursor{b: all.bytes(all.uvarint())}
	}
	if all.bad || len(all.b) > 0 {
		return errDamaged
	}
	b.left, b.last = uint64(h.events), h.least
	return b.readContexts(&contexts)
}

func (b *blockReader) readContexts(c *cursor) error {
	b.contexts = b.contexts[:0]
	b.usages.reset()
	for len(c.b) > 0 {
		var x context
		e := &x.Event
		e.Type = event.Type(c.byte())
		e.CPU, e.PID, e.TID = c.uvarint32(), c.uvarint32(), c.uvarint32()
		c.comm(&e.Comm)
		switch e.Type {
		case event.Lost, event.Fork:
		case event.Charge, event.ReclaimBegin, event.ReclaimEnd, event.OOMKill, event.Uncharge, event.ForcedCharge, event.Usage:
			e.Cgroup.Hierarchy = c.uvarint32()
			e.Cgroup.ID = c.uvarint()
		default:
			return errDamaged
		}
		if e.Type.IsNet() && b.version < 3 {
			return errDamaged
		}
		switch e.Type {
		case event.Uncharge, event.ForcedCharge:
			e.Kind, e.Counter = event.Kind(c.byte()), c.uvarint()
			if !event.AllKinds.Has(e.Kind) {
				return errDamaged
			}
			x.own = b.usages.of(e.Cgroup, e.Kind)
		case event.Charge:
			e.Kind = event.Kind(c.byte())
			e.Flags = event.Flags(c.uvarint32())
			e.Counter, e.StackPointer, e.MaxPages = c.uvarint(), c.uvarint(), c.uvarint()
			e.Limiting.CgroupID, e.Limiting.MaxPages = c.uvarint(), c.uvarint()
			e.High.CgroupID, e.High.MaxPages = c.uvarint(), c.uvarint()
			if b.version >= 2 {
				e.KernelStack = c.uvarint32()
			}
			if b.version >= 3 {
				e.UserStack = c.uvarint32()
			}
			if !event.AllKinds.Has(e.Kind) {
				return errDamaged
			}
			x.own = b.usages.of(e.Cgroup, e.Kind)
			x.limiting = b.usages.of(e.InCgroup(e.Limiting.CgroupID), e.Kind)
			x.high = b.usages.of(e.InCgroup(e.High.CgroupID), e.Kind)
		}
		if c.bad {
			return errDamaged
		}
		b.contexts = append(b.contexts, x)
	}
	return nil
}

// read fills batch with events: first the names and the stacks.
func (b *blockReader) read(batch []event.Event) (n int, err error) {
	for ; n < len(batch) && len(b.names.b) > 0; n++ {
		batch[n] = event.Event{
			Type:     event.CgroupName,
			Cgroup:   event.CgroupID{Hierarchy: b.names.uvarint32(), ID: b.names.uvarint()},
			ParentID: b.names.uvarint(),
			Name:     string(b.names.bytes(b.names.uvarint())),
		}
		if b.names.bad || len(batch[n].Name) > 255 || bytes.ContainsAny([]byte(batch[n].Name), "/\x00") {
			return 0, errDamaged
		}
	}
	for ; n < len(batch) && len(b.stacks.b) > 0; n++ {
		batch[n] = event.Event{
			Type:        event.Stack,
			StackNumber: b.stacks.uvarint32(),
			Frames:      string(b.stacks.bytes(b.stacks.uvarint())),
		}
		if b.stacks.bad || batch[n].StackNumber == 0 {
			return 0, errDamaged
		}
	}
	for ; n < len(batch) && b.left > 0; n++ {
		if !b.readEvent(&batch[n]) {
			return 0, errDamaged
		}
		b.left--
	}
	return n, nil
}

func (b *blockReader) readEvent(e *event.Event) bool {
	i := b.context.uvarint()
	if i >= uint64(len(b.contexts)) || b.context.bad {
		return false
	}
	c := &b.contexts[i]
	*e = c.Event
	b.last += uint64(b.time.varint())
	e.BootNanos = b.last
	switch e.Type {
	case event.Charge:
		return b.readCharge(c, e)
	case event.Lost:
		e.LostEvents = b.other.uvarint()
	case event.ReclaimEnd:
		e.FreedPages, e.DurationNanos = b.other.uvarint(), b.other.uvarint()
	case event.OOMKill:
		e.Victim.PID = b.other.uvarint32()
		b.other.comm(&e.Victim.Comm)
		e.Victim.AnonPages, e.Victim.FilePages = b.other.uvarint(), b.other.uvarint()
		e.Victim.ShmemPages, e.Victim.SwapPages = b.other.uvarint(), b.other.uvarint()
	case event.Fork:
		n := b.other.uvarint()
		if n >= 1<<33 {
			return false
		}
		e.ChildPID = uint32(n >> 1)
		if n&1 != 0 {
			e.Flags = event.Existing
		}
	case event.Uncharge, event.ForcedCharge:
		e.RequestedPages = b.requested.uvarint()
		e.UsagePages = b.usages.next[c.own] + b.usage.varint()
		b.usages.next[c.own] = e.UsageAfterPages()
		return !b.time.bad && !b.requested.bad && !b.usage.bad
	case event.Usage:
		n := b.other.uvarint()
		e.UsagePages = int64(n >> 1)
		if n&1 != 0 {
			e.Flags = event.Existing
		}
	}
	return !b.time.bad && !b.other.bad
}

func (b *blockReader) readCharge(c *context, e *event.Event) bool {
	e.RequestedPages = b.requested.uvarint()
	outcome := b.outcome.byte()
	e.Outcome = event.Outcome(outcome & 3)
	if outcome&(1<<2) != 0 {
		e.Flags |= event.Retry
	}
	if outcome&(1<<3) != 0 {
		e.Flags |= event.Predicted
	}
	if e.Outcome != event.OK {
		switch b.failed.uvarint() {
		case 0:
			e.FailedAt = e.Limiting.CgroupID
		case 1:
			e.FailedAt = e.Cgroup.ID
		default:
			e.FailedAt = b.failed.uvarint()
		}
	}
	next := b.usages.next
	e.UsagePages = next[c.own] + b.usage.varint()
	next[c.own] = e.UsagePages
	e.Limiting.UsagePages = next[c.limiting] + b.limiting.varint()
	next[c.limiting] = e.Limiting.UsagePages
	e.High.UsagePages = next[c.high] + b.high.varint()
	next[c.high] = e.High.UsagePages
	c.charged(next, e)
	return !b.time.bad && !b.requested.bad && !b.outcome.bad && !b.failed.bad && !b.usage.bad && !b.limiting.bad && !b.high.bad
}

// cursor reads from bytes that may be anything. Once it is bad it stays so.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) byte() byte {
	if len(c.b) == 0 {
		c.bad = true
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *cursor) bytes(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.bad = true
		c.b = nil
		return nil
	}
	v := c.b[:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) uvarint() uint64 {
	// Nearly all are of one byte.
	if len(c.b) > 0 && c.b[0] < 0x80 {
		v := c.b[0]
		c.b = c.b[1:]
		return uint64(v)
	}
	return c.longUvarint()
}

func (c *cursor) longUvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.bad = true
		c.b = nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) varint() int64 {
	v := c.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

func (c *cursor) uvarint32() uint32 {
	v := c.uvarint()
	if v > 1<<32-1 {
		c.bad = true
	}
	return uint32(v)
}

func (c *cursor) comm(dst *event.Comm) {
	n := c.byte()
	if n > 16 {
		c.bad = true
		n = 0
	}
	*dst = event.Comm{}
	copy(dst[:], c.bytes(uint64(n)))
}
