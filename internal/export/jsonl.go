package export

import (
	"bytes"
	"io"
	"strconv"
	"strings"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/world"
)

// JSONL is a [stream.Sink] that writes one object per line. Each has a "type". All but
// stack and end have "time_ns", the nanoseconds since the trace began, and "wall_time",
// in UTC. The other members, in the order of the line:
//
//	charge         cpu, pid, tid, comm, cgroup, cgroup_id, hierarchy, label, container, kind,
//	               outcome (ok, failed, miss), requested_pages, usage_pages,
//	               max_pages, limiting, high, failed_at, cause, kernel_stack,
//	               user_stack, flags
//	stack          stack, the number that later charges have as their kernel_stack or
//	               user_stack, and frames, an array of functions, innermost first
//	reclaim_begin  cpu, pid, tid, comm, cgroup, cgroup_id, hierarchy, label, container
//	reclaim_end    the same, and freed_pages, duration_ns
//	oom_kill       cpu to container, usage_pages and max_pages of the cgroup when the OOM
//	               killer started, flags, order (of the allocation, of 1 << order
//	               pages; a charge's means nothing), and victim: pid, comm, anon_pages,
//	               file_pages, shmem_pages, swap_pages, page_table_bytes, cgroup
//	oom            the same, but for the victim, and result: no_victim; victim_exits, a
//	               process exits already; task_exits, or memory became free; disabled,
//	               the task waits; nofs, the allocation must not kill
//	throttle       cpu to container, and kind, usage_pages, high_pages, duration_ns: the
//	               task sleeps about so long, since the cgroup is above its memory.high, or
//	               for the kind swap its memory.swap.high
//	memory_stat    cgroup, cgroup_id, hierarchy, label, container, usage_pages, and stat: what
//	               memory.stat has but zeros, read after an oom_kill or an oom in that
//	               cgroup, and at the end if charges failed there and it is full. The same without stat
//	               for its children
//	held           cgroup, cgroup_id, hierarchy, label, container, and process: like victim, of a
//	               process in the cgroup at that time
//	uncharge       cpu to container, and kind, pages, usage_pages: a call of
//	               page_counter_uncharge, with the usage before it
//	forced_charge  the same, for page_counter_charge, which ignores the limit
//	usage          cgroup, cgroup_id, hierarchy, label, container, usage_pages, existing:
//	               a reading of memory.current; existing is true for the one when
//	               the trace began, false for the one when it ended
//	fork           cpu, pid, tid, comm of the parent, child_pid, existing: whether
//	               the process is older than the trace
//	clock_step     the wall clock was set; wall_time is the new time
//	lost           cpu, events
//	end            charges
//
// label is the cgroup's in the table, and container an object with the runtime, id, name,
// namespace, pod and pod_uid of the container or pod, each empty if it is unknown.
//
// limiting and high are levels: cgroup, usage_pages, max_pages, room_pages. null stands
// for a missing value: max_pages without a limit, a level if none has a limit,
// container, failed_at, the order for SysRq-f, and the cgroup of an oom_kill or an oom if no
// cgroup ran out or it is unknown; older
// recordings lack the usage and limit of an oom_kill. Amounts of
// device memory are in bytes, and their names end in _bytes. flags is an array of remote,
// kernel_thread, idle, predicted, walk_cut and retry, for an oom_kill and an oom of
// limit_write (the task lowers the limit), sysrq, unknown_cgroup (of the trace, which began
// later than the OOM killer), cpuset and mempolicy (whose memory nodes ran out), group (killed
// with another victim, memory.oom.group). Names are escaped as in the table,
// so each line is valid JSON.
type JSONL struct {
	writer
	charges uint64
}

// NewJSONL returns a JSONL that writes the events of a World's trace to w.
func NewJSONL(w io.Writer, world *world.World) *JSONL {
	return &JSONL{writer: newWriter(w, world)}
}

// Write writes the objects of a batch.
func (j *JSONL) Write(batch []event.Event) error { return j.write(batch, j.encode) }

// Close writes the end object.
func (j *JSONL) Close(stream.Counts) error {
	j.buf = append(j.buf, `{"type":"end","charges":`...)
	j.buf = append(appendUint(j.buf, j.charges), "}\n"...)
	return j.flush()
}

