package summary

import (
	"fmt"
	"strings"
	"testing"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

func withKind(kind event.Kind, e event.Event) event.Event {
	e.Kind = kind
	return e
}

// memoryEvent returns an event of a memory counter.
func memoryEvent(typ event.Type, at, id, pages uint64) event.Event {
	return event.Event{Type: typ, BootNanos: info.StartBootNanos + at*ms, Cgroup: event.CgroupID{ID: id}, Kind: event.Memory, RequestedPages: pages, Outcome: outcomeOf(typ)}
}

func outcomeOf(typ event.Type) event.Outcome {
	if typ == event.Charge {
		return event.OK
	}
	return event.NoOutcome
}

func usage(at, id uint64, pages int64, flags event.Flags) event.Event {
	return event.Event{Type: event.Usage, BootNanos: info.StartBootNanos + at*ms, Cgroup: event.CgroupID{ID: id}, UsagePages: pages, Flags: flags}
}

func summaryOf(t *testing.T, events ...event.Event) *Summary {
	t.Helper()
	h := info
	h.Net = true
	s := newSummary(h)
	if err := s.Feed(s).Write(append([]event.Event{name(3, 2, "b"), name(4, 2, "c"), name(2, 1, "a"), name(1, 0, "")}, events...)); err != nil {
		t.Fatal(err)
	}
	return s
}

// balances returns the table of balances and its notes.
func balances(t *testing.T, s *Summary) string {
	t.Helper()
	var b strings.Builder
	if err := s.Print(&b); err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(b.String(), "\nCGROUP, AND BELOW ")
	table, _, _ = strings.Cut(table, "\n\n")
	return "CGROUP, AND BELOW " + strings.TrimSuffix(table, "\n")
}

func TestBalances(t *testing.T) {
	failed := memoryEvent(event.Charge, 6, 3, 1000)
	failed.Outcome = event.Failed
	s := summaryOf(t,
		// 3 and its parent exist before the trace; 4 is made and removed during it.
		usage(5, 3, 10, event.Existing), usage(3, 2, 15, event.Existing),
		memoryEvent(event.Charge, 2, 3, 7), memoryEvent(event.Charge, 4, 3, 64), // before both readings, and before that of 2
		memoryEvent(event.Charge, 6, 3, 64), failed, memoryEvent(event.Charge, 6, 4, 32), memoryEvent(event.ForcedCharge, 7, 4, 1), memoryEvent(event.Uncharge, 8, 4, 30),
		memoryEvent(event.Uncharge, 8, 3, 14), memoryEvent(event.Uncharge, 9, 2, 1), // the rest of 4
		withKind(event.Swap, memoryEvent(event.Uncharge, 9, 3, 5)), withKind(event.Dmem, memoryEvent(event.ForcedCharge, 9, 3, 4096)),
		usage(10, 3, 60, 0), memoryEvent(event.Charge, 11, 3, 100), usage(12, 2, 231, 0),
	)
	const want = `CGROUP, AND BELOW  CHARGED  FORCED  GIVEN BACK  NET    AT BEGIN  AT END  DIFFERENCE
/a                 260      1       45          216    15        231     0
/a/b               64       0       14          50     10        60      0
/a/c               32       1       30          3      -         -       -
/a/b [swap]        0        0       5           -5     -         -       -
/a/b [dmem]        0B       4096B   0B          4096B  -         -       -
At begin and at end is what memory.current was; the difference is by how much more it rose than net, which is charged + forced - given back.
Of what a cgroup holds, each CPU can have a batch in stock, charged but not in use: 64 pages, before Linux 6.1 32.`
	if got := balances(t, s); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestBalancesDiffer checks that a difference is printed with its causes.
func TestBalancesDiffer(t *testing.T) {
	events := []event.Event{usage(0, 3, 10, event.Existing), memoryEvent(event.Uncharge, 1, 3, 4), usage(2, 3, 5, 0)}
	const head = "CGROUP, AND BELOW  CHARGED  FORCED  GIVEN BACK  NET  AT BEGIN  AT END  DIFFERENCE\n" +
		"/a/b               0        0       4           -4   10        5       -1\n" +
		"At begin and at end is what memory.current was; the difference is by how much more it rose than net, which is charged + forced - given back.\n"
	const differ = "The difference is not 0 in 1 of the 1 that were read: calls were under way while memory.current was read, or were missed, which before Linux 6.7 the kernel does not always count."
	s := summaryOf(t, events...)
	if got, want := balances(t, s), head+differ; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	s.Close(stream.Counts{Lost: 1, Missed: 2})
	if got, want := balances(t, s), head+"This may not be whole: 3 calls or events were lost or missed.\n"+differ; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestBalancesDifferBelow has more counters than are printed, and a difference in the
// one that grew least.
func TestBalancesDifferBelow(t *testing.T) {
	var events []event.Event
	for i := range uint64(maxLines + 2) {
		id, pages := 10+i, 50-i
		events = append(events, name(id, 2, fmt.Sprintf("x%d", i)), usage(0, id, 0, event.Existing), memoryEvent(event.Charge, 1, id, pages), usage(2, id, int64(pages), 0))
	}
	last := &events[len(events)-1]
	last.UsagePages++
	got := strings.Split(balances(t, summaryOf(t, events...)), "\n")
	if want := "/a/x11             39       0       0           39   0         40      1"; got[1] != want {
		t.Errorf("the first row is %q, want %q", got[1], want)
	}
	if len(got) != 1+maxLines+1+3 || got[1+maxLines] != "and 2 more" || !strings.HasPrefix(got[3+maxLines], "The difference is not 0 in 1 of the 12 that were read: ") {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

// TestBalancesNamedLater checks that the ancestors of a cgroup count its charges once
// they are named.
func TestBalancesNamedLater(t *testing.T) {
	h := info
	h.Net = true
	s := newSummary(h)
	s.Feed(s).Write([]event.Event{
		name(3, 2, "b"), memoryEvent(event.Charge, 1, 3, 4), name(2, 1, "a"), name(1, 0, ""), memoryEvent(event.Charge, 2, 3, 8),
		name(3, 2, "b"), memoryEvent(event.Charge, 3, 3, 16), name(3, 1, "b"), memoryEvent(event.Charge, 4, 3, 32),
	})
	for id, want := range map[uint64]int64{3: 60, 2: 24, 1: 56} {
		if got := s.Balances.Of(event.CounterID{Cgroup: event.CgroupID{ID: id}, Kind: event.Memory}).Pages(); got != want {
			t.Errorf("cgroup %d: %d pages, want %d", id, got, want)
		}
	}
}

// TestBalancesUnread checks that a part of a trace has no difference, nor have two
// traces.
func TestBalancesUnread(t *testing.T) {
	const none = "CGROUP, AND BELOW  CHARGED  FORCED  GIVEN BACK  NET  AT BEGIN  AT END  DIFFERENCE\n"
	begin, end := usage(0, 3, 10, event.Existing), usage(9, 3, 14, 0)
	for what, tc := range map[string]struct {
		events []event.Event
		want   string
	}{
		"no end":       {[]event.Event{begin, memoryEvent(event.Uncharge, 1, 3, 4)}, "/a/b               0        0       4           -4   -         -       -"},
		"no beginning": {[]event.Event{memoryEvent(event.Uncharge, 1, 3, 4), end}, "/a/b               0        0       4           -4   -         -       -"},
		"two traces": {
			[]event.Event{begin, memoryEvent(event.Uncharge, 1, 3, 4), end, begin, memoryEvent(event.Uncharge, 1, 3, 5), end},
			"/a/b               0        0       9           -9   -         -       -",
		},
	} {
		if got := balances(t, summaryOf(t, tc.events...)); got != none+tc.want {
			t.Errorf("%s: got\n%s", what, got)
		}
	}
	// Without -net there is no table.
	s := newSummary(info)
	s.Feed(s).Write([]event.Event{memoryEvent(event.Charge, 1, 3, 4), memoryEvent(event.Uncharge, 1, 3, 4)})
	if got := balances(t, s); got != "CGROUP, AND BELOW " {
		t.Errorf("got\n%s", got)
	}
}
