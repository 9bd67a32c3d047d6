package report

import (
	"fmt"
	"strings"

	"chargetrace/internal/event"
	"chargetrace/internal/summary"
	"chargetrace/internal/text"
	"chargetrace/internal/verdict"
)

// figure is a number in large type.
type figure struct{ Value, Name, Exact string }

// fact is a line about the origin of the trace.
type fact struct{ Name, Value string }

func (r *Report) figures() []figure {
	t := &r.sum.Total
	charged := r.sizeCell(int64(t.ChargedPages), event.Memory)
	kills := uint64(len(r.sum.Kills))
	killed := plural(kills, "OOM kill")
	if r.sum.Lost {
		killed += ", at least"
	}
	return []figure{
		{count(t.Charges), plural(t.Charges, "charge"), ""},
		{charged.Text, "charged", charged.Exact},
		{count(t.Failures), "failed", ""},
		{duration(t.ReclaimNanos), "in reclaim", counted(t.Reclaims, "run")},
		{count(kills), killed, ""},
	}
}

func (r *Report) dateline() string {
	var parts []string
	if r.sum.Info.Host != "" && r.sum.Info.Host != "(none)" { // the name of a Linux host that has none
		parts = append(parts, shown(r.sum.Info.Host))
	}
	if r.sum.Info.Kernel != "" {
		parts = append(parts, "Linux "+shown(r.sum.Info.Kernel))
	}
	parts = append(parts, r.clock(r.sum.Info.StartBootNanos).Format("2 January 2006, 15:04:05 UTC"))
	if r.last > r.first {
		parts = append(parts, duration(r.last-r.first)+" of events")
	}
	return strings.Join(parts, " · ")
}

func (r *Report) facts() []fact {
	n := &r.sum.Counts
	facts := []fact{{"Began", r.clock(r.sum.Info.StartBootNanos).Format("2006-01-02 15:04:05.000 UTC") + "; times count from then"}}
	var command []string
	for _, arg := range r.sum.Info.CommandLine {
		command = append(command, event.Printable(arg))
	}
	for _, f := range []fact{
		{"Command", text.Shorten(strings.Join(command, " "), 10*text.MaxName)}, {"Program", shown(r.sum.Info.Program)}, {"Host", shown(r.sum.Info.Host)},
		{"Kernel", strings.TrimSpace(shown(r.sum.Info.Kernel) + " " + shown(r.sum.Info.Arch))}, {"Attached with", shown(r.sum.Info.Attach)},
	} {
		if f.Value != "" {
			facts = append(facts, f)
		}
	}
	facts = append(facts, fact{"Page size", fmt.Sprintf("%s bytes", count(uint64(r.sum.Info.PageSize)))})
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
	for _, note := range verdict.Uncertain(n) {
		facts = append(facts, fact{"Uncertain", note})
	}
	return facts
}

// warnings say what is missing in a trace.
func warnings(sum *summary.Summary) (warnings []string) {
	n := &sum.Counts
	warn := func(n uint64, what, text string) {
		if n > 0 {
			warnings = append(warnings, counted(n, what)+" "+text)
		}
	}
	warn(n.DamagedBlocks, "damaged block", "of the recording skipped: events are missing.")
	lost := n.LostInShown
	if n.Whole {
		lost = max(lost, n.Lost+n.LostNonCharge)
	}
	warn(lost, "event", "lost: the ring buffer was full.")
	if !n.Whole {
		return append(warnings, "The recording is truncated: its last events may be missing.")
	}
	warn(n.Missed, "call", "missed: a probe was already running on that CPU, or their return was not seen.")
	warn(n.LostStacks, "stack", "of charges missing: the kernel could not walk them, or too many were different.")
	if n.UnnamedProcesses > 0 {
		warnings = append(warnings, "Processes with unresolved user stacks: "+count(n.UnnamedProcesses)+". Their files could not be read, or not in time.")
	}
	return warnings
}
