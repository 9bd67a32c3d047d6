package capture

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"chargetrace/internal/event"
)

// readInterval is how long an event stays in the buffer at most. The reader
// wakes up so often as long as there are events. After an interval without any
// it asks to be woken by the next, and sleeps.
const readInterval = 50 * time.Millisecond

// maxPending is how long an event is held that its thread's next one may tell more about;
// see resolveMisses. That comes at once, unless the thread is preempted, on a busy machine
// for long.
const maxPending = 2 * time.Second

// Read implements [stream.Source]. Where events were lost, a [event.Lost]
// event stands before the next charge of that CPU; losses that no charge
// followed come at the end, as do charges whose return was not seen.
func (t *Tracer) Read(batch []event.Event) (int, error) {
	n := copy(batch, t.pending)
	t.pending = append(t.pending[:0], t.pending[n:]...)
	for {
		added, err := t.fill(batch[n:], n > 0)
		n += added
		if err != nil && err != io.EOF {
			return 0, err
		}
		final := resolveMisses(batch[:n])
		// What has had no successor for that long will have none.
		for final < n && BootNanos() > batch[final].BootNanos+uint64(maxPending) {
			final++
			final += resolveMisses(batch[final:n])
		}
		// A full batch has to go.
		if err == io.EOF || final == 0 && n == len(batch) {
			final = n
		}
		if final > 0 {
			t.pending = append(t.pending, batch[final:n]...)
			return final, nil
		}
		if err == io.EOF {
			return 0, io.EOF
		}
	}
}

// fill reads events into batch: those there are, and at least one, unless an
// interval ends before. At the end it returns io.EOF. While events are pending it
// does not wait for longer.
func (t *Tracer) fill(batch []event.Event, pending bool) (n int, err error) {
	for n < len(batch) {
		if len(t.queue) > 0 {
			batch[n] = t.queue[0]
			t.queue = t.queue[1:]
			n++
			continue
		}
		if t.flushed {
			break
		}
		if n > 0 && t.record.Remaining == 0 && t.ring.AvailableBytes() == 0 {
			return n, nil
		}
		err := t.ring.ReadInto(&t.record)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return n, t.endInterval(pending)
		case errors.Is(err, ringbuf.ErrFlushed):
			t.flushed = true
			t.Stop() // has flushed, but may not have returned yet
			if t.stopErr != nil {
				return n, t.stopErr
			}
			if err := t.queueFinal(); err != nil {
				return n, err
			}
			continue
		default:
			return n, fmt.Errorf("read the ring buffer: %w", err)
		}

		if t.idleIntervals > 2 { // woken
			t.ring.SetDeadline(time.Now().Add(readInterval))
		}
		t.idleIntervals = 0
		e := &batch[n]
		if isStack(t.record.RawSample) {
			told, err := t.stacks.learn(e, t.record.RawSample)
			if err != nil {
				return n, fmt.Errorf("read the ring buffer: %w", err)
			}
			if told {
				n++
			}
			continue
		}
		if err := e.Decode(t.record.RawSample); err != nil {
			return n, fmt.Errorf("read the ring buffer: %w", err)
		}
		n++
		if e.Type != event.Charge {
			continue
		}
		if int(e.CPU) >= len(t.lost) {
			return n, fmt.Errorf("read the ring buffer: event of CPU %d of %d", e.CPU, len(t.lost))
		}
		if t.stacks != nil {
			t.stacks.number(e)
		}
		if e.LostEvents > t.lost[e.CPU] {
			t.queue = append(t.queue, *e)
			e.Type = event.Lost
			e.LostEvents -= t.lost[e.CPU]
			t.lost[e.CPU] = t.queue[0].LostEvents
		}
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// endInterval sets how long the ring buffer is waited for next.
func (t *Tracer) endInterval(pending bool) error {
	deadline := time.Now().Add(readInterval)
	if pending {
		t.ring.SetDeadline(deadline)
		return nil
	}
	t.idleIntervals++
	switch t.idleIntervals {
	case 1: // there were events in the interval that ends now
	case 2:
		// A program that runs just now may not see it and not wake us, so the
		// next interval still ends by itself.
		if err := t.readerIdle.Set(true); err != nil {
			return fmt.Errorf("go to sleep: %w", err)
		}
	default:
		deadline = time.Time{}
	}
	t.ring.SetDeadline(deadline)
	return nil
}

// queueFinal makes the last events what has not come through the ring buffer:
// losses that no charge has reported, and charges whose return was not seen.
func (t *Tracer) queueFinal() error {
	counts, err := t.Counts()
	if err != nil {
		return err
	}
	for _, lost := range t.lost {
		counts.Lost -= lost
	}
	if counts.Lost > 0 {
		t.queue = append(t.queue, event.Event{Type: event.Lost, BootNanos: BootNanos(), LostEvents: counts.Lost})
	}
	for _, u := range t.inflight {
		for _, raw := range u.stacks {
			var e event.Event
			if told, err := t.stacks.learn(&e, raw); err != nil {
				return fmt.Errorf("read the calls under way: %w", err)
			} else if told {
				t.queue = append(t.queue, e)
			}
		}
		if t.stacks != nil {
			t.stacks.number(&u.charge)
		}
		t.queue = append(t.queue, u.charge)
	}
	return nil
}
