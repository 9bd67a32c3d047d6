package stream

import (
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/glob"
)

// fakeSource delivers its batches, and after Stop those in ring.
type fakeSource struct {
	batches, ring [][]event.Event
	err           error // instead of io.EOF
	countsErr     error
	stopped       int
}

func (s *fakeSource) Info() Info              { return Info{PageSize: 4096} }
func (s *fakeSource) Counts() (Counts, error) { return Counts{Whole: true, Seen: 99}, s.countsErr }

func (s *fakeSource) Read(batch []event.Event) (int, error) {
	if s.stopped > 0 {
		s.batches, s.ring = s.ring, nil
		s.stopped = -1
	}
	if len(s.batches) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		return 0, io.EOF
	}
	n := copy(batch, s.batches[0])
	s.batches = s.batches[1:]
	return n, nil
}

func (s *fakeSource) Stop() { s.stopped++ }

type fakeSink struct {
	events []event.Event
	err    error
	closed int
	counts Counts
}

func (s *fakeSink) Write(batch []event.Event) error {
	s.events = append(s.events, batch...)
	return s.err
}

func (s *fakeSink) Close(c Counts) error {
	s.closed++
	s.counts = c
	return nil
}

func charge(n uint64) event.Event {
	return event.Event{Type: event.Charge, Kind: event.Memory, RequestedPages: n, Outcome: event.OK}
}

func of(pid uint32, e event.Event) event.Event {
	e.PID = pid
	return e
}

func fork(parent, child uint32, flags event.Flags) event.Event {
	return event.Event{Type: event.Fork, PID: parent, ChildPID: child, Flags: flags}
}

func named(comm string, e event.Event) event.Event {
	copy(e.Comm[:], comm)
	return e
}

func killed(comm string, e event.Event) event.Event {
	copy(e.Victim.Comm[:], comm)
	return e
}

func in(id uint64, e event.Event) event.Event {
	e.Cgroup.ID = id
	return e
}

func dmem(bytes uint64) event.Event {
	return event.Event{Type: event.Charge, Kind: event.Dmem, RequestedPages: bytes, Outcome: event.OK}
}

func mustCompile(t *testing.T, patterns ...string) *glob.Set {
	t.Helper()
	s, err := glob.Compile(patterns...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tree names /a/b/c, /a/bc and two containers.
var tree = []event.Event{
	cgroupName(1, 0, ""), cgroupName(2, 1, "a"), cgroupName(3, 2, "b"), cgroupName(4, 3, "c"), cgroupName(5, 2, "bc"),
	cgroupName(6, 1, strings.Repeat("c", 64)), cgroupName(7, 1, "c"+strings.Repeat("d", 63)),
}

func cgroupName(id, parent uint64, name string) event.Event {
	return event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: id}, ParentID: parent, Name: name}
}

func victim(pid uint32, e event.Event) event.Event {
	e.Victim.PID = pid
	return e
}

// run sets the start of a run of the OOM killer.
func run(oomNanos uint64, e event.Event) event.Event {
	e.OOMNanos = oomNanos
	return e
}

var (
	oom   = event.Event{Type: event.OOM, Result: event.NoVictim}
	stat  = event.Event{Type: event.MemoryStat}
	held  = event.Event{Type: event.Held}
	sleep = event.Event{Type: event.Throttle}

	reclaim  = event.Event{Type: event.ReclaimBegin}
	lost     = event.Event{Type: event.Lost, LostCharges: 9}
	kill     = event.Event{Type: event.OOMKill}
	memory   = event.Event{Type: event.Charge, Kind: event.Memory, Outcome: event.OK, Limiting: event.Level{UsagePages: 1, MaxPages: 2}}
	swap     = event.Event{Type: event.Charge, Kind: event.Swap, Outcome: event.Failed}
	failed   = event.Event{Type: event.Charge, Kind: event.Memory, Outcome: event.Failed}
	usage    = event.Event{Type: event.Usage, UsagePages: 5}
	uncharge = event.Event{Type: event.Uncharge, Kind: event.Memory, RequestedPages: 4}
	forced   = event.Event{Type: event.ForcedCharge, Kind: event.Memory, RequestedPages: 3}
	swapped  = event.Event{Type: event.Uncharge, Kind: event.Swap, RequestedPages: 2}
	// Charges with something unknown.
	predicted = event.Event{Type: event.Charge, Kind: event.Memory, Flags: event.Predicted}
	cut       = event.Event{Type: event.Charge, Kind: event.Memory, Flags: event.WalkCut}
	unknown   = event.Event{Type: event.Charge}

	full      = event.Event{Type: event.Charge, Kind: event.Memory, Outcome: event.OK, Limiting: event.Level{UsagePages: 2, MaxPages: 2}}
	throttled = event.Event{Type: event.Charge, Kind: event.Memory, TID: 1, Outcome: event.OK, RequestedPages: 2, Limiting: memory.Limiting,
		High: event.Level{UsagePages: 1, MaxPages: 2}}
	miss = event.Event{Type: event.Charge, Kind: event.Memory, Outcome: event.BatchMiss, Limiting: event.Level{UsagePages: 2, MaxPages: 2}}
)

