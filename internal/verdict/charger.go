package verdict

import (
	"cmp"
	"maps"
	"slices"

	"chargetrace/internal/cause"
	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
)

// Charger is a process that charged memory to a cgroup or to those below it.
type Charger struct {
	PID uint32
	// Comm is the name of the last thread that charged.
	Comm event.Comm
	// Pages is what it charged; in a trace with uncharges, less what it gave back. Memory
	// that another process gave back, as reclaim does, still counts here.
	Pages int64
	// CachePages is the part that was charged as page cache, which the kernel can reclaim.
	// Only a trace with kernel stacks has it.
	CachePages int64
}

// maxChargers is the number of Chargers of an OOM, and maxWithChargers the number of OOMs that
// have some.
const maxChargers, maxWithChargers = 5, 1000

// chargers are the sums of a process in a cgroup. Their number is bounded: the smallest are
// forgotten.
type chargers struct {
	byID map[chargerID]*charger
	// recent caches byID, indexed by the PID plus the cgroup's ID modulo the length: most
	// events are of the few processes that charge at the time.
	recent [16]*charger
}

type chargerID struct {
	cgroup event.CgroupID
	pid    uint32
}

type charger struct {
	chargerID
	Charger
}

const maxChargerIDs = 1 << 16

// add adds a change of the usage of a memory counter.
func (cs *chargers) add(e *event.Event, isCache bool) {
	id := chargerID{e.Cgroup, e.PID}
	recent := &cs.recent[(id.cgroup.ID+uint64(id.pid))%uint64(len(cs.recent))]
	c := *recent
	if c == nil || c.chargerID != id {
		if c = cs.byID[id]; c == nil {
			if len(cs.byID) >= maxChargerIDs {
				cs.forget()
			}
			c = &charger{id, Charger{PID: e.PID}}
			cs.byID[id] = c
		}
		*recent = c
	}
	pages := e.UsageAfterPages() - e.UsagePages
	c.Pages += pages
	if e.Type != event.Uncharge {
		c.Comm = e.Comm
	}
	if isCache {
		c.CachePages += pages
	}
}

// forget drops the smaller half.
func (cs *chargers) forget() {
	all := slices.SortedFunc(maps.Values(cs.byID), func(a, b *charger) int { return cmp.Compare(a.Pages, b.Pages) })
	for _, c := range all[:len(all)/2] {
		delete(cs.byID, c.chargerID)
	}
	clear(cs.recent[:])
}

// most returns the processes that charged most to a cgroup and to those below it; to all for
// the machine.
func (cs *chargers) most(id event.CgroupID, names *cgroup.Names) []Charger {
	sums := make(map[uint32]*Charger)
	inside := make(map[event.CgroupID]bool)
	for cid, c := range cs.byID {
		in, known := inside[cid.cgroup]
		if !known {
			in = id.ID == 0 || slices.Contains(slices.Collect(names.Lineage(cid.cgroup)), id)
			inside[cid.cgroup] = in
		}
		if !in {
			continue
		}
		sum := sums[cid.pid]
		if sum == nil {
			sum = &Charger{PID: cid.pid, Comm: c.Comm}
			sums[cid.pid] = sum
		}
		sum.Pages += c.Pages
		sum.CachePages += c.CachePages
	}
	var all []Charger
	for _, c := range slices.SortedFunc(maps.Values(sums), func(a, b *Charger) int {
		return cmp.Or(cmp.Compare(b.Pages, a.Pages), cmp.Compare(a.PID, b.PID))
	}) {
		if c.Pages > 0 && len(all) < maxChargers {
			all = append(all, *c)
		}
	}
	return all
}

// cgroupOf returns the cgroup to which a process charged most, or none.
func (cs *chargers) cgroupOf(pid uint32) (id event.CgroupID) {
	var most *charger
	for _, c := range cs.byID {
		if c.pid == pid && (most == nil || c.Pages > most.Pages || c.Pages == most.Pages && c.cgroup.ID < most.cgroup.ID) {
			most, id = c, c.cgroup
		}
	}
	return id
}

// isCache reports whether a charge is for page cache that the kernel can drop or write back.
func (v *Verdict) isCache(e *event.Event) bool {
	if e.KernelStack == 0 {
		return false
	}
	switch v.Stacks.Cause(e) {
	case cause.FileRead, cause.Readahead, cause.FileWrite:
		return true
	}
	return false
}
