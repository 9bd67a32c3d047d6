//go:build linux

package capture

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/symbol"
)

// TestLoss checks that each lost event is reported once: before the next charge of its CPU,
// or at the end.
func TestLoss(t *testing.T) {
	for _, tc := range []struct {
		name     string
		script   []step
		counters []bpfCpuState // at the end
		want     []event.Event
	}{
		{
			name:     "none",
			script:   []step{sample(at(1, 0, 7)), sample(at(2, 1, 8))},
			counters: make([]bpfCpuState, 2),
			want:     []event.Event{at(1, 0, 7), at(2, 1, 8)},
		},
		{
			name: "before a charge, and not again before the next",
			script: []step{
				sample(at(1, 0, 7)), sample(losing(at(2, 0, 7), 3)), sample(losing(at(3, 0, 7), 3)), sample(losing(at(4, 0, 7), 5)),
			},
			counters: []bpfCpuState{{Lost: 5}, {}},
			want: []event.Event{
				at(1, 0, 7), lost(at(2, 0, 7), 3), losing(at(2, 0, 7), 3), losing(at(3, 0, 7), 3),
				lost(at(4, 0, 7), 2), losing(at(4, 0, 7), 5),
			},
		},
		{
			name:     "separate for each CPU",
			script:   []step{sample(losing(at(1, 1, 7), 3)), sample(losing(at(2, 0, 7), 2)), sample(losing(at(3, 1, 7), 4))},
			counters: []bpfCpuState{{Lost: 2}, {Lost: 4}},
			want: []event.Event{
				lost(at(1, 1, 7), 3), losing(at(1, 1, 7), 3), lost(at(2, 0, 7), 2), losing(at(2, 0, 7), 2),
				lost(at(3, 1, 7), 1), losing(at(3, 1, 7), 4),
			},
		},
		{
			name:     "at the end, if no charge followed",
			script:   []step{sample(losing(at(1, 0, 7), 3)), timeout},
			counters: []bpfCpuState{{Lost: 4}, {Lost: 10}},
			want: []event.Event{
				lost(at(1, 0, 7), 3), losing(at(1, 0, 7), 3),
				{Type: event.Lost, BootNanos: uint64(fakeInterval), LostCharges: 11},
			},
		},
		{
			name:     "nothing else",
			counters: []bpfCpuState{{}, {Lost: 1}},
			want:     []event.Event{{Type: event.Lost, LostCharges: 1}},
		},
		{
			name:     "not before an event of another type",
			script:   []step{sample(event.Event{Type: event.ReclaimBegin, TID: 7}), sample(losing(at(1, 0, 7), 1))},
			counters: []bpfCpuState{{Lost: 1}, {}},
			want:     []event.Event{{Type: event.ReclaimBegin, TID: 7}, lost(at(1, 0, 7), 1), losing(at(1, 0, 7), 1)},
		},
	} {
		for _, length := range []int{1, 2, 256} { // some batches end between loss and charge
			t.Run(tc.name, func(t *testing.T) {
				m := newMachine(t, 2, slices.Clone(tc.script)...)
				m.counters = tc.counters
				got := slices.Concat(readAll(t, m.reader(), length)...)
				compare(t, [][]event.Event{got}, [][]event.Event{tc.want})
			})
		}
	}
}

