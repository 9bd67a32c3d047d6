package verdict

import (
	"cmp"

	"chargetrace/internal/event"
)

// Trigger says why the OOM killer ran.
type Trigger string

const (
	// FailedCharge means that a charge of the task failed at the limit of the cgroup.
	FailedCharge Trigger = "failed_charge"
	// FailedAllocation means that the machine, or the memory nodes that the task may use, had no
	// free page for it, or no such block of pages.
	FailedAllocation Trigger = "failed_allocation"
	// LimitLowered means that the task set the limit of the cgroup below its usage.
	LimitLowered Trigger = "limit_lowered"
	// Requested means that a user asked for it (SysRq-f).
	Requested Trigger = "requested"
	// Unknown means that the trace, an older recording, does not have it: there is no failed
	// charge of the task at that level, or the machine ran out. Or see OfSomeCgroup.
	Unknown Trigger = "unknown"
)

// Scope says whose memory ran out.
type Scope string

const (
	OfCgroup Scope = "cgroup"
	// OfSomeCgroup is a cgroup that the trace does not have: the victim's, or one above it. The
	// start of the OOM killer was not seen.
	OfSomeCgroup Scope = "unknown_cgroup"
	OfMachine    Scope = "machine"
	// OfCpuset and OfMempolicy are the memory nodes of the task's cpuset or memory policy.
	OfCpuset    Scope = "cpuset"
	OfMempolicy Scope = "mempolicy"
)

func scopeOf(e *event.Event) Scope {
	switch {
	case e.Cgroup.ID != 0:
		return OfCgroup
	case e.Flags&event.UnknownCgroup != 0:
		return OfSomeCgroup
	case e.Flags&event.Cpuset != 0:
		return OfCpuset
	case e.Flags&event.Mempolicy != 0:
		return OfMempolicy
	}
	return OfMachine
}

// OOM is a run of the OOM killer, or all runs in a cgroup that killed nobody with the same
// Result.
type OOM struct {
	// Cgroup is the one that ran out of memory; zero for another Scope.
	Cgroup event.CgroupID
	Scope  Scope
	// BootNanos is the time when it started; in older recordings, of its first kill.
	BootNanos uint64
	last      uint64 // event.Event.OOMNanos, of several runs the last
	// PID, TID and Comm are the task that ran it.
	PID, TID uint32
	Comm     event.Comm
	Trigger  Trigger
	// Kind is the kind of the limit, and MaxPages its size or [UnknownLimit], for
	// FailedCharge and LimitLowered. UsagePages is what the cgroup held then; -1: unknown.
	Kind       event.Kind
	MaxPages   uint64
	UsagePages int64
	// FullSinceNanos is since when charges hit this limit; see Limit.SinceNanos. 0: unknown.
	FullSinceNanos uint64
	// Order is the order of the allocation, for FailedAllocation; -1: unknown.
	Order int32
	// Remote means that the task was charging another cgroup than its own, for FailedCharge.
	Remote bool
	// Result is how the runs ended that killed nobody, Runs their number, and Others whether
	// other tasks had some; 0: it killed Victims. Again is how often it ran right after that
	// without a kill: until victims have exited.
	Result      event.OOMResult
	Runs, Again uint64
	Others      bool
	// LastNanos is the time of the last kill or run.
	LastNanos uint64
	// Reclaim is the reclaim for the cgroup until then; if it is NotFirst, since its OOM before.
	Reclaim  Reclaim
	NotFirst bool
	// Chargers are the processes that had charged most memory to the cgroup and those below
	// it; see [Charger]. Recent are those of the last RecentNanos, which is at least a minute;
	// 0 in a trace that is not longer.
	Chargers, Recent []Charger
	RecentNanos      uint64
	// Kills is the number of Kills. The kernel can kill a process of a group twice.
	Kills int
	// Victims are the killed processes. In older recordings they can be of successive runs.
	Victims []event.Victim
	// Group means that some were killed with their group (memory.oom.group).
	Group  bool
	killed map[uint32]bool // the PIDs of Victims
	// Held is what the cgroup held afterwards; nil: unknown.
	Held *Held
}

// Kill is the kill of a process by a run of the OOM killer.
type Kill struct {
	*OOM
	BootNanos uint64
	Victim    event.Victim
	// VictimCgroup is the cgroup to which the victim had charged most in this trace; zero:
	// none.
	VictimCgroup event.CgroupID
}

func (v *Verdict) addKill(e *event.Event) {
	o := v.running
	if o == nil || o.TID != e.TID || o.Cgroup != e.Cgroup || o.last != e.OOMNanos {
		o = v.newOOM(e)
		v.addChargers(o)
		v.OOMs = append(v.OOMs, o)
		o.killed = make(map[uint32]bool)
		v.addStart(o, e)
		v.running = o
		v.killed[o.killedID()] = o
		if o.Cgroup.ID == 0 && o.Scope != OfSomeCgroup {
			v.killedLast = o
		}
	}
	o.LastNanos = e.BootNanos
	o.Group = o.Group || e.Flags&event.Group != 0
	if !o.killed[e.Victim.PID] {
		o.killed[e.Victim.PID] = true
		o.Victims = append(o.Victims, e.Victim)
	}
	o.Group = o.Group || len(o.Victims) > 1 && o.last != 0
	o.Kills++
	k := &Kill{o, e.BootNanos, e.Victim, e.VictimCgroup()}
	if e.Victim.CgroupID == 0 && len(v.Kills) < maxWithChargers {
		k.VictimCgroup = v.chargers.cgroupOf(e.Victim.PID)
	}
	v.Kills = append(v.Kills, k)
}

