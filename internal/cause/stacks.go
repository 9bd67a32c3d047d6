package cause

import (
	"slices"
	"strings"

	"chargetrace/internal/event"
)

// A Stack has the functions of a call stack. An unknown stack is nil.
type Stack struct {
	functions string
	cause     Cause
	caller    string
}

// Functions returns the printable names of the functions, separated by semicolons, the
// innermost first. A name of user space includes the file: "main.fill [app]".
func (s *Stack) Functions() string {
	if s == nil {
		return ""
	}
	return s.functions
}

// Cause returns the cause of a charge with this kernel stack.
func (s *Stack) Cause() Cause {
	if s == nil {
		return Unknown
	}
	return s.cause
}

// SlabCaller returns the function that allocates, for the cause [Slab].
func (s *Stack) SlabCaller() string {
	if s == nil {
		return ""
	}
	return s.caller
}

// Stacks are the stacks of a trace. All stacks with the same functions share one
// [Stack], whatever their numbers and offsets. Thus the key of a map by stack is a
// pointer, not kilobytes of text. The zero value is empty.
type Stacks struct {
	frames      map[uint32]string // of stacks without a charge yet
	stacks      map[uint32]*Stack // the other stacks
	byFunctions map[string]*Stack
}

// Add adds the stack of an event of type [event.Stack].
func (s *Stacks) Add(e *event.Event) {
	if s.frames == nil {
		s.frames, s.stacks, s.byFunctions = make(map[uint32]string), make(map[uint32]*Stack), make(map[string]*Stack)
	}
	s.frames[e.StackNumber] = e.Frames
	delete(s.stacks, e.StackNumber)
}

// Replaces reports whether an event of type [event.Stack] may have other frames for a number
// than the event before it.
func (s *Stacks) Replaces(e *event.Event) bool {
	frames, unused := s.frames[e.StackNumber]
	return unused && frames != e.Frames || s.stacks[e.StackNumber] != nil
}

// Kernel returns the kernel stack of a charge.
func (s *Stacks) Kernel(e *event.Event) *Stack { return s.stack(e.KernelStack, kernelFunction) }

// Cause returns the cause of a charge.
func (s *Stacks) Cause(e *event.Event) Cause { return s.Kernel(e).Cause() }

// stack returns the stack with a number. function shortens its frames: only the charge
// says whether it is a kernel stack or a user stack.
func (s *Stacks) stack(number uint32, function func(frame string) string) *Stack {
	stack := s.stacks[number]
	frames := s.frames[number]
	if stack != nil || frames == "" {
		return stack
	}
	text := event.Printable(strings.Join(functions(frames, function), ";"))
	if stack = s.byFunctions[text]; stack == nil {
		stack = &Stack{functions: text, cause: Of(text)}
		if stack.cause == Slab {
			names := strings.Split(text, ";")
			stack.caller = slabCaller(names[slices.IndexFunc(names, isSlab):])
		}
		s.byFunctions[text] = stack
	}
	s.stacks[number] = stack
	delete(s.frames, number)
	return stack
}

func isSlab(function string) bool {
	c, ok := rule(function)
	return ok && c == Slab
}

// functions applies function to each frame.
func functions(frames string, function func(frame string) string) []string {
	names := strings.Split(frames, ";")
	for i, frame := range names {
		names[i] = function(frame)
	}
	return names
}

// kernelFunction removes the suffixes of the compiler (.isra.0, .constprop.0, .part.0,
// .cold), the module and the offset. It does not change addresses.
func kernelFunction(frame string) string {
	f, _, _ := strings.Cut(frame, "+")
	f, _, _ = strings.Cut(f, " ")
	f, _, _ = strings.Cut(f, ".")
	return f
}

// userFunction removes the offset of a frame with a function.
func userFunction(frame string) string {
	if i := strings.LastIndex(frame, "]+0x"); i > 0 && frame[0] != '[' {
		return frame[:i+1]
	}
	return frame
}
