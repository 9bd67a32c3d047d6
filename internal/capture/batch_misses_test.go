//go:build linux

package capture

import (
	"slices"
	"testing"

	"chargetrace/internal/event"
)

func TestResolveMisses(t *testing.T) {
	charge := func(tid uint32, pages uint64, o event.Outcome) event.Event {
		return event.Event{Type: event.Charge, Kind: event.Memory, TID: tid, StackPointer: uint64(tid), RequestedPages: pages, Outcome: o}
	}
	const ok, failed, miss = event.OK, event.Failed, event.BatchMiss
	elsewhere := charge(1, 1, ok)
	elsewhere.StackPointer = 99
	swap := charge(1, 8, failed)
	swap.Kind = event.Swap
	otherCPU := charge(0, 1, ok)
	otherCPU.CPU = 1
	memsw := charge(1, 2, ok)
	memsw.Kind = event.Memsw
	for _, tc := range []struct {
		name  string
		batch []event.Event
		final int
		want  []event.Outcome // of the charges
	}{
		{name: "empty"},
		{"growth", []event.Event{charge(1, 64, ok), charge(1, 64, ok)}, 2, []event.Outcome{ok, ok}},
		{"miss", []event.Event{charge(1, 64, failed), charge(1, 1, ok)}, 2, []event.Outcome{miss, ok}},
		{"miss and failure", []event.Event{charge(1, 64, failed), charge(1, 1, failed)}, 2, []event.Outcome{miss, failed}},
		{"miss, and failure of more than a page", []event.Event{charge(1, 64, failed), charge(1, 2, failed)}, 2, []event.Outcome{miss, failed}},
		{"the needed pages were in stock", []event.Event{charge(1, 64, failed), charge(1, 64, ok)}, 2, []event.Outcome{miss, ok}},
		{"no batch", []event.Event{charge(1, 512, failed), charge(1, 64, ok)}, 2, []event.Outcome{failed, ok}},
		{"again and again", []event.Event{charge(1, 64, failed), charge(1, 1, ok), charge(1, 64, failed), charge(1, 1, ok)}, 4, []event.Outcome{miss, ok, miss, ok}},
		{"reclaim", []event.Event{charge(1, 64, failed), {Type: event.ReclaimBegin, TID: 1}}, 2, []event.Outcome{failed}},
		{"reclaim of another thread", []event.Event{charge(1, 64, failed), {Type: event.ReclaimBegin, TID: 2}}, 0, []event.Outcome{failed}},
		{"open", []event.Event{charge(2, 64, ok), charge(1, 64, failed), charge(2, 1, ok)}, 1, []event.Outcome{ok, failed, ok}},
		{"two threads", []event.Event{charge(1, 64, failed), charge(2, 64, failed), charge(2, 1, ok), charge(1, 1, ok)}, 4, []event.Outcome{miss, miss, ok, ok}},
		{"an interrupt in between", []event.Event{charge(1, 64, failed), elsewhere, charge(1, 1, ok)}, 3, []event.Outcome{miss, ok, ok}},
		{"from another stack frame", []event.Event{charge(1, 64, failed), elsewhere}, 0, []event.Outcome{failed, ok}},
		{"one page", []event.Event{charge(1, 1, failed)}, 1, []event.Outcome{failed}},
		{"swap has no batches", []event.Event{swap, charge(1, 1, ok)}, 2, []event.Outcome{failed, ok}},
		{"idle on another CPU", []event.Event{charge(0, 64, failed), otherCPU}, 0, []event.Outcome{failed, ok}},
		{"cgroup v1", []event.Event{charge(1, 32, failed), memsw, charge(1, 2, failed)}, 3, []event.Outcome{miss, ok, failed}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := new(batchSize).resolveMisses(tc.batch); got != tc.final {
				t.Errorf("%d are final, want %d", got, tc.final)
			}
			var charges int
			for _, e := range tc.batch {
				if e.Type == event.Charge {
					if e.Outcome != tc.want[charges] {
						t.Errorf("charge %d: %v, want %v", charges, e.Outcome, tc.want[charges])
					}
					charges++
				}
			}
		})
	}
}

