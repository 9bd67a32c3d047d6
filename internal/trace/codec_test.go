package trace

import (
	"fmt"
	"reflect"
	"testing"

	"chargetrace/internal/event"
)

// TestSameContext changes each field of an event and expects that the comparison of
// contexts notices the change if and only if the encoded context changes.
func TestSameContext(t *testing.T) {
	encoded := func(e *event.Event) string {
		x := coder{encoding: true, version: Version}
		codeContext(&x, e)
		return string(x.contexts.b)
	}
	for typ, c := range codecs {
		if c.since == 0 {
			continue
		}
		changes := 0
		e, changed := event.Event{Type: event.Type(typ)}, event.Event{Type: event.Type(typ)}
		eachField("", reflect.ValueOf(&changed).Elem(), func(name string, set func(n int)) {
			if name == ".Type" {
				return
			}
			for bit := range 3 {
				set(1 << bit)
				same, sameBytes := sameTask(&e, &changed) && c.context.same(&e, &changed), encoded(&e) == encoded(&changed)
				if same != sameBytes {
					t.Errorf("type %d, %s: same %v, same bytes %v", typ, name, same, sameBytes)
				}
				if !same {
					changes++
				}
			}
			set(0)
		})
		if changes == 0 {
			t.Errorf("type %d: no field is part of the context", typ)
		}
	}
}

// eachField calls do for each number in v, with a function that sets it.
func eachField(name string, v reflect.Value, do func(name string, set func(n int))) {
	switch {
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			eachField(name+"."+v.Type().Field(i).Name, v.Field(i), do)
		}
	case v.Kind() == reflect.Array:
		for i := range v.Len() {
			eachField(fmt.Sprintf("%s[%d]", name, i), v.Index(i), do)
		}
	case v.CanUint():
		do(name, func(n int) { v.SetUint(uint64(n)) })
	case v.CanInt():
		do(name, func(n int) { v.SetInt(int64(n)) })
	}
}
