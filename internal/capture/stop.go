//go:build linux

package capture

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"chargetrace/internal/event"
)

// inflightCall is a charge that had not returned when the trace stopped, with the
// samples of its stacks.
type inflightCall struct {
	charge event.Event
	stacks [][]byte
}

// Stop detaches the programs, waits until no CPU runs them, and makes Read return the last
// events and io.EOF. Any goroutine may call it, more than once.
func (r *reader) Stop() {
	r.stopOnce.Do(func() {
		if err := r.kernel.detach(); err != nil {
			r.stopErr = fmt.Errorf("detach: %w", err)
		}
		r.stopErr = errors.Join(r.stopErr, r.takeInflight())
		if err := r.ring.Flush(); err != nil {
			r.stopErr = errors.Join(r.stopErr, fmt.Errorf("flush the ring buffer: %w", err))
		}
	})
}

// takeInflight reads the charges in flight, oldest first.
func (r *reader) takeInflight() error {
	for cpu := range r.lost {
		var calls bpfCalls
		if err := r.kernel.readCalls(cpu, &calls); err != nil {
			return fmt.Errorf("read the calls in flight: %w", err)
		}
		for i := range calls.Call {
			call := &calls.Call[i]
			if call.Sp == 0 {
				continue
			}
			var in inflightCall
			if err := in.charge.Decode(structBytes(&call.Event)); err != nil {
				return fmt.Errorf("read the calls in flight: %w", err)
			}
			in.charge.Flags |= event.Predicted
			if in.charge.KernelStack != 0 || in.charge.UserStack != 0 {
				var s bpfCallStacks
				if err := r.kernel.readCallStacks(call.Stacks, &s); err != nil {
					return fmt.Errorf("read the stacks of the calls in flight: %w", err)
				}
				in.stacks = s.samples(&in.charge)
			}
			r.inflight = append(r.inflight, in)
		}
	}
	slices.SortFunc(r.inflight, func(a, b inflightCall) int { return cmp.Compare(a.charge.BootNanos, b.charge.BootNanos) })
	return nil
}

// samples returns the stacks of a charge in the format of the ring buffer's samples.
func (s *bpfCallStacks) samples(e *event.Event) (samples [][]byte) {
	add := func(stack *bpfStackEvent, frames uint64) {
		samples = append(samples, structBytes(stack)[:stackHeader+8*int(min(frames, uint64(stackDepth)))])
	}
	if e.KernelStack != 0 {
		add(&s.Kernel, s.KernelFrames)
	}
	if e.UserStack != 0 {
		add(&s.User, s.UserFrames)
	}
	return samples
}

// structBytes returns the memory of a struct shared with the BPF program.
func structBytes[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
