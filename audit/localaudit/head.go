package localaudit

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"hash/crc32"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/db"
)

// Small rows that nothing else vouches for carry a checksum: a flipped bit must
// not make records disappear.

// rowSum returns the checksum of a row of numbers and bytes.
func rowSum(bytes []byte, numbers ...int64) int64 {
	data := append([]byte(nil), bytes...)
	for _, n := range numbers {
		data = binary.BigEndian.AppendUint64(data, uint64(n))
	}
	return int64(crc32.Checksum(data, castagnoli))
}

func damagedTable(op fault.Op, table string) error {
	return fault.New(op, fault.DataLoss, "the table %s of the audit log is damaged; creto audit fsck says more", table)
}

// head is where the tree ends, and where it begins to be in the database.
type head struct {
	size  int64
	first int64
	root  [32]byte
}

// loadHead reads the head; that of an empty log is zero.
func loadHead(ctx context.Context, q querier) (h head, err error) {
	const op fault.Op = "localaudit.loadHead"
	var root []byte
	var sum int64
	err = q.QueryRowContext(ctx, "SELECT size, root, first, checksum FROM audit_head WHERE \"only\" = 1").Scan(&h.size, &root, &h.first, &sum)
	if errors.Is(err, sql.ErrNoRows) {
		return head{}, nil
	}
	if err != nil {
		return h, db.Classify(op, err)
	}
	if len(root) != len(h.root) || sum != rowSum(root, h.size, h.first) {
		return h, damagedTable(op, "audit_head")
	}
	h.root = [32]byte(root)
	return h, nil
}

func (h head) save(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO audit_head ("only", size, root, first, checksum) VALUES (1, $1, $2, $3, $4)
		ON CONFLICT ("only") DO UPDATE SET size = $1, root = $2, first = $3, checksum = $4`, h.size, h.root[:], h.first, rowSum(h.root[:], h.size, h.first))
	return db.Classify("localaudit.saveHead", err)
}

// frontSequence returns the last frame that the tree has of a queue.
func frontSequence(ctx context.Context, q querier, id creto.UUID) (uint64, error) {
	const op fault.Op = "localaudit.frontSequence"
	var sequence, sum int64
	err := q.QueryRowContext(ctx, "SELECT sequence, checksum FROM audit_front WHERE id = $1", id[:]).Scan(&sequence, &sum)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return 0, nil
	case err != nil:
		return 0, db.Classify(op, err)
	case sum != rowSum(id[:], sequence):
		return 0, damagedTable(op, "audit_front")
	}
	return uint64(sequence), nil
}

func saveFront(ctx context.Context, tx *sql.Tx, id creto.UUID, sequence uint64) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO audit_front (id, sequence, checksum) VALUES ($1, $2, $3)
		ON CONFLICT (id) DO UPDATE SET sequence = $2, checksum = $3`, id[:], int64(sequence), rowSum(id[:], int64(sequence)))
	return db.Classify("localaudit.saveFront", err)
}
