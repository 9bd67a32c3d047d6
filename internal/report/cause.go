package report

import (
	"cmp"
	"maps"
	"slices"

	"chargetrace/internal/cause"
)

// knowsCauses reports whether it is known of any charge what it was for.
func (c *collector) knowsCauses() bool {
	for known := range c.sum.Causes {
		if known != cause.Unknown {
			return true
		}
	}
	return false
}

// causeColors returns the colours of the causes for which most was charged. Those
// without one are told of together, and what no rule knows is always among them.
func (c *collector) causeColors() map[cause.Cause]cssColor {
	own := make(map[cause.Cause]cssColor)
	for _, p := range c.byCause.sorted() {
		if of := cause.Cause(p.key); of != cause.Other && len(own) < maxLayers {
			own[of] = palette[len(own)]
		}
	}
	return own
}

// causePlot is of all that was charged up to a time: what the growth was made of.
func (c *collector) causePlot() *areaPlot {
	s := c.areaPlot(&c.byCause)
	s.running = true
	own := c.causeColors()
	others := layer{color: othersColor, name: "other causes"}
	for _, p := range c.byCause.sorted() {
		if of := cause.Cause(p.key); own[of] != (cssColor{}) {
			s.layers = append(s.layers, layer{own[of], of.Words(), p.pages, slices.Clone(p.cells)})
		} else {
			others.add(p)
		}
	}
	if others.pages > 0 {
		s.layers = append(s.layers, others)
	}
	// Where nothing more is charged, what was charged stays.
	end := c.byCause.cell(c.last)
	for i := range s.layers {
		l := &s.layers[i]
		l.cells = append(l.cells, make([]uint64, end+1-len(l.cells))...)
	}
	return s
}

// causeTable is empty where no cause is known.
func (r *Report) causeTable() table {
	if !r.knowsCauses() {
		return table{}
	}
	t := table{ID: "causes", Title: "By cause", Columns: append([]column{{"Cause", false}}, totalsColumns[:5]...)}
	for _, c := range slices.SortedFunc(maps.Keys(r.sum.Causes), func(a, b cause.Cause) int {
		return cmp.Or(worst(r.sum.Causes[a], r.sum.Causes[b]), cmp.Compare(a, b))
	}) {
		t.Rows = append(t.Rows, append([]cell{textCell(c.Words())}, r.totals(r.sum.Causes[c])[:5]...))
	}
	return t
}
