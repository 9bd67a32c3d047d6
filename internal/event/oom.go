package event

// Victim is a process that the OOM killer chose.
type Victim struct {
	PID  uint32
	Comm Comm
	// The resident memory and swap of the process, in pages. Since Linux 6.2 they are
	// approximate, as in the kernel's log.
	AnonPages, FilePages, ShmemPages, SwapPages uint64
	// PageTableBytes is the size of its page tables.
	PageTableBytes uint64
	// CgroupID is the ID of its cgroup in the memory controller's hierarchy; 0: unknown.
	CgroupID uint64
}

// VictimCgroup returns the cgroup of the victim of an OOMKill.
func (e *Event) VictimCgroup() CgroupID { return e.InCgroup(e.Victim.CgroupID) }

// OOMResult is how a run of the OOM killer ended that killed nobody.
type OOMResult uint32

const (
	// NoVictim means that it found no process that it may kill.
	NoVictim OOMResult = 1 + iota
	// VictimExits means that it waits for a process that exits already, such as an earlier
	// victim.
	VictimExits
	// TaskExits means that the task itself exits, or that memory became free.
	TaskExits
	// Disabled means that it did not run: memory.oom_control of cgroup v1 disables it, and
	// the task waits for memory.
	Disabled
	// NoFS means that the machine ran out in an allocation that must not enter file systems
	// (GFP_NOFS), for which the kernel kills nobody.
	NoFS

	endOOMResults
)

var oomResultNames = [endOOMResults]string{"", "no_victim", "victim_exits", "task_exits", "disabled", "nofs"}

func (r OOMResult) String() string { return oomResultNames[r] }

// Valid reports whether r is one of the constants.
func (r OOMResult) Valid() bool { return r > 0 && r < endOOMResults }

// HeldPages is the resident memory of the process, without swap.
func (v *Victim) HeldPages() uint64 { return v.AnonPages + v.FilePages + v.ShmemPages }

// MaxStat and MaxIdentity are the maximum lengths of [Event.Stat] and [Event.Identity].
const MaxStat, MaxIdentity = 4096, 4096

func (e *Event) decodeOOMState(b []byte) {
	e.OOMNanos = ne.Uint64(b)
	e.UsagePages = int64(ne.Uint64(b[8:]))
	e.MaxPages = ne.Uint64(b[16:])
}

func (e *Event) appendOOMState(dst []byte) []byte {
	dst = ne.AppendUint64(dst, e.OOMNanos)
	dst = ne.AppendUint64(dst, uint64(e.UsagePages))
	return ne.AppendUint64(dst, e.MaxPages)
}
