package capture

import (
	"bufio"
	"bytes"
	"cmp"
	"io"
	"slices"
	"strconv"
)

// function is one of the kernel.
type function struct {
	address uint64
	name    string // with its module, as in "ext4_map_blocks [ext4]"
}

// functions are those of the kernel, by address.
type functions []function

// maxFunction is more than the largest function has: what is further from a symbol
// is in none.
const maxFunction = 1 << 20

// parseSymbols reads the functions of /proc/kallsyms: lines of address, type, name
// and, in brackets, module. Where addresses are hidden from the reader
// (kernel.kptr_restrict) they are all 0, and there are none.
func parseSymbols(r io.Reader) (functions, error) {
	var symbols functions
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := bytes.Fields(lines.Bytes())
		if len(f) < 3 || len(f[1]) != 1 || !bytes.Contains([]byte("tTwW"), f[1]) {
			continue
		}
		address, err := strconv.ParseUint(string(f[0]), 16, 64)
		if err != nil || address == 0 {
			continue
		}
		name := string(f[2])
		if len(f) > 3 {
			name += " " + string(f[3])
		}
		symbols = append(symbols, function{address, name})
	}
	slices.SortStableFunc(symbols, func(a, b function) int { return cmp.Compare(a.address, b.address) })
	return symbols, lines.Err()
}

// appendFrame appends what an address is in: the name and how far into it.
func (f functions) appendFrame(dst []byte, address uint64) []byte {
	i, found := slices.BinarySearchFunc(f, address, func(x function, a uint64) int { return cmp.Compare(x.address, a) })
	if !found {
		i--
	}
	if i < 0 || address-f[i].address > maxFunction {
		return strconv.AppendUint(append(dst, "0x"...), address, 16)
	}
	dst = append(dst, f[i].name...)
	dst = append(dst, "+0x"...)
	return strconv.AppendUint(dst, address-f[i].address, 16)
}
