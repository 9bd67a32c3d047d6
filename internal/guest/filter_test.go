//go:build linux

package guest

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestFilters traces the same processes with each filter, and all processes into a
// recording. A live trace and a replay of the recording with its filter must have the same
// events.
func TestFilters(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	parent := newCgroup(t)
	parent.write(t, "cgroup.subtree_control", "+memory")
	a, b := parent.child(t, "a"), parent.child(t, "b")
	c := parent.child(t, strings.Repeat("c", 64)) // named like a container of runc
	a.write(t, "memory.max", "10M")
	small := startWorkload(t, a, "named 12 filters-small")
	large := startWorkload(t, b, "named 3 filters-large")
	inContainer := startWorkload(t, c, "touch 2")
	shell := startShell(t, b, `i=0; while [ $i -lt 5 ]; do (`+busybox+` true); i=$((i+1)); done`)

	file := filepath.Join(t.TempDir(), "all.ctrace")
	all := chargetrace(t, "-o", file)
	in := "-cgroup=" + parent.path()
	type live struct {
		args []string
		*tracer
	}
	var traces []live
	for _, args := range [][]string{
		{"-cgroup", string(a), "-cgroup", b.path()}, // one with the mount point
		{"-pid", small.pid() + "," + large.pid()},
		{"-pid", shell.pid(), "-pid", large.pid(), "-f"},
		{"-comm", "filters-smal?", "-comm", "[b]usybox"},
		{"-container", "cccccc"},
		{"-pid", small.pid() + "," + shell.pid(), "-comm", "filters-*", in, "-limited"},
		{in, "-counter", "swap"},
		{in, "-counter", "memory", "-min-pages", "2"},
		{in, "-min-pages", "2", "-limited", "-misses"},
	} {
		traces = append(traces, live{args, trace(t, args...)})
	}
	// Run them in sequence: a process that preempts another can drain the CPU's stock of
	// the other's cgroup, at a time that differs between runs.
	small.begin(t)
	small.waitKilled(t)
	for _, p := range []*process{large, inContainer, shell} {
		p.run(t)
	}
	all.stop(t)
	all.checkComplete(t)
	all.checkVerdict(t, a, a, "memory", 10<<20)
	for _, live := range traces {
		t.Run(strings.Join(live.args, " "), func(t *testing.T) {
			live.stop(t)
			charges := live.charges(t)
			none := slices.Contains(live.args, "swap")
			if none != (len(charges) == 0) || none != strings.Contains(live.stderr.String(), " charges matched the filters\n") {
				t.Errorf("%d charges: %s", len(charges), live.stderr)
			}
			if shown := live.counted(t).shown; shown != uint64(len(charges)) {
				t.Errorf("%d charges, shown %d", len(charges), shown)
			}
			played := play(t, file, live.args...)
			if !slices.Contains(live.args, "-f") { // a trace without -f has no forks
				played = slices.DeleteFunc(played, func(e event) bool { return e.Type == "fork" })
			}
			sameEvents(t, live.events(t), played)
			if len(ofType(played, "oom_kill")) > 0 {
				live.checkVerdict(t, a, a, "memory", 10<<20)
			}
			t.Logf("%d charges", len(charges))
		})
	}
}
