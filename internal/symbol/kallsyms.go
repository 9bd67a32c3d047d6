//go:build linux

package symbol

import (
	"bufio"
	"bytes"
	"io"
	"math"
	"strings"
)

// Kernel resolves kernel addresses to functions. The zero value has no functions.
type Kernel struct{ functions functions }

// maxKernelFunction bounds the size of a kernel function: /proc/kallsyms has none.
const maxKernelFunction = 1<<16 + 1

// ReadKernel reads the functions of /proc/kallsyms. There are none if the kernel hides
// addresses from the reader (kernel.kptr_restrict).
func ReadKernel(kallsyms io.Reader) (Kernel, error) {
	// Room for the functions of most kernels: to grow costs more than to read.
	symbols, names := make([]symbol, 0, 1<<17), make([]byte, 0, 4<<20)
	err := Kallsyms(kallsyms, func(address uint64, kind byte, name []byte) bool {
		if address == 0 || strings.IndexByte("tTwW", kind) < 0 {
			return true
		}
		// The last of several names of one address wins.
		if n := len(symbols); n > 0 && symbols[n-1].start == address {
			symbols = symbols[:n-1] // a sorted table is sorted again at once
		}
		symbols = append(symbols, symbol{start: address, name: uint32(len(names)), rank: math.MaxUint32 - uint32(len(symbols))})
		from := len(names)
		names = append(append(names, name...), 0)
		if tab := bytes.IndexByte(names[from:], '\t'); tab >= 0 { // before the module
			names[from+tab] = ' '
		}
		return true
	})
	return Kernel{newFunctions(symbols, names, func(start uint64) uint64 { return start + maxKernelFunction })}, err
}

// Kallsyms calls yield for each line of /proc/kallsyms, until that returns false: for its
// address, type and name. The name of a module's symbol is followed by a tab and the
// module in brackets. Hidden addresses are 0.
func Kallsyms(r io.Reader, yield func(address uint64, kind byte, name []byte) bool) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		address, rest, ok := cutHex(lines.Bytes())
		if !ok || len(rest) < 3 || rest[0] != ' ' || rest[2] != ' ' {
			continue
		}
		if !yield(address, rest[1], rest[3:]) {
			return nil
		}
	}
	return lines.Err()
}

// cutHex cuts the hexadecimal number of at most 64 bits at the start of a line. A file has
// more than 100,000 lines: with strconv and bytes.Cut, each takes twice as long.
func cutHex(line []byte) (n uint64, rest []byte, ok bool) {
	for i, c := range line {
		switch {
		case '0' <= c && c <= '9':
			n = n<<4 | uint64(c-'0')
		case 'a' <= c && c <= 'f':
			n = n<<4 | uint64(c-'a'+10)
		default:
			return n, line[i:], 0 < i && i <= 16
		}
	}
	return 0, nil, false
}

// AppendFrame appends the function that contains an address and the offset in it, as
// "ext4_map_blocks [ext4]+0x3a", or the address if no function contains it.
func (k *Kernel) AppendFrame(dst []byte, address uint64) []byte {
	name, start, ok := k.functions.find(address)
	if !ok {
		return appendHex(dst, "0x", address)
	}
	return appendHex(append(dst, name...), "+0x", address-start)
}
