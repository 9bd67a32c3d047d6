package cause

import (
	"strings"

	"chargetrace/internal/event"
)

// A Stack is the functions of a stack. Where it is not known, it is nil.
type Stack struct {
	functions string
	cause     Cause
}

// Functions returns the functions, the innermost first, separated by semicolons and as
// they may be printed. Those of user space have the file that they are in:
// "main.fill [app]".
func (s *Stack) Functions() string {
	if s == nil {
		return ""
	}
	return s.functions
}

// Cause returns what a charge is for that has the stack in the kernel.
func (s *Stack) Cause() Cause {
	if s == nil {
		return Unknown
	}
	return s.cause
}

// Stacks are the stacks of a trace. There is one [Stack] of the same functions,
// whatever the offsets and the numbers, so that what is kept by stack is kept by a
// pointer and not by kilobytes of text. The zero value knows none.
type Stacks struct {
	frames      map[uint32]string // of those that no charge has had
	stacks      map[uint32]*Stack // of the others
	byFunctions map[string]*Stack
}

// Add learns from an event of type [event.Stack].
func (s *Stacks) Add(e *event.Event) {
	if s.frames == nil {
		s.frames, s.stacks, s.byFunctions = make(map[uint32]string), make(map[uint32]*Stack), make(map[string]*Stack)
	}
	s.frames[e.StackNumber] = e.Frames
	delete(s.stacks, e.StackNumber)
}

// Kernel returns the kernel stack of a charge.
func (s *Stacks) Kernel(e *event.Event) *Stack { return s.stack(e.KernelStack, kernelFunction) }

// Cause returns what a charge was for.
func (s *Stacks) Cause(e *event.Event) Cause { return s.Kernel(e).Cause() }

// stack returns the stack of a number, whose kind is known from the charge that has it.
func (s *Stacks) stack(number uint32, function func(frame string) string) *Stack {
	stack := s.stacks[number]
	frames := s.frames[number]
	if stack != nil || frames == "" {
		return stack
	}
	text := event.Printable(strings.Join(functions(frames, function), ";"))
	if stack = s.byFunctions[text]; stack == nil {
		stack = &Stack{text, Of(text)}
		s.byFunctions[text] = stack
	}
	s.stacks[number] = stack
	delete(s.frames, number)
	return stack
}

// functions returns the functions of some frames. Addresses stay as they are.
func functions(frames string, function func(frame string) string) []string {
	names := strings.Split(frames, ";")
	for i, frame := range names {
		names[i] = function(frame)
	}
	return names
}

// kernelFunction leaves out what the compiler has added to a name (.isra.0,
// .constprop.0, .part.0, .cold), the module and the offset.
func kernelFunction(frame string) string {
	f, _, _ := strings.Cut(frame, "+")
	f, _, _ = strings.Cut(f, " ")
	f, _, _ = strings.Cut(f, ".")
	return f
}

// userFunction leaves out the offset, but where that is all that is known.
func userFunction(frame string) string {
	if i := strings.LastIndex(frame, "]+0x"); i > 0 && frame[0] != '[' {
		return frame[:i+1]
	}
	return frame
}
