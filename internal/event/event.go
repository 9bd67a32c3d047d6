// Package event defines the events of a trace. It decodes them from, and encodes
// them to, the bytes that the BPF program writes.
//
// It imports only the standard library. It must not depend on the sources or the
// sinks of events.
package event

import (
	"bytes"
	"encoding/binary"
	"strconv"
)

// Type is the type of an [Event].
type Type uint32

const (
	// Charge is one call of page_counter_try_charge: the state before it, and its
	// outcome. Its time is that of the return.
	Charge Type = 1
	// Lost marks where events could not be delivered.
	Lost Type = 2
	// ReclaimBegin and ReclaimEnd enclose reclaim for a cgroup by the task of the
	// event (try_to_free_mem_cgroup_pages).
	ReclaimBegin Type = 3
	ReclaimEnd   Type = 4
	// OOMKill is the kill of a process because a cgroup, or the machine, ran out of
	// memory. The event's task runs the OOM killer: its charge or allocation failed, or see
	// LimitWrite and SysRq.
	OOMKill Type = 5
	// CgroupName is the name of a cgroup. It precedes the first event with the
	// cgroup's ID.
	CgroupName Type = 6
	// Fork is the start of a process by the task of the event. Processes older than
	// the trace have one too, flagged [Existing], with their parent at that time.
	Fork Type = 7
	// Stack has the functions of a stack. It precedes the first charge with the
	// stack.
	Stack Type = 8
	// Uncharge is one call of page_counter_uncharge. ForcedCharge is one call of
	// page_counter_charge, which ignores the limit and cannot fail. The event's task
	// need not be the one that caused them: interrupts and kernel threads uncharge
	// pages too.
	Uncharge     Type = 9
	ForcedCharge Type = 10
	// Usage is the usage of a cgroup and its descendants, from memory.current, or in
	// cgroup v1 from memory.usage_in_bytes. It is read at the end of the trace, and at
	// the beginning, flagged [Existing]. It has no task.
	Usage Type = 11
	// OOM is a run of the OOM killer that killed nobody; see OOMResult. Older recordings do
	// not have it.
	OOM Type = 13
	// Throttle is the begin of a sleep because a level is above its memory.high
	// (mem_cgroup_handle_over_high). Older recordings do not have it.
	Throttle Type = 14
	// MemoryStat is what a cgroup holds, read after the OOM killer ran there or at the end of
	// the trace. Of the children of that cgroup, which is their ParentID, it has the usage
	// alone. It has no task.
	MemoryStat Type = 15
	// Held is a process in a cgroup of a MemoryStat, or below it, read at the same time: its
	// fields are those of the Victim. It has no task.
	Held Type = 16
	// ClockStep says that the wall clock was set: events from then on have another
	// BootWallNanos. It has no task.
	ClockStep Type = 17
	// CgroupReleased says that a cgroup is gone from the kernel: no later event has its ID, and
	// its name can be forgotten. It has nothing but the Cgroup. Only traces that can last for
	// weeks have it, and no recording.
	CgroupReleased Type = 18
)

// Comm is the name of a thread, NUL-terminated. A process can set it to any bytes:
// print it with [AppendPrintable] or String.
type Comm [16]byte

// Bytes returns the name up to its NUL.
func (c *Comm) Bytes() []byte { return upToNUL(c[:]) }

// trim zeroes the bytes after the NUL: until Linux 5.17 the rest of an older name
// stays there.
func (c *Comm) trim() {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	low, high := binary.LittleEndian.Uint64(c[:8]), binary.LittleEndian.Uint64(c[8:])
	// This leaves the top bit of each zero byte, and perhaps of some bytes after the
	// first zero.
	if nul := (low - ones) &^ low & tops; nul != 0 {
		low, high = low&(nul&-nul-1), 0
	} else if nul := (high - ones) &^ high & tops; nul != 0 {
		high &= nul&-nul - 1
	}
	binary.LittleEndian.PutUint64(c[:8], low)
	binary.LittleEndian.PutUint64(c[8:], high)
}

// String returns the printable name.
func (c Comm) String() string { return Printable(c.Bytes()) }

// Of returns the name with the PID of its process, such as "alloc (4711)".
func (c Comm) Of(pid uint32) string {
	return c.String() + " (" + strconv.FormatUint(uint64(pid), 10) + ")"
}

