// Package table prints a trace as text, one row per charge: either the table of the
// bpftrace script that chargetrace grew out of, with marks at the limit, or a wide table
// with all details of a charge. Reclaim, OOM kills and losses have lines between the rows.
// It must not know sources or other sinks.
package table

import (
	"io"
	"strconv"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
	"chargetrace/internal/verdict"
)

// Options control the look of a [Table]. The zero value is the script's table.
type Options struct {
	// Wide selects the wide table. Names of cgroups are shortened so that its rows fit into
	// Columns, at least 120, flags and long names aside; 0 shortens none.
	Wide    bool
	Columns int
}

// Table is a [stream.Sink] that prints rows. Its memory grows with the number
// of cgroups in the trace.
type Table struct {
	w         io.Writer
	verdict   *verdict.Verdict
	kills     int                   // the number of OOM kills so far
	idle      map[*verdict.OOM]bool // those with a line; the wide table has one for each run
	format    text.Format
	timeWidth int
	// bootWallNanos is that of the last event; see [event.ClockStep].
	bootWallNanos int64

	wide bool
	// Widths of the wide table's columns for names of cgroups. They grow with the names unless
	// those are shortened.
	cgroupWidth, limitedByWidth int
	shortens                    bool
	// charged and limiting are the cgroups of the last row, often also those of the next
	// one. limitingRoom is the width that limiting was shortened to.
	charged, limiting cachedCgroup
	limitingRoom      int
	level             []byte // a buffer for the limiting level's usage and limit

	// seen are the levels that have limited a charge. recent is a cache of them, indexed
	// by the cgroup's ID modulo the length.
	seen   map[level]*seenLevel
	recent [16]*seenLevel

	start    cachedStart
	end      cachedEnd
	lastTime cachedTime
	// Caches indexed by the TID or the number of pages modulo the length: most rows
	// repeat those of one of the last few rows.
	tasks            [16]cachedTask
	requests, limits [4]cachedCount

	buf     []byte
	started bool
}

// cachedStart holds the columns TIME to REQUESTED of the last row of the script's table.
type cachedStart struct {
	millis    int64
	pid, tid  uint32
	comm      event.Comm
	kind      event.Kind
	requested uint64
	columns   []byte // nil: unset
}

// cachedEnd holds the columns CURRENT and LIMIT of the last row of the script's table.
type cachedEnd struct {
	kind    event.Kind
	limit   uint64
	columns []byte // nil: unset
}

// cachedTime holds the column TIME of the last row. The next event is often in the same
// millisecond.
type cachedTime struct {
	millis int64
	column []byte // nil: unset
}

// cachedTask holds the columns PID, TID and COMM of a thread.
type cachedTask struct {
	pid, tid uint32
	comm     event.Comm
	columns  []byte // nil: unset
}

// cachedCount holds a column with a number of pages.
type cachedCount struct {
	kind   event.Kind
	pages  uint64
	column []byte
}

// level identifies a level in the tree of counters of one kind.
type level struct {
	cgroup event.CgroupID
	kind   event.Kind
	// counter identifies a counter without a cgroup.
	counter uint64
}

// seenLevel is the last known state of a level.
type seenLevel struct {
	level
	atLimit bool
}

// New returns a Table that prints the events of a trace to w, in the Format of its Verdict.
func New(w io.Writer, v *verdict.Verdict, o Options) *Table {
	t := &Table{
		w:             w,
		verdict:       v,
		format:        v.Format,
		timeWidth:     8,
		wide:          o.Wide,
		seen:          make(map[level]*seenLevel),
		bootWallNanos: v.Info.BootWallNanos,
		idle:          make(map[*verdict.OOM]bool),
		buf:           make([]byte, 0, 32<<10),
	}
	if t.wide {
		t.timeWidth = 7
	}
	switch t.format.Time {
	case text.Clock:
		t.timeWidth = len(text.ClockLayout)
	case text.Date:
		t.timeWidth = len(text.DateLayout)
	}
	t.shortens = o.Columns > 0
	t.setNameWidths(max(o.Columns, wideColumnsToFit))
	return t
}

// The widths of the columns in the script's format:
// %-8d %-6d %-16s %-10d %-10d %-10d.
const (
	pidWidth   = 6
	commWidth  = 16
	countWidth = 10
)

// Write prints the rows of a batch with one call of the underlying Write.
func (t *Table) Write(batch []event.Event) error {
	t.buf = t.buf[:0]
	t.appendHeader()
	for i := range batch {
		switch e := &batch[i]; e.Type {
		case event.Charge:
			if t.wide {
				t.appendWideCharge(e)
			} else {
				t.appendCharge(e)
			}
		case event.ReclaimBegin, event.ReclaimEnd:
			if t.wide {
				t.appendReclaim(e)
			}
		case event.OOMKill:
			t.appendOOMKill(e)
		case event.OOM:
			t.appendIdle(e)
		case event.Throttle:
			if t.wide {
				t.appendThrottle(e)
			}
		case event.CgroupName:
			t.charged.column, t.limiting.column = nil, nil
		case event.ClockStep:
			if !t.relative() {
				t.buf = append(append(append(t.buf, "--- "...), verdict.TellClock(e.BootWallNanos-t.bootWallNanos)...), " ---\n"...)
			}
			t.bootWallNanos = e.BootWallNanos
		case event.Lost:
			t.buf = append(t.buf, "--- "...)
			t.buf = strconv.AppendUint(t.buf, e.LostCharges, 10)
			t.buf = append(t.buf, " events lost ---\n"...)
		}
	}
	if len(t.buf) == 0 {
		return nil
	}
	_, err := t.w.Write(t.buf)
	return err
}

