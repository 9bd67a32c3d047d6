//go:build linux

package vm

import (
	"io"
	"reflect"
	"strings"
	"testing"
)

func TestMailbox(t *testing.T) {
	mailbox, err := newMailbox()
	if err != nil {
		t.Fatal(err)
	}
	defer mailbox.Close()
	want := &command{Argv: []string{"/init", "a b", "\x00\""}, Settle: true}
	if err := writeMailbox(mailbox, want); err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(io.NewSectionReader(mailbox, 0, 1<<20))
	if err != nil || len(content) != mailboxBytes {
		t.Fatalf("%d bytes, %v", len(content), err)
	}
	if got, err := parseMailbox(content); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := writeMailbox(mailbox, &command{Argv: []string{strings.Repeat("x", mailboxBytes)}}); err == nil {
		t.Error("a command larger than the mailbox is written")
	}
	content[3] = 0xff
	if _, err := parseMailbox(content); err == nil {
		t.Error("a length beyond the mailbox is accepted")
	}
}
