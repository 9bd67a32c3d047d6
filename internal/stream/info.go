package stream

// Info says what made a trace, and how its numbers are read. A recording holds it as
// JSON.
type Info struct {
	// PageSize is that of the traced machine, in bytes.
	PageSize int `json:"page_size"`
	// StartBootNanos is when the trace began, on the clock of
	// [event.Event.BootNanos].
	StartBootNanos uint64 `json:"start_boot_ns"`
	// BootWallNanos is the wall-clock time at boot, in nanoseconds since 1970:
	// added to BootNanos it gives the time of day.
	BootWallNanos int64 `json:"boot_wall_ns"`

	// Program is the version of chargetrace, and CommandLine how it was called.
	Program     string   `json:"program"`
	CommandLine []string `json:"command_line"`
	// Host, Kernel and Arch are the traced machine's name, its kernel's release, and
	// its architecture as Go names it.
	Host   string `json:"host"`
	Kernel string `json:"kernel_release"`
	Arch   string `json:"architecture"`
	// Attach is how the hooks were attached, such as "kprobe".
	Attach string `json:"attach"`

	// KernelStacks and UserStacks say that charges have such stacks.
	KernelStacks bool `json:"kernel_stacks,omitempty"`
	UserStacks   bool `json:"user_stacks,omitempty"`
	// Net says that the trace has all uncharges, and all charges that ignore the
	// limit, so that there is a balance.
	Net bool `json:"net,omitempty"`
}

// Counts say what became of the charges of a trace. A recording holds those that are not
// counted by [Copy], as JSON.
type Counts struct {
	// Whole says that the trace came to its end: what the kernel counted is known, and
	// final. Without it only DamagedBlocks and what Copy counts are.
	Whole bool `json:"-"`
	// Seen charges reached the programs in the kernel: those that were delivered,
	// Filtered and Lost.
	Seen uint64 `json:"seen"`
	// Filtered charges were rejected by the filters in the kernel.
	Filtered uint64 `json:"filtered"`
	// Lost charges, and LostNonCharge events of other types, found the ring buffer full.
	Lost          uint64 `json:"lost"`
	LostNonCharge uint64 `json:"lost_others"`
	// Missed calls of the traced function never reached the program, because it or
	// another BPF program was already running on that CPU. They are not part of Seen.
	// Kernels before 6.7 do not count all of them.
	Missed uint64 `json:"missed"`
	// RecordedEvents is how many events, names aside, a recording holds, and
	// RecordedCharges how many of them are charges. Both are 0 for a live trace.
	RecordedEvents  uint64 `json:"events"`
	RecordedCharges uint64 `json:"charges"`
	// LostStacks is how many stacks of charges are missing: the kernel could not take
	// them, or there were too many different ones.
	LostStacks uint64 `json:"unstacked,omitempty"`
	// UnnamedProcesses is how many processes have user stacks of addresses alone, because
	// their files could not be read, plus how many stacks are, because that took too long.
	UnnamedProcesses uint64 `json:"unnamed,omitempty"`
	// DamagedBlocks of recordings could not be read.
	DamagedBlocks uint64 `json:"damaged_blocks,omitempty"`
	// BatchPages is how many pages the kernel charges at once where it needs fewer
	// (MEMCG_CHARGE_BATCH); 0 if the trace was too short to tell.
	BatchPages uint64 `json:"batch_pages"`
	// Unfollowed processes were forked by traced ones, but there were too many to trace
	// them too.
	Unfollowed uint64 `json:"-"`

	// Counted by Copy.

	// Read is how many charges the source delivered, and Shown how many of them passed
	// the filter.
	Read  uint64 `json:"-"`
	Shown uint64 `json:"-"`
	// LostInShown is how many events the [event.Lost] events among those shown stand for.
	LostInShown uint64 `json:"-"`
	// Of the charges shown, Predicted have an outcome that was not seen, but predicted;
	// WalksCut were to a cgroup with more ancestors than the program looks at; and
	// UnknownKinds were to counters of no known kind.
	Predicted    uint64 `json:"-"`
	WalksCut     uint64 `json:"-"`
	UnknownKinds uint64 `json:"-"`
}

// Unseen is how many events the kernel could not deliver, plus the calls it missed.
func (c *Counts) Unseen() uint64 { return c.Lost + c.LostNonCharge + c.Missed }
