package main

import (
	"io"
	"testing"
)

func TestExitStatus(t *testing.T) {
	for _, tc := range []struct {
		args   []string
		status int
	}{
		{[]string{"-h"}, 0},
		{[]string{"-bogus"}, 2},
		{[]string{"-n", "-1"}, 2},
		{[]string{"what"}, 2},
		{[]string{"-pid", "2000000000"}, 1},
	} {
		if got := run(tc.args, nil, io.Discard, io.Discard); got != tc.status {
			t.Errorf("%q: exit status %d, want %d", tc.args, got, tc.status)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"3": 3, "4096": 4096, "512K": 512 << 10, "2m": 2 << 20, "1GiB": 1 << 30, "1Gi": 1 << 30, "5kb": 5 << 10,
		"": 0, "K": 0, "0": 0, "-1": 0, "1.5M": 0, "1MM": 0, "9999999999G": 0, "1 K": 0,
	} {
		got, err := parseSize(in)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
}
