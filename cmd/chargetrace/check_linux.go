package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"chargetrace/internal/capture"
)

// printCheck prints what this kernel and this user offer. It returns an error if that is
// not enough to trace.
func printCheck(w io.Writer) error {
	findings := capture.Check()
	if capture.FirstBlocking(findings, capture.Kprobe) == nil {
		findings = append(findings, capture.Try(capture.Kprobe), capture.TryNet())
	}
	if capture.FirstBlocking(findings, capture.Fentry) == nil {
		findings = append(findings, capture.Try(capture.Fentry))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-18s %-8s %s\n", "CHECK", "RESULT", "FOUND")
	for _, f := range findings {
		fmt.Fprintf(&b, "%-18s %-8s %s\n", f.Name, f.State, f.Detail)
		if f.Hint != "" {
			fmt.Fprintf(&b, "%-18s %-8s hint: %s\n", "", "", f.Hint)
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	switch blocked := capture.FirstBlocking(findings, capture.Auto); {
	case blocked != nil:
		return errors.New("this kernel cannot be traced by this user, for the reasons above")
	case capture.FirstBlocking(findings, capture.Kprobe) != nil:
		return &hintedError{errors.New("-attach kprobe, the default, does not work here"), "-attach fentry does"}
	}
	return nil
}
