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
			return upToNUL(f.names, x.name), x.start, true
		}
	}
	return nil, 0, false
}

func (f *functions) bytes() int { return len(f.byStart)*16 + len(f.names) }

// upToNUL returns the bytes from a place on; none, if it is not there.
func upToNUL(table []byte, at uint32) []byte {
	if uint64(at) >= uint64(len(table)) {
		return nil
	}
	if end := bytes.IndexByte(table[at:], 0); end >= 0 {
		return table[at : int(at)+end]
	}
	return nil
}

// newFunctions sorts symbols, whose names are in a table. One without a size, as
// those of assembly are, goes up to the next, if it is not a part of another, and
// to the end of what is executable.
func newFunctions(symbols []symbol, names []byte, end func(address uint64) uint64) functions {
	slices.SortFunc(symbols, func(a, b symbol) int {
		if c := cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.rank, b.rank)); c != 0 {
			return c
		}
		return bytes.Compare(upToNUL(names, a.name), upToNUL(names, b.name))
	})
	symbols = slices.CompactFunc(symbols, func(a, b symbol) bool { return a.start == b.start })

	f := functions{byStart: make([]function, 0, len(symbols))}
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
		name := upToNUL(names, s.name)
		f.byStart = append(f.byStart, function{s.start, s.size, uint32(len(f.names))})
		f.names = append(append(f.names, name[:min(len(name), maxMangled+1)]...), 0)
	}
	f.names = slices.Clip(f.names)
	return f
}

// maxFunction is more than the largest function has.
const maxFunction = 1 << 30
