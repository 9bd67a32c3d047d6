package report

import (
	"cmp"
	"maps"
	"slices"

	"chargetrace/internal/event"
)

const (
	maxCells = 240
	// maxParts bounds the memory of a trace with many processes. Fewer parts are drawn.
	maxParts = 512
)

// part is what one process charged, or what was charged for one cause, over time.
type part struct {
	key   uint32     // a PID, or a cause.Cause
	comm  event.Comm // of the last charge
	pages uint64
	cells []uint64 // the pages of each
}

func (p *part) add(cell int, pages uint64) {
	if missing := cell + 1 - len(p.cells); missing > 0 {
		p.cells = append(p.cells, make([]uint64, missing)...)
	}
	p.cells[cell] += pages
	p.pages += pages
}

func (p *part) merge(q *part) {
	for cell, pages := range q.cells {
		p.add(cell, pages)
	}
}

func (p *part) clone() part {
	q := *p
	q.cells = slices.Clone(p.cells)
	return q
}

// halve doubles the width of the cells.
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

// breakdown splits the charged memory over time by process or by cause. The cells of
// all parts have the same width; it doubles when they become too many.
type breakdown struct {
	start  uint64 // BootNanos of the first cell
	shift  uint   // a cell is 1<<shift ns wide
	parts  map[uint32]*part
	others part // the sum of dropped parts
	lost   part // counts lost events, not pages
}

// cell returns the number of a time's cell.
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

// drop moves the smaller half of the parts to the others.
func (b *breakdown) drop() {
	for _, p := range b.sorted()[maxParts/2:] {
		b.others.merge(p)
		delete(b.parts, p.key)
	}
}

// sorted returns the parts, the largest first.
func (b *breakdown) sorted() []*part {
	return slices.SortedFunc(maps.Values(b.parts), func(x, y *part) int {
		return cmp.Or(cmp.Compare(y.pages, x.pages), cmp.Compare(x.key, y.key))
	})
}
