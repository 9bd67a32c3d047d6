package main

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/stream"
)

// cgroups are the cgroups of this machine that -cgroup and -container select.
type cgroups struct {
	targets []cgroup.Target
	inotify int // reports their removal
}

// openCgroups finds the cgroups that the filter selects.
func openCgroups(filter stream.Filter) (*cgroups, error) {
	cs := &cgroups{inotify: -1}
	if !filter.FiltersCgroups() {
		return cs, nil
	}
	trees, err := cgroup.Trees()
	if err != nil {
		return nil, err
	}
	for _, path := range filter.Cgroups {
		targets, err := path.Find(trees)
		if err != nil {
			return nil, &hintedError{err, "/proc/PID/cgroup has the cgroup of a process, and systemd-cgls lists all"}
		}
		cs.targets = append(cs.targets, targets...)
	}
	for _, id := range filter.Containers {
		targets, err := findContainer(trees, id)
		if err != nil {
			return nil, err
		}
		cs.targets = append(cs.targets, targets...)
	}
	return cs, cs.watch()
}

// findContainer returns the cgroups of the container whose id has the prefix id.
func findContainer(trees []cgroup.Tree, id string) ([]cgroup.Target, error) {
	containers, err := cgroup.ContainersIn(trees)
	if err != nil {
		return nil, err
	}
	var candidates, all []string
	var found cgroup.Container
	for c := range containers {
		all = append(all, c.String())
		if strings.HasPrefix(c.ID, id) {
			found = c
			candidates = append(candidates, c.String())
		}
	}
	slices.Sort(candidates)
	slices.Sort(all)
	switch {
	case len(candidates) == 1:
		return containers[found], nil
	case len(candidates) > 1:
		return nil, &hintedError{
			fmt.Errorf("several containers match %s: %s", id, strings.Join(candidates, ", ")),
			"use a longer prefix of the id",
		}
	case len(all) == 0:
		return nil, &hintedError{fmt.Errorf("there is no container %s: no cgroup has the name of a container", id), "-cgroup accepts any cgroup"}
	}
	return nil, &hintedError{fmt.Errorf("there is no container %s", id), "there are " + strings.Join(all, ", ")}
}

// watch starts to watch for the removal of the cgroups.
func (cs *cgroups) watch() (err error) {
	cs.inotify, err = unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watch cgroups: %w", err)
	}
	for _, t := range cs.targets {
		// In a cgroup file system, inotify reports the removal of a directory only on its
		// parent.
		if _, err := unix.InotifyAddWatch(cs.inotify, filepath.Dir(t.Dir), unix.IN_DELETE|unix.IN_ONLYDIR); err != nil {
			return fmt.Errorf("watch %s: %w", filepath.Dir(t.Dir), err)
		}
	}
	return nil
}

// wait returns when all of the cgroups are removed.
func (cs *cgroups) wait() error {
	left := slices.Clone(cs.targets)
	for {
		left = slices.DeleteFunc(left, func(t cgroup.Target) bool { return !t.Exists() })
		if len(left) == 0 {
			return nil
		}
		var events [16 * (unix.SizeofInotifyEvent + unix.NAME_MAX + 1)]byte
		if _, err := unix.Read(cs.inotify, events[:]); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// String returns the directories.
func (cs *cgroups) String() string {
	dirs := make(map[string]bool)
	for _, t := range cs.targets {
		dirs[t.Dir] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(dirs)), ", ")
}

func (cs *cgroups) close() {
	if cs.inotify >= 0 {
		unix.Close(cs.inotify)
	}
}
