package report

import (
	"fmt"
	"strings"

	"chargetrace/internal/event"
)

// figure is a number in large type.
type figure struct{ Value, Name, Exact string }

// fact is a line about the origin of the trace.
type fact struct{ Name, Value string }

func (r *Report) figures() []figure {
	t := &r.sum.Total
	charged := r.sizeCell(int64(t.ChargedPages), event.Memory)
	kills := uint64(len(r.sum.OOMKills))
	return []figure{
		{count(t.Charges), plural(t.Charges, "charge"), ""},
		{charged.Text, "charged", charged.Exact},
		{count(t.Failures), "failed", ""},
		{duration(t.ReclaimNanos), "in reclaim", counted(t.Reclaims, "run")},
		{count(kills), plural(kills, "OOM kill"), ""},
	}
}

func (r *Report) dateline(about About) string {
	var parts []string
	if about.Host != "" && about.Host != "(none)" { // the name of a Linux host that has none
		parts = append(parts, shown(about.Host))
	}
	if about.Kernel != "" {
		parts = append(parts, "Linux "+shown(about.Kernel))
	}
	parts = append(parts, r.clock(r.header.StartBootNanos).Format("2 January 2006, 15:04:05 UTC"))
	if r.last > r.first {
		parts = append(parts, duration(r.last-r.first)+" of events")
	}
	return strings.Join(parts, " · ")
}

func (r *Report) facts(about About, n Counts) []fact {
	facts := []fact{{"Began", r.clock(r.header.StartBootNanos).Format("2006-01-02 15:04:05.000 UTC") + "; times count from then"}}
	var command []string
	for _, arg := range about.CommandLine {
		command = append(command, event.Printable(arg))
	}
	for _, f := range []fact{
		{"Command", shortenTo(strings.Join(command, " "), 10*maxName)}, {"Program", shown(about.Program)}, {"Host", shown(about.Host)},
		{"Kernel", strings.TrimSpace(shown(about.Kernel) + " " + shown(about.Arch))}, {"Attached with", shown(about.Attach)},
	} {
		if f.Value != "" {
			facts = append(facts, f)
		}
	}
	facts = append(facts, fact{"Page size", fmt.Sprintf("%s bytes", count(uint64(r.header.PageSize)))})
	here := counted(r.sum.Total.Charges, "charge") + " in this report"
	if n.Whole {
		if n.Seen >= n.Filtered+n.Lost {
			recorded := n.Seen - n.Filtered - n.Lost
			facts = append(facts, fact{"Coverage", fmt.Sprintf("%s; of %s seen by the kernel’s probe %s delivered, %s filtered, %s lost",
				here, count(n.Seen), count(recorded), count(n.Filtered), count(n.Lost))})
		}
	} else {
		facts = append(facts, fact{"Coverage", here + "; the number seen by the kernel is unknown"})
	}
	for _, l := range []struct {
		n    uint64
		text string
	}{
		{r.sum.Coverage.Predicted, "return not seen, outcome predicted at entry"},
		{r.sum.Coverage.WalksCut, "more ancestors than the program walks"},
		{r.sum.Coverage.UnknownKinds, "unknown kind of counter"},
	} {
		if l.n > 0 {
			facts = append(facts, fact{"Uncertain", counted(l.n, "charge") + ": " + l.text})
		}
	}
	return facts
}

func (r *Report) warnings(n Counts) (warnings []string) {
	warn := func(n uint64, what, text string) {
		if n > 0 {
			warnings = append(warnings, counted(n, what)+" "+text)
		}
	}
	warn(n.DamagedBlocks, "damaged block", "of the recording skipped: events are missing.")
	lost := r.sum.Coverage.Lost
	if n.Whole {
		lost = max(lost, n.Lost+n.LostOthers)
	}
	warn(lost, "event", "lost: the ring buffer was full.")
	if !n.Whole {
		return append(warnings, "The recording is truncated: its last events may be missing.")
	}
	warn(n.Missed, "call", "missed: a probe was already running on that CPU.")
	warn(n.Unstacked, "stack", "of charges missing: the kernel could not walk them, or too many were different.")
	if n.Unnamed > 0 {
		warnings = append(warnings, "Processes with unresolved user stacks: "+count(n.Unnamed)+". Their files could not be read, or not in time.")
	}
	return warnings
}
