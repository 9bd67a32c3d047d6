package trace

import (
	"cmp"
	"errors"
	"io"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// Sequence is a [stream.Source] that plays recordings one after the other, on
// the clock of the first.
type Sequence struct {
	meta    Meta
	readers []*Reader
	current int
	err     error // of those that were not whole
}

var _ stream.Source = (*Sequence)(nil)

// NewSequence returns the sequence of some recordings, at least one. They must be
// of machines with pages of one size.
func NewSequence(readers ...*Reader) (*Sequence, error) {
	meta := readers[0].meta
	for _, r := range readers {
		if r.meta.PageSize != meta.PageSize {
			return nil, errors.New("recordings of machines with pages of different sizes cannot be played together")
		}
		meta.KernelStacks = meta.KernelStacks || r.meta.KernelStacks
		meta.UserStacks = meta.UserStacks || r.meta.UserStacks
		// Of a time without what was given back there is no balance.
		meta.Net = meta.Net && r.meta.Net
	}
	return &Sequence{meta: meta, readers: readers}, nil
}

// Meta says what made the first recording, and what is part of the whole: stacks
// where any has some, what was given back where all have it.
func (s *Sequence) Meta() *Meta { return &s.meta }

// Header implements [stream.Source].
func (s *Sequence) Header() stream.Header { return s.meta.header() }

// Stop implements [stream.Source].
func (s *Sequence) Stop() {
	for _, r := range s.readers {
		r.Stop()
	}
}

// Read implements [stream.Source]. What is wrong with one recording is no reason not
// to play the next: the errors of all come at the end.
func (s *Sequence) Read(batch []event.Event) (int, error) {
	for ; s.current < len(s.readers); s.current++ {
		r := s.readers[s.current]
		n, err := r.Read(batch)
		if err == io.EOF {
			continue
		}
		if err != nil {
			s.err = errors.Join(s.err, err)
			continue
		}
		// Another boot has another clock.
		if shift := r.meta.BootWallNanos - s.meta.BootWallNanos; shift != 0 && r.meta.StartBootNanos != s.meta.StartBootNanos {
			for i := range batch[:n] {
				batch[i].BootNanos += uint64(shift)
			}
		}
		return n, nil
	}
	return 0, cmp.Or(s.err, io.EOF)
}

// Recorded adds up what the recordings that were played to their ends say of the
// trace. Parts of one trace count what the kernel saw once, in the last.
func (s *Sequence) Recorded() (t Totals, complete bool) {
	complete = true
	for _, r := range s.readers {
		t.DamagedBlocks += r.damaged
		if r.totals == nil {
			complete = false
			continue
		}
		t.Seen += r.totals.Seen
		t.Filtered += r.totals.Filtered
		t.Lost += r.totals.Lost
		t.LostOthers += r.totals.LostOthers
		t.Missed += r.totals.Missed
		t.Unstacked += r.totals.Unstacked
		t.Unnamed += r.totals.Unnamed
		t.DamagedBlocks += r.totals.DamagedBlocks
		t.Events += r.totals.Events
		t.Charges += r.totals.Charges
		t.BatchPages = max(t.BatchPages, r.totals.BatchPages)
	}
	return t, complete
}

// Next ends this recording and returns one that goes on where it ends, in another
// file: with the same beginning, and the names and stacks that this one knew.
func (w *Writer) Next(out io.Writer) (*Writer, error) {
	totals := w.totals
	// What the kernel counted comes with the last.
	w.totals = func() (Totals, error) { return Totals{}, nil }
	if err := w.Close(); err != nil {
		return nil, err
	}
	next, err := NewWriter(out, w.meta, totals)
	if err != nil {
		return nil, err
	}
	next.block.cgroups, next.block.frames = w.block.cgroups, w.block.frames
	return next, nil
}
