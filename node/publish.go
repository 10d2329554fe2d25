package node

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/witness"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/internal/logkey"
)

// openPublisher opens what has the log's heads cosigned.
func (n *Node) openPublisher() error {
	var err error
	n.publisher, err = witness.NewPublisher(n.options.Config.Audit.publisher(), n.log, n.splitView, n.options.Log)
	return fault.Wrap("node.openPublisher", err)
}

func (c PublicationConfig) publisher() witness.Config {
	return witness.Config{Witnesses: c.Witnesses, Quorum: c.WitnessQuorum, Interval: time.Duration(c.PublishInterval), File: c.CheckpointFile}
}

// splitView records that the log is not the one that was published.
func (n *Node) splitView(ctx context.Context, a witness.Alarm) {
	_, err := n.log.Log(ctx, audit.Record{
		Who: n.owner, What: audit.EventSplitView, Resource: "Log::" + n.logOrigin(), Outcome: audit.Failure, Why: a.Reason,
		Detail: map[string]string{"by": a.By, "ours": strconv.FormatInt(a.Ours, 10), "theirs": strconv.FormatInt(a.Theirs, 10)},
	})
	if err != nil {
		n.options.Log.LogAttrs(ctx, slog.LevelError, "a split view is not recorded", slog.Any(logkey.Error, err))
	}
}

// publishedLog is the audit log as others read it.
type publishedLog struct{ *Node }

// Checkpoint implements serve.TransparencyLog.
func (l publishedLog) Checkpoint(ctx context.Context) ([]byte, error) {
	if _, err := l.ownTree("node.Checkpoint"); err != nil {
		return nil, err
	}
	c := l.publisher.Checkpoint()
	if c.Note == nil { // the node has just started
		var err error
		if c, err = l.log.Checkpoint(ctx); err != nil {
			return nil, err
		}
	}
	return append(bytes.Clone(c.Note), c.Others...), nil
}

// Tile implements serve.TransparencyLog.
func (l publishedLog) Tile(ctx context.Context, t tlog.Tile) ([]byte, error) {
	tree, err := l.ownTree("node.Tile")
	if err != nil {
		return nil, err
	}
	return tree.Tile(ctx, t)
}

// mayReadLog refuses whoever may not read the log: it has every tenant's records.
func (n *Node) mayReadLog(r *http.Request, entries bool) (open bool, err error) {
	switch n.options.Config.Audit.Publish {
	case PublishAll:
		return true, nil
	case PublishProofs:
		if !entries {
			return true, nil
		}
	}
	id, err := n.introspector(r)
	if err != nil {
		return false, err
	}
	return false, n.platformOnly(creto.WithCaller(r.Context(), id))
}

// LogKeys implements serve.Admin.
func (n *Node) LogKeys(ctx context.Context) (client.LogKeys, error) {
	n.rotating.RLock()
	defer n.rotating.RUnlock()
	signer, err := n.authority.CheckpointSigner(ctx, n.logOrigin())
	if err != nil {
		return client.LogKeys{}, fault.Wrap("node.LogKeys", err)
	}
	keys := client.LogKeys{Origin: n.logOrigin()}
	keys.Ed25519, keys.Composite = signer.Keys().VKeys()
	return keys, nil
}
