package cgroup

// Limits are the limits of a group.
type Limits struct {
	// MemoryBytes and HighBytes are memory.max and memory.high; 0 means no limit.
	MemoryBytes, HighBytes int64
	// SwapBytes is memory.swap.max; nil means no limit.
	SwapBytes *int64
}
