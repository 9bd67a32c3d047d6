//go:build linux

package guest

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pod is a pod with containers as the kubelet makes and logs them.
type pod struct {
	cgroup
	name, uid  string
	containers map[string]cgroup // by name
}

// newPod makes the pod shop/cart-N with containers.
func newPod(t testing.TB, parent cgroup, n int, containers ...string) pod {
	t.Helper()
	p := pod{name: fmt.Sprintf("cart-%d", n), uid: fmt.Sprintf("8f9a1c2d-0b1e-4f3a-9c5d-6e7f8091827%d", n), containers: make(map[string]cgroup)}
	writeFile(t, fmt.Sprintf("/var/log/pods/shop_%s_%s/0.log", p.name, p.uid), "")
	p.cgroup = parent.child(t, "pod"+p.uid)
	p.write(t, "cgroup.subtree_control", "+memory")
	for i, name := range containers {
		id := fmt.Sprintf("%x%x%062x", 10+n, i, 0xfeed)
		writeFile(t, fmt.Sprintf("/var/log/containers/%s_shop_%s-%s.log", p.name, name, id), "")
		p.containers[name] = p.child(t, id)
	}
	return p
}

// remove removes the cgroups of the pod, and its logs.
func (p *pod) remove(t testing.TB) {
	t.Helper()
	for _, c := range p.containers {
		c.remove(t)
	}
	p.cgroup.remove(t)
	logs, err := filepath.Glob("/var/log/containers/" + p.name + "_*")
	if err != nil {
		t.Fatal(err)
	}
	for _, log := range append(logs, fmt.Sprintf("/var/log/pods/shop_%s_%s", p.name, p.uid)) {
		if err := os.RemoveAll(log); err != nil {
			t.Fatal(err)
		}
	}
}

// writeFile writes a file, and makes its directory.
func writeFile(t testing.TB, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestNamedCgroups selects a pod, its containers, and a unit by their names. All of them are
// removed and created again meanwhile. Each live trace has the same events as a recording of
// everything with the same filters, which has the names although the pods and files are gone.
func TestNamedCgroups(t *testing.T) {
	if !Enter(t, Exact.On(Ends...)) {
		return
	}
	top := newTop(t)
	first := newPod(t, top, 0, "java", "envoy")
	unit := top.child(t, "leaky.service")
	container := func(p pod, name string) string {
		return fmt.Sprintf("%s · %.12s · shop/%s", name, filepath.Base(string(p.containers[name])), p.name)
	}

	file := filepath.Join(t.TempDir(), "all.ctrace")
	all := chargetrace(t, "-o", file)
	type live struct {
		args  []string
		want  string // what is charged, and in how many cgroups
		notes []string
		*tracer
	}
	var traces []*live
	for _, l := range []live{
		{args: []string{"-pod", "shop/cart-*"}, want: "envoy cart-0: 1, java cart-0: 1, java cart-1: 1"},
		{args: []string{"-pod", "cart-0"}, want: "envoy cart-0: 1, java cart-0: 1"},
		{args: []string{"-pod", first.uid}, want: "envoy cart-0: 1, java cart-0: 1"},
		{args: []string{"-pod", "cart-1"}, want: "java cart-1: 1", notes: []string{"there is no pod cart-1 yet: waiting for one\nhint: there are shop/cart-0\n"}},
		{args: []string{"-namespace", "shop"}, want: "envoy cart-0: 1, java cart-0: 1, java cart-1: 1"},
		{args: []string{"-container", "java"}, want: "java cart-0: 1, java cart-1: 1"},
		{args: []string{"-container", "java", "-container", "envoy", "-pod", "cart-0"}, want: "envoy cart-0: 1, java cart-0: 1"},
		{args: []string{"-container", "*"}, want: "envoy cart-0: 1, java cart-0: 1, java cart-1: 1", notes: []string{"-container * matches 2: " + container(first, "envoy") + ", " + container(first, "java") + "\n"}},
		{args: []string{"-container", filepath.Base(string(first.containers["envoy"]))[:4]}, want: "envoy cart-0: 1"},
		{args: []string{"-cgroup", "leaky.service"}, want: "leaky.service: 2"},
		{args: []string{"-cgroup", top.path()[1:], "-container", "java"}, want: "java cart-0: 1, java cart-1: 1"},
		{args: []string{"-cgroup", "leaky.service", "-cgroup", first.path()}, want: "envoy cart-0: 1, java cart-0: 1, leaky.service: 2"},
	} {
		l.tracer = trace(t, l.args...)
		traces = append(traces, &l)
	}
	run := func(g cgroup) { startWorkload(t, g, "touch 2").run(t) }
	run(first.containers["java"])
	run(first.containers["envoy"])
	run(unit)
	first.remove(t)
	unit.remove(t)
	second := newPod(t, top, 1, "java")
	run(second.containers["java"])
	run(top.child(t, "leaky.service"))
	second.remove(t)
	all.stop(t)
	all.checkComplete(t)
	for _, want := range []string{container(first, "java"), container(first, "envoy"), container(second, "java"), "leaky.service #1 (", "leaky.service #2 ("} {
		if !strings.Contains(all.stderr.String(), "\n"+want) {
			t.Errorf("no %q in %s", want, all.stderr)
		}
	}
	for _, live := range traces {
		t.Run(strings.Join(live.args, " "), func(t *testing.T) {
			live.stop(t)
			charged := make(map[string]map[uint64]bool)
			for _, e := range live.charges(t) {
				name := filepath.Base(e.Cgroup)
				if c := e.Container; c != nil && c.Name != "" {
					name = c.Name + " " + c.Pod
				} else if c != nil {
					continue // the pod itself pays for the cgroups of its containers
				}
				if charged[name] == nil {
					charged[name] = make(map[uint64]bool)
				}
				charged[name][e.CgroupID] = true
			}
			var got []string
			for _, name := range slices.Sorted(maps.Keys(charged)) {
				got = append(got, fmt.Sprintf("%s: %d", name, len(charged[name])))
			}
			if got := strings.Join(got, ", "); got != live.want {
				t.Errorf("charges to %s, want %s", got, live.want)
			}
			for _, note := range live.notes {
				if !strings.Contains(live.stderr.String(), "chargetrace: "+note) {
					t.Errorf("no %q in %s", note, live.stderr)
				}
			}
			played := slices.DeleteFunc(play(t, file, live.args...), func(e event) bool { return e.Type == "fork" })
			sameEvents(t, live.events(t), played)
		})
	}
}
