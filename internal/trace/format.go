// Package trace is the recording of a trace: [Writer] is a sink that makes one,
// and [Reader] a source that plays it.
//
// # The format
//
// A file is 12 bytes, the signature "CTRACE\r\n" and the version of the format
// as 4 bytes, and blocks. All fixed-size numbers are little-endian. "uvarint" is
// a number in groups of 7 bits, the lowest first, with the highest bit of each
// byte but the last set; "varint" is a signed number n as the uvarint
// n<<1 ^ n>>63 (both as in Protocol Buffers).
//
// A block is a header of 48 bytes and a payload:
//
//	offset size
//	0      4    "CTB1"
//	4      4    CRC-32C of the header from offset 8 on, and of the payload
//	8      4    kind: 1 meta, 2 events, 3 end
//	12     4    length of the payload as it is in the file
//	16     4    length of the payload once it is decompressed
//	20     4    number of events
//	24     8    the least time of an event, as BootNanos
//	32     8    the greatest
//	40     8    0
//
// The payload is compressed with Zstandard. That of meta, the first block, is a
// JSON object ([stream.Info]); that of end, the last of a recording that was brought
// to its end, is another ([stream.Counts]).
//
// A block of events stands alone: none is needed to read another, so that one can be
// skipped by its times, and a damaged one costs no more than itself, as long as its
// first four bytes and the length of its payload are whole, which tell where the next
// begins. Its payload has these sections, each preceded by its length as a uvarint:
//
//	names     for each cgroup that the block mentions, and its ancestors: uvarint
//	          hierarchy, id, id of the parent, length of the name; the name
//	stacks    for each stack that the block mentions: uvarint number, length of
//	          the frames; the frames ([event.Event.Frames])
//	contexts  what many events have in common, see below
//	columns   one section for each of: context, time, requested, outcome, usage,
//	          limiting, high, failed, other
//
// Cgroups and stacks are known by their numbers within the block alone: in a
// recording that was made of several, a number can mean another in another block.
//
// A context is a byte for the type of its events (as [event.Type]) and the
// uvarints cpu, pid, tid, a byte for the length of the comm and the comm without
// its trailing NULs, and, but for the types Lost and Fork, uvarint hierarchy and
// cgroup. A context of charges goes on with a byte for the kind, uvarint flags (without
// Retry and Predicted), counter, stack, max, limiting cgroup, limiting max, high
// cgroup, high max, numbers of the kernel stack and of the user stack (0: none); one
// of uncharges and of forced charges with a byte for the kind and the uvarint counter.
//
// Version 2 has no numbers of user stacks, and neither uncharges, forced charges nor
// readings of usage; version 1 has neither the numbers of kernel stacks nor the section
// of stacks either.
//
// The columns hold values for the events in turn; a column is not touched by
// events that have no such value.
//
//	context    uvarint: the number of the context, from 0
//	time       varint: BootNanos, less that of the event before, or less the
//	           block's least time for the first
//	requested  charges, uncharges, forced charges. uvarint
//	outcome    charges. a byte: the outcome in bits 0 and 1, Retry in bit 2,
//	           Predicted in bit 3
//	usage      charges, uncharges, forced charges. varint: usage less the usage that
//	           was expected
//	limiting   charges. varint: likewise of the limiting level
//	high       charges. varint: likewise of the level of memory.high
//	failed     charges whose outcome is not ok. uvarint: 0 if the charge failed at
//	           the limiting level, 1 at that of its own cgroup, else 2 and then
//	           the cgroup's id as a uvarint
//	other      lost: uvarint number of events. reclaim's end: uvarint pages freed,
//	           uvarint nanoseconds. OOM kills: uvarint pid of the victim, a byte
//	           for the length of its comm, the comm, uvarint anonymous, file,
//	           shared and swap pages. forks: uvarint pid of the child times 2, plus
//	           1 if it was there before the trace. readings of usage: uvarint
//	           pages times 2, plus 1 if that was at the beginning
//
// The usage that is expected is that of the level's last mention in the block, as
// usage, limiting or high, plus what was requested then if that charge was ok or
// forced, less what was given back then; at first it is 0. A level is told from others by hierarchy, cgroup and kind.
package trace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"chargetrace/internal/event"
)

const (
	signature = "CTRACE\r\n"
	// Version is the version of the format.
	Version = 3

	blockMagic  = "CTB1"
	headerBytes = 48

	kindMeta   = 1
	kindEvents = 2
	kindEnd    = 3

	// maxPayload bounds the payload of a block, compressed or not: what the
	// reader takes is no more than twice that. The writer stays far below.
	maxPayload = 16 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// blockHeader is what comes before a payload.
type blockHeader struct {
	checksum        uint32
	kind            uint32
	stored, size    uint32
	events          uint32
	least, greatest uint64
}

func (h *blockHeader) append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, blockMagic...)
	dst = le.AppendUint32(dst, h.checksum)
	dst = le.AppendUint32(dst, h.kind)
	dst = le.AppendUint32(dst, h.stored)
	dst = le.AppendUint32(dst, h.size)
	dst = le.AppendUint32(dst, h.events)
	dst = le.AppendUint64(dst, h.least)
	dst = le.AppendUint64(dst, h.greatest)
	return le.AppendUint64(dst, 0)
}

var errDamaged = errors.New("a block is damaged")

func (h *blockHeader) parse(src []byte) error {
	le := binary.LittleEndian
	if !bytes.Equal(src[:4], []byte(blockMagic)) {
		return errDamaged
	}
	*h = blockHeader{
		le.Uint32(src[4:]), le.Uint32(src[8:]), le.Uint32(src[12:]), le.Uint32(src[16:]), le.Uint32(src[20:]),
		le.Uint64(src[24:]), le.Uint64(src[32:]),
	}
	if h.stored > maxPayload || h.size > maxPayload {
		return fmt.Errorf("%w: it claims to be of %d bytes", errDamaged, max(h.stored, h.size))
	}
	return nil
}

// checksum covers a block's header and payload.
func checksum(header, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(header[8:headerBytes], castagnoli), castagnoli, payload)
}

// retryOrPredicted are the flags that are kept with each event.
const retryOrPredicted = event.Retry | event.Predicted

// levelKey tells levels apart.
type levelKey struct {
	cgroup event.CgroupID
	kind   event.Kind
}

// usages are what is expected of levels; see the package comment.
type usages struct {
	index map[levelKey]int
	next  []int64
}

func (u *usages) reset() {
	if u.index == nil {
		u.index = make(map[levelKey]int)
	}
	clear(u.index)
	u.next = u.next[:0]
}

// of returns the place in next of a level.
func (u *usages) of(cgroup event.CgroupID, kind event.Kind) int {
	key := levelKey{cgroup, kind}
	i, ok := u.index[key]
	if !ok {
		i = len(u.next)
		u.index[key] = i
		u.next = append(u.next, 0)
	}
	return i
}

// context is what many events have in common: an event without what the columns
// hold, and the places of its levels.
type context struct {
	event.Event
	own, limiting, high int
}
