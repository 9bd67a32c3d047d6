//go:build linux

package capture

import (
	"math/bits"

	"chargetrace/internal/event"
)

// batchSize learns the number of pages that the kernel charges at once if it needs fewer.
// That is MEMCG_CHARGE_BATCH, a constant that is not in BTF: 32 pages in mainline, and 64
// since Linux 6.1.
//
// A first try never requests fewer pages than a batch, and more only if needed, such as for
// a huge page. So the batch is the smallest common first try: a rare smaller one is a retry
// whose first try was lost.
type batchSize struct {
	// pages is the batch, or 0 while it is unknown; then 32 and 64 both count as a batch.
	pages uint64
	// tries counts the first tries in this window, and ofPages those of 2, 4, 8, ... pages.
	tries   uint64
	ofPages [maxBatchBits + 1]uint64
	// fixed is set if the source drops some first tries, so that nothing can be learned.
	fixed bool
}

const (
	// maxBatchBits bounds a batch to 256 pages.
	maxBatchBits = 8
	// A size is common if it has minBatches of the first tries in a window.
	windowTries, minBatches = 1024, 16
)

// learn counts the first tries among final events.
func (b *batchSize) learn(events []event.Event) {
	for i := range events {
		e := &events[i]
		if e.Type != event.Charge || !isFirstTry(e) {
			continue
		}
		if pages := e.RequestedPages; bits.OnesCount64(pages) == 1 && pages < 2<<maxBatchBits {
			b.ofPages[bits.TrailingZeros64(pages)]++
		}
		if b.tries++; b.tries == windowTries {
			b.endWindow()
		}
	}
}

// endWindow updates the batch at the end of a window. A later window can only reduce it: a
// program that uses only large folios charges no batches.
func (b *batchSize) endWindow() {
	for n := 1; n <= maxBatchBits; n++ {
		if pages := uint64(1) << n; b.ofPages[n] >= minBatches && !b.fixed {
			if b.pages == 0 || pages < b.pages {
				b.pages = pages
			}
			break
		}
	}
	b.tries, b.ofPages = 0, [maxBatchBits + 1]uint64{}
}

// includes reports whether a charge of a number of pages may be a batch.
func (b *batchSize) includes(pages uint64) bool {
	if b.pages == 0 {
		return pages == 64 || pages == 32
	}
	return pages == b.pages
}

// isFirstTry reports whether a charge may be the first try of a batch.
func isFirstTry(e *event.Event) bool {
	return e.Flags&event.Retry == 0 && (e.Kind == event.Memory || e.Kind == event.Memsw)
}

// resolveMisses marks the failed batch charges that were retried smaller as batch misses.
// It returns the number of leading events that are final: the next one waits for the next
// event of its thread.
//
// The kernel charges a batch of pages if it needs fewer. If that fails, it checks whether an
// interrupt has left enough in this CPU's stock, and if not, charges the needed pages from
// the same stack frame; only then does it reclaim (try_charge_memcg in mm/memcontrol.c). So
// the thread's next event shows whether a failure is final.
func (b *batchSize) resolveMisses(events []event.Event) (final int) {
	var open []int // failures that wait for the next event of their thread
	for i := range events {
		e := &events[i]
		for j := 0; j < len(open); j++ {
			failed := &events[open[j]]
			if e.TID != failed.TID || e.TID == 0 && e.CPU != failed.CPU {
				continue
			}
			switch e.Type {
			case event.Charge:
				// A call from another stack frame, such as in an interrupt.
				if e.StackPointer != failed.StackPointer {
					continue
				}
				failed.Outcome = event.BatchMiss
				if e.RequestedPages < failed.RequestedPages {
					e.Flags |= event.Retry
				}
			case event.ReclaimBegin, event.OOM, event.OOMKill:
			default:
				continue
			}
			open = append(open[:j], open[j+1:]...)
			j--
		}
		if b.mayMiss(e) {
			open = append(open, i)
		}
	}
	if len(open) > 0 {
		return open[0]
	}
	return len(events)
}

// mayMiss reports whether a charge failed that may have requested more pages than needed.
func (b *batchSize) mayMiss(e *event.Event) bool {
	return e.Type == event.Charge && e.Outcome == event.Failed && isFirstTry(e) && b.includes(e.RequestedPages)
}
