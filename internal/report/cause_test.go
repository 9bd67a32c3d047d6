package report

import (
	"fmt"
	"strings"
	"testing"

	"chargetrace/internal/event"
	"chargetrace/internal/text"
)

// Stacks of some causes.
const (
	anonFrames      = "try_charge+0x1;do_anonymous_page+0x2;handle_mm_fault.isra.0+0x3"
	pageTableFrames = "try_charge+0x1;pte_alloc_one+0x4;do_anonymous_page+0x5;handle_mm_fault+0x6"
	otherFrames     = "try_charge+0x1;something_new+0x7"
)

// stackedCharge returns a charge with a kernel stack.
func stackedCharge(at uint64, comm string, stack uint32, pages uint64) event.Event {
	e := charge(at, 7, pages, 0, event.OK)
	e.Comm, e.KernelStack = named(comm), stack
	return e
}

// fewStacks returns charges of 100 pages with stacks, and two that do not count.
func fewStacks() []event.Event {
	failed := stackedCharge(3, "a", 1, 1000)
	failed.Outcome, failed.FailedAt = event.Failed, 3
	bytes := stackedCharge(3, "a", 1, 1000)
	bytes.Kind = event.Dmem
	return []event.Event{
		stackName(1, anonFrames), stackName(2, pageTableFrames), stackName(3, otherFrames),
		stackedCharge(1, "a", 1, 50), stackedCharge(1, "a", 2, 10), stackedCharge(3, "b", 3, 15), stackedCharge(3, "b", 1, 25), failed, bytes,
	}
}

