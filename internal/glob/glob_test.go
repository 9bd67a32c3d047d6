package glob

import (
	"path"
	"strings"
	"testing"
)

func TestMatch(t *testing.T) {
	for _, tc := range []struct{ patterns, yes, no string }{
		{"java", "java", "jav javaw"},
		{"java nginx", "java nginx", "javanginx"},
		{"kworker/*", "kworker/ kworker/0:1", "kworker"},
		{"*ab*", "ab aab xaabx abab", "a b ba"},
		{"a?c", "abc a?c a\xffc", "ac abbc"},
		{"[a-cx]", "a b c x", "d - ["},
		{"[^a-c]", "d ^", "a dd"},
		{"[!a] [^]]", "b a", "ab"}, // two patterns
		{"[]x]", "] x", "[]x]"},
		{"[a-]", "a -", "b"},
		{`\* \[a`, "* [a", "a b"},
		{"*", "x kworker/0:1", ""},
		{"a**b", "ab axb", "a"},
	} {
		s, err := Compile(strings.Fields(tc.patterns)...)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range strings.Fields(tc.yes) {
			if !s.Match([]byte(name)) {
				t.Errorf("%s does not match %q", tc.patterns, name)
			}
		}
		for _, name := range strings.Fields(tc.no) {
			if s.Match([]byte(name)) {
				t.Errorf("%s matches %q", tc.patterns, name)
			}
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	for _, pattern := range []string{"[", "[a", "[]", "[^", `\`, `[\`, strings.Repeat("x", 16), "*" + strings.Repeat("?", 16)} {
		if _, err := Compile(pattern); err == nil {
			t.Errorf("accepted %q", pattern)
		}
	}
	longest := strings.Repeat("x", 15)
	if _, err := Compile(longest, longest, longest, longest); err != nil {
		t.Error(err)
	}
	if _, err := Compile(longest, longest, longest, longest, "y"); err == nil {
		t.Error("accepted 66 states")
	}
}

// FuzzMatch compares Match with path.Match on patterns that mean the same to both.
func FuzzMatch(f *testing.F) {
	f.Add("a*[b-d]?", "axxc1")
	f.Add(`*\**`, "a*b")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		s, err := Compile(pattern)
		if err != nil || strings.ContainsAny(pattern+name, "/!\x00") || strings.Contains(pattern, "[]") || strings.Contains(pattern, "[^]") {
			return
		}
		for _, c := range pattern + name {
			if c >= 0x80 { // path.Match matches characters, Match bytes
				return
			}
		}
		if want, err := path.Match(pattern, name); err == nil && s.Match([]byte(name)) != want {
			t.Errorf("%q matches %q: %v", pattern, name, !want)
		}
	})
}
