package report

// Lanes are the strips below a plot, one for each sort of marks.
const (
	laneHeight = 16
	laneGap    = 10
)

const fontSize = 12

// narrow is the width of a canvas up to which a plot is drawn for a phone.
const narrow = 500

// frame is a plot's canvas with the zone that shows data, and its two axes.
type frame struct {
	canvas
	zone     rect
	right    float64 // of the whole
	from, to uint64  // BootNanos
	start    uint64  // times count from here, in BootNanos
	top      float64 // the value at the top of the zone
	base     float64 // where the value 0 is, above the lanes
}

// newFrame returns the frame of a plot that fills a part of c.
func newFrame(c canvas, within rect, from, to, start uint64, top float64, lanes int) *frame {
	left := 70.0
	if within.width() < narrow {
		left = 58
	}
	f := &frame{canvas: c, right: within.right, from: from, to: to, start: start, top: top}
	f.zone = rect{within.left + left, within.top + 20, within.right - 8, within.bottom - 24}
	f.base = f.zone.bottom
	if lanes > 0 {
		f.base -= float64(lanes)*laneHeight + laneGap
	}
	return f
}

// x returns the position of a time. Times out of range are at the ends of the axis.
func (f *frame) x(nanos uint64) float64 {
	share := float64(min(max(nanos, f.from), f.to)-f.from) / float64(f.to-f.from)
	return f.zone.left + share*f.zone.width()
}

// y returns the position of a value.
func (f *frame) y(value float64) float64 {
	return f.base - value/f.top*(f.base-f.zone.top)
}

// at returns the position of a point. Values out of range are at the edges.
func (f *frame) at(p point) xy {
	return xy{f.x(p.nanos), max(min(f.y(float64(p.pages)), f.base), f.zone.top)}
}

// axes draws lines and labels at round values, and ticks at round times.
func (f *frame) axes(bytesPer float64) {
	line := pen{color: gridColor, width: 1}
	for _, v := range sizeTicks(f.top * bytesPer) {
		y := f.y(v / bytesPer)
		f.stroke(line, []xy{{f.zone.left, y}, {f.zone.right, y}})
		f.label(labelColor, y, tickSize(v))
	}
	f.group(`class="times"`, func() {
		apart := 90.0
		if f.zone.width() < 400 {
			apart = 60
		}
		for _, nanos := range timeTicks(f.sinceStart(f.from), f.sinceStart(f.to), f.zone.width()/apart) {
			x := f.x(uint64(int64(f.start) + nanos))
			f.stroke(line, []xy{{x, f.zone.bottom}, {x, f.zone.bottom + 4}})
			// report.js has this distance too.
			f.text(labelColor, fontSize, xy{x, f.zone.bottom + 18.3}, atMiddle, tickTime(nanos, f.sinceStart(f.to)))
		}
	})
}

// label writes left of the zone, its middle at y.
func (f *frame) label(c cssColor, y float64, text string) {
	const capHeight = 0.72 // of the font size, in most fonts
	f.text(c, fontSize, xy{f.zone.left - 8, y + fontSize*capHeight/2}, atEnd, text)
}

func (f *frame) sinceStart(nanos uint64) int64 { return int64(nanos - f.start) }
