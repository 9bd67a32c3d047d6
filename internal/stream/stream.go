// Package stream is the pipeline: events go from a [Source] to a [Sink] in
// batches. A live trace and a recording differ in the Source alone, and no
// Source or Sink knows of another.
package stream

import (
	"errors"
	"io"

	"chargetrace/internal/event"
)

// Source is where events come from.
type Source interface {
	Info() Info
	// Read waits for at least one event and fills batch with as many as there
	// are. At the end it returns io.EOF, and no events with it.
	Read(batch []event.Event) (int, error)
	// Counts says what became of the charges. After Read has returned io.EOF the counts
	// are final, and exact. Read and Counts are for one goroutine.
	Counts() (Counts, error)
	// Stop asks the source to end: what happened before is still read, then
	// io.EOF. It may be called at any time, from any goroutine, and repeatedly.
	Stop()
}

// Sink is where events go.
type Sink interface {
	// Write takes the events of one batch, which it must not keep, and passes
	// them on before it returns.
	Write(batch []event.Event) error
	// Close finishes what Write began. The counts are those of the whole trace.
	Close(Counts) error
}

// batchEvents is how many events move at once: enough that a batch costs little
// beside its events.
const batchEvents = 256

// Copy moves the events that pass the filter from src to dst until src ends, and then
// closes dst. After filter.MaxCharges charges, where that is not 0, it stops src, and
// counts what is left. If dst fails it stops src and returns that error. Whatever the
// error, it returns the counts until then.
func Copy(dst Sink, src Source, filter Filter) (Counts, error) {
	c := copier{matcher: newMatcher(filter, src.Info().PageSize)}
	err := c.copy(dst, src)
	if err != nil {
		src.Stop()
	}
	counts, countsErr := src.Counts()
	counts.Read, counts.Shown, counts.LostInShown = c.read, c.shown, c.lost
	counts.Predicted, counts.WalksCut, counts.UnknownKinds = c.predicted, c.walksCut, c.unknownKinds
	return counts, errors.Join(err, countsErr, dst.Close(counts))
}

// copier is the state of a Copy; its counts are those of [Counts].
type copier struct {
	*matcher
	done bool // MaxCharges are shown

	read, shown, lost                 uint64
	predicted, walksCut, unknownKinds uint64
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

// keep moves the events that are shown to the front of the batch, and counts.
func (c *copier) keep(batch []event.Event) []event.Event {
	kept := 0
	for i := range batch {
		e := &batch[i]
		isCharge := e.Type == event.Charge
		if isCharge {
			c.read++
		}
		if c.done || !c.matches(e) {
			continue
		}
		switch {
		case isCharge:
			c.count(e)
		case e.Type == event.Lost:
			c.lost += e.LostEvents
		}
		if kept < i { // nothing to move as long as all are kept
			batch[kept] = *e
		}
		kept++
	}
	return batch[:kept]
}

// count counts a charge that is shown.
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

// Tee returns a Sink that writes to several, in that order, and what one fails to take to
// the others all the same.
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
