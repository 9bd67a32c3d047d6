//go:build linux

package launch

import (
	"bytes"
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

// cgroupReaper makes a cgroup, and removes it at EOF of its socket. Its fields are the parameters
// of [cgroup.Make].
type cgroupReaper struct {
	Name      string
	Delegated bool
	Limits    cgroup.Limits
}

func (r *cgroupReaper) run(socket *os.File) message {
	signal.Ignore(unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE)
	g, err := cgroup.Make(r.Name, r.Delegated, r.Limits)
	if err != nil {
		return message{Error: &Error{Message: "cannot make a cgroup: " + err.Error(), Hint: makeHint(err)}}
	}
	// If this fails, chargetrace has died, and Copy returns at once.
	send(socket, message{Dir: g.Dir})
	io.Copy(io.Discard, socket)
	last := message{}
	if last.Killed, err = g.Remove(); err != nil {
		last.Error = &Error{Message: "cannot remove the cgroup: " + err.Error()}
	}
	return last
}

// makeHint returns the hint for an error of [cgroup.Make].
func makeHint(err error) string {
	switch {
	case errors.Is(err, cgroup.ErrNoController):
		return "boot with CONFIG_MEMCG=y and without cgroup_disable=memory; in a container, delegate the memory controller to it"
	case errors.Is(err, unix.EROFS):
		return "in a container, mount /sys/fs/cgroup writable, or run chargetrace outside"
	case errors.Is(err, fs.ErrPermission):
		return "run it with sudo"
	case errors.Is(err, unix.EBUSY):
		return "a cgroup that has processes cannot limit its children: move them to a child of it"
	case errors.Is(err, fs.ErrNotExist):
		return "the kernel does not account swap: boot with swapaccount=1"
	}
	return ""
}

// ownCgroup is the command's cgroup, with the cgroupReaper that removes it.
type ownCgroup struct {
	cgroup.Group
	reaper *exec.Cmd
	stderr bytes.Buffer // of reaper
	socket *os.File     // to reaper
}

// newOwnCgroup starts a cgroupReaper and waits until it has made the cgroup.
func newOwnCgroup(limits cgroup.Limits) (*ownCgroup, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	reap := &cgroupReaper{Name: fmt.Sprintf("chargetrace-%d", os.Getpid()), Limits: limits}
	argv := []string{self, "reaper"}
	// systemd owns the cgroup tree, and delegates parts of it: https://systemd.io/CGROUP_DELEGATION.
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		argv = append([]string{"systemd-run", "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--unit", reap.Name, "--"}, argv...)
		reap.Name, reap.Delegated = "command", true
	}
	g := &ownCgroup{reaper: exec.Command(argv[0], argv[1:]...)}
	// A new session gets no signals of the terminal.
	g.reaper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	g.reaper.Stderr = &g.stderr
	g.socket, err = startRole(g.reaper, role{Reap: reap})
	if err != nil {
		return nil, &Error{Message: fmt.Sprintf("cannot make a cgroup: %v", err), Hint: "systemd-run comes with systemd"}
	}
	m, err := receive(g.socket)
	if err == nil {
		g.Dir = m.Dir
		return g, nil
	}
	g.socket.Close()
	waitErr := g.reaper.Wait()
	if m.Error != nil {
		return nil, err
	}
	return nil, &Error{
		Message: fmt.Sprintf("cannot make a cgroup: %s: %v: %s", argv[0], waitErr, g.errorText()),
		Hint:    "systemd delegates cgroups to root: run it with sudo",
	}
}

// remove makes the cgroupReaper remove the cgroup. It returns the number of processes killed in it.
func (g *ownCgroup) remove() (killed int, err error) {
	defer g.socket.Close()
	if err := unix.Shutdown(int(g.socket.Fd()), unix.SHUT_WR); err != nil {
		return 0, err
	}
	m, err := receive(g.socket)
	waitErr := g.reaper.Wait()
	if err != nil && m.Error == nil {
		return 0, fmt.Errorf("%s may be left: its reaper ended: %w: %s", g.Dir, errors.Join(err, waitErr), g.errorText())
	}
	return m.Killed, err
}

// errorText returns the stderr of the cgroupReaper or systemd-run.
func (g *ownCgroup) errorText() string { return strings.TrimSpace(g.stderr.String()) }
