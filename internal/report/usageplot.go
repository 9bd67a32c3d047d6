package report

import (
	"math"
	"slices"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"chargetrace/internal/event"
)

// usagePlot is what a page counter held, its limit, and what happened to it.
type usagePlot struct {
	*series
	from, to, start uint64
	bytesPer        int // of what the counter counts
	kills           []uint64
	lost            []marks
	peak            int64
	max             int64 // the greatest limit, -1 if it has none
	high            int64 // likewise of memory.high
	top             float64
	limitDrawn      bool
	highDrawn       bool
}

func (u *usagePlot) lanes() []cssColor {
	var all []cssColor
	t := u.total()
	if len(u.lost) > 0 {
		all = append(all, lostColor)
	}
	if t.reclaim.count > 0 {
		all = append(all, reclaimColor)
	}
	if t.failed.count > 0 {
		all = append(all, failedColor)
	}
	return all
}

// farAbove is how many times the peak a limit is that the plot does not show:
// beside it, usage could not be seen.
const farAbove = 4

// measure finds the peak and the limits, and whether they have a place beside it.
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

func (u *usagePlot) draw(c draw.Canvas) {
	s := u.series
	if c.Max.X < 500 {
		s = s.reduced(maxBuckets / 4)
	}
	lanes := u.lanes()
	f := newFrame(c, u.from, u.to, u.start, u.top, len(lanes))
	f.axes(float64(u.bytesPer))
	for i, l := range lanes {
		f.FillText(textStyle(l, draw.XRight, draw.YCenter), vg.Point{X: f.zone.Min.X - 8, Y: f.zone.Min.Y + vg.Length(i)*laneHeight + laneHeight/2}, l.class)
	}
	f.inSVG(func(s *svg) { s.beginZone(f.zone) })
	f.usage(s)
	if u.limitDrawn {
		f.steps(s, limitColor, []vg.Length{6, 4}, func(b *bucket) *extent { return &b.max })
	}
	if u.highDrawn {
		f.steps(s, highColor, []vg.Length{1.5, 3}, func(b *bucket) *extent { return b.high })
	}
	for i, l := range lanes {
		all := u.lost
		if l != lostColor {
			all = nil
			for i := range s.buckets {
				if l == failedColor {
					all = append(all, s.buckets[i].failed)
				} else {
					all = append(all, s.buckets[i].reclaim)
				}
			}
		}
		f.lane(i, l, all)
	}
	// Kills that fall into one column of pixels look like one.
	var p vg.Path
	column := (u.to - u.from) / 4096
	var before uint64
	for _, nanos := range u.kills {
		if len(p) > 0 && nanos-before < column {
			continue
		}
		before = nanos
		p.Move(vg.Point{X: f.x(nanos), Y: f.zone.Min.Y})
		p.Line(vg.Point{X: f.x(nanos), Y: f.zone.Max.Y})
	}
	if len(p) > 0 {
		f.SetLineStyle(draw.LineStyle{Color: killColor, Width: 1.5})
		f.Stroke(p)
	}
	f.inSVG((*svg).endZone)
	f.flags(u.kills)
}

// lane draws the marks of one sort in the i-th strip from the bottom. Each can be
// seen, however short it is.
func (f *frame) lane(i int, c cssColor, all []marks) {
	var p vg.Path
	bottom := f.zone.Min.Y + vg.Length(i)*laneHeight
	for _, m := range all {
		if m.count == 0 {
			continue
		}
		a, b := f.x(m.from), f.x(m.to)
		p.Move(vg.Point{X: a, Y: bottom + 4})
		p.Line(vg.Point{X: a, Y: bottom + laneHeight - 4})
		p.Line(vg.Point{X: b, Y: bottom + laneHeight - 4})
		p.Line(vg.Point{X: b, Y: bottom + 4})
		p.Close()
	}
	if len(p) > 0 {
		f.SetLineStyle(draw.LineStyle{Color: c, Width: 1.5})
		f.Fill(p)
		f.Stroke(p)
	}
}

