package trace

import (
	"strings"

	"chargetrace/internal/event"
)

// codecs has the codec of each type of event that has a time. A new type is an entry here.
// A new field is a line in the functions of its type, for versions of the format from the
// next one on.
var codecs = [...]codec{
	event.Charge:       {1, chargeContext, columns{encodeCharge, decodeCharge}},
	event.Lost:         {1, taskContext, both(lost)},
	event.ReclaimBegin: {1, cgroupContext, both(nothing)},
	event.ReclaimEnd:   {1, cgroupContext, both(reclaimEnd)},
	event.OOMKill:      {1, killContext, both(oomKill)},
	event.Fork:         {1, taskContext, both(fork)},
	event.Uncharge:     {3, counterContext, columns{encodeUncharge, decodeUncharge}},
	event.ForcedCharge: {3, counterContext, columns{encodeUncharge, decodeUncharge}},
	event.Usage:        {3, cgroupContext, both(usageReading)},
	event.OOM:          {4, cgroupContext, both(oom)},
	event.Throttle:     {4, throttleContext, both(throttle)},
	event.MemoryStat:   {4, cgroupContext, both(memoryStat)},
	event.Held:         {4, killContext, both(held)},
}

// A codec says how events of a type are recorded.
type codec struct {
	since   uint32 // the first version of the format with the type
	context contextFields
	columns columns
}

// contextFields are the fields of a context after the type and the task.
type contextFields struct {
	code func(*coder, *event.Event)
	// same compares the fields. The writer calls it for each event.
	same func(a, b *event.Event) bool
}

// columns encode and decode the fields of an event that are not part of its context.
type columns struct {
	encode, decode func(*coder, *levels, *event.Event)
}

// both uses one function for encode and decode. The types of most events have two: with one
// it takes a third longer to write an event.
func both(code func(*coder, *levels, *event.Event)) columns { return columns{code, code} }

// codeContext encodes or decodes a context.
func codeContext(x *coder, e *event.Event) {
	s := &x.contexts
	t := byte(e.Type)
	x.byte(s, &t)
	if int(t) >= len(codecs) || codecs[t].since == 0 || codecs[t].since > x.version {
		x.bad = true
		return
	}
	if !x.encoding {
		e.Type = event.Type(t)
	}
	x.uint32(s, &e.CPU)
	x.uint32(s, &e.PID)
	x.uint32(s, &e.TID)
	x.comm(s, &e.Comm)
	codecs[t].context.code(x, e)
}

func sameTask(a, b *event.Event) bool {
	return a.TID == b.TID && a.CPU == b.CPU && a.PID == b.PID && a.Comm == b.Comm
}

var taskContext = contextFields{
	code: func(*coder, *event.Event) {},
	same: func(_, _ *event.Event) bool { return true },
}

var cgroupContext = contextFields{
	code: codeCgroup,
	same: func(a, b *event.Event) bool { return a.Cgroup == b.Cgroup },
}

var killContext = contextFields{
	code: func(x *coder, e *event.Event) {
		codeCgroup(x, e)
		if x.version >= 4 {
			x.uint64(&x.contexts, &e.Victim.CgroupID)
		}
	},
	same: func(a, b *event.Event) bool { return a.Cgroup == b.Cgroup && a.Victim.CgroupID == b.Victim.CgroupID },
}

var throttleContext = contextFields{
	code: func(x *coder, e *event.Event) {
		codeCgroup(x, e)
		if x.version >= 5 {
			codeKind(x, e)
		} else if !x.encoding {
			e.Kind = event.Memory
		}
	},
	same: func(a, b *event.Event) bool { return a.Cgroup == b.Cgroup && a.Kind == b.Kind },
}

func codeCgroup(x *coder, e *event.Event) {
	x.uint32(&x.contexts, &e.Cgroup.Hierarchy)
	x.uint64(&x.contexts, &e.Cgroup.ID)
}

func nothing(*coder, *levels, *event.Event) {}

