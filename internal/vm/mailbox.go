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

// The guest reads its command from memory that it shares with the host (QEMU's device
// ivshmem-plain). A port would raise interrupts, and no two runs of a machine would be the
// same after that: the kernel mixes the times of interrupts into its random numbers.

// mailboxBytes is the size of the shared memory, a power of two.
const mailboxBytes = 64 << 10

// command is the command for the guest to run.
type command struct {
	Argv []string
	// Settle is set if the guest's clock counts instructions; see settle.
	Settle bool
}

// newMailbox returns empty shared memory.
func newMailbox() (*os.File, error) {
	fd, err := unix.MemfdCreate("mailbox", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create the guest's mailbox: %w", err)
	}
	f := os.NewFile(uintptr(fd), "mailbox")
	if err := f.Truncate(mailboxBytes); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// writeMailbox writes a command to the mailbox: the length of its JSON as 4 bytes,
// little-endian, and the JSON.
func writeMailbox(mailbox *os.File, c *command) error {
	content, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if len(content) > mailboxBytes-4 {
		return fmt.Errorf("the command of %d bytes does not fit in the guest's mailbox", len(content))
	}
	_, err = mailbox.WriteAt(append(binary.LittleEndian.AppendUint32(nil, uint32(len(content))), content...), 0)
	return err
}

// readMailbox returns the guest's command. If there is none, it stops the machine, for the
// host to save it. The command is there when the machine resumes.
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
		return nil, fmt.Errorf("the command of %d bytes does not fit in the mailbox", size)
	}
	c := new(command)
	return c, json.Unmarshal(mailbox[4:4+size], c)
}

// stopMachine makes QEMU stop the machine at this very instruction: it reports a guest
// panic to the pvpanic device.
func stopMachine() error {
	registers, err := mapDevice("0x1b36", "0x0011", 0, 1)
	if err != nil {
		return err
	}
	const panicked = 1 // docs/specs/pvpanic.rst of QEMU
	registers[0] = panicked
	return nil
}

// settle waits until the time since boot is a multiple of a minute. By then the guest is
// idle, and it continues at the same time in each run. The wait is short on the host, since
// the clock skips idle time.
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

// mapDevice maps a memory region of a PCI device. It is never unmapped.
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
	return nil, fmt.Errorf("no PCI device %s:%s", vendor, device)
}

// mapRegion maps a memory region of the PCI device with a directory in sysfs.
func mapRegion(dir string, region, size int) ([]byte, error) {
	// The kernel enables a device for its driver; this one has no driver.
	if err := os.WriteFile(filepath.Join(dir, "enable"), []byte("1"), 0); err != nil {
		return nil, err
	}
	// Each line has the begin, end and flags of a region.
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
