package verdict

import (
	"fmt"
	"strconv"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
)

// TellTrigger writes why the flight recorder saved a recording: "shop/cart: java (141) hit its memory
// limit, 20.0 MiB".
func TellTrigger(f *text.Format, t *stream.Trigger) string {
	name, task := "the machine", event.Printable(t.Comm)+" ("+strconv.FormatUint(uint64(t.PID), 10)+")"
	if t.Label != "" {
		name = event.Printable(t.Label)
	}
	size := ""
	switch {
	case t.MaxPages == 0:
	case t.Kind == event.Dmem.String():
		size = ", " + f.Bytes(int64(t.MaxPages))
	default:
		size = ", " + f.Size(int64(t.MaxPages))
	}
	switch t.Reason {
	case "oom":
		if t.PID == 0 {
			return name + " ran out of memory, and no process was killed"
		}
		return fmt.Sprintf("%s ran out of memory, and %s was killed", name, task)
	case "limit":
		return fmt.Sprintf("%s: %s hit its %s limit%s", name, task, event.Printable(t.Kind), size)
	case "high":
		return fmt.Sprintf("%s: %s exceeded its memory.high%s", name, task, size)
	case "lost":
		return "events were lost"
	case "exit":
		return "the trace ended"
	case "signal":
		return "SIGUSR2 or SIGHUP was received"
	}
	return fmt.Sprintf("%s: %s reached %s of its %s limit%s", name, task, event.Printable(t.Reason), event.Printable(t.Kind), size)
}
