package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/node"
	"creto.dev/pqc/localpqc"
	"creto.dev/receipt"
)

// lastReceipts is how many records are shown when nothing else is said.
const lastReceipts = 20

func (a *app) receiptsCommand() *cobra.Command {
	var q query
	var bundle string
	c := &cobra.Command{
		Use:   "receipts [last]",
		Short: "Show what was done, and export what proves it",
		Long: `Show the newest records of actions and events. With --bundle, write them with
everything that proves them to a file that creto verify checks offline.

In a bundle people are known by pseudonyms, and what was written about them is
sealed, unless --disclose adds the keys of just these records.`,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"last"},
		RunE: func(c *cobra.Command, _ []string) error {
			if err := q.check(); err != nil {
				return err
			}
			return a.node(func(n *client.Client) error {
				if bundle != "" {
					return a.writeBundle(c, n, q.Query, bundle)
				}
				list, err := n.Receipts(c.Context(), q.Query)
				if err != nil {
					return err
				}
				return a.print(list, func(w io.Writer) { printReceipts(w, list) })
			})
		},
	}
	q.flags(c)
	q.pageFlags(c)
	c.Flags().StringVar(&bundle, "bundle", "", "write a bundle to `FILE`")
	c.Flags().BoolVar(&q.Disclose, "disclose", false, "with --bundle, let its readers see whom it is about")
	return c
}

func (a *app) writeBundle(c *cobra.Command, n *client.Client, q client.Query, path string) error {
	data, err := n.Bundle(c.Context(), q)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fault.WrapAs("creto.receipts", fault.Unavailable, err, "%s cannot be written", path)
	}
	return a.print(map[string]any{"file": path, "bytes": len(data)}, func(w io.Writer) {
		fmt.Fprintf(w, "wrote %s (%d bytes); verify it anywhere with: creto verify %s\n", path, len(data), path)
	})
}

func printReceipts(w io.Writer, list []client.Receipt) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no records")
		return
	}
	table(w, "INDEX\tTIME\tWHO\tFOR\tWHAT\tOUTCOME\tWHY", func(w io.Writer) {
		for _, x := range list {
			fmt.Fprintln(w, receiptLine(x))
		}
	})
}

// receiptLine returns the columns of one record.
func receiptLine(x client.Receipt) string {
	r := x.Record
	why, _, _ := strings.Cut(r.Why, "; this line would")
	for i, consent := range r.Consents {
		if i > 0 {
			why += ","
		}
		why += " consent of " + shortName(consent.Approver)
		if !consent.Human {
			why += " (no human decided)"
		}
	}
	return fmt.Sprintf("%d\t%s\t%s\t%s\t%s %s\t%s\t%s", x.Index, r.Stamp.Time().Format("15:04:05.000"),
		shortName(r.Who.Name), shortName(r.OnBehalfOf.Name), r.What, oneLine(person(r.Resource)), r.Outcome, oneLine(why))
}

// shortName returns the last part of a SPIFFE id, for people.
func shortName(id string) string { return person(id[strings.LastIndexByte(id, '/')+1:]) }

// pseudonym is how a sealed record names somebody (audit.Pseudonym).
var pseudonym = regexp.MustCompile(`\bsubject\.([0-9a-f]{8})-[0-9a-f-]{27}$`)

// person puts a pseudonym into fewer and plainer words.
func person(name string) string { return pseudonym.ReplaceAllString(name, "[sealed $1]") }

// exitUntrusted is the code of creto verify for a bundle that is consistent but
// whose signer nobody vouched for.
const exitUntrusted = 3

// verified is what verify prints as JSON.
type verified struct {
	OK      bool           `json:"ok"`
	Trusted bool           `json:"trusted"`
	Root    creto.Digest   `json:"root"`
	Origin  string         `json:"origin"`
	Size    int64          `json:"log_size"`
	Records []audit.Record `json:"records"`
	// Humans says, for each record with a chain, whom that begins with and how
	// they were known.
	Humans []proven `json:"humans"`
}

// proven is a human at the root of a chain.
type proven struct {
	Index int64    `json:"index"`
	Human creto.ID `json:"human"`
	Kind  string   `json:"proof"`
	Text  string   `json:"known"`
}

