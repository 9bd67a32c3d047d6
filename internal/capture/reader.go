//go:build linux

package capture

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"chargetrace/internal/event"
)

// readInterval is how long an event stays in the ring buffer at most. The reader wakes
// up that often while there are events. After an interval without any it asks the
// programs to wake it, and sleeps.
const readInterval = 50 * time.Millisecond

// maxPending is how long a failed batch charge waits for the next event of its thread;
// see batchSize.resolveMisses. That event follows at once, unless the thread is preempted, on a
// busy machine for long.
const maxPending = 2 * time.Second

// ring is the reader's view of the ring buffer: a [*ringbuf.Reader], or a test's script.
type ring interface {
	// ReadInto waits for a record. After Flush it returns the records that are left,
	// then ringbuf.ErrFlushed.
	ReadInto(*ringbuf.Record) error
	// SetDeadline limits how long ReadInto waits; the zero time is no limit.
	SetDeadline(time.Time)
	// AvailableBytes is how much can be read without waiting.
	AvailableBytes() int
	Flush() error
}

// clock has the reader's two clocks.
type clock struct {
	now  func() time.Time // for the ring's deadlines
	boot func() uint64    // see BootNanos
}

var systemClock = clock{time.Now, BootNanos}

// BootNanos returns the time on the clock of [event.Event.BootNanos].
func BootNanos() uint64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // it is there since Linux 2.6.39
	}
	return uint64(t.Nano())
}

// reader makes events of the records in the ring buffer. It knows the kernel through
// two interfaces and a clock, so that tests decide what happens when.
type reader struct {
	ring   ring
	kernel kernel
	clock  clock
	stacks *stacks // nil: no stacks are taken

	record  ringbuf.Record
	flushed bool
	// idleIntervals counts the intervals without an event in which none was pending.
	idleIntervals int

	batches batchSize
	// pending are failed batch charges that wait for the next event of their thread, and
	// the events after them; see batchSize.resolveMisses.
	pending []event.Event
	// queue holds the events to read before the ring buffer.
	queue []event.Event
	// lost is how many lost events of each CPU have been reported.
	lost []uint64

	stopOnce sync.Once
	stopErr  error
	inflight []inflightCall
}

func newReader(r ring, k kernel, c clock, possibleCPUs int) *reader {
	r.SetDeadline(c.now().Add(readInterval))
	return &reader{ring: r, kernel: k, clock: c, lost: make([]uint64, possibleCPUs)}
}

// Read implements [stream.Source]. Where events were lost, a [event.Lost] event comes
// before the next charge of that CPU. At the end come the losses that no charge
// followed, and the charges that had not returned.
func (r *reader) Read(batch []event.Event) (int, error) {
	n := copy(batch, r.pending)
	r.pending = append(r.pending[:0], r.pending[n:]...)
	for {
		added, err := r.fill(batch[n:], n > 0)
		n += added
		if err != nil && err != io.EOF {
			return 0, err
		}
		final := r.batches.resolveMisses(batch[:n])
		if final == 0 && n == len(batch) { // no room for what it waits for
			final = 1 + r.batches.resolveMisses(batch[1:])
		}
		for final < n && r.clock.boot() > batch[final].BootNanos+uint64(maxPending) {
			final++
			final += r.batches.resolveMisses(batch[final:n])
		}
		if err == io.EOF {
			final = n
		}
		if final > 0 {
			r.batches.learn(batch[:final])
			r.pending = append(r.pending, batch[final:n]...)
			return final, nil
		}
		if err == io.EOF {
			return 0, io.EOF
		}
	}
}

// fill reads events into batch: those there are, and at least one, unless an interval
// ends before. At the end it returns io.EOF. While events are pending, each interval
// ends in time.
func (r *reader) fill(batch []event.Event, pending bool) (n int, err error) {
	for n < len(batch) {
		if len(r.queue) > 0 {
			batch[n] = r.queue[0]
			r.queue = r.queue[1:]
			n++
			continue
		}
		if r.flushed {
			if n == 0 {
				return 0, io.EOF
			}
			return n, nil
		}
		if n > 0 && r.record.Remaining == 0 && r.ring.AvailableBytes() == 0 {
			return n, nil
		}
		err := r.ring.ReadInto(&r.record)
		switch {
		case err == nil:
			ok, err := r.decode(&batch[n])
			if ok {
				n++
			}
			if err != nil {
				return n, fmt.Errorf("read the ring buffer: %w", err)
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			return n, r.endInterval(pending)
		case errors.Is(err, ringbuf.ErrFlushed):
			r.flushed = true
			r.Stop() // has flushed, but may not have returned yet
			if r.stopErr != nil {
				return n, r.stopErr
			}
			if err := r.queueFinal(); err != nil {
				return n, err
			}
		default:
			return n, fmt.Errorf("read the ring buffer: %w", err)
		}
	}
	return n, nil
}

// decode makes e the event in the record. It returns false for a stack that has an event
// already. If charges were lost before this one, e becomes a Lost event and the charge
// is queued.
func (r *reader) decode(e *event.Event) (ok bool, err error) {
	if r.idleIntervals > 2 { // it slept
		r.ring.SetDeadline(r.clock.now().Add(readInterval))
	}
	r.idleIntervals = 0

	if r.stacks != nil && isStack(r.record.RawSample) {
		return r.stacks.learn(e, r.record.RawSample)
	}
	if err := e.Decode(r.record.RawSample); err != nil {
		return false, err
	}
	if e.Type != event.Charge {
		return true, nil
	}
	if int(e.CPU) >= len(r.lost) {
		return false, fmt.Errorf("event of CPU %d of %d", e.CPU, len(r.lost))
	}
	if r.stacks != nil {
		r.stacks.number(e)
	}
	if reported := r.lost[e.CPU]; e.LostEvents > reported {
		r.queue = append(r.queue, *e)
		r.lost[e.CPU] = e.LostEvents
		e.Type = event.Lost
		e.LostEvents -= reported
	}
	return true, nil
}

// endInterval sets how long the next ReadInto waits.
func (r *reader) endInterval(pending bool) error {
	deadline := r.clock.now().Add(readInterval)
	if pending {
		r.ring.SetDeadline(deadline)
		return nil
	}
	r.idleIntervals++
	switch r.idleIntervals {
	case 1: // there were events in the interval that ends now
	case 2:
		// A program that runs right now may not see it and not wake the reader, so the
		// next interval still ends by itself.
		if err := r.kernel.setReaderIdle(); err != nil {
			return fmt.Errorf("go to sleep: %w", err)
		}
	default:
		deadline = time.Time{}
	}
	r.ring.SetDeadline(deadline)
	return nil
}

// queueFinal queues the events that did not come through the ring buffer: losses that no
// later charge reported, and the charges in flight.
func (r *reader) queueFinal() error {
	counts, err := r.Counts()
	if err != nil {
		return err
	}
	for _, reported := range r.lost {
		counts.Lost -= reported
	}
	if counts.Lost > 0 {
		r.queue = append(r.queue, event.Event{Type: event.Lost, BootNanos: r.clock.boot(), LostEvents: counts.Lost})
	}
	for _, call := range r.inflight {
		for _, raw := range call.stacks {
			var e event.Event
			if ok, err := r.stacks.learn(&e, raw); err != nil {
				return fmt.Errorf("read the calls in flight: %w", err)
			} else if ok {
				r.queue = append(r.queue, e)
			}
		}
		if r.stacks != nil {
			r.stacks.number(&call.charge)
		}
		r.queue = append(r.queue, call.charge)
	}
	return nil
}