// kernel makes the task of an event a kernel thread.
func kernel(e event.Event) event.Event {
	e.Flags |= event.KernelThread
	return e
}

// TestFilterInfo checks which filters leave a balance.
func TestFilterInfo(t *testing.T) {
	for _, tc := range []struct {
		filter      Filter
		net, memory bool
	}{
		{Filter{}, true, true},
		{Filter{Cgroups: []cgroup.Path{cgroup.ParsePath("/a")}, Containers: []string{"3f"}, MaxCharges: 3}, true, true},
		{Filter{Kinds: 1<<event.Memory | 1<<event.Swap}, true, true},
		{Filter{Kinds: 1 << event.Swap}, true, false},
		{Filter{PIDs: []uint32{1}}, false, false},
		{Filter{Comms: mustCompile(t, "java")}, false, false},
		{Filter{MinPages: 2}, false, false},
		{Filter{OnlyLimited: true}, false, false},
	} {
		i := Info{PageSize: 4096, Net: true}
		want := Info{PageSize: 4096, Net: tc.net, Kinds: tc.filter.Kinds}
		if got := tc.filter.Info(i); !reflect.DeepEqual(got, want) || tc.filter.BalancesMemory() != tc.memory {
			t.Errorf("%+v: %+v, memory %t", tc.filter, got, tc.filter.BalancesMemory())
		}
		if i.Net = false; tc.filter.Info(i).Net {
			t.Errorf("%+v adds a balance", tc.filter)
		}
	}
}

