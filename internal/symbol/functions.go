//go:build linux

package symbol

import (
	"bytes"
	"cmp"
	"slices"
)

// symbol is a function as some table tells of it.
type symbol struct {
	start uint64
	size  uint32
	name  uint32 // where its name begins, which ends in a NUL
	// rank says which of the names of one address to take: the lowest.
	rank uint32
}

// function is a function in memory: of a process, or of a file's own addresses.
type function struct {
	start uint64
	size  uint32
	name  uint32
}

// functions are the functions of a file, or of a perf map.
type functions struct {
	byStart []function
	names   []byte // each ends in a NUL
}

// maxNested is how many functions may begin between an address and the start of
// the function that it is in: parts of functions have names too.
const maxNested = 16

// find returns the name of the function that an address is in, and where that
// begins.
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

// nameAt returns the name that begins at a place of a table; none, if it is not
// there. Of what is too long to be demangled it returns the beginning: many symbols
// may have one endless name.
func nameAt(table []byte, at uint32) []byte {
	name := table[min(int(at), len(table)):]
	name = name[:min(len(name), maxMangled+1)]
	if end := bytes.IndexByte(name, 0); end >= 0 {
		return name[:end]
	}
	return name
}

// newFunctions sorts symbols, whose names are in a table. One without a size, as
// those of assembly are, goes up to the next, if it is not a part of another, and
// to the end of what is executable.
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

// maxFunction is more than the largest function has.
const maxFunction = 1 << 30