// TestPending checks how long a failed batch charge waits for the next event of its thread.
func TestPending(t *testing.T) {
	intervals := func(n int) []step { return slices.Repeat([]step{timeout}, n) }
	const ms = uint64(time.Millisecond)
	first, second := failed(at(1, 0, 7)), at(2, 0, 7)
	other := at(3, 1, 8)
	for _, tc := range []struct {
		name   string
		script []step
		length int
		want   [][]event.Event // of each Read
	}{
		{
			name:   "resolved in one read",
			script: []step{sample(first), sample(second)},
			want:   [][]event.Event{{miss(first), retry(second)}},
		},
		{
			name:   "by a later record, with events in between",
			script: []step{sample(other), sample(first), sample(other), later(second)},
			want:   [][]event.Event{{other}, {miss(first), other, retry(second)}},
		},
		{
			name:   "across intervals",
			script: slices.Concat([]step{sample(first)}, intervals(10), []step{later(second)}),
			want:   [][]event.Event{{miss(first), retry(second)}},
		},
		{
			name:   "until maxPending has passed",
			script: slices.Concat([]step{sample(first)}, intervals(33), []step{later(other)}, intervals(1), []step{later(second)}),
			want:   [][]event.Event{{first, other}, {second}},
		},
		{
			// The second failure is younger, and stays pending.
			name: "separately",
			script: slices.Concat([]step{sample(first), sample(failed(at(1900*ms, 1, 8)))}, intervals(34),
				[]step{later(at(2100*ms, 1, 8))}),
			want: [][]event.Event{{first}, {miss(failed(at(1900*ms, 1, 8))), retry(at(2100*ms, 1, 8))}},
		},
		{
			name:   "until the end of the trace",
			script: []step{sample(first), sample(other)},
			want:   [][]event.Event{{first, other}},
		},
		{
			name:   "until the batch is full",
			script: []step{sample(first), sample(other), sample(other), sample(second)},
			length: 3,
			want:   [][]event.Event{{first, other, other}, {second}},
		},
		{
			name:   "until the batch is full, separately",
			script: []step{sample(first), sample(other), sample(failed(at(4, 1, 8))), sample(at(5, 1, 8)), sample(second)},
			length: 3,
			want:   [][]event.Event{{first, other}, {miss(failed(at(4, 1, 8))), retry(at(5, 1, 8)), second}},
		},
		{
			name:   "across batches",
			script: []step{sample(other), sample(other), sample(first), sample(second), sample(other)},
			length: 3,
			want:   [][]event.Event{{other, other}, {miss(first), retry(second), other}},
		},
		{
			name:   "while events are lost",
			script: []step{sample(first), sample(losing(second, 2))},
			want:   [][]event.Event{{miss(first), lost(second, 2), losing(retry(second), 2)}},
		},
		{
			name:   "resolved by reclaim",
			script: []step{sample(first), later(event.Event{Type: event.ReclaimBegin, TID: 7})},
			want:   [][]event.Event{{first, {Type: event.ReclaimBegin, TID: 7}}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t, 2, tc.script...)
			m.counters[0].Lost = func() (n uint64) {
				for _, e := range slices.Concat(tc.want...) {
					n = max(n, e.LostCharges)
				}
				return n
			}()
			length := tc.length
			if length == 0 {
				length = 256
			}
			compare(t, readAll(t, m.reader(), length), tc.want)
			if slices.Contains(m.log, "idle") || slices.Contains(m.log, "no deadline") {
				t.Errorf("slept: %q", m.log)
			}
		})
	}
}

// TestSleep checks when the reader asks to be woken, and its deadlines.
func TestSleep(t *testing.T) {
	const interval = "deadline 60ms"
	end := []string{"detach", "flush"}
	e := at(1, 0, 7)
	for _, tc := range []struct {
		name   string
		script []step
		want   []string // between the first deadline and the end
	}{
		{"events in each interval", []step{sample(e), timeout, later(e), timeout, later(e)}, []string{interval, interval}},
		{"one idle interval", []step{sample(e), timeout, timeout, later(e), timeout}, []string{interval, "idle", interval, interval}},
		{"asleep", []step{sample(e), timeout, timeout, timeout}, []string{interval, "idle", interval, "no deadline"}},
		{"asleep from the start", []step{timeout, timeout, timeout}, []string{interval, "idle", interval, "no deadline"}},
		{
			"woken", []step{sample(e), timeout, timeout, timeout, later(e), later(e), timeout, timeout, timeout, later(e), timeout},
			[]string{interval, "idle", interval, "no deadline", interval, interval, "idle", interval, "no deadline", interval, interval},
		},
		{
			"woken by an event of another type", []step{timeout, timeout, timeout, later(event.Event{Type: event.Fork}), timeout},
			[]string{interval, "idle", interval, "no deadline", interval, interval},
		},
		{
			// From a program that did not see reader_idle yet.
			"an event after the request", []step{timeout, timeout, later(e), timeout, timeout, timeout},
			[]string{interval, "idle", interval, interval, "idle", interval, "no deadline"},
		},
		{
			"not while a charge is pending", []step{sample(failed(e)), timeout, timeout, timeout, timeout, later(e), timeout, timeout},
			[]string{interval, interval, interval, interval, interval, "idle", interval},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t, 1, tc.script...)
			readAll(t, m.reader(), 256)
			if want := slices.Concat([]string{interval}, tc.want, end); !slices.Equal(m.log, want) {
				t.Errorf("got  %q\nwant %q", m.log, want)
			}
		})
	}
}

