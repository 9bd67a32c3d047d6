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

// imageKey tells files apart. The time of the last change (ctime) is none that a
// file's owner can set.
type imageKey struct {
	dev, ino uint64
	size     int64
	ctime    unix.Timespec
}

// image is a file as far as addresses are concerned. A file that is not ELF has
// none of this.
type image struct {
	buildID   []byte
	segments  []segment
	functions functions
	// used is the Resolver's clock at the last use.
	used uint64
	// evicted says that the functions have been dropped.
	evicted bool
}

// segment is executable memory that is loaded from a file (PT_LOAD).
type segment struct {
	offset, size uint64 // in the file
	address      uint64
}

// What is read of a file at most. Only debug builds of browsers have more; they
// are named as files without symbols are.
const (
	maxHeaderBytes = 64 << 10 // package elf takes the square of it, for sections that share a name
	maxNoteBytes   = 64 << 10
	maxBuildID     = 64
	maxSymbols     = 1 << 20
	maxStringBytes = 64 << 20
	maxSegments    = 64
)

// readImage reads an ELF file. symtab reports whether it has its full table of
// symbols.
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

// openELF reads a file's headers. Package elf trusts the sizes in them, and does
// not promise not to panic.
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
	errBudget = errors.New("more than is read of a file")
)

// budget lets so many bytes be read.
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

// debugDir has the symbols of stripped files, by their build ids. It is ours: what a
// container has there could lie about files that others map too.
const debugDir = "/usr/lib/debug/.build-id"

// readDebug takes the functions of a stripped file from where its symbols are.
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

// buildID returns the build id in the notes of a file; see elf(5).
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

// virtual returns the address that an offset in the file has there.
func (i *image) virtual(offset uint64) (address uint64, ok bool) {
	for _, s := range i.segments {
		if offset-s.offset < s.size {
			return offset - s.offset + s.address, true
		}
	}
	return 0, false
}

// segmentEnd returns the end of the segment that an address is in; the address
// itself, if it is in none.
func (i *image) segmentEnd(address uint64) uint64 {
	for _, s := range i.segments {
		if address-s.address < s.size {
			return s.address + s.size
		}
	}
	return address
}

// section reads a section of a file; nil, if it is not there or too large.
func section(s *elf.Section, most int) []byte {
	if s.Type == elf.SHT_NOBITS || s.Flags&elf.SHF_COMPRESSED != 0 || s.FileSize > uint64(most) {
		return nil
	}
	// The size may be a lie: read its end before memory is taken for it.
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

// symbols returns the functions of a table of symbols, and appends its names.
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

// rank prefers, of the names of one address, those with a size, those that others
// link to, and those with the fewest underscores before them: malloc to
// __libc_malloc.
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