// Close prints the header if nothing has been printed.
func (t *Table) Close(stream.Counts) error {
	if t.started {
		return nil
	}
	t.buf = t.buf[:0]
	t.appendHeader()
	_, err := t.w.Write(t.buf)
	return err
}

func (t *Table) appendHeader() {
	if t.started {
		return
	}
	t.started = true
	if t.wide {
		t.appendWideHeader()
		return
	}
	b := t.buf
	b = appendColumn(b, "TIME", t.timeWidth)
	b = appendColumn(b, "PID", pidWidth)
	b = appendColumn(b, "COMM", commWidth)
	b = appendColumn(b, "REQUESTED", countWidth)
	b = appendColumn(b, "CURRENT", countWidth)
	b = appendColumn(b, "LIMIT", countWidth)
	b[len(b)-1] = '\n'
	t.buf = b
}

func appendColumn(b []byte, text string, width int) []byte {
	from := len(b)
	return pad(append(b, text...), from, width)
}

// pad fills the column that starts at from with blanks up to its width, and adds the
// blank before the next column.
func pad(b []byte, from, width int) []byte {
	const blanks = "                                        "
	fill := max(0, from+width-len(b)) + 1
	for fill > len(blanks) {
		b = append(b, blanks...)
		fill -= len(blanks)
	}
	return append(b, blanks[:fill]...)
}

// appendStart appends the columns TIME to REQUESTED.
func (t *Table) appendStart(b []byte, e *event.Event) []byte {
	s := &t.start
	millis := t.millis(e.BootNanos)
	if s.columns != nil && s.millis == millis && s.tid == e.TID && s.requested == e.RequestedPages && s.pid == e.PID &&
		s.comm == e.Comm && s.kind == e.Kind && t.relative() {
		return append(b, s.columns...)
	}
	task := t.task(e)
	if task.update(e) {
		c := pad(strconv.AppendUint(task.columns[:0], uint64(e.PID), 10), 0, pidWidth)
		task.columns = pad(event.AppendPrintable(c, e.Comm.Bytes()), len(c), commWidth)
	}
	columns := append(t.appendTime(s.columns[:0], e.BootNanos), task.columns...)
	columns = t.appendRequested(columns, e, countWidth)
	*s = cachedStart{millis, e.PID, e.TID, e.Comm, e.Kind, e.RequestedPages, columns}
	return append(b, columns...)
}

// appendEnd appends the columns CURRENT and LIMIT.
func (t *Table) appendEnd(b []byte, e *event.Event) []byte {
	s := &t.end
	n := uint64(e.UsagePages)
	if s.columns == nil || s.limit != e.MaxPages || s.kind != e.Kind || !t.format.InPages() || e.Kind == event.Dmem || n >= 1e8 {
		columns := pad(t.appendCount(s.columns[:0], e.Kind, e.UsagePages), 0, countWidth)
		columns = t.appendLimit(columns, e, countWidth)
		*s = cachedEnd{e.Kind, e.MaxPages, columns}
		if len(columns) < 2*(countWidth+1) || columns[countWidth] != ' ' {
			s.columns = nil // CURRENT is too wide
		}
		return append(b, columns...)
	}
	// This takes a third of the time of strconv and of the columns one by one.
	column := s.columns[:countWidth]
	copy(column, "          ")
	digits := 1
	for p := uint64(10); p <= n; p *= 10 {
		digits++
	}
	for u := uint32(n); digits > 0; u /= 10 {
		digits--
		column[digits] = byte('0' + u%10)
	}
	return append(b, s.columns...)
}

func (t *Table) appendCharge(e *event.Event) {
	b := t.appendStart(t.buf, e)
	b = t.appendEnd(b, e)

	if at, reached := t.limitReached(e); at {
		b = append(b, '*')
		if reached {
			b = append(b, " LIMIT REACHED"...)
		}
		// The row already shows the counter's own limit.
		if e.Limiting.CgroupID != e.Cgroup.ID {
			b = append(b, ' ')
			b = append(b, t.verdict.Names.Label(e.InCgroup(e.Limiting.CgroupID))...)
		}
		b = append(b, ' ')
	}
	if e.Kind != event.Memory {
		b = append(b, '[')
		b = append(b, e.Kind.String()...)
		b = append(b, "] "...)
	}
	b[len(b)-1] = '\n'
	t.buf = b
}

