package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"creto.dev/authz/localauthz"
	"creto.dev/client"
	"creto.dev/fault"
)

// policyLint is what policy lint prints as JSON.
type policyLint struct {
	OK       bool                 `json:"ok"`
	Errors   int                  `json:"errors"`
	Warnings int                  `json:"warnings"`
	Findings []localauthz.Finding `json:"findings"`
}

func (a *app) policyLintCommand() *cobra.Command {
	var strict, asksNode, rules bool
	c := &cobra.Command{
		Use:   "lint [DIR]",
		Short: "Find policies that cannot do what they say, without a node",
		Long: `Find policies that cannot do what they say: that never match, never hold, read
what no action has, or change nothing because another one always says the same.
Each finding has its place, why it matters, and what to do.

Exit code 1 means that there is an error; with --strict, or a warning.

--known asks the running node which groups and principals there are, and finds
policies that name others. --rules lists everything that is looked for.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if rules {
				all := localauthz.LintRules()
				return a.print(all, func(w io.Writer) { printRules(w, all) })
			}
			var known localauthz.Known
			if asksNode {
				if err := a.node(func(n *client.Client) (err error) {
					known, err = whoIsThere(c.Context(), n)
					return err
				}); err != nil {
					return err
				}
			}
			dir := a.policyDir(args)
			home := a.home()
			if known.Tenant != "" && a.tenant == "" {
				home = known.Tenant
			}
			findings, err := localauthz.Lint(dir, home, known)
			if err != nil {
				return err
			}
			out := policyLint{Findings: findings}
			for _, f := range findings {
				if f.Severity == localauthz.SeverityError {
					out.Errors++
				} else {
					out.Warnings++
				}
			}
			out.OK = out.Errors == 0 && !(strict && out.Warnings > 0)
			if err := a.print(out, func(w io.Writer) { printFindings(w, dir, out) }); err != nil {
				return err
			}
			if !out.OK {
				return exitError(exitFailure)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&strict, "strict", false, "fail on warnings too")
	c.Flags().BoolVar(&asksNode, "known", false, "ask the running node who is there")
	c.Flags().BoolVar(&rules, "rules", false, "list the rules")
	return c
}

// whoIsThere asks the node for its groups and principals.
func whoIsThere(ctx context.Context, n *client.Client) (localauthz.Known, error) {
	const op fault.Op = "creto.policyLint"
	var known localauthz.Known
	status, err := n.Status(ctx)
	if err != nil {
		return known, fault.Wrap(op, err)
	}
	known.Tenant = status.Tenant
	humans, err := n.Humans(ctx)
	if err != nil {
		return known, fault.Wrap(op, err)
	}
	workloads, err := n.Workloads(ctx)
	if err != nil {
		return known, fault.Wrap(op, err)
	}
	agents, err := n.Agents(ctx)
	if err != nil {
		return known, fault.Wrap(op, err)
	}
	for _, h := range slices.Concat(humans, workloads) {
		kind := "human:"
		if h.Workload {
			kind = "workload:"
		}
		known.Principals = append(known.Principals, kind+h.Name)
		known.Groups = append(known.Groups, h.Groups...)
	}
	for _, agent := range agents {
		known.Principals = append(known.Principals, "agent:"+agent.Name)
	}
	return known, nil
}

func printFindings(w io.Writer, dir string, out policyLint) {
	for _, f := range out.Findings {
		place := f.File
		if f.Line > 0 {
			place += fmt.Sprintf(":%d", f.Line)
		}
		if f.Column > 0 {
			place += fmt.Sprintf(":%d", f.Column)
		}
		policy := ""
		if f.Policy != "" {
			policy = fmt.Sprintf("policy %q: ", f.Policy)
		}
		fmt.Fprintf(w, "%s: %s: %s (%s)\n    why  %s\n    fix  %s\n", oneLine(place), f.Severity, oneLine(policy+f.Text), f.Rule, f.Reason, f.Fix)
	}
	switch {
	case len(out.Findings) == 0:
		fmt.Fprintf(w, "OK: nothing to say about %s\n", dir)
	default:
		fmt.Fprintf(w, "%s, %s\n", plural(out.Errors, "error"), plural(out.Warnings, "warning"))
	}
}

func printRules(w io.Writer, rules []localauthz.LintRule) {
	for _, r := range rules {
		fmt.Fprintf(w, "%s (%s)\n    why  %s\n    fix  %s\n", r.Name, r.Severity, r.Reason, r.Fix)
	}
}
