package report

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"maps"
	"math"
	"slices"
	"strings"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/summary"
)

var (
	//go:embed report.html
	pageText string
	//go:embed report.css
	styleText string
	//go:embed report.js
	scriptText string

	pageTemplate = template.Must(template.New("page").Parse(pageText))
)

// page is what the template makes a file of.
type page struct {
	Style      template.CSS
	Script     template.JS
	StyleHash  string // what the Content-Security-Policy lets run, and nothing else
	ScriptHash string
	Title      string
	Headline   string
	Dateline   string
	Story      []string
	Warnings   []string
	Figures    []figure
	Plots      []plotView
	PlotsNote  string
	Charges    []plotView
	Flame      *flameView
	Tables     []table
	Facts      []fact
	Data       any // what the script knows of the plots; nil: there are none
}

// figure is a number that is worth large type.
type figure struct{ Value, Name, Exact string }

// fact is something about how the trace was made.
type fact struct{ Name, Value string }

// plotView is a plot, and the same in words and numbers.
type plotView struct {
	ID, Title, Note, Caption string
	Legend                   []legend
	Wide, Narrow             template.HTML
	Numbers                  table
}

// legend says what a colour stands for.
type legend struct{ Class, Name string }

// table is one that can be sorted.
type table struct {
	ID, Title, Note string
	Columns         []column
	Rows            [][]cell
}

// column is a head; Number columns are aligned to the right.
type column struct {
	Name   string
	Number bool
}

// cell is a text, and what it is sorted by and tells when pointed at.
type cell struct {
	Text  string
	Sort  string
	Exact string
	Class string
}

// maxRows is how many rows a table has.
const maxRows = 200

// maxPlots is how many page counters are drawn.
const maxPlots = 8