// appendRequested appends the column of the requested pages.
func (t *Table) appendRequested(b []byte, e *event.Event, width int) []byte {
	r := &t.requests[e.RequestedPages%uint64(len(t.requests))]
	if r.update(e.Kind, e.RequestedPages) {
		r.column = pad(t.appendCount(r.column[:0], e.Kind, int64(e.RequestedPages)), 0, width)
	}
	return append(b, r.column...)
}

// appendLimit appends the column of the counter's own limit.
func (t *Table) appendLimit(b []byte, e *event.Event, width int) []byte {
	l := &t.limits[e.MaxPages%uint64(len(t.limits))]
	if l.update(e.Kind, e.MaxPages) {
		l.column = pad(t.appendMax(l.column[:0], e.Kind, e.MaxPages), 0, width)
	}
	return append(b, l.column...)
}

func (t *Table) task(e *event.Event) *cachedTask {
	return &t.tasks[e.TID%uint32(len(t.tasks))]
}

// update sets the thread, and reports whether it changed: the caller must then write
// the columns.
func (s *cachedTask) update(e *event.Event) bool {
	if s.columns != nil && s.pid == e.PID && s.tid == e.TID && s.comm == e.Comm {
		return false
	}
	s.pid, s.tid, s.comm = e.PID, e.TID, e.Comm
	return true
}

// update sets the count, and reports whether it changed: the caller must then write the
// column.
func (s *cachedCount) update(kind event.Kind, pages uint64) bool {
	if s.column != nil && s.kind == kind && s.pages == pages {
		return false
	}
	s.kind, s.pages = kind, pages
	return true
}

// limitReached reports whether the limiting level of a charge is at its limit, and
// whether the level was below it at its previous charge.
func (t *Table) limitReached(e *event.Event) (at, reached bool) {
	if e.Limiting.CgroupID == 0 && !e.Limiting.Limited() {
		return false, false
	}
	l := level{cgroup: e.InCgroup(e.Limiting.CgroupID), kind: e.Kind}
	if l.cgroup.ID == 0 {
		l.counter = e.Counter
	}
	at = e.Limiting.AtLimit()
	recent := &t.recent[l.cgroup.ID%uint64(len(t.recent))]
	if s := *recent; s == nil || s.level != l {
		*recent = t.seenLevel(l, at)
	}
	s := *recent
	reached = at && !s.atLimit
	s.atLimit = at
	return at, reached
}

// seenLevel returns the state of a level. It adds a new level with atLimit.
func (t *Table) seenLevel(l level, atLimit bool) *seenLevel {
	s := t.seen[l]
	if s == nil {
		s = &seenLevel{level: l, atLimit: atLimit}
		t.seen[l] = s
	}
	return s
}

// appendOOMKill appends an OOM kill, as a line between the rows.
func (t *Table) appendOOMKill(e *event.Event) {
	if t.wide {
		t.appendWideOOMKill(e)
		return
	}
	b := append(append(t.buf, "--- "...), t.verdict.TellKill(t.nextKill())...)
	t.buf = append(b, " ---\n"...)
}

// appendIdle appends a run of the OOM killer that killed nobody.
func (t *Table) appendIdle(e *event.Event) {
	o := t.verdict.Idle(e)
	switch {
	case t.wide:
		b := t.appendEvent(e, "oom")
		b = appendColumn(b, "none", outcomeWidth)
		b = t.appendCgroup(b, e.Cgroup)
		t.buf = append(append(b, verdict.TellResult(e.Result)...), '\n')
	case o != nil && !t.idle[o]:
		t.idle[o] = true
		t.buf = append(append(append(t.buf, "--- "...), t.verdict.TellIdle(o)...), " ---\n"...)
	}
}

// nextKill returns the OOM kill of the next event of that type.
func (t *Table) nextKill() *verdict.Kill {
	t.kills++
	return t.verdict.Kills[t.kills-1]
}

// appendTime appends the column TIME.
func (t *Table) appendTime(b []byte, bootNanos uint64) []byte {
	from := len(b)
	if !t.relative() {
		return pad(t.format.AppendMoment(b, bootNanos), from, t.timeWidth)
	}
	s := &t.lastTime
	if millis := t.millis(bootNanos); s.column == nil || s.millis != millis {
		s.millis, s.column = millis, pad(strconv.AppendInt(s.column[:0], millis, 10), 0, t.timeWidth)
	}
	return append(b, s.column...)
}

// millis returns the milliseconds since the trace began.
func (t *Table) millis(bootNanos uint64) int64 {
	return int64(bootNanos-t.format.StartBootNanos) / int64(time.Millisecond)
}

// relative reports whether times are milliseconds since the trace began.
func (t *Table) relative() bool { return t.format.Time == "" || t.format.Time == text.Relative }

// appendCount appends a number of pages in the units of the table. Device memory is
// counted in bytes, and marked with a B.
func (t *Table) appendCount(b []byte, kind event.Kind, n int64) []byte {
	return t.format.AppendColumn(b, n, kind == event.Dmem)
}

func (t *Table) appendMax(b []byte, kind event.Kind, max uint64) []byte {
	if l := (event.Level{MaxPages: max}); !l.Limited() {
		return append(b, "max"...)
	}
	return t.appendCount(b, kind, int64(max))
}