// TestBatchSize uses kernels whose batches differ from mainline, or are hard to recognize.
func TestBatchSize(t *testing.T) {
	charges := func(n int, pages uint64, flags event.Flags) []event.Event {
		e := event.Event{Type: event.Charge, Kind: event.Memory, RequestedPages: pages, Outcome: event.OK, Flags: flags}
		return slices.Repeat([]event.Event{e}, n)
	}
	swap := charges(100, 2, 0)
	for i := range swap {
		swap[i].Kind = event.Swap
	}
	for _, tc := range []struct {
		name     string
		b        batchSize
		events   []event.Event
		included []uint64
	}{
		{name: "nothing seen", included: []uint64{32, 64}},
		{name: "little seen", events: charges(1023, 64, 0), included: []uint64{32, 64}},
		{name: "of mainline", events: charges(1024, 64, 0), included: []uint64{64}},
		{name: "of mainline before 6.1", events: charges(1024, 32, 0), included: []uint64{32}},
		{name: "small", events: charges(1024, 16, 0), included: []uint64{16}},
		{name: "large", events: charges(1024, 128, 0), included: []uint64{128}},
		{name: "retries", events: slices.Concat(charges(1024, 64, 0), charges(1024, 1, event.Retry), charges(1024, 4, event.Retry)), included: []uint64{64}},
		{name: "retries whose first try was lost", events: slices.Concat(charges(15, 4, 0), charges(1009, 128, 0)), included: []uint64{128}},
		{name: "single pages", events: slices.Concat(charges(512, 1, 0), charges(512, 16, 0)), included: []uint64{16}},
		{name: "other counters", events: slices.Concat(swap, charges(1024, 64, 0)), included: []uint64{64}},
		{name: "mostly huge pages", events: slices.Concat(charges(1008, 512, 0), charges(16, 64, 0)), included: []uint64{64}},
		{name: "huge pages alone", events: charges(4096, 512, 0), included: []uint64{32, 64}},
		{name: "large folios first", events: slices.Concat(charges(1024, 256, 0), charges(1024, 64, 0)), included: []uint64{64}},
		{name: "large folios last", events: slices.Concat(charges(1024, 64, 0), charges(1024, 256, 0)), included: []uint64{64}},
		{name: "small charges dropped", b: batchSize{fixed: true}, events: charges(1024, 128, 0), included: []uint64{32, 64}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for e := range slices.Chunk(tc.events, 100) {
				tc.b.learn(e)
			}
			var included []uint64
			for pages := range uint64(1 << 13) {
				if tc.b.includes(pages) {
					included = append(included, pages)
				}
			}
			if !slices.Equal(included, tc.included) {
				t.Errorf("batches of %d pages, want %d", included, tc.included)
			}
		})
	}
}

// TestLearnsBatch reads the trace of a kernel that charges 16 pages at once. After the
// reader has learned that, it distinguishes misses from failures.
func TestLearnsBatch(t *testing.T) {
	try := func(i, pages uint64, o event.Outcome) step {
		e := at(i, 0, 7)
		e.RequestedPages, e.Outcome, e.StackPointer = pages, o, 9
		return sample(e)
	}
	var script []step
	for i := range uint64(windowTries) {
		script = append(script, try(i, 16, event.OK))
	}
	script = append(script, try(2000, 16, event.Failed), try(2001, 1, event.Failed), try(2002, 16, event.OK))
	m := newMachine(t, 1, script...)
	var got []event.Event
	for _, batch := range readAll(t, m.reader(), 256) {
		got = append(got, batch...)
	}
	last := got[windowTries:]
	if last[0].Outcome != event.BatchMiss || last[1].Outcome != event.Failed || last[1].Flags&event.Retry == 0 || last[2].Outcome != event.OK {
		t.Errorf("%+v", last)
	}
}
