package main

import (
	"fmt"
	"io"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// oomWatch is a sink that stores the OOM kill of a process.
type oomWatch struct {
	pid   uint32
	kill  *event.Event // nil: none yet
	names cgroup.Names
}

func (w *oomWatch) Write(batch []event.Event) error {
	for i := range batch {
		switch e := &batch[i]; {
		case e.Type == event.CgroupName:
			w.names.Add(e)
		case e.Type == event.OOMKill && e.Victim.PID == w.pid:
			kill := *e
			w.kill = &kill
		}
	}
	return nil
}

func (w *oomWatch) Close(stream.Counts) error { return nil }

func (w *oomWatch) print(stderr io.Writer) {
	if w.kill == nil {
		return
	}
	fmt.Fprintf(stderr, "chargetrace: %s was killed by the OOM killer: %s ran out of memory\n",
		w.kill.Victim.Comm.Of(w.pid), w.names.RanOut(w.kill))
}
