package localaudit

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/durable"
	"creto.dev/internal/logkey"
)

// Records leave the database in segments of whole entry bundles. Their hashes
// stay, so that everything that was proven stays proven.

// segmentLeaves is how many records a segment has: 16 bundles.
const segmentLeaves = 16 * tileWidth

// retainEvery is how often Run looks for segments that are old enough.
const retainEvery = time.Hour

// retain runs Retain until ctx ends.
func (l *Log) retain(ctx context.Context) {
	if l.cfg.Retention <= 0 {
		return
	}
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for {
		if err := l.Retain(ctx); err != nil && ctx.Err() == nil {
			l.log.LogAttrs(ctx, slog.LevelError, "old audit records cannot be sealed", slog.Any(logkey.Error, err))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Retain seals the segments whose records are all older than the retention: it
// writes their entry bundles to the archive, in the layout of C2SP tlog-tiles,
// records that, and deletes them from the database.
//
// Errors: AuditUnavailable (Degraded); DataLoss (Security) if a segment is
// damaged, which then stays.
func (l *Log) Retain(ctx context.Context) error {
	const op fault.Op = "localaudit.Retain"
	if l.cfg.Retention <= 0 {
		return nil
	}
	now, err := l.clock.Now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	before := now.Time().Add(-l.cfg.Retention)
	for {
		first, ready, err := l.nextSegment(ctx, before)
		if err != nil || !ready {
			return unavailable(op, err)
		}
		if err := l.sealSegment(ctx, first); err != nil {
			return unavailable(op, err)
		}
	}
}

// nextSegment returns the oldest segment's first leaf, and whether all of it is
// older than before.
func (l *Log) nextSegment(ctx context.Context, before time.Time) (first int64, ready bool, err error) {
	const op fault.Op = "localaudit.nextSegment"
	if first, err = l.firstLeaf(ctx); err != nil {
		return 0, false, err
	}
	var newest sql.NullInt64
	var bundles int64 // those whose index is stored
	err = l.db.QueryRowContext(ctx, "SELECT max(newest), count(*) FROM audit_bundle WHERE n >= $1 AND n < $2", first>>tileHeight, (first+segmentLeaves)>>tileHeight).Scan(&newest, &bundles)
	return first, bundles == segmentLeaves>>tileHeight && newest.Int64 < before.UnixNano(), db.Classify(op, err)
}

func (l *Log) firstLeaf(ctx context.Context) (int64, error) {
	h, err := loadHead(ctx, l.db)
	return h.first, err
}

func (l *Log) sealSegment(ctx context.Context, first int64) error {
	const op fault.Op = "localaudit.sealSegment"
	t := l.tree()
	for n := first >> tileHeight; n < (first+segmentLeaves)>>tileHeight; n++ {
		// Read and verified in any case: what is damaged is not deleted.
		bundle, err := l.Tile(ctx, tlog.Tile{H: tileHeight, L: -1, N: n, W: tileWidth})
		if err != nil {
			return err
		}
		if l.cfg.Archive == "" {
			continue
		}
		path := l.archivePath(n)
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = durable.Replace(path, bundle)
		}
		if err != nil {
			return fault.WrapAs(op, fault.AuditUnavailable, err, "the archive %s cannot be written", l.cfg.Archive)
		}
	}
	root, err := tlog.TreeHash(first+segmentLeaves, t.reader(ctx))
	if err != nil {
		return err
	}
	r := audit.Record{
		Who: l.cfg.Self, What: audit.EventSegmentSealed, Resource: "Log::" + l.origin(), Outcome: audit.Success,
		Detail: map[string]string{
			"first": strconv.FormatInt(first, 10), "behind": strconv.FormatInt(first+segmentLeaves, 10), "root": root.String(),
			"archived": strconv.FormatBool(l.cfg.Archive != ""),
		},
	}
	if err := l.LogOwn(ctx, r); err != nil {
		return err
	}
	return db.Tx(ctx, l.db, func(tx *sql.Tx) error {
		for table, column := range map[string]string{"audit_posting": "bundle", "audit_bundle": "n"} {
			if _, err := tx.ExecContext(ctx, "DELETE FROM "+table+" WHERE "+column+" >= $1 AND "+column+" < $2", first>>tileHeight, (first+segmentLeaves)>>tileHeight); err != nil {
				return db.Classify(op, err)
			}
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM audit_record WHERE leaf >= $1 AND leaf < $2", first, first+segmentLeaves); err != nil {
			return db.Classify(op, err)
		}
		h, err := loadHead(ctx, tx)
		if err != nil || h.first != first {
			return err // somebody was faster
		}
		h.first = first + segmentLeaves
		return h.save(ctx, tx)
	})
}

// archived reports whether a leaf left the database.
func (l *Log) archived(ctx context.Context, leaf int64) bool {
	first, err := l.firstLeaf(ctx)
	return err == nil && leaf < first
}

// archivePath is where a full bundle is, as tlog-tiles has it: tile/entries/x001/234.
func (l *Log) archivePath(n int64) string {
	path := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		path = fmt.Sprintf("x%03d/%s", n%1000, path)
	}
	return filepath.Join(l.cfg.Archive, "tile", "entries", filepath.FromSlash(path))
}

// archivedBundle reads a bundle from the archive, as far as hashes go.
func (l *Log) archivedBundle(n int64, hashes []byte) ([]byte, error) {
	const op fault.Op = "localaudit.archivedBundle"
	var data []byte
	err := fs.ErrNotExist
	if l.cfg.Archive != "" {
		data, err = os.ReadFile(l.archivePath(n))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(op, fault.AuditNotFound, "the records from %d on left the log when their time was over", n<<tileHeight)
	}
	if err != nil {
		return nil, fault.WrapAs(op, fault.AuditUnavailable, err, "the archive cannot be read")
	}
	at := 0
	for i := range len(hashes) / tlog.HashSize {
		if at+2 > len(data) || at+2+int(binary.BigEndian.Uint16(data[at:])) > len(data) {
			return nil, damagedRow(op, n<<tileHeight+int64(i))
		}
		leaf := data[at+2 : at+2+int(binary.BigEndian.Uint16(data[at:]))]
		if tlog.RecordHash(leaf) != hashAt(hashes, i) {
			return nil, damagedRow(op, n<<tileHeight+int64(i))
		}
		at += 2 + len(leaf)
	}
	return data[:at], nil
}
