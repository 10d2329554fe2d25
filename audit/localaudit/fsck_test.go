package localaudit_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/localaudit"
)

// problems runs fsck and returns the places that it names.
func problems(t *testing.T, o opened, seen ...audit.Checkpoint) (places []string, checked localaudit.Checked) {
	t.Helper()
	checked, err := localaudit.Fsck(t.Context(), o.db, "", seen, func(p localaudit.Problem) {
		places = append(places, p.Place+": "+p.Reason)
	})
	if err != nil {
		t.Fatal(err)
	}
	return places, checked
}

// finish has all written that a life writes at its end.
func finish(t testing.TB, o opened) {
	t.Helper()
	ended, end := context.WithCancel(t.Context())
	end()
	if err := o.log.Run(ended); err != nil {
		t.Fatal(err)
	}
}

// Whatever is damaged in the database is named, and nothing else is.
func TestFsck(t *testing.T) {
	const size = 700
	grown := func(t *testing.T) opened {
		t.Helper()
		o := open(t, t.TempDir(), nil)
		for i := range size {
			if _, err := o.log.Log(t.Context(), audittest.Record(creto.CallModel, i)); err != nil {
				t.Fatal(err)
			}
		}
		finish(t, o)
		if _, err := o.log.Fsck(t.Context(), nil, func(p localaudit.Problem) { t.Errorf("a whole log: %+v", p) }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := o.log.Close(); err != nil {
				t.Error(err)
			}
		})
		return o
	}
	t.Run("whole", func(t *testing.T) {
		o := grown(t)
		head, err := o.log.Checkpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		places, checked := problems(t, o)
		if len(places) > 0 || checked.Size != size || checked.Records != size || checked.Tiles != 4 || checked.Root != head.Root {
			t.Errorf("Fsck = %+v, %q", checked, places)
		}
	})
	t.Run("heads that were seen", func(t *testing.T) {
		o := open(t, t.TempDir(), nil)
		var seen []audit.Checkpoint
		for i := range 600 {
			if _, err := o.log.Log(t.Context(), audittest.Record(creto.CallModel, i)); err != nil {
				t.Fatal(err)
			}
			if slices.Contains([]int{0, 1, 199, 254, 255, 256, 510, 511, 512, 598, 599}, i) {
				head, err := o.log.Checkpoint(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				seen = append(seen, head)
			}
		}
		slices.Reverse(seen)
		if places, _ := problems(t, o, seen...); len(places) > 0 {
			t.Errorf("Fsck says %q", places)
		}
		for i := range seen {
			other := slices.Clone(seen)
			other[i].Root[3] ^= 1
			want := fmt.Sprintf("head of %d records that was seen: it is no beginning of this log: somebody was shown another one", other[i].Size)
			if places, _ := problems(t, o, other...); !slices.Equal(places, []string{want}) {
				t.Errorf("Fsck says %q, want %q", places, want)
			}
		}
		later := audit.Checkpoint{Size: 601}
		if places, _ := problems(t, o, later); len(places) != 1 || !strings.Contains(places[0], "the log has 600 only") {
			t.Errorf("Fsck says %q", places)
		}
		if err := o.log.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("empty", func(t *testing.T) {
		o := open(t, t.TempDir(), nil)
		if places, checked := problems(t, o, audit.Checkpoint{}); len(places) > 0 || checked.Size != 0 {
			t.Errorf("Fsck = %+v, %q", checked, places)
		}
		if places, _ := problems(t, o, audit.Checkpoint{}, audit.Checkpoint{Size: 1}); len(places) != 1 {
			t.Errorf("Fsck says %q", places)
		}
		if err := o.log.Close(); err != nil {
			t.Error(err)
		}
	})
	// flip returns SQL for bytes with one changed.
	read := func(t *testing.T, o opened, query string) (data []byte) {
		t.Helper()
		if err := o.db.QueryRowContext(t.Context(), query).Scan(&data); err != nil {
			t.Fatal(err)
		}
		return data
	}
	for _, test := range []struct {
		name  string
		read  string // bytes of which one is flipped
		write string
		want  []string
	}{
		{"a record of a full bundle", "SELECT body FROM audit_record WHERE leaf = 300", "UPDATE audit_record SET body = $1 WHERE leaf = 300", []string{
			"record 300: its checksum is that of other bytes", "record 300: its bytes are not those that were logged",
		}},
		{"a record at the edge", "SELECT body FROM audit_record WHERE leaf = 699", "UPDATE audit_record SET body = $1 WHERE leaf = 699", []string{
			"record 699: its checksum is that of other bytes", "record 699: its bytes are not those that were logged",
		}},
		{"a record that is gone", "", "DELETE FROM audit_record WHERE leaf = 5", []string{"record 5: it is missing"}},
		{"the last record", "", "DELETE FROM audit_record WHERE leaf = 699", []string{"record 699: it is missing"}},
		{"a checksum", "", "UPDATE audit_record SET checksum = 1 WHERE leaf = 7", []string{"record 7: its checksum is that of other bytes"}},
		{"an id", "SELECT id FROM audit_record WHERE leaf = 8", "UPDATE audit_record SET id = $1 WHERE leaf = 8", []string{"record 8: it is found under the id of another"}},
		{"a full tile", "SELECT hashes FROM audit_tile WHERE level = 0 AND n = 1", "UPDATE audit_tile SET hashes = $1 WHERE level = 0 AND n = 1", []string{"tile 0/1: its hashes are wrong; what is below it is whole"}},
		{"a full tile that is gone", "", "DELETE FROM audit_tile WHERE level = 0 AND n = 1", []string{"tile 0/1: it is missing"}},
		{"a tile that was cut", "", "UPDATE audit_tile SET hashes = substr(hashes, 1, 100) WHERE level = 0 AND n = 0", []string{"tile 0/0: it is missing"}},
		{"a tile of the edge", "SELECT hashes FROM audit_tile WHERE level = 1 AND n = 0", "UPDATE audit_tile SET hashes = $1 WHERE level = 1 AND n = 0", []string{
			"tile 1/0: its hashes are wrong; what is below it is whole",
		}},
		{"the root", "SELECT root FROM audit_head", "UPDATE audit_head SET root = $1", []string{"head: its checksum is that of other values", "head: its root is not that of the 700 records"}},
		{"a posting", "SELECT bits FROM audit_posting WHERE bundle = 1 ORDER BY term LIMIT 1", "UPDATE audit_posting SET bits = $1 WHERE bundle = 1 AND term = (SELECT min(term) FROM audit_posting WHERE bundle = 1)", []string{
			"index of records 256 to 511: a posting is damaged: queries may miss them",
		}},
		{"a posting that is gone", "", "DELETE FROM audit_posting WHERE bundle = 0 AND term = (SELECT min(term) FROM audit_posting WHERE bundle = 0)", []string{
			"index of records 0 to 255: a posting is missing: queries may miss them",
		}},
		{"a time", "", "UPDATE audit_bundle SET oldest = oldest + 1 WHERE n = 1", []string{"index of records 256 to 511: its time is not that of its records: queries may miss them"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := grown(t)
			var args []any
			if test.read != "" {
				data := slices.Clone(read(t, o, test.read))
				data[len(data)/2] ^= 1
				args = append(args, data)
			}
			result, err := o.db.ExecContext(t.Context(), test.write, args...)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := result.RowsAffected(); err != nil || n != 1 {
				t.Fatalf("%d rows were changed, %v", n, err)
			}
			places, _ := problems(t, o)
			// A record that does not say what it said is also not found by it.
			places = slices.DeleteFunc(places, func(p string) bool {
				return len(test.want) > 0 && test.want[0][0] == 'r' && (len(p) > 5 && p[:5] == "index" || p == "record 300: it is no record" || p == "record 699: it is no record")
			})
			if !slices.Equal(places, test.want) {
				t.Errorf("Fsck says %q, want %q", places, test.want)
			}
		})
	}
}

// Segments that left the database are checked in the archive, and their tiles
// where they are.
func TestFsckArchive(t *testing.T) {
	archive := t.TempDir()
	o := open(t, t.TempDir(), func(c *localaudit.Config) { c.Archive, c.Retention = archive, time.Nanosecond })
	defer func() {
		if err := o.log.Close(); err != nil {
			t.Error(err)
		}
	}()
	for i := range 4200 {
		if _, err := o.log.Log(t.Context(), audittest.Record(creto.CallModel, i)); err != nil {
			t.Fatal(err)
		}
	}
	before, err := o.log.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := o.log.Retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	check := func(want ...string) {
		t.Helper()
		var got []string
		checked, err := o.log.Fsck(t.Context(), []audit.Checkpoint{before}, func(p localaudit.Problem) { got = append(got, p.Place+": "+p.Reason) })
		if err != nil || checked.Size < 4200 || checked.Records > 200 {
			t.Fatalf("Fsck = %+v, %v", checked, err)
		}
		if !slices.EqualFunc(got, want, strings.HasPrefix) {
			t.Errorf("Fsck says %q, want %q", got, want)
		}
	}
	check()
	file := filepath.Join(archive, "tile", "entries", "003")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	check("record 8")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	check("records 768 to 1023: they are not in the archive")
	if _, err := o.db.ExecContext(t.Context(), "DELETE FROM audit_tile WHERE level = 0 AND n = 2"); err != nil {
		t.Fatal(err)
	}
	check("tile 0/2: it is missing", "records 768 to 1023: they are not in the archive")
}
