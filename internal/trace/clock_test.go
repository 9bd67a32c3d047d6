package trace

import (
	"bytes"
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
	w := newWriter(t, &files[0], trace)
	write := func(events ...event.Event) {
		t.Helper()
		if err := w.Write(events); err != nil {
			t.Fatal(err)
		}
	}
	write(charged(1001), charged(1002), step(1003, 500), charged(1004), charged(start)) // the last is late
	next, err := w.Next(&files[1])
	if err != nil {
		t.Fatal(err)
	}
	w = next
	write(charged(1005), step(1006, 500), step(1007, -20), charged(1008))
	if err := w.Close(stream.Counts{}); err != nil {
		t.Fatal(err)
	}
	w = newWriter(t, &files[2], stream.Info{PageSize: 4096, StartBootNanos: 10, BootWallNanos: wall + 5000})
	write(charged(11))
	if err := w.Close(stream.Counts{}); err != nil {
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
