package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// identity is the user that a command runs as. The nil pointer is whoever runs
// chargetrace.
type identity struct {
	UID, GID   int
	Groups     []int
	Name, Home string
}

// findIdentity returns the identity of the user of that name or number, and of
// who called sudo where it is empty.
func findIdentity(name string) (*identity, error) {
	if name == "" {
		return sudoCaller()
	}
	if os.Geteuid() != 0 {
		return nil, &hintedError{errors.New("only root can run a command as another user"), "run chargetrace with sudo"}
	}
	// What root has is kept, also where there is no list of users.
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
		return nil, &hintedError{fmt.Errorf("there is no user %s", name), "-user takes a name or number that is in /etc/passwd, or root"}
	}
	if err != nil {
		return nil, err
	}
	return newIdentity(u)
}

// sudoCaller returns who called sudo, nil where that was root, or nobody.
func sudoCaller() (*identity, error) {
	uid, uidErr := strconv.Atoi(os.Getenv("SUDO_UID"))
	gid, gidErr := strconv.Atoi(os.Getenv("SUDO_GID"))
	if uidErr != nil || gidErr != nil || uid == 0 || os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.LookupId(strconv.Itoa(uid))
	if errors.As(err, new(user.UnknownUserIdError)) {
		// Of a directory service, which a static executable cannot ask.
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

// environ is what the environment says of the identity.
func (as *identity) environ() []string {
	if as == nil {
		return nil
	}
	return []string{"HOME=" + as.Home, "USER=" + as.Name, "LOGNAME=" + as.Name}
}

// assume makes it the identity of this process, for good.
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
