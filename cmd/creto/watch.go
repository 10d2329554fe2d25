package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"filippo.io/torchwood"
	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"creto.dev/audit"
	"creto.dev/audit/witness"
	"creto.dev/client"
	"creto.dev/fault"
)

func (a *app) auditKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "key",
		Short: "Print the keys that sign the log's heads",
		Long: `Print the verifier keys of the log's heads (C2SP signed-note). Witnesses and
monitors take the Ed25519 one; receipts hang on the composite one.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.node(func(n *client.Client) error {
				keys, err := n.LogKeys(c.Context())
				if err != nil {
					return err
				}
				return a.print(keys, func(w io.Writer) { fmt.Fprintf(w, "%s\n%s\n", keys.Ed25519, keys.Composite) })
			})
		},
	}
}

// published is a head as audit checkpoint prints it in JSON.
type published struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
	Root   string `json:"root"`
	Note   string `json:"note"`
}

func (a *app) auditCheckpointCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "checkpoint",
		Short: "Print the newest published head of the log",
		Long: `Print the newest published head of the log: a signed note with the log's own
signatures and those of its witnesses. Keep it: creto audit consistency --against
tells later whether the log still has all that it had.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.node(func(n *client.Client) error {
				head, _, err := publishedHead(c.Context(), n)
				if err != nil {
					return err
				}
				out := published{head.Origin, head.N, head.Hash.String(), string(head.note)}
				return a.print(out, func(w io.Writer) { _, _ = w.Write(head.note) })
			})
		},
	}
}

// signedHead is a head whose signature by the log holds.
type signedHead struct {
	torchwood.Checkpoint

	note []byte
}

// publishedHead asks the node for its newest head and verifies it.
func publishedHead(ctx context.Context, n *client.Client) (signedHead, note.Verifier, error) {
	const op fault.Op = "creto.publishedHead"
	keys, err := n.LogKeys(ctx)
	if err != nil {
		return signedHead{}, nil, err
	}
	key, err := note.NewVerifier(keys.Ed25519)
	if err != nil {
		return signedHead{}, nil, fault.WrapAs(op, fault.Internal, err, "the node's key is none")
	}
	text, err := n.Log(ctx, "checkpoint")
	if err != nil {
		return signedHead{}, nil, err
	}
	head, _, err := torchwood.VerifyCheckpoint(text, torchwood.ThresholdPolicy(2, torchwood.OriginPolicy(keys.Origin), torchwood.SingleVerifierPolicy(key)))
	return signedHead{head, text}, key, fault.WrapAs(op, fault.SecurityViolation, err, "the published head is not signed by the log's key")
}

// consistency is what audit consistency prints as JSON.
type consistency struct {
	OK    bool  `json:"ok"`
	Heads int   `json:"heads"`
	Size  int64 `json:"log_size"`
	// Unsigned are heads that the log's present key did not sign.
	Unsigned int `json:"unsigned"`
}

func (a *app) auditConsistencyCommand() *cobra.Command {
	var against string
	c := &cobra.Command{
		Use:   "consistency --against FILE",
		Short: "Check that the log still has all that heads seen earlier say it had",
		Long: `Check that every head in FILE, which is one that creto audit checkpoint printed or
the whole audit.checkpoint_file, is a beginning of the log as it is now. Nothing is
believed but the log's signed head: all hashes are computed here, from its tiles.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			text, err := os.ReadFile(against)
			if err != nil {
				return fault.WrapAs("creto.consistency", fault.InvalidArgument, err, "the file %s of --against cannot be read", against)
			}
			seen, err := witness.ParseHeads(text)
			if err != nil || len(seen) == 0 {
				return fault.WrapAs("creto.consistency", fault.InvalidArgument, err, "%s: not a head, or a list of heads", against)
			}
			return a.node(func(n *client.Client) error {
				out, err := consistent(c.Context(), n, seen)
				if err != nil {
					return err
				}
				return a.print(out, func(w io.Writer) {
					fmt.Fprintf(w, "consistent: all %d heads are beginnings of the log of %d records\n", out.Heads, out.Size)
					if out.Unsigned > 0 {
						fmt.Fprintf(w, "%d of them are not signed by the key that the log has now\n", out.Unsigned)
					}
				})
			})
		},
	}
	c.Flags().StringVar(&against, "against", "", "`FILE` with heads that were seen")
	_ = c.MarkFlagRequired("against") // the flag is there
	return c
}

// consistent computes the root of each head from the tiles of the log.
func consistent(ctx context.Context, n *client.Client, seen []audit.Checkpoint) (consistency, error) {
	const op fault.Op = "creto.consistent"
	now, key, err := publishedHead(ctx, n)
	if err != nil {
		return consistency{}, err
	}
	out := consistency{OK: true, Heads: len(seen), Size: now.N}
	tiles := torchwood.TileHashReaderWithContext(ctx, now.Tree, &tileReader{log: n, have: make(map[tlog.Tile][]byte)})
	for i, head := range seen {
		if origin, _, _ := bytes.Cut(head.Note, []byte("\n")); string(origin) != now.Origin {
			return out, fault.New(op, fault.InvalidArgument, "head %d is of the log %q; this one is %q", i+1, origin, now.Origin)
		}
		if head.Size > now.N {
			return out, fault.New(op, fault.SecurityViolation, "head %d has %d records and the log only %d: they were rolled back, or somebody was shown another log (or the head is newer than the published one; try again)", i+1, head.Size, now.N)
		}
		root, err := tlog.Hash(head.Root), error(nil)
		if head.Size > 0 {
			root, err = tlog.TreeHash(head.Size, tiles)
		}
		if err != nil {
			return out, fault.WrapAs(op, fault.SecurityViolation, err, "the log's tiles do not make its head: %s", fault.Message(err))
		}
		if root != head.Root {
			return out, fault.New(op, fault.SecurityViolation, "head %d, of %d records, is no beginning of this log: somebody was shown another one", i+1, head.Size)
		}
		if _, err := note.Open(head.Note, note.VerifierList(key)); err != nil {
			out.Unsigned++
		}
	}
	return out, nil
}

// tileReader reads tiles from a node, each once.
type tileReader struct {
	log *client.Client

	mu   sync.Mutex // guards have
	have map[tlog.Tile][]byte
}

// ReadTiles implements torchwood.TileReader.
func (r *tileReader) ReadTiles(ctx context.Context, tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, t := range tiles {
		r.mu.Lock()
		data[i] = r.have[t]
		r.mu.Unlock()
		if data[i] != nil {
			continue
		}
		var err error
		if data[i], err = r.log.Log(ctx, torchwood.TilePath(t)); err != nil {
			return nil, err
		}
	}
	return data, nil
}

// SaveTiles implements torchwood.TileReader: these lead to the head.
func (r *tileReader) SaveTiles(tiles []tlog.Tile, data [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, t := range tiles {
		r.have[t] = data[i]
	}
}

// ReadEndpoint implements torchwood.TileReader.
func (r *tileReader) ReadEndpoint(ctx context.Context, path string) ([]byte, error) {
	return r.log.Log(ctx, path)
}
