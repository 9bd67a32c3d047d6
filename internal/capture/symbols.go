//go:build linux

package capture

import (
	"bufio"
	"bytes"
	"cmp"
	"io"
	"slices"
	"strconv"
)

// functions are those of the kernel, by address.
type functions struct {
	byAddress []function
	names     []byte // of all
}

type function struct {
	address uint64
	name    span // with its module, as in "ext4_map_blocks [ext4]"
}

// span is a part of the names.
type span struct{ from, to uint32 }

// maxFunction is more than the largest function has: what is further from a symbol
// is in none.
const maxFunction = 1 << 16

// parseSymbols reads the functions of /proc/kallsyms: lines of address, type, name
// and, after a tab, module in brackets. Where addresses are hidden from the reader
// (kernel.kptr_restrict) they are all 0, and there are none.
func parseSymbols(r io.Reader) (functions, error) {
	var f functions
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		hex, rest, _ := bytes.Cut(lines.Bytes(), []byte(" "))
		kind, name, ok := bytes.Cut(rest, []byte(" "))
		if !ok || len(kind) != 1 || !bytes.Contains([]byte("tTwW"), kind) {
			continue
		}
		address, err := strconv.ParseUint(string(hex), 16, 64)
		if err != nil || address == 0 {
			continue
		}
		from := len(f.names)
		f.names = append(f.names, name...)
		if i := bytes.IndexByte(f.names[from:], '\t'); i >= 0 {
			f.names[from+i] = ' '
		}
		f.byAddress = append(f.byAddress, function{address, span{uint32(from), uint32(len(f.names))}})
	}
	slices.SortStableFunc(f.byAddress, func(a, b function) int { return cmp.Compare(a.address, b.address) })
	return f, lines.Err()
}

// appendFrame appends what an address is in: the name and how far into it.
func (f *functions) appendFrame(dst []byte, address uint64) []byte {
	i, found := slices.BinarySearchFunc(f.byAddress, address, func(x function, a uint64) int { return cmp.Compare(x.address, a) })
	if !found {
		i--
	}
	if i < 0 || address-f.byAddress[i].address > maxFunction {
		return strconv.AppendUint(append(dst, "0x"...), address, 16)
	}
	x := &f.byAddress[i]
	dst = append(dst, f.names[x.name.from:x.name.to]...)
	dst = append(dst, "+0x"...)
	return strconv.AppendUint(dst, address-x.address, 16)
}
