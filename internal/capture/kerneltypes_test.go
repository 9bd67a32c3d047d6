//go:build linux

package capture

import (
	"bytes"
	"debug/elf"
	"errors"
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// programBTF returns the type information of the programs.
func programBTF(tb testing.TB) []byte {
	tb.Helper()
	file, err := elf.NewFile(bytes.NewReader(_BpfBytes))
	if err != nil {
		tb.Fatal(err)
	}
	content, err := file.Section(".BTF").Data()
	if err != nil {
		tb.Fatal(err)
	}
	return content
}

func loadTypes(tb testing.TB, raw []byte) *btf.Spec {
	tb.Helper()
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		tb.Fatal(err)
	}
	return spec
}

// named returns the types with a name.
func named(tb testing.TB, spec *btf.Spec, name string) []btf.Type {
	tb.Helper()
	types, err := spec.AnyTypesByName(name)
	if err != nil && !errors.Is(err, btf.ErrNotFound) {
		tb.Fatal(err)
	}
	return types
}

func TestSelectTypes(t *testing.T) {
	whole := programBTF(t)
	names := map[string]bool{"mem_cgroup": true, "atomic_long_t": true, "cgroup_subsys_id": true, "cgroup_root": true, "of no type": true}
	part, err := selectTypes(whole, names)
	if err != nil {
		t.Fatal(err)
	}
	spec, all := loadTypes(t, part), loadTypes(t, whole)
	for name := range names {
		got, want := named(t, spec, name), named(t, all, name)
		if len(want) == 0 && name != "of no type" || len(got) != len(want) {
			t.Fatalf("%s: %v, not %v", name, got, want)
		}
		for i := range want {
			sameType(t, got[i], want[i], make(map[btf.Type]bool))
		}
	}
	// cgroup_root contains a cgroup, which only points to its kernfs_node.
	if len(named(t, spec, "cgroup")) != 1 {
		t.Errorf("cgroup: %v", named(t, spec, "cgroup"))
	}
	if len(named(t, all, "kernfs_node")) == 0 || len(named(t, spec, "kernfs_node")) != 0 {
		t.Errorf("kernfs_node: %v", named(t, spec, "kernfs_node"))
	}
}

func TestSelectTypesDamaged(t *testing.T) {
	whole := programBTF(t)
	names := map[string]bool{"mem_cgroup": true}
	for _, n := range []int{0, 1, btfHeaderSize - 1, btfHeaderSize, len(whole) / 2, len(whole) - 1} {
		if _, err := selectTypes(whole[:n], names); !errors.Is(err, errBadBTF) {
			t.Errorf("of %d bytes: %v", n, err)
		}
	}
	ofNewKind := bytes.Clone(whole)
	order.PutUint32(ofNewKind[btfHeaderSize+4:], 31<<24)
	if _, err := selectTypes(ofNewKind, names); !errors.Is(err, errBadBTF) {
		t.Errorf("unknown kind: %v", err)
	}
}

// sameType compares two types and their parts.
func sameType(t *testing.T, got, want btf.Type, seen map[btf.Type]bool) {
	t.Helper()
	if seen[want] {
		return
	}
	seen[want] = true
	if got.TypeName() != want.TypeName() {
		t.Errorf("%v, not %v", got, want)
	}
	sameMembers := func(got, want []btf.Member) {
		t.Helper()
		if len(got) != len(want) {
			t.Fatalf("%v, not %v", got, want)
		}
		for i, w := range want {
			if g := got[i]; g.Name != w.Name || g.Offset != w.Offset || g.BitfieldSize != w.BitfieldSize {
				t.Errorf("%+v, not %+v", g, w)
			}
			sameType(t, got[i].Type, w.Type, seen)
		}
	}
	switch want := want.(type) {
	case *btf.Pointer:
		if _, ok := got.(*btf.Pointer).Target.(*btf.Void); !ok {
			t.Errorf("%v points to more than void", got)
		}
	case *btf.Struct:
		got := got.(*btf.Struct)
		if got.Size != want.Size {
			t.Errorf("%v, not %v", got, want)
		}
		sameMembers(got.Members, want.Members)
	case *btf.Union:
		got := got.(*btf.Union)
		if got.Size != want.Size {
			t.Errorf("%v, not %v", got, want)
		}
		sameMembers(got.Members, want.Members)
	case *btf.Array:
		got := got.(*btf.Array)
		if got.Nelems != want.Nelems {
			t.Errorf("%v, not %v", got, want)
		}
		sameType(t, got.Type, want.Type, seen)
		sameType(t, got.Index, want.Index, seen)
	case *btf.Enum:
		got := got.(*btf.Enum)
		if got.Size != want.Size || got.Signed != want.Signed || !slices.Equal(got.Values, want.Values) {
			t.Errorf("%v, not %v", got, want)
		}
	case *btf.Int:
		got := got.(*btf.Int)
		if got.Size != want.Size || got.Encoding != want.Encoding {
			t.Errorf("%v, not %v", got, want)
		}
	case *btf.Typedef:
		sameType(t, got.(*btf.Typedef).Type, want.Type, seen)
	case *btf.Const:
		sameType(t, got.(*btf.Const).Type, want.Type, seen)
	case *btf.Volatile:
		sameType(t, got.(*btf.Volatile).Type, want.Type, seen)
	default:
		t.Errorf("no test for %T", want)
	}
}

// FuzzSelectTypes checks arbitrary type information, and that selecting twice changes
// nothing.
func FuzzSelectTypes(f *testing.F) {
	names := map[string]bool{"page_counter": true, "css_set": true, "cgroup_subsys_id": true, "atomic_long_t": true}
	part, err := selectTypes(programBTF(f), names)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(part)
	f.Fuzz(func(t *testing.T, raw []byte) {
		part, err := selectTypes(raw, names)
		if err != nil {
			return
		}
		if again, err := selectTypes(part, names); err != nil || !bytes.Equal(again, part) {
			t.Fatalf("%x from %x is selected to %x, %v", part, raw, again, err)
		}
	})
}

// TestNeededNames checks the names of kernel types that the programs use, without the
// suffixes of flavors.
func TestNeededNames(t *testing.T) {
	names, err := neededNames(loadSpec(t).Types)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"page_counter", "mem_cgroup", "mm_struct", "task_struct", "kernfs_node", "bpf_func_id"} {
		if !names[name] {
			t.Errorf("%s is missing", name)
		}
	}
	for _, name := range []string{"", "mm_struct___atomic", "kernfs_node___rcu"} {
		if names[name] {
			t.Errorf("%q is needed", name)
		}
	}
}
