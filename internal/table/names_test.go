package table

import (
	"fmt"
	"strings"
	"testing"

	"chargetrace/internal/cgroup/cgrouptest"
	"chargetrace/internal/event"
	"chargetrace/internal/golden"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
	"chargetrace/internal/verdict"
	"chargetrace/internal/world"
)

// TestNames prints the wide table of a node for terminals and for a file, and compares it with
// testdata: each row tells its container from every other.
func TestNames(t *testing.T) {
	for _, columns := range []int{80, 120, 200, 0} {
		var b strings.Builder
		w := world.New(stream.Info{PageSize: 4096, StartBootNanos: cgrouptest.Start})
		table := w.Feed(New(&b, verdict.New(w, text.Format{}), Options{Wide: true, Columns: columns}))
		cgroupOf := make(map[string]uint64)
		for _, e := range cgrouptest.Node() {
			from := b.Len()
			if err := table.Write([]event.Event{e}); err != nil {
				t.Fatal(err)
			}
			if e.Type != event.Charge {
				continue
			}
			// What follows the column OUTCOME, up to two blanks.
			_, after, _ := strings.Cut(b.String()[from:], strings.TrimRight(e.Outcome.String(), " ")+" ")
			name, _, _ := strings.Cut(strings.TrimLeft(after, " "), "  ")
			name = strings.Split(name, " = ")[0]
			unit := strings.HasSuffix(name, ".service") // it was started twice, which a row has no room for
			if other, ok := cgroupOf[name]; ok && other != e.Cgroup.ID && !unit {
				t.Errorf("%d columns: cgroups %d and %d are both %q", columns, other, e.Cgroup.ID, name)
			}
			cgroupOf[name] = e.Cgroup.ID
		}
		golden.Compare(t, fmt.Sprintf("testdata/wide-%d", columns), b.String())
	}
}
