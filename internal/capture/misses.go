package capture

import "chargetrace/internal/event"

// resolveMisses marks the failed batch charges that were retried smaller as batch misses.
// It returns the number of leading events that are final: the next one waits for the next
// event of its thread.
//
// The kernel charges a batch of pages where it needs fewer. If that fails it looks whether
// an interrupt has left enough in this CPU's stock, and if not, charges what it needs from
// the same place; only then does it reclaim (try_charge_memcg in mm/memcontrol.c). So the
// thread's next event shows which failures count.
func resolveMisses(batch []event.Event) (final int) {
	var open []int // failures that wait for the next event of their thread
	for i := range batch {
		e := &batch[i]
		for j := 0; j < len(open); j++ {
			failed := &batch[open[j]]
			if e.TID != failed.TID || e.TID == 0 && e.CPU != failed.CPU {
				continue
			}
			switch e.Type {
			case event.Charge:
				// From another place, such as an interrupt.
				if e.StackPointer != failed.StackPointer {
					continue
				}
				failed.Outcome = event.BatchMiss
				if e.RequestedPages < failed.RequestedPages {
					e.Flags |= event.Retry
				}
			case event.ReclaimBegin, event.OOMKill:
			default:
				continue
			}
			open = append(open[:j], open[j+1:]...)
			j--
		}
		if mayBeBatchMiss(e) {
			open = append(open, i)
		}
	}
	if len(open) > 0 {
		return open[0]
	}
	return len(batch)
}

// mayBeBatchMiss reports whether a charge failed that may have been of more pages than
// needed. A batch has 64 pages, before 6.1 32 (MEMCG_CHARGE_BATCH).
func mayBeBatchMiss(e *event.Event) bool {
	return e.Type == event.Charge && e.Outcome == event.Failed && (e.RequestedPages == 64 || e.RequestedPages == 32) &&
		e.Flags&event.Retry == 0 && (e.Kind == event.Memory || e.Kind == event.Memsw)
}
