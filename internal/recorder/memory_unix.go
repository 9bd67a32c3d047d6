//go:build unix

package recorder

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Memory returns memory for events, which is never freed. It is no part of the heap: the garbage
// collector would let the heap grow by a multiple of it.
func Memory(bytes int) ([]byte, error) {
	memory, err := unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("reserve %d bytes of memory for events: %w", bytes, err)
	}
	return memory, nil
}
