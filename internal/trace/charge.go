package trace

import "chargetrace/internal/event"

// columnFlags are the flags in the column outcome. The others are part of the context.
const columnFlags = event.Retry | event.Predicted

var chargeContext = contextFields{
	code: func(x *coder, e *event.Event) {
		codeKind(x, e)
		s := &x.contexts
		flags := uint32(e.Flags &^ columnFlags)
		x.uint32(s, &flags)
		if !x.encoding {
			e.Flags = event.Flags(flags)
		}
		x.uint64(s, &e.Counter)
		x.uint64(s, &e.StackPointer)
		x.uint64(s, &e.MaxPages)
		x.uint64(s, &e.Limiting.CgroupID)
		x.uint64(s, &e.Limiting.MaxPages)
		x.uint64(s, &e.High.CgroupID)
		x.uint64(s, &e.High.MaxPages)
		if x.version >= 2 {
			x.uint32(s, &e.KernelStack)
		}
		if x.version >= 3 {
			x.uint32(s, &e.UserStack)
		}
	},
	same: func(a, b *event.Event) bool {
		return a.Cgroup == b.Cgroup && a.Kind == b.Kind && (a.Flags^b.Flags)&^columnFlags == 0 &&
			a.Counter == b.Counter && a.StackPointer == b.StackPointer && a.MaxPages == b.MaxPages &&
			a.Limiting.CgroupID == b.Limiting.CgroupID && a.Limiting.MaxPages == b.Limiting.MaxPages &&
			a.High.CgroupID == b.High.CgroupID && a.High.MaxPages == b.High.MaxPages &&
			a.KernelStack == b.KernelStack && a.UserStack == b.UserStack
	},
}

func encodeCharge(x *coder, l *levels, e *event.Event) {
	x.requested.appendUvarint(e.RequestedPages)
	x.outcome.appendUvarint(uint64(outcomeByte(e))) // one byte
	if e.Outcome != event.OK {
		encodeFailedAt(x, e)
	}
	expected := x.usages.expected
	x.usage.appendUvarint(zigzag(e.UsagePages - expected[l.own]))
	expected[l.own] = e.UsagePages
	x.limiting.appendUvarint(zigzag(e.Limiting.UsagePages - expected[l.limiting]))
	expected[l.limiting] = e.Limiting.UsagePages
	x.high.appendUvarint(zigzag(e.High.UsagePages - expected[l.high]))
	expected[l.high] = e.High.UsagePages
	l.charge(expected, e)
}

func decodeCharge(x *coder, l *levels, e *event.Event) {
	e.RequestedPages = x.readUvarint(&x.requested.section)
	setOutcome(e, x.readByte(&x.outcome.section))
	if e.Outcome != event.OK {
		decodeFailedAt(x, e)
	}
	expected := x.usages.expected
	e.UsagePages = expected[l.own] + x.readVarint(&x.usage.section)
	expected[l.own] = e.UsagePages
	e.Limiting.UsagePages = expected[l.limiting] + x.readVarint(&x.limiting.section)
	expected[l.limiting] = e.Limiting.UsagePages
	e.High.UsagePages = expected[l.high] + x.readVarint(&x.high.section)
	expected[l.high] = e.High.UsagePages
	l.charge(expected, e)
}

// The column outcome has the outcome in bits 0 and 1, and flags above.
const (
	outcomeMask      = 3
	outcomeRetry     = 1 << 2
	outcomePredicted = 1 << 3
)

// The column failed says which cgroup's limit a charge failed at.
const (
	failedAtLimiting = iota // Limiting.CgroupID
	failedAtOwn             // Cgroup.ID
	failedAtOther           // the number that follows
)

func outcomeByte(e *event.Event) byte {
	b := byte(e.Outcome)
	if e.Flags&event.Retry != 0 {
		b |= outcomeRetry
	}
	if e.Flags&event.Predicted != 0 {
		b |= outcomePredicted
	}
	return b
}

func setOutcome(e *event.Event, b byte) {
	e.Outcome = event.Outcome(b & outcomeMask)
	if b&outcomeRetry != 0 {
		e.Flags |= event.Retry
	}
	if b&outcomePredicted != 0 {
		e.Flags |= event.Predicted
	}
}

func encodeFailedAt(x *coder, e *event.Event) {
	switch e.FailedAt {
	case e.Limiting.CgroupID:
		x.failed.appendUvarint(failedAtLimiting)
	case e.Cgroup.ID:
		x.failed.appendUvarint(failedAtOwn)
	default:
		x.failed.appendUvarint(failedAtOther)
		x.failed.appendUvarint(e.FailedAt)
	}
}

func decodeFailedAt(x *coder, e *event.Event) {
	switch x.readUvarint(&x.failed) {
	case failedAtLimiting:
		e.FailedAt = e.Limiting.CgroupID
	case failedAtOwn:
		e.FailedAt = e.Cgroup.ID
	default:
		e.FailedAt = x.readUvarint(&x.failed)
	}
}

// counterContext is the context of uncharges and forced charges.
var counterContext = contextFields{
	code: func(x *coder, e *event.Event) {
		codeKind(x, e)
		x.uint64(&x.contexts, &e.Counter)
	},
	same: func(a, b *event.Event) bool {
		return a.Cgroup == b.Cgroup && a.Kind == b.Kind && a.Counter == b.Counter
	},
}

func codeKind(x *coder, e *event.Event) {
	codeCgroup(x, e)
	x.byte(&x.contexts, (*byte)(&e.Kind))
	x.bad = x.bad || !event.AllKinds.Has(e.Kind)
}

// encodeUncharge and decodeUncharge serve forced charges too.
func encodeUncharge(x *coder, l *levels, e *event.Event) {
	x.requested.appendUvarint(e.RequestedPages)
	expected := x.usages.expected
	x.usage.appendUvarint(zigzag(e.UsagePages - expected[l.own]))
	expected[l.own] = e.UsageAfterPages()
}

func decodeUncharge(x *coder, l *levels, e *event.Event) {
	e.RequestedPages = x.readUvarint(&x.requested.section)
	expected := x.usages.expected
	e.UsagePages = expected[l.own] + x.readVarint(&x.usage.section)
	expected[l.own] = e.UsageAfterPages()
}
