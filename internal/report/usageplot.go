package report

import (
	"fmt"
	"math"
	"slices"

	"chargetrace/internal/event"
	"chargetrace/internal/verdict"
)

// usagePlot shows the usage of a page counter, its limits, and its failures, reclaim
// and kills.
type usagePlot struct {
	*series
	from, to, start uint64   // as in frame
	bytesPer        int      // bytes per unit of the counter
	kills           []uint64 // BootNanos
	lost            []marks
	peak            int64
	max, high       int64   // the greatest limit and memory.high; -1: none
	top             float64 // the value at the top of the plot
	limitDrawn      bool
	highDrawn       bool
}

// farAbove is how many times the peak a limit may be: one above would flatten the usage,
// and is not drawn.
const farAbove = 4

// measure computes the peak, the limits, and the range of the plot.
func (u *usagePlot) measure() {
	t := u.total()
	u.peak, u.max, u.high, u.top = 0, -1, -1, 0
	if t.usage.seen {
		u.peak = max(0, t.usage.greatest.pages)
		u.top = float64(u.peak)
	}
	room := farAbove * float64(u.peak)
	if u.peak == 0 {
		room = math.Inf(1)
	}
	drawn := func(x *extent) bool {
		if float64(x.least.pages) > room {
			return false
		}
		u.top = max(u.top, min(float64(x.greatest.pages), room))
		return true
	}
	if t.max.seen {
		u.max, u.limitDrawn = t.max.greatest.pages, drawn(&t.max)
	}
	if t.high != nil {
		u.high, u.highDrawn = t.high.greatest.pages, drawn(t.high)
	}
	u.top = max(u.top, 1) * 1.08
}

func (u *usagePlot) draw(c canvas, within rect) {
	s := u.series
	if within.width() < narrow {
		s = s.reduced(maxBuckets / 4)
	}
	lanes := u.lanes(s)
	f := newFrame(c, within, u.from, u.to, u.start, u.top, len(lanes))
	f.axes(float64(u.bytesPer))
	for i, l := range lanes {
		f.label(l.color, f.zone.bottom-(float64(i)+0.5)*laneHeight, l.color.class)
	}
	f.inZone(f.zone, func() {
		f.usage(s)
		if u.limitDrawn {
			f.steps(s, pen{limitColor, 1.5, []float64{6, 4}}, func(b *bucket) *extent { return &b.max })
		}
		if u.highDrawn {
			f.steps(s, pen{highColor, 1.5, []float64{1.5, 3}}, func(b *bucket) *extent { return b.high })
		}
		for i, l := range lanes {
			f.lane(i, l)
		}
		f.kills(u.kills)
	})
	f.flags(u.kills)
}

// lane is a strip with the marks of one sort. Its label is the class of its color.
type lane struct {
	color cssColor
	marks []marks
}

// lanes returns the lanes that have marks, the lowest first.
func (u *usagePlot) lanes(s *series) []lane {
	all := []lane{{lostColor, u.lost}, {color: reclaimColor}, {color: failedColor}}
	for i := range s.buckets {
		b := &s.buckets[i]
		if b.reclaim.count > 0 {
			all[1].marks = append(all[1].marks, b.reclaim)
		}
		if b.failed.count > 0 {
			all[2].marks = append(all[2].marks, b.failed)
		}
	}
	return slices.DeleteFunc(all, func(l lane) bool { return len(l.marks) == 0 })
}

// lane draws the i-th lane from the bottom. The stroke shows marks of no width.
func (f *frame) lane(i int, l lane) {
	bottom := f.zone.bottom - float64(i)*laneHeight
	var marks [][]xy
	for _, m := range l.marks {
		marks = append(marks, rect{f.x(m.from), bottom - laneHeight + 4, f.x(m.to), bottom - 4}.outline())
	}
	f.fill(l.color, marks...)
	f.stroke(pen{color: l.color, width: 1.5}, marks...)
}

