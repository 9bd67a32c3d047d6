package event

import "testing"

// TestClock sets the clock forward, not at all, and back.
func TestClock(t *testing.T) {
	c := NewClock(1000)
	for _, step := range [][2]int64{{100, 1500}, {200, 1500}, {300, 900}} {
		c.Add(&Event{Type: ClockStep, BootNanos: uint64(step[0]), BootWallNanos: step[1]})
	}
	for bootNanos, want := range map[uint64]int64{0: 1000, 99: 1099, 100: 1600, 299: 1799, 300: 1200, 1 << 40: 1<<40 + 900} {
		if got := c.Wall(bootNanos).UnixNano(); got != want {
			t.Errorf("%d is at %d, want %d", bootNanos, got, want)
		}
	}
}
