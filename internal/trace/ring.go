package trace

import (
	"errors"
	"io"
	"maps"
	"math"
	"sync"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// Ring is a [stream.Sink] that keeps the last events of a trace in memory, as blocks of a
// recording. Snapshot returns them. Any goroutine may use it.
//
// It drops the oldest block if its memory is full, or if all events of the block are older than
// the time to keep. Blocks end after a part of that time, so that little more is kept.
type Ring struct {
	info       stream.Info
	keepNanos  uint64
	blockNanos uint64 // the maximum length of a block
	readCounts func() (stream.Counts, error)
	added      func()

	mu      sync.Mutex
	timer   *time.Timer // ends the block; nil: nothing but later events does
	delay   time.Duration
	err     error // of the timer's goroutine
	encoder encoder
	counts  stream.Counts // read last
	heldAt  uint64        // see Hold

	// memory holds the blocks first to next, each in one piece; the next one goes to end.
	memory      []byte
	end         int
	blocks      []ringBlock // the metadata of a block, at its number modulo the length
	first, next uint64
	droppedTo   uint64 // the greatest time of the dropped blocks
	all         totals // of all blocks so far
}

// ringBlock is the metadata of a block.
type ringBlock struct {
	begin, end      int // in the memory
	least, greatest uint64
	bootWallNanos   int64
	totals
	before       stream.Counts // read before the block
	totalsBefore totals        // of all blocks before it
}

// totals are the numbers of events, of the charges among them, and of the charges that they say
// are lost.
type totals struct{ events, charges, lost uint64 }

func (t *totals) add(o totals) {
	t.events += o.events
	t.charges += o.charges
	t.lost += o.lost
}

func (t *totals) minus(o totals) totals {
	return totals{t.events - o.events, t.charges - o.charges, t.lost - o.lost}
}

// blocksPerTime is the minimum number of blocks in the time to keep.
const blocksPerTime = 60

// MinRingBytes is the minimum memory of a Ring.
const MinRingBytes = 1 << 20

// RingOptions configure a Ring.
type RingOptions struct {
	// Keep is the time to keep; 0: forever.
	Keep time.Duration
	// Memory holds the blocks. It has MinRingBytes or more.
	Memory []byte
	// Counts returns the counts of the trace so far; Write calls it after each block. nil: unknown.
	Counts func() (stream.Counts, error)
	// MaxDelay bounds the time between an event and its block; 0: no bound.
	MaxDelay time.Duration
	// Added is called after each block, with the Ring locked. nil: it is not called.
	Added func()
}

// NewRing returns an empty Ring.
func NewRing(info stream.Info, o RingOptions) (*Ring, error) {
	if len(o.Memory) < MinRingBytes {
		return nil, errors.New("too little memory for a ring of blocks")
	}
	r := &Ring{
		info: info, keepNanos: uint64(o.Keep), blockNanos: max(1, uint64(o.Keep)/blocksPerTime), readCounts: o.Counts, added: o.Added, delay: o.MaxDelay,
		memory: o.Memory, blocks: make([]ringBlock, max(8*blocksPerTime, len(o.Memory)/(16<<10))),
	}
	if o.Keep == 0 {
		r.keepNanos, r.blockNanos = math.MaxUint64, math.MaxUint64
	}
	if o.MaxDelay > 0 {
		r.blockNanos = min(r.blockNanos, uint64(o.MaxDelay))
		r.timer = time.AfterFunc(time.Hour, r.tick)
		r.timer.Stop()
	}
	err := r.encoder.init(info.BootWallNanos, r.put)
	r.encoder.block.limit = min(blockBytes, len(o.Memory)/4)
	return r, err
}

// Write keeps the events of a batch.
func (r *Ring) Write(batch []event.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.next
	for i := range batch {
		e := &batch[i]
		if e.Type == event.Usage {
			e = r.firstUsage(e)
		}
		if b := &r.encoder.block; b.events > 0 && !e.Type.IsName() && e.BootNanos-b.least >= r.blockNanos && e.BootNanos > b.least {
			if err := r.encoder.flush(); err != nil {
				return err
			}
		}
		wasEmpty := r.encoder.block.events == 0
		if err := r.encoder.add(e); err != nil {
			return err
		}
		if r.timer != nil && wasEmpty && r.encoder.block.events > 0 {
			r.timer.Reset(r.delay)
		}
	}
	if r.next == next {
		return r.err
	}
	return errors.Join(r.err, r.updateCounts())
}

// UpdateCounts reads the counts of the trace, as Write does after each block.
func (r *Ring) UpdateCounts() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.updateCounts()
}

func (r *Ring) updateCounts() (err error) {
	if r.readCounts != nil {
		r.counts, err = r.readCounts()
	}
	return err
}

// Flush ends the block.
func (r *Ring) Flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.encoder.flush()
}

// tick ends the block when the timer fires.
func (r *Ring) tick() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = errors.Join(r.err, r.encoder.flush())
}

// firstUsage moves the first usage of a new cgroup from the start of the trace to just before its
// first event: the Ring no longer has the start.
func (r *Ring) firstUsage(e *event.Event) *event.Event {
	const before = uint64(100 * time.Millisecond) // CPUs write their events to the ring buffer out of order
	last := r.encoder.block.lastTime
	if e.Flags&event.Existing == 0 || e.BootNanos+before >= last {
		return e
	}
	first := *e
	first.BootNanos = last - before
	return &first
}

// Close takes the final counts. What is kept can still be saved.
func (r *Ring) Close(c stream.Counts) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
	}
	r.counts = c
	return r.err
}

