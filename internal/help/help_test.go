package help

import (
	"reflect"
	"strings"
	"testing"
)

const sample = `Usage: tool [flags] [-- command [arg ...]]

Does things: many.
Well.

Examples:
  tool -a 1     one
  tool -a 2 -b  two,
                and 'b'

Where to (\stdout, if "nothing" else):
  -a N[,N...]   repeatable; first. More
  -long-name SIZE|TIME
                .so is no request,
                'nor this: C:\new; and
                .TH this
  -- command    what is run

  -b            Ctrl-C ` + "`^~`" + `

Data goes out. Exit status: 0, or
1 for an error.
`

func TestParse(t *testing.T) {
	want := []Flag{
		{"a", "N[,N...]", "repeatable; first. More"},
		{"long-name", "SIZE|TIME", `.so is no request, 'nor this: C:\new; and .TH this`},
		{"b", "", "Ctrl-C `^~`"},
	}
	flags := Parse(sample).Flags()
	if !reflect.DeepEqual(flags, want) {
		t.Fatalf("%q", flags)
	}
	if !flags[0].Repeatable() || flags[1].Repeatable() || flags[0].Short() != "first" || flags[1].Short() != `.so is no request, 'nor this: C:\new` {
		t.Errorf("%q, %q", flags[0].Short(), flags[1].Short())
	}
}

// TestMan checks that roff reads none of the text as a request, and loses none.
func TestMan(t *testing.T) {
	const want = `.TH TOOL 1 "" tool
.SH NAME
tool \- does things
.SH SYNOPSIS
\fBtool\fR [\fIflags\fR] [\-\- \fIcommand\fR [\fIarg\fR ...]]
.SH DESCRIPTION
Does things: many.
Well.
.SH EXAMPLES
.TP
\fBtool \-a 1\fR
one
.TP
\fBtool \-a 2 \-b\fR
two,
and \(aqb\(aq
.SH OPTIONS
.SS Where to (\estdout, if \(dqnothing\(dq else)
.TP
\fB\-a\fR \fIN\fR[,\fIN\fR\&...]
repeatable; first. More
.TP
\fB\-long\-name\fR \fISIZE\fR|\fITIME\fR
\&.so is no request,
\(aqnor this: C:\enew; and
\&.TH this
.TP
\fB\-\-\fR \fIcommand\fR
what is run
.SS Other
.TP
\fB\-b\fR
Ctrl\-C \(ga\(ha\(ti\(ga
.SH EXIT STATUS
0, or
1 for an error.
.SH NOTES
Data goes out.
.SH SEE ALSO
`
	got, _, _ := strings.Cut(Parse(sample).Man(), ".BR ")
	if got != want {
		t.Errorf("got:\n%s", got)
	}
}
