package capture

import (
	"errors"
	"os"
	"slices"
)

// Attach is a way to attach a program to [Function].
type Attach string

const (
	// Default is Kprobe, and Fentry for the hooks that only [Options.Net] needs, where
	// the kernel has it.
	Default Attach = ""

	// The values of the -attach flag.

	// Kprobe needs CONFIG_KPROBES.
	Kprobe Attach = "kprobe"
	// Fentry needs BTF and ftrace's direct calls, and no kprobes.
	Fentry Attach = "fentry"
	// Auto is Default, and Fentry where that fails.
	Auto Attach = "auto"
)

// AllAttach are the values of the flag.
var AllAttach = []Attach{Kprobe, Fentry, Auto}

// ParseAttach returns the Attach of that name.
func ParseAttach(name string) (Attach, error) {
	if a := Attach(name); slices.Contains(AllAttach, a) {
		return a, nil
	}
	return "", errors.New("want kprobe, fentry or auto")
}

// DefaultBufferBytes is the default size of the ring buffer: over 11,900 charges. It is
// mapped twice, so it counts double in the tracer's memory.
const DefaultBufferBytes = 2 << 20

// MaxBufferBytes is the largest ring buffer: the kernel takes its size as a
// power of two in 32 bits.
const MaxBufferBytes = 1 << 31

// RoundBuffer returns the smallest size of a ring buffer that is at least
// bytes: a power of two of at least one page.
func RoundBuffer(bytes int) int {
	size := os.Getpagesize()
	for size < bytes {
		size *= 2
	}
	return size
}
