// Package trace writes and reads recordings. [Writer] is a sink, [Reader] a source, and
// [Sequence] a source that joins readers. The package must not know other sources or sinks,
// and no World: a recording has the names that it needs.
//
// # The format
//
// A file is 12 bytes, the signature "CTRACE\r\n" and the version of the format as 4
// bytes, and then blocks. Numbers of fixed size are little-endian. A "uvarint" has 7 bits
// of a number in each byte, the lowest first, and the top bit set in each byte but the
// last. A "varint" is a signed number n as the uvarint n<<1 ^ n>>63. Both are as in
// Protocol Buffers.
//
// A block is a header of 48 bytes and a payload:
//
//	offset size
//	0      4    "CTB1"
//	4      4    CRC-32C of the header from offset 8, and of the payload
//	8      4    kind: 1 meta, 2 events, 3 end
//	12     4    length of the payload in the file
//	16     4    length of the payload, decompressed
//	20     4    number of events, at most 65536
//	24     8    least BootNanos of an event
//	32     8    greatest
//	40     8    wall-clock time of boot at the time of the events, in nanoseconds
//	            since 1970 ([event.Event.BootWallNanos]); 0 in other blocks
//
// The payload is compressed with Zstandard. The first block has the kind meta and a JSON
// object ([stream.Info]), the last block of a complete recording the kind end and another JSON
// object ([stream.Counts]).
//
// If names were found late, the last block of events has no events, but these names.
//
// A block of events needs no other block: a reader can skip it by its times, and damage
// costs that block alone, unless it hits the first four bytes or the length of the payload
// in the file, which locate the next block. The payload has these sections, each after
// its length as a uvarint:
//
//	names     for each cgroup of the contexts, and its ancestors: uvarint
//	          hierarchy, id, id of the parent, length of the name; the name;
//	          length of the identity; the identity ([event.Event.Identity])
//	stacks    for each stack of the contexts: uvarint number, length of the
//	          frames; the frames ([event.Event.Frames])
//	contexts  fields that many events share, see below
//	columns   one section each for context, time, requested, outcome, usage,
//	          limiting, high, failed, other
//
// The numbers of cgroups and stacks are those of the block: in a recording merged from
// several, a number can mean something else in another block.
//
// A context is a byte for the type ([event.Type]), uvarint cpu, pid, tid, a byte for the
// length of the comm, and the comm without its trailing NULs. All types but Lost and Fork
// add uvarint hierarchy and cgroup, an OOM kill and another process its own cgroup as well. A charge
// adds a byte for the kind, uvarint flags (without Retry and Predicted), counter, stack
// pointer, max, limiting cgroup, limiting max, high cgroup, high max, and the numbers of the
// kernel stack and the user stack (0: none). An uncharge or a forced charge adds a byte for
// the kind and uvarint counter, and a sleep for memory.high a byte for the kind.
//
// Version 5 has no identities of cgroups.
// Version 4 has no kind of sleeps, which are all for memory.high, no order in OOM, and no
// wall-clock time in the headers.
// Version 3 has no runs of the OOM killer that killed nobody, sleeps for memory.high,
// memory.stat, nor other processes; its OOM kills lack the victim's cgroup and what follows the victim's swap. Version 2 has no
// user stacks, uncharges, forced charges or readings of usage either. Version 1 has no kernel
// stacks, nor the section stacks.
//
// A column has the values of the events in order. It has nothing for an event without
// such a value.
//
//	context    uvarint: number of the context, from 0
//	time       varint: BootNanos less that of the event before, or less the
//	           block's least for the first event
//	requested  charges, uncharges, forced charges. uvarint
//	outcome    charges. a byte: outcome in bits 0 and 1, Retry in bit 2,
//	           Predicted in bit 3
//	usage      charges, uncharges, forced charges. varint: usage less the
//	           expected usage
//	limiting   charges. varint: the same for the limiting level
//	high       charges. varint: the same for the level of memory.high
//	failed     charges with another outcome than OK. uvarint: 0 if the charge
//	           failed at the limiting level, 1 at that of its own cgroup, else 2
//	           and the id of the cgroup as a uvarint
//	other      lost: uvarint number of events. end of reclaim: uvarint pages
//	           freed, uvarint nanoseconds. OOM kills: uvarint pid of the victim,
//	           a byte for the length of its comm, the comm, uvarint anonymous,
//	           file, shared and swap pages, bytes of page tables, and the fields
//	           of OOM. OOM: uvarint BootNanos when it started, varint usage,
//	           uvarint limit, uvarint flags, varint order, and for a run that killed nobody
//	           uvarint result ([event.OOMResult]). sleeps for memory.high:
//	           varint usage, uvarint high, uvarint nanoseconds. memory.stat:
//	           uvarint BootNanos of the OOM, uvarint parent, varint usage, uvarint
//	           length, the text. other processes: uvarint BootNanos of the OOM, and like the
//	           victim of an OOM kill up to the page tables. forks: uvarint pid of the child
//	           times 2, plus 1 if the process is older than the trace. readings
//	           of usage: uvarint pages times 2, plus 1 for one at the beginning
//
// The expected usage of a level is 0 at first, and then its last usage in the block, as
// usage, limiting or high, plus the pages of that event if it was a charge with the outcome
// OK or a forced charge, less its pages if it was an uncharge. A level is identified by
// hierarchy, cgroup and kind.
package trace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

const (
	signature = "CTRACE\r\n"
	// Version is the version of the format.
	Version = 6

	blockMagic  = "CTB1"
	headerBytes = 48

	kindMeta   = 1
	kindEvents = 2
	kindEnd    = 3

	// maxPayload bounds the payload of a block, compressed or not, and so the memory of
	// a reader of a hostile file. The writer stays far below.
	maxPayload = 16 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// blockHeader is the header of a block.
type blockHeader struct {
	checksum        uint32
	kind            uint32
	stored, size    uint32
	events          uint32
	least, greatest uint64
	bootWallNanos   int64
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
	return le.AppendUint64(dst, uint64(h.bootWallNanos))
}

var errDamaged = errors.New("damaged block")

func (h *blockHeader) parse(src []byte) error {
	le := binary.LittleEndian
	if !bytes.Equal(src[:4], []byte(blockMagic)) {
		return errDamaged
	}
	*h = blockHeader{
		le.Uint32(src[4:]), le.Uint32(src[8:]), le.Uint32(src[12:]), le.Uint32(src[16:]), le.Uint32(src[20:]),
		le.Uint64(src[24:]), le.Uint64(src[32:]), int64(le.Uint64(src[40:])),
	}
	if h.stored > maxPayload || h.size > maxPayload {
		return fmt.Errorf("%w: its length of %d bytes exceeds %d", errDamaged, max(h.stored, h.size), maxPayload)
	}
	return nil
}

// checksum covers a block's header and payload.
func checksum(header, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(header[8:headerBytes], castagnoli), castagnoli, payload)
}
