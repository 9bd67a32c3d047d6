// Package event is the ground floor: what one event of a trace is, and how it
// is decoded from and encoded to the bytes that the BPF program writes.
//
// It imports the standard library alone and knows neither where events come
// from nor what becomes of them.
package event

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
)

// Type says what an [Event] reports.
type Type uint32

const (
	// Charge is one call of page_counter_try_charge, as seen at its entry, with
	// what came of it.
	Charge Type = 1
	// Lost stands where events could not be delivered.
	Lost Type = 2
	// ReclaimBegin and ReclaimEnd are the begin and the end of reclaim on behalf
	// of a cgroup (try_to_free_mem_cgroup_pages), by the task of the event.
	ReclaimBegin Type = 3
	ReclaimEnd   Type = 4
	// OOMKill is the kill of a process because a cgroup, or the machine, ran
	// out of memory. The task of the event is the one whose charge failed.
	OOMKill Type = 5
	// CgroupName tells the name of a cgroup. It comes before the first event
	// that names the cgroup by its number.
	CgroupName Type = 6
	// Fork is the start of a process by the task of the event. Processes that
	// were there before the trace are told of too, by an event that is flagged
	// [Existing] and has their parent at that time.
	Fork Type = 7
	// Stack tells the functions of a stack. It comes before the first charge that
	// has it.
	Stack Type = 8
	// Uncharge is one call of page_counter_uncharge, which gives pages back, and
	// ForcedCharge one of page_counter_charge, which asks for no limit and does not
	// fail. The task of the event is who happens to do it: pages are given back
	// in interrupts and by kernel threads too.
	Uncharge     Type = 9
	ForcedCharge Type = 10
	// Usage is what a cgroup held, with all below it, as memory.current said, or in
	// cgroup v1 memory.usage_in_bytes: at the beginning of the trace, where the
	// event is flagged [Existing], and at its end. No task is part of it.
	Usage Type = 11
)

// Comm is the name of a thread, NUL-terminated. Any process can set it to any
// bytes: print it with [AppendPrintable], or as String returns it.
type Comm [16]byte

// Bytes returns the name up to its NUL.
func (c *Comm) Bytes() []byte { return upToNUL(c[:]) }

// trim leaves out what is after the NUL: until 5.17 the kernel keeps the rest of an
// older name there.
func (c *Comm) trim() {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	low, high := binary.LittleEndian.Uint64(c[:8]), binary.LittleEndian.Uint64(c[8:])
	// The top bit of each zero byte is left, and perhaps of some after the first.
	if nul := (low - ones) &^ low & tops; nul != 0 {
		low, high = low&(nul&-nul-1), 0
	} else if nul := (high - ones) &^ high & tops; nul != 0 {
		high &= nul&-nul - 1
	}
	binary.LittleEndian.PutUint64(c[:8], low)
	binary.LittleEndian.PutUint64(c[8:], high)
}

// String returns the name as it may be printed.
func (c Comm) String() string { return Printable(c.Bytes()) }

// Of returns the name and the number of a process, as "alloc (4711)".
func (c Comm) Of(pid uint32) string {
	return c.String() + " (" + strconv.FormatUint(uint64(pid), 10) + ")"
}

// IsName reports whether events of the type tell what something is called, and
// happen at no time.
func (t Type) IsName() bool { return t == CgroupName || t == Stack }

// CgroupID names a cgroup: numbers are given anew in each hierarchy. The zero
// value's ID means no cgroup.
type CgroupID struct {
	// ID is the inode number of the cgroup's directory, as in stat(2).
	ID uint64
	// Hierarchy is 0 for cgroup v2, otherwise the number that a hierarchy of
	// cgroup v1 has in /proc/self/cgroup.
	Hierarchy uint32
}

