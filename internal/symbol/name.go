//go:build linux

package symbol

import (
	"unicode/utf8"

	"github.com/ianlancetaylor/demangle"

	"chargetrace/internal/event"
)

// maxName is how long a name gets, in bytes, and maxMangled the longest that is
// demangled: the time that takes grows with the square of its length, and 2048
// bytes take less than a millisecond.
const (
	maxName    = 256
	maxMangled = 2048
)

// appendName appends the name of a function as C++ or Rust has it, if it is one of
// theirs: without parameters, and where that is too long, without those of templates
// either, so that the end of the name is seen.
func appendName(dst, name []byte) []byte {
	// Both mangle names so that they begin with "_", or on some systems more.
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

// demangled guards against names that the library does not expect.
func demangled(name string, options ...demangle.Option) (text string) {
	defer func() {
		if recover() != nil {
			text = name
		}
	}()
	return demangle.Filter(name, options...)
}

// appendText appends text from outside as it may be printed, in at most maxName
// bytes. A ';' separates frames, and becomes ':'.
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
