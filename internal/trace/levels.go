package trace

import "chargetrace/internal/event"

// usages has the expected usage of each level in a block; see the package comment.
type usages struct {
	index    map[event.CounterID]int
	expected []int64
}

// levels are the indices in usages of the levels of a context.
type levels struct{ own, limiting, high int }

func (u *usages) reset() {
	if u.index == nil {
		u.index = make(map[event.CounterID]int)
	}
	clear(u.index)
	u.expected = u.expected[:0]
}

// levels returns the levels of a context. Contexts without a counter do not use them.
func (u *usages) levels(c *event.Event) levels {
	return levels{
		own:      u.level(c, c.Cgroup.ID),
		limiting: u.level(c, c.Limiting.CgroupID),
		high:     u.level(c, c.High.CgroupID),
	}
}

func (u *usages) level(c *event.Event, cgroup uint64) int {
	key := event.CounterID{Cgroup: c.InCgroup(cgroup), Kind: c.Kind}
	i, ok := u.index[key]
	if !ok {
		i = len(u.expected)
		u.index[key] = i
		u.expected = append(u.expected, 0)
	}
	return i
}

// charge adds the pages of a successful charge to what is expected of its levels.
func (l *levels) charge(expected []int64, e *event.Event) {
	if e.Outcome != event.OK {
		return
	}
	pages := int64(e.RequestedPages)
	expected[l.own] += pages
	if l.limiting != l.own {
		expected[l.limiting] += pages
	}
	if l.high != l.own && l.high != l.limiting {
		expected[l.high] += pages
	}
}
