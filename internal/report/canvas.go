package report

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"image"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/vg"
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

// svg is a [vg.Canvas] that writes SVG. That of package vgsvg has its colours in
// style attributes, which no Content-Security-Policy allows that is worth
// having, and which do not follow the reader's choice of light or dark.
type svg struct {
	b             bytes.Buffer
	width, height vg.Length // a vg.Length is a pixel here
	color         cssColor
	line          vg.Length
	dashes        []vg.Length
	origin        vg.Point // of the zone, from the top left
	heading       bool
}

func newSVG(width, height vg.Length) *svg { return &svg{width: width, height: height} }

func (s *svg) printf(format string, args ...any) { fmt.Fprintf(&s.b, format, args...) }

// beginZone begins a part that shows what is in it only, and that a script can
// stretch.
func (s *svg) beginZone(r vg.Rectangle) {
	size := r.Size()
	s.printf(`<svg class="zone" x="%s" y="%s" width="%s" height="%s" viewBox="0 0 %[3]s %[4]s" preserveAspectRatio="none">`,
		number(r.Min.X), number(s.height-r.Max.Y), number(size.X), number(size.Y))
	s.origin = vg.Point{X: r.Min.X, Y: s.height - r.Max.Y}
}

func (s *svg) endZone() {
	s.b.WriteString("</svg>")
	s.origin = vg.Point{}
}

func (s *svg) endGroup() { s.b.WriteString("</g>") }

// number has a tenth of a pixel.
func number(x vg.Length) string {
	return strconv.FormatFloat(math.Round(float64(x)*10)/10, 'f', -1, 64)
}

func (s *svg) path(p vg.Path) {
	s.b.WriteString(` d="`)
	var lastX, lastY string
	for _, c := range p {
		x, y := number(c.Pos.X-s.origin.X), number(s.height-c.Pos.Y-s.origin.Y)
		switch {
		case c.Type == vg.CloseComp:
			s.b.WriteByte('Z')
			continue
		case c.Type == vg.MoveComp:
			s.b.WriteString("M" + x + " " + y)
		case c.Type != vg.LineComp:
			panic("report: nothing is drawn with curves")
		// Most lines are steps.
		case y == lastY:
			s.b.WriteString("H" + x)
		case x == lastX:
			s.b.WriteString("V" + y)
		default:
			s.b.WriteString("L" + x + " " + y)
		}
		lastX, lastY = x, y
	}
	s.b.WriteString(`"/>`)
}

// Stroke implements [vg.Canvas].
func (s *svg) Stroke(p vg.Path) {
	s.printf(`<path class="s %s" stroke-width="%s"`, s.color.class, number(s.line))
	if len(s.dashes) > 0 {
		s.b.WriteString(` stroke-dasharray="`)
		for _, d := range s.dashes {
			s.b.WriteString(number(d) + " ")
		}
		s.b.WriteByte('"')
	}
	s.path(p)
}

// Fill implements [vg.Canvas].
func (s *svg) Fill(p vg.Path) {
	s.printf(`<path class="f %s"`, s.color.class)
	s.path(p)
}

// FillString implements [vg.Canvas]. Text is placed by its middle, or where it is
// a heading by its beginning: the reader's font is not the one that it was
// measured in.
func (s *svg) FillString(f font.Face, pt vg.Point, text string) {
	anchor := "start"
	if !s.heading {
		anchor = "middle"
		pt.X += f.Width(text) / 2
	}
	s.printf(`<text class="f %s" text-anchor="%s" font-size="%s" x="%s" y="%s">`, s.color.class, anchor, number(f.Font.Size), number(pt.X), number(s.height-pt.Y))
	s.text(text)
	s.b.WriteString("</text>")
}

func (s *svg) text(text string) {
	xml.EscapeText(&s.b, []byte(text)) // a Buffer does not fail
}

// SetColor implements [vg.Canvas].
func (s *svg) SetColor(c color.Color) { s.color, _ = c.(cssColor) }

// SetLineWidth implements [vg.Canvas].
func (s *svg) SetLineWidth(w vg.Length) { s.line = w }

// SetLineDash implements [vg.Canvas].
func (s *svg) SetLineDash(dashes []vg.Length, _ vg.Length) { s.dashes = dashes }

// Push implements [vg.Canvas]: nothing changes what there is to restore.
func (s *svg) Push() {}

// Pop implements [vg.Canvas].
func (s *svg) Pop() {}

// Rotate implements [vg.Canvas].
func (s *svg) Rotate(float64) { panic("report: nothing is drawn rotated") }

// Translate implements [vg.Canvas].
func (s *svg) Translate(vg.Point) { panic("report: nothing is drawn moved") }

// Scale implements [vg.Canvas].
func (s *svg) Scale(float64, float64) { panic("report: nothing is drawn scaled") }

// DrawImage implements [vg.Canvas].
func (s *svg) DrawImage(vg.Rectangle, image.Image) { panic("report: there are no images") }
