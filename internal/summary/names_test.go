package summary

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"chargetrace/internal/cgroup/cgrouptest"
	"chargetrace/internal/event"
	"chargetrace/internal/golden"
	"chargetrace/internal/stream"
)

// TestNames prints the summary of a node for terminals and for a file, and compares it with
// testdata.
func TestNames(t *testing.T) {
	for _, columns := range []int{80, 120, 200, 0} {
		s := newSummary(stream.Info{PageSize: 4096, StartBootNanos: cgrouptest.Start})
		s.Columns = columns
		if err := errors.Join(s.Feed(s).Write(cgrouptest.Node()), s.Close(stream.Counts{})); err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := s.Print(&b); err != nil {
			t.Fatal(err)
		}
		file := fmt.Sprintf("testdata/names-%d", columns)
		golden.Compare(t, file, b.String())
		table, _, _ := strings.Cut(strings.TrimPrefix(b.String(), "\n"), "\n\n")
		seen := make(map[string]bool)
		for row := range strings.Lines(table) {
			name, _, _ := strings.Cut(row, "  ")
			if seen[name] {
				t.Errorf("%d columns: two rows of %q", columns, name)
			}
			seen[name] = true
			if n := utf8.RuneCountInString(strings.TrimSuffix(row, "\n")); columns > 0 && n > columns {
				t.Errorf("%d columns: a row of %d: %s", columns, n, row)
			}
		}
	}
}

// TestGenerations numbers two runs of a unit, with the time of their charges.
func TestGenerations(t *testing.T) {
	s := newSummary(stream.Info{PageSize: 4096, StartBootNanos: cgrouptest.Start})
	if err := errors.Join(s.Feed(s).Write(cgrouptest.Node()), s.Close(stream.Counts{})); err != nil {
		t.Fatal(err)
	}
	var labels []string
	for _, label := range s.Labels() {
		if strings.HasPrefix(label, "leaky.service") {
			labels = append(labels, label)
		}
	}
	if got := strings.Join(labels, ", "); len(labels) != 2 || !strings.Contains(got, "leaky.service #1 (630.0 ms to 640.0 ms)") || !strings.Contains(got, "leaky.service #2 (690.0 ms to 700.0 ms)") {
		t.Errorf("%s", got)
	}
}

// TestHostileName checks that a name as long as the kernel allows, of bytes that print as four
// each, widens no other row, and is not cut in a file.
func TestHostileName(t *testing.T) {
	s := newSummary(info)
	hostile := strings.Repeat("\x1b", 255)
	events := []event.Event{name(3, 1, hostile), name(2, 1, "a"), name(1, 0, ""), charge(1, 7, 64, 0, event.OK)}
	other := charge(2, 7, 64, 0, event.OK)
	other.Cgroup.ID = 2
	if err := s.Feed(s).Write(append(events, other)); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := s.Print(&b); err != nil {
		t.Fatal(err)
	}
	const head = "CGROUP  CHARGES  PAGES  FAILED  MISSES  FIRST HIT  RECLAIM  FREED\n"
	const row = "  1        64     0       0       -          0        0\n"
	want := "\n" + head + "/a    " + row + "/" + strings.Repeat(`\x1b`, 255) + "\n      " + row
	if !strings.HasPrefix(b.String(), want) {
		t.Errorf("%s", b.String())
	}
}