// flags names the kills, where there is room.
func (f *frame) flags(kills []uint64) {
	style := textStyle(killColor, draw.XCenter, draw.YBottom)
	const name = "OOM kill"
	half := style.Width(name)/2 + 4
	right := vg.Length(math.Inf(-1))
	for _, nanos := range kills {
		x := f.x(nanos)
		if x-half < right {
			continue
		}
		right = x + half
		middle := min(max(x, f.zone.Min.X+half), f.Max.X-half)
		f.inSVG(func(s *svg) { s.printf(`<g class="flag" data-x="%s">`, number(x)) })
		f.FillText(style, vg.Point{X: middle, Y: f.zone.Max.Y + 5}, name)
		f.inSVG((*svg).endGroup)
	}
}

// usage draws the line of what a counter held, and fills what is below.
func (f *frame) usage(s *series) {
	var pts []vg.Point
	for i := range s.buckets {
		for _, p := range s.buckets[i].usage.points() {
			next := f.point(p)
			if n := len(pts); n > 0 && next.Y != pts[n-1].Y {
				pts = append(pts, vg.Point{X: next.X, Y: pts[n-1].Y})
			}
			pts = append(pts, next)
		}
	}
	if len(pts) == 0 {
		return
	}
	bottom := f.y(0)
	below := slices.Concat([]vg.Point{{X: pts[0].X, Y: bottom}}, pts, []vg.Point{{X: pts[len(pts)-1].X, Y: bottom}})
	f.FillPolygon(areaColor, below)
	f.StrokeLines(draw.LineStyle{Color: usageColor, Width: 1.5}, pts)
}

// steps draws a limit, which stays as it is until it changes. Where the counter
// was charged and had none, the line is broken.
func (f *frame) steps(s *series, c cssColor, dashes []vg.Length, of func(*bucket) *extent) {
	var lines [][]vg.Point
	var pts []vg.Point
	var until uint64 // when it was seen last
	extend := func(x vg.Length) {
		if n := len(pts); n > 0 && pts[n-1].X < x {
			pts = append(pts, vg.Point{X: x, Y: pts[n-1].Y})
		}
	}
	for i := range s.buckets {
		b := &s.buckets[i]
		x := of(b)
		if x == nil || !x.seen {
			if b.usage.seen {
				extend(f.x(b.usage.first.nanos))
				lines, pts = append(lines, pts), nil
			}
			continue
		}
		until = x.last.nanos
		for _, p := range x.points() {
			next := f.point(p)
			if n := len(pts); n > 0 && pts[n-1].Y == next.Y {
				continue
			}
			extend(next.X)
			pts = append(pts, next)
		}
	}
	extend(f.x(until))
	f.StrokeLines(draw.LineStyle{Color: c, Width: 1.5, Dashes: dashes}, append(lines, pts)...)
}

// plots returns the plots of a trace: those of the page counters that are most
// worth a look, at most n, and how many there are.
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
		u := &usagePlot{series: s, from: from, to: to, start: c.header.StartBootNanos, bytesPer: c.unitBytes(s.key.Kind)}
		u.measure()
		for i := range c.sum.OOMKills {
			if e := &c.sum.OOMKills[i]; s.key.Kind == event.Memory && c.concerns(e, s.key.Cgroup) {
				u.kills = append(u.kills, e.BootNanos)
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

// concerns reports whether an OOM kill is one of a cgroup: whether that, or one
// above it, or the machine, ran out.
func (c *collector) concerns(kill *event.Event, id event.CgroupID) bool {
	if kill.Cgroup.ID == 0 || kill.Cgroup == id {
		return true
	}
	return kill.Cgroup.Hierarchy == id.Hierarchy && within(c.sum.Names.Path(id), c.sum.Names.Path(kill.Cgroup))
}
