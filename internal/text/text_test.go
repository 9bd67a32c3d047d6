package text

import "testing"

func TestHumanRoundsDown(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0", 1023: "1023", 1024: "1K", 4096: "4K", 1536: "1.5K", 1<<20 - 1: "1023.9K", 1 << 20: "1.0M",
		10<<20 - 4096: "9.9M", 10 << 20: "10.0M", -(10 << 20): "-10.0M", 1 << 62: "4.0E",
	} {
		if got := string(AppendHuman(nil, n)); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestShort(t *testing.T) {
	for _, tc := range []struct {
		s     string
		width int
		want  string
	}{
		{"/a/b", 4, "/a/b"}, {"/a/b/c", 4, "/…/c"}, {"/kubepods/burstable/podé/x", 10, "/ku…podé/x"},
	} {
		if got := string(AppendShort(nil, tc.s, tc.width)); got != tc.want {
			t.Errorf("%s in %d: %s, want %s", tc.s, tc.width, got, tc.want)
		}
	}
}
