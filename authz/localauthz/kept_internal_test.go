package localauthz

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/fault"
)

// line is one policy of a file that is edited at random.
func line(random *rand.Rand) string {
	pick := func(all ...string) string { return all[random.IntN(len(all))] }
	return pick("", "\n", "// é; \n\n", "  ") +
		pick("", "", fmt.Sprintf("@id(\"own-%d\") ", random.IntN(6)), "@oversight(\"finance\") ") +
		pick("permit", "permit", "forbid") +
		fmt.Sprintf(" (principal in Creto::Group::\"team-%d\", ", random.IntN(3)) +
		pick("action", `action == Creto::Action::"call_model"`) + ", " +
		pick("resource", fmt.Sprintf(`resource == Creto::Model::"m-%d"`, random.IntN(3))) + ")" +
		pick("", "", " when { resource.id like \"m-*\" }", fmt.Sprintf(" when { context.amount < %d }", random.IntN(4)), " unless { principal.name == \"é\" }") + ";"
}

// A set that was reloaded through many edits is the same as one that is read from the
// start, where it has not been read again too.
func TestKeptPolicies(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	files := map[string][]string{"a.cedar": nil, "sub/b.cedar": nil, "tenants/acme/c.cedar": nil}
	names := []string{"a.cedar", "sub/b.cedar", "tenants/acme/c.cedar"}
	install := func() {
		for name, lines := range files {
			path := filepath.Join(dir, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	nobody := func(context.Context, creto.ID) ([]string, error) { return nil, nil }
	install()
	a, err := Open(dir, creto.DefaultTenant, nobody, nil, func(context.Context, Change) {})
	if err != nil {
		t.Fatal(err)
	}
	kept, moved, refused := 0, 0, 0
	for round := range 300 {
		name := names[random.IntN(len(names))]
		lines := files[name]
		at := random.IntN(len(lines) + 1)
		switch what := random.IntN(6); {
		case what == 0 && at < len(lines):
			lines = slices.Delete(slices.Clone(lines), at, at+1)
		case what == 1 && at < len(lines): // to another file
			other := names[random.IntN(len(names))]
			files[other] = append(files[other], lines[at])
		case what == 2 && at < len(lines):
			lines = slices.Clone(lines)
			lines[at] = line(random)
		case what == 3:
			lines = slices.Insert(slices.Clone(lines), at, "permit (principal, action, resource) when {") // a mistake
		default:
			lines = slices.Insert(slices.Clone(lines), at, line(random))
		}
		before := a.current.Load()
		restore := files[name]
		files[name] = lines
		install()
		failed := a.Reload(t.Context())
		fresh, err := loadBook(dir, creto.DefaultTenant, nil, new(desk), func() {})
		if fmt.Sprint(failed) != fmt.Sprint(err) || err != nil && !errors.Is(err, fault.InvalidArgument) {
			t.Fatalf("seed %d, round %d: Reload = %v; from the start: %v", seed, round, failed, err)
		}
		if err != nil {
			refused++
			for files[name] = restore; ; { // and what else made it so
				install()
				if a.Reload(t.Context()) == nil {
					break
				}
				for name, lines := range files {
					files[name] = lines[:max(len(lines)-1, 0)]
				}
			}
			continue
		}
		now := a.current.Load()
		if now.version != fresh.version || !reflect.DeepEqual(now.files, fresh.files) || len(now.tenants) != len(fresh.tenants) {
			t.Fatalf("seed %d, round %d: the books differ", seed, round)
		}
		for tenant, want := range fresh.tenants {
			got := now.tenants[tenant]
			sameSet(t, got, want)
			if t.Failed() {
				t.Fatalf("seed %d, round %d: the policies of %s differ", seed, round, tenant)
			}
			old := before.tenants[tenant]
			if old == nil || old == got {
				continue
			}
			for _, p := range got.policies {
				if slices.Contains(old.policies, p) {
					kept++
				} else if slices.ContainsFunc(old.policies, func(o *policy) bool { return string(o.place.text) == string(p.place.text) }) {
					moved++
				}
			}
		}
	}
	t.Logf("seed %d: %d policies kept, %d moved, %d sets refused", seed, kept, moved, refused)
	if kept < 300 || moved < 100 || refused < 10 {
		t.Errorf("seed %d: only %d policies were kept, %d moved and %d sets refused", seed, kept, moved, refused)
	}
}

// sameSet compares two sets by all that is known of them.
func sameSet(t *testing.T, got, want *snapshot) {
	t.Helper()
	if len(got.policies) != len(want.policies) || got.program.Len() != want.program.Len() || got.version != want.version || !slices.Equal(got.reads, want.reads) {
		t.Errorf("%d policies that read %v, want %d that read %v", len(got.policies), got.reads, len(want.policies), want.reads)
		return
	}
	conditions := make(map[int]int) // the numbers of one set by those of the other
	for i, w := range want.policies {
		g := got.policies[i]
		if !reflect.DeepEqual(g, w) || g.place.source() != w.place.source() || string(got.program.ID(i)) != g.ref.ID {
			t.Errorf("policy %d is %+v at %+v, want %+v at %+v", i, g, g.place, w, w.place)
		}
		if !reflect.DeepEqual(got.program.Source(i), want.program.Source(i)) || got.program.Principal(i).Kind != want.program.Principal(i).Kind || got.program.Forbids(i) != want.program.Forbids(i) {
			t.Errorf("policy %d is compiled from %+v, want %+v", i, got.program.Source(i), want.program.Source(i))
		}
		number, known := conditions[want.program.Conditions(i)]
		if conditions[want.program.Conditions(i)] = got.program.Conditions(i); known && number != got.program.Conditions(i) {
			t.Errorf("policy %d shares its conditions with nobody", i)
		}
	}
	distinct := make(map[int]bool)
	for _, number := range conditions {
		distinct[number] = true
	}
	if len(distinct) != len(conditions) {
		t.Error("different conditions have the same number")
	}
}

// What is named by its number and file is named anew where only these change.
func TestKeptNames(t *testing.T) {
	const permit, forbid = "permit (principal, action, resource);", "forbid (principal, action, resource);"
	two := []byte(permit + permit + forbid)
	one := []byte(strings.Repeat(" ", len(permit)) + permit + forbid)
	first, wrong := newSnapshot([]file{{"a.cedar", two}}, creto.Digest{}, nil, func() {})
	for _, files := range [][]file{{{"a.cedar", one}}, {{"b.cedar", two}}, {{"a.cedar", two}, {"b.cedar", two}}} {
		again, wrongToo := newSnapshot(files, creto.Digest{}, first.library, func() {})
		fresh, wrongNow := newSnapshot(files, creto.Digest{}, nil, func() {})
		if wrong = slices.Concat(wrong, wrongToo, wrongNow); len(wrong) > 0 {
			t.Fatal(wrong)
		}
		sameSet(t, again, fresh)
	}
}

// However many policies there are, they are in the order of their ids.
func TestManyPolicies(t *testing.T) {
	for _, n := range []int{0, 1, 63, 64, 65, 128, 129, 1000} {
		s, wrong := newSnapshot([]file{{"a.cedar", []byte(strings.Repeat("permit (principal, action, resource);", n))}}, creto.Digest{}, nil, func() {})
		if len(wrong) > 0 || len(s.policies) != n || !slices.IsSortedFunc(s.policies, func(a, b *policy) int { return strings.Compare(a.ref.ID, b.ref.ID) }) {
			t.Errorf("of %d policies there are %d, or they are in no order; %v", n, len(s.policies), wrong)
		}
		for i, p := range s.policies {
			if string(s.program.ID(i)) != p.ref.ID {
				t.Fatalf("policy %d of %d is %s, and compiled %s", i, n, p.ref.ID, s.program.ID(i))
			}
		}
	}
}

// Texts with the same hash are still two.
func TestKeptByText(t *testing.T) {
	const permit, forbid = "permit (principal, action, resource);", "forbid (principal, action, resource);"
	first, wrong := newSnapshot([]file{{"a.cedar", []byte(permit)}}, creto.Digest{}, nil, func() {})
	if len(wrong) > 0 {
		t.Fatal(wrong)
	}
	l := first.library
	for hash, one := range l.kept {
		delete(l.kept, hash)
		l.kept[maphash.String(l.seed, forbid)] = one
	}
	second, wrong := newSnapshot([]file{{"a.cedar", []byte(forbid)}}, creto.Digest{}, l, func() {})
	if len(wrong) > 0 || !second.policies[0].forbid || !second.program.Forbids(0) {
		t.Errorf("a forbid whose text has the hash of a permit: %+v, %v", second.policies[0], wrong)
	}
}

// The texts of files are read into memory that the reload before had, and policies do
// not hang on it.
func TestDesk(t *testing.T) {
	const policies = 2000
	text := strings.Repeat("@note(\""+strings.Repeat("n", 600)+"\") permit (principal, action, resource);\n", policies)
	dir := t.TempDir()
	install := func(more string) {
		if err := os.WriteFile(filepath.Join(dir, "a.cedar"), []byte(text+more), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	install("")
	nobody := func(context.Context, creto.ID) ([]string, error) { return nil, nil }
	a, err := Open(dir, creto.DefaultTenant, nobody, nil, func(context.Context, Change) {})
	if err != nil {
		t.Fatal(err)
	}
	least := uint64(math.MaxUint64) // whatever else allocates meanwhile
	for i := range 10 {
		install(fmt.Sprintf("@id(%q) forbid (principal, action, resource);", fmt.Sprint(i)))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := a.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
	}
	if least > 2*uint64(len(text)) { // without a desk: 2.3 times
		t.Errorf("a reload of %d bytes allocates %d", len(text), least)
	}
	room := a.desk.take()
	for i := range (*room)[:cap(*room)] {
		(*room)[:cap(*room)][i] = 'X'
	}
	for _, p := range a.current.Load().tenants[creto.DefaultTenant].policies {
		if got := string(p.place.text); strings.Contains(got, "X") {
			t.Fatalf("policy %s is in memory that the next reload has: %.40q", p.ref.ID, got)
		}
	}
}

// A file is read whole, whatever its size was said to be, behind what is there.
func TestAppendFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.cedar")
	for _, n := range []int{0, 1, 511, 512, 100_000} {
		content := strings.Repeat("c", n)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{0, 1, n, 2 * n} {
			if got, err := appendFile([]byte("before "), path, size); err != nil || string(got) != "before "+content {
				t.Errorf("%d bytes, said to be %d: read %d, %v", n, size, len(got), err)
			}
		}
	}
	if _, err := appendFile(nil, path+".not", 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := appendFile(nil, t.TempDir(), 0); err == nil {
		t.Error("a directory was read")
	}
}
