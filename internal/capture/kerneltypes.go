//go:build linux

package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// kernelTypes returns the kernel's types (BTF) that the programs' CO-RE relocations need.
// For fentry and iterator programs, the library parses all of them anyway, more than
// 100,000; then kernelTypes returns these. Parsing all takes a third of the time to start.
func kernelTypes(spec *ebpf.CollectionSpec, all *btf.Cache) (*btf.Spec, error) {
	for _, p := range spec.Programs {
		if p.Type == ebpf.Tracing {
			return all.Kernel()
		}
	}
	whole, err := os.ReadFile("/sys/kernel/btf/vmlinux")
	if errors.Is(err, fs.ErrNotExist) {
		return all.Kernel() // which searches other paths too
	}
	if err != nil {
		return nil, err
	}
	names, err := neededNames(spec.Types)
	if err != nil {
		return nil, err
	}
	selected, err := selectTypes(whole, names)
	if err != nil {
		return nil, err
	}
	return btf.LoadSpecFromReader(bytes.NewReader(selected))
}

// neededNames returns the names that relocations may refer to: those of the programs' own
// types.
func neededNames(local *btf.Spec) (map[string]bool, error) {
	names := make(map[string]bool)
	for t, err := range local.All() {
		if err != nil {
			return nil, err
		}
		switch t.(type) {
		case *btf.Struct, *btf.Union, *btf.Enum, *btf.Typedef:
			// Three underscores start the suffix of a flavor: a variant for some kernels.
			if name, _, _ := strings.Cut(t.TypeName(), "___"); name != "" {
				names[name] = true
			}
		}
	}
	return names, nil
}

// The encoding of type information: include/uapi/linux/btf.h and
// Documentation/bpf/btf.rst.
const (
	btfMagic      = 0xeb9f
	btfHeaderSize = 24
	btfTypeSize   = 12 // struct btf_type
)

// The kinds of types.
const (
	kindInt = 1 + iota
	kindPtr
	kindArray
	kindStruct
	kindUnion
	kindEnum
	kindFwd
	kindTypedef
	kindVolatile
	kindConst
	kindRestrict
	kindFunc
	kindFuncProto
	kindVar
	kindDatasec
	kindFloat   // since 5.13 (b1828f0b0418)
	kindDeclTag // since 5.16 (223f903e9c83)
	kindTypeTag // since 5.17 (8c42d2fa4eeb)
	kindEnum64  // since 6.0 (6089fb325cf7)
)

// btfTails has the number of bytes that follow a btf_type of each kind: a fixed number, and
// a number for each of its vlen parts.
var btfTails = [...]struct{ fixed, part int }{
	kindInt:       {fixed: 4},
	kindPtr:       {},
	kindArray:     {fixed: 12},
	kindStruct:    {part: 12},
	kindUnion:     {part: 12},
	kindEnum:      {part: 8},
	kindFwd:       {},
	kindTypedef:   {},
	kindVolatile:  {},
	kindConst:     {},
	kindRestrict:  {},
	kindFunc:      {},
	kindFuncProto: {part: 8},
	kindVar:       {fixed: 4},
	kindDatasec:   {part: 12},
	kindFloat:     {},
	kindDeclTag:   {fixed: 4},
	kindTypeTag:   {},
	kindEnum64:    {part: 12},
}

var errBadBTF = errors.New("damaged type information (BTF)")

// selectTypes returns type information with only the named types and their parts, like
// "bpftool gen min_core_btf". The target of a pointer is not a part: CO-RE does not need
// it.
func selectTypes(whole []byte, names map[string]bool) ([]byte, error) {
	s, err := newTypeSelection(whole)
	if err != nil {
		return nil, err
	}
	for id, at := range s.offsets {
		switch t := s.types[at:]; kindOf(t) {
		case kindStruct, kindUnion, kindEnum, kindEnum64, kindTypedef:
			name, err := s.name(order.Uint32(t))
			if err != nil {
				return nil, err
			}
			if names[string(name)] {
				s.keep(uint32(id) + 1)
			}
		}
	}
	// copy may add to kept.
	for i := 0; i < len(s.kept); i++ {
		if err := s.copy(s.kept[i]); err != nil {
			return nil, err
		}
	}
	return s.encode(), nil
}

var order = binary.NativeEndian

// A typeSelection copies a part of type information.
type typeSelection struct {
	types, strings []byte
	// offsets are the offsets of the types in types. The first type has ID 1; ID 0 is void.
	offsets []int
	// kept are the IDs of the types to copy. newIDs maps old IDs to new ones, or 0.
	kept, newIDs []uint32

	newTypes, newStrings []byte
	newNames             map[uint32]uint32 // offsets in strings to those in newStrings
}

