package localaudit

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"creto.dev/fault"
	"creto.dev/internal/db"
)

// Tiles are those of C2SP tlog-tiles: 256 hashes of a level, which is a multiple
// of 8 in the tree.
//
// https://c2sp.org/tlog-tiles
const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	tileBytes  = tileWidth * tlog.HashSize
	tileMask   = tileWidth - 1
)

// edge is the right edge of a tree: the tile of each level that is not full. It
// is all that is needed to go on, and what everything else is verified against.
type edge struct {
	size   int64
	levels [][]byte
}

// clone returns a copy to go on with while e stays what it is: bytes are only
// ever added behind those that e knows.
func (e edge) clone() edge {
	return edge{size: e.size, levels: append([][]byte(nil), e.levels...)}
}

// append adds a leaf. full is given each tile that became full.
func (e *edge) append(leaf tlog.Hash, full func(at tileAt, hashes []byte)) {
	h := leaf
	for level := 0; ; level++ {
		if level == len(e.levels) {
			e.levels = append(e.levels, nil)
		}
		if e.levels[level] == nil {
			e.levels[level] = make([]byte, 0, tileBytes)
		}
		e.levels[level] = append(e.levels[level], h[:]...)
		hashes := e.levels[level]
		if len(hashes) < tileBytes {
			break
		}
		full(tileAt{level, e.size >> (tileHeight * (level + 1))}, hashes)
		e.levels[level] = nil
		h = perfect(hashes)
	}
	e.size++
}

// root returns the root of RFC 6962, section 2.1: the perfect trees that make up
// the edge, joined from the right.
func (e edge) root() tlog.Hash {
	if e.size == 0 {
		return sha256.Sum256(nil)
	}
	var root tlog.Hash
	joined := false
	for _, hashes := range e.levels {
		end := len(hashes)
		for width := tlog.HashSize; width <= len(hashes); width *= 2 {
			if len(hashes)&width == 0 {
				continue
			}
			tree := perfect(hashes[end-width : end])
			end -= width
			if joined {
				tree = tlog.NodeHash(tree, root)
			}
			root, joined = tree, true
		}
	}
	return root
}

// perfect returns the root of a perfect tree over hashes.
func perfect(hashes []byte) tlog.Hash {
	level := append([]byte(nil), hashes...)
	for n := len(level) / tlog.HashSize; n > 1; n /= 2 {
		for i := range n / 2 {
			h := tlog.NodeHash(hashAt(level, 2*i), hashAt(level, 2*i+1))
			copy(level[i*tlog.HashSize:], h[:])
		}
	}
	return hashAt(level, 0)
}

func hashAt(hashes []byte, i int) tlog.Hash {
	return tlog.Hash(hashes[i*tlog.HashSize : (i+1)*tlog.HashSize])
}

// tileAt names a tile.
type tileAt struct {
	level int
	n     int64
}

// parent returns the tile that holds this one's root, and the root's place there.
func (t tileAt) parent() (tileAt, int) {
	return tileAt{t.level + 1, t.n >> tileHeight}, int(t.n & tileMask)
}

// edgeTiles returns the tiles of the edge of a tree of that size, with how many
// hashes each has.
func edgeTiles(size int64) map[tileAt]int {
	tiles := make(map[tileAt]int)
	for level := 0; size > 0; level++ {
		if width := int(size & tileMask); width > 0 {
			tiles[tileAt{level, size >> tileHeight}] = width
		}
		size >>= tileHeight
	}
	return tiles
}

// querier is a database or a transaction.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// loadTile reads a tile as it is stored.
func loadTile(ctx context.Context, q querier, at tileAt) ([]byte, error) {
	const op fault.Op = "localaudit.loadTile"
	var hashes []byte
	err := q.QueryRowContext(ctx, "SELECT hashes FROM audit_tile WHERE level = $1 AND n = $2", at.level, at.n).Scan(&hashes)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, damaged(op, at)
	}
	return hashes, db.Classify(op, err)
}

func damaged(op fault.Op, at tileAt) error {
	return fault.New(op, fault.DataLoss, "tile %d/%d of the audit log is damaged; creto audit fsck says more", at.level, at.n)
}

