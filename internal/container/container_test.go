package container

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestOf(t *testing.T) {
	id, id2 := strings.Repeat("0123456789abcdef", 4), strings.Repeat("fedcba9876543210", 4)
	const pod, podUnder = "8f9a1c2d-0b1e-4f3a-9c5d-6e7f80918273", "8f9a1c2d_0b1e_4f3a_9c5d_6e7f80918273"
	for path, want := range map[string]Identity{
		"/":                                     {},
		"/system.slice/ssh.service":             {},
		"/docker":                               {},
		"/docker/short":                         {},
		"/" + id:                                {ID: id}, // runc
		"/docker/" + id:                         {Runtime: "docker", ID: id},
		"/docker/" + id + "/inner":              {Runtime: "docker", ID: id},
		"/system.slice/docker-" + id + ".scope": {Runtime: "docker", ID: id},
		"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + id + ".scope":                            {Runtime: "docker", ID: id, UID: "1000"},
		"/system.slice/nerdctl-" + id + ".scope":                                                                      {Runtime: "containerd", ID: id},
		"/machine.slice/libpod-" + id + ".scope/container":                                                            {Runtime: "podman", ID: id},
		"/machine.slice/libpod-conmon-" + id + ".scope":                                                               {},
		"/libpod_parent/libpod-" + id:                                                                                 {Runtime: "podman", ID: id},
		"/kubepods/burstable/pod" + pod:                                                                               {PodUID: pod},
		"/kubepods/burstable/pod" + pod + "/" + id:                                                                    {ID: id, PodUID: pod},
		"/kubepods/pod" + pod + "/crio-" + id:                                                                         {Runtime: "cri-o", ID: id, PodUID: pod},
		"/kubepods/pod" + pod + "/crio-conmon-" + id:                                                                  {PodUID: pod},
		"/kubepods/besteffort/pod" + strings.ReplaceAll(pod, "-", "") + "/" + id:                                      {ID: id, PodUID: strings.ReplaceAll(pod, "-", "")},
		"/kubepods.slice/kubepods-pod" + podUnder + ".slice/cri-containerd-" + id + ".scope":                          {Runtime: "containerd", ID: id, PodUID: pod},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + podUnder + ".slice/crio-" + id + ".scope": {Runtime: "cri-o", ID: id, PodUID: pod},
		"/system.slice/containerd.service/kubepods-besteffort-pod" + podUnder + ".slice:cri-containerd:" + id:         {Runtime: "containerd", ID: id, PodUID: pod},
		"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + podUnder + ".slice/docker-" + id + ".scope":    {Runtime: "docker", ID: id, PodUID: pod},
		// kind, where a node is a container.
		"/docker/" + id2 + "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + podUnder + ".slice/cri-containerd-" + id + ".scope": {Runtime: "containerd", ID: id, PodUID: pod},
		// Docker in the container of a pod.
		"/kubepods/pod" + pod + "/" + id2 + "/docker/" + id:             {Runtime: "docker", ID: id},
		"/machine.slice/machine-a\\x2db.scope/payload":                  {Runtime: "machine", Name: "a-b"},
		"/machine.slice/systemd-nspawn@web.service":                     {Runtime: "machine", Name: "web"},
		"/user.slice/user-1000.slice/user@1000.service/app.slice/x":     {UID: "1000"},
		"/user.slice/user-1000.slice/session-3.scope":                   {UID: "1000"},
		"/docker/" + id + "/user.slice/user-1000.slice/session-3.scope": {Runtime: "docker", ID: id},
	} {
		if got, _ := Of(path); got != want {
			t.Errorf("%s: %+v, want %+v", path, got, want)
		}
	}
}

