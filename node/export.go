package node

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/audit/export"
	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/health"
	"creto.dev/internal/logkey"
)

// ExportConfig is where the audit log is exported to as it grows: the records of
// every tenant, people's names and words among them until they are erased.
type ExportConfig struct {
	// Name tells exports apart; under it the node remembers how far it is.
	// Required, unique.
	Name string `toml:"name"`
	// Format is jsonl, cloudevents, ocsf or otlp. Required.
	Format string `toml:"format"`
	// To is an absolute path, s3://BUCKET/PREFIX, or, for otlp, https://HOST.
	// Required.
	To string `toml:"to"`
	// Headers are sent to a collector.
	Headers map[string]creto.Secret `toml:"headers"`
}

// exportGather is how long records are gathered into one batch.
const exportGather = 5 * time.Second

// exporter is one export that runs.
type exporter struct {
	name        string
	destination export.Destination
	cursor      export.Cursor

	mu      sync.Mutex // guards what follows
	next    int64
	refused int64
	missing int64
	trouble string
}

// openExports opens what the log is exported to.
func (n *Node) openExports(ctx context.Context) error {
	const op fault.Op = "node.openExports"
	for _, c := range n.options.Config.Audit.Exports {
		var out io.Writer
		if !export.Remote(c.To) {
			file, err := os.OpenFile(c.To, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
			if err != nil {
				return fault.WrapAs(op, fault.Unavailable, err, "the export %s cannot write %s", c.Name, c.To)
			}
			n.onClose(file.Close)
			out = file
		}
		d, err := export.Open(ctx, export.Format(c.Format), n.logOrigin(), c.To, out, c.Headers)
		if err != nil {
			return fault.Wrap(op, err)
		}
		n.onClose(d.Close)
		e := &exporter{name: c.Name, destination: d, cursor: export.TableCursor(n.db, c.Name)}
		n.exports = append(n.exports, e)
		n.background = append(n.background, func(ctx context.Context) error { return n.export(ctx, e) })
	}
	return nil
}

// export runs one export. What ends it does not end the node.
func (n *Node) export(ctx context.Context, e *exporter) error {
	log := n.options.Log.With(slog.String(logkey.Component, "export"), slog.String(logkey.Resource, e.name))
	err := export.Run(ctx, export.LogSource{Log: n.log}, e.destination, e.cursor, export.Options{
		Follow: true, Whole: true, Gather: exportGather, Policy: call.Policy{MaxDelay: 10 * time.Second},
		Progress: func(s export.Step) {
			if e.heard(s) {
				log.LogAttrs(ctx, slog.LevelWarn, "an export is interrupted and goes on by itself", slog.Any(logkey.Error, s.Err))
			}
		},
	})
	if err != nil {
		e.heard(export.Step{Next: -1, Err: err})
		log.LogAttrs(ctx, slog.LevelError, "an export has stopped; mend what is wrong and start the node again", slog.Any(logkey.Error, err))
	}
	return nil
}

// heard notes a step, and reports whether a trouble is new.
func (e *exporter) heard(s export.Step) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := e.trouble
	e.next, e.refused, e.missing, e.trouble = max(e.next, s.Next), e.refused+s.Refused, e.missing+s.Missing, fault.Message(s.Err)
	return e.trouble != "" && e.trouble != before
}

// exportHealth is degraded while an export is in trouble; it says how far behind
// each is.
func (n *Node) exportHealth(ctx context.Context) health.Status {
	size, err := n.log.Wait(ctx, 0)
	if err != nil {
		return health.Status{State: health.Degraded, Reason: "the log cannot say how long it is"}
	}
	var reasons []string
	degraded := false
	for _, e := range n.exports {
		e.mu.Lock()
		reason := fmt.Sprintf("%s: %d records behind", e.name, max(0, size-e.next))
		if e.refused > 0 {
			reason += fmt.Sprintf(", %d refused by the collector", e.refused)
		}
		if e.missing > 0 {
			reason += fmt.Sprintf(", %d gone before they were exported (audit.retention)", e.missing)
		}
		if e.trouble != "" {
			reason += ": " + e.trouble
		}
		degraded = degraded || e.refused > 0 || e.missing > 0 || e.trouble != ""
		e.mu.Unlock()
		reasons = append(reasons, reason)
	}
	if !degraded {
		return health.Status{State: health.Healthy}
	}
	return health.Status{State: health.Degraded, Reason: strings.Join(reasons, "; ")}
}

// exports checks them.
func (k *configChecker) exports(list []ExportConfig) {
	names := map[string]bool{}
	for i, c := range list {
		key := fmt.Sprintf("audit.exports[%d]", i)
		if c.Name == "" || names[c.Name] || strings.Trim(c.Name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
			k.addf(key+".name", "a name of its own is required, of a-z, 0-9, -, _ and .")
		}
		names[c.Name] = true
		if !slices.Contains(export.Formats(), export.Format(c.Format)) {
			k.addf(key+".format", "%q is not one of jsonl, cloudevents, ocsf, otlp", c.Format)
		}
		web := strings.HasPrefix(c.To, "http://") || strings.HasPrefix(c.To, "https://")
		switch {
		case !export.Remote(c.To) && !filepath.IsAbs(c.To):
			k.addf(key+".to", "an absolute path, s3://BUCKET/PREFIX or https://HOST is required")
		case web != (c.Format == string(export.OTLP)):
			k.addf(key+".to", "the format otlp goes to a collector, https://HOST, and all others to a file or a bucket")
		case web:
			if _, err := export.NewCollector("", c.To, nil); err != nil {
				k.addf(key+".to", "%s", fault.Message(err))
			}
		}
		if len(c.Headers) > 0 && !web {
			k.addf(key+".headers", "only a collector takes headers")
		}
	}
}
