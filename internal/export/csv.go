package export

import (
	"bytes"
	"io"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// CSV is a [stream.Sink] that writes a line for each event (RFC 4180), after one
// with the names of the columns. Columns that an event has no value for are
// empty, as is max where there is no limit. unit says what requested, usage, max
// and room count; of what was given back or charged whatever the limit, requested
// is how much that was. flags has existing where a process was there before the trace,
// and where usage is of its beginning. Names are escaped as in the table, and one that a spreadsheet
// would take for a formula stands after an apostrophe.
type CSV struct {
	writer
	started bool
}

// NewCSV returns a CSV that writes to w the events of a source with that header.
func NewCSV(w io.Writer, header stream.Info) *CSV {
	return &CSV{writer: newWriter(w, header)}
}

const csvHeader = "type,time_ns,wall_time,cpu,pid,tid,comm,cgroup,cgroup_id,hierarchy,container,kind,outcome,unit," +
	"requested,usage,max,limiting_cgroup,limiting_usage,limiting_max,limiting_room,high_cgroup,high_usage,high_max," +
	"failed_at,flags,freed_pages,duration_ns,victim_pid,victim_comm,victim_anon_pages,victim_file_pages," +
	"victim_shmem_pages,victim_swap_pages,lost_events,child_pid,cause\r\n"

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
	if !c.started {
		c.started = true
		c.buf = append(c.buf, csvHeader...)
	}
}

func (c *CSV) encode(e *event.Event) {
	if e.Type == event.Stack {
		return
	}
	c.buf = append(c.buf, typeNames[e.Type]...)
	c.int(c.sinceStart(e))
	c.buf = c.appendWallTime(append(c.buf, ','), e)
	if e.Type == event.Usage { // of no task
		c.empty(4)
		c.whose(e)
		c.empty(2)
		c.text([]byte("pages"))
		c.empty(1)
		c.int(e.UsagePages)
		c.empty(9)
		c.existing(e)
		c.empty(11)
		c.buf = append(c.buf, "\r\n"...)
		return
	}
	c.uint(uint64(e.CPU))
	if e.Type == event.Lost {
		c.empty(30)
		c.uint(e.LostEvents)
		c.buf = append(c.buf, ",,\r\n"...)
		return
	}
	c.uint(uint64(e.PID))
	c.uint(uint64(e.TID))
	c.text(event.AppendPrintable(nil, e.Comm.Bytes()))
	if e.Type == event.Fork {
		c.empty(18)
		c.existing(e)
		c.empty(9)
		c.uint(uint64(e.ChildPID))
		c.buf = append(c.buf, ",\r\n"...)
		return
	}
	c.whose(e)
	switch e.Type {
	case event.Charge:
		c.charge(e)
	case event.Uncharge, event.ForcedCharge:
		c.text([]byte(e.Kind.String()))
		c.empty(1)
		c.text([]byte(unit(e.Kind)))
		c.uint(e.RequestedPages)
		c.int(e.UsagePages)
		c.empty(10)
	default:
		c.empty(15)
	}
	if e.Type == event.ReclaimEnd {
		c.uint(e.FreedPages)
		c.uint(e.DurationNanos)
	} else {
		c.empty(2)
	}
	if e.Type == event.OOMKill {
		v := &e.Victim
		c.uint(uint64(v.PID))
		c.text(event.AppendPrintable(nil, v.Comm.Bytes()))
		for _, n := range []uint64{v.AnonPages, v.FilePages, v.ShmemPages, v.SwapPages} {
			c.uint(n)
		}
	} else {
		c.empty(6)
	}
	c.empty(2)
	if e.Type == event.Charge && e.KernelStack != 0 {
		c.text([]byte(c.stacks.Cause(e).String()))
	} else {
		c.empty(1)
	}
	c.buf = append(c.buf, "\r\n"...)
}

// whose appends the cgroup of an event.
func (c *CSV) whose(e *event.Event) {
	c.cgroup(e.Cgroup)
	c.uint(e.Cgroup.ID)
	c.uint(uint64(e.Cgroup.Hierarchy))
	c.text([]byte(c.container(e.Cgroup).String()))
}

func (c *CSV) charge(e *event.Event) {
	c.text([]byte(e.Kind.String()))
	c.text([]byte(e.Outcome.String()))
	c.text([]byte(unit(e.Kind)))
	c.uint(e.RequestedPages)
	c.int(e.UsagePages)
	if e.Limited() {
		c.uint(e.MaxPages)
	} else {
		c.empty(1)
	}
	if l := &e.Limiting; l.Limited() {
		c.cgroup(e.InCgroup(l.CgroupID))
		c.int(l.UsagePages)
		c.uint(l.MaxPages)
		c.int(l.RoomPages())
	} else {
		c.empty(4)
	}
	if l := &e.High; l.Limited() {
		c.cgroup(e.InCgroup(l.CgroupID))
		c.int(l.UsagePages)
		c.uint(l.MaxPages)
	} else {
		c.empty(3)
	}
	c.cgroup(e.InCgroup(e.FailedAt))
	c.buf = append(c.buf, ',')
	from := len(c.buf)
	for _, flag := range flags {
		if flag.has(e) {
			if len(c.buf) > from {
				c.buf = append(c.buf, ' ')
			}
			c.buf = append(c.buf, flag.name...)
		}
	}
}

// existing appends the flags of an event of no charge.
func (c *CSV) existing(e *event.Event) {
	c.buf = append(c.buf, ',')
	if e.Flags&event.Existing != 0 {
		c.buf = append(c.buf, "existing"...)
	}
}

func (c *CSV) empty(n int) {
	for range n {
		c.buf = append(c.buf, ',')
	}
}

func (c *CSV) uint(n uint64) { c.buf = appendUint(append(c.buf, ','), n) }
func (c *CSV) int(n int64)   { c.buf = appendInt(append(c.buf, ','), n) }

func (c *CSV) cgroup(id event.CgroupID) {
	if id.ID == 0 {
		c.empty(1)
		return
	}
	c.text([]byte(c.names.Printable(id)))
}

// text appends text that is printable, whatever it says.
func (c *CSV) text(s []byte) {
	c.buf = append(c.buf, ',')
	formula := len(s) > 0 && bytes.IndexByte([]byte("=+-@"), s[0]) >= 0
	quote := bytes.ContainsAny(s, "\",")
	if quote {
		c.buf = append(c.buf, '"')
	}
	if formula {
		c.buf = append(c.buf, '\'')
	}
	if !quote {
		c.buf = append(c.buf, s...)
		return
	}
	for _, b := range s {
		if b == '"' {
			c.buf = append(c.buf, '"')
		}
		c.buf = append(c.buf, b)
	}
	c.buf = append(c.buf, '"')
}
