package export

import (
	"io"
	"strconv"
	"strings"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// JSONL is a [stream.Sink] that writes an object a line. Each has a "type", and
// but for the end "time_ns", the time since the trace began in nanoseconds,
// "wall_time", in UTC, and "cpu":
//
//	charge         pid, tid, comm, cgroup, cgroup_id, hierarchy, container, kind,
//	               outcome (ok, failed, miss), requested_pages, usage_pages,
//	               max_pages, limiting, high, failed_at, cause, kernel_stack,
//	               user_stack, flags
//	stack          stack, the number that charges after it have as their
//	               kernel_stack or user_stack, and frames, an array: the
//	               functions, the innermost first. It has no time
//	reclaim_begin  pid, tid, comm, cgroup, cgroup_id, hierarchy, container
//	reclaim_end    likewise, and freed_pages, duration_ns
//	oom_kill       likewise, and victim: pid, comm, anon_pages, file_pages,
//	               shmem_pages, swap_pages
//	uncharge       likewise, and kind, pages, usage_pages: what page_counter_uncharge
//	               gives back, and what the counter held before
//	forced_charge  likewise: what page_counter_charge charges, whatever the limit
//	usage          cgroup, cgroup_id, hierarchy, container, usage_pages, existing:
//	               what memory.current said, existing when the trace began, else
//	               when it ended. It has no cpu
//	fork           pid, tid, comm of the parent, child_pid, existing: it was there
//	               before the trace
//	lost           events
//	end            charges
//
// limiting and high are levels: cgroup, usage_pages, max_pages, room_pages. What
// is not there is null: max_pages where there is no limit, a level where none is
// limited, container, failed_at, cgroup where the machine ran out. The numbers
// of device memory are bytes, and end in _bytes. flags is an array of some of
// remote, kernel_thread, idle, predicted, walk_cut and retry. Names are escaped
// as in the table, so that every line is valid whatever they hold.
type JSONL struct {
	writer
	charges uint64
}

// NewJSONL returns a JSONL that writes to w the events of a source with that
// header.
func NewJSONL(w io.Writer, header stream.Info) *JSONL {
	return &JSONL{writer: newWriter(w, header)}
}

// Write writes the objects of a batch.
func (j *JSONL) Write(batch []event.Event) error { return j.write(batch, j.encode) }

// Close writes the end.
func (j *JSONL) Close(stream.Counts) error {
	j.buf = append(j.buf, `{"type":"end","charges":`...)
	j.buf = append(appendUint(j.buf, j.charges), "}\n"...)
	return j.flush()
}

// encodeStack writes the object of a stack.
func (j *JSONL) encodeStack(e *event.Event) {
	j.buf = append(j.buf, `{"type":"stack"`...)
	j.uint("stack", uint64(e.StackNumber))
	j.key("frames")
	separator := byte('[')
	for frame := range strings.SplitSeq(e.Frames, ";") {
		j.buf = append(j.buf, separator)
		j.buf = appendQuoted(j.buf, event.AppendPrintable(nil, []byte(frame)))
		separator = ','
	}
	j.buf = append(j.buf, "]}\n"...)
}

func (j *JSONL) encode(e *event.Event) {
	if e.Type == event.Stack {
		j.encodeStack(e)
		return
	}
	j.buf = append(append(append(j.buf, `{"type":"`...), typeNames[e.Type]...), '"')
	j.int("time_ns", j.sinceStart(e))
	j.key("wall_time")
	j.buf = append(j.appendWallTime(append(j.buf, '"'), e), '"')
	if e.Type == event.Usage {
		j.whose(e)
		j.int("usage_pages", e.UsagePages)
		j.existing(e)
		j.buf = append(j.buf, "}\n"...)
		return
	}
	j.uint("cpu", uint64(e.CPU))
	if e.Type == event.Lost {
		j.uint("events", e.LostEvents)
		j.buf = append(j.buf, "}\n"...)
		return
	}
	j.uint("pid", uint64(e.PID))
	j.uint("tid", uint64(e.TID))
	j.comm("comm", e.Comm.Bytes())
	if e.Type == event.Fork {
		j.uint("child_pid", uint64(e.ChildPID))
		j.existing(e)
		j.buf = append(j.buf, "}\n"...)
		return
	}
	j.whose(e)
	switch e.Type {
	case event.Uncharge, event.ForcedCharge:
		f := fields[unit(e)]
		j.kind(e)
		j.uint(unit(e), e.RequestedPages)
		j.int(f.usage, e.UsagePages)
	case event.Charge:
		j.charges++
		j.charge(e)
	case event.ReclaimEnd:
		j.uint("freed_pages", e.FreedPages)
		j.uint("duration_ns", e.DurationNanos)
	case event.OOMKill:
		v := &e.Victim
		j.key("victim")
		j.buf = append(j.buf, `{"pid":`...)
		j.buf = appendUint(j.buf, uint64(v.PID))
		j.comm("comm", v.Comm.Bytes())
		j.uint("anon_pages", v.AnonPages)
		j.uint("file_pages", v.FilePages)
		j.uint("shmem_pages", v.ShmemPages)
		j.uint("swap_pages", v.SwapPages)
		j.buf = append(j.buf, '}')
	}
	j.buf = append(j.buf, "}\n"...)
}

// whose writes the cgroup of an event.
func (j *JSONL) whose(e *event.Event) {
	j.cgroup("cgroup", e.Cgroup)
	j.uint("cgroup_id", e.Cgroup.ID)
	j.uint("hierarchy", uint64(e.Cgroup.Hierarchy))
	j.container(e.Cgroup)
}

func (j *JSONL) existing(e *event.Event) {
	j.key("existing")
	j.buf = strconv.AppendBool(j.buf, e.Flags&event.Existing != 0)
}

func (j *JSONL) kind(e *event.Event) {
	j.key("kind")
	j.buf = append(append(append(j.buf, '"'), e.Kind.String()...), '"')
}

// fields are the names of numbers in each unit.
var fields = map[string]struct{ requested, usage, max, room string }{
	"pages": {"requested_pages", "usage_pages", "max_pages", "room_pages"},
	"bytes": {"requested_bytes", "usage_bytes", "max_bytes", "room_bytes"},
}

func (j *JSONL) charge(e *event.Event) {
	f := fields[unit(e)]
	j.kind(e)
	j.key("outcome")
	j.buf = append(append(append(j.buf, '"'), e.Outcome.String()...), '"')
	j.uint(f.requested, e.RequestedPages)
	j.int(f.usage, e.UsagePages)
	if e.Limited() {
		j.uint(f.max, e.MaxPages)
	} else {
		j.null(f.max)
	}
	j.level("limiting", e, &e.Limiting)
	j.level("high", e, &e.High)
	j.cgroup("failed_at", e.InCgroup(e.FailedAt))
	if e.KernelStack != 0 {
		j.key("cause")
		j.buf = append(append(append(j.buf, '"'), j.stacks.Cause(e).String()...), '"')
	} else {
		j.null("cause")
	}
	j.stack("kernel_stack", e.KernelStack)
	j.stack("user_stack", e.UserStack)
	j.key("flags")
	j.buf = append(j.buf, '[')
	for _, flag := range flags {
		if flag.has(e) {
			j.buf = append(append(append(j.buf, '"'), flag.name...), `",`...)
		}
	}
	if j.buf[len(j.buf)-1] == ',' {
		j.buf = j.buf[:len(j.buf)-1]
	}
	j.buf = append(j.buf, ']')
}

func (j *JSONL) stack(name string, number uint32) {
	if number == 0 {
		j.null(name)
		return
	}
	j.uint(name, uint64(number))
}

func (j *JSONL) key(name string) {
	j.buf = append(append(append(j.buf, `,"`...), name...), `":`...)
}

func (j *JSONL) null(name string) {
	j.key(name)
	j.buf = append(j.buf, "null"...)
}

func (j *JSONL) uint(name string, n uint64) {
	j.key(name)
	j.buf = appendUint(j.buf, n)
}

func (j *JSONL) int(name string, n int64) {
	j.key(name)
	j.buf = appendInt(j.buf, n)
}

// comm appends a name that came from outside.
func (j *JSONL) comm(name string, comm []byte) {
	j.key(name)
	var printable [printableComm]byte
	j.buf = appendQuoted(j.buf, event.AppendPrintable(printable[:0], comm))
}

// appendQuoted appends printable text as a JSON string.
func appendQuoted[T string | []byte](b []byte, printable T) []byte {
	b = append(b, '"')
	for i := range len(printable) {
		if c := printable[i]; c == '"' || c == '\\' {
			b = append(b, '\\')
		}
		b = append(b, printable[i])
	}
	return append(b, '"')
}

func (j *JSONL) cgroup(name string, id event.CgroupID) {
	if id.ID == 0 {
		j.null(name)
		return
	}
	j.key(name)
	j.buf = appendQuoted(j.buf, j.names.Printable(id))
}

func (j *JSONL) container(id event.CgroupID) {
	c := j.writer.container(id)
	if c.ID == "" && c.Pod == "" {
		j.null("container")
		return
	}
	j.key("container")
	j.buf = append(j.buf, `{"runtime":"`...)
	j.buf = append(append(j.buf, c.Runtime...), `","id":"`...)
	j.buf = append(append(j.buf, c.ID...), `","pod":"`...)
	j.buf = append(append(j.buf, c.Pod...), `"}`...)
}

func (j *JSONL) level(name string, e *event.Event, l *event.Level) {
	if !l.Limited() {
		j.null(name)
		return
	}
	f := fields[unit(e)]
	j.key(name)
	j.buf = append(j.buf, `{"cgroup":`...)
	if l.CgroupID == 0 {
		j.buf = append(j.buf, "null"...)
	} else {
		j.buf = appendQuoted(j.buf, j.names.Printable(e.InCgroup(l.CgroupID)))
	}
	j.int(f.usage, l.UsagePages)
	j.uint(f.max, l.MaxPages)
	j.int(f.room, l.RoomPages())
	j.buf = append(j.buf, '}')
}