// TestLabel checks the labels of cgroups, each with what is known of it.
func TestLabel(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	const uid = "8f9a1c2d-0b1e-4f3a-9c5d-6e7f80918273"
	const pod = "/kubepods/burstable/pod" + uid
	java := Identity{Name: "java", Namespace: "shop", Pod: "cart-7d9f"}
	for _, tc := range []struct {
		path  string
		names Identity
		want  string
	}{
		{"/", Identity{}, "/"},
		{"/a/b", Identity{}, "/a/b"},
		{pod, java, "pod shop/cart-7d9f"},
		{pod, Identity{}, "pod " + uid},
		{pod + "/" + id, java, "java · 0123456789ab · shop/cart-7d9f"},
		{pod + "/" + id + "/worker", java, "java/worker · 0123456789ab · shop/cart-7d9f"},
		{pod + "/" + id, Identity{}, "0123456789ab · pod " + uid},
		{pod + "/" + id + "/worker", Identity{Name: "java"}, "java/worker · 0123456789ab · pod " + uid},
		{"/docker/" + id, Identity{}, "0123456789ab"},
		{"/system.slice/docker-" + id + ".scope", Identity{Name: "web"}, "web · 0123456789ab"},
		{"/system.slice/docker-" + id + ".scope/system.slice/x.service", Identity{Name: "web"}, "web/system.slice/x.service · 0123456789ab"},
		{"/system.slice/leaky.service", Identity{}, "leaky.service"},
		{"/system.slice/leaky.service/worker", Identity{}, "leaky.service/worker"},
		{"/system.slice/system-getty.slice/getty@tty1.service", Identity{}, "getty@tty1.service"},
		{"/system.slice", Identity{}, "/system.slice"},
		{"/system.slice/.service", Identity{}, "/system.slice/.service"},
		{"/user.slice/user-1000.slice", Identity{User: "alice"}, "/user.slice/user-1000.slice"},
		{"/user.slice/user-1000.slice/session-3.scope", Identity{User: "alice"}, "session-3.scope · alice"},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", Identity{}, "x.service · user 1000"},
		{"/machine.slice/machine-a\\x2db.scope", Identity{}, "machine a-b"},
		{"/machine.slice/machine-a\\x2db.scope/payload/x", Identity{}, "machine a-b/payload/x"},
		{"/machine.slice/machine-a\\x2db.scope/payload/system.slice/x.service", Identity{}, "x.service · machine a-b"},
	} {
		i, own := Of(tc.path)
		if got := i.Update(tc.names).Label(tc.path, own); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.path, got, tc.want)
		}
	}
}

