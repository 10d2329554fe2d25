package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/export"
	"creto.dev/client"
	"creto.dev/fault"
)

// exported is what audit export prints as JSON.
type exported struct {
	Records int64  `json:"records"`
	Refused int64  `json:"refused"` // by the collector, for good
	Next    int64  `json:"next"`    // go on with --from
	To      string `json:"to"`
	Format  string `json:"format"`
}

func (a *app) auditExportCommand() *cobra.Command {
	var q query
	var to, format string
	var headers []string
	var follow bool
	c := &cobra.Command{
		Use:   "export",
		Short: "Hand the audit log to other systems",
		Long: `Export records in the order of the log, the oldest first: as lines of JSON (jsonl),
CloudEvents 1.0 (cloudevents) or OCSF 1.9 API Activity (ocsf), to standard output, a
file or s3://BUCKET/PREFIX; or as OpenTelemetry log records (otlp) to a collector at
https://HOST. Each record has its index and its leaf's hash, so that the log can
prove it. Names and words of people are in it as far as you may see them and nobody
erased them; erase them where you export to, too.

To a bucket, credentials are the AWS SDK's (AWS_ACCESS_KEY_ID and so on); other
services take ?region=R&endpoint=https://HOST&use_path_style=true. A file that is
there is added to. It says at its end with which --from to go on.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := q.check(); err != nil {
				return err
			}
			if !slices.Contains(export.Formats(), export.Format(format)) {
				return fmt.Errorf("--format=%s: choose jsonl, cloudevents, ocsf or otlp", format)
			}
			if q.From < 0 {
				return errors.New("--from is the index of a record")
			}
			h := make(map[string]creto.Secret, len(headers))
			for _, header := range headers {
				name, value, ok := strings.Cut(header, "=")
				if !ok || name == "" {
					return errors.New("--header is NAME=VALUE; for a secret, NAME=${VARIABLE}")
				}
				h[name] = creto.NewSecret(os.Expand(value, os.Getenv))
			}
			n, err := a.client()
			if err != nil {
				return err
			}
			return a.export(c, n, q, export.Format(format), to, h, follow)
		},
	}
	q.flags(c)
	c.Flags().StringVar(&format, "format", string(export.JSONLines), "`FORMAT`: jsonl, cloudevents, ocsf or otlp")
	c.Flags().StringVar(&to, "to", "-", "`where`: a file, - for standard output, s3://BUCKET/PREFIX, or a collector as https://HOST")
	c.Flags().Int64Var(&q.From, "from", 0, "begin with the record at this `INDEX`")
	c.Flags().BoolVar(&follow, "follow", false, "go on with new records until you stop it")
	c.Flags().StringArrayVar(&headers, "header", nil, "send `NAME=VALUE` to the collector; ${VARIABLE} stands for the environment's")
	return c
}

// exportPage is how many records are asked for at once, with their leaves.
const exportPage = 200

// progressEvery is how often a long export says how far it is.
const progressEvery = 2 * time.Second

func (a *app) export(c *cobra.Command, n *client.Client, q query, format export.Format, to string, headers map[string]creto.Secret, follow bool) (err error) {
	ctx := c.Context()
	keys, err := n.LogKeys(ctx)
	if err != nil {
		return a.unreachable(err)
	}
	out := io.Writer(a.out)
	if to != "-" && !export.Remote(to) {
		file, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return fmt.Errorf("%s cannot be written", to)
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		out = file
	}
	d, err := export.Open(ctx, format, keys.Origin, to, out, headers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	sum := exported{Next: q.From, To: to, Format: string(format)}
	last := time.Now()
	err = export.Run(ctx, nodeSource{a, n, q.Query}, d, &export.Memory{Position: export.Position{Next: q.From}}, export.Options{
		Batch: exportPage, Follow: follow,
		Progress: func(s export.Step) {
			sum.Records, sum.Refused, sum.Next = sum.Records+s.Records, sum.Refused+s.Refused, s.Next
			switch now := time.Now(); {
			case s.Err != nil:
				fmt.Fprintf(c.ErrOrStderr(), "creto: %s; trying again\n", fault.Message(s.Err))
			case now.Sub(last) > progressEvery && s.Records > 0:
				last = now
				fmt.Fprintf(c.ErrOrStderr(), "%d records so far, up to %d\n", sum.Records, s.Next-1)
			}
		},
	})
	if err != nil && ctx.Err() == nil {
		return fault.WrapAs("creto.audit.export", fault.CodeOf(err), err, "go on with --from %d", sum.Next)
	}
	if to == "-" { // the summary is not to be among the records
		fmt.Fprintf(c.ErrOrStderr(), "%d records; to go on: --from %d\n", sum.Records, sum.Next)
		return nil
	}
	return a.print(sum, func(w io.Writer) {
		fmt.Fprintf(w, "exported %d records to %s; to go on: --from %d\n", sum.Records, to, sum.Next)
		if sum.Refused > 0 {
			fmt.Fprintf(w, "the collector refused %d more\n", sum.Refused)
		}
	})
}

// nodeSource is a node's log as its client may see it.
type nodeSource struct {
	app   *app
	node  *client.Client
	query client.Query
}

// Entries implements export.Source.
func (s nodeSource) Entries(ctx context.Context, from int64, limit int) ([]audit.Entry, error) {
	q := s.query
	q.Oldest, q.Leaf, q.From, q.Limit = true, true, from, limit
	list, err := s.node.Receipts(ctx, q)
	if err != nil {
		return nil, s.app.unreachable(err)
	}
	entries := make([]audit.Entry, 0, len(list))
	for _, r := range list {
		leaf, err := audit.DecodeRecord(r.Leaf)
		if err != nil {
			return nil, err
		}
		r.Record.Signature = leaf.Signature // which JSON leaves out
		entries = append(entries, audit.Entry{Record: r.Record, Index: r.Index, Leaf: r.Leaf})
	}
	return entries, nil
}

// pollEvery is how often a following export asks for more.
const pollEvery = time.Second

// Wait implements export.Source.
func (s nodeSource) Wait(ctx context.Context, _ int64) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pollEvery):
		return nil
	}
}
