package report

import (
	"fmt"
	"html/template"
	"image/color"
	"math"
	"slices"
	"sync"
	"time"

	"codeberg.org/go-fonts/liberation/liberationsansregular"
	"golang.org/x/image/font/opentype"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"chargetrace/internal/event"
)

// The colours on a light ground; report.css has those on a dark one too. The
// processes' can be told apart by those who do not see red or green.
var (
	paperColor   = newColor("paper", 0xffffff)
	labelColor   = newColor("label", 0x5b6470)
	gridColor    = newColor("grid", 0xe6e9ed)
	usageColor   = newColor("usage", 0x2266ac)
	areaColor    = newColor("area", 0xe3edf7)
	limitColor   = newColor("limit", 0x1b1f24)
	highColor    = newColor("high", 0x7d6400)
	failedColor  = newColor("failed", 0xc9302c)
	reclaimColor = newColor("reclaim", 0xbd7b00)
	lostColor    = newColor("lost", 0x6b7280)
	killColor    = newColor("kill", 0x9c1458)
	othersColor  = newColor("p8", 0xb3bac3)
	palette      = []cssColor{
		newColor("p0", 0x2a6fb5), newColor("p1", 0xe39b12), newColor("p2", 0x2b9e83), newColor("p3", 0xb25a9c),
		newColor("p4", 0x8a6a42), newColor("p5", 0x69b3e0), newColor("p6", 0xd8644c), newColor("p7", 0x8b9a3a),
	}
)

var (
	textFont    = font.Font{Typeface: "Liberation", Variant: "Sans", Size: 12}
	textHandler = sync.OnceValue(func() text.Handler {
		face, err := opentype.Parse(liberationsansregular.TTF)
		if err != nil {
			panic(err) // it is part of the program
		}
		return text.Plain{Fonts: font.NewCache(font.Collection{{Font: textFont, Face: face}})}
	})
)

func textStyle(c color.Color, x text.XAlignment, y text.YAlignment) draw.TextStyle {
	return draw.TextStyle{Color: c, Font: textFont, XAlign: x, YAlign: y, Handler: textHandler()}
}

// laneHeight is that of the strips below a plot, one for each sort of marks.
const (
	laneHeight = 16
	laneGap    = 10
)

// frame is where things are drawn: the zone, and its two axes.
type frame struct {
	draw.Canvas // of the whole
	zone        vg.Rectangle
	from, to    uint64 // BootNanos
	start       uint64 // what times are counted from, as BootNanos
	top         float64
	base        vg.Length // where the y axis begins, above the lanes
}

// newFrame returns the frame of a plot that is as large as c. Its y axis goes to
// top, in units of what tick labels make of it.
func newFrame(c draw.Canvas, from, to, start uint64, top float64, lanes int) *frame {
	left := vg.Length(70)
	if c.Max.X < 500 {
		left = 58
	}
	f := &frame{Canvas: c, from: from, to: to, start: start, top: top}
	f.zone = draw.Crop(c, left, -8, 24, -20).Rectangle
	f.base = f.zone.Min.Y
	if lanes > 0 {
		f.base += vg.Length(lanes)*laneHeight + laneGap
	}
	return f
}

// x is where a time is. Times out of range are at its ends.
func (f *frame) x(nanos uint64) vg.Length {
	share := float64(min(max(nanos, f.from), f.to)-f.from) / float64(f.to-f.from)
	return f.zone.Min.X + vg.Length(share)*f.zone.Size().X
}

// y is where a value is.
func (f *frame) y(value float64) vg.Length {
	return f.base + vg.Length(value/f.top)*(f.zone.Max.Y-f.base)
}

// point is where a point is; what is too low or too high is at the edge.
func (f *frame) point(p point) vg.Point {
	return vg.Point{X: f.x(p.nanos), Y: min(max(f.y(float64(p.pages)), f.base), f.zone.Max.Y)}
}

// axes draws lines for round values, and says what they are.
func (f *frame) axes(bytesPer float64) {
	line := draw.LineStyle{Color: gridColor, Width: 1}
	for _, v := range sizeTicks(f.top * bytesPer) {
		y := f.y(v / bytesPer)
		f.StrokeLine2(line, f.zone.Min.X, y, f.zone.Max.X, y)
		f.FillText(textStyle(labelColor, draw.XRight, draw.YCenter), vg.Point{X: f.zone.Min.X - 8, Y: y}, tickSize(v))
	}
	f.inSVG(func(s *svg) { s.printf(`<g class="times">`) })
	apart := vg.Length(90)
	if f.zone.Size().X < 400 {
		apart = 60
	}
	for _, nanos := range timeTicks(f.sinceStart(f.from), f.sinceStart(f.to), float64(f.zone.Size().X/apart)) {
		x := f.x(uint64(int64(f.start) + nanos))
		f.StrokeLine2(line, x, f.zone.Min.Y, x, f.zone.Min.Y-4)
		f.FillText(textStyle(labelColor, draw.XCenter, draw.YTop), vg.Point{X: x, Y: f.zone.Min.Y - 6}, tickTime(nanos, f.sinceStart(f.to)))
	}
	f.inSVG((*svg).endGroup)
}

func (f *frame) sinceStart(nanos uint64) int64 { return int64(nanos - f.start) }

