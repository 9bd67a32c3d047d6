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

// maxChargers is the number of Chargers and of Recent ones of an OOM, and maxWithChargers the
// number of OOMs that have some.
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
	// recent has the Pages of the latest slots of time up to slot, each at its number modulo
	// the length.
	recent [slots]int32
	slot   uint64
	// lastNanos is the time of the last charge, which has the Comm.
	lastNanos uint64
}

// A slot of time is BootNanos >> slotBits, 8.6 s. All but the current one are at least a
// minute.
const slotBits, slots = 33, 8

// addRecent adds pages at a time.
func (c *charger) addRecent(bootNanos uint64, pages int64) {
	slot := bootNanos >> slotBits
	if slot > c.slot {
		for i := range min(slot-c.slot, slots) {
			c.recent[(slot-i)%slots] = 0
		}
		c.slot = slot
	}
	if c.slot-slot < slots { // events of different CPUs can be slightly out of order
		c.recent[slot%slots] += int32(pages)
	}
}

// recentPages returns the pages of a slot and of those before it.
func (c *charger) recentPages(slot uint64) (sum int64) {
	for i := range uint64(slots) {
		if s := c.slot - i; s <= c.slot && s <= slot && slot-s < slots {
			sum += int64(c.recent[s%slots])
		}
	}
	return sum
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
			c = &charger{chargerID: id, Charger: Charger{PID: e.PID}}
			cs.byID[id] = c
		}
		*recent = c
	}
	pages := e.UsageAfterPages() - e.UsagePages
	c.Pages += pages
	c.addRecent(e.BootNanos, pages)
	if e.Type != event.Uncharge {
		c.Comm, c.lastNanos = e.Comm, e.BootNanos
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

// addChargers sets who charged most to the cgroup of an OOM.
func (v *Verdict) addChargers(o *OOM) {
	if len(v.OOMs) >= maxWithChargers || o.Scope == OfSomeCgroup {
		return
	}
	o.Chargers = v.chargers.most(o.Cgroup, &v.Names, func(c *charger) Charger { return c.Charger })
	slot := o.BootNanos >> slotBits
	from := (slot - min(slot, slots-1)) << slotBits
	if from <= max(v.Info.StartBootNanos, v.firstNanos) {
		return
	}
	o.RecentNanos = o.BootNanos - from
	o.Recent = v.chargers.most(o.Cgroup, &v.Names, func(c *charger) Charger {
		return Charger{PID: c.PID, Comm: c.Comm, Pages: c.recentPages(slot)}
	})
}

// most returns the processes with the largest sums of what part returns of the chargers of a
// cgroup and of those below it; of all for the machine.
func (cs *chargers) most(id event.CgroupID, names *cgroup.Names, part func(*charger) Charger) []Charger {
	sums := make(map[uint32]*charger)
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
			sum = &charger{Charger: Charger{PID: cid.pid}}
			sums[cid.pid] = sum
		}
		if c.lastNanos >= sum.lastNanos {
			sum.Comm, sum.lastNanos = c.Comm, c.lastNanos
		}
		p := part(c)
		sum.Pages += p.Pages
		sum.CachePages += p.CachePages
	}
	var all []Charger
	for _, c := range slices.SortedFunc(maps.Values(sums), func(a, b *charger) int {
		return cmp.Or(cmp.Compare(b.Pages, a.Pages), cmp.Compare(a.PID, b.PID))
	}) {
		if c.Pages > 0 && len(all) < maxChargers {
			all = append(all, c.Charger)
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
