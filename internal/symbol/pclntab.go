//go:build linux

package symbol

import (
	"bytes"
	"debug/elf"
	"strings"
)

// goSymbols returns the functions in the table of Go's runtime, which stripped files keep:
// .gopclntab in the format since Go 1.18, pcHeader in runtime/symtab.go. Package gosym
// would trust the count in the file. dynamic are the file's dynamic symbols.
func (i *image) goSymbols(f *elf.File, dynamic []symbol, names *[]byte) []symbol {
	table, text := goSections(f)
	order, word := f.ByteOrder, 8
	if f.Class == elf.ELFCLASS32 {
		word = 4
	}
	if len(table) < 8+8*word || order.Uint32(table)|1 != 0xfffffff1 || int(table[7]) != word {
		return nil
	}
	field := func(i int) uint64 {
		if word == 4 {
			return uint64(order.Uint32(table[8+i*word:]))
		}
		return order.Uint64(table[8+i*word:])
	}
	count, start, namesAt, namesEnd, entriesAt := field(0), field(2), field(3), field(4), field(7)
	if count > maxSymbols || namesAt > namesEnd || namesEnd > uint64(len(table)) || entriesAt+count*8+4 > uint64(len(table)) || entriesAt > uint64(len(table)) {
		return nil
	}
	const calledByC = "crosscall2"
	var called uint64
	for _, d := range dynamic {
		if string(nameAt(*names, d.name)) == calledByC {
			called = d.start
		}
	}
	symbols := make([]symbol, 0, count)
	for entry := entriesAt; entry < entriesAt+count*8; entry += 8 {
		at, next := order.Uint32(table[entry:]), order.Uint32(table[entry+8:])
		info := entriesAt + uint64(order.Uint32(table[entry+4:]))
		if next <= at || info+8 > uint64(len(table)) {
			continue
		}
		name := order.Uint32(table[info+4:])
		function := nameAt(table[namesAt:namesEnd], name)
		if len(function) == 0 {
			continue
		}
		symbols = append(symbols, symbol{uint64(at), next - at, uint32(len(*names)) + name, 0})

		// The table does not contain the start of the code since Go 1.26, nor in
		// position-independent files. Go's linker puts these functions at the start of
		// .text, and the entry point is one of them. With another linker, the function
		// that C calls is a dynamic symbol.
		switch {
		case bytes.HasPrefix(function, []byte("_rt0_")) && text+uint64(at) == f.Entry:
			start = text
		case string(function) == calledByC && called != 0:
			start = called - uint64(at)
		}
	}
	if start == 0 {
		return nil
	}
	*names = append(*names, table[namesAt:namesEnd]...)
	return i.moveInside(symbols, start)
}

// goSections returns the contents of .gopclntab and the address of .text.
func goSections(f *elf.File) (table []byte, text uint64) {
	for _, s := range f.Sections {
		if strings.HasSuffix(s.Name, ".gopclntab") {
			table = section(s, maxStringBytes)
		} else if s.Name == ".text" {
			text = s.Addr
		}
	}
	return table, text
}

// moveInside adds an offset to the symbols' addresses, and cuts them to their segments. It
// drops symbols outside all segments.
func (i *image) moveInside(symbols []symbol, offset uint64) []symbol {
	inside := symbols[:0]
	for _, s := range symbols {
		s.start += offset
		if end := i.segmentEnd(s.start); end != s.start {
			s.size = uint32(min(uint64(s.size), end-s.start))
			inside = append(inside, s)
		}
	}
	return inside
}
