package event

import (
	"sort"
	"time"
)

// Clock converts BootNanos to the wall clock, which can be set during a trace. The zero value
// is not valid; see [NewClock].
type Clock struct {
	offsets []clockOffset // at least one, in order
}

// clockOffset is the wall-clock time of boot for events from a time on.
type clockOffset struct {
	bootNanos uint64
	wallNanos int64
}

// NewClock returns a Clock on which boot was at bootWallNanos, in nanoseconds since 1970.
func NewClock(bootWallNanos int64) *Clock { return &Clock{[]clockOffset{{0, bootWallNanos}}} }

// Add adds an event of type [ClockStep], later than those before.
func (c *Clock) Add(e *Event) {
	if last := c.offsets[len(c.offsets)-1]; e.BootWallNanos != last.wallNanos {
		c.offsets = append(c.offsets, clockOffset{max(e.BootNanos, last.bootNanos), e.BootWallNanos})
	}
}

// BootWallNanos returns the wall-clock time of boot, for an event at that time.
func (c *Clock) BootWallNanos(bootNanos uint64) int64 {
	last := len(c.offsets) - 1
	if bootNanos < c.offsets[last].bootNanos {
		last = sort.Search(last, func(i int) bool { return c.offsets[i].bootNanos > bootNanos }) - 1
	}
	return c.offsets[max(last, 0)].wallNanos
}

// Wall converts a time since boot to the wall clock's, in UTC.
func (c *Clock) Wall(bootNanos uint64) time.Time {
	return time.Unix(0, c.BootWallNanos(bootNanos)+int64(bootNanos)).UTC()
}