// Event is one event of a trace. It has the fields of every Type, so that a
// reader can fill the same memory again and again; those that are not its
// Type's hold no meaning.
type Event struct {
	Type Type
	// CPU is the processor that the event happened on.
	CPU uint32
	// BootNanos is the time since boot in nanoseconds, suspend included
	// (CLOCK_BOOTTIME).
	BootNanos uint64
	// PID is the thread group, which user space calls a process, and TID the
	// thread, both as the initial pid namespace numbers them. They are those of
	// the current task, which is not always the one that pays. The idle task,
	// in which interrupts charge too, is 0.
	PID, TID uint32
	// Comm is the name of the thread.
	Comm Comm
	// Cgroup is, for a Charge, the one that is to pay, for Uncharge the one that
	// has paid, for reclaim the one that is to shrink, for OOMKill the one that ran
	// out (none: the machine did), for CgroupName the one that is named, and for
	// Usage the one that was read.
	Cgroup CgroupID

	// Charge; Kind, Counter, RequestedPages and UsagePages also of Uncharge and
	// ForcedCharge

	Kind    Kind
	Outcome Outcome
	Flags   Flags
	// Counter identifies the page counter that was asked. A number may come
	// back for another counter once the first is gone.
	Counter uint64
	// StackPointer is that at the call. Two calls of one thread with the same come
	// from the same place, one after the other.
	StackPointer uint64
	// RequestedPages is how many pages are to be charged, or are given back; bytes
	// for [Dmem], as in all counts of pages of a Charge.
	RequestedPages uint64
	// UsagePages is how many pages the counter held before that; for the type
	// Usage, what was read. Concurrent charges can push it above MaxPages for a
	// moment.
	UsagePages int64
	// MaxPages is the counter's limit; see [Event.Limited].
	MaxPages uint64
	// Limiting is the level with the least room among the counter's own and its
	// ancestors': the lowest of them.
	Limiting Level
	// High is the level with the least room below its memory.high, which is its
	// MaxPages. A charge does not fail there, but the task that is above has to
	// reclaim.
	High Level
	// FailedAt is the number of the cgroup whose limit made the charge fail, in
	// the hierarchy of Cgroup.
	FailedAt uint64
	// KernelStack and UserStack are the numbers of the stacks at the call, in the
	// kernel and in user space; 0 is none. As the BPF program sends them they are
	// ids, which package capture makes numbers. The latter is that of the current
	// task, which an interrupt has nothing to do with.
	KernelStack, UserStack uint32
	// LostEvents is, for a Charge, how many events were lost on its CPU since
	// the trace began; for Lost, how many were lost at this place.
	LostEvents uint64

	// ReclaimEnd

	// FreedPages is how many pages were reclaimed.
	FreedPages uint64
	// DurationNanos is the time since ReclaimBegin.
	DurationNanos uint64

	// OOMKill

	Victim Victim

	// Fork

	// ChildPID is the new process, numbered as PID.
	ChildPID uint32

	// CgroupName

	// ParentID is the number of the cgroup's parent, 0 for the root.
	ParentID uint64
	// Name is that of the cgroup's directory; empty for the root. It can hold
	// any bytes but NUL and '/'.
	Name string

	// Stack

	// StackNumber is the stack's, until it is told for another.
	StackNumber uint32
	// Frames are the functions of a stack, the innermost first, each with the file
	// or the module that it is in and how far into it the address is, and separated
	// by semicolons: "ext4_map_blocks [ext4]+0x3a;...". What has no name
	// is an address, in the file where that is known: "[libc.so.6 BUILD-ID]+0x2ab10".
	// They come from files that anybody may have made: print them with
	// [AppendPrintable].
	Frames string
}

// Level is a level of the tree of page counters.
type Level struct {
	// CgroupID is the number of its cgroup, in the hierarchy of the event's.
	CgroupID uint64
	// UsagePages is what it held before the charge.
	UsagePages int64
	// MaxPages is its limit.
	MaxPages uint64
}

// Limited reports whether the level has a limit.
func (l *Level) Limited() bool { return l.MaxPages < unlimitedPages }

// RoomPages is how many pages fit under the limit. It is negative where
// concurrent charges, or such as cannot fail, have gone beyond it.
func (l *Level) RoomPages() int64 { return int64(l.MaxPages) - l.UsagePages }

// AtLimit reports whether the level has a limit and no room left.
func (l *Level) AtLimit() bool { return l.Limited() && l.RoomPages() <= 0 }

// Victim is a process that the OOM killer chose.
type Victim struct {
	PID  uint32
	Comm Comm
	// What the process held, in pages. From Linux 6.2 on these are
	// approximate, as they are in the kernel's log.
	AnonPages, FilePages, ShmemPages, SwapPages uint64
}

// HeldPages is what the process held in memory, swap aside.
func (v *Victim) HeldPages() uint64 { return v.AnonPages + v.FilePages + v.ShmemPages }

// unlimitedPages is a floor for what the kernel stores where no limit is set:
// PAGE_COUNTER_MAX, LONG_MAX / PAGE_SIZE (include/linux/page_counter.h), which
// hugetlb rounds down to its page size. Even with 64 KiB pages that is above
// 1<<46, and no machine holds as many pages.
const unlimitedPages = 1 << 46

// Limited reports whether the counter has a limit of its own.
func (e *Event) Limited() bool { return e.MaxPages < unlimitedPages }

