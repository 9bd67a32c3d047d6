package event

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// The sizes in bytes of the encoded events of each Type: the structs in
// bpf/events.h.
const (
	commonSize     = 56
	levelSize      = 24
	ChargeSize     = commonSize + 112
	reclaimSize    = commonSize + 16
	oomStateSize   = 24
	oomKillSize    = commonSize + 72 + oomStateSize
	oomSize        = commonSize + oomStateSize + 8
	throttleSize   = commonSize + 24
	forkSize       = commonSize + 8
	unchargeSize   = commonSize + 24
	cgroupNameSize = 24 + nameSize
	releasedSize   = 16
	// nameSize is NAME_MAX plus the NUL.
	nameSize = 256
)

var sizes = [...]int{
	Charge: ChargeSize, Lost: ChargeSize, ReclaimBegin: reclaimSize, ReclaimEnd: reclaimSize,
	OOMKill: oomKillSize, CgroupName: cgroupNameSize, Fork: forkSize,
	Uncharge: unchargeSize, ForcedCharge: unchargeSize,
	OOM: oomSize, Throttle: throttleSize, CgroupReleased: releasedSize,
}

var ne = binary.NativeEndian

// Decode sets e from the bytes of one encoded event, in the byte order of the
// machine. If src has an unknown Type, a wrong length or an impossible value, Decode
// returns an error and does not change e.
func (e *Event) Decode(src []byte) error {
	if len(src) < 4 {
		return fmt.Errorf("event of only %d bytes", len(src))
	}
	typ := Type(ne.Uint32(src))
	if int(typ) >= len(sizes) || sizes[typ] == 0 {
		return fmt.Errorf("event of unknown type %d", typ)
	}
	if len(src) != sizes[typ] {
		return fmt.Errorf("event of type %d has %d bytes, want %d", typ, len(src), sizes[typ])
	}
	switch typ {
	case CgroupName:
		return e.decodeCgroupName(src)
	case CgroupReleased:
		e.Type, e.Cgroup = typ, CgroupID{ne.Uint64(src[8:]), ne.Uint32(src[4:])}
		return nil
	}
	// With an array, the compiler checks bounds only at the conversion.
	common, rest := (*[commonSize]byte)(src), src[commonSize:]
	kind, outcome := Kind(common[52]), Outcome(common[53])
	if kind >= numKinds || outcome >= numOutcomes {
		return fmt.Errorf("event with unknown kind %d or outcome %d", kind, outcome)
	}
	if typ == OOM {
		if r := OOMResult(ne.Uint32(rest[oomStateSize:])); !r.Valid() {
			return fmt.Errorf("event with unknown result %d", r)
		}
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
		e.Order = int32(ne.Uint32(rest[4:]))
		v := Victim{PID: ne.Uint32(rest)}
		v.Comm = Comm(rest[8:24])
		v.Comm.trim()
		v.AnonPages = ne.Uint64(rest[24:])
		v.FilePages = ne.Uint64(rest[32:])
		v.ShmemPages = ne.Uint64(rest[40:])
		v.SwapPages = ne.Uint64(rest[48:])
		v.PageTableBytes = ne.Uint64(rest[56:])
		v.CgroupID = ne.Uint64(rest[64:])
		e.Victim = v
		e.decodeOOMState(rest[72:])
	case OOM:
		e.decodeOOMState(rest)
		e.Result = OOMResult(ne.Uint32(rest[oomStateSize:]))
		e.Order = int32(ne.Uint32(rest[oomStateSize+4:]))
	case Throttle:
		e.UsagePages = int64(ne.Uint64(rest))
		e.MaxPages = ne.Uint64(rest[8:])
		e.DurationNanos = ne.Uint64(rest[16:])
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
	e.LostCharges = ne.Uint64(b[96:])
	e.KernelStack = ne.Uint32(b[104:])
	e.UserStack = ne.Uint32(b[108:])
}

func (e *Event) decodeCgroupName(src []byte) error {
	name := upToNUL(src[24:])
	if len(name) == nameSize || bytes.IndexByte(name, '/') >= 0 {
		return fmt.Errorf("event with an invalid cgroup name: %q", name)
	}
	e.Type = CgroupName
	e.Cgroup = CgroupID{ne.Uint64(src[8:]), ne.Uint32(src[4:])}
	e.ParentID = ne.Uint64(src[16:])
	e.Name, e.Identity = string(name), ""
	return nil
}

// AppendEncoded appends e to dst in the encoding that [Event.Decode] reads. The types
// Stack, Usage, MemoryStat, Held and ClockStep have no encoding: no BPF program sends them.
func (e *Event) AppendEncoded(dst []byte) []byte {
	dst = ne.AppendUint32(dst, uint32(e.Type))
	if e.Type == CgroupReleased {
		return ne.AppendUint64(ne.AppendUint32(dst, e.Cgroup.Hierarchy), e.Cgroup.ID)
	}
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
		dst = ne.AppendUint64(dst, e.LostCharges)
		dst = ne.AppendUint32(dst, e.KernelStack)
		dst = ne.AppendUint32(dst, e.UserStack)
	case ReclaimBegin, ReclaimEnd:
		dst = ne.AppendUint64(dst, e.FreedPages)
		dst = ne.AppendUint64(dst, e.DurationNanos)
	case OOMKill:
		dst = ne.AppendUint32(dst, e.Victim.PID)
		dst = ne.AppendUint32(dst, uint32(e.Order))
		dst = append(dst, e.Victim.Comm[:]...)
		dst = ne.AppendUint64(dst, e.Victim.AnonPages)
		dst = ne.AppendUint64(dst, e.Victim.FilePages)
		dst = ne.AppendUint64(dst, e.Victim.ShmemPages)
		dst = ne.AppendUint64(dst, e.Victim.SwapPages)
		dst = ne.AppendUint64(dst, e.Victim.PageTableBytes)
		dst = ne.AppendUint64(dst, e.Victim.CgroupID)
		dst = e.appendOOMState(dst)
	case OOM:
		dst = e.appendOOMState(dst)
		dst = ne.AppendUint32(dst, uint32(e.Result))
		dst = ne.AppendUint32(dst, uint32(e.Order))
	case Throttle:
		dst = ne.AppendUint64(dst, uint64(e.UsagePages))
		dst = ne.AppendUint64(dst, e.MaxPages)
		dst = ne.AppendUint64(dst, e.DurationNanos)
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
