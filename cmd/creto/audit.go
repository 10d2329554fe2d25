package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"creto.dev/audit"
	"creto.dev/client"
	"creto.dev/fault"
)

func (a *app) auditCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "audit",
		Short: "Query the audit log, and check it",
		Long: `Query the log of everything that happened, follow it, and check that it is still
what it was. Tools of others read it too: it is a C2SP tlog-tiles log.`,
	}
	c.AddCommand(a.auditQueryCommand(), a.auditTailCommand(), a.auditExportCommand(), a.auditProofCommand(), a.auditEraseCommand(),
		a.auditKeyCommand(), a.auditCheckpointCommand(), a.auditConsistencyCommand(), a.auditFsckCommand())
	return c
}

// query is what the flags of queries say.
type query struct {
	client.Query
	since, until string
	paged        bool // it has pageFlags
}

// flags adds those that select records.
func (q *query) flags(c *cobra.Command) {
	c.Flags().StringVar(&q.Agent, "agent", "", "only what `NAME` did: an agent, workload or human, or a SPIFFE id")
	c.Flags().StringVar(&q.Human, "human", "", "only what `NAME` did, or was done on their behalf")
	c.Flags().StringVar(&q.What, "what", "", "only this `ACTION` or event, such as call_model or authz_denied")
	c.Flags().StringVar(&q.Resource, "resource", "", "only what was done to `TYPE::ID`; a last * stands for anything")
	c.Flags().StringVar(&q.Outcome, "outcome", "", "only `success`, failure, denied, timeout or unknown")
	c.Flags().StringVar(&q.since, "since", "", "only since `TIME`: 2026-01-31, 2026-01-31T12:00:00Z, or 24h ago as 24h")
	c.Flags().StringVar(&q.until, "until", "", "only before `TIME`, likewise")
}

// pageFlags adds those that say which part of them.
func (q *query) pageFlags(c *cobra.Command) {
	q.paged = true
	c.Flags().StringVar(&q.Record, "receipt", "", "only the record with this `ID`")
	c.Flags().IntVar(&q.Limit, "limit", lastReceipts, "at most this many, 1 to 1000")
	c.Flags().Int64Var(&q.Before, "before", 0, "go on behind the record at this `INDEX`, for the next page")
}

// outcomes are what --outcome takes.
var outcomes = []string{string(audit.Success), string(audit.Failure), string(audit.Denied), string(audit.Timeout), string(audit.Unknown)}

func (q *query) check() error {
	if q.Outcome != "" && !slices.Contains(outcomes, q.Outcome) {
		return fmt.Errorf("--outcome=%s: choose %s", q.Outcome, strings.Join(outcomes, ", "))
	}
	if q.paged && q.Limit < 1 || q.Limit > audit.MaxPage || q.Before < 0 || q.From < 0 {
		return fmt.Errorf("--limit is 1 to %d and --before no negative number; --before INDEX gives the page behind a record", audit.MaxPage)
	}
	var err error
	if q.Since, err = moment("--since", q.since); err != nil {
		return err
	}
	q.Until, err = moment("--until", q.until)
	return err
}

// moment reads a time, or how long ago it was.
func moment(flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return time.Now().Add(-ago), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%s=%s: give a time such as 2026-01-31, 2026-01-31T12:00:00Z, or how long ago, such as 24h", flag, text)
}

func (a *app) auditQueryCommand() *cobra.Command {
	var q query
	c := &cobra.Command{
		Use: "query", Short: "Query the audit log, the newest first", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := q.check(); err != nil {
				return err
			}
			return a.node(func(n *client.Client) error {
				list, err := n.Receipts(c.Context(), q.Query)
				if err != nil {
					return err
				}
				return a.print(list, func(w io.Writer) {
					printReceipts(w, list)
					if len(list) == q.Limit && q.Record == "" && list[len(list)-1].Index > 0 {
						fmt.Fprintf(w, "there may be more: add --before %d\n", list[len(list)-1].Index)
					}
				})
			})
		},
	}
	q.flags(c)
	q.pageFlags(c)
	return c
}

