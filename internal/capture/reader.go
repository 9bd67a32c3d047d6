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

// readInterval is the maximum time that an event stays in the ring buffer. The reader wakes
// up at this interval while there are events. After an interval without events it asks the
// programs to wake it, and sleeps.
const readInterval = 50 * time.Millisecond

// maxPending is the maximum time that a failed batch charge waits for the next event of its
// thread; see batchSize.resolveMisses. That event follows at once, unless the thread is
// preempted, which can take long on a busy machine.
const maxPending = 2 * time.Second

// ring is the reader's interface to the ring buffer: a [*ringbuf.Reader], or a script in
// tests.
type ring interface {
	// ReadInto waits for a record. After Flush it returns the remaining records, then
	// ringbuf.ErrFlushed.
	ReadInto(*ringbuf.Record) error
	// SetDeadline limits the wait of ReadInto; the zero time is no limit.
	SetDeadline(time.Time)
	// AvailableBytes returns the number of bytes that can be read without waiting.
	AvailableBytes() int
	Flush() error
}

// clock holds the reader's two clocks.
type clock struct {
	now  func() time.Time // for the ring's deadlines
	boot func() uint64    // see BootNanos
}

var systemClock = clock{time.Now, BootNanos}

// BootNanos returns the time on the clock of [event.Event.BootNanos].
func BootNanos() uint64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // the clock exists since Linux 2.6.39
	}
	return uint64(t.Nano())
}

// reader decodes the records in the ring buffer to events. It accesses the kernel only
// through two interfaces and a clock, so that tests control the order and the times.
type reader struct {
	ring   ring
	kernel kernel
	clock  clock
	stacks *stacks // nil: no stacks are collected

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
	// lost counts the lost events of each CPU that have been reported.
	lost []uint64

	stopOnce sync.Once
	stopErr  error
	inflight []inflightCall
}

func newReader(r ring, k kernel, c clock, possibleCPUs int) *reader {
	r.SetDeadline(c.now().Add(readInterval))
	return &reader{ring: r, kernel: k, clock: c, lost: make([]uint64, possibleCPUs)}
}

// Read implements [stream.Source]. It reports lost events by an [event.Lost] event before
// the next charge of that CPU. The last events are the losses that no charge followed, and
// the charges in flight.
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
		if final == 0 && n == len(batch) { // no room for the event it waits for
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

// fill reads the available events into batch. It waits for at least one, or for the end of
// an interval; while events are pending, each interval ends after readInterval. At the end
// of the trace it returns io.EOF.
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
			r.Stop() // waits until the Stop that flushed returns
			if err := r.stopErr; err != nil {
				r.stopErr = nil // Close need not return it again
				return n, err
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

// decode decodes the record to e. It returns false for a stack that already has an event.
// If charges were lost before this one, e becomes a Lost event and the charge is queued.
func (r *reader) decode(e *event.Event) (ok bool, err error) {
	if r.idleIntervals > 2 { // the reader slept
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
	if reported := r.lost[e.CPU]; e.LostCharges > reported {
		r.queue = append(r.queue, *e)
		r.lost[e.CPU] = e.LostCharges
		e.Type = event.Lost
		e.LostCharges -= reported
	}
	return true, nil
}

// endInterval sets the deadline of the next ReadInto.
func (r *reader) endInterval(pending bool) error {
	deadline := r.clock.now().Add(readInterval)
	if pending {
		r.ring.SetDeadline(deadline)
		return nil
	}
	r.idleIntervals++
	switch r.idleIntervals {
	case 1: // the interval that ends now had events
	case 2:
		// A program that runs at this moment may not see the request and not wake the reader,
		// so the next interval still has a deadline.
		if err := r.kernel.setReaderIdle(); err != nil {
			return fmt.Errorf("set the reader idle: %w", err)
		}
	default:
		deadline = time.Time{}
	}
	r.ring.SetDeadline(deadline)
	return nil
}

// queueFinal queues the events that are not in the ring buffer: losses that no later charge
// reported, and the charges in flight.
func (r *reader) queueFinal() error {
	counts, err := r.Counts()
	if err != nil {
		return err
	}
	for _, reported := range r.lost {
		counts.Lost -= reported
	}
	if counts.Lost > 0 {
		r.queue = append(r.queue, event.Event{Type: event.Lost, BootNanos: r.clock.boot(), LostCharges: counts.Lost})
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
