//go:build linux

package guest

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"
	"time"
)

// play returns the events of a recording that args select.
func play(t testing.TB, file string, args ...string) []event {
	t.Helper()
	jsonl, _ := chargetraceOutput(t, append([]string{"-r", file, "-o", "-", "-format", "jsonl"}, args...)...)
	return readEvents(t, []byte(jsonl))
}

// sameEvents compares the events of two sources in order. It ignores times, which differ
// between tracers.
func sameEvents(t testing.TB, got, want []event) {
	t.Helper()
	// Each tracer reads what cgroups hold at a time of its own.
	isReading := func(e event) bool { return e.Type == "memory_stat" || e.Type == "held" }
	got, want = slices.DeleteFunc(slices.Clone(got), isReading), slices.DeleteFunc(slices.Clone(want), isReading)
	for i := range min(len(got), len(want)) {
		if g, w := withoutTimes(got[i]), withoutTimes(want[i]); !reflect.DeepEqual(g, w) {
			gotJSON, _ := json.Marshal(g)
			wantJSON, _ := json.Marshal(w)
			t.Fatalf("event %d of %d is\n%s\nwant, of %d,\n%s", i, len(got), gotJSON, len(want), wantJSON)
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d events, want %d", len(got), len(want))
	}
}

func withoutTimes(e event) event {
	e.TimeNanos, e.WallTime, e.DurationNanos = 0, time.Time{}, 0
	return e
}
