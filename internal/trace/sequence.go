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
	info    stream.Info
	readers []*Reader
	current int
	err     error // of those that were not whole
}

var _ stream.Source = (*Sequence)(nil)

// NewSequence returns the sequence of some recordings, at least one. They must be
// of machines with pages of one size.
func NewSequence(readers ...*Reader) (*Sequence, error) {
	info := readers[0].info
	for _, r := range readers {
		if r.info.PageSize != info.PageSize {
			return nil, errors.New("recordings of machines with pages of different sizes cannot be played together")
		}
		info.KernelStacks = info.KernelStacks || r.info.KernelStacks
		info.UserStacks = info.UserStacks || r.info.UserStacks
		// Of a time without what was given back there is no balance.
		info.Net = info.Net && r.info.Net
	}
	return &Sequence{info: info, readers: readers}, nil
}

// Info implements [stream.Source]. It is that of the first recording, with stacks where
// any recording has some, and a balance where all have one.
func (s *Sequence) Info() stream.Info { return s.info }

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
		if shift := r.info.BootWallNanos - s.info.BootWallNanos; shift != 0 && r.info.StartBootNanos != s.info.StartBootNanos {
			for i := range batch[:n] {
				batch[i].BootNanos += uint64(shift)
			}
		}
		return n, nil
	}
	return 0, cmp.Or(s.err, io.EOF)
}

// Counts implements [stream.Source]: it adds up what the recordings count. They are
// Whole once each was read to its end. Parts of one trace hold the kernel's counts
// once, in the last.
func (s *Sequence) Counts() (sum stream.Counts, err error) {
	sum.Whole = true
	for _, r := range s.readers {
		c, err := r.Counts()
		if err != nil {
			return sum, err
		}
		sum.Whole = sum.Whole && c.Whole
		sum.Seen += c.Seen
		sum.Filtered += c.Filtered
		sum.Lost += c.Lost
		sum.LostNonCharge += c.LostNonCharge
		sum.Missed += c.Missed
		sum.RecordedEvents += c.RecordedEvents
		sum.RecordedCharges += c.RecordedCharges
		sum.LostStacks += c.LostStacks
		sum.UnnamedProcesses += c.UnnamedProcesses
		sum.DamagedBlocks += c.DamagedBlocks
		sum.BatchPages = max(sum.BatchPages, c.BatchPages)
	}
	return sum, nil
}

// Next ends this recording and returns one that goes on where it ends, in another
// file: with the same beginning, and the names and stacks that this one knew.
func (w *Writer) Next(out io.Writer) (*Writer, error) {
	// The counts come with the last.
	if err := w.Close(stream.Counts{}); err != nil {
		return nil, err
	}
	next, err := NewWriter(out, w.info)
	if err != nil {
		return nil, err
	}
	next.block.cgroups, next.block.frames = w.block.cgroups, w.block.frames
	return next, nil
}