// TestReadAvailable checks that Read does not wait while it has events, and does not return
// before the ring buffer is empty.
func TestReadAvailable(t *testing.T) {
	a, b, c := at(1, 0, 7), at(2, 0, 7), at(3, 0, 7)
	m := newMachine(t, 1, sample(a), sample(b), later(c))
	compare(t, readAll(t, m.reader(), 256), [][]event.Event{{a, b}, {c}})
}

// TestReadLess reads into a batch that the pending events fill.
func TestReadLess(t *testing.T) {
	a, b, c := failed(at(1, 0, 7)), at(2, 0, 8), at(3, 0, 7)
	m := newMachine(t, 1, sample(at(0, 0, 9)), sample(a), sample(b), later(c))
	r := m.reader()
	batch := make([]event.Event, 8)
	if n, err := r.Read(batch); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	compare(t, readAll(t, r, 2), [][]event.Event{{a, b}, {c}})
}

// TestStop stops while events are in the ring buffer: all of them must be read.
func TestStop(t *testing.T) {
	a, b, c := at(1, 0, 7), failed(at(2, 0, 7)), at(3, 0, 7)
	m := newMachine(t, 2)
	r := m.reader()
	m.script = []step{sample(a), {raw: b.AppendEncoded(nil), before: r.Stop}, later(c), {err: errFlushed}}
	compare(t, readAll(t, r, 256), [][]event.Event{{a}, {miss(b), retry(c)}})
	r.Stop()
	if want := []string{"deadline 60ms", "detach", "flush"}; !slices.Equal(m.log, want) {
		t.Errorf("got %q, want %q", m.log, want)
	}
	for range 2 {
		if n, err := r.Read(make([]event.Event, 1)); n != 0 || err != io.EOF {
			t.Errorf("after the end: %d, %v", n, err)
		}
	}
}

// TestStopElsewhere stops from other goroutines while Read waits.
func TestStopElsewhere(t *testing.T) {
	m := newMachine(t, 1)
	r := m.reader()
	m.script = nil // wait for Flush
	m.counters[0].Lost = 2
	var stopping sync.WaitGroup
	for range 3 {
		stopping.Go(r.Stop)
	}
	compare(t, readAll(t, r, 256), [][]event.Event{{{Type: event.Lost, LostCharges: 2}}})
	stopping.Wait()
	if n := slices.Index(m.log, "detach"); n < 0 || slices.Contains(m.log[n+1:], "detach") {
		t.Errorf("%q", m.log)
	}
}

func TestStopFails(t *testing.T) {
	for name, message := range map[string]string{
		"detach": "detach: broken", "flush": "flush the ring buffer: broken",
		"counters": "read the counters: broken", "unfollowed": "read the counters: broken",
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, 1)
			m.errs[name] = errors.New("broken")
			r := m.reader()
			if n, err := r.Read(make([]event.Event, 1)); n != 0 || err == nil || err.Error() != message {
				t.Errorf("read %d, %v", n, err)
			}
			if !slices.Contains(m.log, "flush") {
				t.Errorf("stopped before flush: %q", m.log)
			}
			if r.stopErr != nil {
				t.Errorf("Close would return it again: %v", r.stopErr)
			}
		})
	}
}

