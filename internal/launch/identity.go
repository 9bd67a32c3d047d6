//go:build linux

package launch

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// identity is the user that a command runs as. A nil identity is chargetrace's own.
type identity struct {
	UID, GID   int
	Groups     []int
	Name, Home string
}

// findIdentity returns the identity of a user by name or number, or of the caller of sudo(8) if
// name is empty.
func findIdentity(name string) (*identity, error) {
	if name == "" {
		return sudoCaller()
	}
	if os.Geteuid() != 0 {
		return nil, &Error{Message: "only root can run a command as another user", Hint: "run chargetrace with sudo"}
	}
	// Root keeps its groups, and needs no /etc/passwd.
	if name == "root" || name == "0" {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if errors.As(err, new(user.UnknownUserError)) {
		if _, numErr := strconv.ParseUint(name, 10, 32); numErr == nil {
			u, err = user.LookupId(name)
		}
	}
	if errors.As(err, new(user.UnknownUserError)) || errors.As(err, new(user.UnknownUserIdError)) {
		return nil, &Error{Message: "there is no user " + name, Hint: "-user accepts a name or number from /etc/passwd, or root"}
	}
	if err != nil {
		return nil, err
	}
	return newIdentity(u)
}

// sudoCaller returns the caller of sudo(8), or nil if that was root or if there is none.
func sudoCaller() (*identity, error) {
	uid, uidErr := strconv.Atoi(os.Getenv("SUDO_UID"))
	gid, gidErr := strconv.Atoi(os.Getenv("SUDO_GID"))
	if uidErr != nil || gidErr != nil || uid == 0 || os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.LookupId(strconv.Itoa(uid))
	if errors.As(err, new(user.UnknownUserIdError)) {
		// A user of a directory service, which only the C library can query; this executable is static.
		return &identity{
			UID: uid, GID: gid, Groups: []int{gid},
			Name: os.Getenv("SUDO_USER"), Home: cmp.Or(os.Getenv("SUDO_HOME"), "/"),
		}, nil
	}
	if err != nil {
		return nil, err
	}
	as, err := newIdentity(u)
	if err != nil {
		return nil, err
	}
	as.GID = gid
	return as, nil
}

func newIdentity(u *user.User) (*identity, error) {
	groups, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("the groups of %s: %w", u.Username, err)
	}
	as := &identity{Name: u.Username, Home: u.HomeDir}
	if as.UID, err = strconv.Atoi(u.Uid); err != nil {
		return nil, err
	}
	if as.GID, err = strconv.Atoi(u.Gid); err != nil {
		return nil, err
	}
	for _, g := range groups {
		gid, err := strconv.Atoi(g)
		if err != nil {
			return nil, err
		}
		as.Groups = append(as.Groups, gid)
	}
	return as, nil
}

// environ returns the environment variables of the identity.
func (as *identity) environ() []string {
	if as == nil {
		return nil
	}
	return []string{"HOME=" + as.Home, "USER=" + as.Name, "LOGNAME=" + as.Name}
}

// assume changes the identity of this process irrevocably.
func (as *identity) assume() error {
	if as == nil {
		return nil
	}
	err := syscall.Setgroups(as.Groups)
	if err == nil {
		err = syscall.Setgid(as.GID)
	}
	if err == nil {
		err = syscall.Setuid(as.UID)
	}
	if err != nil {
		return fmt.Errorf("become user %s: %w", as.Name, err)
	}
	return nil
}
