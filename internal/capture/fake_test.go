//go:build linux

package capture

import (
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"chargetrace/internal/event"
)

// fakeMachine replaces the kernel for a reader: a ring buffer that follows a script, the
// programs' counters, and a clock that only the script advances.
type fakeMachine struct {
	t      *testing.T
	script []step
	nanos  uint64 // since boot
	// log lists calls by the reader, in order.
	log []string

	deadline  time.Time
	memory    []byte // of the last sample
	flushOnce sync.Once
	flushed   chan struct{}

	counters   []bpfCpuState
	unfollowed uint64
	misses     uint64
	// errs are the errors returned by methods, by name.
	errs map[string]error
}

// step is one return of next.
type step struct {
	raw []byte
	err error
	// later: the record arrives only when the reader waits for it.
	later bool
	// before is called while the reader waits.
	before func()
}

// fakeInterval is the reader's interval.
const fakeInterval = 60 * time.Millisecond

// timeout ends an interval: the clock advances to the deadline.
var timeout = step{err: os.ErrDeadlineExceeded}

func sample(e event.Event) step { return step{raw: e.AppendEncoded(nil)} }

func later(e event.Event) step {
	s := sample(e)
	s.later = true
	return s
}

func newMachine(t *testing.T, cpus int, script ...step) *fakeMachine {
	return &fakeMachine{
		t: t, script: script, flushed: make(chan struct{}), errs: make(map[string]error),
		counters: make([]bpfCpuState, cpus),
	}
}

// reader returns a reader of the machine. The trace stops at the end of the script.
func (m *fakeMachine) reader() *reader {
	r := newReader(m, m, clock{m.now, func() uint64 { return m.nanos }}, len(m.counters), fakeInterval)
	m.script = append(m.script, step{err: errFlushed, before: r.Stop})
	return r
}

func (m *fakeMachine) now() time.Time { return time.Unix(0, int64(m.nanos)) }

func (m *fakeMachine) logCall(name string) error {
	m.log = append(m.log, name)
	return m.errs[name]
}

func (m *fakeMachine) setDeadline(d time.Time) {
	m.deadline = d
	if d.IsZero() {
		m.logCall("no deadline")
	} else {
		m.logCall("deadline " + d.Sub(m.now()).String())
	}
}

func (m *fakeMachine) next() ([]byte, error) {
	if len(m.script) == 0 {
		<-m.flushed
		return nil, errFlushed
	}
	s := m.script[0]
	m.script = m.script[1:]
	if s.before != nil {
		s.before()
	}
	if s.err == os.ErrDeadlineExceeded {
		if m.deadline.IsZero() {
			m.t.Fatal("the script ends an interval, but the reader sleeps")
		}
		m.nanos = uint64(m.deadline.UnixNano())
	}
	if s.err != nil {
		return nil, s.err
	}
	m.memory = append(m.memory[:0], s.raw...) // overwrites the last sample
	return m.memory, nil
}

func (m *fakeMachine) available() bool {
	return len(m.script) > 0 && m.script[0].err == nil && !m.script[0].later
}

func (m *fakeMachine) flush() error {
	m.flushOnce.Do(func() { close(m.flushed) })
	return m.logCall("flush")
}

func (m *fakeMachine) setReaderIdle() error { return m.logCall("idle") }
func (m *fakeMachine) detach() error        { return m.logCall("detach") }
func (m *fakeMachine) missed() uint64       { return m.misses }

func (m *fakeMachine) readCounters(cpu int, n *bpfCpuState) error {
	*n = m.counters[cpu]
	return m.errs["counters"]
}

func (m *fakeMachine) readUnfollowed() (uint64, error) { return m.unfollowed, m.errs["unfollowed"] }

// at returns a charge of one page by a thread, nanos after boot.
func at(nanos uint64, cpu, tid uint32) event.Event {
	return event.Event{
		Type: event.Charge, CPU: cpu, BootNanos: nanos, PID: tid, TID: tid, StackPointer: uint64(tid),
		Kind: event.Memory, Outcome: event.OK, RequestedPages: 1,
	}
}

func with(e event.Event, change func(*event.Event)) event.Event {
	change(&e)
	return e
}

// failed returns a failed charge of a batch of pages.
func failed(e event.Event) event.Event {
	e.Outcome, e.RequestedPages = event.Failed, 64
	return e
}

// miss returns a failed charge as a batch miss.
func miss(e event.Event) event.Event {
	e.Outcome = event.BatchMiss
	return e
}

// retry returns the charge after a batch miss.
func retry(e event.Event) event.Event {
	e.Flags |= event.Retry
	return e
}

// losing returns a charge with a total of events lost before it on its CPU.
func losing(e event.Event, total uint64) event.Event {
	e.LostCharges = total
	return e
}

// lost returns the Lost event of n events before a charge.
func lost(charge event.Event, n uint64) event.Event {
	charge.Type, charge.LostCharges = event.Lost, n
	return charge
}

// readAll reads to the end in batches of a length, and returns the events of each Read.
func readAll(t *testing.T, r *reader, length int) (reads [][]event.Event) {
	t.Helper()
	for {
		batch := make([]event.Event, length)
		n, err := r.Read(batch)
		if err == io.EOF && n == 0 {
			return reads
		}
		if err != nil || n == 0 {
			t.Fatalf("read %d events, %v", n, err)
		}
		reads = append(reads, batch[:n])
	}
}

// compare compares the events of each Read.
func compare(t *testing.T, got, want [][]event.Event) {
	t.Helper()
	if slices.EqualFunc(got, want, slices.Equal) {
		return
	}
	t.Errorf("got%s\nwant%s", describe(got), describe(want))
}

func describe(reads [][]event.Event) (s string) {
	for i, events := range reads {
		for _, e := range events {
			s += fmt.Sprintf("\nread %d: type %d at %d, CPU %d, thread %d, %d pages, %v, flags %b, lost %d, stacks %d %d %q",
				i, e.Type, e.BootNanos, e.CPU, e.TID, e.RequestedPages, e.Outcome, e.Flags, e.LostCharges, e.KernelStack, e.UserStack, e.Frames)
		}
	}
	return s
}
