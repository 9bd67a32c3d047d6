//go:build linux

package symbol

import (
	"bytes"
	"debug/elf"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// imageKey identifies a version of a file. A file's owner cannot set its ctime.
type imageKey struct {
	dev, ino uint64
	size     int64
	ctime    unix.Timespec
}

// image is a file's information about its addresses. It is empty if the file is not ELF.
type image struct {
	buildID   []byte
	segments  []segment
	functions functions
	// used is the Resolver's clock at the last use.
	used uint64
	// evicted is set once the functions are dropped.
	evicted bool
}

// segment is an executable segment of a file (PT_LOAD).
type segment struct {
	offset, size uint64 // in the file
	address      uint64
}

// Limits for one file. Only debug builds of browsers exceed them; those are treated as
// files without symbols.
const (
	maxHeaderBytes = 64 << 10 // package elf allocates the square of it if sections share a name
	maxNoteBytes   = 64 << 10
	maxBuildID     = 64
	maxSymbols     = 1 << 20
	maxStringBytes = 64 << 20
	maxSegments    = 64
)

// readImage reads an ELF file. symtab reports whether it has a full symbol table.
func readImage(r io.ReaderAt) (i *image, symtab bool) {
	i = &image{}
	f, err := openELF(r)
	if err != nil {
		return i, false
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && p.Flags&elf.PF_X != 0 && p.Vaddr+p.Filesz >= p.Vaddr && len(i.segments) < maxSegments {
			i.segments = append(i.segments, segment{p.Off, p.Filesz, p.Vaddr})
		}
	}
	i.buildID = buildID(f)
	var names []byte
	symbols := i.symbols(f, elf.SHT_SYMTAB, &names)
	symtab = len(symbols) > 0
	if !symtab {
		symbols = i.symbols(f, elf.SHT_DYNSYM, &names)
		symbols = append(symbols, i.goSymbols(f, symbols, &names)...)
	}
	i.functions = newFunctions(symbols, names, i.segmentEnd)
	return i, symtab
}

// openELF reads the headers of a file. Package elf trusts the sizes in them, and may
// panic.
func openELF(r io.ReaderAt) (f *elf.File, err error) {
	defer func() {
		if recover() != nil {
			err = errNotELF
		}
	}()
	b := &budget{r, maxHeaderBytes}
	f, err = elf.NewFile(b)
	b.left = maxSymbols*elf.Sym64Size + 2*maxStringBytes + maxHeaderBytes
	return f, err
}

var (
	errNotELF = errors.New("not an ELF file")
	errBudget = errors.New("file exceeds the limit of bytes to read")
)

// budget allows a number of bytes to be read.
type budget struct {
	io.ReaderAt
	left int
}

func (b *budget) ReadAt(p []byte, offset int64) (int, error) {
	if len(p) > b.left {
		return 0, errBudget
	}
	b.left -= len(p)
	return b.ReaderAt.ReadAt(p, offset)
}

// debugDir holds the symbols of stripped files by build id. It is the host's: that of a
// container could lie about files that others map too.
const debugDir = "/usr/lib/debug/.build-id"

// readDebug reads the functions of a stripped file from its debug file in dir.
func (i *image) readDebug(dir string) {
	if len(i.buildID) < 2 {
		return
	}
	id := hex.EncodeToString(i.buildID)
	file, err := os.Open(filepath.Join(dir, id[:2], id[2:]+".debug"))
	if err != nil {
		return
	}
	defer file.Close()
	f, err := openELF(file)
	if err != nil || !bytes.Equal(buildID(f), i.buildID) {
		return
	}
	var names []byte
	if symbols := i.symbols(f, elf.SHT_SYMTAB, &names); len(symbols) > 0 {
		i.functions = newFunctions(symbols, names, i.segmentEnd)
	}
}

const ntGNUBuildID = 3 // NT_GNU_BUILD_ID

// buildID returns the build id from the notes of a file; see elf(5).
func buildID(f *elf.File) []byte {
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > maxNoteBytes {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			continue
		}
		padding := uint64(3)
		if p.Align == 8 {
			padding = 7
		}
		for len(notes) >= 12 {
			nameSize, size := uint64(f.ByteOrder.Uint32(notes)), uint64(f.ByteOrder.Uint32(notes[4:]))
			at := (12 + nameSize + padding) &^ padding
			end := at + size
			if end > uint64(len(notes)) {
				break
			}
			if f.ByteOrder.Uint32(notes[8:]) == ntGNUBuildID && size <= maxBuildID && string(notes[12:12+nameSize]) == "GNU\x00" {
				return notes[at:end:end]
			}
			notes = notes[min((end+padding)&^padding, uint64(len(notes))):]
		}
	}
	return nil
}