func newTypeSelection(whole []byte) (*typeSelection, error) {
	if len(whole) < btfHeaderSize || order.Uint16(whole) != btfMagic {
		return nil, errBadBTF
	}
	headerSize := uint64(order.Uint32(whole[4:]))
	section := func(header []byte) []byte {
		begin := headerSize + uint64(order.Uint32(header))
		end := begin + uint64(order.Uint32(header[4:]))
		if end > uint64(len(whole)) {
			return nil
		}
		return whole[begin:end]
	}
	s := &typeSelection{
		types:      section(whole[8:]),
		strings:    section(whole[16:]),
		newStrings: []byte{0},
		newNames:   map[uint32]uint32{0: 0},
	}
	// The first string must be empty: it is the name of unnamed types.
	if s.types == nil || len(s.strings) == 0 || s.strings[0] != 0 {
		return nil, errBadBTF
	}
	s.offsets = make([]int, 0, len(s.types)/(2*btfTypeSize))
	for at := 0; at < len(s.types); {
		s.offsets = append(s.offsets, at)
		size := typeSize(s.types[at:])
		if size == 0 {
			return nil, fmt.Errorf("%w: type %d is truncated, or of an unknown kind", errBadBTF, len(s.offsets))
		}
		at += size
	}
	s.newIDs = make([]uint32, 1+len(s.offsets))
	return s, nil
}

// typeSize returns the size of the type at the start of b, or 0 if it does not fit or is of
// an unknown kind.
func typeSize(b []byte) int {
	if len(b) < btfTypeSize || kindOf(b) == 0 || kindOf(b) >= len(btfTails) {
		return 0
	}
	tail, vlen := btfTails[kindOf(b)], int(order.Uint32(b[4:])&0xffff)
	size := btfTypeSize + tail.fixed + vlen*tail.part
	if size > len(b) {
		return 0
	}
	return size
}

func kindOf(t []byte) int { return int(order.Uint32(t[4:]) >> 24 & 0x1f) }

// name returns the string at an offset.
func (s *typeSelection) name(offset uint32) ([]byte, error) {
	if uint64(offset) >= uint64(len(s.strings)) {
		return nil, errBadBTF
	}
	rest := s.strings[offset:]
	end := bytes.IndexByte(rest, 0)
	if end < 0 {
		return nil, errBadBTF
	}
	return rest[:end], nil
}

// keep marks a type to be copied, and returns its new ID.
func (s *typeSelection) keep(id uint32) uint32 {
	if id != 0 && s.newIDs[id] == 0 {
		s.kept = append(s.kept, id)
		s.newIDs[id] = uint32(len(s.kept))
	}
	return s.newIDs[id]
}

// copy appends a type to newTypes, and keeps the types it refers to.
func (s *typeSelection) copy(id uint32) error {
	old := s.types[s.offsets[id-1]:]
	begin := len(s.newTypes)
	s.newTypes = append(s.newTypes, old[:typeSize(old)]...)
	t := s.newTypes[begin:]
	kind, tail := kindOf(t), t[btfTypeSize:]

	var err error
	moveName := func(field []byte) { err = errors.Join(err, s.moveName(field)) }
	moveType := func(field []byte) {
		old := order.Uint32(field)
		if uint64(old) >= uint64(len(s.newIDs)) {
			err = errBadBTF
			return
		}
		order.PutUint32(field, s.keep(old))
	}
	moveName(t)
	switch kind {
	case kindPtr:
		order.PutUint32(t[8:], 0)
	case kindFuncProto: // drop the parameters
		order.PutUint32(t[4:], kindFuncProto<<24)
		order.PutUint32(t[8:], 0)
		s.newTypes = s.newTypes[:begin+btfTypeSize]
	case kindTypedef, kindVolatile, kindConst, kindRestrict, kindTypeTag:
		moveType(t[8:])
	case kindArray:
		moveType(tail)
		moveType(tail[4:])
	case kindStruct, kindUnion: // struct btf_member
		for ; len(tail) > 0; tail = tail[12:] {
			moveName(tail)
			moveType(tail[4:])
		}
	case kindEnum, kindEnum64: // struct btf_enum or btf_enum64
		for ; len(tail) > 0; tail = tail[btfTails[kind].part:] {
			moveName(tail)
		}
	case kindInt, kindFwd, kindFloat:
	default:
		return fmt.Errorf("%w: type %d of kind %d is part of another", errBadBTF, id, kind)
	}
	return err
}

// moveName copies the string that a field refers to, and updates the field.
func (s *typeSelection) moveName(field []byte) error {
	old := order.Uint32(field)
	offset, ok := s.newNames[old]
	if !ok {
		name, err := s.name(old)
		if err != nil {
			return err
		}
		offset = uint32(len(s.newStrings))
		s.newStrings = append(append(s.newStrings, name...), 0)
		s.newNames[old] = offset
	}
	order.PutUint32(field, offset)
	return nil
}

// encode returns a header and the new types.
func (s *typeSelection) encode() []byte {
	b := make([]byte, 0, btfHeaderSize+len(s.newTypes)+len(s.newStrings))
	b = order.AppendUint16(b, btfMagic)
	b = append(b, 1, 0) // version and flags
	for _, v := range []int{btfHeaderSize, 0, len(s.newTypes), len(s.newTypes), len(s.newStrings)} {
		b = order.AppendUint32(b, uint32(v))
	}
	return append(append(b, s.newTypes...), s.newStrings...)
}