// Hold counts the time to keep back from that moment, not from the last event, until the memory is
// full. 0 ends that.
func (r *Ring) Hold(bootNanos uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heldAt = bootNanos
}

// put stores a block.
func (r *Ring) put(h *blockHeader, encoded []byte) error {
	now := h.greatest
	if r.heldAt != 0 {
		now = min(now, r.heldAt)
	}
	r.dropBefore(now - min(now, r.keepNanos))
	own, before := totals{uint64(h.events), r.encoder.charges, r.encoder.lost}, r.all
	r.all.add(own)
	size := len(encoded)
	if size > len(r.memory) { // the names and stacks of one event can have megabytes
		r.dropBefore(^uint64(0))
		return nil
	}
	if r.end+size > len(r.memory) {
		for r.first < r.next && r.oldest().begin >= r.end {
			r.drop()
		}
		r.end = 0
	}
	for r.first < r.next && (r.next-r.first == uint64(len(r.blocks)) || r.oldest().begin >= r.end && r.oldest().begin < r.end+size) {
		r.drop()
	}
	copy(r.memory[r.end:], encoded)
	r.blocks[r.next%uint64(len(r.blocks))] = ringBlock{
		r.end, r.end + size, h.least, h.greatest, h.bootWallNanos, own, r.counts, before,
	}
	r.end += size
	r.next++
	if r.timer != nil {
		r.timer.Stop()
	}
	if r.added != nil {
		r.added()
	}
	return nil
}

func (r *Ring) oldest() *ringBlock { return r.at(r.first) }

func (r *Ring) at(number uint64) *ringBlock { return &r.blocks[number%uint64(len(r.blocks))] }

// drop drops the oldest block.
func (r *Ring) drop() {
	r.droppedTo = max(r.droppedTo, r.oldest().greatest)
	r.first++
}

// dropBefore drops the blocks without an event at a time or later.
func (r *Ring) dropBefore(bootNanos uint64) {
	for r.first < r.next && r.oldest().greatest < bootNanos {
		r.drop()
	}
}

// Snapshot is a part of a [Ring]. It has no copy of the blocks: Write copies one after the other.
type Snapshot struct {
	// Info is that of the part: it starts at the time asked for, or at its first event if
	// older events are in the first block or newer ones did not fit.
	Info stream.Info

	tail   Tail // as it begins
	bytes  int64
	names  []byte // blocks
	counts stream.Counts
}

// Bytes is the size of the recording, but for some hundreds.
func (s *Snapshot) Bytes() int64 { return s.bytes }

// Snapshot returns the events since a time that the Ring still has.
func (r *Ring) Snapshot(from uint64) (*Snapshot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.encoder.flush(); err != nil {
		return nil, err
	}
	first := r.first
	for first < r.next && r.at(first).greatest < from {
		first++
	}
	s := &Snapshot{Info: r.info, tail: Tail{ring: r, next: first, limited: true, end: r.next, counted: r.all, all: r.all}}
	start := max(from, r.info.StartBootNanos)
	s.Info.BootWallNanos = r.encoder.bootWallNanos
	if first < r.next {
		least := r.at(first).least
		for n := first; n < r.next; n++ {
			least = min(least, r.at(n).least)
			s.bytes += int64(r.at(n).end - r.at(n).begin)
		}
		if least < start || r.droppedTo >= start {
			start = least
		}
		b := r.at(first)
		s.Info.BootWallNanos, s.tail.counted = b.bootWallNanos, b.totalsBefore
		s.counts = countsSince(&b.before, &r.counts)
	}
	s.Info.StartBootNanos = start
	var err error
	s.names, err = r.encodeNames()
	return s, err
}

// countsSince returns the counts of the kernel between two times.
func countsSince(before, after *stream.Counts) stream.Counts {
	return stream.Counts{
		Filtered: after.Filtered - before.Filtered, LostNonCharge: after.LostNonCharge - before.LostNonCharge, Missed: after.Missed - before.Missed,
		LostStacks: after.LostStacks - before.LostStacks, UnnamedProcesses: after.UnnamedProcesses - min(after.UnnamedProcesses, before.UnnamedProcesses),
		BatchPages: after.BatchPages,
	}
}

// encodeNames returns blocks with the names that cgroups got after their last block.
func (r *Ring) encodeNames() (blocks []byte, err error) {
	ring := &r.encoder
	names := encoder{zstd: ring.zstd, block: newBlockWriter(), bootWallNanos: ring.bootWallNanos}
	names.block.cgroups, names.block.renamed = ring.block.cgroups, maps.Clone(ring.block.renamed)
	names.block.lastTime = ring.block.lastTime
	names.put = func(_ *blockHeader, encoded []byte) error {
		blocks = append(blocks, encoded...)
		return nil
	}
	return blocks, names.putRenamed()
}

// Write writes a recording of the Snapshot, with its Info. While it writes, the Ring can drop
// blocks that are not written yet, if w is slow: these are in the recording as lost events.
func (s *Snapshot) Write(w io.Writer) error {
	t := s.tail
	piece, err := t.Begin(s.Info)
	for err == nil {
		if _, err := w.Write(piece); err != nil {
			return err
		}
		if !t.Pending() {
			break
		}
		piece, err = t.Next()
	}
	if err != nil {
		return err
	}
	c := t.part.total(&s.counts)
	if piece, err = t.part.end(s.names, &c); err != nil {
		return err
	}
	_, err = w.Write(piece)
	return err
}
