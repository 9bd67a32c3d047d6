//go:build linux

package capture

import (
	"math/bits"

	"chargetrace/internal/event"
)

// batchSize learns how many pages the kernel charges at once where it needs fewer. That is
// MEMCG_CHARGE_BATCH, a constant that is not in BTF: in mainline 32 pages, and 64 since
// Linux 6.1.
//
// A first try never asks for fewer pages than a batch, and for more only where so many are
// needed, such as for a huge page. So a batch is the smallest first try that is common: a
// rare smaller one is a retry whose first try was lost.
type batchSize struct {
	// pages is 0 until it is known; then 32 and 64 both count as a batch.
	pages uint64
	// tries are the first tries in this window, and ofPages those of 2, 4, 8, ... pages.
	tries   uint64
	ofPages [maxBatchBits + 1]uint64
	// fixed says that the source drops some first tries, so that nothing can be learned.
	fixed bool
}

const (
	// maxBatchBits bounds what is taken for a batch to 256 pages.
	maxBatchBits = 8
	// A size is common if a window of first tries has minBatches of it.
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

// endWindow decides at the end of a window. A later window can only show a smaller batch:
// a program that uses large folios alone needs none.
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

// includes reports whether a charge of so many pages may be a batch.
func (b *batchSize) includes(pages uint64) bool {
	if b.pages == 0 {
		return pages == 64 || pages == 32
	}
	return pages == b.pages
}

// isFirstTry reports whether a charge is the first try of one that may be a batch.
func isFirstTry(e *event.Event) bool {
	return e.Flags&event.Retry == 0 && (e.Kind == event.Memory || e.Kind == event.Memsw)
}

// resolveMisses marks the failed batch charges that were retried smaller as batch misses.
// It returns the number of leading events that are final: the next one waits for the next
// event of its thread.
//
// The kernel charges a batch of pages where it needs fewer. If that fails it looks whether
// an interrupt has left enough in this CPU's stock, and if not, charges what it needs from
// the same place; only then does it reclaim (try_charge_memcg in mm/memcontrol.c). So the
// thread's next event shows which failures count.
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
		if b.mayMiss(e) {
			open = append(open, i)
		}
	}
	if len(open) > 0 {
		return open[0]
	}
	return len(events)
}

// mayMiss reports whether a charge failed that may have been of more pages than needed.
func (b *batchSize) mayMiss(e *event.Event) bool {
	return e.Type == event.Charge && e.Outcome == event.Failed && isFirstTry(e) && b.includes(e.RequestedPages)
}