// members are the members of an object after "type". types are the events with the
// member, and append appends it.
var members = []struct {
	types  types
	append func(j *JSONL, e *event.Event)
}{
	{stack, func(j *JSONL, e *event.Event) { j.uint("stack", uint64(e.StackNumber)) }},
	{stack, (*JSONL).frames},
	{timed, func(j *JSONL, e *event.Event) { j.int("time_ns", j.sinceStart(e)) }},
	{timed, func(j *JSONL, e *event.Event) {
		j.key("wall_time")
		j.buf = append(j.appendWallTime(append(j.buf, '"'), e), '"')
	}},
	{onCPU, func(j *JSONL, e *event.Event) { j.uint("cpu", uint64(e.CPU)) }},
	{lost, func(j *JSONL, e *event.Event) { j.uint("events", e.LostCharges) }},
	{byTask, func(j *JSONL, e *event.Event) { j.uint("pid", uint64(e.PID)) }},
	{byTask, func(j *JSONL, e *event.Event) { j.uint("tid", uint64(e.TID)) }},
	{byTask, func(j *JSONL, e *event.Event) { j.comm("comm", &e.Comm) }},
	{fork, func(j *JSONL, e *event.Event) { j.uint("child_pid", uint64(e.ChildPID)) }},
	{ofCgroup, (*JSONL).ofCgroup},
	{ofCounter | throttle, func(j *JSONL, e *event.Event) { j.string("kind", e.Kind.String()) }},
	{charge, func(j *JSONL, e *event.Event) { j.string("outcome", e.Outcome.String()) }},
	{charge, func(j *JSONL, e *event.Event) { j.uint(amounts(e).requested, e.RequestedPages) }},
	{usageChange, func(j *JSONL, e *event.Event) { j.uint(unit(e), e.RequestedPages) }},
	{ofCounter | usage | throttle | memoryStat, func(j *JSONL, e *event.Event) { j.int(amounts(e).usage, e.UsagePages) }},
	{charge, func(j *JSONL, e *event.Event) { j.uintOrNull(amounts(e).max, e.MaxPages, e.Limited()) }},
	{oomKill | oom, func(j *JSONL, e *event.Event) {
		if oomKnown(e) {
			j.int("usage_pages", e.UsagePages)
		} else {
			j.null("usage_pages")
		}
		j.uintOrNull("max_pages", e.MaxPages, oomKnown(e) && e.Limited())
	}},
	{throttle, func(j *JSONL, e *event.Event) { j.uint("high_pages", e.MaxPages) }},
	{charge, func(j *JSONL, e *event.Event) { j.level("limiting", e, &e.Limiting) }},
	{charge, func(j *JSONL, e *event.Event) { j.level("high", e, &e.High) }},
	{charge, func(j *JSONL, e *event.Event) { j.cgroup("failed_at", e.InCgroup(e.FailedAt)) }},
	{charge, (*JSONL).cause},
	{charge, func(j *JSONL, e *event.Event) {
		j.uintOrNull("kernel_stack", uint64(e.KernelStack), e.KernelStack != 0)
	}},
	{charge, func(j *JSONL, e *event.Event) { j.uintOrNull("user_stack", uint64(e.UserStack), e.UserStack != 0) }},
	{charge | oomKill | oom, (*JSONL).flags},
	{reclaimEnd, func(j *JSONL, e *event.Event) { j.uint("freed_pages", e.FreedPages) }},
	{reclaimEnd | throttle, func(j *JSONL, e *event.Event) { j.uint("duration_ns", e.DurationNanos) }},
	{oomKill | oom, func(j *JSONL, e *event.Event) { j.uintOrNull("order", uint64(e.Order), e.Order >= 0) }},
	{oom, func(j *JSONL, e *event.Event) { j.string("result", e.Result.String()) }},
	{oomKill, func(j *JSONL, e *event.Event) { j.process("victim", e) }},
	{held, func(j *JSONL, e *event.Event) { j.process("process", e) }},
	{memoryStat, (*JSONL).stat},
	{fork | usage, func(j *JSONL, e *event.Event) {
		j.key("existing")
		j.buf = strconv.AppendBool(j.buf, e.Flags&event.Existing != 0)
	}},
}

func (j *JSONL) encode(e *event.Event) {
	if e.Type == event.Charge {
		j.charges++
	}
	j.buf = append(append(append(j.buf, `{"type":"`...), typeNames[e.Type]...), '"')
	t := types(1) << e.Type
	for i := range members {
		if members[i].types&t != 0 {
			members[i].append(j, e)
		}
	}
	j.buf = append(j.buf, "}\n"...)
}

// amountNames are the names of amounts in one unit.
type amountNames struct{ requested, usage, max, room string }

var (
	inPages = amountNames{"requested_pages", "usage_pages", "max_pages", "room_pages"}
	inBytes = amountNames{"requested_bytes", "usage_bytes", "max_bytes", "room_bytes"}
)

// amounts returns the names in the unit of an event.
func amounts(e *event.Event) *amountNames {
	if unit(e) == "bytes" {
		return &inBytes
	}
	return &inPages
}

func (j *JSONL) frames(e *event.Event) {
	j.key("frames")
	separator := byte('[')
	for frame := range strings.SplitSeq(e.Frames, ";") {
		j.buf = append(j.buf, separator)
		j.buf = appendQuoted(j.buf, event.AppendPrintable(nil, []byte(frame)))
		separator = ','
	}
	j.buf = append(j.buf, ']')
}

