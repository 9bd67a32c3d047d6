package main

import (
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"chargetrace/internal/container"
	"chargetrace/internal/event"
	"chargetrace/internal/recorder"
	"chargetrace/internal/sampler"
	"chargetrace/internal/stream"
	"chargetrace/internal/trace"
)

// churn is a source of containers that come and go, one every 10 ms, each with some charges.
type churn struct {
	made, most int
	at         func(made int) // called before each container
}

func (c *churn) Info() stream.Info              { return stream.Info{PageSize: 4096, StartBootNanos: 1e9} }
func (c *churn) Counts() (stream.Counts, error) { return stream.Counts{}, nil }
func (c *churn) Stop()                          { c.made = c.most }

func (c *churn) Read(batch []event.Event) (int, error) {
	if c.made == c.most {
		return 0, io.EOF
	}
	c.at(c.made)
	c.made++
	pod, id := event.CgroupID{ID: uint64(2 * c.made)}, event.CgroupID{ID: uint64(2*c.made + 1)}
	charge := event.Event{
		Type: event.Charge, BootNanos: 1e9 + uint64(c.made)*1e7, PID: uint32(c.made), TID: uint32(c.made), Comm: event.Comm{'x'},
		Cgroup: id, Kind: event.Memory, Outcome: event.Failed, FailedAt: pod.ID, RequestedPages: 1,
		Limiting: event.Level{CgroupID: pod.ID, MaxPages: 1}, High: event.Level{MaxPages: 1 << 60},
	}
	kill := event.Event{Type: event.OOMKill, BootNanos: charge.BootNanos, Cgroup: pod, OOMNanos: charge.BootNanos, Victim: event.Victim{PID: 7, CgroupID: id.ID}}
	if c.made%10_000 != 0 {
		kill = charge
	}
	return copy(batch, []event.Event{
		{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}},
		{Type: event.CgroupName, Cgroup: pod, ParentID: 1, Name: fmt.Sprintf("kubepods-pod%08x_1111_2222_3333_444444444444.slice", c.made)},
		{Type: event.CgroupName, Cgroup: id, ParentID: pod.ID, Name: fmt.Sprintf("cri-containerd-%064x.scope", c.made)},
		charge, charge, kill,
		{Type: event.CgroupReleased, Cgroup: id}, {Type: event.CgroupReleased, Cgroup: pod},
	}), nil
}

// TestConstantMemory has 300,000 containers that come and go. What the flight recorder and -rotate
// need for them is freed with them.
func TestConstantMemory(t *testing.T) {
	const most = 300_000
	var before, after uint64
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	src := &churn{most: most, at: func(made int) {
		switch made {
		case most / 10:
			before = heap()
		case most - 1:
			after = heap()
		}
	}}
	find := func(path string) (container.Identity, bool) {
		i, _ := container.Of(path)
		i.Namespace, i.Pod = "shop", "cart"
		return i, !strings.HasSuffix(path, "0.scope") // the names of some are never found
	}
	clock := func() uint64 { return src.Info().StartBootNanos + uint64(src.made)*1e7 }
	named := sampler.NewNames(sampler.NewHeld(src, nil, clock), find, clock)

	folder, err := recorder.OpenFolder(t.TempDir(), recorder.FolderOptions{MaxFiles: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	keepsLast, err := recorder.New(src.Info(), folder, recorder.Options{
		Keep: time.Minute, Memory: make([]byte, trace.MinRingBytes), When: recorder.Triggers{OOM: true}, After: time.Second, Every: time.Minute,
		Saved: func(recorder.Save) {}, Failed: func(err error) { t.Error(err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	rotates, err := recorder.NewRotation(filepath.Join(t.TempDir(), "x.ctrace"), src.Info(), recorder.RotationOptions{
		MaxBytes: 1 << 20, Memory: make([]byte, trace.MinRingBytes), Warn: func(m string) { t.Error(m) }, Folder: recorder.FolderOptions{MaxFiles: 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	counts, err := stream.Copy(stream.Tee(keepsLast, rotates), named, stream.Filter{Namespaces: []string{"shop"}})
	if err != nil || counts.Shown < 2*most {
		t.Errorf("%+v, %v", counts, err)
	}
	if grown := int64(after) - int64(before); grown > 1<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}
