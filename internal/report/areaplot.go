package report

import (
	"slices"
)

// areaPlot shows the charged memory over time, the layers on top of each other.
type areaPlot struct {
	begin           uint64 // BootNanos of the first cell
	shift           uint   // a cell is 1<<shift ns wide
	from, to, start uint64 // as in frame
	bytesPer        int    // bytes per page
	running         bool   // a cell shows the total of all cells up to it
	layers          []layer
}

type layer struct {
	part
	color cssColor
	name  string
}

func (a *areaPlot) cellCount() (n int) {
	for _, l := range a.layers {
		n = max(n, len(l.cells))
	}
	return n
}

// cellStart returns the BootNanos of a cell's begin.
func (a *areaPlot) cellStart(i int) uint64 { return a.begin + uint64(i)<<a.shift }

// heights returns the pages of a layer in each cell, after merging by cells into one.
func (a *areaPlot) heights(l *layer, by int) []uint64 {
	var heights []uint64
	var sum uint64
	for cells := range slices.Chunk(l.cells, by) {
		if !a.running {
			sum = 0
		}
		for _, pages := range cells {
			sum += pages
		}
		heights = append(heights, sum)
	}
	return heights
}

func (a *areaPlot) draw(c canvas, within rect) {
	sums := make([]uint64, a.cellCount())
	var heights [][]uint64
	for i := range a.layers {
		heights = append(heights, a.heights(&a.layers[i], 1))
		for cell, pages := range heights[i] {
			sums[cell] += pages
		}
	}
	f := newFrame(c, within, a.from, a.to, a.start, max(float64(slices.Max(sums)), 1)*1.08, 0)
	f.axes(float64(a.bytesPer))
	clear(sums)
	f.inZone(f.zone, func() {
		for i := range a.layers {
			var cells [][]xy
			for cell, pages := range heights[i] {
				if pages > 0 {
					low := sums[cell]
					sums[cell] += pages
					cells = append(cells, rect{f.x(a.cellStart(cell)), f.y(float64(sums[cell])), f.x(a.cellStart(cell + 1)), f.y(float64(low))}.outline())
				}
			}
			if len(cells) > 0 {
				f.fill(a.layers[i].color, cells...)
			}
		}
	})
}

// maxLayers is the number of layers of an area plot, without the one of the others.
const maxLayers = 8

func (c *collector) processPlot() *areaPlot {
	a := c.areaPlot(&c.byProcess)
	others := layer{c.byProcess.others.clone(), othersColor, "others"}
	for i, p := range c.byProcess.sorted() {
		if i < maxLayers {
			a.layers = append(a.layers, layer{*p, palette[i], p.comm.Of(p.key)})
		} else {
			others.merge(p)
		}
	}
	if others.pages > 0 {
		a.layers = append(a.layers, others)
	}
	return a
}

func (c *collector) areaPlot(b *breakdown) *areaPlot {
	b.cell(c.last) // widens the cells to cover the whole trace
	a := &areaPlot{begin: b.start, shift: b.shift, start: c.sum.Info.StartBootNanos, bytesPer: c.sum.Info.PageSize}
	a.from, a.to = c.span()
	return a
}
