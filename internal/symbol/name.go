//go:build linux

package symbol

import (
	"unicode/utf8"

	"github.com/ianlancetaylor/demangle"

	"chargetrace/internal/event"
)

// maxName is the longest name returned, and maxMangled the longest demangled, in bytes.
// Demangling takes time quadratic in the length, and under a millisecond for 2048 bytes.
const (
	maxName    = 256
	maxMangled = 2048
)

// appendName appends the name of a function, demangled if it is of C++ or Rust. It omits
// parameters, and in long names also template parameters, so that the end is kept.
func appendName(dst, name []byte) []byte {
	// Mangled names of both start with at least one "_".
	if len(name) < 3 || name[0] != '_' || len(name) > maxMangled {
		return appendText(dst, name)
	}
	s := string(name)
	text := demangled(s, demangle.NoParams, demangle.NoEnclosingParams, demangle.MaxLength(12))
	if len(text) > maxName {
		text = demangled(s, demangle.NoParams, demangle.NoEnclosingParams, demangle.NoTemplateParams, demangle.MaxLength(12))
	}
	return appendText(dst, []byte(text))
}

// demangled demangles a name. It returns the name unchanged if the library panics.
func demangled(name string, options ...demangle.Option) (text string) {
	defer func() {
		if recover() != nil {
			text = name
		}
	}()
	return demangle.Filter(name, options...)
}

// appendText appends untrusted text in printable form, at most maxName bytes. It replaces
// ';', which separates frames, by ':'.
func appendText(dst, text []byte) []byte {
	const more = "…"
	start := len(dst)
	dst = event.AppendPrintable(dst, text[:min(len(text), maxName+1)])
	for i := start; i < len(dst); i++ {
		if dst[i] == ';' {
			dst[i] = ':'
		}
	}
	if len(dst)-start > maxName {
		end := start + maxName - len(more)
		for !utf8.RuneStart(dst[end]) {
			end--
		}
		dst = append(dst[:end], more...)
	}
	return dst
}
