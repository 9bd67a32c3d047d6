package table

import (
	"strconv"
	"time"
	"unicode/utf8"

	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/text"
	"chargetrace/internal/verdict"
)

// The widths of the columns of the wide table. The columns for names of cgroups also take what
// the screen has beyond wideColumnsToFit; otherwise they grow up to maxNameWidth. Without flags,
// the shortest rows are 118 characters wide.
const (
	widePIDWidth     = 7
	wideCommWidth    = 15
	requestWidth     = 4
	wideCountWidth   = 7
	kindWidth        = 7
	outcomeWidth     = 7
	minCgroupWidth   = 22
	minLimitedBy     = 11
	maxNameWidth     = 80
	roomWidth        = 6
	causeWidth       = 12
	wideColumnsToFit = 120
)

// setNameWidths distributes the width beyond wideColumnsToFit to the columns for names.
func (t *Table) setNameWidths(columns int) {
	extra := columns - wideColumnsToFit
	if t.verdict.Info.KernelStacks {
		extra = max(0, extra-causeWidth-1)
	}
	t.cgroupWidth = minCgroupWidth + extra/2
	t.limitedByWidth = minLimitedBy + extra - extra/2
}

func (t *Table) appendWideHeader() {
	b := t.buf
	b = appendColumn(b, "TIME", t.timeWidth)
	b = appendColumn(b, "PID", widePIDWidth)
	b = appendColumn(b, "TID", widePIDWidth)
	b = appendColumn(b, "COMM", wideCommWidth)
	b = appendColumn(b, "REQ", requestWidth)
	b = appendColumn(b, "CURRENT", wideCountWidth)
	b = appendColumn(b, "LIMIT", wideCountWidth)
	b = appendColumn(b, "KIND", kindWidth)
	b = appendColumn(b, "OUTCOME", outcomeWidth)
	b = appendColumn(b, "CGROUP", t.cgroupWidth)
	b = appendColumn(b, "LIMITED BY", t.limitedByWidth)
	b = appendColumn(b, "ROOM", roomWidth)
	if t.verdict.Info.KernelStacks {
		b = appendColumn(b, "CAUSE", causeWidth)
	}
	t.buf = append(b, "FLAGS\n"...)
}

// appendTimeAndTask appends the columns TIME, PID, TID and COMM.
func (t *Table) appendTimeAndTask(b []byte, e *event.Event) []byte {
	b = t.appendTime(b, e.BootNanos)
	s := t.task(e)
	if s.update(e) {
		s.columns = pad(strconv.AppendUint(s.columns[:0], uint64(e.PID), 10), 0, widePIDWidth)
		s.columns = pad(strconv.AppendUint(s.columns, uint64(e.TID), 10), len(s.columns), widePIDWidth)
		s.columns = pad(event.AppendPrintable(s.columns, e.Comm.Bytes()), len(s.columns), wideCommWidth)
	}
	return append(b, s.columns...)
}

func (t *Table) appendWideCharge(e *event.Event) {
	b := t.appendTimeAndTask(t.buf, e)
	b = t.appendRequested(b, e, requestWidth)
	from := len(b)
	b = pad(t.appendCount(b, e.Kind, e.UsagePages), from, wideCountWidth)
	b = t.appendLimit(b, e, wideCountWidth)
	b = appendColumn(b, e.Kind.String(), kindWidth)
	b = appendColumn(b, e.Outcome.String(), outcomeWidth)
	b = t.appendCgroup(b, e.Cgroup)
	b = t.appendLimitedBy(b, e)
	from = len(b)
	if e.Limiting.Limited() {
		b = t.appendCount(b, e.Kind, e.Limiting.RoomPages())
	} else {
		b = append(b, '-')
	}
	b = pad(b, from, roomWidth)
	if t.verdict.Info.KernelStacks {
		b = appendColumn(b, t.verdict.Stacks.Cause(e).String(), causeWidth)
	}
	t.buf = endLine(t.appendFlags(b, e))
}

// endLine replaces trailing blanks by a newline.
func endLine(b []byte) []byte {
	for b[len(b)-1] == ' ' {
		b = b[:len(b)-1]
	}
	return append(b, '\n')
}

// cachedCgroup holds a column with the name of a cgroup.
type cachedCgroup struct {
	id     event.CgroupID
	column []byte // padded
}

// appendCgroup appends the column CGROUP.
func (t *Table) appendCgroup(b []byte, id event.CgroupID) []byte {
	if t.charged.id != id || len(t.charged.column) == 0 {
		column := append(t.charged.column[:0], t.label(id, t.cgroupWidth)...)
		t.charged = cachedCgroup{id, t.padName(column, 0, &t.cgroupWidth)}
	}
	return append(b, t.charged.column...)
}

// label returns the label of a cgroup, on a terminal shortened.
func (t *Table) label(id event.CgroupID, width int) string {
	label := t.verdict.Names.Label(id)
	if t.shortens {
		return container.Fit(label, width)
	}
	return label
}

// isPodOf reports whether a cgroup is the pod of the container with another one.
func (t *Table) isPodOf(pod, id event.CgroupID) bool {
	p, c := t.verdict.Names.Identity(pod), t.verdict.Names.Identity(id)
	return p.ID == "" && c.ID != "" && p.PodUID != "" && p.PodUID == c.PodUID
}

