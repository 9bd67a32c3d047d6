package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"chargetrace/internal/cgroup"
)

// role is what a process does that chargetrace starts from its own executable.
// It is told in the environment.
type role struct {
	// Socket is a file descriptor. Its other end is chargetrace's, and closes
	// with it, however it ends.
	Socket int
	// ExecAs is, for the process that becomes the command, who it is then.
	ExecAs *identity
	// Reap is the cgroup that the reaper makes and removes; nil for the other role.
	Reap *cgroupReaper
}

const roleVariable = "CHARGETRACE_ROLE"

// answer is what such a process says on its socket, as JSON.
type answer struct {
	// Dir is the group's, once it is made.
	Dir string
	// Killed is how many processes were left in it.
	Killed int
	// Err is what went wrong, if it is not empty, Hint the way out, and Status
	// what chargetrace is to exit with.
	Err, Hint string
	Status    int
}

func (r answer) error() error {
	switch {
	case r.Err == "":
		return nil
	case r.Hint == "":
		return errors.New(r.Err)
	}
	return &hintedError{errors.New(r.Err), r.Hint}
}

func readAnswer(socket io.Reader) (r answer, err error) {
	return r, json.NewDecoder(socket).Decode(&r)
}

func writeAnswer(socket io.Writer, r answer) error { return json.NewEncoder(socket).Encode(r) }

// startSelf starts a process in a role, and returns chargetrace's end of its
// socket.
func startSelf(cmd *exec.Cmd, r role) (*os.File, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours := os.NewFile(uintptr(ends[0]), "socket")
	defer unix.Close(ends[1])
	// exec.Cmd would give it a number that the command may have a use for: make
	// and shells pass files on.
	if _, err := unix.FcntlInt(uintptr(ends[1]), unix.F_SETFD, 0); err != nil {
		ours.Close()
		return nil, err
	}
	r.Socket = ends[1]
	encoded, err := json.Marshal(r)
	if err == nil {
		cmd.Env = append(cmd.Environ(), roleVariable+"="+string(encoded))
		err = cmd.Start()
	}
	if err != nil {
		ours.Close()
		return nil, err
	}
	return ours, nil
}

// playRole does what chargetrace has started this process for, if it has.
func playRole() {
	encoded, ok := os.LookupEnv(roleVariable)
	if !ok {
		return
	}
	os.Unsetenv(roleVariable)
	var r role
	if err := json.Unmarshal([]byte(encoded), &r); err != nil {
		fmt.Fprintf(os.Stderr, "chargetrace: %s is for its own use: %v\n", roleVariable, err)
		os.Exit(1)
	}
	unix.CloseOnExec(r.Socket)
	socket := os.NewFile(uintptr(r.Socket), "socket")
	var last answer
	if r.Reap != nil {
		last = r.Reap.run(socket)
	} else {
		last = execAs(r.ExecAs, socket, os.Args[1:])
	}
	if err := writeAnswer(socket, last); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// cgroupReaper is a group to be made, and removed when chargetrace ends.
type cgroupReaper struct {
	Name      string
	Delegated bool
	Limits    cgroup.Limits
}

// run makes the group, and removes it when the socket says that chargetrace has
// ended, or does not need it any more.
func (r *cgroupReaper) run(socket *os.File) answer {
	signal.Ignore(unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE)
	g, err := cgroup.Make(r.Name, r.Delegated, r.Limits)
	if err != nil {
		return answer{Err: "cannot make a cgroup: " + err.Error(), Hint: groupHint(err)}
	}
	// Where nobody reads this, nobody holds the other end.
	writeAnswer(socket, answer{Dir: g.Dir})
	io.Copy(io.Discard, socket)
	killed, err := g.Remove()
	if err != nil {
		return answer{Killed: killed, Err: "cannot remove the cgroup: " + err.Error()}
	}
	return answer{Killed: killed}
}

// groupHint is the way out of an error of [cgroup.Make].
func groupHint(err error) string {
	switch {
	case errors.Is(err, cgroup.ErrNoController):
		return "boot without cgroup_disable=memory, with CONFIG_MEMCG=y; a container may have to be given the controller"
	case errors.Is(err, unix.EROFS):
		return "in a container, have /sys/fs/cgroup mounted writable, or run chargetrace outside"
	case errors.Is(err, fs.ErrPermission):
		return "run it with sudo"
	case errors.Is(err, unix.EBUSY):
		return "a cgroup that has processes cannot limit its children: move them to a child of it"
	case errors.Is(err, fs.ErrNotExist):
		return "there is no limit of swap where the kernel does not account it: boot with swapaccount=1"
	}
	return ""
}

// group is the cgroup of a command, and the process that keeps it: chargetrace
// can be killed at any time.
type group struct {
	cgroup.Group
	reaper *exec.Cmd
	stderr bytes.Buffer
	socket *os.File
}

func newGroup(limits cgroup.Limits) (*group, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	reap := &cgroupReaper{Name: fmt.Sprintf("chargetrace-%d", os.Getpid()), Limits: limits}
	argv := []string{self, "keeper"}
	// systemd(1) wants to know who makes cgroups in its tree, and gives out parts
	// of it (https://systemd.io/CGROUP_DELEGATION).
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		argv = append([]string{"systemd-run", "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--unit", reap.Name, "--"}, argv...)
		reap.Name, reap.Delegated = "command", true
	}
	g := &group{reaper: exec.Command(argv[0], argv[1:]...)}
	// Out of the reach of the terminal's signals.
	g.reaper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	g.reaper.Stderr = &g.stderr
	g.socket, err = startSelf(g.reaper, role{Reap: reap})
	if err != nil {
		return nil, &hintedError{fmt.Errorf("cannot make a cgroup: %w", err), "systemd-run comes with systemd"}
	}
	r, err := readAnswer(g.socket)
	if err == nil && r.Err == "" {
		g.Dir = r.Dir
		return g, nil
	}
	g.socket.Close()
	waitErr := g.reaper.Wait()
	if err == nil {
		return nil, r.error()
	}
	return nil, &hintedError{
		fmt.Errorf("cannot make a cgroup: %s: %v: %s", argv[0], waitErr, strings.TrimSpace(g.stderr.String())),
		"systemd gives cgroups to root: run it with sudo",
	}
}

// remove removes the group, and returns how many processes had to be killed for
// that.
func (g *group) remove() (killed int, err error) {
	defer g.socket.Close()
	if err := unix.Shutdown(int(g.socket.Fd()), unix.SHUT_WR); err != nil {
		return 0, err
	}
	r, err := readAnswer(g.socket)
	waitErr := g.reaper.Wait()
	if err != nil {
		return 0, fmt.Errorf("%s may not be removed: its keeper ended: %w: %s", g.Dir, errors.Join(err, waitErr), strings.TrimSpace(g.stderr.String()))
	}
	return r.Killed, r.error()
}
