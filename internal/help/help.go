// Package help parses the text that -h prints, as the source of the man page and the
// shell completions. It must not depend on the name of any flag.
package help

import "strings"

// Text is the parsed text of -h.
type Text struct {
	Synopsis []string // one line per form of the command
	Intro    []string // paragraphs before the sections
	Closing  []string // and after them
	Sections []Section
}

// Section is a list of entries. Its title may be empty.
type Section struct {
	Title   string
	Entries []Entry
}

// Entry is an example or a flag, with the lines of its description.
type Entry struct {
	Head string
	Body []string
}

// Parse parses a text. Blank lines separate paragraphs and sections. Entries are
// indented by two spaces, and their continuation lines by more.
func Parse(text string) Text {
	var t Text
	for block := range strings.SplitSeq(strings.Trim(text, "\n"), "\n\n") {
		lines := strings.Split(block, "\n")
		if synopsis, ok := strings.CutPrefix(lines[0], "Usage: "); ok {
			t.Synopsis = append(t.Synopsis, synopsis)
			for _, line := range lines[1:] {
				t.Synopsis = append(t.Synopsis, strings.TrimSpace(line))
			}
			continue
		}
		title, titled := strings.CutSuffix(lines[0], ":")
		if titled && len(lines) > 1 && strings.HasPrefix(lines[1], "  ") {
			lines = lines[1:]
		} else {
			title = ""
		}
		switch {
		case strings.HasPrefix(lines[0], "  "):
			t.Sections = append(t.Sections, Section{title, parseEntries(lines)})
		case len(t.Sections) == 0:
			t.Intro = append(t.Intro, block)
		default:
			t.Closing = append(t.Closing, block)
		}
	}
	return t
}

func parseEntries(lines []string) []Entry {
	var entries []Entry
	for _, line := range lines {
		if !strings.HasPrefix(line, "   ") {
			head, body, ok := strings.Cut(strings.TrimSpace(line), "  ")
			entries = append(entries, Entry{Head: head})
			if !ok {
				continue
			}
			line = body
		}
		last := &entries[len(entries)-1]
		last.Body = append(last.Body, strings.TrimSpace(line))
	}
	return entries
}

// Flag is a flag with its description.
type Flag struct {
	Name  string // without the dash
	Value string // a placeholder; empty for a flag without a value
	Text  string
}

// Flags returns the flags in the order of the text.
func (t Text) Flags() []Flag {
	var flags []Flag
	for _, s := range t.Sections {
		for _, e := range s.Entries {
			// "-- command" is not a flag.
			if head, ok := strings.CutPrefix(e.Head, "-"); ok && !strings.HasPrefix(head, "-") {
				name, value, _ := strings.Cut(head, " ")
				flags = append(flags, Flag{name, value, strings.Join(e.Body, " ")})
			}
		}
	}
	return flags
}

const repeatable = "repeatable"

// Repeatable reports whether the flag can be repeated.
func (f Flag) Repeatable() bool { return strings.Contains(f.Text, repeatable) }

// Short returns the first sentence or clause of the description.
func (f Flag) Short() string {
	short, _, _ := strings.Cut(strings.TrimPrefix(f.Text, repeatable+"; "), "; ")
	short, _, _ = strings.Cut(short, ". ")
	return short
}