// padName fills a column for names up to its width, which grows with the names unless they are
// shortened.
func (t *Table) padName(b []byte, from int, width *int) []byte {
	if n := utf8.RuneCount(b[from:]); !t.shortens {
		*width = max(*width, min(n, maxNameWidth))
	}
	return padRunes(b, from, *width)
}

// appendLimitedBy appends the name of the limiting level, or = for the charged cgroup, and its
// usage and limit.
func (t *Table) appendLimitedBy(b []byte, e *event.Event) []byte {
	l := &e.Limiting
	if !l.Limited() {
		return appendColumn(b, "-", t.limitedByWidth)
	}
	t.level = append(t.appendCount(t.level[:0], e.Kind, l.UsagePages), '/')
	t.level = t.appendCount(t.level, e.Kind, int64(l.MaxPages))
	from := len(b)
	if l.CgroupID == e.Cgroup.ID {
		b = append(append(b, '=', ' '), t.level...)
		return pad(b, from, t.limitedByWidth)
	}
	room := t.limitedByWidth - len(t.level) - 1
	id := e.InCgroup(l.CgroupID)
	if t.limiting.id != id || len(t.limiting.column) == 0 || t.limitingRoom != room {
		label := t.label(id, room)
		if utf8.RuneCountInString(label) > room && t.shortens && t.isPodOf(id, e.Cgroup) {
			b = append(append(b, "pod "...), t.level...) // the row names the container
			return pad(b, from, t.limitedByWidth)
		}
		column := append(t.limiting.column[:0], label...)
		t.limiting, t.limitingRoom = cachedCgroup{id, append(column, ' ')}, room
	}
	b = append(append(b, t.limiting.column...), t.level...)
	return t.padName(b, from, &t.limitedByWidth)
}

func (t *Table) appendFlags(b []byte, e *event.Event) []byte {
	if e.Limiting.AtLimit() {
		b = append(b, "* "...)
	}
	if e.Flags&event.Remote != 0 {
		b = append(b, "remote "...)
	}
	if e.Idle() {
		b = append(b, "idle "...)
	} else if e.Flags&event.KernelThread != 0 {
		b = append(b, "kthread "...)
	}
	if e.AboveHigh() {
		b = append(b, "high "...)
	}
	if e.Flags&event.Predicted != 0 {
		b = append(b, "predicted "...)
	}
	if e.Flags&event.WalkCut != 0 {
		b = append(b, "cut "...)
	}
	if e.FailedAt != 0 && e.FailedAt != e.Limiting.CgroupID {
		b = append(b, "at="...)
		b = append(b, t.verdict.Names.Label(e.InCgroup(e.FailedAt))...)
	}
	return b
}

func (t *Table) appendReclaim(e *event.Event) {
	b := t.appendEvent(e, "reclaim")
	if e.Type == event.ReclaimBegin {
		b = appendColumn(b, "begin", outcomeWidth)
		b = t.appendCgroup(b, e.Cgroup)
	} else {
		b = appendColumn(b, "end", outcomeWidth)
		b = t.appendCgroup(b, e.Cgroup)
		b = append(b, "freed "...)
		b = t.appendCount(b, event.Memory, int64(e.FreedPages))
		b = append(b, " in "...)
		b = strconv.AppendFloat(b, float64(e.DurationNanos)/float64(time.Millisecond), 'f', 3, 64)
		b = append(b, " ms"...)
	}
	t.buf = endLine(b)
}

func (t *Table) appendThrottle(e *event.Event) {
	b := t.appendEvent(e, "high")
	b = appendColumn(b, "sleep", outcomeWidth)
	b = t.appendCgroup(b, e.Cgroup)
	b = append(append(b, text.Duration(int64(e.DurationNanos))...), ", usage "...)
	b = t.appendCount(b, event.Memory, e.UsagePages)
	b = append(append(append(b, " above "...), verdict.HighOf(e).String()...), ' ')
	b = t.appendCount(b, event.Memory, int64(e.MaxPages))
	t.buf = append(b, '\n')
}

func (t *Table) appendWideOOMKill(e *event.Event) {
	b := t.appendEvent(e, "oom")
	b = appendColumn(b, "kill", outcomeWidth)
	b = t.appendCgroup(b, e.Cgroup)
	b = append(b, "killed "...)
	b = append(b, t.verdict.TellVictim(&t.nextKill().Victim)...)
	t.buf = append(b, '\n')
}

// appendEvent appends the columns up to KIND of an event that is not a charge.
func (t *Table) appendEvent(e *event.Event, kind string) []byte {
	b := t.appendTimeAndTask(t.buf, e)
	b = appendColumn(b, "-", requestWidth)
	b = appendColumn(b, "-", wideCountWidth)
	b = appendColumn(b, "-", wideCountWidth)
	return appendColumn(b, kind, kindWidth)
}

// padRunes is like pad, for text that is not ASCII.
func padRunes(b []byte, from, width int) []byte {
	extra := 0
	for _, c := range b[from:] {
		if !utf8.RuneStart(c) {
			extra++
		}
	}
	return pad(b, from, width+extra)
}
