package report

import (
	"fmt"

	"chargetrace/internal/event"
	"chargetrace/internal/summary"
)

// ranOut names the cgroup that ran out of memory at an OOM kill, or the machine.
func (c *collector) ranOut(e *event.Event) string {
	return shorten(c.sum.Names.RanOut(e))
}

func capital(s string) string {
	if s == "the machine" {
		return "The machine"
	}
	return s
}

// headline sums up the trace in a line.
func (c *collector) headline() string {
	limits := c.limits()
	switch {
	case len(c.sum.OOMKills) > 0:
		return capital(c.ranOut(&c.sum.OOMKills[0])) + " ran out of memory"
	case c.sum.Total.Charges == 0:
		return "No charges"
	case len(limits) == 0:
		return "No limit was hit"
	case limits[0].Failures > 0:
		return fmt.Sprintf("%s is at its %v: charges failed", c.path(limits[0].Cgroup), limits[0].LimitID)
	case limits[0].High:
		return fmt.Sprintf("%s is above its %v: charges were throttled", c.path(limits[0].Cgroup), limits[0].LimitID)
	}
	return fmt.Sprintf("%s reached its %v", c.path(limits[0].Cgroup), limits[0].LimitID)
}

// story has a paragraph each on the OOM kills, the limit, and the processes that
// charged.
func (c *collector) story() []string {
	if c.sum.Total.Charges == 0 {
		s := []string{c.noCharges()}
		if len(c.sum.OOMKills) > 0 {
			s = append([]string{c.tellKill()}, s...)
		}
		return s
	}
	var paragraphs []string
	if len(c.sum.OOMKills) > 0 {
		paragraphs = append(paragraphs, c.tellKill())
	}
	if l := c.decisive(); l != nil {
		paragraphs = append(paragraphs, c.tellLimit(l))
	} else {
		paragraphs = append(paragraphs, c.tellRoom())
	}
	return append(paragraphs, c.tellCharged())
}

func (c *collector) tellKill() string {
	e := &c.sum.OOMKills[0]
	v := &e.Victim
	held := func(pages uint64) string { return c.size(int64(pages), event.Memory) }
	s := fmt.Sprintf("At %s, %s UTC, %s ran out of memory. %s asked for more; the kernel killed ", c.since(e.BootNanos),
		c.clock(e.BootNanos).Format("15:04:05.000"), c.ranOut(e), e.Comm.Of(e.PID))
	if v.PID == e.PID {
		s += "it"
	} else {
		s += v.Comm.Of(v.PID)
	}
	s += fmt.Sprintf(", which held %s: %s anonymous, %s of files and %s shared", held(v.HeldPages()),
		held(v.AnonPages), held(v.FilePages), held(v.ShmemPages))
	if v.SwapPages > 0 {
		s += fmt.Sprintf("; and %s in swap", held(v.SwapPages))
	}
	s += "."
	if n := uint64(len(c.sum.OOMKills) - 1); n > 0 {
		s += fmt.Sprintf(" %s followed, the last at %s.", counted(n, "more kill"), c.since(c.sum.OOMKills[n].BootNanos))
	}
	return s
}

// decisive returns the limit of the first OOM kill, else the one with the most failures;
// nil: no limit was hit.
func (c *collector) decisive() *summary.Limit {
	if len(c.sum.OOMKills) > 0 {
		if l := c.sum.Limits[summary.LimitID{CounterID: event.CounterID{Cgroup: c.sum.OOMKills[0].Cgroup, Kind: event.Memory}}]; l != nil {
			return l
		}
	}
	if limits := c.limits(); len(limits) > 0 {
		return limits[0]
	}
	return nil
}

func (c *collector) tellLimit(l *summary.Limit) string {
	s := c.tellHits(l)
	if l.High {
		s = c.tellThrottled(l)
	}
	if t := c.sum.Cgroups[l.Cgroup]; t != nil && t.Reclaims > 0 && l.Kind == event.Memory {
		s += fmt.Sprintf(" Reclaim ran %s for %s and freed %s.", times(t.Reclaims), duration(t.ReclaimNanos), c.freed(t))
	}
	if n := c.otherLimits(l); n > 0 {
		s += fmt.Sprintf(" Other limits hit: %s.", count(n))
	}
	return s
}