func TestCopy(t *testing.T) {
	failure := errors.New("failure")
	a, b, c, d := charge(1), charge(2), charge(3), charge(4)
	for _, tc := range []struct {
		name    string
		src     fakeSource
		sinkErr error
		filter  Filter
		want    []event.Event
		counts  Counts
		err     error
	}{
		{name: "empty"},
		{
			name:   "all",
			src:    fakeSource{batches: [][]event.Event{{a, lost, b}, {c}}},
			want:   []event.Event{a, lost, b, c},
			counts: Counts{Read: 3, Shown: 3},
		},
		{
			name: "MaxCharges within a batch, with more in the ring",
			src: fakeSource{
				batches: [][]event.Event{{a}, {lost, b, lost, c}, {d}},
				ring:    [][]event.Event{{d, lost, d}},
			},
			filter: Filter{MaxCharges: 2},
			want:   []event.Event{a, lost, b},
			counts: Counts{Read: 5, Shown: 2},
		},
		{
			name:   "MaxCharges at the end of a batch",
			src:    fakeSource{batches: [][]event.Event{{a, b}, {c}}},
			filter: Filter{MaxCharges: 2},
			want:   []event.Event{a, b},
			counts: Counts{Read: 2, Shown: 2},
		},
		{
			name: "what is read after an OOM",
			src: fakeSource{batches: [][]event.Event{
				{run(10, victim(7, kill)), run(10, stat), run(10, held), run(20, victim(8, kill)), run(20, stat), run(20, held)},
				{run(30, of(7, oom)), run(30, stat), run(40, of(8, oom)), run(40, held), stat, of(7, sleep), of(8, sleep)},
			}},
			filter: Filter{PIDs: []uint32{7}},
			want:   []event.Event{run(10, victim(7, kill)), run(10, stat), run(10, held), run(30, of(7, oom)), run(30, stat), of(7, sleep)},
		},
		{
			name: "what is read after an OOM in a cgroup",
			src: fakeSource{batches: [][]event.Event{tree, {
				run(10, in(2, kill)), run(10, in(2, stat)), run(10, in(5, stat)), run(20, in(5, kill)), run(20, in(5, stat)),
				in(4, stat), in(5, stat), in(3, sleep), in(5, sleep),
			}}},
			filter: Filter{Cgroups: []cgroup.Path{cgroup.ParsePath("/a/b")}},
			want:   append(tree[:len(tree):len(tree)], run(10, in(2, kill)), run(10, in(2, stat)), run(10, in(5, stat)), in(4, stat), in(3, sleep)),
		},
		{
			name:   "kinds and limited charges",
			src:    fakeSource{batches: [][]event.Event{{memory, swap, lost, failed}, {swap, kill, full}}},
			filter: Filter{Kinds: 1 << event.Memory, OnlyLimited: true},
			want:   []event.Event{lost, failed, kill, full},
			counts: Counts{Read: 5, Shown: 2},
		},
		{
			name:   "throttled charges and batch misses",
			src:    fakeSource{batches: [][]event.Event{{throttled, miss, kernel(throttled), memory}}},
			filter: Filter{OnlyLimited: true},
			want:   []event.Event{throttled},
			counts: Counts{Read: 4, Shown: 1},
		},
		{
			name:   "batch misses on request",
			src:    fakeSource{batches: [][]event.Event{{throttled, miss, memory}}},
			filter: Filter{OnlyLimited: true, Misses: true},
			want:   []event.Event{throttled, miss},
			counts: Counts{Read: 3, Shown: 2},
		},
		{
			name:   "processes",
			src:    fakeSource{batches: [][]event.Event{{of(1, memory), of(2, memory), of(2, kill), victim(1, of(3, kill)), of(3, kill), lost, of(1, reclaim), of(2, reclaim)}}},
			filter: Filter{PIDs: []uint32{1, 9}},
			want:   []event.Event{of(1, memory), victim(1, of(3, kill)), lost, of(1, reclaim)},
			counts: Counts{Read: 2, Shown: 1},
		},
		{
			// A child before its parent, an unrelated process, and one with a child's PID.
			name: "descendants",
			src: fakeSource{batches: [][]event.Event{{
				fork(4, 5, event.Existing), fork(1, 4, event.Existing), fork(2, 3, event.Existing), fork(5, 6, 0),
				of(1, memory), of(3, memory), of(5, memory), of(6, memory), fork(2, 6, 0), of(6, memory),
			}}},
			filter: Filter{PIDs: []uint32{1}, Follow: true},
			want: []event.Event{
				fork(1, 4, event.Existing), fork(5, 6, 0), of(1, memory), of(5, memory), of(6, memory),
			},
			counts: Counts{Read: 5, Shown: 3},
		},
		{
			name:   "thread names",
			src:    fakeSource{batches: [][]event.Event{{named("java", memory), named("nginx", memory), named("sh", kill), killed("java", kill)}}},
			filter: Filter{Comms: mustCompile(t, "j*", "nginy")},
			want:   []event.Event{named("java", memory), killed("java", kill)},
			counts: Counts{Read: 2, Shown: 1},
		},
		{
			name: "cgroups",
			src: fakeSource{batches: [][]event.Event{append(slices.Clone(tree),
				in(3, memory), in(4, memory), in(5, memory), in(2, memory), in(2, reclaim), in(5, reclaim), in(4, kill), kill)}},
			filter: Filter{Cgroups: []cgroup.Path{cgroup.ParsePath("/sys/fs/cgroup/a/b")}},
			want: append(slices.Clone(tree),
				in(3, memory), in(4, memory), in(2, reclaim), in(4, kill), kill),
			counts: Counts{Read: 4, Shown: 2},
		},
		{
			name:   "containers",
			src:    fakeSource{batches: [][]event.Event{append(slices.Clone(tree), in(6, memory), in(3, memory), in(6, reclaim))}},
			filter: Filter{Containers: []string{"cc"}},
			want:   append(slices.Clone(tree), in(6, memory), in(6, reclaim)),
			counts: Counts{Read: 2, Shown: 1},
		},
		{
			name:   "large charges",
			src:    fakeSource{batches: [][]event.Event{{charge(1), charge(2), dmem(8191), dmem(8192)}}},
			filter: Filter{MinPages: 2},
			want:   []event.Event{charge(2), dmem(8192)},
			counts: Counts{Read: 4, Shown: 2},
		},
		{
			name:   "a balance of memory",
			src:    fakeSource{batches: [][]event.Event{append(slices.Clone(tree), in(3, usage), in(3, memory), in(4, uncharge), in(5, forced), in(2, usage), in(5, usage), in(4, swapped))}},
			filter: Filter{Cgroups: []cgroup.Path{cgroup.ParsePath("/a/b")}, Kinds: 1 << event.Memory},
			want:   append(slices.Clone(tree), in(3, usage), in(3, memory), in(4, uncharge)),
			counts: Counts{Read: 1, Shown: 1},
		},
		{
			name:   "no balance of some processes",
			src:    fakeSource{batches: [][]event.Event{{usage, of(1, uncharge), of(2, uncharge), of(1, forced)}}},
			filter: Filter{PIDs: []uint32{1}},
			want:   []event.Event{of(1, uncharge), of(1, forced)},
		},
		{
			name:   "no balance of some threads",
			src:    fakeSource{batches: [][]event.Event{{usage, named("java", uncharge), uncharge}}},
			filter: Filter{Comms: mustCompile(t, "java")},
			want:   []event.Event{named("java", uncharge)},
		},
		{
			name:   "no balance of memory with only other kinds",
			src:    fakeSource{batches: [][]event.Event{{usage, uncharge, swapped}}},
			filter: Filter{Kinds: 1 << event.Swap},
			want:   []event.Event{swapped},
		},
		{
			name:   "no balance of charges at a limit",
			src:    fakeSource{batches: [][]event.Event{{usage, uncharge, forced, full}}},
			filter: Filter{OnlyLimited: true},
			want:   []event.Event{full},
			counts: Counts{Read: 1, Shown: 1},
		},
		{
			name:   "no balance of large charges",
			src:    fakeSource{batches: [][]event.Event{{usage, uncharge, forced, charge(2)}}},
			filter: Filter{MinPages: 2},
			want:   []event.Event{charge(2)},
			counts: Counts{Read: 1, Shown: 1},
		},
		{
			name:   "details of shown charges",
			src:    fakeSource{batches: [][]event.Event{{predicted, cut, unknown, of(1, cut)}}},
			want:   []event.Event{predicted, cut, unknown, of(1, cut)},
			counts: Counts{Read: 4, Shown: 4, Predicted: 1, WalksCut: 2, UnknownKinds: 1},
		},
		{
			name:   "the source fails",
			src:    fakeSource{batches: [][]event.Event{{a}}, err: failure},
			want:   []event.Event{a},
			counts: Counts{Read: 1, Shown: 1},
			err:    failure,
		},
		{
			name:    "the sink fails",
			src:     fakeSource{batches: [][]event.Event{{a}, {b}}},
			sinkErr: failure,
			counts:  Counts{Read: 1, Shown: 1},
			want:    []event.Event{a},
			err:     failure,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dst := &fakeSink{err: tc.sinkErr}
			got, err := Copy(dst, &tc.src, tc.filter)
			tc.counts.Whole, tc.counts.Seen = true, 99
			for _, e := range tc.want {
				tc.counts.LostInShown += e.LostCharges
			}
			if got != tc.counts || !errors.Is(err, tc.err) {
				t.Errorf("%+v, %v; want %+v, %v", got, err, tc.counts, tc.err)
			}
			if dst.counts != got {
				t.Errorf("closed the sink with %+v, want %+v", dst.counts, got)
			}
			if !slices.Equal(dst.events, tc.want) {
				t.Errorf("wrote %v\nwant %v", dst.events, tc.want)
			}
			if dst.closed != 1 {
				t.Errorf("closed the sink %d times", dst.closed)
			}
			if tc.err != nil && tc.src.countsErr == nil && tc.src.stopped == 0 {
				t.Error("did not stop the source")
			}
		})
	}
}

func TestAmbiguousContainer(t *testing.T) {
	src := fakeSource{batches: [][]event.Event{append(slices.Clone(tree), in(6, memory), in(7, memory))}}
	_, err := Copy(&fakeSink{}, &src, Filter{Containers: []string{"c"}})
	if err == nil || !strings.Contains(err.Error(), "-container c is ambiguous") {
		t.Errorf("%v", err)
	}
}

func TestTee(t *testing.T) {
	failure := errors.New("failure")
	a, b, c := &fakeSink{}, &fakeSink{err: failure}, &fakeSink{}
	s := Tee(a, b, c)
	if err := s.Write([]event.Event{lost}); !errors.Is(err, failure) || len(a.events) != 1 || len(c.events) != 1 {
		t.Errorf("%v, wrote %d and %d", err, len(a.events), len(c.events))
	}
	if err := s.Close(Counts{Seen: 7}); err != nil || a.closed+b.closed+c.closed != 3 || a.counts.Seen != 7 || c.counts.Seen != 7 {
		t.Errorf("%v", err)
	}
}