// kills draws a line for each kill. Kills in one column of pixels share one.
func (f *frame) kills(kills []uint64) {
	var lines [][]xy
	column := (f.to - f.from) / 4096
	var before uint64
	for _, nanos := range kills {
		if len(lines) > 0 && nanos-before < column {
			continue
		}
		before = nanos
		lines = append(lines, []xy{{f.x(nanos), f.zone.bottom}, {f.x(nanos), f.zone.top}})
	}
	if len(lines) > 0 {
		f.stroke(pen{color: killColor, width: 1.5}, lines...)
	}
}

// flags names the kills, where there is room.
func (f *frame) flags(kills []uint64) {
	const half = 27 // of the name's width, with some space
	right := math.Inf(-1)
	for _, nanos := range kills {
		x := f.x(nanos)
		if x-half < right {
			continue
		}
		right = x + half
		f.group(fmt.Sprintf(`class="flag" data-x="%s"`, number(x)), func() {
			at := xy{min(max(x, f.zone.left+half), f.right-half), f.zone.top - 6.1}
			f.text(killColor, fontSize, at, atMiddle, "OOM kill")
		})
	}
}

// usage draws the line of the counter's usage, and fills the area below.
func (f *frame) usage(s *series) {
	var line []xy
	for i := range s.buckets {
		for _, p := range s.buckets[i].usage.points() {
			next := f.at(p)
			if n := len(line); n > 0 && next.y != line[n-1].y {
				line = append(line, xy{next.x, line[n-1].y})
			}
			line = append(line, next)
		}
	}
	if len(line) == 0 {
		return
	}
	f.fill(areaColor, slices.Concat([]xy{{line[0].x, f.base}}, line, []xy{{line[len(line)-1].x, f.base}}))
	f.stroke(pen{color: usageColor, width: 1.5}, line)
}

// steps draws a limit that may change. The line is broken where the counter was charged
// without one.
func (f *frame) steps(s *series, p pen, of func(*bucket) *extent) {
	var line []xy
	extend := func(x float64) {
		if n := len(line); n > 0 && line[n-1].x < x {
			line = append(line, xy{x, line[n-1].y})
		}
	}
	finish := func(x float64) {
		if extend(x); len(line) > 0 {
			f.stroke(p, line)
			line = nil
		}
	}
	var until uint64 // when the limit was seen last
	for i := range s.buckets {
		b := &s.buckets[i]
		x := of(b)
		if x == nil || !x.seen {
			if b.usage.seen {
				finish(f.x(b.usage.first.nanos))
			}
			continue
		}
		until = x.last.nanos
		for _, point := range x.points() {
			next := f.at(point)
			if n := len(line); n > 0 && line[n-1].y == next.y {
				continue
			}
			extend(next.x)
			line = append(line, next)
		}
	}
	finish(f.x(until))
}

// plots returns the plots of the first n page counters, in the order of sorted, and the
// number of all.
func (c *collector) plots(n int) (plots []*usagePlot, of int) {
	from, to := c.span()
	for _, s := range c.sorted() {
		t := s.total()
		if !t.usage.seen && t.failed.count == 0 {
			continue
		}
		of++
		if len(plots) == n {
			continue
		}
		u := &usagePlot{series: s, from: from, to: to, start: c.sum.Info.StartBootNanos, bytesPer: c.unitBytes(s.key.Kind)}
		u.measure()
		for i := range c.sum.Kills {
			if k := c.sum.Kills[i]; s.key.Kind == event.Memory && c.concerns(k, s.key.Cgroup) {
				u.kills = append(u.kills, k.BootNanos)
			}
		}
		slices.Sort(u.kills)
		for i, n := range c.byProcess.lost.cells {
			a := c.byProcess.start + uint64(i)<<c.byProcess.shift
			if n > 0 {
				u.lost = append(u.lost, marks{n, a, a + 1<<c.byProcess.shift})
			}
		}
		plots = append(plots, u)
	}
	return plots, of
}

// concerns reports whether the cgroup ran out of memory at an OOM kill, or the victim was in
// it or below it.
func (c *collector) concerns(kill *verdict.Kill, id event.CgroupID) bool {
	if kill.Cgroup == id {
		return true
	}
	for above := range c.sum.Names.Lineage(kill.VictimCgroup) {
		if above == kill.Cgroup {
			return false
		}
		if above == id {
			return true
		}
	}
	return false
}
