package report

import (
	"fmt"
	"html/template"
	"math"

	"chargetrace/internal/event"
)

// plotView is a plot with its description, and its values as a table.
type plotView struct {
	ID, Title, Note, Caption string
	Legend                   []legend
	Wide, Narrow             template.HTML
	Numbers                  table
}

// legend is an entry of a plot's legend.
type legend struct{ Class, Name string }

// usageView returns the view of the i-th usage plot.
func (r *Report) usageView(i int, u *usagePlot) plotView {
	v := plotView{
		ID: fmt.Sprintf("plot-%d", i), Title: r.name(u.key.Cgroup), Note: u.key.Kind.String(), Caption: r.caption(u),
		Legend: []legend{{"usage", "in use"}},
		Wide:   inline(u, "wide", 1080, 330), Narrow: inline(u, "narrow", 360, 300),
	}
	if u.partial {
		v.Caption += " Its beginning is missing: the trace has too many cgroups."
	}
	if u.limitDrawn {
		v.Legend = append(v.Legend, legend{"limit", "limit"})
	}
	if u.highDrawn {
		v.Legend = append(v.Legend, legend{"high", "memory.high"})
	}
	t := u.total()
	if t.failed.count > 0 {
		v.Legend = append(v.Legend, legend{"failed", "failed charges"})
	}
	if t.reclaim.count > 0 {
		v.Legend = append(v.Legend, legend{"reclaim", "reclaim"})
	}
	if len(u.lost) > 0 {
		v.Legend = append(v.Legend, legend{"lost", "events lost"})
	}
	if len(u.kills) > 0 {
		v.Legend = append(v.Legend, legend{"kill", "OOM kill"})
	}
	v.Numbers = table{ID: v.ID + "-numbers", Columns: []column{
		{"From", true}, {"Least in use", true}, {"Most in use", true}, {"Limit", true}, {"Charges", true}, {"Failed", true}, {"Misses", true}, {"Reclaim", true},
	}}
	s := u.reduced(32)
	for i := range s.buckets {
		b := &s.buckets[i]
		least, most, limit := none, none, none
		if b.usage.seen {
			least, most = r.sizeCell(b.usage.least.pages, u.key.Kind), r.sizeCell(b.usage.greatest.pages, u.key.Kind)
		}
		if b.max.seen {
			limit = r.sizeCell(b.max.last.pages, u.key.Kind)
		}
		v.Numbers.Rows = append(v.Numbers.Rows, []cell{r.timeCell(b.begin()), least, most, limit, countCell(b.charges), countCell(b.failed.count), countCell(b.misses), durationCell(b.reclaimNanos)})
	}
	return v
}

// usageData is the data that the script shows of a usagePlot: a value for each bucket.
type usageData struct {
	Unit    int       // bytes
	T       []float64 // ms
	Least   []int64   // -1: unknown
	Most    []int64
	Limit   []int64 // -1: none
	Charges []uint64
	Failed  []uint64
	Misses  []uint64
	Reclaim []float64 // ms
}

func (r *Report) usageData(u *usagePlot) usageData {
	d := usageData{Unit: u.bytesPer}
	last, limit := int64(-1), int64(-1)
	for i := range u.buckets {
		b := &u.buckets[i]
		// A bucket without a charge keeps the usage and the limit.
		least, most := last, last
		if b.usage.seen {
			least, most, last = b.usage.least.pages, b.usage.greatest.pages, b.usage.last.pages
			limit = -1
		}
		if b.max.seen {
			limit = b.max.last.pages
		}
		d.T, d.Least, d.Most, d.Limit = append(d.T, r.millis(b.begin())), append(d.Least, least), append(d.Most, most), append(d.Limit, limit)
		d.Charges, d.Failed, d.Misses = append(d.Charges, b.charges), append(d.Failed, b.failed.count), append(d.Misses, b.misses)
		d.Reclaim = append(d.Reclaim, math.Round(float64(b.reclaimNanos)/1e3)/1e3)
	}
	return d
}

// areaView adds an area plot to a view that has its title.
func (r *Report) areaView(a *areaPlot, v plotView) plotView {
	v.Wide, v.Narrow = inline(a, "wide", 1080, 250), inline(a, "narrow", 360, 250)
	// The table has at most 32 rows.
	n := a.cellCount()
	by := (n + 31) / 32
	v.Numbers = table{ID: v.ID + "-numbers", Columns: []column{{"From", true}}, Rows: make([][]cell, (n+by-1)/by)}
	for i := range v.Numbers.Rows {
		v.Numbers.Rows[i] = []cell{r.timeCell(max(a.cellStart(i*by), a.from))}
	}
	var names []string
	for i := range a.layers {
		l := &a.layers[i]
		v.Legend = append(v.Legend, legend{l.color.class, l.name})
		names = append(names, l.name+" "+r.size(int64(l.pages), event.Memory))
		v.Numbers.Columns = append(v.Numbers.Columns, column{l.name, true})
		heights := a.heights(l, by)
		for i := range v.Numbers.Rows {
			var pages uint64
			if i < len(heights) {
				pages = heights[i]
			}
			v.Numbers.Rows[i] = append(v.Numbers.Rows[i], r.sizeCell(int64(pages), event.Memory))
		}
	}
	v.Caption = "In all: " + list(names) + "."
	return v
}

// areaData is the data that the script shows of an areaPlot.
type areaData struct {
	Unit    int
	Running bool      `json:",omitempty"`
	T       []float64 // the begin of each cell, in ms
	Names   []string
	Pages   [][]uint64 // the cells of each name
}

func (r *Report) areaData(a *areaPlot) areaData {
	d := areaData{Unit: a.bytesPer, Running: a.running}
	for i := range a.cellCount() {
		d.T = append(d.T, r.millis(a.cellStart(i)))
	}
	for i := range a.layers {
		l := &a.layers[i]
		d.Names, d.Pages = append(d.Names, l.name), append(d.Pages, a.heights(l, 1))
	}
	return d
}

// drawer is a plot.
type drawer interface{ draw(c canvas, within rect) }

// inline returns a plot as SVG for a page, which has report.css and says beside it
// what the plot shows.
func inline(d drawer, class string, width, height float64) template.HTML {
	s := svg{scripted: true}
	d.draw(&s, rect{0, 0, width, height})
	return template.HTML(fmt.Sprintf(`<svg class="%s" viewBox="0 0 %s %s" aria-hidden="true">%s</svg>`, class, number(width), number(height), s.b.Bytes()))
}
