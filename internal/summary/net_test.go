package summary

import (
	"strings"
	"testing"

	"chargetrace/internal/event"
)

func withKind(kind event.Kind, e event.Event) event.Event {
	e.Kind = kind
	return e
}

// net is an event of a counter of memory.
func net(typ event.Type, at, id, pages uint64) event.Event {
	return event.Event{Type: typ, BootNanos: header.StartBootNanos + at*ms, Cgroup: event.CgroupID{ID: id}, Kind: event.Memory, RequestedPages: pages, Outcome: outcomeOf(typ)}
}

func outcomeOf(typ event.Type) event.Outcome {
	if typ == event.Charge {
		return event.OK
	}
	return event.NoOutcome
}

func usage(at, id uint64, pages int64, flags event.Flags) event.Event {
	return event.Event{Type: event.Usage, BootNanos: header.StartBootNanos + at*ms, Cgroup: event.CgroupID{ID: id}, UsagePages: pages, Flags: flags}
}

func summaryOf(t *testing.T, events ...event.Event) *Summary {
	t.Helper()
	h := header
	h.Net = true
	s := New(h)
	if err := s.Write(append([]event.Event{name(3, 2, "b"), name(4, 2, "c"), name(2, 1, "a"), name(1, 0, "")}, events...)); err != nil {
		t.Fatal(err)
	}
	return s
}

// nets returns the table of nets, and what follows it.
func nets(t *testing.T, s *Summary) string {
	t.Helper()
	var b strings.Builder
	if err := s.Print(&b); err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(b.String(), "\nCGROUP, AND BELOW ")
	table, _, _ = strings.Cut(table, "\n\n")
	return "CGROUP, AND BELOW " + strings.TrimSuffix(table, "\n")
}

func TestNets(t *testing.T) {
	failed := net(event.Charge, 6, 3, 1000)
	failed.Outcome = event.Failed
	s := summaryOf(t,
		// 3 and its parent are there before the trace, 4 is made and removed.
		usage(5, 3, 10, event.Existing), usage(3, 2, 15, event.Existing),
		net(event.Charge, 2, 3, 7), net(event.Charge, 4, 3, 64), // before both, and before one was read
		net(event.Charge, 6, 3, 64), failed, net(event.Charge, 6, 4, 32), net(event.ForcedCharge, 7, 4, 1), net(event.Uncharge, 8, 4, 30),
		net(event.Uncharge, 8, 3, 14), net(event.Uncharge, 9, 2, 1), // what is left of 4
		withKind(event.Swap, net(event.Uncharge, 9, 3, 5)), withKind(event.Dmem, net(event.ForcedCharge, 9, 3, 4096)),
		usage(10, 3, 60, 0), net(event.Charge, 11, 3, 100), usage(12, 2, 231, 0),
	)
	const want = `CGROUP, AND BELOW  CHARGED  FORCED  GIVEN BACK  NET    AT BEGIN  AT END  DIFFERENCE
/a/b [dmem]        0B       4096B   0B          4096B  -         -       -
/a                 260      1       45          216    15        231     0
/a/b               64       0       14          50     10        60      0
/a/c               32       1       30          3      -         -       -
/a/b [swap]        0        0       5           -5     -         -       -
AT BEGIN and AT END are memory.current; DIFFERENCE is what it rose by beyond NET, which is charged + forced - given back.
Of what a cgroup holds, each CPU can have a batch in stock, charged but not in use: 64 pages, before Linux 6.1 32.`
	if got := nets(t, s); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestNetsDiffer holds that what does not add up is said, and why.
func TestNetsDiffer(t *testing.T) {
	events := []event.Event{usage(0, 3, 10, event.Existing), net(event.Uncharge, 1, 3, 4), usage(2, 3, 5, 0)}
	const head = "CGROUP, AND BELOW  CHARGED  FORCED  GIVEN BACK  NET  AT BEGIN  AT END  DIFFERENCE\n" +
		"/a/b               0        0       4           -4   10        5       -1\n" +
		"AT BEGIN and AT END are memory.current; DIFFERENCE is what it rose by beyond NET, which is charged + forced - given back.\n"
	s := summaryOf(t, events...)
	if got, want := nets(t, s), head+"A difference is of calls that were under way while memory.current was read, or that the kernel missed and does not count (before Linux 6.7)."; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	s.Coverage.Unseen = 3
	if got, want := nets(t, s), head+"This is not whole: 3 calls or events were lost or missed."; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestNetsUnread holds that no balance is stated of a part of a trace, nor of two.
func TestNetsUnread(t *testing.T) {
	const none = "CGROUP, AND BELOW  CHARGED  FORCED  GIVEN BACK  NET  AT BEGIN  AT END  DIFFERENCE\n"
	begin, end := usage(0, 3, 10, event.Existing), usage(9, 3, 14, 0)
	for what, tc := range map[string]struct {
		events []event.Event
		want   string
	}{
		"no end":       {[]event.Event{begin, net(event.Uncharge, 1, 3, 4)}, "/a/b               0        0       4           -4   -         -       -"},
		"no beginning": {[]event.Event{net(event.Uncharge, 1, 3, 4), end}, "/a/b               0        0       4           -4   -         -       -"},
		"two traces": {
			[]event.Event{begin, net(event.Uncharge, 1, 3, 4), end, begin, net(event.Uncharge, 1, 3, 5), end},
			"/a/b               0        0       9           -9   -         -       -",
		},
	} {
		if got := nets(t, summaryOf(t, tc.events...)); got != none+tc.want {
			t.Errorf("%s: got\n%s", what, got)
		}
	}
	// Where a trace does not tell, there is no table.
	s := New(header)
	s.Write([]event.Event{net(event.Charge, 1, 3, 4), net(event.Uncharge, 1, 3, 4)})
	if got := nets(t, s); got != "CGROUP, AND BELOW " {
		t.Errorf("got\n%s", got)
	}
}
