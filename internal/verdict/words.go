package verdict

import (
	"fmt"
	"strings"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
)

// Name returns the printable path of a cgroup, shortened; of none, "the machine".
func (v *Verdict) Name(id event.CgroupID) string {
	if id.ID == 0 {
		return "the machine"
	}
	return text.Shorten(v.Names.Printable(id), v.NameWidth)
}

// Size writes an amount of a kind of counter.
func (v *Verdict) Size(kind event.Kind, n int64) string {
	if kind == event.Dmem {
		return v.Format.Bytes(n)
	}
	return v.Format.Size(n)
}

// limitSize writes the size of a limit, with a preposition: " of 2048 pages (8.0 MiB)". It
// is empty for [UnknownLimit].
func (v *Verdict) limitSize(kind event.Kind, maxPages uint64) string {
	switch {
	case maxPages == UnknownLimit:
		return ""
	case kind == event.Dmem:
		return " of " + v.Format.Bytes(int64(maxPages))
	}
	return " of " + v.Format.Limit(int64(maxPages))
}

// TellLimit writes how often a limit was hit: "/a: memory limit of 2048 pages (8.0 MiB) hit 22
// times, 22 charges failed; first at 746.9 ms by alloc (141)".
func (v *Verdict) TellLimit(l *Limit) string {
	return fmt.Sprintf("%s; first%s at %s by %s", v.TellHits(l), v.sinceKill(l), v.Format.Moment(l.FirstNanos), l.ByComm.Of(l.ByPID))
}

// TellHits is the part of TellLimit before the first hit.
func (v *Verdict) TellHits(l *Limit) string {
	what := fmt.Sprintf("hit %s, %s failed", times(l.Hits), counted(l.Failures, "charge"))
	if l.High {
		what = fmt.Sprintf("exceeded, %s throttled", counted(l.Hits, "charge"))
	}
	return fmt.Sprintf("%s: %v%s %s", v.Name(l.Cgroup), l.LimitID, v.limitSize(l.Kind, l.MaxPages), what)
}

// sinceKill notes that the first hit is not the one that an earlier OOM kill came from.
func (v *Verdict) sinceKill(l *Limit) string {
	for _, o := range v.OOMs {
		if o.Cgroup == l.Cgroup && o.BootNanos < l.FirstNanos {
			return " in this trace, after an OOM kill,"
		}
	}
	return ""
}

// Tell writes a run of the OOM killer, without its time: "/a ran out of memory at its memory
// limit of 2048 pages (8.0 MiB): alloc (141) was allocating; alloc (141) was killed, rss 12.2 MiB
// (anon 9.8, file 0, shmem 2.4)".
func (v *Verdict) Tell(o *OOM) string {
	s := v.Name(o.Cgroup) + " ran out of memory"
	if o.Trigger == FailedCharge {
		s += fmt.Sprintf(" at its %v limit%s", o.Kind, v.limitSize(o.Kind, o.MaxPages))
	}
	s += ": " + v.trigger(o)
	if len(o.Victims) > 1 {
		s += fmt.Sprintf("; %d processes were killed as a group (memory.oom.group)", len(o.Victims))
	}
	for i := range o.Victims {
		if i == maxVictims {
			return s + fmt.Sprintf("; and %d more", len(o.Victims)-i)
		}
		x := &o.Victims[i]
		s += fmt.Sprintf("; %s was killed, %s", x.Comm.Of(x.PID), v.rss(x))
		// The rss is approximate from Linux 6.2 on.
		if o.MaxPages+o.MaxPages/8 < x.HeldPages() && o.MaxPages != UnknownLimit {
			s += " (more than the limit: pages charged elsewhere are in its rss too)"
		}
	}
	return s
}

// Story writes a run of the OOM killer with its time and its circumstances, in sentences.
func (v *Verdict) Story(o *OOM) []string {
	at := v.Format.Moment(o.BootNanos)
	if v.Info.BootWallNanos != 0 && (v.Format.Time == "" || v.Format.Time == text.Relative) {
		at += v.Format.Wall(o.BootNanos).UTC().Format(" (15:04:05.000 UTC)")
	}
	sentences := []string{"At " + at + " " + v.Tell(o) + "."}
	if o.Reclaim.Runs > 0 {
		sentences = append(sentences, "Up to then, reclaim there ran "+v.TellReclaim(&o.Reclaim)+".")
	}
	if len(o.Chargers) > 0 {
		sentences = append(sentences, v.chargersOf(o))
	}
	return sentences
}

