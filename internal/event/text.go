package event

import (
	"strconv"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// Printable returns an untrusted name as [AppendPrintable] prints it.
func Printable[T string | []byte](name T) string { return string(AppendPrintable(nil, []byte(name))) }

// AppendPrintable appends an untrusted name to dst so that it is safe to print.
// Characters that a terminal could act on (control characters, escapes, characters
// that change the direction of the text) and invalid UTF-8 become \n, \x1b, \u202e
// and the like. A backslash becomes two, so that no two names print alike.
func AppendPrintable(dst, name []byte) []byte {
	// Nearly all names need no change.
	plain := 0
	for plain < len(name) && ' ' <= name[plain] && name[plain] < 0x7f && name[plain] != '\\' {
		plain++
	}
	dst = append(dst, name[:plain]...)
	name = name[plain:]

	for len(name) > 0 {
		c := name[0]
		if c < utf8.RuneSelf {
			switch {
			case c == '\\':
				dst = append(dst, `\\`...)
			case c == '\n':
				dst = append(dst, `\n`...)
			case c == '\t':
				dst = append(dst, `\t`...)
			case c < ' ' || c == 0x7f:
				dst = append(dst, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
			default:
				dst = append(dst, c)
			}
			name = name[1:]
			continue
		}
		r, size := utf8.DecodeRune(name)
		switch {
		case r == utf8.RuneError && size == 1:
			dst = append(dst, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		case strconv.IsPrint(r):
			dst = append(dst, name[:size]...)
		case r > 0xffff:
			dst = append(dst, `\U`...)
			for shift := 28; shift >= 0; shift -= 4 {
				dst = append(dst, hexDigits[r>>shift&15])
			}
		default:
			dst = append(dst, `\u`...)
			for shift := 12; shift >= 0; shift -= 4 {
				dst = append(dst, hexDigits[r>>shift&15])
			}
		}
		name = name[size:]
	}
	return dst
}
