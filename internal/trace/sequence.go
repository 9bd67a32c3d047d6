package trace

import (
	"errors"
	"io"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// Sequence is a [stream.Source] that plays recordings one after the other, on
// the clock of the first.
type Sequence struct {
	readers []*Reader
	current int
}

var _ stream.Source = (*Sequence)(nil)

// NewSequence returns the sequence of some recordings, at least one. They must be
// of machines with pages of one size.
func NewSequence(readers ...*Reader) (*Sequence, error) {
	for _, r := range readers {
		if r.meta.PageSize != readers[0].meta.PageSize {
			return nil, errors.New("recordings of machines with pages of different sizes cannot be played together")
		}
	}
	return &Sequence{readers: readers}, nil
}

// Header implements [stream.Source].
func (s *Sequence) Header() stream.Header { return s.readers[0].Header() }

// Stop implements [stream.Source].
func (s *Sequence) Stop() {
	for _, r := range s.readers {
		r.Stop()
	}
}

// Read implements [stream.Source].
func (s *Sequence) Read(batch []event.Event) (int, error) {
	for {
		r := s.readers[s.current]
		n, err := r.Read(batch)
		if err == io.EOF && s.current+1 < len(s.readers) {
			s.current++
			continue
		}
		// Another boot has another clock.
		if shift := r.meta.BootWallNanos - s.readers[0].meta.BootWallNanos; shift != 0 && r.meta.StartBootNanos != s.readers[0].meta.StartBootNanos {
			for i := range batch[:n] {
				batch[i].BootNanos += uint64(shift)
			}
		}
		return n, err
	}
}

// Current is the recording that is being played.
func (s *Sequence) Current() *Reader { return s.readers[s.current] }

// Recorded adds up what the recordings that were played to their ends say of the
// trace. Parts of one trace count what the kernel saw once, in the last.
func (s *Sequence) Recorded() (t Totals, complete bool) {
	complete = true
	for _, r := range s.readers {
		if r.totals == nil {
			complete = false
			continue
		}
		t.Seen += r.totals.Seen
		t.Filtered += r.totals.Filtered
		t.Lost += r.totals.Lost
		t.LostOthers += r.totals.LostOthers
		t.Missed += r.totals.Missed
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
