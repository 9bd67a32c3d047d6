//go:build linux

package capture

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"chargetrace/internal/stream"
)

// TestHooks compares the hooks with the object's programs: each must be attached as its
// section says, and none may be left out.
func TestHooks(t *testing.T) {
	function := func(f any) string { return fmt.Sprint(reflect.ValueOf(f).Pointer()) }
	prefixes := map[string]map[Attach]string{
		function(attachFunction):   {Kprobe: "kprobe/", Fentry: "fentry/"},
		function(attachReturn):     {Kprobe: "kretprobe/", Fentry: "fexit/"},
		function(attachTracepoint): {Kprobe: "raw_tp/", Fentry: "raw_tp/"},
		function(iterate):          {Kprobe: "iter/", Fentry: "iter/"},
	}
	// A fexit program has the arguments and the result.
	kprobesOnly := []string{bpfProgKretprobeTryCharge, bpfProgTaskMigrates}
	programs := loadSpec(t).Programs
	left := maps.Clone(programs)
	for _, h := range hooks {
		for _, attach := range []Attach{Kprobe, Fentry} {
			name, ok := h.programs[attach]
			if !ok && slices.Contains(kprobesOnly, h.programs[Kprobe]) {
				continue
			}
			p := programs[name]
			if p == nil {
				t.Errorf("%s: no program %q", h.name, name)
				continue
			}
			want := prefixes[function(h.attach)][attach] + h.name
			if name == bpfProgFexitTryCharge {
				want = "fexit/" + h.name
			}
			if p.SectionName != want {
				t.Errorf("%s is attached to %s, its section is %s", name, want, p.SectionName)
			}
			delete(left, name)
		}
	}
	delete(left, bpfProgLearnRoots) // start runs it once
	for name := range left {
		t.Errorf("no hook has program %s", name)
	}
}

// TestHookOrder checks that hooks of ends are attached before those of beginnings.
func TestHookOrder(t *testing.T) {
	index := func(kprobe string) int {
		return slices.IndexFunc(hooks, func(h hook) bool { return h.programs[Kprobe] == kprobe })
	}
	for _, tc := range []struct{ first, then string }{
		{bpfProgKretprobeTryCharge, bpfProgKprobeTryCharge},
		{bpfProgTaskMigrates, bpfProgKprobeTryCharge},
		{bpfProgReclaimEnd, bpfProgKprobeReclaimBegin},
		{bpfProgKretprobeOom, bpfProgKprobeOom},
		{bpfProgKretprobeLimitWrite, bpfProgKprobeLimitWrite},
		{bpfProgKprobeReclaimBegin, bpfProgKprobeTryCharge},
		{bpfProgKprobeOomKill, bpfProgKprobeTryCharge},
		{bpfProgProcessFork, bpfProgFindProcesses},
		{bpfProgProcessFree, bpfProgFindProcesses},
	} {
		if a, b := index(tc.first), index(tc.then); a < 0 || b < 0 || a >= b {
			t.Errorf("%s is number %d, %s %d", tc.first, a, tc.then, b)
		}
	}
	var calls, required []string
	for _, h := range hooks {
		if h.calls {
			calls = append(calls, h.programs[Kprobe])
		}
		if h.without == "" && h.needed == nil {
			required = append(required, h.programs[Kprobe])
		}
	}
	if want := []string{bpfProgKprobeTryCharge, bpfProgKprobeForcedCharge, bpfProgKprobeUncharge}; !slices.Equal(calls, want) {
		t.Errorf("calls begin at %q, want %q", calls, want)
	}
	if want := []string{bpfProgKretprobeTryCharge, bpfProgKprobeTryCharge}; !slices.Equal(required, want) {
		t.Errorf("no trace without %q, want %q", required, want)
	}
}

// TestSelectPrograms checks which programs are loaded.
func TestSelectPrograms(t *testing.T) {
	always := map[Attach][]string{
		Kprobe: {bpfProgLearnRoots, bpfProgKretprobeOom, bpfProgKprobeOom, bpfProgKprobeOomWait, bpfProgKretprobeLimitWrite, bpfProgKprobeLimitWrite, bpfProgKprobeOverHigh, bpfProgKprobeSleep, bpfProgKprobeOomKill, bpfProgReclaimEnd, bpfProgKprobeReclaimBegin, bpfProgTaskMigrates, bpfProgKretprobeTryCharge, bpfProgKprobeTryCharge},
		Fentry: {bpfProgLearnRoots, bpfProgFexitOom, bpfProgFentryOom, bpfProgFentryOomWait, bpfProgFexitLimitWrite, bpfProgFentryLimitWrite, bpfProgFentryOverHigh, bpfProgFentrySleep, bpfProgFentryOomKill, bpfProgReclaimEnd, bpfProgFentryReclaimBegin, bpfProgFexitTryCharge},
	}
	net := map[Attach][]string{
		Kprobe: {bpfProgKprobeForcedCharge, bpfProgKprobeUncharge},
		Fentry: {bpfProgFentryForcedCharge, bpfProgFentryUncharge},
	}
	for _, tc := range []struct {
		name              string
		options           Options
		attach, attachNet Attach
		more              []string
	}{
		{"kprobe", Options{}, Kprobe, Kprobe, nil},
		{"fentry", Options{}, Fentry, Fentry, nil},
		{"net with fentry", Options{Net: true}, Kprobe, Fentry, net[Fentry]},
		{"net with kprobes", Options{Net: true}, Kprobe, Kprobe, net[Kprobe]},
		{"forks", Options{Forks: true}, Kprobe, Kprobe, []string{bpfProgProcessFork, bpfProgFindProcesses}},
		{"processes", Options{Filter: stream.Filter{PIDs: []uint32{7, 8}}}, Fentry, Fentry, []string{bpfProgProcessFork, bpfProgProcessFree, bpfProgFindProcesses}},
		{"follow", Options{Filter: stream.Filter{PIDs: []uint32{7}, Follow: true}}, Kprobe, Kprobe, []string{bpfProgProcessFork, bpfProgProcessFree, bpfProgFindProcesses}},
	} {
		spec := loadSpec(t)
		selectPrograms(spec, &tc.options, tc.attach, tc.attachNet)
		got := slices.Sorted(maps.Keys(spec.Programs))
		want := slices.Sorted(slices.Values(slices.Concat(always[tc.attach], tc.more)))
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", tc.name, got, want)
		}
		for name, p := range spec.Programs {
			if p == nil {
				t.Errorf("%s: no program %s", tc.name, name)
			}
		}
	}
}

