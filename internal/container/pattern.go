package container

import (
	"path"
	"strings"
)

// MinIDDigits is the number of digits from which on a pattern can be the beginning of an id:
// short names such as db are hexadecimal numbers too.
const MinIDDigits = 4

// CheckPattern returns an error if a pattern has wrong syntax.
func CheckPattern(pattern string) error {
	_, err := path.Match(pattern, "")
	return err
}

// IsHex reports whether a pattern consists of hexadecimal digits, as ids do.
func IsHex(pattern string) bool {
	return pattern != "" && strings.Trim(pattern, "0123456789abcdef") == ""
}

// Match reports whether a name is the pattern, or matches it as [path.Match] does. A pattern that
// is a name can have a backslash, as names of units do.
func Match(pattern, name string) bool {
	if pattern == name {
		return name != ""
	}
	ok, err := path.Match(pattern, name)
	return ok && err == nil && name != ""
}

// MatchContainer reports whether a pattern matches the container's name, or is the beginning of
// its id.
func (i Identity) MatchContainer(pattern string) (byName, byID bool) {
	byID = len(pattern) >= MinIDDigits && IsHex(pattern) && strings.HasPrefix(i.ID, pattern)
	return i.IsContainer() && Match(pattern, i.Name), byID
}

// MatchPod reports whether a pattern matches the pod's NAMESPACE/POD, its name in any namespace
// if the pattern has no slash, or is its UID.
func (i Identity) MatchPod(pattern string) bool {
	if i.PodUID == pattern && pattern != "" {
		return true
	}
	if strings.Contains(pattern, "/") {
		return Match(pattern, i.PodName())
	}
	return Match(pattern, i.Pod)
}

// MatchNamespace reports whether a pattern matches the namespace of the pod.
func (i Identity) MatchNamespace(pattern string) bool { return Match(pattern, i.Namespace) }
