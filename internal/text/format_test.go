package text

import (
	"math"
	"testing"
	"time"
)

func TestFormat(t *testing.T) {
	none := Format{PageSize: 4096}
	pages, bytes, human := none, none, none
	pages.Units, bytes.Units, human.Units = Pages, Bytes, Human
	parts := []string{"anon", "file", "shmem"}
	for _, tc := range []struct{ got, want string }{
		{none.Size(3532), "13.7 MiB"}, {human.Size(3532), "13.7 MiB"}, {pages.Size(3532), "3532 pages"}, {bytes.Size(3532), "14467072 bytes"},
		{none.Size(0), "0 B"}, {none.Size(1), "4 KiB"}, {none.Size(255), "1020 KiB"}, {none.Size(256), "1.0 MiB"}, {pages.Size(1), "1 page"},
		{none.Size(-1), "-4 KiB"}, {none.Size(1<<18 - 1), "1023.9 MiB"}, {none.Size(1 << 18), "1.0 GiB"},
		{none.Bytes(math.MaxInt64), "7.9 EiB"}, {pages.Bytes(1), "1 byte"}, {none.Bytes(1023), "1023 B"},
		{none.Limit(2048), "2048 pages (8.0 MiB)"}, {human.Limit(2048), "8.0 MiB"}, {none.Limit(0), "0 pages (0 B)"}, {pages.Limit(2048), "2048 pages"},
		{none.Parts(parts, []int64{2502, 0, 627}), "12.2 MiB (anon 9.7, file 0, shmem 2.4)"},
		{none.Parts(parts, []int64{2, 1, 0}), "12 KiB (anon 8, file 4, shmem 0)"},
		{none.Parts(parts, []int64{1 << 18, 1, 0}), "1.0 GiB (anon 1.0, file 0.0, shmem 0)"},
		{pages.Parts(parts, []int64{2502, 0, 627}), "3129 pages (anon 2502, file 0, shmem 627)"},
		{bytes.Parts(parts, []int64{1, 0, 1}), "8192 bytes (anon 4096, file 0, shmem 4096)"},
		{Duration(0), "0"}, {Duration(999), "0 µs"}, {Duration(12_345), "12 µs"}, {Duration(746_999_999), "746.9 ms"},
		{Duration(1e9), "1.00 s"}, {Duration(31_049_999_999), "31.04 s"}, {Duration(312e9), "5m12s"}, {Duration(-1e9), "-1.00 s"}, {Duration(math.MinInt64), "-106751d 23h"},
		{Duration(int64(3*time.Hour + 5*time.Minute)), "3h05m"}, {Duration(int64(51 * time.Hour)), "2d 3h"},
	} {
		if tc.got != tc.want {
			t.Errorf("%s, want %s", tc.got, tc.want)
		}
	}
}

func TestMoment(t *testing.T) {
	wall := func(bootNanos uint64) time.Time { return time.Unix(1_700_000_000, int64(bootNanos)) }
	f := Format{StartBootNanos: 5e9, WallClock: wall, Location: time.FixedZone("", 3600)}
	for format, want := range map[TimeFormat]string{
		"": "746.9 ms", Relative: "746.9 ms", Clock: "23:13:25.746999", Date: "2023-11-14T23:13:25.746999+01:00",
	} {
		f.Time = format
		if got := f.Moment(5_746_999_999); got != want {
			t.Errorf("%q: %s, want %s", format, got, want)
		}
	}
}