func TestReadFails(t *testing.T) {
	broken := errors.New("broken")
	for _, tc := range []struct {
		name    string
		script  []step
		fails   string // the call that fails
		message string
	}{
		{name: "the ring", script: []step{{err: broken}}, message: "read the ring buffer: broken"},
		{name: "the ring, after an event", script: []step{sample(failed(at(1, 0, 7))), {err: broken}}, message: "read the ring buffer: broken"},
		{name: "an unknown type", script: []step{{raw: binary.NativeEndian.AppendUint32(nil, 99)}}, message: "read the ring buffer: event of unknown type 99"},
		{name: "a short sample", script: []step{{raw: []byte{1, 0}}}, message: "read the ring buffer: event of only 2 bytes"},
		{name: "a CPU too many", script: []step{sample(at(1, 2, 7))}, message: "read the ring buffer: event of CPU 2 of 2"},
		{name: "a stack without options for stacks", script: []step{{raw: rawStack(1, symbol.Process{}, 2)}}, message: "read the ring buffer: event of unknown type 12"},
		{name: "going to sleep", script: []step{timeout, timeout}, fails: "idle", message: "set the reader idle: broken"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t, 2, tc.script...)
			m.errs[tc.fails] = broken
			if n, err := m.reader().Read(make([]event.Event, 8)); n != 0 || err == nil || err.Error() != tc.message {
				t.Errorf("read %d, %v; want %s", n, err, tc.message)
			}
		})
	}
}

// TestReadStacks checks that stacks are numbered in order of their first samples.
func TestReadStacks(t *testing.T) {
	charge := func(kernel, user uint32) event.Event {
		return with(at(1, 0, 7), func(e *event.Event) { e.KernelStack, e.UserStack = kernel, user })
	}
	raw := func(id uint32, address uint64) step {
		return step{raw: rawStack(id, symbol.Process{PID: 7, Layout: 1}, address)}
	}
	stack := func(number uint32, frames string) event.Event {
		return event.Event{Type: event.Stack, StackNumber: number, Frames: frames}
	}
	m := newMachine(t, 1,
		raw(70, 0xa), raw(71, 0xb), sample(charge(70, 71)),
		raw(70, 0xa), sample(charge(70, 0)), // sent again
		sample(losing(charge(72, 71), 1)), // the sample of 72 was lost
	)
	m.counters[0] = bpfCpuState{Lost: 1, LostStacks: 3}
	r := m.reader()
	r.stacks = &stacks{numbers: make(map[string]uint32)}
	compare(t, readAll(t, r, 256), [][]event.Event{{
		stack(1, "0xa"), stack(2, "0xb"), charge(1, 2), charge(1, 0), lost(charge(0, 2), 1), losing(charge(0, 2), 1),
	}})
	r.stacks.programs = &namer{late: 2, last: answer{unknown: 5}}
	if counts, err := r.Counts(); err != nil || counts != (stream.Counts{Whole: true, Seen: 1, Lost: 1, LostStacks: 4, UnnamedProcesses: 7}) {
		t.Errorf("%+v, %v", counts, err)
	}

	m = newMachine(t, 1, step{raw: rawStack(1, symbol.Process{})})
	r = m.reader()
	r.stacks = &stacks{numbers: make(map[string]uint32)}
	if _, err := r.Read(make([]event.Event, 1)); err == nil || err.Error() != "read the ring buffer: a stack of 16 bytes" {
		t.Error(err)
	}
}

// TestCounts checks the sums of the programs' counters, also before the end of the trace.
func TestCounts(t *testing.T) {
	m := newMachine(t, 3)
	m.counters = []bpfCpuState{
		{Delivered: 1, Filtered: 10, Lost: 100, LostOthers: 1000, LostStacks: 10_000, Missed: 100, Inflight: 10_000},
		{Delivered: 2, Filtered: 20, Lost: 200, LostOthers: 2000, LostStacks: 20_000, Missed: 200, Inflight: 20_000},
		{Delivered: 3, Filtered: 30, Lost: 300, LostOthers: 3000, LostStacks: 30_000, Missed: 300, Inflight: 30_000},
	}
	m.misses, m.unfollowed = 7, 8
	r := m.reader()
	counts, err := r.Counts()
	want := stream.Counts{Whole: true, Seen: 666, Filtered: 60, Lost: 600, LostNonCharge: 6000, Missed: 607, Unfollowed: 8, LostStacks: 60_000}
	if err != nil || counts != want {
		t.Errorf("%+v, %v", counts, err)
	}
	// At the end, the returns of the calls in flight have not been seen.
	readAll(t, r, 8)
	want.Missed += 60_000
	if counts, err = r.Counts(); err != nil || counts != want {
		t.Errorf("at the end: %+v, %v", counts, err)
	}
}
