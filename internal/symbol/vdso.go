//go:build linux

package symbol

import (
	"bytes"
	"os"
)

// maxVDSOBytes far exceeds the size of the vDSO.
const maxVDSOBytes = 1 << 20

// isVDSO reports whether the mapping is the vDSO of 64-bit processes. Those of 32-bit
// processes, which are below 4 GiB, have another.
func (m *mapping) isVDSO() bool {
	return m.name == "vdso" && m.inode == 0 && m.start >= 1<<32
}

// vDSO returns the image of the vDSO, which is the same in every process: it reads our own.
// The image is empty if that fails.
func (r *Resolver) vDSO() *image {
	if r.vdso == nil {
		r.vdso = &image{}
		if data := ownVDSO(); data != nil {
			r.vdso, _ = readImage(bytes.NewReader(data))
		}
	}
	return r.vdso
}

func ownVDSO() []byte {
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil
	}
	defer maps.Close()
	for m := range executable(maps) {
		if !m.isVDSO() || m.end-m.start > maxVDSOBytes {
			continue
		}
		memory, err := os.Open("/proc/self/mem")
		if err != nil {
			return nil
		}
		defer memory.Close()
		data := make([]byte, m.end-m.start)
		if _, err := memory.ReadAt(data, int64(m.start)); err != nil {
			return nil
		}
		return data
	}
	return nil
}