// IsName reports whether events of the type are about names. They have no time.
func (t Type) IsName() bool { return t == CgroupName || t == Stack || t == CgroupReleased }

// CgroupID identifies a cgroup: each hierarchy has its own inode numbers. The ID of
// the zero value means no cgroup.
type CgroupID struct {
	// ID is the inode number of the cgroup's directory, as in stat(2).
	ID uint64
	// Hierarchy is 0 for cgroup v2, and for a hierarchy of cgroup v1 its number in
	// /proc/self/cgroup.
	Hierarchy uint32
}

// CounterID identifies a page counter: a cgroup has one of each kind.
type CounterID struct {
	Cgroup CgroupID
	Kind   Kind
}

// Event is one event of a trace. It has the fields of every Type, so that a reader
// can reuse its memory. Fields of other Types are undefined.
type Event struct {
	Type Type
	// CPU is the number of the CPU on which the event happened.
	CPU uint32
	// BootNanos is the time since boot in nanoseconds, suspend included
	// (CLOCK_BOOTTIME).
	BootNanos uint64
	// PID is the thread group, which user space calls a process, and TID the thread,
	// in the initial pid namespace. They identify the current task, whose cgroup is
	// not always the charged one. The idle task is 0; interrupts in it charge too.
	PID, TID uint32
	// Comm is the name of the thread.
	Comm Comm
	// Cgroup is the charged cgroup, for Uncharge the uncharged one, for reclaim the
	// target, for OOMKill and OOM the one that ran out of memory (none: the machine did, or see
	// UnknownCgroup), for Throttle the level above its memory.high, for CgroupName the named one, for Usage and
	// MemoryStat the one read, and for Held the one that ran out.
	Cgroup CgroupID

	// Charge; Kind, Counter, RequestedPages and UsagePages also for Uncharge and
	// ForcedCharge

	// Kind is for Throttle the kind of the counter above its high.
	Kind    Kind
	Outcome Outcome
	Flags   Flags
	// Counter identifies the page counter of the call. A later counter can have the
	// same number once the first is freed.
	Counter uint64
	// StackPointer is the stack pointer at the call. Successive calls of one thread
	// with the same StackPointer come from the same call site.
	StackPointer uint64
	// RequestedPages is the number of pages to charge or uncharge; bytes for [Dmem],
	// as in all counts of pages of a Charge.
	RequestedPages uint64
	// UsagePages is the usage of the counter before the call; for the types Usage and
	// MemoryStat, the usage read; for OOMKill and OOM that of the cgroup's memory when the OOM killer
	// started, for Throttle that of the level. Concurrent charges can push it above MaxPages
	// for a moment.
	UsagePages int64
	// MaxPages is the counter's limit; see [Event.Limited]. For OOMKill and OOM it is that of
	// the cgroup's memory, for Throttle the level's memory.high or memory.swap.high.
	MaxPages uint64
	// Limiting is the level with the least room, of the counter and its ancestors; the
	// lowest of equal ones.
	Limiting Level
	// High is the level with the least room below its memory.high, which is in its
	// MaxPages. A charge above memory.high does not fail, but its task has to reclaim.
	High Level
	// FailedAt is the ID of the cgroup whose limit made the charge fail, in the
	// hierarchy of Cgroup.
	FailedAt uint64
	// KernelStack and UserStack are the numbers of the kernel stack and the user stack
	// at the call; 0 is none. The BPF program sends stack ids, and package capture
	// replaces them by numbers. UserStack is the current task's, which is unrelated to
	// a charge in an interrupt.
	KernelStack, UserStack uint32
	// LostCharges is, for a Charge, how many events its CPU has lost since the trace
	// began; for Lost, how many events were lost here.
	LostCharges uint64

	// ReclaimEnd

	// FreedPages is the number of pages reclaimed.
	FreedPages uint64
	// DurationNanos is the time since ReclaimBegin; for Throttle, how long the task wants to
	// sleep. It can sleep a little longer, or shorter if a signal kills it.
	DurationNanos uint64

	// OOMKill and OOM

	// OOMNanos is the BootNanos at which the OOM killer started; 0 in older recordings, which
	// also lack UsagePages, MaxPages, and the Victim's PageTableBytes and CgroupID. Kills of
	// one run have the same, as have MemoryStat and Held after them.
	OOMNanos uint64
	Victim   Victim
	Result   OOMResult
	// Order is that of the allocation that failed, of 1<<Order pages; -1 for SysRq-f, and if it
	// is unknown. Of a charge it says nothing.
	Order int32

	// MemoryStat

	// Stat is the content of memory.stat: lines of a name and a number, bytes for memory, at
	// most [MaxStat] bytes. Names that start with a dot are not the kernel's: .no_swap_at is
	// the ID of the cgroup whose memory.swap.max is 0, on a machine with swap.
	Stat string

	// ClockStep

	// BootWallNanos is the wall-clock time of boot, in nanoseconds since 1970, for events from
	// BootNanos on; see [chargetrace/internal/stream.Info].
	BootWallNanos int64

	// Fork

	// ChildPID is the new process, in the initial pid namespace like PID.
	ChildPID uint32

	// CgroupName

	// ParentID is the ID of the cgroup's parent; 0 for the root. See MemoryStat.
	ParentID uint64
	// Name is the name of the cgroup's directory; empty for the root. It can contain
	// any bytes but NUL and '/'.
	Name string
	// Identity has the names of the container or pod: lines of a key and a value, which package
	// container encodes; empty if nothing is known but the name. At most [MaxIdentity] bytes.
	Identity string

	// Stack

	// StackNumber is the number of the stack, until another Stack event reuses it.
	StackNumber uint32
	// Frames are the functions of the stack, the innermost first, separated by
	// semicolons: each with its file or module, and the address's offset in the
	// function: "ext4_map_blocks [ext4]+0x3a;...". A frame without a known function is
	// an offset in its file, "[libc.so.6 BUILD-ID]+0x2ab10", or else an address.
	// Any user can have made the files they come from: print them with
	// [AppendPrintable].
	Frames string
}