// inSVG does what is needed around parts of an SVG.
func (f *frame) inSVG(do func(*svg)) {
	if s, ok := f.Canvas.Canvas.(*svg); ok {
		do(s)
	}
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

func (s *areaPlot) draw(c draw.Canvas) {
	sums := make([]uint64, s.cellCount())
	var heights [][]uint64
	for i := range s.layers {
		heights = append(heights, s.heights(&s.layers[i], 1))
		for cell, pages := range heights[i] {
			sums[cell] += pages
		}
	}
	f := newFrame(c, s.from, s.to, s.start, max(float64(slices.Max(sums)), 1)*1.08, 0)
	f.axes(float64(s.bytesPer))
	f.inSVG(func(s *svg) { s.beginZone(f.zone) })
	clear(sums)
	for i := range s.layers {
		var p vg.Path
		for cell, pages := range heights[i] {
			if pages == 0 {
				continue
			}
			a, b := f.x(s.cellStart(cell)), f.x(s.cellStart(cell+1))
			low, up := f.y(float64(sums[cell])), f.y(float64(sums[cell]+pages))
			sums[cell] += pages
			p.Move(vg.Point{X: a, Y: low})
			p.Line(vg.Point{X: a, Y: up})
			p.Line(vg.Point{X: b, Y: up})
			p.Line(vg.Point{X: b, Y: low})
			p.Close()
		}
		if len(p) > 0 {
			f.SetColor(s.layers[i].color)
			f.Fill(p)
		}
	}
	f.inSVG((*svg).endZone)
}

// sizeTicks returns some round numbers of bytes from 0 to top.
func sizeTicks(top float64) []float64 {
	unit := math.Pow(1024, math.Floor(math.Log2(max(top, 1))/10))
	step := niceStep(top/unit, 5) * unit
	var ticks []float64
	for v := 0.0; v <= top; v += step {
		ticks = append(ticks, v)
	}
	return ticks
}

// niceStep returns 1, 2, 2.5 or 5 times a power of ten that goes no more than n
// times into a range.
func niceStep(span, n float64) float64 {
	rough := span / n
	power := math.Pow(10, math.Floor(math.Log10(rough)))
	for _, m := range []float64{1, 2, 2.5, 5} {
		if m*power >= rough {
			return m * power
		}
	}
	return 10 * power
}

func tickSize(bytes float64) string {
	if bytes == 0 {
		return "0"
	}
	exponent := min(max(int(math.Log2(bytes)/10), 0), len(sizeUnits)-1)
	return fmt.Sprintf("%.4g %s", bytes/math.Pow(1024, float64(exponent)), sizeUnits[exponent])
}

// timeTicks returns about n round times between two, in nanoseconds.
func timeTicks(from, to int64, n float64) []int64 {
	var step int64
	span := (float64(to) - float64(from)) / n
	for _, s := range []time.Duration{time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour} {
		step = int64(s)
		if float64(step) >= span {
			break
		}
	}
	switch {
	case span < 30e9:
		step = max(1, int64(niceStep(n*span, n)))
	case span > 24*3600e9:
		step = int64(math.Ceil(span/(24*3600e9))) * 24 * int64(time.Hour)
	}
	var ticks []int64
	// Counted, since the times of a hostile recording can be any.
	first := int64(math.Ceil(float64(from)/float64(step))) * step
	for i := range int64(n) + 1 {
		if t := first + i*step; from <= t && t <= to {
			ticks = append(ticks, t)
		}
	}
	return ticks
}

// tickTime has the unit that suits an axis up to end. report.js does likewise.
func tickTime(nanos, end int64) string {
	switch {
	case end < int64(10*time.Second):
		return fmt.Sprintf("%.7g ms", float64(nanos)/1e6)
	case end < int64(5*time.Minute):
		return fmt.Sprintf("%.7g s", float64(nanos)/1e9)
	}
	s := nanos / 1e9
	return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
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

// span is the time that plots show.
func (c *collector) span() (from, to uint64) {
	from, to = c.first, c.last
	// A little more, so that what is first and last can be seen.
	pad := max((to-from)/100, uint64(time.Microsecond))
	return max(from-min(from, pad), min(c.header.StartBootNanos, from)), to + min(pad, math.MaxUint64-to)
}

func (c *collector) unitBytes(kind event.Kind) int {
	if kind == event.Dmem {
		return 1
	}
	return c.header.PageSize
}

// concerns reports whether an OOM kill is one of a cgroup: whether that, or one
// above it, or the machine, ran out.
func (c *collector) concerns(kill *event.Event, id event.CgroupID) bool {
	if kill.Cgroup.ID == 0 || kill.Cgroup == id {
		return true
	}
	return kill.Cgroup.Hierarchy == id.Hierarchy && within(c.sum.Names.Path(id), c.sum.Names.Path(kill.Cgroup))
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

// drawer is a plot.
type drawer interface{ draw(draw.Canvas) }

// inline returns a plot as SVG for a page that has report.css, and says what it
// shows beside it.
func inline(d drawer, class string, width, height vg.Length) template.HTML {
	s := newSVG(width, height)
	d.draw(draw.NewCanvas(s, width, height))
	return template.HTML(fmt.Sprintf(`<svg class="%s" viewBox="0 0 %s %s" aria-hidden="true">%s</svg>`, class, number(width), number(height), s.b.Bytes()))
}
