package stream

import (
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/container"
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
			filter: Filter{Containers: []string{"cccc"}},
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

// identified returns the name of a cgroup with an identity.
func identified(id, parent uint64, name string, i container.Identity) event.Event {
	e := cgroupName(id, parent, name)
	e.Identity = i.Encode()
	return e
}

// TestNamedCgroups selects cgroups by names: two pods, the second restarted
// under another name, and a unit that is started again.
func TestNamedCgroups(t *testing.T) {
	const uid1, uid2 = "11111111-0b1e-4f3a-9c5d-6e7f80918273", "22222222-0b1e-4f3a-9c5d-6e7f80918273"
	containerID := func(digit string) string { return strings.Repeat("abcd", 15) + strings.Repeat(digit, 4) }
	java := func(pod string) container.Identity {
		return container.Identity{Name: "java", Namespace: "shop", Pod: pod}
	}
	names := []event.Event{
		cgroupName(1, 0, ""),
		cgroupName(2, 1, "kubepods"),
		identified(3, 2, "pod"+uid1, container.Identity{Namespace: "shop", Pod: "cart-1"}),
		identified(4, 3, containerID("1"), java("cart-1")),
		cgroupName(5, 4, "worker"),
		identified(6, 3, containerID("2"), container.Identity{Name: "envoy", Namespace: "shop", Pod: "cart-1"}),
		cgroupName(7, 2, "pod"+uid2), // its name comes later
		cgroupName(8, 1, "system.slice"),
		cgroupName(9, 8, "leaky.service"),
		cgroupName(10, 8, "docker-"+containerID("3")+".scope"),
		cgroupName(11, 10, "leaky.service"), // in a container
	}
	events := slices.Clone(names)
	for id := uint64(1); id <= 11; id++ {
		events = append(events, in(id, charge(id)))
	}
	later := []event.Event{
		identified(7, 2, "pod"+uid2, container.Identity{Namespace: "shop", Pod: "cart-2"}),
		identified(12, 7, containerID("4"), java("cart-2")),
		cgroupName(13, 8, "leaky.service"),
		in(7, charge(7)), in(12, charge(12)), in(13, charge(13)), in(2, reclaim), in(3, reclaim), in(8, reclaim),
	}
	for _, tc := range []struct {
		filter  Filter
		charges []uint64 // ids of the cgroups of shown charges, and of reclaim
		reclaim []uint64
	}{
		{Filter{Pods: []string{"shop/cart-1"}}, []uint64{3, 4, 5, 6}, []uint64{2, 3}},
		{Filter{Pods: []string{"shop/cart-*"}}, []uint64{3, 4, 5, 6, 7, 12}, []uint64{2, 3}},
		{Filter{Pods: []string{uid2}}, []uint64{7, 7, 12}, []uint64{2}},
		{Filter{Pods: []string{"other/cart-*"}}, nil, nil},
		{Filter{Namespaces: []string{"shop"}}, []uint64{3, 4, 5, 6, 7, 12}, []uint64{2, 3}},
		{Filter{Containers: []string{"java"}}, []uint64{4, 5, 12}, []uint64{2, 3}},
		{Filter{Containers: []string{containerID("3")}}, []uint64{10, 11}, []uint64{8}},
		{Filter{Containers: []string{"java"}, Pods: []string{"cart-2"}}, []uint64{12}, []uint64{2}},
		{Filter{Containers: []string{"java", "envoy"}, Namespaces: []string{"other", "shop"}}, []uint64{4, 5, 6, 12}, []uint64{2, 3}},
		{Filter{Units: []string{"leaky.service"}}, []uint64{9, 13}, []uint64{8}},
		{Filter{Units: []string{"leaky.service"}, Cgroups: []cgroup.Path{cgroup.ParsePath("/kubepods/pod" + uid1)}}, []uint64{3, 4, 5, 6, 9, 13}, []uint64{2, 3, 8}},
		{Filter{Cgroups: []cgroup.Path{cgroup.ParsePath("kubepods")}, Containers: []string{"envoy"}}, []uint64{6}, []uint64{2, 3}},
		{Filter{Units: []string{"system.slice"}}, []uint64{8, 9, 10, 11, 13}, []uint64{8}},
	} {
		var dst fakeSink
		if _, err := Copy(&dst, &fakeSource{batches: [][]event.Event{slices.Clone(events), slices.Clone(later)}}, tc.filter); err != nil {
			t.Fatal(err)
		}
		var charges, reclaim []uint64
		for _, e := range dst.events {
			switch e.Type {
			case event.Charge:
				charges = append(charges, e.Cgroup.ID)
			case event.ReclaimBegin:
				reclaim = append(reclaim, e.Cgroup.ID)
			}
		}
		if !slices.Equal(charges, tc.charges) || !slices.Equal(reclaim, tc.reclaim) {
			t.Errorf("%+v: charges to %d, want %d; reclaim in %d, want %d", tc.filter, charges, tc.charges, reclaim, tc.reclaim)
		}
	}
	_, err := Copy(&fakeSink{}, &fakeSource{batches: [][]event.Event{events}}, Filter{Containers: []string{"abcd"}})
	const want = "-container abcd is ambiguous: it matches java · abcdabcdabcd · shop/cart-1 and envoy · abcdabcdabcd · shop/cart-1"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
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
