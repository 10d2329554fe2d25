package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz/localauthz"
	"creto.dev/client"
	"creto.dev/fault"
)

// policyReplay is what policy replay prints as JSON.
type policyReplay struct {
	Version creto.Digest `json:"policy_version"` // of the policies that were tried
	Since   time.Time    `json:"since,omitzero"`
	Records int          `json:"records"` // that have a decision
	Same    int          `json:"same"`
	Differ  int          `json:"differ"`
	Unknown int          `json:"unknown"`
	// Changes counts what was decided and what would be, the same included.
	Changes []replayChange `json:"changes"`
	// Differences are the newest ones, the newest last; Unlisted counts those
	// that are not listed.
	Differences []replayDifference `json:"differences"`
	Unlisted    int                `json:"unlisted"`
	// Missing counts the unknown by what their records do not say.
	Missing map[string]int `json:"missing,omitempty"`
}

type replayChange struct {
	Was     string `json:"was"`
	Would   string `json:"would"`
	Records int    `json:"records"`
}

type replayDifference struct {
	localauthz.Replayed
	Record   audit.RecordID `json:"record"`
	Index    int64          `json:"index"`
	Time     time.Time      `json:"time"`
	Agent    string         `json:"agent"`
	Action   string         `json:"action"`
	Resource string         `json:"resource"`
	// WasBy are the policies that decided.
	WasBy []string `json:"was_by,omitempty"`
}

