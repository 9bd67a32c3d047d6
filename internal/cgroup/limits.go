package cgroup

// Limits are what a group is limited to.
type Limits struct {
	// MemoryBytes and HighBytes are memory.max and memory.high; 0 is no limit.
	MemoryBytes, HighBytes int64
	// SwapBytes is memory.swap.max; nil is no limit.
	SwapBytes *int64
}