func (a *app) verifyCommand() *cobra.Command {
	var root string
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify a bundle, without network and without a node",
		Long: `Verify a bundle: every record's place in the log, the log's signed head, every
chain of delegation, every consent. One changed byte anywhere fails.

The root of trust is --root, a fingerprint or a file that holds one; by default
the data directory's. Without any, a consistent bundle ends with exit code 3.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			data, err := os.ReadFile(args[0])
			if err != nil {
				return fault.WrapAs("creto.verify", fault.InvalidArgument, err, "%s cannot be read", args[0])
			}
			trusted, err := a.trustedRoot(root)
			if err != nil {
				return err
			}
			v, err := receipt.Verify(c.Context(), localpqc.New(), data, trusted)
			if err != nil {
				return fault.WrapAs("creto.verify", fault.CodeOf(err), err, "verify %s FAILED", args[0])
			}
			out := verified{OK: true, Trusted: v.Trusted, Root: v.Root, Origin: v.Origin, Size: v.Size}
			for i, e := range v.Records {
				out.Records = append(out.Records, e.Record)
				if chain := v.Chains[i]; chain.Valid() {
					out.Humans = append(out.Humans, proven{e.Index, chain.Human(), chain.Proof(), chain.HumanProof().String()})
				}
			}
			if err := a.print(out, func(w io.Writer) { printVerified(w, args[0], v) }); err != nil {
				return err
			}
			if !v.Trusted {
				return exitError(exitUntrusted)
			}
			return nil
		},
	}
	c.Flags().StringVar(&root, "root", "", "`FINGERPRINT` of the trusted root, or a file that holds it")
	return c
}

// trustedRoot returns the root to trust; zero for none.
func (a *app) trustedRoot(text string) (creto.Digest, error) {
	const op fault.Op = "creto.trustedRoot"
	path := text
	if text == "" {
		path = filepath.Join(a.dataDir, node.RootFile)
	} else if strings.HasPrefix(text, "sha3-256:") {
		return parseRoot(text)
	}
	data, err := os.ReadFile(path)
	if text == "" && errors.Is(err, os.ErrNotExist) {
		return creto.Digest{}, nil
	}
	if err != nil {
		return creto.Digest{}, fault.WrapAs(op, fault.InvalidArgument, err, "the root %s cannot be read; give a fingerprint (sha3-256:…) or a file that holds one", path)
	}
	fingerprint, err := parseRoot(strings.TrimSpace(string(data)))
	if err != nil { // its text would show a file that may be another than was meant
		return creto.Digest{}, fault.New(op, fault.InvalidArgument, "%s holds no fingerprint (sha3-256:…)", path)
	}
	return fingerprint, nil
}

// parseRoot reads a fingerprint. The zero digest is refused: to receipt.Verify it
// means that no root is trusted, which nobody asked for who named one.
func parseRoot(text string) (creto.Digest, error) {
	root, err := creto.ParseDigest(text)
	if err == nil && root.IsZero() {
		err = fault.New("creto.parseRoot", fault.InvalidArgument, "%s is nobody's fingerprint", text)
	}
	return root, err
}

func printVerified(w io.Writer, path string, v receipt.Verified) {
	for i, e := range v.Records {
		r := e.Record
		fmt.Fprintf(w, "record %d  %s  %s %s  %s\n", e.Index, r.Stamp, oneLine(r.What), oneLine(person(r.Resource)), oneLine(string(r.Outcome)))
		if chain := v.Chains[i]; chain.Valid() {
			var names []string
			for _, p := range chain.Principals() {
				names = append(names, string(p.Kind)+" "+p.Name)
			}
			fmt.Fprintf(w, "  chain    %s\n", strings.Join(names, " → "))
			fmt.Fprintf(w, "  human    %s, %s\n", chain.Human().Name, oneLine(chain.HumanProof().String()))
		}
		if r.Isolation != "" {
			fmt.Fprintf(w, "  sandbox  %s, isolated by %s\n", oneLine(r.Sandbox), oneLine(r.Isolation))
		}
		if how := r.Detail["decided_on"]; how != "" {
			fmt.Fprintf(w, "  decided  on %s\n", oneLine(how))
		}
		for _, c := range r.Consents {
			fmt.Fprintf(w, "  consent  %s through %s, known as %s", oneLine(shortName(c.Approver)), oneLine(c.Channel), oneLine(c.Verification))
			if !c.Human {
				fmt.Fprint(w, "; no human decided")
			}
			fmt.Fprintln(w)
		}
	}
	if v.Trusted {
		fmt.Fprintf(w, "verify %s OK: %d records of %d in %s, root trusted\n", path, len(v.Records), v.Size, oneLine(v.Origin))
		return
	}
	fmt.Fprintf(w, "verify %s: consistent, signer not trusted: its root is %s\nto trust it, compare that with what its node prints and pass --root\n", path, v.Root)
}
