package capture

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"chargetrace/internal/event"
)

// Stop detaches the programs, waits until no CPU runs them any more, and lets
// Read come to its end.
func (t *Tracer) Stop() {
	t.stop.Do(func() {
		// No charge begins any more, and then none is under way.
		var begins, rest []attachment
		for _, l := range t.links {
			if l.calls {
				begins = append(begins, l)
			} else {
				rest = append(rest, l)
			}
		}
		t.links = nil
		if err := errors.Join(t.detach(begins), t.detach(rest)); err != nil {
			t.stopErr = fmt.Errorf("detach: %w", err)
		}
		t.stopErr = errors.Join(t.stopErr, t.takeInflight())
		if err := t.ring.Flush(); err != nil {
			t.stopErr = errors.Join(t.stopErr, fmt.Errorf("flush the ring buffer: %w", err))
		}
	})
}

// detach closes links, all at once, since for each the kernel waits a while, and
// returns when none of their programs runs.
func (t *Tracer) detach(links []attachment) error {
	errs := make([]error, len(links))
	var closing sync.WaitGroup
	for i, l := range links {
		if l.calls {
			t.missed += kprobeMissed(l.Link)
		}
		closing.Go(func() { errs[i] = l.Close() })
	}
	closing.Wait()
	waitForPrograms()
	return errors.Join(errs...)
}

// waitForPrograms waits until every CPU has left the programs that it was in.
// They run inside RCU read-side sections, and this waits for all of those
// (kernel/sched/membarrier.c): not where there is one CPU, where they can be under way
// only if one was preempted, nor with nohz_full. To detach the last program of a
// function the kernel waits itself.
func waitForPrograms() {
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
}

// inflightCall is a charge of which only the entry was seen, and what the program has of
// its stacks.
type inflightCall struct {
	charge event.Event
	stacks [][]byte
}

// takeInflight makes the charges of which only the entry was seen left over.
func (t *Tracer) takeInflight() error {
	for cpu := range t.lost {
		var calls bpfCalls
		if err := t.calls.Lookup(uint32(cpu), &calls); err != nil {
			return fmt.Errorf("read the calls under way: %w", err)
		}
		for i := range calls.Call {
			call := &calls.Call[i]
			if call.Stack == 0 {
				continue
			}
			var e event.Event
			if err := e.Decode(structBytes(&call.Event)); err != nil {
				return fmt.Errorf("read the calls under way: %w", err)
			}
			e.Flags |= event.Predicted
			u := inflightCall{charge: e}
			if e.KernelStack != 0 || e.UserStack != 0 {
				var s bpfCallStacks
				if err := t.callStacks.Lookup(call.Stacks, &s); err != nil {
					return fmt.Errorf("read the stacks of the calls under way: %w", err)
				}
				if e.KernelStack != 0 {
					u.stacks = append(u.stacks, structBytes(&s.Kernel)[:stackHeader+8*min(s.KernelFrames, stackDepth)])
				}
				if e.UserStack != 0 {
					u.stacks = append(u.stacks, structBytes(&s.User)[:stackHeader+8*min(s.UserFrames, stackDepth)])
				}
			}
			t.inflight = append(t.inflight, u)
		}
	}
	slices.SortFunc(t.inflight, func(a, b inflightCall) int { return cmp.Compare(a.charge.BootNanos, b.charge.BootNanos) })
	return nil
}

// structBytes returns the memory of a struct that the BPF program shares.
func structBytes[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of include/uapi/linux/membarrier.h.
const membarrierGlobal = 1

// kprobeMissed returns how often the kprobe was hit while a kprobe was being
// handled on that CPU, as far as the kernel tells (6.7 or later).
func kprobeMissed(l link.Link) uint64 {
	info, err := l.Info()
	if err != nil || info.PerfEvent() == nil || info.PerfEvent().Kprobe() == nil {
		return 0
	}
	return info.PerfEvent().Kprobe().Missed
}
