package trace

import (
	"bytes"
	"encoding/binary"
	"slices"

	"chargetrace/internal/event"
)

// A section is a part of a block, such as a column. Encoding appends to b, decoding
// advances pos.
type section struct {
	b   []byte
	pos int
}

func (s *section) done() bool { return s.pos == len(s.b) }

func (s *section) appendUvarint(v uint64) {
	for v >= 0x80 {
		s.b = append(s.b, byte(v)|0x80)
		v >>= 7
	}
	s.b = append(s.b, byte(v))
}

// zigzag returns the number that is appended for a signed one.
func zigzag(v int64) uint64 { return uint64(v)<<1 ^ uint64(v>>63) }

// A column is a section with a number for each event. Most columns repeat one number many
// times: counting repeats takes a fifth of the time of appending them.
type column struct {
	section
	last  uint64
	times int // to be appended
}

func (c *column) appendUvarint(v uint64) {
	if v != c.last {
		c.flush()
		c.last = v
	}
	c.times++
}

// flush appends the numbers so far to the section.
func (c *column) flush() {
	if c.times == 0 {
		return
	}
	begin := len(c.b)
	c.section.appendUvarint(c.last)
	size := len(c.b) - begin
	c.b = slices.Grow(c.b, size*(c.times-1))
	all := c.b[begin : begin+size*c.times]
	for size < len(all) {
		size += copy(all[size:], all[:size])
	}
	c.b, c.times = c.b[:begin+len(all)], 0
}

// A coder encodes events into the sections of a block, or decodes them. The functions
// uint64, int64, uint32, byte, text, comm and flagged do both, as in the XDR library (xdr(3)), so
// that the writer and the reader share one list of fields.
type coder struct {
	encoding bool
	version  uint32 // of the format
	// bad is set where decoding meets bytes that no writer produces.
	bad bool

	names, stacks, contexts, time, failed, other       section
	context, requested, outcome, usage, limiting, high column

	numbered []context // of the block, by number
	usages   usages
}

// A context has the fields that many events share. The other fields are zero.
type context struct {
	event.Event
	levels
}

// forget drops the contexts of the last block.
func (x *coder) forget() {
	x.numbered = x.numbered[:0]
	x.usages.reset()
}

// readContext decodes the next context and numbers it.
func (x *coder) readContext() *context {
	x.numbered = append(x.numbered, context{})
	c := &x.numbered[len(x.numbered)-1]
	codeContext(x, &c.Event)
	c.levels = x.usages.levels(&c.Event)
	return c
}

// sections returns the sections in the order of the file.
func (x *coder) sections() [12]*section {
	return [...]*section{
		&x.names, &x.stacks, &x.contexts,
		&x.context.section, &x.time, &x.requested.section, &x.outcome.section, &x.usage.section,
		&x.limiting.section, &x.high.section, &x.failed, &x.other,
	}
}

// flush completes the columns.
func (x *coder) flush() {
	for _, c := range [...]*column{&x.context, &x.requested, &x.outcome, &x.usage, &x.limiting, &x.high} {
		c.flush()
	}
}

func (x *coder) readUvarint(s *section) uint64 {
	// Most numbers have one byte.
	if s.pos < len(s.b) && s.b[s.pos] < 0x80 {
		s.pos++
		return uint64(s.b[s.pos-1])
	}
	return x.readLongUvarint(s)
}

func (x *coder) readLongUvarint(s *section) uint64 {
	v, n := binary.Uvarint(s.b[s.pos:])
	if n <= 0 {
		x.bad = true
		s.pos = len(s.b)
		return 0
	}
	s.pos += n
	return v
}

func (x *coder) readVarint(s *section) int64 {
	v := x.readUvarint(s)
	return int64(v>>1) ^ -int64(v&1)
}

func (x *coder) readByte(s *section) byte {
	if s.done() {
		x.bad = true
		return 0
	}
	s.pos++
	return s.b[s.pos-1]
}

// readBytes returns n bytes, which alias the section, or none if there are fewer.
func (x *coder) readBytes(s *section, n uint64) []byte {
	if n > uint64(len(s.b)-s.pos) {
		x.bad = true
		s.pos = len(s.b)
		return nil
	}
	b := s.b[s.pos:][:n]
	s.pos += int(n)
	return b
}

func (x *coder) uint64(s *section, v *uint64) {
	if x.encoding {
		s.appendUvarint(*v)
	} else {
		*v = x.readUvarint(s)
	}
}

func (x *coder) int64(s *section, v *int64) {
	if x.encoding {
		s.appendUvarint(zigzag(*v))
	} else {
		*v = x.readVarint(s)
	}
}

func (x *coder) uint32(s *section, v *uint32) {
	if x.encoding {
		s.appendUvarint(uint64(*v))
		return
	}
	n := x.readUvarint(s)
	x.bad = x.bad || n >= 1<<32
	*v = uint32(n)
}

func (x *coder) byte(s *section, v *byte) {
	if x.encoding {
		s.b = append(s.b, *v)
	} else {
		*v = x.readByte(s)
	}
}

// text is a string after its length.
func (x *coder) text(s *section, v *string) {
	if x.encoding {
		s.appendUvarint(uint64(len(*v)))
		s.b = append(s.b, *v...)
	} else {
		*v = string(x.readBytes(s, x.readUvarint(s)))
	}
}

// comm is the name of a thread without trailing NULs, after its length.
func (x *coder) comm(s *section, v *event.Comm) {
	if x.encoding {
		name := bytes.TrimRight(v[:], "\x00")
		s.b = append(append(s.b, byte(len(name))), name...)
		return
	}
	n := x.readByte(s)
	x.bad = x.bad || int(n) > len(v)
	*v = event.Comm{}
	copy(v[:], x.readBytes(s, uint64(n)))
}

// flagged is a number times 2, plus 1 if flags has [event.Existing].
func flagged[T uint32 | int64](x *coder, s *section, v *T, flags *event.Flags) {
	if x.encoding {
		s.appendUvarint(uint64(*v)<<1 | uint64(*flags&event.Existing/event.Existing))
		return
	}
	n := x.readUvarint(s)
	*v, *flags = T(n>>1), event.Flags(n&1)*event.Existing
	x.bad = x.bad || uint64(*v) != n>>1
}
