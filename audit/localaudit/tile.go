package localaudit

import (
	"context"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"

	"creto.dev/fault"
)

// Tile returns a tile of the tree: t.W hashes of level t.L, or for t.L = -1 as
// many leaves, each behind its length in two bytes (C2SP tlog-tiles).
//
// Errors: AuditNotFound (Permanent) for one that the tree does not have.
func (l *Log) Tile(ctx context.Context, t tlog.Tile) ([]byte, error) {
	const op fault.Op = "localaudit.Tile"
	l.mu.Lock()
	have := l.head.size
	l.mu.Unlock()
	if t.H != torchwood.TileHeight || t.L < -1 || t.L > 7 || t.N < 0 || t.N >= 1<<40 || t.W < 1 || t.W > 1<<torchwood.TileHeight {
		return nil, fault.New(op, fault.AuditNotFound, "there is no tile %s", torchwood.TilePath(t))
	}
	if shift := 8 * max(0, t.L); t.N<<8+int64(t.W) > have>>shift {
		return nil, fault.New(op, fault.AuditNotFound, "the tree of %d records has no tile %s", have, torchwood.TilePath(t))
	}
	if t.L >= 0 {
		data, err := tlog.ReadTileData(t, &hashStore{ctx: ctx, query: l.db})
		return data, unavailable(op, err)
	}
	rows, err := l.db.QueryContext(ctx, "SELECT body FROM audit_record WHERE leaf >= $1 AND leaf < $2 ORDER BY leaf", t.N<<8, t.N<<8+int64(t.W))
	if err != nil {
		return nil, unavailable(op, err)
	}
	defer func() { _ = rows.Close() }()
	var data []byte
	n := 0
	for ; rows.Next(); n++ {
		var leaf []byte
		if err := rows.Scan(&leaf); err != nil {
			return nil, unavailable(op, err)
		}
		if data, err = torchwood.AppendTileEntry(data, leaf); err != nil {
			return nil, fault.WrapAs(op, fault.DataLoss, err, "a record is too large for a bundle of entries")
		}
	}
	if err := rows.Err(); err != nil {
		return nil, unavailable(op, err)
	}
	if n != t.W {
		return nil, fault.New(op, fault.DataLoss, "%d of the %d records of %s are missing", t.W-n, t.W, torchwood.TilePath(t))
	}
	return data, nil
}