// links logs the closing of fake links.
type links struct {
	mu  sync.Mutex
	log []string
	err error // returned by Close
}

type fakeLink struct {
	link.Link
	name string
	of   *links
}

func (l *fakeLink) Info() (*link.Info, error) { return nil, link.ErrNotSupported }

func (l *fakeLink) Close() error {
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	l.of.log = append(l.of.log, l.name)
	return l.of.err
}

// TestAttachDetach checks that hooks are attached in order, and that the links of entries
// are closed first.
func TestAttachDetach(t *testing.T) {
	of := &links{}
	var attached []string
	makeHook := func(name string, calls, netOnly bool, err error) hook {
		return hook{
			name: name, programs: map[Attach]string{Kprobe: "k_" + name, Fentry: "f_" + name}, calls: calls, netOnly: netOnly,
			attach: func(h hook, a Attach, p *ebpf.Program) (link.Link, error) {
				attached = append(attached, h.programs[a])
				if err != nil {
					return nil, err
				}
				if h.name == "iterator" {
					return nil, nil
				}
				return &fakeLink{name: h.name, of: of}, nil
			},
		}
	}
	optional := func(h hook) hook {
		h.without = "events of " + h.name
		return h
	}
	all := []hook{
		makeHook("return", false, false, nil), optional(makeHook("inlined", false, false, fmt.Errorf("kprobe: %w", os.ErrNotExist))),
		makeHook("entry", true, false, nil), makeHook("unneeded", true, false, errors.New("not to be attached")),
		makeHook("uncharge", true, true, nil), makeHook("iterator", false, false, nil),
	}
	collection := func() *ebpf.Collection {
		c := &ebpf.Collection{Programs: make(map[string]*ebpf.Program)}
		for _, h := range all {
			if h.name != "unneeded" {
				c.Programs["k_"+h.name], c.Programs["f_"+h.name] = new(ebpf.Program), new(ebpf.Program)
			}
		}
		return c
	}
	p := &programs{}
	lacking, err := p.attach(collection(), all, Kprobe, Fentry)
	if err != nil || !slices.Equal(lacking, []string{"events of inlined"}) {
		t.Errorf("lacks %q, %v", lacking, err)
	}
	if want := []string{"k_return", "k_inlined", "k_entry", "f_uncharge", "k_iterator"}; !slices.Equal(attached, want) {
		t.Errorf("attached %q, want %q", attached, want)
	}
	if len(p.loaded) != 5 {
		t.Errorf("%d programs to free", len(p.loaded))
	}

	of.err = errors.New("busy")
	err = p.detach()
	slices.Sort(of.log[:2]) // closed concurrently
	if want := []string{"entry", "uncharge", "return"}; !slices.Equal(of.log, want) {
		t.Errorf("closed %q, want %q", of.log, want)
	}
	if err == nil || strings.Count(err.Error(), "busy") != 3 {
		t.Errorf("%v", err)
	}
	if err := p.detach(); err != nil || len(of.log) != 3 {
		t.Errorf("again: %v, %q", err, of.log)
	}

	for _, tc := range []struct {
		hook    hook
		message string
	}{
		{makeHook("entry", true, false, os.ErrNotExist), "attach a kprobe to entry: file does not exist"},
		{optional(makeHook("entry", true, false, os.ErrPermission)), "attach to entry: permission denied"},
	} {
		if _, err := new(programs).attach(collection(), []hook{tc.hook}, Kprobe, Kprobe); err == nil || err.Error() != tc.message {
			t.Errorf("%v, want %s", err, tc.message)
		}
	}
}

func TestParseAttach(t *testing.T) {
	for name, want := range map[string]Attach{"kprobe": Kprobe, "fentry": Fentry, "auto": Auto, "": "", "uprobe": ""} {
		if got, err := ParseAttach(name); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
}
