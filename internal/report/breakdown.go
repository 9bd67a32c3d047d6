package report

import (
	"cmp"
	"maps"
	"slices"

	"chargetrace/internal/event"
)

const (
	maxCells = 240
	// maxSeries and maxParts are how many series, and parts of a breakdown, are told
	// apart while events come; many more than are drawn.
	maxSeries = 128
	maxParts  = 512
)

// part is what a process, or a cause, was charged over time, in pages.
type part struct {
	key   uint32     // a PID, or a cause.Cause
	comm  event.Comm // of the last charge
	pages uint64
	cells []uint64
}

func (p *part) add(cell int, pages uint64) {
	for len(p.cells) <= cell {
		p.cells = append(p.cells, 0)
	}
	p.cells[cell] += pages
	p.pages += pages
}

func (p *part) halve() {
	n := (len(p.cells) + 1) / 2
	for i := range n {
		sum := p.cells[2*i]
		if 2*i+1 < len(p.cells) {
			sum += p.cells[2*i+1]
		}
		p.cells[i] = sum
	}
	p.cells = p.cells[:n]
}

// breakdown is what all processes charged, or what was charged for all causes, in cells
// that are as wide for all.
type breakdown struct {
	start  uint64 // of the first cell, as BootNanos
	shift  uint
	parts  map[uint32]*part
	others part // those that were charged least, once there are too many
	lost   part // events that were lost, not pages
}

func (b *breakdown) cell(nanos uint64) int {
	since := nanos - min(nanos, b.start)
	for since>>b.shift >= maxCells {
		b.shift++
		for _, p := range b.parts {
			p.halve()
		}
		b.others.halve()
		b.lost.halve()
	}
	return int(since >> b.shift)
}

func (b *breakdown) add(key uint32, e *event.Event) {
	cell := b.cell(e.BootNanos)
	p := b.parts[key]
	if p == nil {
		if len(b.parts) == maxParts {
			b.drop()
		}
		p = &part{key: key}
		b.parts[key] = p
	}
	p.comm = e.Comm
	p.add(cell, e.RequestedPages)
}

// drop moves the half that was charged less to the others.
func (b *breakdown) drop() {
	for _, p := range b.sorted()[maxParts/2:] {
		for cell, pages := range p.cells {
			b.others.add(cell, pages)
		}
		delete(b.parts, p.key)
	}
}

// sorted returns the parts, those first that were charged most.
func (b *breakdown) sorted() []*part {
	return slices.SortedFunc(maps.Values(b.parts), func(x, y *part) int {
		return cmp.Or(cmp.Compare(y.pages, x.pages), cmp.Compare(x.key, y.key))
	})
}
