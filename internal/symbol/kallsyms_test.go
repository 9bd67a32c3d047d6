//go:build linux

package symbol

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func TestKernel(t *testing.T) {
	kernel, err := ReadKernel(strings.NewReader(`ffffffff81000100 T second
ffffffff81000000 t first
ffffffff82000000 D data
garbage
zz T notanumber
ffffffff81000200 T alias
ffffffff81000200 W weak
ffffffff81000200 d data
ffffffffc0000000 t module_function	[ext4]
`))
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[uint64]string{
		0xffffffff81000000: "first+0x0", 0xffffffff810000ff: "first+0xff", 0xffffffff81000101: "second+0x1",
		0xffffffff81000201: "weak+0x1", 0xffffffff81010200: "weak+0x10000", 0xffffffff81010201: "0xffffffff81010201",
		0xffffffffc0000010: "module_function [ext4]+0x10", 0x1000: "0x1000",
		0xffffffffd0000000: "0xffffffffd0000000",
	} {
		if got := string(kernel.AppendFrame(nil, address)); got != want {
			t.Errorf("%#x is %s, want %s", address, got, want)
		}
	}
	hidden, err := ReadKernel(strings.NewReader("0000000000000000 T hidden\n"))
	if err != nil || len(hidden.functions.byStart) != 0 {
		t.Errorf("%v, %v", hidden, err)
	}
}

func TestKallsyms(t *testing.T) {
	var got []string
	text := "0 T hidden\ngarbage\nff d data\nfff t module_function\t[ext4]\n1000 t last\n"
	err := Kallsyms(strings.NewReader(text), func(address uint64, kind byte, name []byte) bool {
		got = append(got, fmt.Sprintf("%x %c %s", address, kind, name))
		return len(got) < 3
	})
	if want := []string{"0 T hidden", "ff d data", "fff t module_function\t[ext4]"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if err := Kallsyms(iotest.ErrReader(io.ErrUnexpectedEOF), nil); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
}
