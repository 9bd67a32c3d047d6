package capture

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"

	"chargetrace/internal/event"
)

// symbol is a function of the kernel.
type symbol struct {
	address uint64
	name    string // with its module, as in "ext4_map_blocks [ext4]"
}

// stacks are the kernel stacks of a trace.
type stacks struct {
	kernel  *ebpf.Map
	symbols []symbol // by address
	told    map[uint32]bool
}

// stackDepth is STACK_DEPTH of the BPF program, and maxStacks how many different
// stacks there can be.
const (
	stackDepth = 64
	maxStacks  = 1 << 14
)

func newStacks(kernel *ebpf.Map) (*stacks, error) {
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return nil, fmt.Errorf("read the kernel's symbols: %w", err)
	}
	defer f.Close()
	symbols, err := parseSymbols(f)
	if err != nil {
		return nil, fmt.Errorf("read the kernel's symbols: %w", err)
	}
	return &stacks{kernel, symbols, make(map[uint32]bool)}, nil
}

// maxFunction is more than the largest function has: what is further from a symbol
// is in none.
const maxFunction = 1 << 20

// parseSymbols reads the functions of /proc/kallsyms: lines of address, type, name
// and, in brackets, module. Where addresses are hidden from the reader
// (kernel.kptr_restrict) they are all 0, and there are none.
func parseSymbols(r io.Reader) ([]symbol, error) {
	var symbols []symbol
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
		symbols = append(symbols, symbol{address, name})
	}
	slices.SortStableFunc(symbols, func(a, b symbol) int { return cmp.Compare(a.address, b.address) })
	return symbols, lines.Err()
}

// appendFrame appends what an address is in: the name and how far into it.
func (s *stacks) appendFrame(dst []byte, address uint64) []byte {
	i, found := slices.BinarySearchFunc(s.symbols, address, func(x symbol, a uint64) int { return cmp.Compare(x.address, a) })
	if !found {
		i--
	}
	if i < 0 || address-s.symbols[i].address > maxFunction {
		return strconv.AppendUint(append(dst, "0x"...), address, 16)
	}
	dst = append(dst, s.symbols[i].name...)
	dst = append(dst, "+0x"...)
	return strconv.AppendUint(dst, address-s.symbols[i].address, 16)
}

// tell returns the event that tells of a stack.
func (s *stacks) tell(number uint32) (event.Event, error) {
	s.told[number] = true
	var addresses [stackDepth * 8]byte
	if err := s.kernel.Lookup(number-1, &addresses); err != nil {
		return event.Event{}, fmt.Errorf("read a kernel stack: %w", err)
	}
	var frames []byte
	for b := addresses[:]; len(b) > 0; b = b[8:] {
		address := binary.NativeEndian.Uint64(b)
		if address == 0 {
			break
		}
		if len(frames) > 0 {
			frames = append(frames, ';')
		}
		frames = s.appendFrame(frames, address)
	}
	return event.Event{Type: event.KernelStack, KernelStack: number, Frames: string(frames)}, nil
}