// saveTile writes a tile that grew.
func saveTile(ctx context.Context, q querier, at tileAt, hashes []byte) error {
	_, err := q.ExecContext(ctx, "INSERT INTO audit_tile (level, n, hashes) VALUES ($1, $2, $3) ON CONFLICT (level, n) DO UPDATE SET hashes = $3", at.level, at.n, hashes)
	return db.Classify("localaudit.saveTile", err)
}

// loadEdge reads the edge of a head and checks that it leads to its root.
func loadEdge(ctx context.Context, q querier, h head) (edge, error) {
	const op fault.Op = "localaudit.loadEdge"
	e := edge{size: h.size}
	if h.size == 0 {
		return e, nil
	}
	for at, width := range edgeTiles(h.size) {
		hashes, err := loadTile(ctx, q, at)
		if err != nil {
			return e, err
		}
		if len(hashes) != width*tlog.HashSize {
			return e, damaged(op, at)
		}
		for len(e.levels) <= at.level {
			e.levels = append(e.levels, nil)
		}
		e.levels[at.level] = append(make([]byte, 0, tileBytes), hashes...)
	}
	if e.root() != h.root {
		return e, fault.New(op, fault.DataLoss, "the audit log's tiles do not lead to its root: the database is damaged; creto audit fsck says where")
	}
	return e, nil
}

// tree reads verified tiles of a tree whose edge is known.
type tree struct {
	edge
	query querier
	cache *tileCache
}

// tile returns the hashes of a tile, verified. They are not to be changed.
func (t tree) tile(ctx context.Context, at tileAt) ([]byte, error) {
	const op fault.Op = "localaudit.tile"
	if at.level < len(t.levels) && at.n == t.size>>(tileHeight*(at.level+1)) {
		return t.levels[at.level], nil
	}
	if at.level < 0 || at.n < 0 || at.level >= len(t.levels) || at.n > t.size>>(tileHeight*(at.level+1)) {
		return nil, fault.New(op, fault.AuditNotFound, "the tree of %d records has no tile %d/%d", t.size, at.level, at.n)
	}
	if hashes, ok := t.cache.get(at); ok {
		return hashes, nil
	}
	hashes, err := loadTile(ctx, t.query, at)
	if err != nil {
		return nil, err
	}
	parent, i := at.parent()
	above, err := t.tile(ctx, parent)
	if err != nil {
		return nil, err
	}
	if len(hashes) != tileBytes || perfect(hashes) != hashAt(above, i) {
		return nil, damaged(op, at)
	}
	t.cache.put(at, hashes)
	return hashes, nil
}

// reader reads hashes for proofs.
func (t tree) reader(ctx context.Context) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			tile := tlog.TileForIndex(tileHeight, x)
			data, err := t.tile(ctx, tileAt{tile.L, tile.N})
			if err != nil {
				return nil, err
			}
			if hashes[i], err = tlog.HashFromTile(tile, data, x); err != nil {
				return nil, fault.WrapAs("localaudit.reader", fault.AuditNotFound, err, "the tree of %d records does not hold what a proof needs", t.size)
			}
		}
		return hashes, nil
	})
}

// cachedTiles bounds the memory of the cache: 8 KiB each.
const cachedTiles = 512

// tileCache keeps full tiles that were verified, which never change.
type tileCache struct {
	mu    sync.Mutex // guards what follows
	tiles map[tileAt][]byte
	order []tileAt // a circle: the oldest goes first
	next  int
}

func newTileCache() *tileCache {
	return &tileCache{tiles: make(map[tileAt][]byte), order: make([]tileAt, cachedTiles)}
}

func (c *tileCache) get(at tileAt) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	hashes, ok := c.tiles[at]
	return hashes, ok
}

func (c *tileCache) put(at tileAt, hashes []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.tiles[at]; ok {
		return
	}
	if len(c.tiles) == cachedTiles {
		delete(c.tiles, c.order[c.next])
	}
	c.tiles[at], c.order[c.next] = hashes, at
	c.next = (c.next + 1) % cachedTiles
}