func (j *JSONL) cause(e *event.Event) {
	if e.KernelStack == 0 {
		j.null("cause")
		return
	}
	j.string("cause", j.world.Stacks.Cause(e).String())
}

func (j *JSONL) flags(e *event.Event) {
	j.key("flags")
	j.buf = append(j.buf, '[')
	for _, flag := range flags {
		if flag.has(e) {
			j.buf = append(append(append(j.buf, '"'), flag.name...), `",`...)
		}
	}
	j.buf = append(bytes.TrimSuffix(j.buf, []byte{','}), ']')
}

// stat appends the lines of memory.stat.
func (j *JSONL) stat(e *event.Event) {
	j.key("stat")
	separator := byte('{')
	for line := range strings.Lines(e.Stat) {
		name, number, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		n, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			continue
		}
		j.buf = append(j.buf, separator)
		j.buf = appendQuoted(j.buf, event.AppendPrintable(nil, []byte(name)))
		j.buf = appendUint(append(j.buf, ':'), n)
		separator = ','
	}
	if separator == '{' {
		j.buf = append(j.buf, '{')
	}
	j.buf = append(j.buf, '}')
}

func (j *JSONL) process(name string, e *event.Event) {
	v := &e.Victim
	j.key(name)
	j.buf = append(j.buf, `{"pid":`...)
	j.buf = appendUint(j.buf, uint64(v.PID))
	j.comm("comm", &v.Comm)
	for _, p := range victimPages {
		j.uint(p.name, p.of(v))
	}
	j.uint("page_table_bytes", v.PageTableBytes)
	j.cgroup("cgroup", e.VictimCgroup())
	j.buf = append(j.buf, '}')
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

func (j *JSONL) uintOrNull(name string, n uint64, known bool) {
	if !known {
		j.null(name)
		return
	}
	j.uint(name, n)
}

// string appends text that needs no escapes.
func (j *JSONL) string(name, s string) {
	j.key(name)
	j.buf = append(append(append(j.buf, '"'), s...), '"')
}

func (j *JSONL) comm(name string, comm *event.Comm) {
	j.key(name)
	var printable [printableComm]byte
	j.buf = appendQuoted(j.buf, event.AppendPrintable(printable[:0], comm.Bytes()))
}

// appendQuoted appends printable text as a JSON string.
func appendQuoted[T string | []byte](b []byte, printable T) []byte {
	b = append(b, '"')
	done := 0
	for i := range len(printable) {
		if c := printable[i]; c == '"' || c == '\\' {
			b = append(append(b, printable[done:i]...), '\\')
			done = i
		}
	}
	return append(append(b, printable[done:]...), '"')
}

func (j *JSONL) cgroup(name string, id event.CgroupID) {
	if id.ID == 0 {
		j.null(name)
		return
	}
	j.key(name)
	j.buf = appendQuoted(j.buf, j.world.Names.Printable(id))
}

// ofCgroup appends the members that say which cgroup it is.
func (j *JSONL) ofCgroup(e *event.Event) {
	d := j.describe(e.Cgroup)
	if d.members == nil {
		begin := len(j.buf)
		j.cgroup("cgroup", e.Cgroup)
		j.uint("cgroup_id", e.Cgroup.ID)
		j.uint("hierarchy", uint64(e.Cgroup.Hierarchy))
		j.container(d)
		d.members = bytes.Clone(j.buf[begin:])
		j.buf = j.buf[:begin]
	}
	j.buf = append(j.buf, d.members...)
}

func (j *JSONL) container(d *described) {
	if d.label == "" {
		j.null("label")
	} else {
		j.key("label")
		j.buf = appendQuoted(j.buf, d.label)
	}
	if !d.IsContainer() && !d.HasPod() {
		j.null("container")
		return
	}
	j.key("container")
	separator := byte('{')
	for _, member := range []struct{ name, value string }{
		{"runtime", d.Runtime}, {"id", d.ID}, {"name", d.Name}, {"namespace", d.Namespace}, {"pod", d.Pod}, {"pod_uid", d.PodUID},
	} {
		j.buf = append(append(append(append(j.buf, separator, '"'), member.name...), '"'), ':')
		j.buf = appendQuoted(j.buf, member.value)
		separator = ','
	}
	j.buf = append(j.buf, '}')
}

func (j *JSONL) level(name string, e *event.Event, l *event.Level) {
	if !l.Limited() {
		j.null(name)
		return
	}
	names := amounts(e)
	j.key(name)
	j.buf = append(j.buf, `{"cgroup":`...)
	if l.CgroupID == 0 {
		j.buf = append(j.buf, "null"...)
	} else {
		j.buf = appendQuoted(j.buf, j.world.Names.Printable(e.InCgroup(l.CgroupID)))
	}
	j.int(names.usage, l.UsagePages)
	j.uint(names.max, l.MaxPages)
	j.int(names.room, l.RoomPages())
	j.buf = append(j.buf, '}')
}
