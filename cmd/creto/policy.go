package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"creto.dev"
	"creto.dev/authz/localauthz"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/health"
)

func (a *app) checkCommand() *cobra.Command {
	var contextText string
	c := &cobra.Command{
		Use:   "check AGENT ACTION RESOURCE",
		Short: "Explain whether an agent may do something, without doing it",
		Long: `Explain whether an agent may do something now, and which policy says so. Nothing
is done, reserved or asked. Exit code 0 means allow, 1 anything else.

  creto check shop-bot call_model gpt-4o-mini
  creto check shop-bot http_request http://shop.test/refunds --context '{"method":"POST"}'`,
		Args: cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			check := client.Check{Agent: args[0], Action: args[1], Resource: args[2]}
			if contextText != "" {
				d := json.NewDecoder(strings.NewReader(contextText))
				d.UseNumber()
				if err := d.Decode(&check.Context); err != nil || d.More() {
					return fault.New("creto.check", fault.InvalidArgument, "--context is not a JSON object: %s", contextText)
				}
			}
			return a.node(func(n *client.Client) error {
				d, err := n.Check(c.Context(), check)
				if err != nil {
					return err
				}
				if err := a.print(d, func(w io.Writer) { printDecision(w, d) }); err != nil {
					return err
				}
				if d.Decision != "allow" {
					return exitError(exitFailure)
				}
				return nil
			})
		},
	}
	c.Flags().StringVar(&contextText, "context", "", "what policies may read, as a `JSON` object")
	return c
}

func printDecision(w io.Writer, d client.Decision) {
	fmt.Fprintln(w, d.Decision)
	reason, line, hint := strings.Cut(d.Reason, "; this line would: ")
	if reason != "" {
		fmt.Fprintf(w, "  because    %s\n", oneLine(reason))
	}
	if len(d.Policies) > 0 {
		fmt.Fprintf(w, "  by policy  %s\n", strings.Join(d.Policies, ", "))
	}
	if d.Ask != "" {
		fmt.Fprintf(w, "  asks       %s\n", d.Ask)
	}
	fmt.Fprintf(w, "  chain      %s\n", strings.Join(d.Chain, " → "))
	if hint {
		fmt.Fprintf(w, "  this line would permit it:\n\n  %s\n", printable(line))
	}
}

func (a *app) policyCommand() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Check policies"}
	c.AddCommand(&cobra.Command{
		Use:   "check [DIR]",
		Short: "Report every mistake in a directory of policies, without a node",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir := filepath.Join(a.dataDir, "policies")
			if len(args) > 0 {
				dir = args[0]
			}
			nobody := func(context.Context, creto.ID) ([]string, error) { return nil, nil }
			p, err := localauthz.Open(dir, creto.DefaultTenant, nobody, nil, nil)
			if err != nil {
				return err
			}
			return a.print(map[string]any{"ok": true, "version": p.Version()}, func(w io.Writer) {
				fmt.Fprintf(w, "OK: %s is version %s\n", dir, p.Version())
			})
		},
	})
	return c
}

func (a *app) healthCommand() *cobra.Command {
	return &cobra.Command{
		Use: "health", Short: "Ask a node how it is", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.node(func(n *client.Client) error {
				status, report, err := n.Health(c.Context())
				if err != nil {
					return err
				}
				if err := a.print(report, func(w io.Writer) { printHealth(w, report) }); err != nil {
					return err
				}
				if status != http.StatusOK {
					return exitError(exitFailure)
				}
				return nil
			})
		},
	}
}

func printHealth(w io.Writer, r health.Report) {
	fmt.Fprintf(w, "%s %s\n", r.State, r.Reason)
	var names []string
	for name := range r.Checks {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		check := r.Checks[name]
		fmt.Fprintf(w, "  %-10s %s %s\n", name, check.State, check.Reason)
	}
}
