//go:build linux

package capture

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"chargetrace/internal/event"
)

// DefaultInterval is the default of [Options.Interval].
const DefaultInterval = 50 * time.Millisecond

// maxPending is the maximum time that a failed batch charge waits for the next event of its
// thread; see batchSize.resolveMisses. That event follows at once, unless the thread is
// preempted, which can take long on a busy machine.
const maxPending = 2 * time.Second

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
	// interval is Options.Interval.
	interval time.Duration

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
}

func newReader(r ring, k kernel, c clock, possibleCPUs int, interval time.Duration) *reader {
	r.setDeadline(c.now().Add(interval))
	return &reader{ring: r, kernel: k, clock: c, lost: make([]uint64, possibleCPUs), interval: interval}
}

// Read implements [stream.Source]. It reports lost events by an [event.Lost] event before
// the next charge of that CPU, and at the end the losses that no charge followed.
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
// an interval; while events are pending, each interval has an end. At the end of the trace
// it returns io.EOF.
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
		if n > 0 && !r.ring.available() {
			return n, nil
		}
		sample, err := r.ring.next()
		switch {
		case err == nil:
			ok, err := r.decode(&batch[n], sample)
			if ok {
				n++
			}
			if err != nil {
				return n, fmt.Errorf("read the ring buffer: %w", err)
			}
		case err == os.ErrDeadlineExceeded:
			return n, r.endInterval(pending)
		case err == errFlushed:
			r.flushed = true
			r.Stop() // waits until the Stop that flushed returns
			if err := r.stopErr; err != nil {
				r.stopErr = nil // Close need not return it again
				return n, err
			}
			if err := r.queueLosses(); err != nil {
				return n, err
			}
		default:
			return n, fmt.Errorf("read the ring buffer: %w", err)
		}
	}
	return n, nil
}

// decode decodes a sample to e. It returns false for a stack that already has an event.
// If charges were lost before this one, e becomes a Lost event and the charge is queued.
func (r *reader) decode(e *event.Event, sample []byte) (ok bool, err error) {
	if r.idleIntervals > 2 { // the reader slept
		r.ring.setDeadline(r.clock.now().Add(r.interval))
	}
	r.idleIntervals = 0

	if r.stacks != nil && isStack(sample) {
		return r.stacks.learn(e, sample)
	}
	if err := e.Decode(sample); err != nil {
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

// endInterval sets the deadline of the next wait.
func (r *reader) endInterval(pending bool) error {
	deadline := r.clock.now().Add(r.interval)
	if pending {
		r.ring.setDeadline(deadline)
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
	r.ring.setDeadline(deadline)
	return nil
}

// queueLosses queues the losses that no later charge reported.
func (r *reader) queueLosses() error {
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
	return nil
}

// Stop detaches the programs, waits until no CPU runs them, and makes Read return the last
// events and io.EOF. Any goroutine may call it, more than once.
func (r *reader) Stop() {
	r.stopOnce.Do(func() {
		if err := r.kernel.detach(); err != nil {
			r.stopErr = fmt.Errorf("detach: %w", err)
		}
		if err := r.ring.flush(); err != nil {
			r.stopErr = errors.Join(r.stopErr, fmt.Errorf("flush the ring buffer: %w", err))
		}
	})
}
