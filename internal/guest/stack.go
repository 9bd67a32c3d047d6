//go:build linux

package guest

import (
	"strings"
	"testing"
)

// drainStock drains the CPU's stock in a machine with one CPU, so that the next page
// charges a batch. It also reclaims memory.
func (g cgroup) drainStock(t testing.TB) {
	t.Helper()
	g.write(t, "memory.high", "0") // memory_high_write
	g.write(t, "memory.high", "max")
}

// withStacks returns the charges of a trace, with the frames of their kernel and user
// stacks joined as in a .folded, but innermost first.
func withStacks(events []event) (charges []stackedCharge) {
	frames := make(map[uint32]string)
	for _, e := range events {
		switch e.Type {
		case "stack":
			frames[e.Stack] = strings.Join(e.Frames, ";")
		case "charge":
			charges = append(charges, stackedCharge{e, frames[e.KernelStack], frames[e.UserStack]})
		}
	}
	return charges
}

type stackedCharge struct {
	event
	kernel, user string
}
