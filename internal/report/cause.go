package report

import (
	"cmp"
	"maps"
	"slices"

	"chargetrace/internal/cause"
)

// knowsCauses reports whether any charge has a known cause.
func (c *collector) knowsCauses() bool {
	for known := range c.sum.Causes {
		if known != cause.Unknown {
			return true
		}
	}
	return false
}

// causeColors returns the colors of the causes with the most charged pages. The other
// causes share othersColor; [cause.Other] is always one of them.
func (c *collector) causeColors() map[cause.Cause]cssColor {
	colors := make(map[cause.Cause]cssColor)
	for _, p := range c.byCause.sorted() {
		if of := cause.Cause(p.key); of != cause.Other && len(colors) < maxLayers {
			colors[of] = palette[len(colors)]
		}
	}
	return colors
}

// causePlot returns the running totals of the causes: what the growth consists of.
func (c *collector) causePlot() *areaPlot {
	a := c.areaPlot(&c.byCause)
	a.running = true
	colors := c.causeColors()
	others := layer{color: othersColor, name: "other causes"}
	for _, p := range c.byCause.sorted() {
		if of := cause.Cause(p.key); colors[of] != (cssColor{}) {
			a.layers = append(a.layers, layer{p.clone(), colors[of], of.Words()})
		} else {
			others.merge(p)
		}
	}
	if others.pages > 0 {
		a.layers = append(a.layers, others)
	}
	// A running total stays after its last charge.
	end := c.byCause.cell(c.last)
	for i := range a.layers {
		a.layers[i].add(end, 0)
	}
	return a
}

// causeTable has no rows if no cause is known.
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
