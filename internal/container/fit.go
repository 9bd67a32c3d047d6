package container

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// Fit shortens a printable label to a number of characters. It drops what says least, and never
// cuts inside a name: the shortest form can be wider. "app/worker · 3f2a7c1e6b9d · shop/cart-7d9f"
// becomes, in turn,
//
//	app/worker · 3f2a7c1e6b9d · …/cart-7d9f
//	app/worker · 3f2a7c1e6b9d
//	…/worker · 3f2a7c1e6b9d
//	…/worker · 3f2a7c1e
//	…/worker 3f2a7c1e
//
// Other labels keep their last component: …/system.slice/leaky, …/leaky.
func Fit(label string, width int) string {
	if fits(label, width) {
		return label
	}
	parts := strings.Split(label, Separator)
	switch {
	case strings.HasPrefix(label, "/"), len(parts) == 1 && !startsWithID(label):
		return fitPath(label, width)
	case len(parts) == 1:
		return label
	}
	forms := forms(parts)
	for _, form := range forms {
		if fits(form, width) {
			return form
		}
	}
	return forms[len(forms)-1]
}

// FitAll shortens the labels of a list. Two that would become the same stay as they are.
func FitAll(labels []string, width int) []string {
	short, count := make([]string, len(labels)), make(map[string]int)
	for i, label := range labels {
		short[i] = Fit(label, width)
		count[short[i]]++
	}
	for i, label := range labels {
		if count[short[i]] > 1 {
			short[i] = label
		}
	}
	return short
}

func fits(s string, width int) bool {
	return len(s) <= width || utf8.RuneCountInString(s) <= width
}

// forms returns the shorter forms of a label of several parts, the longest first.
func forms(parts []string) (forms []string) {
	last := len(parts) - 1
	join := func(parts ...string) { forms = append(forms, strings.Join(parts, Separator)) }
	const shortDigits = 8
	of := slices.IndexFunc(parts[:min(2, len(parts))], startsWithID)
	if of < 0 {
		parts = append([]string{lastComponent(parts[0])}, parts[1:]...)
		join(parts...)
		return append(forms, strings.Join(parts, " "))
	}
	if of < last { // the pod, or the user
		join(append(slices.Clone(parts[:last]), lastComponent(parts[last]))...)
		join(parts[:of+1]...)
	}
	if of == 0 { // a container without a name
		return forms
	}
	name, short := lastComponent(parts[0]), parts[1][:shortDigits]
	join(name, parts[1])
	join(name, short)
	return append(forms, name+" "+short)
}

// startsWithID reports whether a part of a label is a short id, or a path below it.
func startsWithID(s string) bool {
	const digits = 12
	id, _, _ := strings.Cut(s, "/")
	return len(id) == digits && IsHex(id)
}

// lastComponent returns …/c for a/b/c.
func lastComponent(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 && i < len(path)-1 {
		return "…" + path[i:]
	}
	return path
}

// fitPath returns as many of the last components of a path as fit, but at least one.
func fitPath(path string, width int) string {
	left := utf8.RuneCountInString(path)
	for i, r := range path {
		if r == '/' && i > 0 && left+len("/") <= width {
			return "…" + path[i:]
		}
		left--
	}
	if short := lastComponent(path); utf8.RuneCountInString(short) < utf8.RuneCountInString(path) {
		return short
	}
	return path
}
