package main

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"chargetrace/internal/capture"
	"chargetrace/internal/cgroup"
	"chargetrace/internal/container"
	"chargetrace/internal/glob"
	"chargetrace/internal/stream"
)

func (cfg *config) addComm(pattern string) (err error) {
	cfg.comms = append(cfg.comms, pattern)
	cfg.filter.Comms, err = glob.Compile(cfg.comms...)
	if err != nil {
		return badValue("a pattern, as in 'java' or 'kworker/*': " + err.Error())
	}
	return nil
}

// addCgroup adds a systemd unit, or a path below the root of the cgroups.
func addCgroup(f *stream.Filter, s string) (err error) {
	if container.IsUnit(s) {
		f.Units, err = appendPattern(f.Units, s)
		return err
	}
	if s == "" {
		return badValue("a path, as in /proc/PID/cgroup or /sys/fs/cgroup/system.slice, or a unit, such as ssh.service")
	}
	f.Cgroups = append(f.Cgroups, cgroup.ParsePath(s))
	return nil
}

func appendPattern(patterns []string, pattern string) ([]string, error) {
	if pattern == "" || container.CheckPattern(pattern) != nil {
		return nil, badValue("a name or a pattern, as in 'cart-*'")
	}
	return append(patterns, pattern), nil
}

// parseRotate parses a size or a duration.
func (o *outputFlags) parseRotate(s string) error {
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		o.rotateAfter = d
		return nil
	}
	n, err := parseSize(s)
	if err != nil {
		return badValue("a size, such as 100M, or a time, such as 1h")
	}
	o.rotateBytes = n
	return nil
}

// badValue is the error of a flag's value. Package flag prints the flag and the value before
// it.
type badValue string

func (e badValue) Error() string { return "want " + string(e) }

// appendPIDs appends the pids of a comma-separated list, each once.
func appendPIDs(pids []uint32, list string) ([]uint32, error) {
	for field := range strings.SplitSeq(list, ",") {
		// The kernel's pid_t is a positive int.
		pid, err := strconv.ParseInt(field, 10, 32)
		if err != nil || pid <= 0 {
			return nil, badValue("process ids, such as 4711 or 12,34")
		}
		if !slices.Contains(pids, uint32(pid)) {
			pids = append(pids, uint32(pid))
		}
	}
	return pids, nil
}

func parsePositiveDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, badValue("a time, such as 500ms, 90s or 5m")
	}
	return d, nil
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, badValue("a time, such as 0s, 500ms or 5m")
	}
	return d, nil
}

func parseCount(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, badValue("a number, 1 or more")
	}
	return n, nil
}

func parseSwap(s string) (*int64, error) {
	if s == "0" {
		return new(int64), nil
	}
	n, err := parseSize(s)
	return &n, err
}

func parseBuffer(s string) (int, error) {
	n, err := parseSize(s)
	if err != nil {
		return 0, err
	}
	if n > capture.MaxBufferBytes {
		return 0, badValue("at most 2G")
	}
	return int(n), nil
}

// parseSize parses a size in bytes, such as 4096, 512K or 2MiB, in powers of 1024 like
// docker and kubectl.
func parseSize(s string) (int64, error) {
	number := strings.TrimRight(s, "KMGTkmgtiBb")
	shift, ok := map[string]uint{
		"": 0, "b": 0,
		"k": 10, "kb": 10, "kib": 10, "ki": 10,
		"m": 20, "mb": 20, "mib": 20, "mi": 20,
		"g": 30, "gb": 30, "gib": 30, "gi": 30,
		"t": 40, "tb": 40, "tib": 40, "ti": 40,
	}[strings.ToLower(s[len(number):])]
	n, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || n <= 0 || n > math.MaxInt64>>shift {
		return 0, badValue("a size, such as 4096, 512K or 2M")
	}
	return n << shift, nil
}
