package report

import "image/color"

// canvas is what plots are drawn on. Its unit is the pixel, and the origin is the
// top left corner.
type canvas interface {
	// fill fills polygons. All have the same orientation.
	fill(c cssColor, polygons ...[]xy)
	// stroke draws lines. A line that ends where it begins is closed.
	stroke(p pen, lines ...[]xy)
	// text draws s with its anchor at a point of the baseline.
	text(c cssColor, size float64, at xy, a anchor, s string)
	// inZone and group mark what draw draws for the script of a page: it stretches
	// the zone, and finds a group by its attributes.
	inZone(zone rect, draw func())
	group(attributes string, draw func())
}

type xy struct{ x, y float64 }

type rect struct{ left, top, right, bottom float64 }

func (r rect) width() float64  { return r.right - r.left }
func (r rect) height() float64 { return r.bottom - r.top }

// outline returns the rectangle as a closed line.
func (r rect) outline() []xy {
	return []xy{{r.left, r.bottom}, {r.left, r.top}, {r.right, r.top}, {r.right, r.bottom}, {r.left, r.bottom}}
}

// isClosed reports whether a line ends where it begins.
func isClosed(line []xy) bool { return len(line) > 2 && line[0] == line[len(line)-1] }

// pen is how lines are drawn: a dash and a gap in turns if there are dashes.
type pen struct {
	color  cssColor
	width  float64
	dashes []float64
}

// anchor is the part of a text that is at its position, as SVG's text-anchor.
type anchor string

const (
	atStart  anchor = "start"
	atMiddle anchor = "middle"
	atEnd    anchor = "end"
)

// cssColor is a color and its CSS class. In an HTML report the style sheet defines
// the color, for a light and a dark background.
type cssColor struct {
	class string
	color.NRGBA
}

func newColor(class string, rgb uint32) cssColor {
	return cssColor{class, color.NRGBA{uint8(rgb >> 16), uint8(rgb >> 8), uint8(rgb), 255}}
}

// The colors on a light background; report.css has those on a dark one too. The
// palette can be told apart by people with a red-green color blindness.
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
