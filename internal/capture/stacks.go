//go:build linux

package capture

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"chargetrace/internal/event"
	"chargetrace/internal/symbol"
)

const (
	stackDepth = len(bpfStackEvent{}.Address)
	// stackHeader is the size of a stack's sample without its addresses.
	stackHeader = int(unsafe.Offsetof(bpfStackEvent{}.Address))
	// sentStacks is the number of slots of the program's map sent_stacks.
	sentStacks = int(bpfStackSlotsSENT_STACKS)
	// maxStacks and maxStackBytes limit the different stacks of a trace.
	maxStacks     = 1 << 16
	maxStackBytes = 64 << 20
)

// stacks resolves the stacks of a trace.
//
// The program sends the addresses of a stack before the first charge with its id, and again
// if another stack took its slot in sent_stacks; sent has the same slots. In the trace a
// stack has a number per resolved frames, not per addresses: two processes can have the
// same frames at different addresses, and different frames at the same addresses.
type stacks struct {
	kernel   symbol.Kernel
	programs *namer // nil: user stacks stay addresses

	sent    [sentStacks]struct{ id, number uint32 }
	numbers map[string]uint32 // by frames
	bytes   int               // of all frames
	// missing counts stacks left out of charges: there were too many different ones, or
	// their sample was lost.
	missing uint64
}

func newStacks(o *Options) (*stacks, error) {
	s := &stacks{numbers: make(map[string]uint32)}
	if o.KernelStacks {
		f, err := os.Open("/proc/kallsyms")
		if err != nil {
			return nil, fmt.Errorf("read the kernel's symbols: %w", err)
		}
		defer f.Close()
		if s.kernel, err = symbol.ReadKernel(f); err != nil {
			return nil, fmt.Errorf("read the kernel's symbols: %w", err)
		}
	}
	// Events have pids of the initial namespace, but /proc may belong to another one.
	if o.UserStacks && inInitialPIDNamespace() {
		s.programs = newNamer()
	}
	return s, nil
}

// isStack reports whether a sample is a stack.
func isStack(raw []byte) bool {
	return len(raw) >= 4 && bpfEventType(binary.NativeEndian.Uint32(raw)) == bpfEventTypeEVENT_STACK
}

// learn resolves the stack in a sample. If its frames are new, it sets e to their event.
func (s *stacks) learn(e *event.Event, raw []byte) (isNew bool, err error) {
	ne := binary.NativeEndian
	if len(raw) <= stackHeader || len(raw) > stackHeader+8*stackDepth || len(raw)%8 != 0 {
		return false, fmt.Errorf("a stack of %d bytes", len(raw))
	}
	id := ne.Uint32(raw[4:])
	of := symbol.Process{PID: ne.Uint32(raw[8:]), Layout: ne.Uint32(raw[12:])}
	var addresses []uint64
	for b := raw[stackHeader:]; len(b) > 0; b = b[8:] {
		addresses = append(addresses, ne.Uint64(b))
	}
	var frames string
	switch {
	case of.Layout == 0:
		frames = kernelFrames(&s.kernel, addresses)
	case s.programs == nil:
		frames = plainFrames(addresses)
	default:
		frames = s.programs.frames(of, addresses)
	}
	if len(addresses) == stackDepth {
		frames += ";[truncated]"
	}
	number, ok := s.numbers[frames]
	if !ok && len(s.numbers) < maxStacks && s.bytes < maxStackBytes {
		number = uint32(len(s.numbers) + 1)
		s.numbers[frames] = number
		s.bytes += len(frames)
		*e = event.Event{Type: event.Stack, StackNumber: number, Frames: frames}
		isNew = true
	}
	slot := &s.sent[id%uint32(sentStacks)]
	slot.id, slot.number = id, number
	return isNew, nil
}

// number replaces the ids of a charge's stacks by their numbers in the trace.
func (s *stacks) number(e *event.Event) {
	for _, stack := range []*uint32{&e.KernelStack, &e.UserStack} {
		if *stack == 0 {
			continue
		}
		slot := &s.sent[*stack%uint32(sentStacks)]
		if slot.id != *stack || slot.number == 0 {
			s.missing++
			*stack = 0
			continue
		}
		*stack = slot.number
	}
}

// kernelFrames resolves the addresses of a kernel stack; see [event.Event.Frames].
func kernelFrames(kernel *symbol.Kernel, addresses []uint64) string {
	var frames []byte
	for i, address := range addresses {
		if i > 0 {
			frames = append(frames, ';')
		}
		frames = kernel.AppendFrame(frames, address)
	}
	return string(frames)
}

func plainFrames(addresses []uint64) string {
	var frames []string
	for _, address := range addresses {
		frames = append(frames, "0x"+strconv.FormatUint(address, 16))
	}
	return strings.Join(frames, ";")
}

// namer resolves user stacks in its own goroutine. It reads files that the traced processes
// control, and a FUSE file system may never answer; the reader of the ring buffer must not
// wait long.
type namer struct {
	questions chan question
	answers   chan answer
	timeout   time.Duration // of an answer
	// busy is set from a timeout until the late answer arrives.
	busy bool
	last answer
	// late counts stacks that were not resolved in time.
	late uint64
}

type question struct {
	of        symbol.Process
	addresses []uint64
}

type answer struct {
	frames string
	// unknown is the Resolver's Unknown.
	unknown uint64
}

func newNamer() *namer {
	// Reading a program of 100 MB takes a tenth of a second.
	n := &namer{questions: make(chan question), answers: make(chan answer, 1), timeout: 2 * time.Second}
	go func() {
		defer Prioritize()() // the reader waits for answers, and the process may exit soon
		r := symbol.NewResolver()
		for q := range n.questions {
			var frames []byte
			for i, address := range q.addresses {
				if i > 0 {
					frames = append(frames, ';')
					address -= min(address, 1) // the return address of a function's last call is in the next one
				}
				frames = r.AppendFrame(frames, q.of, address)
			}
			n.answers <- answer{string(frames), r.Unknown()}
		}
	}()
	return n
}

func (n *namer) frames(of symbol.Process, addresses []uint64) string {
	if n.busy {
		select {
		case n.last = <-n.answers:
			n.busy = false
		default:
			n.late++
			return plainFrames(addresses)
		}
	}
	n.questions <- question{of, addresses}
	timer := time.NewTimer(n.timeout)
	defer timer.Stop()
	select {
	case n.last = <-n.answers:
		return n.last.frames
	case <-timer.C:
		n.busy = true
		n.late++
		return plainFrames(addresses)
	}
}

func (n *namer) close() { close(n.questions) }
