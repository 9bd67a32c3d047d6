package report

import (
	"slices"
)

// areaPlot shows what was charged over time, the layers on top of each other.
type areaPlot struct {
	begin           uint64 // of the first cell, as BootNanos
	shift           uint   // of a cell's width in nanoseconds
	from, to, start uint64 // as in frame
	bytesPer        int
	running         bool // each cell has what was charged up to its end
	layers          []layer
}

type layer struct {
	color cssColor
	name  string
	pages uint64
	cells []uint64 // what was charged in each
}

func (s *areaPlot) cellCount() (n int) {
	for _, l := range s.layers {
		n = max(n, len(l.cells))
	}
	return n
}

// cellStart is when a cell begins, as BootNanos.
func (s *areaPlot) cellStart(i int) uint64 { return s.begin + uint64(i)<<s.shift }

// heights returns how high a layer is, in pages, where so many cells are one.
func (s *areaPlot) heights(l *layer, by int) []uint64 {
	var heights []uint64
	var sum uint64
	for cells := range slices.Chunk(l.cells, by) {
		if !s.running {
			sum = 0
		}
		for _, pages := range cells {
			sum += pages
		}
		heights = append(heights, sum)
	}
	return heights
}

func (s *areaPlot) draw(c canvas, within rect) {
	sums := make([]uint64, s.cellCount())
	var heights [][]uint64
	for i := range s.layers {
		heights = append(heights, s.heights(&s.layers[i], 1))
		for cell, pages := range heights[i] {
			sums[cell] += pages
		}
	}
	f := newFrame(c, within, s.from, s.to, s.start, max(float64(slices.Max(sums)), 1)*1.08, 0)
	f.axes(float64(s.bytesPer))
	clear(sums)
	f.inZone(f.zone, func() {
		for i := range s.layers {
			var cells [][]xy
			for cell, pages := range heights[i] {
				if pages > 0 {
					low := sums[cell]
					sums[cell] += pages
					cells = append(cells, rect{f.x(s.cellStart(cell)), f.y(float64(sums[cell])), f.x(s.cellStart(cell + 1)), f.y(float64(low))}.outline())
				}
			}
			if len(cells) > 0 {
				f.fill(s.layers[i].color, cells...)
			}
		}
	})
}

// maxLayers is how many layers an area plot has, without that of the others.
const maxLayers = 8

func (c *collector) processPlot() *areaPlot {
	s := c.areaPlot(&c.byProcess)
	others := layer{color: othersColor, name: "others", cells: slices.Clone(c.byProcess.others.cells), pages: c.byProcess.others.pages}
	for i, p := range c.byProcess.sorted() {
		if i < maxLayers {
			s.layers = append(s.layers, layer{palette[i], p.comm.Of(p.key), p.pages, p.cells})
		} else {
			others.add(p)
		}
	}
	if others.pages > 0 {
		s.layers = append(s.layers, others)
	}
	return s
}

func (c *collector) areaPlot(of *breakdown) *areaPlot {
	of.cell(c.last) // so that cells are as wide as can be seen
	s := &areaPlot{begin: of.start, shift: of.shift, start: c.header.StartBootNanos, bytesPer: c.header.PageSize}
	s.from, s.to = c.span()
	return s
}

// add adds what was charged to a part.
func (l *layer) add(p *part) {
	for cell, pages := range p.cells {
		for len(l.cells) <= cell {
			l.cells = append(l.cells, 0)
		}
		l.cells[cell] += pages
	}
	l.pages += p.pages
}