// virtual converts a file offset to an address of the file.
func (i *image) virtual(offset uint64) (address uint64, ok bool) {
	for _, s := range i.segments {
		if offset-s.offset < s.size {
			return offset - s.offset + s.address, true
		}
	}
	return 0, false
}

// segmentEnd returns the end of the segment that contains an address, or the address
// itself if none does.
func (i *image) segmentEnd(address uint64) uint64 {
	for _, s := range i.segments {
		if address-s.address < s.size {
			return s.address + s.size
		}
	}
	return address
}

// section reads a section of a file. It returns nil if it is absent or larger than most.
func section(s *elf.Section, most int) []byte {
	if s.Type == elf.SHT_NOBITS || s.Flags&elf.SHF_COMPRESSED != 0 || s.FileSize > uint64(most) {
		return nil
	}
	// The size may be a lie: read the last byte before allocating.
	var last [1]byte
	if s.FileSize == 0 {
		return nil
	}
	if _, err := s.ReadAt(last[:], int64(s.FileSize)-1); err != nil {
		return nil
	}
	data := make([]byte, s.FileSize)
	if _, err := s.ReadAt(data, 0); err != nil {
		return nil
	}
	return data
}

// symbols returns the functions of a symbol table, and appends their names to names.
func (i *image) symbols(f *elf.File, kind elf.SectionType, names *[]byte) (symbols []symbol) {
	entry := elf.Sym64Size
	if f.Class == elf.ELFCLASS32 {
		entry = elf.Sym32Size
	}
	for _, s := range f.Sections {
		if s.Type != kind || s.Link >= uint32(len(f.Sections)) {
			continue
		}
		table, strings := section(s, maxSymbols*entry), section(f.Sections[s.Link], maxStringBytes)
		for ; len(table) >= entry; table = table[entry:] {
			name, info, index, value, size := f.ByteOrder.Uint32(table), table[4], f.ByteOrder.Uint16(table[6:]), uint64(0), uint64(0)
			if f.Class == elf.ELFCLASS32 {
				value, size = uint64(f.ByteOrder.Uint32(table[4:])), uint64(f.ByteOrder.Uint32(table[8:]))
				info, index = table[12], f.ByteOrder.Uint16(table[14:])
				if f.Machine == elf.EM_ARM {
					value &^= 1 // Thumb
				}
			} else {
				value, size = f.ByteOrder.Uint64(table[8:]), f.ByteOrder.Uint64(table[16:])
			}
			if t := elf.ST_TYPE(info); t != elf.STT_FUNC && t != elf.STT_GNU_IFUNC || index == uint16(elf.SHN_UNDEF) {
				continue
			}
			end := i.segmentEnd(value)
			text := nameAt(strings, name)
			if value == end || len(text) == 0 {
				continue
			}
			symbols = append(symbols, symbol{value, uint32(min(size, end-value, maxFunction)), uint32(len(*names)) + name, rank(text, info, size)})
		}
		*names = append(*names, strings...)
		return symbols
	}
	return nil
}

// rank orders the names of one address. It prefers a symbol with a size, then one that is
// not local, then the fewest leading underscores: malloc over __libc_malloc.
func rank(name []byte, info byte, size uint64) uint32 {
	underscores := len(name) - len(bytes.TrimLeft(name, "_"))
	r := uint32(min(underscores, 255))
	if elf.ST_BIND(info) == elf.STB_LOCAL {
		r |= 1 << 8
	}
	if size == 0 {
		r |= 1 << 9
	}
	return r
}
