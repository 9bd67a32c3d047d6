package report

import (
	"image"
	"math"
	"slices"
	"sync"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
	"golang.org/x/image/vector"
)

// raster is a canvas that draws an image.
type raster struct {
	*image.RGBA
	vector vector.Rasterizer
}

// dots is how many dots of the image, in each direction, a pixel of the canvas has:
// most screens have that many.
const dots = 2

func newRaster(width, height int) *raster {
	return &raster{RGBA: image.NewRGBA(image.Rect(0, 0, dots*width, dots*height))}
}

func (r *raster) fill(c cssColor, polygons ...[]xy) {
	// The rasterizer takes time for its whole area: it gets that of the polygons.
	box := rect{math.Inf(1), math.Inf(1), math.Inf(-1), math.Inf(-1)}
	for _, polygon := range polygons {
		for _, p := range polygon {
			box = rect{min(box.left, p.x), min(box.top, p.y), max(box.right, p.x), max(box.bottom, p.y)}
		}
	}
	area := image.Rect(int(math.Floor(dots*box.left)), int(math.Floor(dots*box.top)), int(math.Ceil(dots*box.right)), int(math.Ceil(dots*box.bottom))).
		Intersect(r.Bounds())
	if area.Empty() {
		return
	}
	r.vector.Reset(area.Dx(), area.Dy())
	for _, polygon := range polygons {
		for i, p := range polygon {
			x, y := float32(dots*p.x-float64(area.Min.X)), float32(dots*p.y-float64(area.Min.Y))
			if i == 0 {
				r.vector.MoveTo(x, y)
			} else {
				r.vector.LineTo(x, y)
			}
		}
		r.vector.ClosePath()
	}
	r.vector.Draw(r.RGBA, area, image.NewUniform(c), image.Point{})
}

// stroke fills a quadrilateral for each segment, and a wedge at each join.
func (r *raster) stroke(p pen, lines ...[]xy) {
	var polygons [][]xy
	for _, line := range lines {
		parts := [][]xy{line}
		if len(p.dashes) > 0 {
			parts = dash(line, p.dashes)
		}
		for _, part := range parts {
			part = slices.Compact(slices.Clone(part)) // two equal points have no direction
			for i := 1; i < len(part); i++ {
				a, b := part[i-1], part[i]
				n := normal(a, b, p.width)
				polygons = append(polygons, []xy{{a.x + n.x, a.y + n.y}, {b.x + n.x, b.y + n.y}, {b.x - n.x, b.y - n.y}, {a.x - n.x, a.y - n.y}})
				if i+1 < len(part) {
					polygons = append(polygons, join(a, b, part[i+1], p.width))
				} else if isClosed(part) {
					polygons = append(polygons, join(a, b, part[1], p.width))
				}
			}
		}
	}
	r.fill(p.color, polygons...)
}

// normal returns half the width of a line from a to b, at a right angle to it.
func normal(a, b xy, width float64) xy {
	scale := width / 2 / math.Hypot(b.x-a.x, b.y-a.y)
	return xy{(a.y - b.y) * scale, (b.x - a.x) * scale}
}

// join returns what two segments leave open at the outer side of their turn at b. It
// overlaps neither, since edges that overlap get darker. It has the orientation of
// the segments.
func join(a, b, c xy, width float64) []xy {
	const steps = 4 // as round as lines of few dots need
	n, m := normal(a, b, width), normal(b, c, width)
	turn := math.Atan2(n.x*m.y-n.y*m.x, n.x*m.x+n.y*m.y)
	if turn > 0 {
		n, turn = xy{-m.x, -m.y}, -turn
	}
	wedge := []xy{b}
	for i := range steps + 1 {
		sin, cos := math.Sincos(turn * float64(i) / steps)
		wedge = append(wedge, xy{b.x + cos*n.x - sin*n.y, b.y + sin*n.x + cos*n.y})
	}
	return wedge
}

// dash cuts a line into dashes. The lengths are those of dashes and gaps in turns.
func dash(line []xy, lengths []float64) (dashes [][]xy) {
	n, left := 0, lengths[0]
	var current []xy
	for i, b := range line {
		if i > 0 {
			a := line[i-1]
			rest := math.Hypot(b.x-a.x, b.y-a.y)
			for ; rest > left; n, left = n+1, lengths[(n+1)%len(lengths)] {
				a = xy{a.x + (b.x-a.x)*left/rest, a.y + (b.y-a.y)*left/rest}
				rest -= left
				if n%2 == 0 {
					dashes = append(dashes, append(current, a))
				}
				current = []xy{a}
			}
			left -= rest
		}
		current = append(current, b)
	}
	if n%2 == 0 {
		dashes = append(dashes, current)
	}
	return dashes
}

var textFont = sync.OnceValue(func() *opentype.Font {
	f, err := opentype.Parse(goregular.TTF)
	if err != nil {
		panic(err) // it is part of the program
	}
	return f
})

func (r *raster) text(c cssColor, size float64, at xy, a anchor, text string) {
	// At 72 dots per inch a point is a dot.
	face, err := opentype.NewFace(textFont(), &opentype.FaceOptions{Size: dots * size, DPI: 72})
	if err != nil {
		panic(err) // NewFace has no error to return
	}
	d := font.Drawer{Dst: r.RGBA, Src: image.NewUniform(c), Face: face, Dot: fixed.Point26_6{X: fixed.Int26_6(64 * dots * at.x), Y: fixed.Int26_6(64 * dots * at.y)}}
	switch a {
	case atMiddle:
		d.Dot.X -= d.MeasureString(text) / 2
	case atEnd:
		d.Dot.X -= d.MeasureString(text)
	}
	d.DrawString(text)
}

func (r *raster) inZone(_ rect, draw func()) { draw() }

func (r *raster) group(_ string, draw func()) { draw() }
