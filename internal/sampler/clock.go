//go:build linux

package sampler

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// ClockSampler is a source that also delivers an event of type [event.ClockStep] after the wall
// clock was set.
type ClockSampler struct {
	stream.Source
	now  func() uint64    // since boot
	wall func() time.Time // the wall clock

	setAt         atomic.Uint64 // when the clock was set last
	bootWallNanos int64         // of the events so far
	checked       uint64        // when the clock was read last
}

// NewClock returns a ClockSampler. now is the clock of [event.Event.BootNanos], and wall the
// wall clock.
func NewClock(src stream.Source, now func() uint64, wall func() time.Time) *ClockSampler {
	return &ClockSampler{Source: src, now: now, wall: wall, bootWallNanos: src.Info().BootWallNanos, checked: src.Info().StartBootNanos}
}

// Watch lets the kernel tell when the clock is set, until the returned value is closed. Without
// Watch, that time is only known to be later than the last Read.
func (s *ClockSampler) Watch() (io.Closer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("timerfd_create: %w", err)
	}
	timer := os.NewFile(uintptr(fd), "timerfd")
	// The kernel cancels the timer each time that the clock is set. It expires in 2038, at the
	// latest time of 32 bits.
	later := unix.ItimerSpec{Value: unix.Timespec{Sec: math.MaxInt32}}
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &later, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("timerfd_settime: %w", err), timer.Close())
	}
	go func() {
		for {
			if _, err := timer.Read(make([]byte, 8)); !errors.Is(err, unix.ECANCELED) {
				return
			}
			s.setAt.Store(s.now())
		}
	}()
	return timer, nil
}

// minStep is the least step in nanoseconds of the wall clock that is delivered. maxReading is
// the longest time for reading both clocks: a longer one means an interruption.
const minStep, maxReading = 10e6, 1e6

// Read implements [stream.Source].
func (s *ClockSampler) Read(batch []event.Event) (int, error) {
	n, err := s.Source.Read(batch[:len(batch)-1])
	before := s.now()
	wall := s.wall().UnixNano()
	if after := s.now(); n == 0 || after-before > maxReading {
		return n, err
	}
	from := max(s.checked, s.setAt.Load())
	s.checked = before
	bootWallNanos := wall - int64(before)
	if step := bootWallNanos - s.bootWallNanos; -minStep < step && step < minStep {
		return n, err
	}
	s.bootWallNanos = bootWallNanos
	at := slices.IndexFunc(batch[:n], func(e event.Event) bool { return !e.Type.IsName() && e.BootNanos >= from })
	if at < 0 {
		at = n
	}
	copy(batch[at+1:], batch[at:n])
	batch[at] = event.Event{Type: event.ClockStep, BootNanos: from, BootWallNanos: bootWallNanos}
	return n + 1, err
}
