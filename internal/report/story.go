package report

import (
	"fmt"
	"slices"
	"strings"

	"chargetrace/internal/event"
	"chargetrace/internal/summary"
	"chargetrace/internal/verdict"
)

// headline sums up the trace in a line.
func (c *collector) headline() string {
	if c.sum.Total.Charges == 0 && len(c.sum.OOMs) == 0 {
		return "No charges"
	}
	return c.sum.Headline()
}

// story has a paragraph each on the OOMs, the limit, and the processes that charged.
func (c *collector) story() (paragraphs []string) {
	ooms := c.sum.OOMs
	for _, o := range ooms[:min(len(ooms), maxStories)] {
		paragraphs = append(paragraphs, strings.Join(c.sum.Story(o), " "))
	}
	if n := len(ooms) - maxStories; n > 0 {
		paragraphs = append(paragraphs, fmt.Sprintf("The OOM killer ran %s more, last at %s.", times(uint64(n)), c.sum.Format.Moment(ooms[len(ooms)-1].BootNanos)))
	}
	if c.sum.Total.Charges == 0 {
		return append(paragraphs, c.noCharges())
	}
	limits := c.sum.SortedLimits()
	for _, l := range limits[:min(len(limits), maxStories)] {
		paragraphs = append(paragraphs, c.tellLimit(l))
	}
	if n := len(limits) - maxStories; n > 0 {
		paragraphs = append(paragraphs, fmt.Sprintf("Other limits hit: %s.", count(uint64(n))))
	}
	if len(paragraphs) == 0 {
		paragraphs = append(paragraphs, c.tellRoom())
	}
	if len(ooms) > 0 && len(c.sum.First().Chargers) > 0 {
		return paragraphs
	}
	return append(paragraphs, c.tellCharged())
}

// maxStories is the number of runs of the OOM killer with a paragraph, and of limits.
const maxStories = 5

// tellLimit says how often a limit was hit, and what was reclaimed for it, unless the paragraph
// on an OOM of its cgroup does.
func (c *collector) tellLimit(l *verdict.Limit) string {
	s := strings.Join(c.sum.LimitStory(l), " ")
	withOOM := slices.ContainsFunc(c.sum.OOMs, func(o *verdict.OOM) bool { return o.Cgroup == l.Cgroup })
	if r := c.sum.Reclaim(l.Cgroup); r.Runs > 0 && l.Kind == event.Memory && !l.High && !withOOM {
		s += " Reclaim there ran " + c.sum.TellReclaim(r) + "."
	}
	return s
}

// tellRoom names the counter that came nearest to its limit, if none was hit.
func (c *collector) tellRoom() string {
	s := "No limit was hit, and no charge failed."
	if c.sum.Lost || c.sum.Counts.Lost > 0 {
		s = "No limit was hit, and no charge failed, in what was not lost."
	}
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
	return s + fmt.Sprintf(" The nearest to its limit was %s (%v): %s of %s, %.0f %%.", c.name(nearest.key.Cgroup), nearest.key.Kind,
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
