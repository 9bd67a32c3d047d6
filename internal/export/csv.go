package export

import (
	"io"
	"strings"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/world"
)

// CSV is a [stream.Sink] that writes one line per event (RFC 4180), after a line with
// the names of the columns. A column is empty if the event has no such value, such as max
// without a limit. The columns requested, usage, max and room are in the unit of the
// column unit.
// max is the memory.high or memory.swap.high of a throttle, and the victim of a held is a process that lives.
// A clock_step, after which wall_time follows another clock, has its time alone. What memory.stat
// has is only in a .jsonl. For an uncharge or a forced charge, requested is its size. flags contains existing for
// a process that is older than the trace, and for a usage read when the trace began.
// Names are escaped as in the table, and a name that a spreadsheet would evaluate as a
// formula starts with an apostrophe.
type CSV struct {
	writer
	started bool
}

// NewCSV returns a CSV that writes the events of a World's trace to w.
func NewCSV(w io.Writer, world *world.World) *CSV {
	return &CSV{writer: newWriter(w, world)}
}

// columns are the columns of a line. types are the events with a value in the column, and
// value appends it.
var columns = []struct {
	name  string
	types types
	value func(c *CSV, e *event.Event)
}{
	{"type", timed, func(c *CSV, e *event.Event) { c.string(typeNames[e.Type]) }},
	{"time_ns", timed, func(c *CSV, e *event.Event) { c.int(c.sinceStart(e)) }},
	{"wall_time", timed, func(c *CSV, e *event.Event) { c.buf = c.appendWallTime(c.buf, e) }},
	{"cpu", onCPU, func(c *CSV, e *event.Event) { c.uint(uint64(e.CPU)) }},
	{"pid", byTask, func(c *CSV, e *event.Event) { c.uint(uint64(e.PID)) }},
	{"tid", byTask, func(c *CSV, e *event.Event) { c.uint(uint64(e.TID)) }},
	{"comm", byTask, func(c *CSV, e *event.Event) { c.comm(&e.Comm) }},
	{"cgroup", ofCgroup, func(c *CSV, e *event.Event) { c.cgroup(e.Cgroup) }},
	{"cgroup_id", ofCgroup, func(c *CSV, e *event.Event) { c.uint(e.Cgroup.ID) }},
	{"hierarchy", ofCgroup, func(c *CSV, e *event.Event) { c.uint(uint64(e.Cgroup.Hierarchy)) }},
	{"container", ofCgroup, func(c *CSV, e *event.Event) { c.field(c.describe(e.Cgroup).short) }},
	{"kind", ofCounter | throttle, func(c *CSV, e *event.Event) { c.string(e.Kind.String()) }},
	{"outcome", charge, func(c *CSV, e *event.Event) { c.string(e.Outcome.String()) }},
	{"unit", ofCounter | usage | oomKill | oom | throttle | memoryStat, func(c *CSV, e *event.Event) { c.string(unit(e)) }},
	{"requested", ofCounter, func(c *CSV, e *event.Event) { c.uint(e.RequestedPages) }},
	{"usage", ofCounter | usage | oomKill | oom | throttle | memoryStat, func(c *CSV, e *event.Event) {
		if e.Type != event.OOMKill && e.Type != event.OOM || oomKnown(e) {
			c.int(e.UsagePages)
		}
	}},
	{"max", charge | oomKill | oom | throttle, func(c *CSV, e *event.Event) {
		if e.Limited() && (e.Type == event.Charge || e.Type == event.Throttle || oomKnown(e)) {
			c.uint(e.MaxPages)
		}
	}},
	{"limiting_cgroup", charge, func(c *CSV, e *event.Event) { c.levelCgroup(e, &e.Limiting) }},
	{"limiting_usage", charge, func(c *CSV, e *event.Event) { c.levelUsage(&e.Limiting) }},
	{"limiting_max", charge, func(c *CSV, e *event.Event) { c.levelMax(&e.Limiting) }},
	{"limiting_room", charge, func(c *CSV, e *event.Event) {
		if e.Limiting.Limited() {
			c.int(e.Limiting.RoomPages())
		}
	}},
	{"high_cgroup", charge, func(c *CSV, e *event.Event) { c.levelCgroup(e, &e.High) }},
	{"high_usage", charge, func(c *CSV, e *event.Event) { c.levelUsage(&e.High) }},
	{"high_max", charge, func(c *CSV, e *event.Event) { c.levelMax(&e.High) }},
	{"failed_at", charge, func(c *CSV, e *event.Event) { c.cgroup(e.InCgroup(e.FailedAt)) }},
	{"flags", charge | fork | usage | oomKill | oom, (*CSV).flags},
	{"freed_pages", reclaimEnd, func(c *CSV, e *event.Event) { c.uint(e.FreedPages) }},
	{"duration_ns", reclaimEnd | throttle, func(c *CSV, e *event.Event) { c.uint(e.DurationNanos) }},
	{"victim_pid", oomKill | held, func(c *CSV, e *event.Event) { c.uint(uint64(e.Victim.PID)) }},
	{"victim_comm", oomKill | held, func(c *CSV, e *event.Event) { c.comm(&e.Victim.Comm) }},
	{"victim_anon_pages", oomKill | held, func(c *CSV, e *event.Event) { c.uint(e.Victim.AnonPages) }},
	{"victim_file_pages", oomKill | held, func(c *CSV, e *event.Event) { c.uint(e.Victim.FilePages) }},
	{"victim_shmem_pages", oomKill | held, func(c *CSV, e *event.Event) { c.uint(e.Victim.ShmemPages) }},
	{"victim_swap_pages", oomKill | held, func(c *CSV, e *event.Event) { c.uint(e.Victim.SwapPages) }},
	{"lost_events", lost, func(c *CSV, e *event.Event) { c.uint(e.LostCharges) }},
	{"child_pid", fork, func(c *CSV, e *event.Event) { c.uint(uint64(e.ChildPID)) }},
	{"cause", charge, func(c *CSV, e *event.Event) {
		if e.KernelStack != 0 {
			c.buf = appendField(c.buf, c.world.Stacks.Cause(e).String()) // it can be "-"
		}
	}},
	{"victim_page_table_bytes", oomKill | held, func(c *CSV, e *event.Event) { c.uint(e.Victim.PageTableBytes) }},
	{"victim_cgroup", oomKill | held, func(c *CSV, e *event.Event) { c.cgroup(e.VictimCgroup()) }},
	{"result", oom, func(c *CSV, e *event.Event) { c.string(e.Result.String()) }},
	{"order", oomKill | oom, func(c *CSV, e *event.Event) {
		if e.Order >= 0 {
			c.int(int64(e.Order))
		}
	}},
	{"label", ofCgroup, func(c *CSV, e *event.Event) { c.field(c.describe(e.Cgroup).label) }},
	{"container_id", ofCgroup, func(c *CSV, e *event.Event) { c.field(c.describe(e.Cgroup).ID) }},
	{"container_name", ofCgroup, func(c *CSV, e *event.Event) { c.field(c.describe(e.Cgroup).Name) }},
	{"namespace", ofCgroup, func(c *CSV, e *event.Event) { c.field(c.describe(e.Cgroup).Namespace) }},
	{"pod", ofCgroup, func(c *CSV, e *event.Event) { c.field(c.describe(e.Cgroup).Pod) }},
	{"pod_uid", ofCgroup, func(c *CSV, e *event.Event) { c.field(c.describe(e.Cgroup).PodUID) }},
}

