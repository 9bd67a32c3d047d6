// Package stream is the pipeline: batches of events go from a [Source] to a [Sink].
// A live trace and a recording differ only in the Source. The package also defines what
// comes with the events: [Info], [Counts], and the [Filter]. It must not know sources or
// sinks, and these must not depend on each other.
package stream

import (
	"errors"
	"io"

	"chargetrace/internal/event"
)

// Source delivers events.
type Source interface {
	Info() Info
	// Read waits for at least one event and fills batch with those available. At the
	// end it returns io.EOF and no events.
	Read(batch []event.Event) (int, error)
	// Counts returns the counts up to now. They are final and exact once Read has
	// returned io.EOF. Read and Counts must be called from one goroutine.
	Counts() (Counts, error)
	// Stop asks the source to end: Read returns the events up to now, then io.EOF. Any
	// goroutine may call it, at any time and repeatedly.
	Stop()
}

// Sink consumes events.
type Sink interface {
	// Write processes the events of a batch before it returns. It must neither keep nor
	// modify the batch; it may keep copies of events.
	Write(batch []event.Event) error
	// Close finishes the output. The counts are of the whole trace.
	Close(Counts) error
}

// batchEvents is the size of a batch: large enough that the cost per batch is small
// compared to that of its events.
const batchEvents = 256

// Copy copies the events that pass the filter from src to dst until src ends. After
// filter.MaxCharges charges, unless that is 0, it stops src and only counts the rest. After
// an error it stops src. It closes dst, and returns the counts up to then, in every case.
func Copy(dst Sink, src Source, filter Filter) (Counts, error) {
	c := copier{matcher: newMatcher(filter, src.Info().PageSize)}
	err := c.copy(dst, src)
	if err != nil {
		src.Stop()
	}
	counts, countsErr := src.Counts()
	counts.Read, counts.Shown, counts.LostInShown = c.read, c.shown, c.lost
	if c.shown == 0 {
		counts.Dropped = c.dropped
	}
	counts.Predicted, counts.WalksCut, counts.UnknownKinds = c.predicted, c.walksCut, c.unknownKinds
	return counts, errors.Join(err, countsErr, dst.Close(counts))
}

// copier is the state of a Copy. Its counts are fields of [Counts].
type copier struct {
	*matcher
	done bool // MaxCharges were shown

	read, shown, lost                 uint64
	predicted, walksCut, unknownKinds uint64
	dropped                           Dropped
}

func (c *copier) copy(dst Sink, src Source) error {
	var buf [batchEvents]event.Event
	for {
		n, err := src.Read(buf[:])
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		kept := c.keep(buf[:n])
		if c.done {
			src.Stop()
		}
		if c.err != nil {
			return c.err
		}
		if len(kept) == 0 {
			continue
		}
		if err := dst.Write(kept); err != nil {
			return err
		}
	}
}

// keep moves the shown events to the front of the batch and returns them. It updates
// the counts.
func (c *copier) keep(batch []event.Event) []event.Event {
	kept := 0
	for i := range batch {
		e := &batch[i]
		isCharge := e.Type == event.Charge
		if isCharge {
			c.read++
		}
		if c.done || !c.all && !c.matches(e) {
			if isCharge && c.shown == 0 {
				c.dropped.add(e)
			}
			continue
		}
		switch {
		case isCharge:
			c.count(e)
		case e.Type == event.Lost:
			c.lost += e.LostCharges
		}
		if kept < i {
			batch[kept] = *e
		}
		kept++
	}
	return batch[:kept]
}

// count counts a shown charge.
func (c *copier) count(e *event.Event) {
	c.shown++
	c.done = c.shown == c.MaxCharges
	if e.Flags&event.Predicted != 0 {
		c.predicted++
	}
	if e.Flags&event.WalkCut != 0 {
		c.walksCut++
	}
	if e.Kind == event.Unknown {
		c.unknownKinds++
	}
}

// Tee returns a Sink that writes to several Sinks in order. If one fails, it still
// writes to the others.
func Tee(sinks ...Sink) Sink { return tee(sinks) }

type tee []Sink

func (t tee) Write(batch []event.Event) (err error) {
	for _, s := range t {
		if e := s.Write(batch); e != nil {
			err = errors.Join(err, e)
		}
	}
	return err
}

func (t tee) Close(c Counts) error {
	var errs []error
	for _, s := range t {
		errs = append(errs, s.Close(c))
	}
	return errors.Join(errs...)
}