// CounterID identifies the counter of a Charge, an Uncharge or a ForcedCharge.
func (e *Event) CounterID() CounterID { return CounterID{e.Cgroup, e.Kind} }

// unlimitedPages is a lower bound of the kernel's value for no limit:
// PAGE_COUNTER_MAX, LONG_MAX / PAGE_SIZE (include/linux/page_counter.h), which
// hugetlb rounds down to its page size. Even with 64 KiB pages that is above 1<<46,
// and no machine has as many pages.
const unlimitedPages = 1 << 46

// Limited reports whether the counter has a limit of its own.
func (e *Event) Limited() bool { return e.MaxPages < unlimitedPages }

// AtLimit reports whether the counter has a limit of its own and no room left.
func (e *Event) AtLimit() bool {
	return e.Limited() && e.UsagePages >= int64(e.MaxPages)
}

// LimitHit reports whether the charge failed, or found a level at its limit. A batch miss
// hits none: the kernel retries it smaller before it reclaims.
func (e *Event) LimitHit() bool {
	return e.Outcome == Failed || e.Outcome == OK && e.Limiting.AtLimit()
}

// AboveHigh reports whether a level is above its memory.high after the charge.
func (e *Event) AboveHigh() bool {
	room := e.High.RoomPages()
	if e.Outcome == OK {
		room -= int64(e.RequestedPages)
	}
	return e.High.Limited() && room < 0
}

// Throttled reports whether the charge left a level above its memory.high, so that the task
// must reclaim, or sleep, before it returns to user space (try_charge_memcg in
// mm/memcontrol.c). Kernel threads do not return, and what interrupts charge, or a task for
// another cgroup, does not count against the task's own.
func (e *Event) Throttled() bool {
	return e.Outcome == OK && e.Kind == Memory && e.Flags&(KernelThread|Remote) == 0 && !e.Idle() && e.AboveHigh()
}

// InCgroup returns the CgroupID with an ID in the hierarchy of the event's cgroup.
func (e *Event) InCgroup(id uint64) CgroupID { return CgroupID{id, e.Cgroup.Hierarchy} }

// IsNet reports whether the type is traced only with -net: together with charges,
// such events give the balance of a counter.
func (t Type) IsNet() bool { return t == Uncharge || t == ForcedCharge || t == Usage }

// UsageAfterPages is the usage of the counter after a Charge, an Uncharge or a
// ForcedCharge.
func (e *Event) UsageAfterPages() int64 {
	switch {
	case e.Type == Uncharge:
		return e.UsagePages - int64(e.RequestedPages)
	case e.Type == ForcedCharge || e.Outcome == OK:
		return e.UsagePages + int64(e.RequestedPages)
	}
	return e.UsagePages
}

func upToNUL(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}