// Write writes the lines of a batch.
func (c *CSV) Write(batch []event.Event) error {
	c.start()
	return c.write(batch, c.encode)
}

// Close writes the names of the columns if nothing else was written.
func (c *CSV) Close(stream.Counts) error {
	c.start()
	return c.flush()
}

func (c *CSV) start() {
	if c.started {
		return
	}
	c.started = true
	for i := range columns {
		c.string(columns[i].name)
		c.buf = append(c.buf, ',')
	}
	c.endLine()
}

func (c *CSV) encode(e *event.Event) {
	if e.Type == event.Stack {
		return
	}
	t := types(1) << e.Type
	for i := range columns {
		if columns[i].types&t != 0 {
			columns[i].value(c, e)
		}
		c.buf = append(c.buf, ',')
	}
	c.endLine()
}

// endLine replaces the comma after the last column.
func (c *CSV) endLine() { c.buf = append(c.buf[:len(c.buf)-1], "\r\n"...) }

func (c *CSV) levelCgroup(e *event.Event, l *event.Level) {
	if l.Limited() {
		c.cgroup(e.InCgroup(l.CgroupID))
	}
}

func (c *CSV) levelUsage(l *event.Level) {
	if l.Limited() {
		c.int(l.UsagePages)
	}
}

func (c *CSV) levelMax(l *event.Level) {
	if l.Limited() {
		c.uint(l.MaxPages)
	}
}

func (c *CSV) flags(e *event.Event) {
	if e.Type == event.Fork || e.Type == event.Usage {
		if e.Flags&event.Existing != 0 {
			c.string("existing")
		}
		return
	}
	from := len(c.buf)
	for _, flag := range flags {
		if flag.has(e) {
			if len(c.buf) > from {
				c.buf = append(c.buf, ' ')
			}
			c.string(flag.name)
		}
	}
}

func (c *CSV) uint(n uint64) { c.buf = appendUint(c.buf, n) }
func (c *CSV) int(n int64)   { c.buf = appendInt(c.buf, n) }

// string appends text that needs no quotes.
func (c *CSV) string(s string) { c.buf = append(c.buf, s...) }

// field appends a printable name.
func (c *CSV) field(s string) { c.buf = appendField(c.buf, s) }

func (c *CSV) comm(comm *event.Comm) {
	var printable [printableComm]byte
	c.buf = appendField(c.buf, event.AppendPrintable(printable[:0], comm.Bytes()))
}

func (c *CSV) cgroup(id event.CgroupID) {
	if id.ID != 0 {
		c.buf = appendField(c.buf, c.world.Names.Printable(id))
	}
}

// appendField appends a printable name as a field, with quotes if needed.
func appendField[T string | []byte](b []byte, s T) []byte {
	formula := len(s) > 0 && strings.IndexByte("=+-@", s[0]) >= 0
	quote := false
	for i := range len(s) {
		quote = quote || s[i] == '"' || s[i] == ','
	}
	if quote {
		b = append(b, '"')
	}
	if formula {
		b = append(b, '\'')
	}
	if !quote {
		return append(b, s...)
	}
	for i := range len(s) {
		if s[i] == '"' {
			b = append(b, '"')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}
