package node

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"creto.dev/audit"
	"creto.dev/audit/localaudit"
	"creto.dev/audit/witness"
	"creto.dev/client"
	"creto.dev/fault"
)

// Fsck implements serve.Admin: the log, the head that it published, and those in
// audit.checkpoint_file.
func (n *Node) Fsck(ctx context.Context) (client.Fsck, error) {
	const op fault.Op = "node.Fsck"
	if err := n.platformOnly(ctx); err != nil {
		return client.Fsck{}, fault.Wrap(op, err)
	}
	tree, err := n.ownTree(op)
	if err != nil {
		return client.Fsck{}, err
	}
	out, seen := seenHeads(n.options.Config.Audit.CheckpointFile)
	if published := n.publisher.Checkpoint(); published.Note != nil {
		signer, err := n.authority.CheckpointSigner(ctx, n.logOrigin())
		if err != nil {
			return client.Fsck{}, fault.Wrap(op, err)
		}
		if _, err := audit.VerifyCheckpoint(n.pqc, published.Note, signer.Keys()); err != nil {
			add(&out, localaudit.Problem{Place: "published head", Reason: fault.Message(err)})
		}
		seen = append(seen, published)
	}
	checked, err := tree.Fsck(ctx, seen, func(p localaudit.Problem) { add(&out, p) })
	return found(out, checked, len(seen)), fault.Wrap(op, err)
}

// Fsck checks the log of a data directory in which no node runs. It asks nothing
// of the rest of the node, so that it works where the node does not start.
//
// Errors: FailedPrecondition (Permanent) if a node runs; Unavailable (Degraded) if
// the database cannot be opened; those of localaudit.Fsck.
func Fsck(ctx context.Context, o Options) (client.Fsck, error) {
	const op fault.Op = "node.Fsck"
	n := &Node{options: o}
	if n.options.Log == nil {
		n.options.Log = slog.New(slog.DiscardHandler)
	}
	var err error
	if _, err = os.Stat(o.DataDir); err == nil {
		n.lock, err = lock(filepath.Join(o.DataDir, lockName))
	}
	if err != nil {
		return client.Fsck{}, fault.WrapAs(op, fault.CodeOf(err), err, "there is no data directory %s that can be used", o.DataDir)
	}
	n.onClose(n.lock.Close)
	if err := n.openDatabase(ctx); err != nil {
		return client.Fsck{}, errors.Join(fault.Wrap(op, err), n.Close())
	}
	out, seen := seenHeads(o.Config.Audit.CheckpointFile)
	checked, err := localaudit.Fsck(ctx, n.db, o.Config.Audit.Archive, seen, func(p localaudit.Problem) { add(&out, p) })
	return found(out, checked, len(seen)), fault.Wrap(op, errors.Join(err, n.Close()))
}

// seenHeads reads a file of heads; "" holds none.
func seenHeads(path string) (out client.Fsck, seen []audit.Checkpoint) {
	if path == "" {
		return out, nil
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return out, nil // nothing was published yet
	}
	if err == nil {
		seen, err = witness.ParseHeads(text)
	}
	if err != nil {
		add(&out, localaudit.Problem{Place: path, Reason: "not all of its heads can be read"})
	}
	return out, seen
}

func add(out *client.Fsck, p localaudit.Problem) {
	if out.Found++; out.Found <= client.MaxProblems {
		out.Problems = append(out.Problems, client.Problem(p))
	}
}

func found(out client.Fsck, checked localaudit.Checked, heads int) client.Fsck {
	out.Size, out.Records, out.Tiles, out.Heads = checked.Size, checked.Records, checked.Tiles, heads
	out.Root = hex.EncodeToString(checked.Root[:])
	return out
}