func (a *app) auditTailCommand() *cobra.Command {
	var q query
	from := int64(-1)
	c := &cobra.Command{
		Use:   "tail",
		Short: "Print records as they enter the log",
		Long: `Print records as they enter the log, until you stop it: the last few, and then
each new one within a second. With --json, one record a line. When the node goes
away it says from where to go on.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := q.check(); err != nil {
				return err
			}
			return a.node(func(n *client.Client) error { return a.tail(c, n, q, from) })
		},
	}
	q.flags(c)
	c.Flags().Int64Var(&from, "from", -1, "begin with the record at this `INDEX`; -1 means the last ten")
	return c
}

// lastInTail is how many records tail begins with.
const lastInTail = 10

func (a *app) tail(c *cobra.Command, n *client.Client, q query, from int64) error {
	see := func(x client.Receipt) error {
		q.From = x.Index + 1
		if a.asJSON {
			return json.NewEncoder(a.out).Encode(x)
		}
		_, err := fmt.Fprintln(a.out, strings.ReplaceAll(receiptLine(x), "\t", "  "))
		return err
	}
	if from < 0 {
		q.Limit = lastInTail
		last, err := n.Receipts(c.Context(), q.Query)
		if err != nil {
			return err
		}
		slices.SortFunc(last, func(a, b client.Receipt) int { return int(a.Index - b.Index) })
		for _, x := range last {
			if err := see(x); err != nil {
				return err
			}
		}
	}
	q.From, q.Oldest, q.Limit = max(q.From, from), true, 0
	err := n.Tail(c.Context(), q.Query, see)
	if c.Context().Err() != nil {
		return nil // the person stopped it
	}
	return fault.WrapAs("creto.audit.tail", fault.CodeOf(err), err, "go on with --from %d", q.From)
}

// inclusion is what audit proof prints as JSON.
type inclusion struct {
	Index      int64        `json:"index"`
	Size       int64        `json:"tree_size"`
	LeafHash   string       `json:"leaf_hash"`
	Proof      [][]byte     `json:"proof"`
	Checkpoint string       `json:"checkpoint"`
	Record     audit.Record `json:"record"`
}

func (a *app) auditProofCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "proof RECORD",
		Short: "Prove that a record is in the log",
		Long: `Print the proof that a record is in the log (RFC 6962), and check it on the way:
its leaf's hash, the hashes beside the path to the root, and the signed head.
RECORD is its id, as --json shows it, or its index. For a proof that others can
check with everything around it, see creto receipts --bundle.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.node(func(n *client.Client) error {
				p, err := n.Proof(c.Context(), args[0])
				if err != nil {
					return err
				}
				out, err := checkProof(p)
				if err != nil {
					return err
				}
				return a.print(out, func(w io.Writer) {
					fmt.Fprintf(w, "record    %s\nindex     %d of %d\nleaf      %s\n", out.Record.ID, out.Index, out.Size, out.LeafHash)
					for i, h := range out.Proof {
						fmt.Fprintf(w, "%-9s %s\n", map[bool]string{true: "path"}[i == 0], base64.StdEncoding.EncodeToString(h))
					}
					fmt.Fprintf(w, "\n%s", out.Checkpoint)
				})
			})
		},
	}
}

// checkProof verifies that a proof leads to the head that it comes with.
func checkProof(p client.Proof) (inclusion, error) {
	const op fault.Op = "creto.audit.proof"
	out := inclusion{Index: p.Index, Size: p.Size, Proof: p.Proof, Checkpoint: p.Checkpoint}
	origin, _, _ := strings.Cut(p.Checkpoint, "\n")
	head, err := audit.ParseHead([]byte(p.Checkpoint), origin)
	if err != nil {
		return out, err
	}
	proof := make([][32]byte, len(p.Proof))
	for i, h := range p.Proof {
		if len(h) != len(proof[i]) {
			return out, fault.New(op, fault.AuditProofVerificationFailed, "the proof is malformed")
		}
		proof[i] = [32]byte(h)
	}
	if head.Size != p.Size {
		return out, fault.New(op, fault.AuditProofVerificationFailed, "the proof is for another head")
	}
	if err := audit.VerifyProof(p.Leaf, p.Index, head.Size, head.Root, proof); err != nil {
		return out, err
	}
	if out.Record, err = audit.DecodeRecord(p.Leaf); err != nil {
		return out, err
	}
	leaf := audit.LeafHash(p.Leaf)
	out.LeafHash = base64.StdEncoding.EncodeToString(leaf[:])
	return out, nil
}

func (a *app) auditEraseCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "erase HUMAN",
		Short: "Make a person unreadable in the log, for ever",
		Long: `Destroy the key under which the log keeps what it knows of a person: their name,
and what was written about them. Every record stays, names them by a pseudonym,
and every proof still holds. The human must have been removed before. There is no
way back, and copies of the database, such as backups, must be dealt with apart.

Bundles that were made with --disclose still show whom they disclose.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if !yes {
				return fmt.Errorf("this cannot be undone; to erase %s for ever, add --yes", args[0])
			}
			return a.node(func(n *client.Client) error {
				erased, err := n.Erase(c.Context(), client.Erasure{Human: args[0]})
				if err != nil {
					return err
				}
				return a.print(erased, func(w io.Writer) {
					fmt.Fprintf(w, "erased %s; the log knows them as %s from now on\n", args[0], erased.Pseudonym.Name)
				})
			})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "erase the person for ever")
	return c
}
