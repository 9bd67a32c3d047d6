package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"chargetrace/internal/capture"
	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/launch"
	"chargetrace/internal/recorder"
)

// completeRecorder implements source.
func (s *kernelSource) completeRecorder(o *recorder.Options) {
	o.Counts, o.Now, o.Latency = s.Counts, capture.BootNanos, s.options.Interval
}

// saveSignals returns the signals that save what is kept: SIGUSR2, and for a daemon SIGHUP. stop
// restores their effect.
func saveSignals(isDaemon bool) (signals chan os.Signal, stop func()) {
	signals = make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR2)
	if isDaemon && !signal.Ignored(unix.SIGHUP) { // as by nohup(1)
		signal.Notify(signals, unix.SIGHUP)
	}
	return signals, func() { signal.Stop(signals) }
}

const (
	maxCommandTime  = 30 * time.Second
	maxCommandQueue = 64
)

// commandRunner runs the command of -exec, once at a time.
type commandRunner struct {
	argv       []string
	stderr     io.Writer
	grace      *launch.Grace // nil: no limit is raised
	graceBytes int64

	ctx     context.Context // of the runs
	cancel  func()
	mu      sync.Mutex
	queue   []commandRun
	running sync.WaitGroup
	busy    bool
}

// commandRun is a run to come.
type commandRun struct {
	name      string // of what it is for
	variables []string
	urgent    bool
	raised    []string // the directories of the cgroups whose limits are raised until its end
}

func newCommandRunner(f *recorderFlags, stderr io.Writer) (*commandRunner, error) {
	if _, err := exec.LookPath(f.command[0]); err != nil {
		return nil, &hintedError{fmt.Errorf("-exec %s: %w", event.Printable(f.command[0]), err), "a path with a slash needs no PATH"}
	}
	r := &commandRunner{argv: f.command, stderr: stderr, graceBytes: f.graceBytes}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if f.graceBytes == 0 {
		return r, nil
	}
	var err error
	r.grace, err = launch.StartGrace(stderr)
	return r, err
}

// runUrgently runs the command before the runs for recordings, and raises the limits of the cgroups
// until its end. It does not wait.
func (r *commandRunner) runUrgently(s recorder.Save, verdict string) {
	r.running.Go(func() {
		run := commandRun{s.Trigger.Label, variablesOf(&s, verdict), true, nil}
		if r.grace != nil {
			run.raised = r.raise(&s)
		}
		r.add(run)
	})
}

// run runs the command for a recording, after the runs asked for before. It does not wait.
func (r *commandRunner) run(s recorder.Save, verdict string) {
	r.add(commandRun{s.Name, variablesOf(&s, verdict), false, nil})
}

// raise raises the limits with less room than that, of the cgroup of the charge and those above it:
// often a pod has the limit of its container. It returns their directories.
func (r *commandRunner) raise(s *recorder.Save) (raised []string) {
	trees, err := cgroup.Trees()
	if err != nil {
		r.warn("-grace: %v", err)
	}
	for _, level := range s.Levels {
		m, ok := cgroup.ReadMemory(trees, level.ID, level.Path)
		if !ok || m.MaxPages >= 1<<46 || int64(m.MaxPages)-m.UsagePages >= r.graceBytes/int64(os.Getpagesize()) {
			continue
		}
		for _, t := range trees {
			if t.Hierarchy != level.ID.Hierarchy {
				continue
			}
			dir := filepath.Join(t.Dir, level.Path)
			if err := r.grace.Raise(dir, level.ID.ID, r.graceBytes); err != nil {
				r.warn("-grace: cannot raise the limit of %s: %v", level.Path, err)
			} else {
				raised = append(raised, dir)
			}
		}
	}
	return raised
}

func (r *commandRunner) warn(format string, args ...any) {
	fmt.Fprintf(r.stderr, "chargetrace: warning: %s\n", event.Printable(fmt.Sprintf(format, args...)))
}

// variablesOf returns the environment of a run.
func variablesOf(s *recorder.Save, verdict string) []string {
	t := &s.Trigger
	pid := ""
	if t.PID != 0 {
		pid = strconv.FormatUint(uint64(t.PID), 10)
	}
	return []string{
		"CHARGETRACE_FILE=" + s.Path, "CHARGETRACE_REASON=" + t.Reason, "CHARGETRACE_CGROUP=" + t.Cgroup,
		"CHARGETRACE_CONTAINER=" + s.Identity.Name, "CHARGETRACE_POD=" + s.Identity.Pod, "CHARGETRACE_NAMESPACE=" + s.Identity.Namespace,
		"CHARGETRACE_PID=" + pid, "CHARGETRACE_VERDICT=" + verdict,
	}
}

// add adds a run to the queue.
func (r *commandRunner) add(run commandRun) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queue) == maxCommandQueue || r.ctx.Err() != nil {
		r.warn("-exec %s: not run for %s: %d runs are waiting", r.argv[0], run.name, len(r.queue))
		r.restore(&run)
		return
	}
	at := len(r.queue)
	if run.urgent {
		if at = slices.IndexFunc(r.queue, func(other commandRun) bool { return !other.urgent }); at < 0 {
			at = len(r.queue)
		}
	}
	r.queue = slices.Insert(r.queue, at, run)
	if !r.busy {
		r.busy = true
		r.running.Go(r.runQueue)
	}
}

// restore puts back the limits that are raised for a run.
func (r *commandRunner) restore(run *commandRun) {
	for _, dir := range run.raised {
		if err := r.grace.Restore(dir); err != nil {
			r.warn("-grace: %v", err)
		}
	}
}

// close waits for the runs asked for, for the time of one run in all.
func (r *commandRunner) close() error {
	timer := time.AfterFunc(maxCommandTime, r.cancel)
	defer timer.Stop()
	r.running.Wait()
	r.cancel()
	if r.grace == nil {
		return nil
	}
	return r.grace.Close()
}

func (r *commandRunner) runQueue() {
	for {
		r.mu.Lock()
		if len(r.queue) == 0 {
			r.busy = false
			r.mu.Unlock()
			return
		}
		run := r.queue[0]
		r.queue = r.queue[1:]
		r.mu.Unlock()
		if err := r.runOnce(run.variables); err != nil {
			r.warn("-exec %s for %s: %v", r.argv[0], run.name, err)
		}
		r.restore(&run)
	}
}

// runOnce runs the command, without a shell. Its arguments may have $CHARGETRACE_PID and the
// like.
func (r *commandRunner) runOnce(variables []string) error {
	var replace []string
	for _, v := range variables {
		name, value, _ := strings.Cut(v, "=")
		replace = append(replace, "$"+name, value)
	}
	var argv []string
	for _, word := range r.argv {
		argv = append(argv, strings.NewReplacer(replace...).Replace(word))
	}
	ctx, cancel := context.WithTimeout(r.ctx, maxCommandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), variables...)
	cmd.Stdout, cmd.Stderr = r.stderr, r.stderr
	// The signal is sent when this thread ends: at the end of chargetrace, and not before.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) } // what it started, too
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case r.ctx.Err() != nil:
		return errors.New("killed, since the trace has ended")
	case ctx.Err() != nil:
		return fmt.Errorf("timed out after %v", maxCommandTime)
	}
	return err
}
