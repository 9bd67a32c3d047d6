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
	if about.Host != "" && about.Host != "(none)" { // what Linux has before it is given a name
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
	facts := []fact{{"Began", r.clock(r.header.StartBootNanos).Format("2006-01-02 15:04:05.000 UTC") + "; times are counted from then"}}
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
		facts = append(facts, fact{"Coverage", here + "; how many the kernel saw is not known"})
	}
	for _, l := range []struct {
		n          uint64
		one, other string
	}{
		{r.sum.Coverage.Predicted, "charge returned unseen: its outcome is foretold from what it met", "charges returned unseen: their outcome is foretold from what they met"},
		{r.sum.Coverage.WalksCut, "charge has more ancestors than were looked at", "charges have more ancestors than were looked at"},
		{r.sum.Coverage.UnknownKinds, "charge was to a counter of an unknown kind", "charges were to counters of an unknown kind"},
	} {
		if l.n == 1 {
			facts = append(facts, fact{"Uncertain", "1 " + l.one})
		} else if l.n > 0 {
			facts = append(facts, fact{"Uncertain", count(l.n) + " " + l.other})
		}
	}
	return facts
}

func (r *Report) warnings(n Counts) []string {
	var w []string
	if n.DamagedBlocks > 0 {
		w = append(w, counted(n.DamagedBlocks, "damaged block")+" of the recording could not be read: what is here is not all.")
	}
	if n.Whole {
		if lost := max(n.Lost+n.LostOthers, r.sum.Coverage.Lost); lost > 0 {
			w = append(w, counted(lost, "event")+" found no place in the buffer: what is here is not all.")
		}
		if n.Missed > 0 {
			w = append(w, counted(n.Missed, "call")+" went unnoticed: a probe was already running on that CPU.")
		}
		if n.Unstacked > 0 {
			w = append(w, counted(n.Unstacked, "stack")+" of charges could not be taken, or there were too many different ones.")
		}
		if n.Unnamed > 0 {
			w = append(w, "Processes whose user stacks are addresses, since they could not be looked at, or not in time: "+count(n.Unnamed)+".")
		}
		return w
	}
	if r.sum.Coverage.Lost > 0 {
		w = append(w, counted(r.sum.Coverage.Lost, "event")+" found no place in the buffer: what is here is not all.")
	}
	return append(w, "The trace was not brought to its end: what came last may be missing.")
}