// TellReclaim writes "22 times for 4.5 ms and freed nothing".
func (v *Verdict) TellReclaim(r *Reclaim) string {
	freed := "nothing"
	if r.FreedPages > 0 {
		freed = v.Format.Size(int64(r.FreedPages))
	}
	return fmt.Sprintf("%s for %s and freed %s", times(r.Runs), text.Duration(int64(r.Nanos)), freed)
}

func (v *Verdict) chargersOf(o *OOM) string {
	var list []string
	for i := range o.Chargers {
		c := &o.Chargers[i]
		s := c.Comm.Of(c.PID) + " " + v.Format.Size(c.Pages)
		if c.CachePages > 0 {
			s += " (" + v.Format.Size(c.CachePages) + " of it page cache)"
		}
		list = append(list, s)
	}
	what := "Charged to it in this trace"
	if v.Info.Net {
		what = "Charged to it in this trace, less what the same process gave back"
	}
	if o.Cgroup.ID == 0 {
		what = strings.Replace(what, "to it ", "to cgroups ", 1)
	}
	return what + ": " + strings.Join(list, ", ") + "."
}

// maxVictims is the number of victims that a sentence names.
const maxVictims = 20

// trigger says what set off the OOM killer.
func (v *Verdict) trigger(o *OOM) string {
	task := o.Comm.Of(o.PID)
	if o.Trigger == NoCharge {
		return fmt.Sprintf("the OOM killer ran in %s, which has no failed charge there in this trace, as when a limit is lowered", task)
	}
	return task + " was allocating"
}

// TellKill writes a kill in a line: "OOM in /a: alloc (141) allocating; killed alloc (141), rss
// 12.2 MiB (anon 9.8, file 0, shmem 2.4)".
func (v *Verdict) TellKill(k *Kill) string {
	in, what := " in ", " allocating"
	if k.Cgroup.ID == 0 {
		in = " of "
	}
	if k.Trigger == NoCharge {
		what = " without a failed charge"
	}
	return "OOM" + in + v.Name(k.Cgroup) + ": " + k.Comm.Of(k.PID) + what + "; killed " + v.TellVictim(&k.Victim)
}

// TellVictim writes a killed process and its resident memory.
func (v *Verdict) TellVictim(x *event.Victim) string { return x.Comm.Of(x.PID) + ", " + v.rss(x) }

var rssParts = []string{"anon", "file", "shmem"}

func (v *Verdict) rss(x *event.Victim) string {
	s := "rss " + v.Format.Parts(rssParts, []int64{int64(x.AnonPages), int64(x.FilePages), int64(x.ShmemPages)})
	if x.SwapPages > 0 {
		s += ", swap " + v.Format.Size(int64(x.SwapPages))
	}
	return s
}

// AtLeast notes that there may be more OOM kills than the trace has.
func (v *Verdict) AtLeast() string {
	if v.Lost {
		return " (at least: events were lost)"
	}
	return ""
}

// capital makes the first letter a capital.
func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// Headline sums up the trace in a line.
func (v *Verdict) Headline() string {
	limits := v.SortedLimits()
	switch {
	case len(v.OOMs) > 0:
		return capital(v.Name(v.OOMs[0].Cgroup)) + " ran out of memory"
	case len(limits) == 0:
		return "No limit was hit"
	case limits[0].Failures > 0:
		return fmt.Sprintf("%s is at its %v: charges failed", v.Name(limits[0].Cgroup), limits[0].LimitID)
	case limits[0].High:
		return fmt.Sprintf("%s is above its %v: charges were throttled", v.Name(limits[0].Cgroup), limits[0].LimitID)
	}
	return fmt.Sprintf("%s reached its %v", v.Name(limits[0].Cgroup), limits[0].LimitID)
}

// Uncertain counts the charges of which not all is known.
func Uncertain(c *stream.Counts) (notes []string) {
	for _, l := range []struct {
		n    uint64
		what string
	}{
		{c.Predicted, "return not seen, outcome predicted at entry"},
		{c.WalksCut, "more ancestors than the program walks"},
		{c.UnknownKinds, "unknown kind of counter"},
	} {
		if l.n > 0 {
			notes = append(notes, counted(l.n, "charge")+": "+l.what)
		}
	}
	return notes
}

func times(n uint64) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// counted writes a number and its noun: "1 charge", "2 charges".
func counted(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
