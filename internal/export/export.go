// Package export writes a trace in the formats of other programs. It must not depend on
// the sources of events or on other sinks.
package export

import (
	"cmp"
	"io"
	"strconv"

	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/world"
)

// types is a set of event types, one bit each: 1 << [event.Type].
type types uint32

const (
	charge      types = 1 << event.Charge
	lost        types = 1 << event.Lost
	reclaimEnd  types = 1 << event.ReclaimEnd
	oomKill     types = 1 << event.OOMKill
	fork        types = 1 << event.Fork
	stack       types = 1 << event.Stack
	usageChange types = 1<<event.Uncharge | 1<<event.ForcedCharge
	usage       types = 1 << event.Usage
	oom         types = 1 << event.OOM
	throttle    types = 1 << event.Throttle
	memoryStat  types = 1 << event.MemoryStat
	held        types = 1 << event.Held
	clockStep   types = 1 << event.ClockStep

	// The types of the events that have a time, a CPU, a task, a cgroup, and a counter.
	timed     = ^stack
	onCPU     = timed &^ (usage | memoryStat | held | clockStep)
	byTask    = onCPU &^ lost
	ofCgroup  = byTask&^fork | usage | memoryStat | held
	ofCounter = charge | usageChange
)

var typeNames = [...]string{
	event.Charge: "charge", event.Lost: "lost", event.ReclaimBegin: "reclaim_begin", event.ReclaimEnd: "reclaim_end",
	event.OOMKill: "oom_kill", event.Fork: "fork", event.Stack: "stack",
	event.Uncharge: "uncharge", event.ForcedCharge: "forced_charge", event.Usage: "usage",
	event.OOM: "oom", event.Throttle: "throttle", event.MemoryStat: "memory_stat", event.Held: "held",
	event.ClockStep: "clock_step",
}

// writer is the common part of the sinks. It encodes events one by one, and writes once
// per batch.
type writer struct {
	w       io.Writer
	world   *world.World
	buf     []byte
	cgroups map[event.CgroupID]*described // a cache
}

// described is what is written of each cgroup.
type described struct {
	container.Identity
	label, short string
	members      []byte // of an object of JSONL
}

func newWriter(w io.Writer, world *world.World) writer {
	return writer{w: w, world: world, cgroups: make(map[event.CgroupID]*described)}
}

// write encodes a batch and writes it.
func (w *writer) write(batch []event.Event, encode func(e *event.Event)) error {
	for i := range batch {
		e := &batch[i]
		if e.Type == event.CgroupName {
			clear(w.cgroups) // those below have other paths, too
			continue
		}
		encode(e)
	}
	return w.flush()
}

func (w *writer) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	_, err := w.w.Write(w.buf)
	w.buf = w.buf[:0]
	return err
}

func (w *writer) describe(id event.CgroupID) *described {
	d := w.cgroups[id]
	if d == nil {
		d = &described{Identity: w.world.Names.Identity(id)}
		if id.ID != 0 {
			d.label = w.world.Names.Label(id)
		}
		d.short = short(d.Identity)
		w.cgroups[id] = d
	}
	return d
}

// short returns docker:1a2b3c4d5e6f for a container, machine:NAME for one of systemd-machined,
// and pod:UID for a pod.
func short(i container.Identity) string {
	switch {
	case i.ID != "":
		return cmp.Or(i.Runtime, "container") + ":" + i.ShortID()
	case i.IsContainer():
		return i.Runtime + ":" + i.Name
	case i.PodUID != "":
		return "pod:" + i.PodUID
	}
	return ""
}

// sinceStart returns the nanoseconds from the start of the trace to an event.
func (w *writer) sinceStart(e *event.Event) int64 {
	return int64(e.BootNanos - w.world.Info.StartBootNanos)
}

// appendWallTime appends the time of day of an event, in UTC and RFC 3339.
func (w *writer) appendWallTime(b []byte, e *event.Event) []byte {
	const layout = "2006-01-02T15:04:05.000000000Z07:00"
	return w.world.Clock.Wall(e.BootNanos).AppendFormat(b, layout)
}

// unit returns the unit of the amounts of an event.
func unit(e *event.Event) string {
	if e.Kind == event.Dmem && e.Type != event.Usage {
		return "bytes"
	}
	return "pages"
}

// flags are the flags of a charge, in output order.
var flags = []struct {
	name string
	has  func(e *event.Event) bool
}{
	{"remote", func(e *event.Event) bool { return e.Flags&event.Remote != 0 }},
	{"kernel_thread", func(e *event.Event) bool { return e.Flags&event.KernelThread != 0 }},
	{"idle", (*event.Event).Idle},
	{"predicted", func(e *event.Event) bool { return e.Flags&event.Predicted != 0 }},
	{"walk_cut", func(e *event.Event) bool { return e.Flags&event.WalkCut != 0 }},
	{"retry", func(e *event.Event) bool { return e.Flags&event.Retry != 0 }},
	{"limit_write", func(e *event.Event) bool { return e.Flags&event.LimitWrite != 0 }},
	{"sysrq", func(e *event.Event) bool { return e.Flags&event.SysRq != 0 }},
	{"unknown_cgroup", func(e *event.Event) bool { return e.Flags&event.UnknownCgroup != 0 }},
	{"cpuset", func(e *event.Event) bool { return e.Flags&event.Cpuset != 0 }},
	{"mempolicy", func(e *event.Event) bool { return e.Flags&event.Mempolicy != 0 }},
	{"group", func(e *event.Event) bool { return e.Flags&event.Group != 0 }},
}

// victimPages are the amounts of a victim, in output order.
var victimPages = []struct {
	name string
	of   func(v *event.Victim) uint64
}{
	{"anon_pages", func(v *event.Victim) uint64 { return v.AnonPages }},
	{"file_pages", func(v *event.Victim) uint64 { return v.FilePages }},
	{"shmem_pages", func(v *event.Victim) uint64 { return v.ShmemPages }},
	{"swap_pages", func(v *event.Victim) uint64 { return v.SwapPages }},
}

// oomKnown reports whether an event of the OOM killer has the usage and the limit of a
// cgroup.
func oomKnown(e *event.Event) bool { return e.OOMNanos != 0 && e.Cgroup.ID != 0 }

// printableComm is the length of the longest printable [event.Comm]: each byte as \xNN.
const printableComm = 4 * len(event.Comm{})

func appendUint(b []byte, n uint64) []byte { return strconv.AppendUint(b, n, 10) }
func appendInt(b []byte, n int64) []byte   { return strconv.AppendInt(b, n, 10) }
