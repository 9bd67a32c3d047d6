package trace

import (
	"cmp"
	"errors"
	"io"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// Sequence is a [stream.Source] that plays recordings one after another, with the times
// of all on the clock of the first.
type Sequence struct {
	info    stream.Info
	readers []*Reader
	current int
	shift   int64 // to add to the BootNanos of the current one
	err     error // of the readers so far
}

var _ stream.Source = (*Sequence)(nil)

// NewSequence returns the sequence of at least one recording. All must have the same page
// size.
func NewSequence(readers ...*Reader) (*Sequence, error) {
	info := readers[0].info
	for _, r := range readers {
		if r.info.PageSize != info.PageSize {
			return nil, errors.New("cannot play recordings with different page sizes together")
		}
		info.KernelStacks = info.KernelStacks || r.info.KernelStacks
		info.UserStacks = info.UserStacks || r.info.UserStacks
		// A balance needs the uncharges of the whole time.
		info.Net = info.Net && r.info.Net
	}
	return &Sequence{info: info, readers: readers}, nil
}

// Info implements [stream.Source]. It is that of the first recording, with stacks if any
// recording has them, and with uncharges if all have them.
func (s *Sequence) Info() stream.Info { return s.info }

// Stop implements [stream.Source].
func (s *Sequence) Stop() {
	for _, r := range s.readers {
		r.Stop()
	}
}

// Read implements [stream.Source]. If a recording ends with an error, Read continues with
// the next one, and returns the errors at the end.
func (s *Sequence) Read(batch []event.Event) (int, error) {
	for ; s.current < len(s.readers); s.next() {
		r := s.readers[s.current]
		n, err := r.Read(batch)
		if err == io.EOF {
			continue
		}
		if err != nil {
			s.err = errors.Join(s.err, err)
			continue
		}
		shift := s.shift
		for i := range batch[:n] {
			batch[i].BootNanos += uint64(shift)
			batch[i].BootWallNanos -= shift
			if batch[i].OOMNanos != 0 {
				batch[i].OOMNanos += uint64(shift)
			}
		}
		return n, nil
	}
	return 0, cmp.Or(s.err, io.EOF)
}

// next continues with the next recording. A later part of the same trace has its clock. The times
// of another trace follow on the clock of this one at its end: BootNanos restarts at each boot.
func (s *Sequence) next() {
	before := s.readers[s.current]
	if s.current++; s.current == len(s.readers) {
		return
	}
	r := s.readers[s.current]
	if r.info.StartBootNanos == before.info.StartBootNanos {
		r.bootWallNanos = before.bootWallNanos
		return
	}
	s.shift += r.info.BootWallNanos - before.bootWallNanos
}

// Counts implements [stream.Source]: it adds up the counts of the recordings. They are
// Whole once each was read to its end. Of the parts of one trace, only the last has the
// counts of the kernel.
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
