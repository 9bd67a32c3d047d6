package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"chargetrace/internal/cgroup"
	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// cgroups are the cgroups of this machine that the filter selects.
type cgroups struct {
	// targets are those that the kernel can filter by: none, if others with the same names can
	// come.
	targets []cgroup.Target
	// byID reports that targets are containers, by their ids.
	byID    bool
	notes   []string // for the user
	inotify int      // reports the removal of targets
}

// openCgroups finds the cgroups that the filter selects. find is [container.Finder.Find].
func openCgroups(filter stream.Filter, find func(string) (container.Identity, bool)) (*cgroups, error) {
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
			return nil, &hintedError{err, "/proc/PID/cgroup has the cgroup of a process, and systemd-cgls lists all; names that end in .service, .scope or .slice select systemd units"}
		}
		cs.targets = append(cs.targets, targets...)
	}
	if filter.NeedsNames() {
		if err := cs.findNamed(filter, trees, find); err != nil {
			return nil, err
		}
	}
	return cs, cs.watch()
}

// named is a cgroup of this machine with its label.
type named struct {
	container.Identity
	label string
	tree  cgroup.Tree
	path  string
}

// namesIn returns the containers, pods and units in trees.
func namesIn(trees []cgroup.Tree, find func(string) (container.Identity, bool)) (all []named) {
	for tree, path := range cgroup.Walk(trees) {
		i, own := container.Of(path)
		switch {
		case own == path && own != "":
			i, _ = find(path)
		case container.Unit(path) == "":
			continue
		}
		all = append(all, named{i, event.Printable(i.Label(path, own)), tree, path})
	}
	return all
}

// selection is a list of patterns of the filter. name returns the printable name of a cgroup that
// they can match, or an empty string for others.
type selection struct {
	flag, what string
	patterns   []string
	name       func(n *named) string
	matches    func(n *named, pattern string) bool
}

// findNamed looks for the cgroups that the filter selects by name. Containers that it selects by
// their ids alone become targets: no others will have these.
func (cs *cgroups) findNamed(filter stream.Filter, trees []cgroup.Tree, find func(string) (container.Identity, bool)) error {
	all := namesIn(trees, find)
	isContainer := selection{
		"container", "container", filter.Containers,
		func(n *named) string {
			if !n.IsContainer() {
				return ""
			}
			return n.label
		},
		func(n *named, pattern string) bool {
			byName, byID := n.MatchContainer(pattern)
			return byName || byID
		},
	}
	cs.byID = len(filter.Cgroups)+len(filter.Units)+len(filter.Pods)+len(filter.Namespaces) == 0
	for _, pattern := range filter.Containers {
		byID, found := false, isContainer.find(all, pattern)
		for _, n := range found {
			if _, ok := n.MatchContainer(pattern); ok {
				byID = true
			}
		}
		names := isContainer.names(found)
		switch {
		case byID && len(names) > 1:
			return &hintedError{fmt.Errorf("several containers match %s: %s", pattern, strings.Join(names, ", ")), "use more digits of the id"}
		case len(found) == 0 && container.IsHex(pattern) && len(pattern) >= container.MinIDDigits:
			err := fmt.Errorf("there is no container %s", pattern)
			if all := isContainer.names(all); len(all) > 0 {
				return &hintedError{err, "there are " + someOf(all)}
			}
			return &hintedError{fmt.Errorf("%w: no cgroup has the name of a container", err), "-cgroup accepts any cgroup"}
		}
		cs.byID = cs.byID && byID
		for _, n := range found {
			if target, err := n.tree.Target(n.path); err == nil && byID {
				cs.targets = append(cs.targets, target)
			}
		}
	}
	switch {
	case len(filter.Units) > 0 || !cs.byID && len(filter.Cgroups) == 0:
		cs.targets = nil // others with the same names can come
	case cs.byID && len(cs.targets) == 0:
		return errors.New("the container was removed before the trace began")
	}
	for _, s := range []selection{
		isContainer,
		{
			"cgroup", "unit", filter.Units,
			func(n *named) string {
				if container.Unit(n.path) == "" {
					return ""
				}
				return event.Printable(n.path) // several can have one name
			},
			func(n *named, pattern string) bool { return container.Match(pattern, container.Unit(n.path)) },
		},
		{
			"pod", "pod", filter.Pods,
			func(n *named) string { return event.Printable(cmp.Or(n.PodName(), n.PodUID)) },
			func(n *named, pattern string) bool { return n.MatchPod(pattern) },
		},
		{
			"namespace", "pod in namespace", filter.Namespaces,
			func(n *named) string { return event.Printable(n.Namespace) },
			func(n *named, pattern string) bool { return n.MatchNamespace(pattern) },
		},
	} {
		for _, pattern := range s.patterns {
			cs.note(&s, pattern, all)
		}
	}
	return nil
}

// note notes which names a pattern matches, unless it is exactly one.
func (cs *cgroups) note(s *selection, pattern string, all []named) {
	switch found := s.names(s.find(all, pattern)); {
	case len(found) == 0:
		note := fmt.Sprintf("chargetrace: there is no %s %s yet: waiting for one", s.what, event.Printable(pattern))
		if names := s.names(all); len(names) > 0 {
			note += "\nhint: there are " + someOf(names)
		}
		cs.notes = append(cs.notes, note)
	case len(found) > 1:
		cs.notes = append(cs.notes, fmt.Sprintf("chargetrace: -%s %s matches %d: %s", s.flag, event.Printable(pattern), len(found), someOf(found)))
	}
}

// find returns those that match a pattern.
func (s *selection) find(all []named, pattern string) (found []named) {
	for i := range all {
		if s.matches(&all[i], pattern) {
			found = append(found, all[i])
		}
	}
	return found
}

// names returns the different names, sorted.
func (s *selection) names(all []named) []string {
	names := make(map[string]bool)
	for i := range all {
		if name := s.name(&all[i]); name != "" {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// someOf joins the first names of a list.
func someOf(names []string) string {
	const most = 10
	if n := len(names) - most; n > 0 {
		return fmt.Sprintf("%s, and %d more", strings.Join(names[:most], ", "), n)
	}
	return strings.Join(names, ", ")
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
