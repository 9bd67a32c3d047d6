//go:build linux

package symbol

import (
	"bytes"
	"cmp"
	"slices"
)

// symbol is an entry of a symbol table: a function.
type symbol struct {
	start uint64
	size  uint32
	name  uint32 // offset of its NUL-terminated name
	// rank decides between several names of one address: the lowest wins.
	rank uint32
}

// function is a function at addresses of a process or of a file.
type function struct {
	start uint64
	size  uint32
	name  uint32
}

// functions are the functions of a file or a perf map.
type functions struct {
	byStart []function
	names   []byte // NUL-terminated
}

// maxNested bounds how many functions may start between an address and the start of the
// function that contains it: parts of functions have names too.
const maxNested = 16

// find returns the name and the start of the function that contains an address.
func (f *functions) find(address uint64) (name []byte, start uint64, ok bool) {
	i, found := slices.BinarySearchFunc(f.byStart, address, func(x function, a uint64) int { return cmp.Compare(x.start, a) })
	if !found {
		i--
	}
	for last := i - maxNested; i >= 0 && i > last; i-- {
		if x := f.byStart[i]; address-x.start < uint64(x.size) {
			return nameAt(f.names, x.name), x.start, true
		}
	}
	return nil, 0, false
}

func (f *functions) bytes() int { return len(f.byStart)*16 + len(f.names) }

// nameAt returns the name at an offset of a table, or none if the offset is outside it. A
// name too long to demangle is cut: many symbols may share one endless name.
func nameAt(table []byte, at uint32) []byte {
	name := table[min(int(at), len(table)):]
	name = name[:min(len(name), maxMangled+1)]
	if end := bytes.IndexByte(name, 0); end >= 0 {
		return name[:end]
	}
	return name
}

// newFunctions sorts symbols and copies their names from a table. A symbol without a size,
// as in assembly, extends to the next symbol or to end, unless it lies inside another.
func newFunctions(symbols []symbol, names []byte, end func(address uint64) uint64) functions {
	slices.SortFunc(symbols, func(a, b symbol) int {
		if a.start != b.start {
			return cmp.Compare(a.start, b.start)
		}
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.name, b.name))
	})
	symbols = slices.CompactFunc(symbols, func(a, b symbol) bool { return a.start == b.start })

	f := functions{byStart: make([]function, 0, len(symbols)), names: make([]byte, 0, min(len(names), maxStringBytes))}
	var covered uint64
	for i, s := range symbols {
		if s.size == 0 {
			if s.start < covered {
				continue
			}
			next := end(s.start)
			if i+1 < len(symbols) {
				next = min(next, symbols[i+1].start)
			}
			s.size = uint32(min(next-s.start, maxFunction))
		}
		covered = max(covered, s.start+uint64(s.size))
		name := nameAt(names, s.name)
		if len(f.names)+len(name) > maxStringBytes {
			break // the symbols share long names
		}
		f.byStart = append(f.byStart, function{s.start, s.size, uint32(len(f.names))})
		f.names = append(append(f.names, name...), 0)
	}
	f.names = slices.Clip(f.names)
	return f
}

// maxFunction exceeds the size of the largest function, in bytes.
const maxFunction = 1 << 30