// AtLimit reports whether the counter has a limit of its own, and no room left.
func (e *Event) AtLimit() bool {
	return e.Limited() && e.UsagePages >= int64(e.MaxPages)
}

// LimitHit reports whether the charge failed, or found a level at its limit.
func (e *Event) LimitHit() bool { return e.Outcome != OK || e.Limiting.AtLimit() }

// InCgroup returns the name of a cgroup in the hierarchy of the event's.
func (e *Event) InCgroup(id uint64) CgroupID { return CgroupID{id, e.Cgroup.Hierarchy} }

// IsNet reports whether an event is one of those that are there for a balance: of
// pages that are given back, or charged without a question.
func (t Type) IsNet() bool { return t == Uncharge || t == ForcedCharge || t == Usage }

// UsageAfterPages is how many pages the counter of a Charge, an Uncharge or a
// ForcedCharge holds after it.
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

// The lengths in bytes of the encoded events of each Type: the structs in
// bpf/events.h.
const (
	commonSize     = 56
	levelSize      = 24
	ChargeSize     = commonSize + 112
	reclaimSize    = commonSize + 16
	oomKillSize    = commonSize + 56
	forkSize       = commonSize + 8
	unchargeSize   = commonSize + 24
	cgroupNameSize = 24 + nameSize
	// nameSize is NAME_MAX and a NUL.
	nameSize = 256
)

var sizes = [...]int{
	Charge: ChargeSize, Lost: ChargeSize, ReclaimBegin: reclaimSize, ReclaimEnd: reclaimSize,
	OOMKill: oomKillSize, CgroupName: cgroupNameSize, Fork: forkSize,
	Uncharge: unchargeSize, ForcedCharge: unchargeSize,
}

var ne = binary.NativeEndian

// Decode sets e from the bytes of one encoded event, in the byte order of the
// machine. It fails, and leaves e as it is, where src has an unknown Type or
// is not as long as that asks for, or where a value is impossible.
func (e *Event) Decode(src []byte) error {
	if len(src) < 4 {
		return fmt.Errorf("event of %d bytes", len(src))
	}
	typ := Type(ne.Uint32(src))
	if int(typ) >= len(sizes) || sizes[typ] == 0 {
		return fmt.Errorf("event of unknown type %d", typ)
	}
	if len(src) != sizes[typ] {
		return fmt.Errorf("event of type %d has %d bytes, want %d", typ, len(src), sizes[typ])
	}
	if typ == CgroupName {
		return e.decodeCgroupName(src)
	}
	// The compiler checks the bounds of an array once.
	common, rest := (*[commonSize]byte)(src), src[commonSize:]
	kind, outcome := Kind(common[52]), Outcome(common[53])
	if kind >= numKinds || outcome >= numOutcomes {
		return fmt.Errorf("event of unknown kind %d or outcome %d", kind, outcome)
	}

	e.Type = typ
	e.CPU = ne.Uint32(common[4:])
	e.BootNanos = ne.Uint64(common[8:])
	e.PID = ne.Uint32(common[16:])
	e.TID = ne.Uint32(common[20:])
	e.Comm = Comm(common[24:40])
	e.Comm.trim()
	e.Cgroup = CgroupID{ne.Uint64(common[40:]), ne.Uint32(common[48:])}
	e.Kind, e.Outcome = kind, outcome
	e.Flags = Flags(ne.Uint16(common[54:]))

	switch typ {
	case Charge, Lost:
		e.decodeCharge((*[ChargeSize - commonSize]byte)(rest))
	case ReclaimBegin, ReclaimEnd:
		e.FreedPages = ne.Uint64(rest)
		e.DurationNanos = ne.Uint64(rest[8:])
	case OOMKill:
		v := Victim{PID: ne.Uint32(rest)}
		v.Comm = Comm(rest[8:24])
		v.Comm.trim()
		v.AnonPages = ne.Uint64(rest[24:])
		v.FilePages = ne.Uint64(rest[32:])
		v.ShmemPages = ne.Uint64(rest[40:])
		v.SwapPages = ne.Uint64(rest[48:])
		e.Victim = v
	case Fork:
		e.ChildPID = ne.Uint32(rest)
	case Uncharge, ForcedCharge:
		e.Counter = ne.Uint64(rest)
		e.RequestedPages = ne.Uint64(rest[8:])
		e.UsagePages = int64(ne.Uint64(rest[16:]))
	}
	return nil
}

