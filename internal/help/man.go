package help

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// Man returns the text as a man page in the format of man(7).
func (t Text) Man() string {
	var b strings.Builder
	command, _, _ := strings.Cut(t.Synopsis[0], " ")
	fmt.Fprintf(&b, ".TH %s 1 \"\" %s\n", strings.ToUpper(command), command)

	intro := strings.Join(t.Intro, "\n\n")
	name := []rune(intro[:strings.IndexAny(intro+".", ":.")])
	name[0] = unicode.ToLower(name[0])
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", command, escape(string(name)))

	b.WriteString(".SH SYNOPSIS\n")
	for i, line := range t.Synopsis {
		if i > 0 {
			b.WriteString(".br\n")
		}
		command, rest, _ := strings.Cut(line, " ")
		fmt.Fprintf(&b, "\\fB%s\\fR %s\n", escape(command), italic(rest))
	}
	fmt.Fprintf(&b, ".SH DESCRIPTION\n%s", paragraphs(intro))

	inFlags := false
	for _, s := range t.Sections {
		isFlags := strings.HasPrefix(s.Entries[0].Head, "-")
		if isFlags && !inFlags {
			b.WriteString(".SH OPTIONS\n")
		}
		inFlags = isFlags
		switch {
		case !isFlags:
			fmt.Fprintf(&b, ".SH %s\n", escape(strings.ToUpper(s.Title)))
		case s.Title == "":
			b.WriteString(".SS Other\n")
		default:
			fmt.Fprintf(&b, ".SS %s\n", escape(s.Title))
		}
		for _, e := range s.Entries {
			head := `\fB` + escape(e.Head) + `\fR`
			if flag, value, ok := strings.Cut(e.Head, " "); ok && isFlags {
				head = `\fB` + escape(flag) + `\fR ` + italic(value)
			}
			fmt.Fprintf(&b, ".TP\n%s\n%s", head, paragraphs(strings.Join(e.Body, "\n")))
		}
	}

	notes, status, _ := strings.Cut(strings.Join(t.Closing, "\n\n"), "Exit status: ")
	if status != "" {
		fmt.Fprintf(&b, ".SH EXIT STATUS\n%s", paragraphs(status))
	}
	if notes = strings.TrimSpace(notes); notes != "" {
		fmt.Fprintf(&b, ".SH NOTES\n%s", paragraphs(notes))
	}
	b.WriteString(".SH SEE ALSO\n.BR bpftrace (8),\n.BR strace (1),\n.BR cgroups (7)\n")
	return b.String()
}

// roff escapes the characters that have a meaning in roff, or that it replaces by
// typographic ones.
var roff = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `"`, `\(dq`, `'`, `\(aq`, "`", `\(ga`, `^`, `\(ha`, `~`, `\(ti`)

// escape returns a line, or a part of one, as text without requests.
func escape(s string) string {
	s = roff.Replace(s)
	if strings.HasPrefix(s, ".") {
		return `\&` + s
	}
	return s
}

// paragraphs returns escaped lines. An empty line starts a paragraph.
func paragraphs(text string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(text, "\n") {
		if line == "" {
			line = ".PP"
		} else {
			line = escape(line)
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

var words = regexp.MustCompile(`[A-Za-z]+`)

// italic sets the placeholders in italics: the words.
func italic(s string) string {
	var b strings.Builder
	for {
		at := words.FindStringIndex(s)
		if at == nil {
			return b.String() + escape(s)
		}
		fmt.Fprintf(&b, `%s\fI%s\fR`, escape(s[:at[0]]), s[at[0]:at[1]])
		s = s[at[1]:]
	}
}