func TestUnit(t *testing.T) {
	for path, want := range map[string]string{
		"/system.slice/leaky.service": "leaky.service", "/system.slice": "system.slice", "/": "", "/a": "", "/system.slice/leaky.service/x": "",
		"/docker/" + strings.Repeat("0123456789abcdef", 4) + "/system.slice/x.service": "", "/machine.slice/machine-a.scope/system.slice": "",
	} {
		if got := Unit(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	for s, want := range map[string]bool{"x.service": true, "x@*.service": true, "x.slice": true, "a/x.service": false, "x": false, "x.service.d": false} {
		if IsUnit(s) != want {
			t.Errorf("%s: %v", s, !want)
		}
	}
}

// TestFit shortens labels to fewer and fewer characters.
func TestFit(t *testing.T) {
	for _, tc := range []struct {
		label string
		forms []string
	}{
		{"app/worker · 3f2a7c1e6b9d · shop/cart-7d9f", []string{
			"app/worker · 3f2a7c1e6b9d · …/cart-7d9f", "app/worker · 3f2a7c1e6b9d", "…/worker · 3f2a7c1e6b9d", "…/worker · 3f2a7c1e", "…/worker 3f2a7c1e",
		}},
		{"app · 3f2a7c1e6b9d", []string{"app · 3f2a7c1e", "app 3f2a7c1e"}},
		{"3f2a7c1e6b9d · pod 8f9a1c2d", []string{"3f2a7c1e6b9d"}},
		{"3f2a7c1e6b9d/x", nil},
		{"pod shop/cart-7d9f", []string{"…/cart-7d9f"}},
		{"/system.slice/a/leaky", []string{"…/a/leaky", "…/leaky"}},
		{"/foo · bar/x · 3f2a7c1e6b9d", []string{"…/x · 3f2a7c1e6b9d"}},
		{"/long-name", nil},
		{"session-3.scope · alice", []string{"session-3.scope alice"}},
		{"a/b/c.service · machine m", []string{"…/c.service · machine m", "…/c.service machine m"}},
		{"/", nil},
		{"/podé/é", []string{"…/é"}},
	} {
		want := tc.label
		forms := tc.forms
		for width := utf8.RuneCountInString(tc.label); width >= 0; width-- {
			if utf8.RuneCountInString(want) > width && len(forms) > 0 {
				want, forms = forms[0], forms[1:]
			}
			if got := Fit(tc.label, width); got != want {
				t.Errorf("%q in %d: %q, want %q", tc.label, width, got, want)
			}
		}
	}
}

func TestMatch(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	i := Identity{Runtime: "containerd", ID: id, Name: "java", Namespace: "shop", Pod: "cart-7d9f", PodUID: "8f9a1c2d"}
	for pattern, want := range map[string][2]bool{
		"java": {true, false}, "j*": {true, false}, "0123": {false, true}, "012": {}, id: {false, true}, "1234": {}, "": {}, "*": {true, false}, "[": {},
	} {
		if byName, byID := i.MatchContainer(pattern); [2]bool{byName, byID} != want {
			t.Errorf("container %q: %v %v", pattern, byName, byID)
		}
	}
	for pattern, want := range map[string]bool{
		"shop/cart-7d9f": true, "shop/*": true, "*/cart-7d9f": true, "cart-*": true, "8f9a1c2d": true, "shop": false, "": false, "other/*": false, "*": true,
	} {
		if i.MatchPod(pattern) != want {
			t.Errorf("pod %q: %v", pattern, !want)
		}
	}
	if byName, _ := (Identity{Name: "web"}).MatchContainer("web"); byName {
		t.Error("matches what is no container")
	}
	if (Identity{}).MatchPod("*") || (Identity{}).MatchNamespace("*") || !i.MatchNamespace("sh?p") {
		t.Error("* matches no pod, or a pattern none")
	}
	if !Match(`a\x2db.scope`, `a\x2db.scope`) {
		t.Error("a name with a backslash does not match itself")
	}
}

// TestEncode encodes all fields, and leaves out those that are no names.
func TestEncode(t *testing.T) {
	i := Identity{Runtime: "r", Name: "a=b", Namespace: "ns", Pod: "p", PodUID: "uid", User: "u\xff"}
	if got := Decode(i.Encode()); got != i {
		t.Errorf("%+v, want %+v", got, i)
	}
	long := Identity{Name: strings.Repeat("x", maxValue+1), Pod: "a\nuser=b", User: strings.Repeat("x", maxValue)}
	if got, want := Decode(long.Encode()), (Identity{User: long.User}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := Decode("other=1\nname\n=x\nname=" + strings.Repeat("x", maxValue+1) + "\nuser=b"); got != (Identity{User: "b"}) {
		t.Errorf("%+v", got)
	}
	full := Identity{}
	for _, f := range full.names() {
		*f.value = strings.Repeat("x", maxValue)
	}
	if n := len(full.Encode()); n > 2<<10 {
		t.Errorf("%d bytes", n)
	}
}

// TestUpdate checks that names do not change which container, pod or user it is.
func TestUpdate(t *testing.T) {
	names := Identity{Runtime: "docker", ID: "2", Name: "n", PodUID: "v", UID: "8", User: "u"}
	for _, tc := range []struct{ i, want Identity }{
		{Identity{}, Identity{Name: "n", PodUID: "v", User: "u"}},
		{Identity{ID: "1"}, Identity{Runtime: "docker", ID: "1", Name: "n", PodUID: "v", User: "u"}},
		{Identity{ID: "1", PodUID: "w", UID: "7"}, Identity{Runtime: "docker", ID: "1", Name: "n", PodUID: "w", UID: "7", User: "u"}},
	} {
		if got := tc.i.Update(names); got != tc.want {
			t.Errorf("%+v: %+v, want %+v", tc.i, got, tc.want)
		}
	}
}

// TestFitAll keeps two labels apart.
func TestFitAll(t *testing.T) {
	got := FitAll([]string{"/a/long/name", "/b/long/name", "/c/other"}, 6)
	if want := []string{"/a/long/name", "/b/long/name", "…/other"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