func TestCausePlot(t *testing.T) {
	c := newCollector(newSummary(info))
	feed(&c, append(fewStacks(), charge(5, 7, 33, 0, event.OK)))
	s := c.causePlot()
	var got []string
	for i := range s.layers {
		l := &s.layers[i]
		heights := s.heights(l, 1)
		if len(heights) != s.cellCount() {
			t.Errorf("%s has %d cells of %d", l.name, len(heights), s.cellCount())
		}
		at := func(millis uint64) uint64 { return heights[(info.StartBootNanos+millis*ms-s.begin)>>s.shift] }
		got = append(got, fmt.Sprintf("%s %s: %d, %d, %d, %d, %d in all", l.name, l.color.class, at(1), at(2), at(3), at(5), l.pages))
	}
	const want = "anon p0: 50, 50, 75, 75, 75 in all\npage table p1: 10, 10, 10, 10, 10 in all\nother causes p8: 0, 0, 15, 15, 15 in all"
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

// TestManyCauses holds that the smallest causes are merged.
func TestManyCauses(t *testing.T) {
	c := newCollector(newSummary(info))
	for i, function := range []string{"something_new", "do_anonymous_page", "wp_page_copy", "shmem_fault", "filemap_fault", "read_pages", "pipe_write", "dup_task_struct", "do_swap_page", "pcpu_alloc", "pte_alloc_one"} {
		feed(&c, []event.Event{stackName(uint32(i+1), function), stackedCharge(1, "a", uint32(i+1), uint64(100-i))})
	}
	var got []string
	for _, l := range c.causePlot().layers {
		got = append(got, fmt.Sprintf("%s %d", l.name, l.pages))
	}
	const want = "[anon 99 cow 98 shmem 97 file read 96 readahead 95 pipe 94 kernel stack 93 swap in 92 other causes 281]"
	if fmt.Sprint(got) != want {
		t.Errorf("got %v", got)
	}
}

// drawn writes the blocks of a flame graph, a line each.
func drawn(f *flame) string {
	var b strings.Builder
	for _, x := range f.blocks {
		fmt.Fprintf(&b, "%s%s %d+%d %s\n", strings.Repeat(" ", x.depth), x.name, x.at, x.pages, x.color.class)
	}
	return b.String()
}

func TestFlame(t *testing.T) {
	c := newCollector(newSummary(info))
	feed(&c, fewStacks())
	f := c.flame()
	const want = `all 0+100 p0
 a 0+60 p0
  handle_mm_fault 0+60 p0
   do_anonymous_page 0+60 p0
    try_charge 0+50 p0
    pte_alloc_one 50+10 p1
     try_charge 50+10 p1
 b 60+40 p0
  handle_mm_fault 60+25 p0
   do_anonymous_page 60+25 p0
    try_charge 60+25 p0
  something_new 85+15 p8
   try_charge 85+15 p8
`
	if got := drawn(f); got != want || f.pages != 100 || f.cut {
		t.Errorf("%d pages, cut %t\n%s", f.pages, f.cut, got)
	}
}

// TestFlameBounds holds that narrow and deep blocks, and rare stacks, are left out, and
// that the flame graph is marked as cut.
func TestFlameBounds(t *testing.T) {
	deep := strings.Repeat("f;", 10_000) + "do_anonymous_page"
	c := newCollector(newSummary(info))
	feed(&c, []event.Event{stackName(1, anonFrames), stackName(2, deep), stackedCharge(1, "wide", 1, 9980), stackedCharge(1, "deep", 2, 11), stackedCharge(1, "narrow", 1, 9)})
	f := c.flame()
	got := drawn(f)
	if strings.Contains(got, "narrow") || !f.cut || strings.Count(got, "\n") != 5+maxDepth-1 {
		t.Errorf("cut %t\n%s", f.cut, got)
	}

	c = newCollector(newSummary(info))
	events := []event.Event{stackName(1, anonFrames)}
	for i := range uint32(3 * maxSamples) {
		events = append(events, stackName(2+i, fmt.Sprintf("do_anonymous_page;f%d", i)), stackedCharge(1, "many", 2+i, 1), stackedCharge(1, "one", 1, 1))
	}
	feed(&c, events)
	f = c.flame()
	if len(c.samples) > maxSamples || f.pages != 6*maxSamples || f.blocks[1].name != "one" || f.blocks[1].pages != 3*maxSamples {
		t.Errorf("%d samples, %d pages\n%s", len(c.samples), f.pages, drawn(f))
	}

	c = newCollector(newSummary(info))
	for i := range uint32(900) {
		feed(&c, []event.Event{stackName(1+i, fmt.Sprintf("do_anonymous_page;g;f%d", i)), stackedCharge(1, "a", 1+i, 1<<63)})
	}
	f = c.flame()
	got = drawn(f)
	if len(f.blocks) != maxBlocks || !f.cut || strings.Count(got, " f") != 900 || strings.Count(got, " g") != maxBlocks-902 {
		t.Errorf("%d blocks of %d pages\n%s", len(f.blocks), f.pages, got)
	}
}

// TestLongNames holds that a page has the whole name of a cut name once, and marks a
// flame graph in which a search may miss blocks.
func TestLongNames(t *testing.T) {
	long := strings.Repeat("a", 60) + "needle" + strings.Repeat("z", 60)
	longer := strings.Repeat("b", 300)
	shown := func(name string) string { return text.Shorten(name, maxFunction) }
	got := render(t, stackName(1, "do_anonymous_page+0x1;"+long+"+0x1"), stackName(2, "do_anonymous_page+0x1;"+long+"+0x2;"+longer+"+0x1;short+0x1"),
		stackedCharge(1, "a", 1, 50), stackedCharge(1, "a", 2, 50))
	for _, want := range []string{
		`"Names":["` + long + `","` + strings.Repeat("b", maxWhole/2) + "…" + strings.Repeat("b", maxWhole/2) + `"]`,
		`data-pages="50" data-name="0"><rect class="f p0" width="100%" height="18"/><text x="4" y="13">` + shown(long) + "<",
		`data-pages="50" data-name="1"><rect class="f p0" width="100%" height="18"/><text x="4" y="13">` + shown(longer) + "<",
		`data-pages="50"><rect class="f p0" width="100%" height="18"/><text x="4" y="13">short<`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got[strings.Index(got, "<body>"):])
		}
	}
	if strings.Count(got, `data-name="0"`) != 2 || strings.Contains(got, "data-cut") {
		t.Errorf("the whole name of two blocks is there %d times, or blocks are said to be left out", strings.Count(got, `data-name="0"`))
	}
	var events []event.Event
	for i := range uint32(400) {
		events = append(events, stackName(1+i, fmt.Sprintf("do_anonymous_page;%d%s", i, longer)), stackedCharge(1, "a", 1+i, 1))
	}
	for what, page := range map[string]string{
		"a narrow block": render(t, append(fewStacks(), stackedCharge(1, "a", 1, 1<<20))...),
		"too many names": render(t, events...),
	} {
		if !strings.Contains(page, " data-cut>") {
			t.Errorf("%s: nothing is said to be left out", what)
		}
	}
}

// TestCausesOnPage holds that a page shows the causes if any is known.
func TestCausesOnPage(t *testing.T) {
	got := render(t, append(fewStacks(), charge(5, 7, 33, 0, event.OK))...)
	for _, want := range []string{
		"In all: anon 300 KiB, page table 40 KiB and other causes 60 KiB.",
		`<td>anon</td><td class="n" data-sort="4">4</td><td class="n" data-sort="75" title="75 pages">300 KiB</td><td class="n" data-sort="1">1</td>`,
		"400 KiB, by process and then by the functions of the kernel",
		" Another 132 KiB has no stack.",
		`<svg x="50.00%" y="72" width="10.00%" height="18" data-at="50" data-pages="10"><rect class="f p1" width="100%" height="18"/><text x="4" y="13">pte_alloc_one</text></svg>`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got[strings.Index(got, "<body>"):])
		}
	}
	for name, events := range map[string][]event.Event{
		"no stacks":     {charge(1, 7, 64, 0, event.OK)},
		"no names":      {stackName(1, "0xffffffff81000000"), stackedCharge(1, "a", 1, 64)},
		"none is known": {stackedCharge(1, "a", 1, 64)},
	} {
		got := render(t, events...)
		for _, bad := range []string{"By cause", `class="flame"`, "Running"} {
			if body := got[strings.Index(got, "<body>"):strings.LastIndex(got, "<script>")]; strings.Contains(body, bad) {
				t.Errorf("%s: %q is there", name, bad)
			}
		}
	}
}
