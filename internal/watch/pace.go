package watch

import (
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// Pace returns a Sink that passes the events of a recording on as time passes on the
// screen. If there is no screen, it does not wait, but ticks between the events. Of a live
// trace it passes all on at once.
func (w *Watch) Pace(dst stream.Sink) stream.Sink {
	if w.o.Now != nil {
		return dst
	}
	return &pacer{dst, w}
}

type pacer struct {
	stream.Sink
	watch *Watch
}

// Write passes on the events between two ticks together.
func (p *pacer) Write(batch []event.Event) error {
	for len(batch) > 0 {
		n := p.due(batch)
		if err := p.Sink.Write(batch[:n]); err != nil {
			return err
		}
		batch = batch[n:]
	}
	return nil
}

// due waits for the first event with a time, and returns how many can follow it without a
// tick between them.
func (p *pacer) due(batch []event.Event) (n int) {
	var end uint64
	for ; n < len(batch); n++ {
		e := &batch[n]
		if e.Type.IsName() || e.BootNanos < end {
			continue
		}
		if end != 0 {
			break
		}
		end = p.watch.playUntil(e.BootNanos)
	}
	return n
}

// playUntil ticks up to a time. On a screen it sleeps until then, or until the screen is
// left. It returns the time up to which events can follow without a tick between them.
func (w *Watch) playUntil(bootNanos uint64) (end uint64) {
	bootNanos = min(bootNanos, maxBootNanos)
	last, paused := time.Now(), false
	for {
		var position uint64
		var wait time.Duration
		w.locked(func() {
			now := time.Now()
			if !paused {
				w.position += uint64(now.Sub(last))
			}
			last, paused = now, w.keys.paused
			if w.program == nil || w.hasLeft() {
				w.position = max(w.position, bootNanos)
			}
			// Skip pauses.
			if idle := uint64(maxIdle); bootNanos > w.position+idle {
				w.position = bootNanos - idle
			}
			// Skip ticks that the graph does not reach back to.
			if span := uint64(historyTicks * interval); w.position > w.state.lastTick+span {
				w.state.lastTick = w.position - span
			}
			for next := w.state.lastTick + uint64(interval); next <= w.position; next += uint64(interval) {
				w.tick(next)
			}
			position, end = w.position, w.position+1
			if w.program == nil || w.hasLeft() {
				end = w.state.lastTick + uint64(interval)
			}
			wait = time.Duration(min(bootNanos, w.state.lastTick+uint64(interval)) - position)
		})
		switch {
		case position >= bootNanos:
			return end
		case paused:
			wait = time.Hour
		}
		select {
		case <-time.After(wait):
		case <-w.pressed:
		case <-w.left:
		}
	}
}

// hasLeft reports whether the screen has been left.
func (w *Watch) hasLeft() bool {
	select {
	case <-w.left:
		return true
	default:
		return false
	}
}

// maxIdle is the longest pause between two events of a recording on a screen.
const maxIdle = 3 * time.Second
