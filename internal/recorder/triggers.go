package recorder

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"chargetrace/internal/event"
	"chargetrace/internal/verdict"
)

// Reason is why a recording is saved.
type Reason string

// The reasons without a cgroup are for the whole machine.
const (
	OOM    Reason = "oom"    // the OOM killer ran
	Limit  Reason = "limit"  // a charge hit a limit; see [event.Event.LimitHit]
	High   Reason = "high"   // a charge was throttled, or a task sleeps, above memory.high
	Lost   Reason = "lost"   // events were lost
	Exit   Reason = "exit"   // the trace ends
	Signal Reason = "signal" // Recorder.Save was called
)

// Triggers are the reasons to save a recording.
type Triggers struct {
	OOM, Limit, High, Lost, Exit bool
	// Percent saves a recording when a charge takes its limiting level to this part of its
	// limit; see [event.Threshold]. 0: never.
	Percent int
}

// minPercent is above the hysteresis of [event.Threshold].
const minPercent = 10

// DefaultTriggers are the triggers without -when.
var DefaultTriggers = Triggers{OOM: true, Limit: true}

// Parse adds the triggers of a comma-separated list, such as "oom,95%".
func (t *Triggers) Parse(list string) error {
	for name := range strings.SplitSeq(list, ",") {
		switch Reason(name) {
		case OOM:
			t.OOM = true
		case Limit:
			t.Limit = true
		case High:
			t.High = true
		case Lost:
			t.Lost = true
		case Exit:
			t.Exit = true
		default:
			number, isPercent := strings.CutSuffix(name, "%")
			percent, err := strconv.Atoi(number)
			if !isPercent || err != nil || percent < minPercent || percent > 99 {
				return errors.New("want oom, limit, high, lost, exit, or a percentage of the limit from 10% to 99%")
			}
			if t.Percent != 0 && t.Percent != percent {
				return errors.New("give only one percentage")
			}
			t.Percent = percent
		}
	}
	return nil
}

// percentReason is the reason for Triggers.Percent.
func (t *Triggers) percentReason() Reason { return Reason(strconv.Itoa(t.Percent) + "%") }

// reasonOf returns why an event is a trigger, and the cgroup that it is about; "" if it is none.
func (t *Triggers) reasonOf(e *event.Event) (Reason, event.CgroupID) {
	switch e.Type {
	case event.Charge:
		switch {
		case t.Percent > 0 && e.Flags&event.Threshold != 0:
			return t.percentReason(), e.InCgroup(e.Limiting.CgroupID)
		case t.Limit && e.LimitHit():
			for id := range verdict.HitsOf(e) {
				return Limit, id.Cgroup
			}
		case t.High && e.Throttled():
			return High, e.InCgroup(e.High.CgroupID)
		}
	case event.OOMKill, event.OOM:
		if !t.OOM {
			break
		}
		if e.Flags&event.UnknownCgroup != 0 {
			return OOM, e.VictimCgroup()
		}
		return OOM, e.Cgroup
	case event.Throttle:
		if t.High {
			return High, e.Cgroup
		}
	case event.Lost:
		if t.Lost {
			return Lost, event.CgroupID{}
		}
	}
	return "", event.CgroupID{}
}

// rank orders reasons: a kill is the worst. A file for one reason suppresses those for reasons
// of the same rank or a lower one.
func (r Reason) rank() int {
	ranks := []Reason{Lost, High, Limit, OOM, Exit, Signal}
	if i := slices.Index(ranks, r); i >= 0 {
		return 2 * i
	}
	return 2*slices.Index(ranks, Limit) + 1 // a part of the limit
}

// inFile is the reason in the name of a file.
func (r Reason) inFile() string { return strings.Replace(string(r), "%", "pct", 1) }
