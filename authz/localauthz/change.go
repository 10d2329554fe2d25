package localauthz

import (
	"maps"
	"slices"

	"creto.dev"
)

// Change is what became of the policies' directory: other policies are in force,
// or what is there cannot be.
type Change struct {
	// Before and After are the versions in force, which are the same if Err is
	// set, or if what was wrong was taken back.
	Before, After creto.Digest
	// Added, Removed and Edited are files, relative to the directory, in order.
	Added, Removed, Edited []string
	// Policies is how many are in force now, of all tenants together, and
	// PoliciesBefore how many were.
	Policies, PoliciesBefore int
	// Err is what is wrong.
	Err error
}

// changeOf compares two books.
func changeOf(before, after *book) Change {
	c := Change{Before: before.version, After: after.version, PoliciesBefore: before.count(), Policies: after.count()}
	for _, name := range slices.Sorted(maps.Keys(after.files)) {
		was, ok := before.files[name]
		switch {
		case !ok:
			c.Added = append(c.Added, name)
		case was != after.files[name]:
			c.Edited = append(c.Edited, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before.files)) {
		if _, ok := after.files[name]; !ok {
			c.Removed = append(c.Removed, name)
		}
	}
	return c
}

// count returns how many policies a book holds.
func (b *book) count() int {
	n := 0
	for _, s := range b.tenants {
		n += len(s.policies)
	}
	return n
}
