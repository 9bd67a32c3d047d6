package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/cilium/ebpf"

	"chargetrace/internal/event"
	"chargetrace/internal/symbol"
)

// stackDepth is STACK_DEPTH of the BPF program, and maxStacks how many different
// stacks of either kind there can be: the numbers that the program gives to them
// are 1 to maxStacks.
const (
	stackDepth = 64
	maxStacks  = 1 << 14
)

// stacks names those of a trace.
//
// The kernel's have in the trace the numbers that the program gives to them. Two
// processes can have the same addresses in different programs, and different ones
// in the same: the number of a user stack in the trace is that of its names.
type stacks struct {
	kernel, user *ebpf.Map // nil: they are not taken
	functions    functions
	told         [maxStacks + 1]bool // kernel stacks

	programs *symbol.Resolver // nil: those of other processes cannot be looked at
	users    map[userStack]uint32
	named    map[string]uint32 // user stacks by their frames
	// unnumbered is how many user stacks were left out: there were too many.
	unnumbered uint64
}

// userStack is what the program knows a user stack by.
type userStack struct {
	symbol.Process
	number uint32
}

func newStacks(o *Options, coll *ebpf.Collection) (*stacks, error) {
	s := new(stacks)
	if o.KernelStacks {
		s.kernel = coll.DetachMap(bpfMapKernelStacks)
		f, err := os.Open("/proc/kallsyms")
		if err != nil {
			return s, fmt.Errorf("read the kernel's symbols: %w", err)
		}
		defer f.Close()
		if s.functions, err = parseSymbols(f); err != nil {
			return s, fmt.Errorf("read the kernel's symbols: %w", err)
		}
	}
	if o.UserStacks {
		s.user = coll.DetachMap(bpfMapUserStacks)
		s.users, s.named = make(map[userStack]uint32), make(map[string]uint32)
		// Elsewhere /proc has other numbers than events.
		if inInitialPIDNamespace() {
			s.programs = symbol.NewResolver()
		}
	}
	return s, nil
}

func (s *stacks) close() error { return errors.Join(s.kernel.Close(), s.user.Close()) }

func (s *stacks) unnamed() uint64 {
	if s.programs == nil {
		return 0
	}
	return s.programs.Unknown()
}

// tell appends to dst events that tell of the stacks of a charge that have not been
// told of, and makes the number of its user stack that which it has in the trace.
func (s *stacks) tell(dst []event.Event, e *event.Event) ([]event.Event, error) {
	if n := e.KernelStack; n != 0 && !s.told[n] {
		addresses, err := readStack(s.kernel, n)
		if err != nil {
			return dst, err
		}
		var frames []byte
		for i, address := range addresses {
			if i > 0 {
				frames = append(frames, ';')
			}
			frames = s.functions.appendFrame(frames, address)
		}
		s.told[n] = true
		dst = append(dst, event.Event{Type: event.Stack, StackNumber: n, Frames: string(frames)})
	}
	if e.UserStack == 0 {
		return dst, nil
	}
	key := userStack{symbol.Process{PID: e.PID, Layout: e.Layout}, e.UserStack}
	number, ok := s.users[key]
	if !ok {
		frames, err := s.userFrames(key)
		if err != nil {
			return dst, err
		}
		number, ok = s.named[frames]
		if !ok && len(s.named) < maxStacks {
			number = uint32(maxStacks + 1 + len(s.named))
			s.named[frames] = number
			dst = append(dst, event.Event{Type: event.Stack, StackNumber: number, Frames: frames})
		}
		if len(s.users) == maxUsers {
			clear(s.users)
		}
		s.users[key] = number
	}
	if number == 0 {
		s.unnumbered++
	}
	e.UserStack, e.Layout = number, 0
	return dst, nil
}

// maxUsers is how many user stacks of processes are remembered, and maxLayouts how
// many layouts the program knows to have been told of.
const (
	maxUsers   = 1 << 18
	maxLayouts = 1 << 12
)

func (s *stacks) userFrames(of userStack) (string, error) {
	addresses, err := readStack(s.user, of.number)
	if err != nil {
		return "", err
	}
	var frames []byte
	for i, address := range addresses {
		if i > 0 {
			frames = append(frames, ';')
			address-- // where it returns to may be the next function
		}
		if s.programs == nil {
			frames = strconv.AppendUint(append(frames, "0x"...), address, 16)
			continue
		}
		frames = s.programs.AppendFrame(frames, of.Process, address)
	}
	return string(frames), nil
}

// readStack reads the addresses of a stack, by the number that the program gave it.
func readStack(m *ebpf.Map, number uint32) ([]uint64, error) {
	var raw [stackDepth * 8]byte
	if err := m.Lookup(number-1, &raw); err != nil {
		return nil, fmt.Errorf("read a stack: %w", err)
	}
	var addresses []uint64
	for b := raw[:]; len(b) > 0; b = b[8:] {
		address := binary.NativeEndian.Uint64(b)
		if address == 0 {
			break
		}
		addresses = append(addresses, address)
	}
	return addresses, nil
}
