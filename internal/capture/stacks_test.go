//go:build linux

package capture

import (
	"encoding/binary"
	"reflect"
	"strings"
	"testing"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/symbol"
)

// rawStack returns the sample of a stack.
func rawStack(id uint32, of symbol.Process, addresses ...uint64) []byte {
	ne := binary.NativeEndian
	raw := ne.AppendUint32(nil, uint32(bpfEventTypeEVENT_STACK))
	for _, n := range []uint32{id, of.PID, of.Layout} {
		raw = ne.AppendUint32(raw, n)
	}
	for _, a := range addresses {
		raw = ne.AppendUint64(raw, a)
	}
	return raw
}

func TestStacks(t *testing.T) {
	functions, err := symbol.ReadKernel(strings.NewReader("1000 t inner\n2000 t outer\n"))
	if err != nil {
		t.Fatal(err)
	}
	s := &stacks{kernel: functions, numbers: make(map[string]uint32)}
	kernel, user := symbol.Process{}, symbol.Process{PID: 7, Layout: 8}
	deep := make([]uint64, stackDepth)
	for i := range deep {
		deep[i] = 0x2001
	}
	for _, tc := range []struct {
		raw    []byte
		number uint32 // of its event; 0 if the stack is not new
		frames string
	}{
		{rawStack(5, kernel, 0x1001, 0x2002), 1, "inner+0x1;outer+0x2"},
		{rawStack(5, kernel, 0x1001, 0x2002), 0, ""}, // again
		{rawStack(6, user, 0x1001), 2, "0x1001"},     // without a resolver
		{rawStack(9, user, 0x1001), 0, ""},           // another id, the same frames
		{rawStack(10, kernel, deep...), 3, strings.Repeat("outer+0x1;", stackDepth) + "[truncated]"},
		{rawStack(uint32(sentStacks)+6, kernel, 0x3000_0000), 4, "0x30000000"}, // in the slot of another
	} {
		var e event.Event
		isNew, err := s.learn(&e, tc.raw)
		want := event.Event{Type: event.Stack, StackNumber: tc.number, Frames: tc.frames}
		if err != nil || isNew != (tc.number != 0) || isNew && e != want {
			t.Errorf("%v, %v: %+v, want %+v", isNew, err, e, want)
		}
	}
	for _, tc := range []struct{ kernel, user, wantKernel, wantUser uint32 }{
		{5, 9, 1, 2}, {10, 0, 3, 0}, {uint32(sentStacks) + 6, 0, 4, 0},
		{0, 6, 0, 0}, // its slot was taken
		{4711, 9, 0, 2},
	} {
		e := event.Event{KernelStack: tc.kernel, UserStack: tc.user}
		s.number(&e)
		if e.KernelStack != tc.wantKernel || e.UserStack != tc.wantUser {
			t.Errorf("%d, %d are %d, %d, want %d, %d", tc.kernel, tc.user, e.KernelStack, e.UserStack, tc.wantKernel, tc.wantUser)
		}
	}
	if s.missing != 2 {
		t.Errorf("%d are missing, want 2", s.missing)
	}
	for _, raw := range [][]byte{rawStack(1, kernel), rawStack(1, kernel, append(deep, 1)...), rawStack(1, kernel, 1)[:20]} {
		if isNew, err := s.learn(new(event.Event), raw); isNew || err == nil {
			t.Errorf("accepted %d bytes", len(raw))
		}
	}

	// The total size is limited.
	s.bytes = maxStackBytes
	e := event.Event{KernelStack: 77}
	if isNew, err := s.learn(new(event.Event), rawStack(77, kernel, 0x4000_0000)); isNew || err != nil {
		t.Errorf("%v, %v", isNew, err)
	}
	if s.number(&e); e.KernelStack != 0 || s.missing != 3 {
		t.Errorf("number %d, %d are missing", e.KernelStack, s.missing)
	}
}

// TestNamerLate receives an answer too late, and then one in time.
func TestNamerLate(t *testing.T) {
	n := &namer{questions: make(chan question, 1), answers: make(chan answer, 1), timeout: time.Millisecond}
	of := symbol.Process{PID: 7, Layout: 8}
	if got := n.frames(of, []uint64{1, 2}); got != "0x1;0x2" {
		t.Error(got)
	}
	if got := n.frames(of, []uint64{3}); got != "0x3" || n.late != 2 { // sends no question
		t.Errorf("%s, %d late", got, n.late)
	}
	if q := <-n.questions; !reflect.DeepEqual(q, question{of, []uint64{1, 2}}) {
		t.Errorf("%+v", q)
	}
	n.answers <- answer{"late", 0}
	n.timeout = time.Minute
	go func() {
		<-n.questions
		n.answers <- answer{"in time", 3}
	}()
	if got := n.frames(of, []uint64{4}); got != "in time" || n.late != 2 || n.last.unknown != 3 {
		t.Errorf("%s, %d late, %d unknown", got, n.late, n.last.unknown)
	}
}

// TestNamer resolves a stack of a process with an unknown layout.
func TestNamer(t *testing.T) {
	n := newNamer()
	defer n.close()
	n.timeout = time.Minute
	// No process has this layout.
	if got := n.frames(symbol.Process{PID: 1, Layout: 1}, []uint64{0x1000, 0x2000, 0}); got != "0x1000;0x1fff;0x0" || n.last.unknown != 1 {
		t.Errorf("%s, %d unknown", got, n.last.unknown)
	}
}