func (a *app) policyReplayCommand() *cobra.Command {
	var since string
	var limit int
	var exitCode bool
	c := &cobra.Command{
		Use:   "replay DIR",
		Short: "Say what past decisions would be under other policies",
		Long: `Say what the decisions of the audit log would be under the policies of DIR, which
need not be those of the node. Nothing is changed, and nothing is asked of
anybody.

A record says who acted, under which delegations, what and on what, and a part of
the context: where it ran; a request's method, host and path; whether a secret was
for the gateway. A decision that depends on anything else, such as a request's
body, is counted as unknown and never guessed. People are taken to be in the
groups that they are in now. What a human consented to counts as
requires_oversight, and a quota that was spent stays spent.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			from, err := moment("--since", since)
			if err != nil {
				return err
			}
			if limit < 0 {
				return fmt.Errorf("--limit=%d: write 0 or more", limit)
			}
			return a.node(func(n *client.Client) error {
				status, err := n.Status(c.Context())
				if err != nil {
					return err
				}
				p, err := localauthz.ReadPolicies(args[0], cmp.Or(a.tenant, status.Tenant))
				if err != nil {
					return err
				}
				r := replayer{node: n, policies: p, limit: limit, chains: make(map[chainKey]localauthz.Past), counts: make(map[[2]string]int)}
				r.out = policyReplay{Version: p.Version(), Since: from, Differences: []replayDifference{}, Missing: make(map[string]int)}
				if err := r.run(c.Context(), from); err != nil {
					return err
				}
				if err := a.print(r.out, func(w io.Writer) { printReplay(w, args[0], r.out) }); err != nil {
					return err
				}
				if exitCode && r.out.Differ+r.out.Unknown > 0 {
					return exitError(exitFailure)
				}
				return nil
			})
		},
	}
	c.Flags().StringVar(&since, "since", "168h", "only decisions since `TIME`: 2026-01-31, 2026-01-31T12:00:00Z, or 24h ago as 24h")
	c.Flags().IntVar(&limit, "limit", 100, "list at most this many differences, the newest")
	c.Flags().BoolVar(&exitCode, "exit-code", false, "exit with 1 if a decision would differ, or is unknown")
	return c
}

// chainKey is an agent under one chain.
type chainKey struct {
	agent string
	chain creto.Digest
}

const (
	// replayPage is how many records are asked for at a time.
	replayPage = 500
	// maxReplayChains bounds the chains that are remembered.
	maxReplayChains = 4096
	// replayProgress is after how many records it is said how far it is.
	replayProgress = 10_000
)

// replayer reads the log from one end to the other. What it keeps is bounded.
type replayer struct {
	node     *client.Client
	policies *localauthz.Policies
	limit    int
	chains   map[chainKey]localauthz.Past
	counts   map[[2]string]int
	out      policyReplay
}

func (r *replayer) run(ctx context.Context, since time.Time) error {
	q := client.Query{Since: since, Oldest: true, Limit: replayPage}
	seen := 0
	for {
		page, err := r.node.Receipts(ctx, q)
		if err != nil {
			return err
		}
		for _, one := range page {
			if err := r.replay(ctx, one); err != nil {
				return err
			}
			q.From = one.Index + 1
			if seen++; seen%replayProgress == 0 {
				fmt.Fprintf(os.Stderr, "creto: read %d records, up to %s\n", seen, one.Record.Stamp.Time().UTC().Format(time.RFC3339))
			}
		}
		if len(page) < replayPage {
			break
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(r.counts), func(a, b [2]string) int {
		return cmp.Or(r.counts[b]-r.counts[a], strings.Compare(a[0]+" "+a[1], b[0]+" "+b[1]))
	}) {
		r.out.Changes = append(r.out.Changes, replayChange{Was: key[0], Would: key[1], Records: r.counts[key]})
	}
	return nil
}

func (r *replayer) replay(ctx context.Context, one client.Receipt) error {
	record := one.Record
	if !localauthz.Decided(record) {
		return nil
	}
	past, err := r.past(ctx, record)
	if err != nil {
		return err
	}
	result := r.policies.Replay(record, past)
	r.out.Records++
	r.counts[[2]string{result.Was, result.Would}]++
	switch {
	case result.Would == localauthz.Unknown:
		r.out.Unknown++
		for _, missing := range result.Missing {
			r.out.Missing[missing]++
		}
		return nil
	case result.Same():
		r.out.Same++
		return nil
	}
	r.out.Differ++
	d := replayDifference{
		Replayed: result, Record: record.ID, Index: one.Index, Time: record.Stamp.Time().UTC(), Agent: record.Who.Name, Action: record.What, Resource: record.Resource,
	}
	for _, p := range record.Decision.Policies {
		d.WasBy = append(d.WasBy, p.ID)
	}
	if r.out.Differences = append(r.out.Differences, d); len(r.out.Differences) > r.limit {
		r.out.Differences = slices.Delete(r.out.Differences, 0, 1)
		r.out.Unlisted++
	}
	return nil
}

// past asks the node for the chain of a record; one that it does not have is
// nobody's.
func (r *replayer) past(ctx context.Context, record audit.Record) (localauthz.Past, error) {
	const op fault.Op = "creto.policyReplay"
	key := chainKey{record.Who.Name, record.Chain}
	if past, ok := r.chains[key]; ok {
		return past, nil
	}
	var past localauthz.Past
	chain, err := r.node.Chain(ctx, key.agent, key.chain)
	if err != nil && fault.CodeOf(err).Kind() != fault.NotFound {
		return past, err
	}
	for i, link := range chain.Links {
		ends := []string{link.To}
		if i == 0 {
			ends = []string{link.From, link.To}
		}
		for _, text := range ends {
			id, err := creto.ParseID(text)
			if err != nil {
				return past, fault.Wrap(op, err)
			}
			past.Principals = append(past.Principals, localauthz.Principal{ID: id, Groups: chain.Groups[text]})
		}
		past.Scopes = append(past.Scopes, link.Scope)
	}
	if len(r.chains) >= maxReplayChains {
		clear(r.chains)
	}
	r.chains[key] = past
	return past, nil
}

func printReplay(w io.Writer, dir string, out policyReplay) {
	since := "ever"
	if !out.Since.IsZero() {
		since = "since " + out.Since.UTC().Format(time.RFC3339)
	}
	fmt.Fprintf(w, "%s %s, under %s\n", plural(out.Records, "decision"), since, dir)
	fmt.Fprintf(w, "  %d the same, %d would differ, %d unknown\n", out.Same, out.Differ, out.Unknown)
	for _, c := range out.Changes {
		if c.Was != c.Would {
			fmt.Fprintf(w, "  %8d  %s → %s\n", c.Records, c.Was, c.Would)
		}
	}
	if len(out.Differences) > 0 {
		fmt.Fprintln(w)
	}
	if out.Unlisted > 0 {
		fmt.Fprintf(w, "%d older differences are not listed; see --limit\n", out.Unlisted)
	}
	for _, d := range out.Differences {
		fmt.Fprintf(w, "%s  %s  %s %s %s\n    - %s%s\n    + %s%s\n", d.Record, d.Time.Format(time.RFC3339), oneLine(d.Agent), oneLine(d.Action), oneLine(d.Resource),
			d.Was, byPolicies(d.WasBy), d.Would, byPolicies(d.By))
	}
	if out.Unknown > 0 {
		depend := "depend"
		if out.Unknown == 1 {
			depend = "depends"
		}
		fmt.Fprintf(w, "\n%s %s on what the records do not say:\n", plural(out.Unknown, "decision"), depend)
		for _, name := range slices.Sorted(maps.Keys(out.Missing)) {
			fmt.Fprintf(w, "  %8d  %s\n", out.Missing[name], oneLine(name))
		}
	}
}

func byPolicies(ids []string) string {
	if len(ids) == 0 {
		return ""
	}
	return ", by " + oneLine(strings.Join(ids, ", "))
}
