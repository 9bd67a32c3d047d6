package capture

import (
	"errors"
	"os"
	"slices"
)

// Attach is a way to attach the programs.
type Attach string

const (
	// Default is Kprobe, and Fentry for the hooks that only [Options.Net] needs, if the
	// kernel supports it.
	Default Attach = ""

	// The values of the -attach flag.

	// Kprobe needs CONFIG_KPROBES.
	Kprobe Attach = "kprobe"
	// Fentry needs BTF and ftrace's direct calls, but no kprobes.
	Fentry Attach = "fentry"
	// Auto is Default, or Fentry if that fails.
	Auto Attach = "auto"
)

// AllAttach are the values of the -attach flag.
var AllAttach = []Attach{Kprobe, Fentry, Auto}

// ParseAttach returns the Attach with a name.
func ParseAttach(name string) (Attach, error) {
	if a := Attach(name); slices.Contains(AllAttach, a) {
		return a, nil
	}
	return "", errors.New("want kprobe, fentry or auto")
}

// DefaultBufferBytes is the default size of the ring buffer: over 11,900 charges. It is
// mapped twice, so it counts double in the tracer's memory.
const DefaultBufferBytes = 2 << 20

// MaxBufferBytes is the largest ring buffer: its size must be a power of two that fits in
// 32 bits.
const MaxBufferBytes = 1 << 31

// RoundBuffer rounds up to the size of a ring buffer: a power of two of at least one page.
func RoundBuffer(bytes int) int {
	size := os.Getpagesize()
	for size < bytes {
		size *= 2
	}
	return size
}
