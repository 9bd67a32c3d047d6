package trace

import (
	"errors"
	"slices"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// Tail encodes recordings, one after the other, from the blocks of a [Ring]: each block is in one
// of them. It returns pieces of a recording: one of Next is valid until the next call of Next, one of
// Begin or End until the next call of any method.
type Tail struct {
	ring    *Ring
	next    uint64 // the number of the next block
	counted totals // of the blocks before it
	// If limited, end is the number after the last block, and all are the totals up to there.
	limited bool
	end     uint64
	all     totals

	part part
	seen uint64 // charges in the recordings before
	buf  []byte
	// last and lastLost are the totals of the last block, and of the lost ones before it.
	last, lastLost totals
}

// Tail returns a Tail of all blocks that come.
func (r *Ring) Tail() *Tail {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &Tail{ring: r, next: r.next, counted: r.all}
}

// Begin returns the beginning of a recording.
func (t *Tail) Begin(info stream.Info) ([]byte, error) {
	t.seen += t.part.counts.RecordedCharges + t.part.counts.Lost
	return t.part.begin(info)
}

// limits returns the number after the last block, and the totals up to there.
func (t *Tail) limits() (end uint64, all totals) {
	if t.limited {
		return t.end, t.all
	}
	return t.ring.next, t.ring.all
}

// Pending reports whether there is a next block.
func (t *Tail) Pending() bool {
	t.ring.mu.Lock()
	defer t.ring.mu.Unlock()
	_, all := t.limits()
	return t.counted != all
}

// Next returns the next block, which Pending has reported. Blocks that the Ring has dropped since
// the last call are a lost event before it.
func (t *Tail) Next() ([]byte, error) {
	r := t.ring
	r.mu.Lock()
	end, all := t.limits()
	var b ringBlock
	t.buf = t.buf[:0]
	number := max(t.next, r.first)
	if number < end {
		b = *r.at(number)
		t.buf = append(t.buf, r.memory[b.begin:b.end]...)
		all = b.totalsBefore
	}
	lost, droppedTo := all.minus(t.counted), r.droppedTo
	t.next, t.counted = min(number+1, end), all
	t.counted.add(b.totals)
	r.mu.Unlock()

	t.last, t.lastLost = b.totals, lost
	t.Recount()
	if lost.events == 0 {
		return t.buf, nil
	}
	event, err := t.part.lose(lost, droppedTo, b.bootWallNanos)
	t.buf = append(slices.Clone(event), t.buf...)
	return t.buf, err
}

// Recount counts what Next returned last in the recording that was begun since.
func (t *Tail) Recount() { t.part.count(t.last, t.lastLost) }

// End returns the end of a recording. final are the counts of the trace; they are nil unless it is
// the last recording.
func (t *Tail) End(final *stream.Counts) ([]byte, error) {
	t.ring.mu.Lock()
	names, err := t.ring.encodeNames()
	t.ring.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var c stream.Counts
	if final == nil {
		c = t.part.total(&stream.Counts{})
	} else {
		c = t.part.total(final)
		c.Seen = final.Seen - t.seen // filters of this process drop charges, too
	}
	return t.part.end(names, &c)
}

// part encodes a recording of blocks.
type part struct {
	encoder encoder
	out     []byte
	counts  stream.Counts
}

// begin returns the beginning of a recording.
func (p *part) begin(info stream.Info) ([]byte, error) {
	p.counts = stream.Counts{}
	p.out = append(p.out[:0], fileHead()...)
	err := p.encoder.init(info.BootWallNanos, func(_ *blockHeader, encoded []byte) error {
		p.out = append(p.out, encoded...)
		return nil
	})
	if err == nil {
		err = p.encoder.putJSON(kindMeta, info)
	}
	return p.out, err
}

// count counts the events of a block, and those of lost ones before it, which get an event.
func (p *part) count(t, lost totals) {
	p.counts.RecordedEvents += t.events
	p.counts.RecordedCharges += t.charges
	p.counts.Lost += t.lost
	if lost.events > 0 {
		p.counts.RecordedEvents++
		p.counts.Lost += lost.charges + lost.lost
		p.counts.LostNonCharge += lost.events - lost.charges
	}
}

// lose returns a block with an event for blocks that are lost. wall is the wall-clock time of boot
// after them; 0: that of the recording.
func (p *part) lose(t totals, bootNanos uint64, wall int64) ([]byte, error) {
	if wall != 0 {
		p.encoder.bootWallNanos = wall
	}
	p.out = p.out[:0]
	err := p.encoder.add(&event.Event{Type: event.Lost, BootNanos: bootNanos, LostCharges: t.charges + t.lost})
	return p.out, errors.Join(err, p.encoder.flush())
}

// total returns the counts of the recording, with the kernel's of its time.
func (p *part) total(kernel *stream.Counts) stream.Counts {
	c := p.counts
	c.Filtered, c.Missed, c.LostStacks, c.UnnamedProcesses, c.BatchPages = kernel.Filtered, kernel.Missed, kernel.LostStacks, kernel.UnnamedProcesses, kernel.BatchPages
	c.LostNonCharge += kernel.LostNonCharge
	c.Seen = c.RecordedCharges + c.Lost + c.Filtered
	return c
}

// end returns the end of the recording: blocks of names, and the counts.
func (p *part) end(names []byte, c *stream.Counts) ([]byte, error) {
	p.out = append(p.out[:0], names...)
	err := p.encoder.putJSON(kindEnd, c)
	return p.out, err
}
