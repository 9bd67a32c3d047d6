package report

import (
	"fmt"
	"image"
	"math"
	"testing"
)

// ascii writes an image as text: # is opaque, + partly covered.
func ascii(img image.Image) string {
	var b []byte
	for y := range img.Bounds().Dy() {
		for x := range img.Bounds().Dx() {
			_, _, _, alpha := img.At(x, y).RGBA()
			switch alpha {
			case 0:
				b = append(b, '.')
			case 0xffff:
				b = append(b, '#')
			default:
				b = append(b, '+')
			}
		}
		b = append(b, '\n')
	}
	return string(b)
}

// TestRaster holds that lines are as wide as the pen, have no caps, and round joins.
func TestRaster(t *testing.T) {
	black := newColor("", 0)
	for _, tc := range []struct {
		name string
		draw func(*raster)
		want string
	}{
		{"polygons side by side", func(r *raster) {
			r.fill(black, rect{1, 1, 2.25, 2}.outline(), rect{2.25, 1, 3, 2}.outline())
		}, "..........\n..........\n..####....\n..####....\n..........\n..........\n"},
		{"nothing", func(r *raster) {
			r.fill(black)
			r.fill(black, nil, rect{2, 1, 2, 2}.outline())
			r.stroke(pen{black, 1, nil}, nil, []xy{{1, 1}}, []xy{{1, 1}, {1, 1}})
			r.stroke(pen{black, 1, []float64{1}}, nil)
		}, "..........\n..........\n..........\n..........\n..........\n..........\n"},
		{"out of the image", func(r *raster) { r.fill(black, rect{-9, -9, 1, 1}.outline(), rect{4, 2, 99, 99}.outline()) },
			"##........\n##........\n..........\n..........\n........##\n........##\n"},
		{"a corner", func(r *raster) { r.stroke(pen{black, 1, nil}, []xy{{1, 3}, {1, 3}, {1, 1}, {4, 1}}) },
			"..........\n.+######..\n.#######..\n.##.......\n.##.......\n.##.......\n"},
		{"there and back", func(r *raster) { r.stroke(pen{black, 1, nil}, []xy{{1, 1}, {1, 2}, {1, 2}, {1, 1}}) },
			"..........\n.++.......\n.##.......\n.##.......\n.++.......\n..........\n"},
		{"dashes", func(r *raster) { r.stroke(pen{black, 1, []float64{1.5, 1}}, []xy{{0, 1}, {1, 1}, {1, 1}, {5, 1}}) },
			"..........\n###..###..\n###..###..\n..........\n..........\n..........\n"},
	} {
		r := newRaster(5, 3)
		if tc.draw(r); ascii(r) != tc.want {
			t.Errorf("%s:\n%s", tc.name, ascii(r))
		}
	}
}

// TestRasterText pins the columns of a text for each anchor.
func TestRasterText(t *testing.T) {
	for a, want := range map[anchor]string{atStart: "101 to 150", atMiddle: "75 to 124", atEnd: "49 to 98"} {
		r := newRaster(100, 20)
		r.text(newColor("", 0), fontSize, xy{50, 15}, a, "HHH")
		left, right := math.MaxInt, 0
		for x := range r.Bounds().Dx() {
			for y := range r.Bounds().Dy() {
				if r.RGBAAt(x, y).A > 0 {
					left, right = min(left, x), max(right, x)
				}
			}
		}
		if got := fmt.Sprintf("%d to %d", left, right); got != want {
			t.Errorf("%s: %s, want %s", a, got, want)
		}
	}
}