func (e *Event) decodeCharge(b *[ChargeSize - commonSize]byte) {
	e.Counter = ne.Uint64(b[0:])
	e.StackPointer = ne.Uint64(b[8:])
	e.RequestedPages = ne.Uint64(b[16:])
	e.UsagePages = int64(ne.Uint64(b[24:]))
	e.MaxPages = ne.Uint64(b[32:])
	e.Limiting = decodeLevel((*[levelSize]byte)(b[40:]))
	e.High = decodeLevel((*[levelSize]byte)(b[64:]))
	e.FailedAt = ne.Uint64(b[88:])
	e.LostEvents = ne.Uint64(b[96:])
	e.KernelStack = ne.Uint32(b[104:])
	e.UserStack = ne.Uint32(b[108:])
}

func decodeLevel(b *[levelSize]byte) Level {
	return Level{ne.Uint64(b[0:]), int64(ne.Uint64(b[8:])), ne.Uint64(b[16:])}
}

func (e *Event) decodeCgroupName(src []byte) error {
	name := upToNUL(src[24:])
	if len(name) == nameSize || bytes.IndexByte(name, '/') >= 0 {
		return fmt.Errorf("event with an impossible name of a cgroup: %q", name)
	}
	e.Type = CgroupName
	e.Cgroup = CgroupID{ne.Uint64(src[8:]), ne.Uint32(src[4:])}
	e.ParentID = ne.Uint64(src[16:])
	e.Name = string(name)
	return nil
}

// AppendEncoded appends e to dst, encoded so that [Event.Decode] reads it. There is
// no such form of a Stack and of Usage, which no BPF program sends.
func (e *Event) AppendEncoded(dst []byte) []byte {
	dst = ne.AppendUint32(dst, uint32(e.Type))
	if e.Type == CgroupName {
		dst = ne.AppendUint32(dst, e.Cgroup.Hierarchy)
		dst = ne.AppendUint64(dst, e.Cgroup.ID)
		dst = ne.AppendUint64(dst, e.ParentID)
		var name [nameSize]byte
		copy(name[:nameSize-1], e.Name)
		return append(dst, name[:]...)
	}
	dst = ne.AppendUint32(dst, e.CPU)
	dst = ne.AppendUint64(dst, e.BootNanos)
	dst = ne.AppendUint32(dst, e.PID)
	dst = ne.AppendUint32(dst, e.TID)
	dst = append(dst, e.Comm[:]...)
	dst = ne.AppendUint64(dst, e.Cgroup.ID)
	dst = ne.AppendUint32(dst, e.Cgroup.Hierarchy)
	dst = append(dst, byte(e.Kind), byte(e.Outcome))
	dst = ne.AppendUint16(dst, uint16(e.Flags))
	switch e.Type {
	case Charge, Lost:
		dst = ne.AppendUint64(dst, e.Counter)
		dst = ne.AppendUint64(dst, e.StackPointer)
		dst = ne.AppendUint64(dst, e.RequestedPages)
		dst = ne.AppendUint64(dst, uint64(e.UsagePages))
		dst = ne.AppendUint64(dst, e.MaxPages)
		dst = appendLevel(dst, e.Limiting)
		dst = appendLevel(dst, e.High)
		dst = ne.AppendUint64(dst, e.FailedAt)
		dst = ne.AppendUint64(dst, e.LostEvents)
		dst = ne.AppendUint32(dst, e.KernelStack)
		dst = ne.AppendUint32(dst, e.UserStack)
	case ReclaimBegin, ReclaimEnd:
		dst = ne.AppendUint64(dst, e.FreedPages)
		dst = ne.AppendUint64(dst, e.DurationNanos)
	case OOMKill:
		dst = ne.AppendUint32(dst, e.Victim.PID)
		dst = ne.AppendUint32(dst, 0)
		dst = append(dst, e.Victim.Comm[:]...)
		dst = ne.AppendUint64(dst, e.Victim.AnonPages)
		dst = ne.AppendUint64(dst, e.Victim.FilePages)
		dst = ne.AppendUint64(dst, e.Victim.ShmemPages)
		dst = ne.AppendUint64(dst, e.Victim.SwapPages)
	case Fork:
		dst = ne.AppendUint32(dst, e.ChildPID)
		dst = ne.AppendUint32(dst, 0)
	case Uncharge, ForcedCharge:
		dst = ne.AppendUint64(dst, e.Counter)
		dst = ne.AppendUint64(dst, e.RequestedPages)
		dst = ne.AppendUint64(dst, uint64(e.UsagePages))
	}
	return dst
}

func appendLevel(dst []byte, l Level) []byte {
	dst = ne.AppendUint64(dst, l.CgroupID)
	dst = ne.AppendUint64(dst, uint64(l.UsagePages))
	return ne.AppendUint64(dst, l.MaxPages)
}
