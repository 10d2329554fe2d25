package localaudit

import (
	"bytes"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// The edge is, at every size, what the tree of x/mod/sumdb/tlog says.
func TestEdge(t *testing.T) {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			hashes[i] = stored[x]
		}
		return hashes, nil
	})
	var e edge
	tiles := make(map[tileAt][]byte)
	for n := range int64(70_000) {
		record := fmt.Appendf(nil, "record %d", n)
		hashes, err := tlog.StoredHashes(n, record, reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hashes...)
		before := e.clone()
		e.append(tlog.RecordHash(record), func(at tileAt, hashes []byte) { tiles[at] = bytes.Clone(hashes) })
		if n > 1000 && n%257 != 0 && n&tileMask > 2 {
			continue
		}
		want, err := tlog.TreeHash(n+1, reader)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.root(); got != want {
			t.Fatalf("the root of %d records is %v, want %v", n+1, got, want)
		}
		// What was handed out stays: a batch that is rolled back is repeated.
		again := before.clone()
		again.append(tlog.RecordHash(record), func(tileAt, []byte) {})
		if again.root() != want {
			t.Fatalf("a repeated append of record %d has another root", n)
		}
	}
	for at, hashes := range tiles {
		want, err := tlog.ReadTileData(tlog.Tile{H: tileHeight, L: at.level, N: at.n, W: tileWidth}, reader)
		if err != nil || !bytes.Equal(hashes, want) {
			t.Errorf("tile %v is not that of tlog (err %v)", at, err)
		}
	}
	if len(tiles) != 70_000/256+1 {
		t.Errorf("%d full tiles", len(tiles))
	}
	if root, _ := tlog.TreeHash(0, reader); (edge{}).root() != root {
		t.Errorf("the root of the empty tree is %v, want %v", (edge{}).root(), root)
	}
}
