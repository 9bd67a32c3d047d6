// Package glob matches short names against shell patterns, with an automaton that the
// BPF program can run too. Its states are the bits of an integer, so that one step moves
// all of them (Baeza-Yates and Gonnet, 1992).
package glob

import (
	"errors"
	"fmt"
)

// Set is a set of patterns. A name matches if it matches any of them.
type Set struct {
	// Start are the states before the first byte, and End the accepting states after the
	// last.
	Start, End uint64
	// Accepts are the states that advance on a byte, and Loops those that stay on any
	// byte.
	Accepts [256]uint64
	Loops   uint64
}

// maxName is the length of the longest name: TASK_COMM_LEN - 1.
const maxName = 15

// maxStates is the maximum number of states: one for each byte, ? or [...] of all
// patterns, and one more for each pattern.
const maxStates = 64

// Compile returns the set of patterns. In a pattern, * matches any bytes, ? one byte,
// [a-z] one of these, and [^a-z] or [!a-z] one other than these. A \ makes the next
// byte literal.
func Compile(patterns ...string) (*Set, error) {
	s := &Set{}
	states := 0
	for _, p := range patterns {
		if states >= maxStates {
			return nil, errTooLong
		}
		s.Start |= 1 << states
		first := states
		for len(p) > 0 {
			if p[0] == '*' {
				s.Loops |= 1 << states
				p = p[1:]
				continue
			}
			accepts, rest, err := element(p)
			if err != nil {
				return nil, err
			}
			for c := 1; c < len(accepts); c++ { // a name has no NUL
				if accepts[c] {
					s.Accepts[c] |= 1 << states
				}
			}
			p = rest
			states++
			if states >= maxStates {
				return nil, errTooLong
			}
		}
		if n := states - first; n > maxName {
			return nil, fmt.Errorf("only names of %d bytes or more match, and those of threads have at most %d", n, maxName)
		}
		s.End |= 1 << states
		states++
	}
	return s, nil
}

var (
	errTooLong = fmt.Errorf("patterns have more than %d characters in total", maxStates)
	errClass   = errors.New("a [ without its ]")
	errEscape  = errors.New(`\ at the end of a pattern`)
)

// element returns the bytes that the first element of a pattern matches, and the rest
// of the pattern.
func element(p string) (accepts [256]bool, rest string, err error) {
	switch p[0] {
	case '?':
		for c := range accepts {
			accepts[c] = true
		}
		return accepts, p[1:], nil
	case '[':
		return class(p[1:])
	}
	c, rest, err := literal(p)
	accepts[c] = true
	return accepts, rest, err
}

// class parses a pattern after a [.
func class(p string) (accepts [256]bool, rest string, err error) {
	negated := len(p) > 0 && (p[0] == '^' || p[0] == '!')
	if negated {
		p = p[1:]
	}
	for first := true; ; first = false {
		if len(p) == 0 {
			return accepts, "", errClass
		}
		if p[0] == ']' && !first {
			break
		}
		var low, high byte
		if low, p, err = literal(p); err != nil {
			return accepts, "", err
		}
		high = low
		if len(p) > 1 && p[0] == '-' && p[1] != ']' {
			if high, p, err = literal(p[1:]); err != nil {
				return accepts, "", err
			}
		}
		for c := int(low); c <= int(high); c++ {
			accepts[c] = true
		}
	}
	if negated {
		for c := range accepts {
			accepts[c] = !accepts[c]
		}
	}
	return accepts, p[1:], nil
}

func literal(p string) (c byte, rest string, err error) {
	if p[0] != '\\' {
		return p[0], p[1:], nil
	}
	if len(p) == 1 {
		return 0, "", errEscape
	}
	return p[1], p[2:], nil
}

// Match reports whether a name matches.
func (s *Set) Match(name []byte) bool {
	states := s.Start
	for _, c := range name {
		states = (states&s.Accepts[c])<<1 | states&s.Loops
	}
	return states&s.End != 0
}
