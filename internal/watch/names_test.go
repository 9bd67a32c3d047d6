package watch

import (
	"fmt"
	"strings"
	"testing"

	"github.com/charmbracelet/x/ansi"

	"chargetrace/internal/cgroup/cgrouptest"
	"chargetrace/internal/golden"
	"chargetrace/internal/stream"
)

// TestNames draws the screen of a node at three widths, and compares it with testdata: each row
// tells its container from every other.
func TestNames(t *testing.T) {
	s := newState(newVerdict(stream.Info{PageSize: 4096, StartBootNanos: cgrouptest.Start}))
	feed(s, cgrouptest.Node())
	s.tick(cgrouptest.Start + second)
	for _, width := range []int{80, 120, 200} {
		var lines []string
		for line := range strings.SplitSeq(ansi.Strip(s.view(&keys{}, screen{width: width, height: 80})), "\n") {
			if n := ansi.StringWidth(line); n > width {
				t.Errorf("a line of %d columns: %s", n, line)
			}
			lines = append(lines, strings.TrimRight(line, " "))
		}
		file := fmt.Sprintf("testdata/names-%d", width)
		got := strings.Join(lines, "\n") + "\n"
		golden.Compare(t, file, got)
		seen := make(map[string]bool)
		const charged = 26
		for _, line := range lines[2:] {
			if strings.HasPrefix(line, "─") {
				break
			}
			name, _, _ := strings.Cut(line[2:], "  ")
			if seen[name] {
				t.Errorf("%d columns: two rows of %q", width, name)
			}
			seen[name] = true
		}
		if len(seen) != charged {
			t.Errorf("%d columns: %d rows, want %d", width, len(seen), charged)
		}
	}
}
