package export

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/pprof/profile"

	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/world"
)

// hostile is a container whose names are those of an attacker.
var hostile = container.Identity{Runtime: "\x1b", Name: "=1\x1b[31m\"\xff</script>", Namespace: `"}`, Pod: "a,b\r", PodUID: "\x00"}

// TestHostileNames writes the names of a container in all formats. Each keeps its form, and none
// has a control character.
func TestHostileNames(t *testing.T) {
	names := []event.Event{
		{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 3}, ParentID: 1, Name: id, Identity: hostile.Encode()},
		{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}},
	}
	events := append(names, sampleEvents()[3])
	write := func(newSink func(io.Writer, *world.World) stream.Sink) string {
		var b bytes.Buffer
		s := fed(newSink, &b, info)
		if err := s.Write(events); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(stream.Counts{}); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	const name, label = `=1\x1b[31m"\xff</script>`, `=1\x1b[31m"\xff</script> · 0123456789ab · "}/a,b\x0d`

	lines := write(func(w io.Writer, of *world.World) stream.Sink { return NewJSONL(w, of) })
	var line struct {
		Label     string
		Container map[string]string
	}
	if err := json.Unmarshal([]byte(strings.SplitAfter(lines, "\n")[0]), &line); err != nil {
		t.Fatalf("%v: %s", err, lines)
	}
	if line.Label != label || line.Container["name"] != name || line.Container["namespace"] != `"}` || line.Container["pod"] != `a,b\x0d` || line.Container["id"] != id {
		t.Errorf("%+v", line)
	}

	table := write(func(w io.Writer, of *world.World) stream.Sink { return NewCSV(w, of) })
	records, err := csv.NewReader(strings.NewReader(table)).ReadAll()
	if err != nil || len(records) != 2 {
		t.Fatalf("%v: %q", err, table)
	}
	row := strings.Join(records[1], "|")
	for _, want := range []string{"|'" + label, "|'" + name + "|", `|"}|a,b\x0d|`} {
		if !strings.Contains(row, want) {
			t.Errorf("no %q in %q", want, row)
		}
	}

	prof, err := profile.Parse(strings.NewReader(write(func(w io.Writer, of *world.World) stream.Sink { return NewPprof(w, of) })))
	if err != nil {
		t.Fatal(err)
	}
	if l := prof.Sample[0].Label; l["container"][0] != name || l["pod"][0] != `a,b\x0d` || l["namespace"][0] != `"}` {
		t.Errorf("%q", l)
	}

	tracks := write(func(w io.Writer, of *world.World) stream.Sink { return NewPerfetto(w, of) })
	if got := strings.Join(perfettoLines(t, tracks), "\n"); !strings.Contains(got, "cgroup_label="+label+" ") {
		t.Errorf("%s", got)
	}
	for _, out := range []string{lines, table} {
		if !utf8.ValidString(out) || strings.ContainsAny(out, "\x1b\x00") {
			t.Errorf("%q", out)
		}
	}
}
