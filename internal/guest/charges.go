//go:build linux

package guest

// okPages returns the number of pages charged.
func okPages(charges []event) (pages int64) {
	for _, e := range charges {
		if e.Outcome == "ok" {
			pages += e.RequestedPages
		}
	}
	return pages
}

// withOutcome returns the charges with an outcome.
func withOutcome(charges []event, outcome string) (with []event) {
	for _, e := range charges {
		if e.Outcome == outcome {
			with = append(with, e)
		}
	}
	return with
}