func (p *page) finish() ([]byte, error) {
	p.Style, p.Script = template.CSS(styleText), template.JS(scriptText)
	p.StyleHash, p.ScriptHash = hash(styleText), hash(scriptText)
	var b bytes.Buffer
	err := pageTemplate.Execute(&b, p)
	return b.Bytes(), err
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// textCell has a class where a text is so long that it may be broken.
func textCell(s string) cell {
	if len(s) > 28 {
		return cell{Text: s, Class: "long"}
	}
	return cell{Text: s}
}

// none is for a number that is not known.
var none = cell{Text: "–", Sort: "-1"}

func countCell(n uint64) cell { return cell{Text: count(n), Sort: fmt.Sprint(n)} }
func lastingCell(n uint64) cell {
	return cell{Text: lasting(n), Sort: fmt.Sprint(n), Exact: count(n) + " ns"}
}

func (c *collector) sizeCell(n int64, kind event.Kind) cell {
	unit := "page"
	if kind == event.Dmem {
		unit = "byte"
	}
	exact := counted(uint64(max(n, -n)), unit)
	if n < 0 {
		exact = "−" + exact
	}
	return cell{Text: c.size(n, kind), Sort: fmt.Sprint(n), Exact: exact}
}

func (c *collector) timeCell(nanos uint64) cell {
	if nanos == 0 {
		return cell{Text: "–", Sort: "Infinity"}
	}
	return cell{Text: c.since(nanos), Sort: fmt.Sprint(int64(nanos - c.header.StartBootNanos)), Exact: c.clock(nanos).Format("2006-01-02 15:04:05.000000 UTC")}
}

// limited cuts a table where it gets too long, and says so.
func (t table) limited() table {
	if n := len(t.Rows); n > maxRows {
		t.Rows = t.Rows[:maxRows]
		t.Note = strings.TrimSpace(fmt.Sprintf("The first %d of %s; %s more are left out. ", maxRows, count(uint64(n)), count(uint64(n-maxRows))) + t.Note)
	}
	return t
}

func (r *Report) writeHTML(about About) error {
	counts, err := about.Counts()
	if err != nil {
		return err
	}
	r.sum.Coverage.Unseen = counts.Lost + counts.LostOthers + counts.Missed
	p := page{Story: r.story(), Headline: r.headline(), Figures: r.figures()}
	p.Title = p.Headline + " – chargetrace"
	p.Dateline = r.dateline(about)
	p.Warnings = r.warnings(counts)
	var data struct {
		// Start is when, in milliseconds since the trace began, the plots begin,
		// and End when they end.
		Start, End float64
		Plots      []any
		Names      []string // of the flame graph
	}
	from, to := r.span()
	data.Start, data.End = r.millis(from), r.millis(to)
	plots, of := r.plots(maxPlots)
	for i, u := range plots {
		p.Plots = append(p.Plots, r.view(i, u))
		data.Plots = append(data.Plots, r.data(u))
	}
	if n := of - len(plots); n > 0 {
		p.PlotsNote = fmt.Sprintf("These are the %d counters where most was killed, failed or charged; %s not drawn.", len(plots), are(uint64(n)))
	}
	add := func(s *areaPlot, v plotView) {
		p.Charges = append(p.Charges, r.areaView(s, v))
		data.Plots = append(data.Plots, r.areaData(s))
	}
	if s := r.processPlot(); len(s.layers) > 0 {
		add(s, plotView{ID: "plot-stack", Title: "By process", Note: "memory charged in each " + lasting(1<<s.shift)})
	}
	if r.knowsCauses() {
		if s := r.causePlot(); len(s.layers) > 0 {
			add(s, plotView{ID: "plot-cause", Title: "By cause", Note: "all memory charged up to a time, given back since or not"})
			p.Flame = r.flameView(r.flame(), s.layers)
		}
	} else if r.header.UserStacks {
		p.Flame = r.flameView(r.flame(), nil)
	}
	if p.Flame != nil {
		data.Names = p.Flame.Names
	}
	if len(data.Plots) > 0 {
		p.Data = data
	}
	for _, t := range []table{r.killTable(), r.limitTable(), r.processTable(), r.cgroupTable(), r.netTable(), r.causeTable(), r.kindTable()} {
		if len(t.Rows) > 0 {
			p.Tables = append(p.Tables, t.limited())
		}
	}
	p.Facts = r.facts(about, counts)
	b, err := p.finish()
	if err != nil {
		return err
	}
	_, err = r.w.Write(b)
	return err
}

func are(n uint64) string {
	if n == 1 {
		return "1 more is"
	}
	return count(n) + " more are"
}

// millis is a time on the plots' axis, to the microsecond.
func (c *collector) millis(nanos uint64) float64 {
	return math.Round(float64(int64(nanos-c.header.StartBootNanos))/1e3) / 1e3
}

func (r *Report) view(i int, u *usagePlot) plotView {
	v := plotView{
		ID: fmt.Sprintf("plot-%d", i), Title: r.path(u.key.Cgroup), Note: u.key.Kind.String(), Caption: r.caption(u),
		Legend: []legend{{"usage", "in use"}},
		Wide:   inline(u, "wide", 1080, 330), Narrow: inline(u, "narrow", 360, 300),
	}
	if container := cgroup.ContainerOf(r.sum.Names.Path(u.key.Cgroup)).String(); container != "" {
		v.Note += ", " + event.Printable(container)
	}
	if u.partial {
		v.Caption += " Its beginning is not drawn: too many other cgroups came after it."
	}
	if u.limitDrawn {
		v.Legend = append(v.Legend, legend{"limit", "limit"})
	}
	if u.highDrawn {
		v.Legend = append(v.Legend, legend{"high", "memory.high"})
	}
	t := u.total()
	if t.failed.count > 0 {
		v.Legend = append(v.Legend, legend{"failed", "failed charges"})
	}
	if t.reclaim.count > 0 {
		v.Legend = append(v.Legend, legend{"reclaim", "reclaim"})
	}
	if len(u.lost) > 0 {
		v.Legend = append(v.Legend, legend{"lost", "events lost"})
	}
	if len(u.kills) > 0 {
		v.Legend = append(v.Legend, legend{"kill", "OOM kill"})
	}
	v.Numbers = table{ID: v.ID + "-numbers", Columns: []column{
		{"From", true}, {"Least in use", true}, {"Most in use", true}, {"Limit", true}, {"Charges", true}, {"Failed", true}, {"Misses", true}, {"Reclaim", true},
	}}
	s := u.reduced(32)
	for i := range s.buckets {
		b := &s.buckets[i]
		least, most, limit := none, none, none
		if b.usage.seen {
			least, most = r.sizeCell(b.usage.least.pages, u.key.Kind), r.sizeCell(b.usage.greatest.pages, u.key.Kind)
		}
		if b.max.seen {
			limit = r.sizeCell(b.max.last.pages, u.key.Kind)
		}
		v.Numbers.Rows = append(v.Numbers.Rows, []cell{r.timeCell(b.begin()), least, most, limit, countCell(b.charges), countCell(b.failed.count), countCell(b.misses), lastingCell(b.reclaimNanos)})
	}
	return v
}

// usageData is what the script tells of a plot: a value for each bucket.
type usageData struct {
	Unit    int       // bytes
	T       []float64 // ms
	Least   []int64   // -1: not known
	Most    []int64
	Limit   []int64 // -1: none
	Charges []uint64
	Failed  []uint64
	Misses  []uint64
	Reclaim []float64 // ms
}

func (r *Report) data(u *usagePlot) usageData {
	d := usageData{Unit: u.bytesPer}
	last, limit := int64(-1), int64(-1)
	for i := range u.buckets {
		b := &u.buckets[i]
		// Where nothing was charged, all is as it was.
		least, most := last, last
		if b.usage.seen {
			least, most, last = b.usage.least.pages, b.usage.greatest.pages, b.usage.last.pages
			limit = -1
		}
		if b.max.seen {
			limit = b.max.last.pages
		}
		d.T, d.Least, d.Most, d.Limit = append(d.T, r.millis(b.begin())), append(d.Least, least), append(d.Most, most), append(d.Limit, limit)
		d.Charges, d.Failed, d.Misses = append(d.Charges, b.charges), append(d.Failed, b.failed.count), append(d.Misses, b.misses)
		d.Reclaim = append(d.Reclaim, math.Round(float64(b.reclaimNanos)/1e3)/1e3)
	}
	return d
}

// areaView adds to a view what there is of a plot.
func (r *Report) areaView(s *areaPlot, v plotView) plotView {
	v.Wide, v.Narrow = inline(s, "wide", 1080, 250), inline(s, "narrow", 360, 250)
	// The cells once more, wider.
	n := s.cellCount()
	by := (n + 31) / 32
	v.Numbers = table{ID: v.ID + "-numbers", Columns: []column{{"From", true}}, Rows: make([][]cell, (n+by-1)/by)}
	for i := range v.Numbers.Rows {
		v.Numbers.Rows[i] = []cell{r.timeCell(max(s.cellStart(i*by), s.from))}
	}
	var names []string
	for i := range s.layers {
		l := &s.layers[i]
		v.Legend = append(v.Legend, legend{l.color.class, l.name})
		names = append(names, l.name+" "+size(float64(l.pages)*float64(s.bytesPer)))
		v.Numbers.Columns = append(v.Numbers.Columns, column{l.name, true})
		heights := s.heights(l, by)
		for i := range v.Numbers.Rows {
			var pages uint64
			if i < len(heights) {
				pages = heights[i]
			}
			v.Numbers.Rows[i] = append(v.Numbers.Rows[i], r.sizeCell(int64(pages), event.Memory))
		}
	}
	v.Caption = "In all: " + list(names) + "."
	return v
}

// areaData is what the script tells of such a plot.
type areaData struct {
	Unit    int
	Running bool      `json:",omitempty"`
	T       []float64 // where cells begin
	Names   []string
	Pages   [][]uint64 // of each name
}

func (r *Report) areaData(s *areaPlot) areaData {
	d := areaData{Unit: s.bytesPer, Running: s.running}
	for i := range s.cellCount() {
		d.T = append(d.T, r.millis(s.cellStart(i)))
	}
	for i := range s.layers {
		l := &s.layers[i]
		d.Names, d.Pages = append(d.Names, l.name), append(d.Pages, s.heights(l, 1))
	}
	return d
}

func (r *Report) killTable() table {
	t := table{ID: "kills", Title: "OOM kills", Columns: []column{
		{"Time", true}, {"Ran out", false}, {"Asked for more", false}, {"Killed", false}, {"Anonymous", true}, {"File", true}, {"Shared", true}, {"Swap", true},
	}}
	for i := range r.sum.OOMKills {
		e := &r.sum.OOMKills[i]
		v := &e.Victim
		row := []cell{r.timeCell(e.BootNanos), textCell(r.ranOut(e)), textCell(e.Comm.Of(e.PID)), textCell(v.Comm.Of(v.PID))}
		for _, pages := range []uint64{v.AnonPages, v.FilePages, v.ShmemPages, v.SwapPages} {
			row = append(row, r.sizeCell(int64(pages), event.Memory))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// limits are sorted as in the summary's text.
func (c *collector) limits() []*summary.Limit {
	return slices.SortedFunc(maps.Values(c.sum.Limits), func(a, b *summary.Limit) int {
		return cmp.Or(cmp.Compare(b.Failures, a.Failures), cmp.Compare(b.Hits, a.Hits), cmp.Compare(a.FirstNanos, b.FirstNanos))
	})
}

func (r *Report) limitTable() table {
	t := table{ID: "limits", Title: "Limits that were hit", Columns: []column{
		{"Cgroup", false}, {"Kind", false}, {"Limit", true}, {"Hits", true}, {"Failed charges", true}, {"First", true}, {"By", false},
	}}
	for _, l := range r.limits() {
		limit := textCell("–") // the trace does not tell
		if l.MaxPages > 0 {
			limit = r.sizeCell(int64(l.MaxPages), l.Kind)
		}
		t.Rows = append(t.Rows, []cell{
			textCell(r.path(l.Cgroup)), textCell(l.Kind.String()), limit,
			countCell(l.Hits), countCell(l.Failures), r.timeCell(l.FirstNanos), textCell(l.ByComm.Of(l.ByPID)),
		})
	}
	return t
}

var totalsColumns = []column{{"Charges", true}, {"Charged", true}, {"Failed", true}, {"Misses", true}, {"At limit", true}, {"Reclaim", true}, {"Freed", true}}

func (c *collector) totals(t *summary.Totals) []cell {
	return []cell{
		countCell(t.Charges), c.sizeCell(int64(t.ChargedPages), event.Memory), countCell(t.Failures), countCell(t.BatchMisses),
		c.timeCell(t.FirstAtLimitNanos), lastingCell(t.ReclaimNanos), c.sizeCell(int64(t.FreedPages), event.Memory),
	}
}

// worst puts first what failed most, and then what charged most.
func worst(a, b *summary.Totals) int {
	return cmp.Or(cmp.Compare(b.Failures, a.Failures), cmp.Compare(b.ChargedPages, a.ChargedPages), cmp.Compare(b.Charges, a.Charges))
}

func (r *Report) processTable() table {
	t := table{ID: "processes", Title: "By process", Columns: append([]column{{"PID", true}, {"Name", false}}, totalsColumns...)}
	for _, p := range slices.SortedFunc(maps.Values(r.sum.Processes), func(a, b *summary.Process) int {
		return cmp.Or(worst(&a.Totals, &b.Totals), cmp.Compare(a.PID, b.PID))
	}) {
		pid := cell{Text: fmt.Sprint(p.PID), Sort: fmt.Sprint(p.PID)}
		t.Rows = append(t.Rows, append([]cell{pid, textCell(p.Comm.String())}, r.totals(&p.Totals)...))
	}
	if r.sum.Others.Charges > 0 {
		t.Rows = append(t.Rows, append([]cell{textCell("–"), textCell("all others")}, r.totals(&r.sum.Others)...))
	}
	return t
}

func (r *Report) cgroupTable() table {
	t := table{ID: "cgroups", Title: "By cgroup", Columns: append([]column{{"Cgroup", false}, {"Container", false}}, totalsColumns...)}
	for _, id := range slices.SortedFunc(maps.Keys(r.sum.Cgroups), func(a, b event.CgroupID) int {
		return cmp.Or(worst(r.sum.Cgroups[a], r.sum.Cgroups[b]), cmp.Compare(a.Hierarchy, b.Hierarchy), cmp.Compare(a.ID, b.ID))
	}) {
		container := event.Printable(cgroup.ContainerOf(r.sum.Names.Path(id)).String())
		row := append([]cell{textCell(r.path(id)), textCell(cmp.Or(container, "–"))}, r.totals(r.sum.Cgroups[id])...)
		t.Rows = append(t.Rows, row)
	}
	return t
}

// netTable is that of the summary's text.
func (r *Report) netTable() table {
	t := table{ID: "net", Title: "Charged and given back, by cgroup and those below it", Columns: []column{
		{"Cgroup", false}, {"Kind", false}, {"Charged", true}, {"Forced", true}, {"Given back", true}, {"Net", true},
		{"At begin", true}, {"At end", true}, {"Difference", true},
	}}
	if r.sum.Nets == nil {
		return t
	}
	nets := r.sum.Nets.Sorted(&r.sum.Names)
	for _, n := range nets {
		kind := n.Key.Kind
		row := []cell{
			textCell(r.path(n.Key.Cgroup)), textCell(kind.String()), r.sizeCell(int64(n.ChargedPages), kind),
			r.sizeCell(int64(n.ForcedPages), kind), r.sizeCell(int64(n.UnchargedPages), kind), r.sizeCell(n.Pages(), kind),
		}
		if difference, ok := n.Difference(); ok {
			begin, end, _ := n.Readings()
			row = append(row, r.sizeCell(begin, kind), r.sizeCell(end, kind), r.sizeCell(difference, kind))
		} else {
			row = append(row, none, none, none)
		}
		t.Rows = append(t.Rows, row)
	}
	t.Note = strings.Join(r.sum.NetNotes(nets), " ")
	return t
}

// kindTable is empty where there is one kind only.
func (r *Report) kindTable() table {
	t := table{ID: "kinds", Title: "By kind of counter", Columns: append([]column{{"Kind", false}}, totalsColumns[:5]...)}
	for kind := range r.sum.Kinds {
		if k := &r.sum.Kinds[kind]; k.Charges > 0 {
			t.Rows = append(t.Rows, append([]cell{textCell(event.Kind(kind).String())}, r.totals(k)[:5]...))
		}
	}
	if len(t.Rows) == 1 {
		t.Rows = nil
	}
	return t
}

func (r *Report) figures() []figure {
	t := &r.sum.Total
	charged := r.sizeCell(int64(t.ChargedPages), event.Memory)
	kills := uint64(len(r.sum.OOMKills))
	return []figure{
		{count(t.Charges), plural(t.Charges, "charge"), ""},
		{charged.Text, "charged", charged.Exact},
		{count(t.Failures), "failed", ""},
		{lasting(t.ReclaimNanos), "in reclaim", counted(t.Reclaims, "run")},
		{count(kills), plural(kills, "OOM kill"), ""},
	}
}

func (r *Report) dateline(about About) string {
	var parts []string
	if about.Host != "" && about.Host != "(none)" { // what Linux has before it is given a name
		parts = append(parts, shown(about.Host))
	}
	if about.Kernel != "" {
		parts = append(parts, "Linux "+shown(about.Kernel))
	}
	parts = append(parts, r.clock(r.header.StartBootNanos).Format("2 January 2006, 15:04:05 UTC"))
	if r.last > r.first {
		parts = append(parts, lasting(r.last-r.first)+" of events")
	}
	return strings.Join(parts, " · ")
}

func (r *Report) facts(about About, n Counts) []fact {
	facts := []fact{{"Began", r.clock(r.header.StartBootNanos).Format("2006-01-02 15:04:05.000 UTC") + "; times are counted from then"}}
	var command []string
	for _, arg := range about.CommandLine {
		command = append(command, event.Printable(arg))
	}
	for _, f := range []fact{
		{"Command", shortenTo(strings.Join(command, " "), 10*maxName)}, {"Program", shown(about.Program)}, {"Host", shown(about.Host)},
		{"Kernel", strings.TrimSpace(shown(about.Kernel) + " " + shown(about.Arch))}, {"Attached with", shown(about.Attach)},
	} {
		if f.Value != "" {
			facts = append(facts, f)
		}
	}
	facts = append(facts, fact{"Page size", fmt.Sprintf("%s bytes", count(uint64(r.header.PageSize)))})
	here := counted(r.sum.Total.Charges, "charge") + " in this report"
	if n.Whole {
		if n.Seen >= n.Filtered+n.Lost {
			recorded := n.Seen - n.Filtered - n.Lost
			facts = append(facts, fact{"Coverage", fmt.Sprintf("%s; of %s seen by the kernel’s probe %s delivered, %s filtered, %s lost",
				here, count(n.Seen), count(recorded), count(n.Filtered), count(n.Lost))})
		}
	} else {
		facts = append(facts, fact{"Coverage", here + "; how many the kernel saw is not known"})
	}
	for _, l := range []struct {
		n          uint64
		one, other string
	}{
		{r.sum.Coverage.Predicted, "charge returned unseen: its outcome is foretold from what it met", "charges returned unseen: their outcome is foretold from what they met"},
		{r.sum.Coverage.WalksCut, "charge has more ancestors than were looked at", "charges have more ancestors than were looked at"},
		{r.sum.Coverage.UnknownKinds, "charge was to a counter of an unknown kind", "charges were to counters of an unknown kind"},
	} {
		if l.n == 1 {
			facts = append(facts, fact{"Uncertain", "1 " + l.one})
		} else if l.n > 0 {
			facts = append(facts, fact{"Uncertain", count(l.n) + " " + l.other})
		}
	}
	return facts
}

func (r *Report) warnings(n Counts) []string {
	var w []string
	if n.DamagedBlocks > 0 {
		w = append(w, counted(n.DamagedBlocks, "damaged block")+" of the recording could not be read: what is here is not all.")
	}
	if n.Whole {
		if lost := max(n.Lost+n.LostOthers, r.sum.Coverage.Lost); lost > 0 {
			w = append(w, counted(lost, "event")+" found no place in the buffer: what is here is not all.")
		}
		if n.Missed > 0 {
			w = append(w, counted(n.Missed, "call")+" went unnoticed: a probe was already running on that CPU.")
		}
		if n.Unstacked > 0 {
			w = append(w, counted(n.Unstacked, "stack")+" of charges could not be taken, or there were too many different ones.")
		}
		if n.Unnamed > 0 {
			w = append(w, "Processes whose user stacks are addresses, since they could not be looked at, or not in time: "+count(n.Unnamed)+".")
		}
		return w
	}
	if r.sum.Coverage.Lost > 0 {
		w = append(w, counted(r.sum.Coverage.Lost, "event")+" found no place in the buffer: what is here is not all.")
	}
	return append(w, "The trace was not brought to its end: what came last may be missing.")
}