func lost(x *coder, _ *levels, e *event.Event) {
	x.uint64(&x.other, &e.LostCharges)
}

func reclaimEnd(x *coder, _ *levels, e *event.Event) {
	x.uint64(&x.other, &e.FreedPages)
	x.uint64(&x.other, &e.DurationNanos)
}

func oomKill(x *coder, _ *levels, e *event.Event) {
	process(x, &e.Victim)
	if x.version >= 4 {
		oomState(x, e)
	} else if !x.encoding {
		e.Order = -1
	}
}

// process is a process and its resident memory.
func process(x *coder, v *event.Victim) {
	x.uint32(&x.other, &v.PID)
	x.comm(&x.other, &v.Comm)
	x.uint64(&x.other, &v.AnonPages)
	x.uint64(&x.other, &v.FilePages)
	x.uint64(&x.other, &v.ShmemPages)
	x.uint64(&x.other, &v.SwapPages)
	if x.version >= 4 {
		x.uint64(&x.other, &v.PageTableBytes)
	}
}

func memoryStat(x *coder, _ *levels, e *event.Event) {
	x.uint64(&x.other, &e.OOMNanos)
	x.uint64(&x.other, &e.ParentID)
	x.int64(&x.other, &e.UsagePages)
	x.text(&x.other, &e.Stat)
	x.bad = x.bad || len(e.Stat) > event.MaxStat
}

func held(x *coder, _ *levels, e *event.Event) {
	x.uint64(&x.other, &e.OOMNanos)
	process(x, &e.Victim)
}

// oomState is what OOM kills and runs that killed nobody share.
func oomState(x *coder, e *event.Event) {
	x.uint64(&x.other, &e.OOMNanos)
	x.int64(&x.other, &e.UsagePages)
	x.uint64(&x.other, &e.MaxPages)
	flags := uint32(e.Flags)
	x.uint32(&x.other, &flags)
	order := int64(e.Order)
	if x.version >= 5 {
		x.int64(&x.other, &order)
	} else {
		order = -1
	}
	x.bad = x.bad || order < -1 || order > maxOrder
	if !x.encoding {
		e.Flags, e.Order = event.Flags(flags), int32(order)
	}
}

// maxOrder is more than the kernel's orders of allocations (MAX_PAGE_ORDER).
const maxOrder = 30

func oom(x *coder, _ *levels, e *event.Event) {
	oomState(x, e)
	result := uint32(e.Result)
	x.uint32(&x.other, &result)
	if !x.encoding {
		e.Result = event.OOMResult(result)
	}
	x.bad = x.bad || !e.Result.Valid()
}

func throttle(x *coder, _ *levels, e *event.Event) {
	x.int64(&x.other, &e.UsagePages)
	x.uint64(&x.other, &e.MaxPages)
	x.uint64(&x.other, &e.DurationNanos)
}

func fork(x *coder, _ *levels, e *event.Event) {
	flagged(x, &x.other, &e.ChildPID, &e.Flags)
}

func usageReading(x *coder, _ *levels, e *event.Event) {
	flagged(x, &x.other, &e.UsagePages, &e.Flags)
}

// codeCgroupName encodes or decodes an entry of the section names.
func codeCgroupName(x *coder, e *event.Event) {
	x.uint32(&x.names, &e.Cgroup.Hierarchy)
	x.uint64(&x.names, &e.Cgroup.ID)
	x.uint64(&x.names, &e.ParentID)
	x.text(&x.names, &e.Name)
	x.bad = x.bad || len(e.Name) > 255 || strings.ContainsAny(e.Name, "/\x00")
	if x.version >= 6 {
		x.text(&x.names, &e.Identity)
		x.bad = x.bad || len(e.Identity) > event.MaxIdentity
	}
}

// codeStack encodes or decodes an entry of the section stacks.
func codeStack(x *coder, e *event.Event) {
	x.uint32(&x.stacks, &e.StackNumber)
	x.text(&x.stacks, &e.Frames)
	x.bad = x.bad || e.StackNumber == 0
}
