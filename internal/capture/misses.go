package capture

import "chargetrace/internal/event"

// resolveMisses tells batch misses from failures in a batch of events, and returns how
// many of its first events are final. The others are to come again, with what
// follows.
//
// The kernel asks for a batch of pages where it needs fewer. If that fails it looks
// whether an interrupt has left what it needs on this CPU, and if not, asks for
// just that, from the same place; only then does it reclaim (try_charge_memcg in
// mm/memcontrol.c). So the thread's next event tells what a failure was.
func resolveMisses(batch []event.Event) (final int) {
	var open []int // those that are not final
	for i := range batch {
		e := &batch[i]
		for j := 0; j < len(open); j++ {
			failed := &batch[open[j]]
			if e.TID != failed.TID || e.TID == 0 && e.CPU != failed.CPU {
				continue
			}
			switch e.Type {
			case event.Charge:
				// Another place: an interrupt's charge, say.
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

// mayBeBatchMiss reports whether the kernel may have asked for more than was
// needed. A batch is of 64 pages, before 6.1 of 32 (MEMCG_CHARGE_BATCH).
func mayBeBatchMiss(e *event.Event) bool {
	return e.Type == event.Charge && e.Outcome == event.Failed && (e.RequestedPages == 64 || e.RequestedPages == 32) &&
		e.Flags&event.Retry == 0 && (e.Kind == event.Memory || e.Kind == event.Memsw)
}
