// Package report writes a trace as an HTML page: what ran out of memory, when and
// who charged it, with plots and tables. It also writes the main plot alone, and
// compares two traces. A page needs nothing but a browser. The package must not know sources,
// or sinks other than summary.
package report

import (
	"cmp"
	"fmt"
	"image/png"
	"io"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
	"chargetrace/internal/text"
)

// Report is a [stream.Sink] that writes a report when it is closed.
type Report struct {
	collector
	w     io.Writer
	write func() error
}

var _ stream.Sink = (*Report)(nil)

// Close writes the report. The summary is closed before it.
func (r *Report) Close(stream.Counts) error {
	// Bound the size of a page whose cgroups have long names.
	sum, told := *r.sum, *r.sum.Verdict
	told.NameWidth, sum.Verdict = text.MaxName, &told
	r.sum, r.labels = &sum, sum.Labels()
	return r.write()
}

// NewHTML returns a Report that writes an HTML page. Events go to the summary first.
func NewHTML(w io.Writer, sum *summary.Summary) *Report {
	r := &Report{collector: newCollector(sum), w: w}
	r.write = r.writeHTML
	return r
}

// NewSVG returns a Report that writes the main plot as SVG.
func NewSVG(w io.Writer, sum *summary.Summary) *Report {
	r := &Report{collector: newCollector(sum), w: w}
	r.write = r.writeSVG
	return r
}

// NewPNG returns a Report that writes the main plot as PNG.
func NewPNG(w io.Writer, sum *summary.Summary) *Report {
	r := &Report{collector: newCollector(sum), w: w}
	r.write = r.writePNG
	return r
}

// The size of the main plot alone, in pixels.
const pictureWidth, pictureHeight = 1080, 440

// picture draws the main plot below its title and caption.
func (c *collector) picture(to canvas) {
	to.fill(paperColor, []xy{{0, pictureHeight}, {pictureWidth, pictureHeight}, {pictureWidth, 0}, {0, 0}})
	head := xy{16, 29.4}
	plots, _ := c.plots(1)
	if len(plots) == 0 {
		to.text(limitColor, 17, head, atStart, c.noCharges())
		return
	}
	to.text(limitColor, 17, head, atStart, c.title(plots[0]))
	to.text(labelColor, fontSize, xy{head.x, 48.3}, atStart, c.caption(plots[0]))
	plots[0].draw(to, rect{0, 56, pictureWidth - 8, pictureHeight - 6})
}

func (r *Report) writeSVG() error {
	var s svg
	s.printf(`<svg xmlns="http://www.w3.org/2000/svg" role="img" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="system-ui, sans-serif">`, pictureWidth, pictureHeight)
	if plots, _ := r.plots(1); len(plots) > 0 {
		s.b.WriteString("<title>")
		s.escape(r.title(plots[0]))
		s.b.WriteString("</title><desc>")
		s.escape(r.caption(plots[0]))
		s.b.WriteString("</desc>")
	}
	s.b.WriteString(`<style>.s{fill:none;stroke:currentColor;stroke-linejoin:round}.f{fill:currentColor}`)
	for _, c := range []cssColor{paperColor, labelColor, gridColor, usageColor, areaColor, limitColor, highColor, failedColor, reclaimColor, lostColor, killColor} {
		s.printf(".%s{color:#%02x%02x%02x}", c.class, c.R, c.G, c.B)
	}
	s.b.WriteString("</style>")
	r.picture(&s)
	s.b.WriteString("</svg>\n")
	_, err := r.w.Write(s.b.Bytes())
	return err
}

func (r *Report) writePNG() error {
	to := newRaster(pictureWidth, pictureHeight)
	r.picture(to)
	return png.Encode(r.w, to.RGBA)
}

func (c *collector) noCharges() string {
	if c.sum.Counts.Read > 0 {
		return "No charge in this trace matched the filters."
	}
	return "This trace holds no charges."
}

// title names the page counter of a plot.
func (c *collector) title(u *usagePlot) string {
	return fmt.Sprintf("%s: %v", c.name(u.key.Cgroup), u.key.Kind)
}

// name returns the label of a cgroup.
func (c *collector) name(id event.CgroupID) string {
	return fit(cmp.Or(c.labels[id], c.sum.Names.Label(id)))
}

// caption describes a plot in a sentence.
func (c *collector) caption(u *usagePlot) string {
	t := u.total()
	s := "At most " + c.size(u.peak, u.key.Kind)
	switch {
	case u.max < 0:
		s += " in use; no limit of its own"
	case u.limitDrawn:
		s += " in use, of a limit of " + c.size(u.max, u.key.Kind)
		if least := t.max.least.pages; least < u.max {
			s += ", at times " + c.size(least, u.key.Kind)
		}
	default:
		s += " in use, far below the limit of " + c.size(u.max, u.key.Kind)
	}
	if u.high >= 0 {
		s += ", throttled above " + c.size(u.high, u.key.Kind)
	}
	if t.failed.count > 0 {
		s += "; " + counted(t.failed.count, "charge") + " failed"
	}
	if t.reclaim.count > 0 {
		s += "; reclaim ran " + times(t.reclaim.count) + ", for " + duration(t.reclaimNanos)
	}
	if n := uint64(len(u.kills)); n > 0 {
		s += "; " + counted(n, "OOM kill")
	}
	return s + "."
}

func times(n uint64) string {
	if n == 1 {
		return "once"
	}
	return count(n) + " times"
}

func (c *collector) size(pages int64, kind event.Kind) string {
	return c.sum.Size(kind, pages)
}

// since writes the time of an event.
func (c *collector) since(nanos uint64) string { return c.sum.Format.Moment(nanos) }

// clock converts a time to the wall clock's.
func (c *collector) clock(nanos uint64) time.Time {
	return c.sum.Clock.Wall(nanos)
}
