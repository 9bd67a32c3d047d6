//go:build linux

package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"chargetrace/internal/cgroup"
)

// Grace raises memory limits for some time. A child, the limitRestorer, does it: it puts them back
// when chargetrace has died, too.
type Grace struct {
	mu       sync.Mutex
	restorer *exec.Cmd
	socket   *os.File
}

// limitRestorer raises limits and puts them back. It puts all back at EOF of its socket.
type limitRestorer struct{}

// graceRequest raises the limit of a cgroup by some bytes, or with 0 bytes puts it back.
type graceRequest struct {
	Dir   []byte // JSON strings have no other bytes than UTF-8
	Inode uint64
	Bytes int64
}

// StartGrace starts the limitRestorer, whose warnings go to stderr.
func StartGrace(stderr io.Writer) (*Grace, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	g := &Grace{restorer: exec.Command(self, "restorer")}
	g.restorer.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no signals of the terminal
	g.restorer.Stderr = stderr
	g.socket, err = startRole(g.restorer, role{Restore: &limitRestorer{}})
	return g, err
}

// Raise raises the memory limit of a cgroup, by its directory and inode number.
func (g *Grace) Raise(dir string, inode uint64, bytes int64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := json.NewEncoder(g.socket).Encode(graceRequest{[]byte(dir), inode, bytes}); err != nil {
		return err
	}
	_, err := receive(g.socket)
	return err
}

// Restore puts the limit back. It does not wait until that is done.
func (g *Grace) Restore(dir string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return json.NewEncoder(g.socket).Encode(graceRequest{Dir: []byte(dir)})
}

// Close puts all limits back and waits for that.
func (g *Grace) Close() error {
	return errors.Join(g.socket.Close(), g.restorer.Wait())
}

func (limitRestorer) run(socket *os.File) {
	signal.Ignore(unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE)
	var limits raisedLimits
	requests := json.NewDecoder(socket)
	for {
		var request graceRequest
		if requests.Decode(&request) != nil { // EOF
			break
		}
		dir := string(request.Dir)
		if request.Bytes == 0 {
			limits.restore(dir)
			continue
		}
		reply := message{}
		if err := limits.raise(dir, request.Inode, request.Bytes); err != nil {
			reply.Error = &Error{Message: err.Error()}
		}
		send(socket, reply) // if this fails, the next Decode does too
	}
	limits.restoreAll()
}

// raisedLimits are the raised limits by directory.
type raisedLimits struct {
	mu        sync.Mutex
	limits    map[string]*raisedLimit
	restoring sync.WaitGroup
}

// raisedLimit is a limit that was raised once, however many ask for it.
type raisedLimit struct {
	*cgroup.RaisedLimit
	users int
}

func (l *raisedLimits) raise(dir string, inode uint64, bytes int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.limits[dir]; r != nil { // or it is being put back
		r.users++
		return nil
	}
	r, err := cgroup.RaiseLimit(dir, inode, bytes)
	if err != nil {
		return err
	}
	if l.limits == nil {
		l.limits = make(map[string]*raisedLimit)
	}
	l.limits[dir] = &raisedLimit{r, 1}
	return nil
}

// restore puts back a limit for its last user.
func (l *raisedLimits) restore(dir string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.limits[dir]
	if r == nil {
		return
	}
	if r.users--; r.users == 0 {
		l.restoring.Go(func() {
			restoreLimit(dir, r.RaisedLimit)
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.limits, dir)
		})
	}
}

func (l *raisedLimits) restoreAll() {
	l.mu.Lock()
	for dir, r := range l.limits {
		if r.users > 0 {
			l.restoring.Go(func() { restoreLimit(dir, r.RaisedLimit) })
		}
	}
	l.mu.Unlock()
	l.restoring.Wait()
}

// Attempts to put back a limit. The kernel refuses a lower limit of cgroup v1 while it cannot
// reclaim enough (EBUSY).
const (
	restoreAttempts = 60
	restorePause    = time.Second
)

func restoreLimit(dir string, r *cgroup.RaisedLimit) {
	err := r.Restore()
	for i := 1; errors.Is(err, unix.EBUSY) && i < restoreAttempts; i++ {
		time.Sleep(restorePause)
		err = r.Restore()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "chargetrace: warning: the memory limit of %s, raised by -grace, is not put back: %v\n", dir, err)
	}
}
