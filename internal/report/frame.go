package report

import (
	"fmt"
	"html/template"
	"image/color"
	"sync"

	"codeberg.org/go-fonts/liberation/liberationsansregular"
	"golang.org/x/image/font/opentype"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
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

// drawer is a plot.
type drawer interface{ draw(draw.Canvas) }

// inline returns a plot as SVG for a page that has report.css, and says what it
// shows beside it.
func inline(d drawer, class string, width, height vg.Length) template.HTML {
	s := newSVG(width, height)
	d.draw(draw.NewCanvas(s, width, height))
	return template.HTML(fmt.Sprintf(`<svg class="%s" viewBox="0 0 %s %s" aria-hidden="true">%s</svg>`, class, number(width), number(height), s.b.Bytes()))
}
