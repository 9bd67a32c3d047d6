//go:build linux

package sampler

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"chargetrace/internal/event"
)

// TestClockSampler sets the wall clock forward and back, and by too little to tell, and reads it
// once so slowly that the difference means nothing. Then it knows when the clock is set.
func TestClockSampler(t *testing.T) {
	const second = 1_000_000_000
	src := &eventSource{batches: make(chan []event.Event)}
	boot, offset, slow := uint64(0), int64(0), uint64(0)
	now := func() uint64 { boot += slow; return boot }
	wall := func() time.Time { return time.Unix(0, offset+int64(boot)) }
	s := NewClock(src, now, wall)
	var got []string
	read := func(at uint64, clock int64, events int) {
		boot, offset = at, clock
		sent := make([]event.Event, events)
		for i := range sent {
			sent[i].BootNanos = at - uint64(events-i)
		}
		go func() { src.batches <- sent }()
		batch := make([]event.Event, 4)
		n, err := s.Read(batch)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range batch[:n] {
			if e.Type == event.ClockStep {
				got = append(got, fmt.Sprintf("from %d: %d", e.BootNanos, e.BootWallNanos))
			} else {
				got = append(got, "event")
			}
		}
	}
	read(10, minStep-1, 1)
	read(20, 3600*second, 3)
	read(30, 3600*second, 1)
	slow = maxReading + 1
	read(40, 5, 1)
	slow = 0
	read(50, 5, 1)
	s.setAt.Store(58)
	read(60, -second, 3)
	s.setAt.Store(70)
	read(70, second, 1)
	want := []string{
		"event", "from 10: 3600000000000", "event", "event", "event", "event", "event", "from 30: 5", "event",
		"event", "from 58: -1000000000", "event", "event", "event", "from 70: 1000000000",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
