package report

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"strconv"
)

// svg is a canvas that writes SVG. Its colors are classes: style attributes would
// need an unsafe Content-Security-Policy, and would not follow the reader's choice
// of a light or a dark page.
type svg struct {
	b        bytes.Buffer
	scripted bool // with the zone and the groups
	origin   xy   // of the zone
}

func (s *svg) printf(format string, args ...any) { fmt.Fprintf(&s.b, format, args...) }

func (s *svg) escape(text string) {
	xml.EscapeText(&s.b, []byte(text)) // a Buffer does not fail
}

// number rounds to a tenth of a pixel.
func number(x float64) string {
	return strconv.FormatFloat(math.Round(x*10)/10, 'f', -1, 64)
}

func (s *svg) fill(c cssColor, polygons ...[]xy) {
	s.printf(`<path class="f %s"`, c.class)
	s.path(polygons, true)
}

func (s *svg) stroke(p pen, lines ...[]xy) {
	s.printf(`<path class="s %s" stroke-width="%s"`, p.color.class, number(p.width))
	if len(p.dashes) > 0 {
		s.b.WriteString(` stroke-dasharray="`)
		for _, d := range p.dashes {
			s.b.WriteString(number(d) + " ")
		}
		s.b.WriteByte('"')
	}
	s.path(lines, false)
}

func (s *svg) path(lines [][]xy, polygons bool) {
	s.b.WriteString(` d="`)
	for _, line := range lines {
		closed := isClosed(line)
		if closed {
			line = line[:len(line)-1]
		}
		var lastX, lastY string
		for i, p := range line {
			x, y := number(p.x-s.origin.x), number(p.y-s.origin.y)
			switch {
			case i == 0:
				s.b.WriteString("M" + x + " " + y)
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
		if closed || polygons {
			s.b.WriteByte('Z')
		}
	}
	s.b.WriteString(`"/>`)
}

func (s *svg) text(c cssColor, size float64, at xy, a anchor, text string) {
	s.printf(`<text class="f %s" text-anchor="%s" font-size="%s" x="%s" y="%s">`, c.class, a, number(size), number(at.x), number(at.y))
	s.escape(text)
	s.b.WriteString("</text>")
}

func (s *svg) inZone(zone rect, draw func()) {
	if !s.scripted {
		draw()
		return
	}
	s.printf(`<svg class="zone" x="%s" y="%s" width="%s" height="%s" viewBox="0 0 %[3]s %[4]s" preserveAspectRatio="none">`,
		number(zone.left), number(zone.top), number(zone.width()), number(zone.height()))
	s.origin = xy{zone.left, zone.top}
	draw()
	s.origin = xy{}
	s.b.WriteString("</svg>")
}

func (s *svg) group(attributes string, draw func()) {
	if !s.scripted {
		draw()
		return
	}
	s.printf("<g %s>", attributes)
	draw()
	s.b.WriteString("</g>")
}
