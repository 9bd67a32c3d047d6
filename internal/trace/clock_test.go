package trace

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// TestClockSteps sets the clock twice during a trace in two files, and plays these alone and
// together, and after them a trace of a later boot.
func TestClockSteps(t *testing.T) {
	const start, wall = 1000, 1e18
	charged := func(at uint64) event.Event {
		return event.Event{Type: event.Lost, BootNanos: at, LostCharges: 1}
	}
	step := func(at uint64, by int64) event.Event {
		return event.Event{Type: event.ClockStep, BootNanos: at, BootWallNanos: wall + by}
	}
	var files [3]bytes.Buffer
	trace := stream.Info{PageSize: 4096, StartBootNanos: start, BootWallNanos: wall}
	ring, err := NewRing(trace, RingOptions{Memory: make([]byte, MinRingBytes)})
	if err != nil {
		t.Fatal(err)
	}
	tail := ring.Tail()
	// write writes a part of the trace.
	write := func(part *bytes.Buffer, events ...event.Event) {
		t.Helper()
		if err := errors.Join(ring.Write(events), ring.Flush()); err != nil {
			t.Fatal(err)
		}
		piece, err := tail.Begin(trace)
		part.Write(piece)
		for err == nil && tail.Pending() {
			piece, err = tail.Next()
			part.Write(piece)
		}
		if err == nil {
			piece, err = tail.End(nil)
			part.Write(piece)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write(&files[0], charged(1001), charged(1002), step(1003, 500), charged(1004), charged(start)) // the last is late
	write(&files[1], charged(1005), step(1006, 500), step(1007, -20), charged(1008))
	w := newWriter(t, &files[2], stream.Info{PageSize: 4096, StartBootNanos: 10, BootWallNanos: wall + 5000})
	if err := errors.Join(w.Write([]event.Event{charged(11)}), w.Close(stream.Counts{})); err != nil {
		t.Fatal(err)
	}

	// The first file has the header of the step in the field for it.
	var walls []int64
	for _, p := range payloads(t, files[0].Bytes()) {
		walls = append(walls, p.header.bootWallNanos)
	}
	if want := []int64{wall, wall + 500, 0}; !slices.Equal(walls, want) {
		t.Errorf("clocks %d, want %d", walls, want)
	}

	for _, tc := range []struct {
		files   []int
		from    uint64
		version uint32 // of the last file
		want    []string
	}{
		{[]int{0}, 0, Version, []string{"1001", "1002", "1002 +500", "1004", "1000"}},
		{[]int{0}, 1003, Version, []string{"1003 +500", "1004"}},
		{[]int{1}, 0, Version, []string{"1005 +500", "1005", "1008 -20", "1008"}},
		{[]int{0, 1}, 0, Version, []string{"1001", "1002", "1002 +500", "1004", "1000", "1005", "1008 -20", "1008"}},
		{[]int{0, 2}, 0, Version, []string{"1001", "1002", "1002 +500", "1004", "1000", "4511"}},
		{[]int{0, 2}, 0, 4, []string{"1001", "1002", "1002 +500", "1004", "1000", "4511"}},
		{[]int{2, 0}, 0, Version, []string{"11", "-3999", "-3998", "-3998 +500", "-3996", "-4000"}},
	} {
		var readers []*Reader
		for _, i := range tc.files {
			rd, err := NewReader(bytes.NewReader(files[i].Bytes()), Options{})
			if err != nil {
				t.Fatal(err)
			}
			rd.Limit(tc.from, 0)
			readers = append(readers, rd)
		}
		readers[len(readers)-1].block.version = tc.version
		s, err := NewSequence(readers...)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for batch := make([]event.Event, 2); ; {
			n, err := s.Read(batch)
			for _, e := range batch[:n] {
				told := fmt.Sprint(int64(e.BootNanos))
				if e.Type == event.ClockStep {
					told += fmt.Sprintf(" %+d", e.BootWallNanos-s.Info().BootWallNanos)
				}
				got = append(got, told)
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("files %v from %d: %q\nwant %q", tc.files, tc.from, got, tc.want)
		}
	}
}