func (c *collector) tellHits(l *summary.Limit) string {
	s := "The limiting cgroup is"
	switch kills := c.sum.OOMKills; {
	case len(kills) > 0 && kills[0].Cgroup == l.Cgroup:
	case l.Failures == 0:
		s = "The cgroup at its limit is"
	case len(kills) > 0 || c.otherLimits(l) > 0:
		s = "Most charges failed at"
	}
	s += " " + c.path(l.Cgroup)
	if l.MaxPages != summary.UnknownLimit {
		s += fmt.Sprintf(", with a %v of %s", l.LimitID, c.size(int64(l.MaxPages), l.Kind))
	}
	s += fmt.Sprintf(". %s was the first to hit it, at %s", l.ByComm.Of(l.ByPID), c.since(l.FirstNanos))
	if l.Hits > 1 {
		s += fmt.Sprintf("; from then on it was hit %s", times(l.Hits-1)+" more")
	}
	if l.Failures > 0 {
		return s + fmt.Sprintf(", and %s failed there.", counted(l.Failures, "charge"))
	}
	return s + "; no charge failed there."
}

func (c *collector) tellThrottled(l *summary.Limit) string {
	return fmt.Sprintf("%s has a %v of %s. %s was the first to exceed it, at %s. %s left it exceeded: then a task must reclaim or sleep before it returns to user space.",
		c.path(l.Cgroup), l.LimitID, c.size(int64(l.MaxPages), l.Kind), l.ByComm.Of(l.ByPID), c.since(l.FirstNanos), counted(l.Hits, "charge"))
}

// otherLimits is the number of limits that were hit, except for those of one counter.
func (c *collector) otherLimits(l *summary.Limit) (n uint64) {
	for id := range c.sum.Limits {
		if id.CounterID != l.CounterID {
			n++
		}
	}
	return n
}

func (c *collector) freed(t *summary.Totals) string {
	if t.FreedPages == 0 {
		return "nothing"
	}
	return c.size(int64(t.FreedPages), event.Memory)
}

// tellRoom names the counter that came nearest to its limit, if none was hit.
func (c *collector) tellRoom() string {
	s := "No limit was hit, and no charge failed."
	if c.sum.Total.BatchMisses > 0 {
		s += fmt.Sprintf(" %s did not fit; the kernel retried them smaller.", counted(c.sum.Total.BatchMisses, "batch charge"))
	}
	var nearest *usagePlot
	plots, _ := c.plots(maxSeries)
	share := func(u *usagePlot) float64 { return float64(u.peak) / float64(u.max) }
	for _, u := range plots {
		if u.max > 0 && (nearest == nil || share(u) > share(nearest)) {
			nearest = u
		}
	}
	if nearest == nil {
		return s + " No charged counter has a limit."
	}
	return s + fmt.Sprintf(" The nearest to its limit was %s (%v): %s of %s, %.0f %%.", c.path(nearest.key.Cgroup), nearest.key.Kind,
		c.size(nearest.peak, nearest.key.Kind), c.size(nearest.max, nearest.key.Kind), 100*share(nearest))
}

// tellCharged names the process that charged most.
func (c *collector) tellCharged() string {
	t := &c.sum.Total
	var top *summary.Process
	for _, p := range c.sum.Processes {
		if top == nil || p.ChargedPages > top.ChargedPages || p.ChargedPages == top.ChargedPages && p.PID < top.PID {
			top = p
		}
	}
	if top == nil || top.ChargedPages == 0 {
		return fmt.Sprintf("%s; none took memory.", counted(t.Charges, "charge"))
	}
	if len(c.sum.Processes) == 1 {
		return fmt.Sprintf("%s made all charges: %s in %s.", top.Comm.Of(top.PID), c.size(int64(t.ChargedPages), event.Memory), counted(t.Charges, "charge"))
	}
	processes := count(uint64(len(c.sum.Processes))) + " processes"
	if c.sum.Others.Charges > 0 {
		processes = "more than " + processes
	}
	return fmt.Sprintf("%s charged most: %s, %.0f %% of the %s that %s charged.", top.Comm.Of(top.PID), c.size(int64(top.ChargedPages), event.Memory),
		100*float64(top.ChargedPages)/float64(t.ChargedPages), c.size(int64(t.ChargedPages), event.Memory), processes)
}
