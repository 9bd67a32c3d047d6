package capture

import (
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
		{"what is needed was in stock", []event.Event{charge(1, 64, failed), charge(1, 64, ok)}, 2, []event.Outcome{miss, ok}},
		{"no batch", []event.Event{charge(1, 512, failed), charge(1, 64, ok)}, 2, []event.Outcome{failed, ok}},
		{"again and again", []event.Event{charge(1, 64, failed), charge(1, 1, ok), charge(1, 64, failed), charge(1, 1, ok)}, 4, []event.Outcome{miss, ok, miss, ok}},
		{"reclaim", []event.Event{charge(1, 64, failed), {Type: event.ReclaimBegin, TID: 1}}, 2, []event.Outcome{failed}},
		{"another's reclaim", []event.Event{charge(1, 64, failed), {Type: event.ReclaimBegin, TID: 2}}, 0, []event.Outcome{failed}},
		{"open", []event.Event{charge(2, 64, ok), charge(1, 64, failed), charge(2, 1, ok)}, 1, []event.Outcome{ok, failed, ok}},
		{"two threads", []event.Event{charge(1, 64, failed), charge(2, 64, failed), charge(2, 1, ok), charge(1, 1, ok)}, 4, []event.Outcome{miss, miss, ok, ok}},
		{"an interrupt in between", []event.Event{charge(1, 64, failed), elsewhere, charge(1, 1, ok)}, 3, []event.Outcome{miss, ok, ok}},
		{"not from the same place", []event.Event{charge(1, 64, failed), elsewhere}, 0, []event.Outcome{failed, ok}},
		{"one page", []event.Event{charge(1, 1, failed)}, 1, []event.Outcome{failed}},
		{"swap has no batches", []event.Event{swap, charge(1, 1, ok)}, 2, []event.Outcome{failed, ok}},
		{"idle on another CPU", []event.Event{charge(0, 64, failed), otherCPU}, 0, []event.Outcome{failed, ok}},
		{"cgroup v1", []event.Event{charge(1, 32, failed), memsw, charge(1, 2, failed)}, 3, []event.Outcome{miss, ok, failed}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := resolveMisses(tc.batch); got != tc.final {
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
