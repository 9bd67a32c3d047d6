package cgroup

// Limits are the limits of a group.
type Limits struct {
	// MemoryBytes and HighBytes are memory.max and memory.high; 0 means no limit.
	MemoryBytes, HighBytes int64
	// SwapBytes is memory.swap.max; nil means no limit.
	SwapBytes *int64
}

// Memory is the usage of a cgroup and its limits, in pages: memory.current, memory.max and
// memory.high, or in v1 memory.usage_in_bytes and memory.limit_in_bytes.
type Memory struct {
	UsagePages          int64
	MaxPages, HighPages uint64
}
