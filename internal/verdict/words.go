package verdict

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
)

// Name returns the label of a cgroup, with its number; of none, "the machine".
func (v *Verdict) Name(id event.CgroupID) string {
	if id.ID == 0 {
		return "the machine"
	}
	name := v.Names.Label(id)
	if v.NameWidth > 0 {
		name = text.Shorten(container.Fit(name, v.NameWidth), max(v.NameWidth, text.MaxName))
	}
	if n := v.Numbers[id]; n > 0 {
		name = fmt.Sprintf("%s #%d", name, n)
	}
	return name
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

// LimitStory writes how often a limit was hit, and what its cgroup holds at the end, in
// sentences.
func (v *Verdict) LimitStory(l *Limit) []string {
	sentences := []string{v.TellLimit(l) + "."}
	if held := v.AtEnd[l.Cgroup]; held != nil && l.Kind == event.Memory && !l.High {
		sentences = append(sentences, v.TellHeld(held, "At the end it holds", false)...)
	}
	return sentences
}

// TellHits is the part of TellLimit before the first hit.
func (v *Verdict) TellHits(l *Limit) string {
	size := v.limitSize(l.Kind, l.FirstMaxPages)
	if l.MaxPages != l.FirstMaxPages {
		size += ", later" + strings.TrimPrefix(v.limitSize(l.Kind, l.MaxPages), " of") + ","
	}
	what := "hit " + times(l.Hits)
	if l.Failures > 0 {
		what += fmt.Sprintf(", %s failed", counted(l.Failures, "charge"))
	}
	if l.High {
		what = "exceeded"
		if l.Hits > 0 {
			what += fmt.Sprintf(", %s throttled", counted(l.Hits, "charge"))
		}
		if l.Sleeps > 0 {
			what += ", " + v.sleeps(l)
		}
	}
	return fmt.Sprintf("%s: %v%s %s", v.Name(l.Cgroup), l.LimitID, size, what)
}

// sleeps writes who slept for memory.high: "p (7) slept 3 times, about 7.00 s in total".
func (v *Verdict) sleeps(l *Limit) string {
	s := fmt.Sprintf(" slept %s, about %s in total", times(l.Sleeps), text.Duration(int64(l.SleepNanos)))
	if len(l.Sleepers) == 1 {
		return l.Sleepers[0].Comm.Of(l.Sleepers[0].PID) + s
	}
	return "tasks" + s + ": " + v.sleepers(l)
}

// sleepers lists who slept longest for memory.high.
func (v *Verdict) sleepers(l *Limit) string {
	sorted := slices.SortedFunc(slices.Values(l.Sleepers), func(a, b Sleeper) int {
		return cmp.Or(cmp.Compare(b.Nanos, a.Nanos), cmp.Compare(a.PID, b.PID))
	})
	var list []string
	for _, s := range sorted[:min(len(sorted), 3)] {
		list = append(list, s.Comm.Of(s.PID)+" "+text.Duration(int64(s.Nanos)))
	}
	switch n := len(sorted) - len(list); {
	case len(sorted) == maxSleepers:
		list = append(list, "and others")
	case n > 0:
		list = append(list, fmt.Sprintf("%d more", n))
	}
	return strings.Join(list, ", ")
}

// sinceKill notes that the first hit is not the one that an earlier OOM kill came from.
func (v *Verdict) sinceKill(l *Limit) string {
	for _, o := range v.OOMs {
		if o.Result == 0 && o.Cgroup == l.Cgroup && o.BootNanos < l.FirstNanos {
			return " in this trace, after an OOM kill,"
		}
	}
	return ""
}

// Tell writes a run of the OOM killer, without its time: "/a ran out of memory at its memory
// limit of 2048 pages (8.0 MiB): alloc (141) was allocating; alloc (141) was killed, rss 12.2 MiB
// (anon 9.8, file 0, shmem 2.4)".
func (v *Verdict) Tell(o *OOM) string {
	s := v.RanOut(o)
	if o.Trigger == FailedCharge {
		s += fmt.Sprintf(" at its %v limit%s", o.Kind, v.limitSize(o.Kind, o.MaxPages))
	}
	s += ": " + v.trigger(o)
	if o.Result != 0 {
		return s + v.result(o)
	}
	switch {
	case len(o.Victims) > 1:
		s += fmt.Sprintf("; %d processes were killed", len(o.Victims))
		if o.Group {
			s += " as a group (memory.oom.group)"
		}
	case o.Group: // the others do not match the filters
		s += "; a group was killed (memory.oom.group)"
	}
	for i := range o.Victims {
		if i == maxVictims {
			return s + fmt.Sprintf("; and %d more", len(o.Victims)-i)
		}
		x := &o.Victims[i]
		s += fmt.Sprintf("; %s was killed, %s", x.Comm.Of(x.PID), v.rss(x))
		if v.exceeds(o, x) {
			s += " (above the limit, since rss also counts pages that are not charged to this cgroup)"
		}
	}
	if o.Again > 0 {
		s += fmt.Sprintf("; right after that, the OOM killer ran %s without a kill", times(o.Again))
	}
	return s
}

// Story writes a run of the OOM killer with its time and its circumstances, in sentences.
func (v *Verdict) Story(o *OOM) []string {
	at := v.Format.Moment(o.BootNanos)
	if v.Info.BootWallNanos != 0 && (v.Format.Time == "" || v.Format.Time == text.Relative) {
		at += v.Format.Wall(o.BootNanos).UTC().Format(" (2006-01-02 15:04:05.000 UTC)")
	}
	sentences := []string{"At " + at + " " + v.Tell(o) + "."}
	if o.Reclaim.Runs > 0 {
		when := "Until then"
		switch {
		case o.NotFirst:
			when = "Since the OOM before"
		case o.Runs > 1:
			when = "Until the first run"
		}
		sentences = append(sentences, when+", reclaim for it ran "+v.TellReclaim(&o.Reclaim)+".")
	}
	if o.FullSinceNanos != 0 {
		sentences = append(sentences, fmt.Sprintf("Charges had been hitting this limit for %s, from %s on.", later(o.FullSinceNanos, o.BootNanos), v.Format.Moment(o.FullSinceNanos)))
	}
	if len(o.Chargers) > 0 {
		sentences = append(sentences, v.charged(o, "in this trace", o.Chargers))
	}
	if len(o.Recent) > 0 {
		sentences = append(sentences, v.charged(o, "in the last "+text.Duration(int64(o.RecentNanos)), o.Recent))
	}
	if o.Held != nil {
		when := later(o.BootNanos, o.Held.BootNanos) + " later it held"
		if o.Runs > 1 {
			when = later(o.BootNanos, o.Held.BootNanos) + " after the first run it held"
		}
		sentences = append(sentences, v.TellHeld(o.Held, when, len(o.Victims) > 0)...)
	}
	return sentences
}

// TellClock writes "the wall clock was set forward by 1h00m". step is in nanoseconds.
func TellClock(step int64) string {
	if step < 0 {
		return "the wall clock was set back by " + text.Duration(-step)
	}
	return "the wall clock was set forward by " + text.Duration(step)
}

// TellReclaim writes "22 times for 4.5 ms and freed nothing".
func (v *Verdict) TellReclaim(r *Reclaim) string {
	freed := "nothing"
	if r.FreedPages > 0 {
		freed = v.Format.Size(int64(r.FreedPages))
	}
	return fmt.Sprintf("%s for %s and freed %s", times(r.Runs), text.Duration(int64(r.Nanos)), freed)
}

// charged writes who charged most to the cgroup of an OOM in a time.
func (v *Verdict) charged(o *OOM, when string, by []Charger) string {
	var list []string
	for i := range by {
		c := &by[i]
		s := c.Comm.Of(c.PID) + " " + v.Format.Size(c.Pages)
		if c.CachePages > 0 {
			s += " (" + v.Format.Size(c.CachePages) + " of it page cache)"
		}
		list = append(list, s)
	}
	what := "Charged to it "
	if o.Scope != OfCgroup {
		what = "Charged to cgroups "
	}
	what += when
	if v.Info.Net {
		what += ", less what the same process gave back"
	} else {
		what += ", frees not deducted"
	}
	return what + ": " + strings.Join(list, ", ") + "."
}

// RanOut writes which cgroup ran out of memory, or the machine.
func (v *Verdict) RanOut(o *OOM) string {
	switch {
	case o.Trigger == Requested || o.Trigger == Unknown && o.Scope == OfMachine: // perhaps requested
		return "the OOM killer ran for " + v.scope(o)
	case o.anyNodes():
		return v.scope(o) + " found no memory"
	case o.Scope == OfMachine && o.Order > 0:
		return fmt.Sprintf("the machine had no %d contiguous free pages", 1<<o.Order)
	case (o.Scope == OfCpuset || o.Scope == OfMempolicy) && o.Order > 0:
		return fmt.Sprintf("there were no %d contiguous free pages on %s", 1<<o.Order, v.scope(o))
	case o.Scope == OfCpuset || o.Scope == OfMempolicy:
		return "no memory was left on " + v.scope(o)
	}
	return v.scope(o) + " ran out of memory"
}

// anyNodes reports whether an OOM can also be one of some memory nodes: the kernel returned before
// it looked which nodes the allocation may use (constrained_alloc).
func (o *OOM) anyNodes() bool {
	return o.Scope == OfMachine && (o.Result == event.TaskExits || o.Result == event.NoFS)
}

// scope writes whose memory ran out.
func (v *Verdict) scope(o *OOM) string {
	if o.anyNodes() {
		return "an allocation"
	}
	switch task := o.Comm.Of(o.PID); o.Scope {
	case OfCpuset:
		return "the NUMA nodes that the cpuset of " + task + " allows"
	case OfMempolicy:
		return "the NUMA nodes that the memory policy of " + task + " allows"
	case OfSomeCgroup:
		if len(o.Victims) > 0 && o.Victims[0].CgroupID != 0 {
			return v.Name(event.CgroupID{ID: o.Victims[0].CgroupID, Hierarchy: o.Cgroup.Hierarchy}) + " or a cgroup above it"
		}
		return "a cgroup"
	}
	return v.Name(o.Cgroup)
}

// exceeds reports whether the rss of a victim is clearly more than what its cgroup may hold. It
// is approximate from Linux 6.2 on.
func (v *Verdict) exceeds(o *OOM, x *event.Victim) bool {
	most := max(o.MaxPages, uint64(max(o.UsagePages, 0)))
	return o.Trigger == FailedCharge && o.MaxPages != UnknownLimit && x.HeldPages() > most && x.HeldPages()-most > most/16
}

// maxVictims is the number of victims that a sentence names.
const maxVictims = 20

// result says how runs of the OOM killer ended that killed nobody.
func (v *Verdict) result(o *OOM) string {
	ran, last := "; the OOM killer ran "+times(o.Runs), ""
	if o.Runs > 1 {
		last = ", the last time at " + v.Format.Moment(o.LastNanos)
	}
	switch o.Result {
	case event.NoVictim:
		return ran + " and found no process that it may kill" + last
	case event.VictimExits:
		return ran + " and killed nobody" + last + ": a process was already exiting"
	case event.NoFS:
		return ran + " and killed nobody" + last + ", as for all allocations that must not enter file systems (GFP_NOFS)"
	case event.Disabled:
		waited := ", and waited, since memory.oom_control disables the OOM killer"
		if o.Runs > 1 {
			waited += "; tasks waited " + times(o.Runs) + last
		}
		return waited
	}
	if o.Scope == OfCgroup {
		return ran + " and killed nobody" + last + ": the task was already exiting"
	}
	return ran + " and killed nobody" + last + ": the task was already exiting, or memory became free"
}

// trigger says what set off the OOM killer.
func (v *Verdict) trigger(o *OOM) string {
	task := o.Comm.Of(o.PID)
	switch o.Trigger {
	case LimitLowered:
		return fmt.Sprintf("its memory limit was set to %s, below the %s that it held, by %s", v.Format.Limit(int64(o.MaxPages)), v.Format.Limit(o.UsagePages), task)
	case Requested:
		return "requested with SysRq-f"
	case Unknown:
		switch o.Scope {
		case OfSomeCgroup:
			return "the OOM killer ran in " + task + ", and its start was not seen"
		case OfMachine:
			return "it ran in " + task
		}
		return fmt.Sprintf("the OOM killer ran in %s, which has no failed charge in this trace: the limit may have been lowered", task)
	}
	s := task + " was allocating"
	if o.Others {
		s = task + " and others were allocating"
	}
	if o.Remote {
		s += " for another cgroup than its own"
	}
	if o.Trigger == FailedCharge && o.Kind == event.Memory && o.Result != event.Disabled && o.MaxPages != UnknownLimit && o.UsagePages > 0 && uint64(o.UsagePages) > o.MaxPages+o.MaxPages/4 {
		s += ", and the cgroup held " + v.Format.Limit(o.UsagePages) + ": the limit may have been lowered"
	}
	return s
}

// TellKill writes a kill in a line: "OOM in /a: alloc (141) allocating; killed alloc (141), rss
// 12.2 MiB (anon 9.8, file 0, shmem 2.4)".
func (v *Verdict) TellKill(k *Kill) string {
	return v.oomOf(k.OOM) + "; killed " + v.TellVictim(&k.Victim)
}

// TellIdle writes a run of the OOM killer that killed nobody, in a line.
func (v *Verdict) TellIdle(o *OOM) string { return v.oomOf(o) + "; " + TellResult(o.Result) }

// TellResult says how a run of the OOM killer ended that killed nobody.
func TellResult(r event.OOMResult) string {
	switch r {
	case event.NoVictim:
		return "no process that it may kill"
	case event.VictimExits:
		return "no kill: a process is already exiting"
	case event.NoFS:
		return "no kill for an allocation that must not enter file systems (GFP_NOFS)"
	case event.Disabled:
		return "it waits, since memory.oom_control disables the OOM killer"
	}
	return "no kill: the task is exiting, or memory became free"
}

// oomOf writes where the OOM killer ran and what set it off.
func (v *Verdict) oomOf(o *OOM) string {
	in, task := " in ", o.Comm.Of(o.PID)
	switch o.Scope {
	case OfMachine:
		in = " of "
	case OfCpuset, OfMempolicy:
		in = " on "
	}
	what := task + " allocating"
	switch o.Trigger {
	case LimitLowered:
		what = "limit set to " + v.Format.Size(int64(o.MaxPages)) + " by " + task
	case Requested:
		what = "requested with SysRq-f"
	case Unknown:
		what = "the OOM killer ran in " + task
	}
	return "OOM" + in + v.scope(o) + ": " + what
}

// TellVictim writes a killed process and its resident memory.
func (v *Verdict) TellVictim(x *event.Victim) string { return x.Comm.Of(x.PID) + ", " + v.rss(x) }

var rssParts = []string{"anon", "file", "shmem"}

func (v *Verdict) rss(x *event.Victim) string {
	if x.HeldPages() == 0 && x.PageTableBytes == 0 {
		return "rss unknown"
	}
	s := "rss " + v.Format.Parts(rssParts, []int64{int64(x.AnonPages), int64(x.FilePages), int64(x.ShmemPages)})
	if x.SwapPages > 0 {
		s += ", swap " + v.Format.Size(int64(x.SwapPages))
	}
	if x.PageTableBytes > 0 {
		s += ", page tables " + v.Format.Bytes(int64(x.PageTableBytes))
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

// First returns the first OOM that killed a process, else the first one.
func (v *Verdict) First() *OOM {
	return v.OOMs[max(0, slices.IndexFunc(v.OOMs, func(o *OOM) bool { return o.Result == 0 }))]
}

// Headline sums up the trace in a line.
func (v *Verdict) Headline() string {
	limits := v.SortedLimits()
	switch {
	case len(v.OOMs) > 0:
		return capital(v.RanOut(v.First()))
	case len(limits) == 0 && v.Lost:
		return "No limit was hit in what was not lost"
	case len(limits) == 0:
		return "No limit was hit"
	case limits[0].High && limits[0].Hits == 0:
		return fmt.Sprintf("%s is above its %v: tasks slept", v.Name(limits[0].Cgroup), limits[0].LimitID)
	case limits[0].High:
		return fmt.Sprintf("%s is above its %v: charges were throttled", v.Name(limits[0].Cgroup), limits[0].LimitID)
	}
	s := fmt.Sprintf("%s reached its %v", v.Name(limits[0].Cgroup), limits[0].LimitID)
	if n := limits[0].Failures; n > 0 {
		s += ": " + counted(n, "charge") + " failed"
	}
	return s
}

// Uncertain counts the charges whose outcome, level or kind is uncertain.
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
	switch n {
	case 1:
		return "once"
	case 2:
		return "twice"
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
