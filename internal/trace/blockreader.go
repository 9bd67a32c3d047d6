package trace

import "chargetrace/internal/event"

// blockReader decodes the events of a block.
type blockReader struct {
	coder
	left     uint64 // events not read yet
	lastTime uint64
}

func (b *blockReader) done() bool { return b.left == 0 && b.names.done() && b.stacks.done() }

// drop discards the rest of the block.
func (b *blockReader) drop() { b.left, b.names, b.stacks = 0, section{}, section{} }

// start begins a block. The payload must stay valid until its end.
func (b *blockReader) start(h blockHeader, payload []byte) error {
	b.bad = false
	all := section{b: payload}
	for _, s := range b.sections() {
		*s = section{}
		if s != &b.stacks || b.version >= 2 {
			s.b = b.readBytes(&all, b.readUvarint(&all))
		}
	}
	if b.bad || !all.done() {
		return errDamaged
	}
	b.left, b.lastTime = uint64(h.events), h.least

	b.forget()
	for !b.contexts.done() && !b.bad {
		b.readContext()
		// No writer has a context without an event. A hostile one could have millions,
		// and each takes 60 times the memory of its encoding.
		b.bad = b.bad || len(b.numbered) > blockEvents
	}
	if b.bad {
		return errDamaged
	}
	return nil
}

// read fills batch with the names and stacks of the block, then with its events. It
// returns none of them if any is damaged.
func (b *blockReader) read(batch []event.Event) (n int, err error) {
	for ; n < len(batch) && !b.done() && !b.bad; n++ {
		b.readEvent(&batch[n])
	}
	if b.bad {
		return 0, errDamaged
	}
	return n, nil
}

func (b *blockReader) readEvent(e *event.Event) {
	switch {
	case !b.names.done():
		*e = event.Event{Type: event.CgroupName}
		codeCgroupName(&b.coder, e)
		return
	case !b.stacks.done():
		*e = event.Event{Type: event.Stack}
		codeStack(&b.coder, e)
		return
	}
	b.left--
	i := b.readUvarint(&b.context.section)
	if i >= uint64(len(b.numbered)) {
		b.bad = true
		return
	}
	c := &b.numbered[i]
	*e = c.Event
	b.lastTime += uint64(b.readVarint(&b.time))
	e.BootNanos = b.lastTime
	codecs[e.Type].columns.decode(&b.coder, &c.levels, e)
}