// addStart makes an OOM that of its run, and starts the sum of reclaim until the next one.
func (v *Verdict) addStart(o *OOM, e *event.Event) {
	if len(v.byStart) >= maxStarts {
		clear(v.byStart)
	}
	v.byStart[e.OOMNanos] = o
	v.before[e.Cgroup] = *v.Reclaim(e.Cgroup)
}

// maxStarts bounds the number of runs whose start is kept.
const maxStarts = 1 << 12

// idleID identifies the runs of the OOM killer that one OOM stands for.
type idleID struct {
	killedID
	trigger  Trigger
	kind     event.Kind
	maxPages uint64
	order    int32
	result   event.OOMResult
}

func (o *OOM) idleID(r event.OOMResult) idleID {
	return idleID{o.killedID(), o.Trigger, o.Kind, o.MaxPages, o.Order, r}
}

// killedID identifies an OOM. A later run with the same one, without a kill, may wait for its
// victims.
type killedID struct {
	cgroup event.CgroupID
	scope  Scope
	pid    uint32 // for OfCpuset and OfMempolicy
}

func (o *OOM) killedID() killedID {
	id := killedID{o.Cgroup, o.Scope, 0}
	if o.Scope == OfCpuset || o.Scope == OfMempolicy {
		id.pid = o.PID
	}
	return id
}

// addIdle adds a run of the OOM killer that killed nobody.
func (v *Verdict) addIdle(e *event.Event) {
	run := v.newOOM(e)
	run.Result = e.Result
	killed := v.killed[run.killedID()]
	if run.anyNodes() {
		killed = v.killedLast
	}
	if o := killed; o != nil && e.BootNanos-min(e.BootNanos, o.LastNanos) <= maxPause && (e.Result == event.VictimExits || e.Result == event.TaskExits) {
		o.Again++
		o.LastNanos = e.BootNanos
		return
	}
	id := run.idleID(e.Result)
	o := v.idle[id]
	if o == nil {
		o = run
		v.addChargers(o)
		v.idle[id] = o
		v.OOMs = append(v.OOMs, o)
	}
	o.Runs++
	o.LastNanos = e.BootNanos
	o.Others = o.Others || o.TID != e.TID
	v.addStart(o, e)
}

// Idle returns the OOM that an event of type [event.OOM] was added to; nil if it counts with an
// earlier kill.
func (v *Verdict) Idle(e *event.Event) *OOM { return v.byStart[e.OOMNanos] }

// newOOM returns the OOM of an event of the OOM killer.
func (v *Verdict) newOOM(e *event.Event) *OOM {
	o := &OOM{
		Cgroup: e.Cgroup, Scope: scopeOf(e), BootNanos: cmp.Or(e.OOMNanos, e.BootNanos), last: e.OOMNanos, PID: e.PID, TID: e.TID, Comm: e.Comm,
		Trigger: Unknown, MaxPages: UnknownLimit, UsagePages: -1, Reclaim: v.Reclaim(e.Cgroup).since(v.before[e.Cgroup]),
	}
	known := e.OOMNanos != 0 && e.Cgroup.ID != 0
	if known {
		o.UsagePages = e.UsagePages
	}
	_, o.NotFirst = v.before[e.Cgroup]
	f, failed := v.failures[e.TID]
	switch {
	case e.Flags&event.SysRq != 0:
		o.Trigger = Requested
	case o.Scope == OfSomeCgroup || e.Cgroup.ID == 0 && e.OOMNanos == 0: // perhaps SysRq
	case o.Scope != OfCgroup:
		o.Trigger, o.Order = FailedAllocation, e.Order
	case e.Flags&event.LimitWrite != 0:
		o.Trigger, o.Kind, o.MaxPages = LimitLowered, event.Memory, e.MaxPages
	case failed && f.counter.Cgroup == e.Cgroup:
		o.Trigger, o.Kind, o.MaxPages, o.Remote = FailedCharge, f.counter.Kind, f.maxPages, f.remote
		if known && o.Kind == event.Memory {
			o.MaxPages = e.MaxPages
		}
	case known:
		// A filter dropped the charge. In v1 it may have failed at the limit of memory and swap.
		o.Trigger, o.Kind, o.MaxPages = FailedCharge, event.Memory, e.MaxPages
		if room := int64(e.MaxPages) - e.UsagePages; e.Cgroup.Hierarchy != 0 && room > maxChargePages {
			o.Kind, o.MaxPages = event.Memsw, UnknownLimit
		}
	}
	if l := v.LimitOf(o); l != nil && o.Trigger == FailedCharge && l.SinceNanos <= o.BootNanos && o.BootNanos-min(o.BootNanos, l.LastNanos) <= maxPause {
		o.FullSinceNanos = l.SinceNanos
	}
	return o
}

// maxChargePages is the largest charge of memory: a huge page, on arm64 with pages of 64 KiB
// of 512 MiB.
const maxChargePages = 8192

// LimitOf returns the limit that was hit where the OOM killer ran, or nil.
func (v *Verdict) LimitOf(o *OOM) *Limit {
	return v.Limits[LimitID{CounterID: event.CounterID{Cgroup: o.Cgroup, Kind: cmp.Or(o.Kind, event.Memory)}}]
}
