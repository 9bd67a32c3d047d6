package trace

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// Options say how to read a recording.
type Options struct {
	// Name is the name of the recording in errors.
	Name string
	// Follow waits at the end of a growing recording for more, as tail -f does.
	Follow bool
}

// Reader is a [stream.Source] that plays a recording.
type Reader struct {
	name     string
	file     blockFile
	block    blockReader
	from, to uint64 // to is 0 for no bound
	info     stream.Info

	// cgroups and stacks are the names that Read returned last.
	cgroups map[event.CgroupID]cgroup
	stacks  map[uint32]string
	// bootWallNanos is that of the last event, and step one that Read has not returned.
	bootWallNanos int64
	step          *event.Event
	greatest      uint64 // time of a block so far

	totals  *stream.Counts // nil: the end was not read
	events  uint64
	damaged uint64 // blocks
	err     error  // set at the end, to io.EOF or another
}

var _ stream.Source = (*Reader)(nil)

// ErrEndsEarly says that a recording has no end: its writer was killed, the disk was
// full, or it is still being written.
var ErrEndsEarly = errors.New("the recording ends early")

// ErrDamaged says that blocks of a recording could not be read.
var ErrDamaged = errors.New("the recording is damaged")

// NewReader reads the beginning of a recording.
func NewReader(r io.Reader, o Options) (*Reader, error) {
	rd := &Reader{name: o.Name, cgroups: make(map[event.CgroupID]cgroup), stacks: make(map[uint32]string)}
	if err := rd.file.open(r, o.Follow); err != nil {
		return nil, err
	}
	var err error
	if rd.block.version, err = rd.file.readVersion(); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	if err := rd.readMeta(); err != nil {
		return nil, fmt.Errorf("%s: first block: %w", o.Name, err)
	}
	return rd, nil
}

func (r *Reader) readMeta() error {
	h, err := r.file.readHeader()
	if err != nil {
		return err
	}
	payload, err := r.file.readPayload(&h)
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
		return fmt.Errorf("invalid page size %d", n)
	}
	r.bootWallNanos = r.info.BootWallNanos
	return nil
}

// Limit restricts the events that follow to a BootNanos of at least from and, unless to
// is 0, below to. Blocks outside of that are skipped.
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

// Stop implements [stream.Source].
func (r *Reader) Stop() { r.file.stopped.Store(true) }

// Read implements [stream.Source]. After the last events it returns [ErrEndsEarly] if
// the recording has no end or continues with something other than a block, and
// [ErrDamaged] if blocks could not be read.
func (r *Reader) Read(batch []event.Event) (n int, err error) {
	for n == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if r.file.stopped.Load() {
			r.err = r.end(io.EOF)
			continue
		}
		if r.block.done() {
			r.err = r.nextBlock()
			continue
		}
		if r.step != nil {
			batch[0], r.step = *r.step, nil
			return 1, nil
		}
		n, err = r.block.read(batch)
		if err != nil {
			r.dropBlock()
			continue
		}
		n = r.filter(batch[:n])
	}
	return n, nil
}

// dropBlock drops the rest of a damaged block.
func (r *Reader) dropBlock() {
	r.damaged++
	r.block.drop()
}

// end returns the error for the end of the recording: err, which may be io.EOF, and the
// number of damaged blocks.
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
	return fmt.Errorf("%s: %w", r.name, err)
}

func (r *Reader) endEarly(err error) error { return r.end(fmt.Errorf("%w: %w", ErrEndsEarly, err)) }

// filter keeps the events in the limits of time, and the names and stacks that are not
// known yet. It compares their values: in a merged recording a number can change its
// meaning.
func (r *Reader) filter(batch []event.Event) int {
	kept := 0
	for i := range batch {
		e := &batch[i]
		switch {
		case e.Type == event.CgroupName:
			name := cgroupOf(e)
			if known, ok := r.cgroups[e.Cgroup]; ok && known == name {
				continue
			}
			r.cgroups[e.Cgroup] = name
		case e.Type == event.Stack:
			if known, ok := r.stacks[e.StackNumber]; ok && known == e.Frames {
				continue
			}
			r.stacks[e.StackNumber] = e.Frames
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

// setClock queues an event if the clock was set before a block.
func (r *Reader) setClock(h *blockHeader) {
	wall := h.bootWallNanos
	if r.block.version < 5 {
		wall = r.info.BootWallNanos
	}
	if wall != r.bootWallNanos {
		r.bootWallNanos = wall
		// Some events of the block can be earlier than the step, such as a late reading.
		r.step = &event.Event{Type: event.ClockStep, BootNanos: max(h.least, r.from, r.greatest), BootWallNanos: wall}
	}
	r.greatest = max(r.greatest, h.greatest)
}

// nextBlock starts the next block of events within the limits of time. At the end it
// returns io.EOF or the error of an incomplete recording.
func (r *Reader) nextBlock() error {
	for {
		h, err := r.file.readHeader()
		if err != nil {
			return r.endEarly(err)
		}
		if h.kind == kindEvents && (h.greatest < r.from || r.to != 0 && h.least >= r.to) {
			if err := r.file.skip(int(h.stored)); err != nil {
				return r.endEarly(err)
			}
			continue
		}
		payload, err := r.file.readPayload(&h)
		if err != nil && !errors.Is(err, errDamaged) {
			return r.endEarly(err)
		}
		switch {
		case err != nil:
		case h.kind == kindEvents:
			if err = r.block.start(h, payload); err == nil {
				r.setClock(&h)
				return nil
			}
		case h.kind == kindEnd:
			var t stream.Counts
			if err = json.Unmarshal(payload, &t); err == nil {
				r.totals = &t
				return r.end(io.EOF)
			}
		default:
			return r.endEarly(fmt.Errorf("unknown kind of block %d", h.kind))
		}
		r.dropBlock()
	}
}
