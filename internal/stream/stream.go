// Package stream is the pipeline: events go from a [Source] to a [Sink] in
// batches. A live trace and a recording differ in the Source alone, and no
// Source or Sink knows of another.
package stream

import (
	"errors"
	"io"

	"chargetrace/internal/event"
)

// Header says how the numbers of a trace are to be read.
type Header struct {
	// PageSize of the traced machine, in bytes.
	PageSize int
	// StartBootNanos is when the trace began, on the clock of
	// [event.Event.BootNanos].
	StartBootNanos uint64
	// BootWallNanos is the wall-clock time at boot, in nanoseconds since 1970:
	// what to add to BootNanos to tell the time of day.
	BootWallNanos int64
	// KernelStacks and UserStacks say that charges have such.
	KernelStacks, UserStacks bool
	// Net says that what is given back is part of the trace, and what is charged
	// whatever the limit: all of it, so that there is a balance.
	Net bool
}

// Source is where events come from.
type Source interface {
	Header() Header
	// Read waits for at least one event and fills batch with as many as there
	// are. At the end it returns io.EOF, and no events with it.
	Read(batch []event.Event) (int, error)
	// Stop asks the source to end: what happened before is still read, then
	// io.EOF. It may be called at any time, from any goroutine, and repeatedly.
	Stop()
}

// Sink is where events go.
type Sink interface {
	// Write takes the events of one batch, which it must not keep, and passes
	// them on before it returns.
	Write(batch []event.Event) error
	// Close finishes what Write began.
	Close() error
}

// Result says what [Copy] did with the charges it read.
type Result struct {
	// Shown charges were written to the sink.
	Shown uint64
	// Filtered charges were not aimed at, or came after the last that was.
	Filtered uint64
}

// batchEvents is how many events move at once: enough that a batch costs little
// beside its events.
const batchEvents = 256

// Copy moves events from src to dst until src ends, and then closes dst. After
// aim.MaxCharges charges, where that is not 0, it stops src, and counts what is
// left. Where dst fails it stops src and returns that error. Whatever the
// error, it returns what it did until then.
func Copy(dst Sink, src Source, aim Aim) (Result, error) {
	res, err := copyEvents(dst, src, aim)
	if err != nil {
		src.Stop()
	}
	return res, errors.Join(err, dst.Close())
}

func copyEvents(dst Sink, src Source, aim Aim) (res Result, err error) {
	chosen := newChooser(aim, src.Header().PageSize)
	var buf [batchEvents]event.Event
	done := false
	for {
		n, err := src.Read(buf[:])
		if err == io.EOF {
			return res, nil
		}
		if err != nil {
			return res, err
		}
		batch, shown := buf[:n], uint64(0)
		kept := batch[:0]
		for i := range batch {
			e := &batch[i]
			if done || !chosen.includes(e) {
				if e.Type == event.Charge {
					res.Filtered++
				}
				continue
			}
			if e.Type == event.Charge {
				shown++
			}
			if len(kept) < i { // nothing to move as long as all are kept
				kept = append(kept, *e)
			} else {
				kept = batch[:i+1]
			}
			if shown > 0 && res.Shown+shown == aim.MaxCharges {
				done = true
				src.Stop()
			}
		}
		if chosen.err != nil {
			return res, chosen.err
		}
		if len(kept) == 0 {
			continue
		}
		if err := dst.Write(kept); err != nil {
			return res, err
		}
		res.Shown += shown
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

func (t tee) Close() error {
	var errs []error
	for _, s := range t {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
