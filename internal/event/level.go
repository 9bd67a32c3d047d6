package event

// Level is a level of the tree of page counters.
type Level struct {
	// CgroupID is the ID of its cgroup, in the hierarchy of the event's.
	CgroupID uint64
	// UsagePages is its usage before the charge.
	UsagePages int64
	// MaxPages is its limit.
	MaxPages uint64
}

// Limited reports whether the level has a limit.
func (l *Level) Limited() bool { return l.MaxPages < unlimitedPages }

// RoomPages is how many pages fit under the limit. It is negative if concurrent or
// forced charges exceeded the limit.
func (l *Level) RoomPages() int64 { return int64(l.MaxPages) - l.UsagePages }

// AtLimit reports whether the level has a limit and no room left.
func (l *Level) AtLimit() bool { return l.Limited() && l.RoomPages() <= 0 }

func decodeLevel(b *[levelSize]byte) Level {
	return Level{ne.Uint64(b[0:]), int64(ne.Uint64(b[8:])), ne.Uint64(b[16:])}
}

func appendLevel(dst []byte, l Level) []byte {
	dst = ne.AppendUint64(dst, l.CgroupID)
	dst = ne.AppendUint64(dst, uint64(l.UsagePages))
	return ne.AppendUint64(dst, l.MaxPages)
}
