//go:build linux

package guest

import (
	"strings"
	"testing"
)

// drainStock gives back what the CPU has left of the last batch, in a machine with one
// CPU: the next page that is charged charges a batch. It also reclaims what it can.
func (g cgroup) drainStock(t testing.TB) {
	t.Helper()
	g.write(t, "memory.high", "0") // memory_high_write
	g.write(t, "memory.high", "max")
}

// withStacks returns the charges of a trace, and the frames of their kernel and user
// stacks, joined as in a .folded but the innermost first.
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
