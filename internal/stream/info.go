package stream

import "chargetrace/internal/event"

// Info describes a trace: its machine, its clock and its options. A recording contains
// it as JSON.
type Info struct {
	// PageSize is the page size of the traced machine, in bytes.
	PageSize int `json:"page_size"`
	// StartBootNanos is the start of the trace, on the clock of
	// [event.Event.BootNanos].
	StartBootNanos uint64 `json:"start_boot_ns"`
	// BootWallNanos is the wall-clock time of boot when the trace began, in nanoseconds since
	// 1970. Added to BootNanos it gives the time of day, up to the first [event.ClockStep].
	BootWallNanos int64 `json:"boot_wall_ns"`

	// Program is the version of chargetrace, and CommandLine its command line.
	Program     string   `json:"program"`
	CommandLine []string `json:"command_line"`
	// Host, Kernel and Arch are the name of the traced machine, its kernel release, and
	// its GOARCH.
	Host   string `json:"host"`
	Kernel string `json:"kernel_release"`
	Arch   string `json:"architecture"`
	// Attach is the type of the hooks, such as "kprobe".
	Attach string `json:"attach"`

	// KernelStacks and UserStacks mean that charges have kernel stacks, or user stacks.
	KernelStacks bool `json:"kernel_stacks,omitempty"`
	UserStacks   bool `json:"user_stacks,omitempty"`
	// Kinds are the kinds of counters that are traced; 0 means all.
	Kinds event.Kinds `json:"kinds,omitempty"`
	// Net means that the trace has all uncharges and all forced charges, so that a
	// counter has a balance.
	Net bool `json:"net,omitempty"`

	// Saved is set in a recording that the flight recorder saved.
	Saved *Saved `json:"saved,omitempty"`
}

// Saved says why the flight recorder saved a recording.
type Saved struct {
	// File is the name that it gave the file: a file with another name is not its own any more.
	File string `json:"file"`
	// Triggers are the first triggers for each reason, in the order of time.
	Triggers []Trigger `json:"triggers"`
	// Suppressed is the number of triggers since the file before that saved nothing: there was
	// a file of their cgroup already.
	Suppressed uint64 `json:"suppressed,omitempty"`
}

// Trigger is an event for which the flight recorder saves a recording.
type Trigger struct {
	// Reason is the value of -when, or "signal".
	Reason    string `json:"reason"`
	BootNanos uint64 `json:"boot_ns"`
	// Times is the number of triggers with this reason.
	Times uint64 `json:"times"`
	// Cgroup is the path of the cgroup at whose limit it happened, and Label what people call
	// it. Both are empty for a trigger of no cgroup.
	Cgroup string `json:"cgroup,omitempty"`
	Label  string `json:"label,omitempty"`
	// PID and Comm are the process that was killed, or whose charge it was; 0: none.
	PID  uint32 `json:"pid,omitempty"`
	Comm string `json:"comm,omitempty"`
	// MaxPages is the limit of that charge, or memory.high, and Kind the kind of its counter; in
	// bytes for the kind "dmem". 0: unknown.
	MaxPages uint64 `json:"max_pages,omitempty"`
	Kind     string `json:"kind,omitempty"`
}

// Counts are the numbers of traced, filtered, lost and shown charges. A recording
// contains them as JSON, without those of [Copy].
type Counts struct {
	// Whole means that the trace ended normally, so that the kernel's counts are final.
	// Otherwise only DamagedBlocks and the counts of Copy are known.
	Whole bool `json:"-"`
	// Seen charges reached the BPF program: they were delivered, Filtered or Lost.
	Seen uint64 `json:"seen"`
	// Filtered charges were dropped by the filters in the kernel.
	Filtered uint64 `json:"filtered"`
	// Lost charges, and LostNonCharge events of other types, found the ring buffer full.
	Lost          uint64 `json:"lost"`
	LostNonCharge uint64 `json:"lost_others"`
	// Missed calls of the traced function did not reach a program, because it or
	// another BPF program was already running on that CPU, or their return was not seen,
	// as at the end of the trace. They are not part of Seen. Kernels before 6.7 do not
	// count all of them.
	Missed uint64 `json:"missed"`
	// RecordedEvents is the number of events in a recording, without names, and
	// RecordedCharges the number of charges among them. Both are 0 for a live trace.
	RecordedEvents  uint64 `json:"events"`
	RecordedCharges uint64 `json:"charges"`
	// LostStacks is the number of missing stacks of charges: the kernel could not walk
	// them, or there were too many different ones.
	LostStacks uint64 `json:"unstacked,omitempty"`
	// UnnamedProcesses is the number of processes with only addresses in their user
	// stacks, because their files could not be read, plus the number of stacks with only
	// addresses because that took too long.
	UnnamedProcesses uint64 `json:"unnamed,omitempty"`
	// DamagedBlocks is the number of unreadable blocks in recordings.
	DamagedBlocks uint64 `json:"damaged_blocks,omitempty"`
	// BatchPages is the number of pages that the kernel charges at once if it needs fewer
	// (MEMCG_CHARGE_BATCH); 0 if the trace was too short to measure it.
	BatchPages uint64 `json:"batch_pages"`
	// Unfollowed processes were forked by traced ones, but not traced because there were
	// too many.
	Unfollowed uint64 `json:"-"`

	// Counted by Copy.

	// Read is the number of charges that the source delivered, and Shown the number of
	// those that passed the filter.
	Read  uint64 `json:"-"`
	Shown uint64 `json:"-"`
	// Dropped are some of the charges that the filter dropped, if it dropped all.
	Dropped Dropped `json:"-"`
	// LostInShown is the sum of LostCharges of the shown [event.Lost] events.
	LostInShown uint64 `json:"-"`
	// Of the shown charges, Predicted have a predicted outcome, since their return was not
	// seen; WalksCut were to a cgroup with more ancestors than the program looks at; and
	// UnknownKinds were to counters of an unknown kind.
	Predicted    uint64 `json:"-"`
	WalksCut     uint64 `json:"-"`
	UnknownKinds uint64 `json:"-"`
}

// Unseen is the number of lost events and missed calls.
func (c *Counts) Unseen() uint64 { return c.Lost + c.LostNonCharge + c.Missed }

// Dropped has the first tasks, cgroups and kinds of the charges that a filter dropped. Unused
// elements are zero.
type Dropped struct {
	Tasks   [5]Task
	Cgroups [5]event.CgroupID
	Kinds   event.Kinds
}

// Task is a process and the name of one of its threads.
type Task struct {
	PID  uint32
	Comm event.Comm
}

func (d *Dropped) add(e *event.Event) {
	d.Kinds |= 1 << e.Kind
	addFirst(d.Tasks[:], Task{e.PID, e.Comm})
	addFirst(d.Cgroups[:], e.Cgroup)
}

// addFirst adds v, unless it is in list or list is full.
func addFirst[T comparable](list []T, v T) {
	var zero T
	for i := range list {
		if list[i] == zero {
			list[i] = v
		}
		if list[i] == v {
			return
		}
	}
}
