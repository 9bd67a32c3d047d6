//go:build linux

package vm

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The guest finds its command in memory that it shares with the host (QEMU's device
// ivshmem-plain). A port would interrupt it, and no two runs of a machine would be the
// same from there on: the kernel's random numbers come from the moments of interrupts.

// mailboxBytes is the size of that memory, a power of two.
const mailboxBytes = 64 << 10

// command is what the guest is to run.
type command struct {
	Argv []string
	// Settle says that the guest's clock counts instructions; see settle.
	Settle bool
}

// newMailbox returns the memory, empty.
func newMailbox() (*os.File, error) {
	fd, err := unix.MemfdCreate("mailbox", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the guest's mailbox: %w", err)
	}
	f := os.NewFile(uintptr(fd), "mailbox")
	if err := f.Truncate(mailboxBytes); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// writeMailbox writes a command to the memory: the length of its JSON as 4 bytes,
// little-endian, and the JSON.
func writeMailbox(mailbox *os.File, c *command) error {
	content, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if len(content) > mailboxBytes-4 {
		return fmt.Errorf("the command has %d bytes, more than fit in the guest's mailbox", len(content))
	}
	_, err = mailbox.WriteAt(append(binary.LittleEndian.AppendUint32(nil, uint32(len(content))), content...), 0)
	return err
}

// readMailbox returns the guest's command. Where there is none the machine stops, to be
// saved; the command is there when it goes on.
func readMailbox() (*command, error) {
	mailbox, err := mapDevice("0x1af4", "0x1110", 2, mailboxBytes)
	if err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(mailbox) == 0 {
		if err := stopMachine(); err != nil {
			return nil, err
		}
	}
	return parseMailbox(mailbox)
}

func parseMailbox(mailbox []byte) (*command, error) {
	size := int(binary.LittleEndian.Uint32(mailbox))
	if size > len(mailbox)-4 {
		return nil, fmt.Errorf("the command has %d bytes, more than fit in the mailbox", size)
	}
	c := new(command)
	return c, json.Unmarshal(mailbox[4:4+size], c)
}

// stopMachine has QEMU stop the machine at this very instruction: the device says that
// the guest panicked.
func stopMachine() error {
	registers, err := mapDevice("0x1b36", "0x0011", 0, 1)
	if err != nil {
		return err
	}
	const panicked = 1 // docs/specs/pvpanic.rst of QEMU
	registers[0] = panicked
	return nil
}

// settle waits until the time since boot is a multiple of a minute: by then the guest is
// idle, and goes on at the same moment in each run. A clock that skips idle time takes no
// time for it.
func settle() error {
	const seconds = 60
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	start := unix.NsecToTimespec((int64(now.Sec)/seconds + 1) * seconds * 1e9)
	for {
		if err := unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &start, nil); err != unix.EINTR {
			return err
		}
	}
}

// mapDevice maps a memory region of the PCI device with these numbers. It stays mapped.
func mapDevice(vendor, device string, region, size int) ([]byte, error) {
	dirs, err := filepath.Glob("/sys/bus/pci/devices/*")
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		gotVendor, vendorErr := os.ReadFile(filepath.Join(dir, "vendor"))
		gotDevice, deviceErr := os.ReadFile(filepath.Join(dir, "device"))
		if err := errors.Join(vendorErr, deviceErr); err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(gotVendor)) == vendor && strings.TrimSpace(string(gotDevice)) == device {
			return mapRegion(dir, region, size)
		}
	}
	return nil, fmt.Errorf("there is no PCI device %s:%s", vendor, device)
}

// mapRegion maps a region of the device with that directory.
func mapRegion(dir string, region, size int) ([]byte, error) {
	// The kernel does so for a driver, which this one has not.
	if err := os.WriteFile(filepath.Join(dir, "enable"), []byte("1"), 0); err != nil {
		return nil, err
	}
	// Its lines are begin, end and flags of each region.
	regions, err := os.ReadFile(filepath.Join(dir, "resource"))
	if err != nil {
		return nil, err
	}
	var begin, end, flags uint64
	for i, line := range strings.Split(string(regions), "\n") {
		if i != region {
			continue
		}
		if _, err := fmt.Sscanf(line, "0x%x 0x%x 0x%x", &begin, &end, &flags); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", dir, line, err)
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("resource%d", region)), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	inPage := int(begin % uint64(os.Getpagesize()))
	memory, err := unix.Mmap(int(f.Fd()), 0, inPage+size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map a region of %s: %w", dir, err)
	}
	return memory[inPage:], nil
}
