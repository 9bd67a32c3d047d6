//go:build linux

package capture

import (
	"strings"
	"testing"
)

func TestSymbols(t *testing.T) {
	symbols, err := parseSymbols(strings.NewReader(`ffffffff81000100 T second
ffffffff81000000 t first
ffffffff82000000 D data
garbage
zz T notanumber
ffffffffc0000000 t module_function	[ext4]
`))
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[uint64]string{
		0xffffffff81000000: "first+0x0", 0xffffffff810000ff: "first+0xff", 0xffffffff81000101: "second+0x1",
		0xffffffffc0000010: "module_function [ext4]+0x10", 0x1000: "0x1000",
		0xffffffffd0000000: "0xffffffffd0000000",
	} {
		if got := string(symbols.appendFrame(nil, address)); got != want {
			t.Errorf("%#x is %s, want %s", address, got, want)
		}
	}
	hidden, err := parseSymbols(strings.NewReader("0000000000000000 T hidden\n"))
	if err != nil || len(hidden.byAddress) != 0 {
		t.Errorf("%v, %v", hidden, err)
	}
}
