package node

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/audit/remoteaudit"
	"creto.dev/fault"
	"creto.dev/health"
	"creto.dev/internal/journal"
	"creto.dev/internal/logkey"
	"creto.dev/pqc"
)

// runningLog is a log that this node runs.
type runningLog interface {
	audit.Log
	Run(ctx context.Context) error
	Close() error
}

// openLog opens the node's log: its own, or another node's with a journal here.
func (n *Node) openLog(ctx context.Context, key pqc.SymmetricKey) error {
	const op fault.Op = "node.openLog"
	cfg := n.options.Config
	signer, err := n.authority.CheckpointSigner(ctx, n.logOrigin())
	if err != nil {
		return fault.Wrap(op, err)
	}
	front := intake.Config{
		Journal: journal.Config{
			Dir: filepath.Join(n.options.DataDir, "audit"), Slots: cfg.Integrations.Audit.LocalBufferMaxSize, SpoolBytes: int64(cfg.Audit.SpoolMiB) << 20,
		},
		Batch:   cfg.Integrations.Audit.BatchSize,
		Flush:   time.Duration(cfg.Integrations.Audit.FlushIntervalMS) * time.Millisecond,
		Timeout: time.Duration(cfg.Integrations.Audit.TimeoutMS) * time.Millisecond,
	}
	if address, elsewhere := cfg.Integrations.Audit.address(); elsewhere {
		front.Journal.Dir = filepath.Join(n.options.DataDir, "audit", "remote")
		conn, err := n.dialNode(address)
		if err != nil {
			return fault.Wrap(op, err)
		}
		n.onClose(conn.Close)
		sign := func(r audit.Record) (pqc.Signature, pqc.PublicKey, error) {
			sig, err := signer.SignRecord(r)
			return sig, signer.Keys().Key, err
		}
		log, err := remoteaudit.Open(remoteaudit.Config{
			Intake: front, Policy: cfg.Integrations.Audit.CallPolicy(), Name: cfg.Integrations.Audit.Endpoint, Self: n.self(),
		}, conn, n.pqc, n.clock, sign, n.options.Log)
		if err != nil {
			return fault.Wrap(op, err)
		}
		n.log = log
		n.onClose(log.Close)
		return nil
	}
	n.tree, err = localaudit.Open(ctx, localaudit.Config{
		Self: n.self(), Intake: front, Retention: time.Duration(cfg.Audit.Retention), Archive: cfg.Audit.Archive,
	}, n.db, n.pqc, n.clock, signer, key, n.options.Log)
	if err != nil {
		return fault.Wrap(op, err)
	}
	n.log = n.tree
	n.onClose(n.tree.Close)
	if err := n.observeClock(ctx); err != nil {
		return fault.Wrap(op, err)
	}
	return n.openPublisher()
}

// self is who the node's own records are of.
func (n *Node) self() creto.ID {
	return creto.ID{TrustDomain: n.options.Config.Identity.TrustDomain, Tenant: n.options.Config.Identity.Tenant, Kind: creto.KindWorkload, Name: "creto"}
}

// ownTree returns the log's tree, if it is here.
func (n *Node) ownTree(op fault.Op) (*localaudit.Log, error) {
	if n.tree == nil {
		return nil, fault.New(op, fault.FailedPrecondition, "the audit log is kept by the node at %s; ask there", n.options.Config.Integrations.Audit.Endpoint)
	}
	return n.tree, nil
}

// auditHealth is R-AUD-32's, and degraded while waiting records take most of the
// room that there is (R-OQ-2).
func (n *Node) auditHealth(ctx context.Context) health.Status {
	err := n.log.Ping(ctx)
	status := health.Of(err, "Audit service slow", "Audit service unavailable")
	if errors.Is(err, fault.AuditTimeout) {
		status.Reason += ": " + fault.Message(err)
	}
	if err != nil {
		n.options.Log.LogAttrs(ctx, slog.LevelDebug, "the audit log does not answer", slog.Any(logkey.Error, err))
	}
	return status
}
