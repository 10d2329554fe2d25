package localaudit

import (
	"context"

	"golang.org/x/mod/sumdb/tlog"

	"creto.dev/fault"
)

// Consistency returns the RFC 6962 consistency proof between the trees of two
// sizes.
//
// Errors: AuditNotFound (Permanent) if the tree was never of these sizes.
func (l *Log) Consistency(ctx context.Context, from, to int64) ([][32]byte, error) {
	const op fault.Op = "localaudit.Consistency"
	l.mu.Lock()
	have := l.head.size
	l.mu.Unlock()
	if from < 1 || from > to || to > have {
		return nil, fault.New(op, fault.AuditNotFound, "the tree of %d records was never of %d and then %d", have, from, to)
	}
	hashes, err := tlog.ProveTree(to, from, &hashStore{ctx: ctx, query: l.db})
	if err != nil {
		return nil, unavailable(op, err)
	}
	proof := make([][32]byte, len(hashes))
	for i, h := range hashes {
		proof[i] = h
	}
	return proof, nil
}
