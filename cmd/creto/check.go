package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"creto.dev/authz"
	"creto.dev/client"
	"creto.dev/fault"
)

func (a *app) checkCommand() *cobra.Command {
	var contextText, contextFile string
	var explain bool
	c := &cobra.Command{
		Use:   "check AGENT ACTION RESOURCE",
		Short: "Explain whether an agent may do something, without doing it",
		Long: `Explain whether an agent may do something now, which policy says so, and what
would change it. Nothing is done, reserved or asked. Exit code 0 means allow, 1
anything else.

Everybody in the chain of delegation must be allowed. What is not allowed is
explained: each policy in scope, with the condition that does not hold and what
it read. --json has the whole explanation.

  creto check shop-bot call_model gpt-4o-mini
  creto check shop-bot http_request http://shop.test/refunds --context '{"method":"POST"}'
  creto check shop-bot call_tool crm/delete --explain`,
		Args: cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			check := client.Check{Agent: args[0], Action: args[1], Resource: args[2]}
			var err error
			if check.Context, err = readContext(contextText, contextFile); err != nil {
				return err
			}
			return a.node(func(n *client.Client) error {
				d, err := n.Check(c.Context(), check)
				if err != nil {
					return err
				}
				if err := a.print(d, func(w io.Writer) { printDecision(w, d, explain || d.Decision != "allow") }); err != nil {
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
	c.Flags().StringVar(&contextFile, "context-file", "", "the same, from a `file`, or - for standard input")
	c.Flags().BoolVar(&explain, "explain", false, "also explain what is allowed")
	c.MarkFlagsMutuallyExclusive("context", "context-file")
	return c
}

// maxContextBytes bounds a context that is read from a file.
const maxContextBytes = 1 << 20

// readContext reads what policies may read: a JSON object, as text or in a file.
func readContext(text, file string) (context map[string]any, err error) {
	const op fault.Op = "creto.check"
	from := "--context"
	if file != "" {
		from = "--context-file"
		in := os.Stdin
		if file != "-" {
			if in, err = os.Open(file); err != nil {
				return nil, fault.WrapAs(op, fault.InvalidArgument, err, "%s cannot be read", file)
			}
			defer func() { _ = in.Close() }()
		}
		data, err := io.ReadAll(io.LimitReader(in, maxContextBytes+1))
		if err != nil || len(data) > maxContextBytes {
			return nil, fault.WrapAs(op, fault.InvalidArgument, err, "%s cannot be read, or has more than %d bytes", file, maxContextBytes)
		}
		text = string(data)
	}
	if text == "" {
		return nil, nil
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&context); err != nil || context == nil || d.More() {
		return nil, fault.New(op, fault.InvalidArgument, "%s is not a JSON object: %.200s", from, text)
	}
	return context, nil
}

func printDecision(w io.Writer, d client.Decision, explain bool) {
	fmt.Fprintln(w, d.Decision)
	reason, line, hint := strings.Cut(d.Reason, "; this line would: ")
	if reason != "" {
		fmt.Fprintf(w, "  because    %s\n", oneLine(reason))
	}
	if len(d.Policies) > 0 {
		fmt.Fprintf(w, "  by policy  %s\n", oneLine(strings.Join(d.Policies, ", ")))
	}
	if d.Ask != "" {
		fmt.Fprintf(w, "  asks       %s\n", oneLine(d.Ask))
	}
	fmt.Fprintf(w, "  chain      %s\n", strings.Join(d.Chain, " → "))
	if explain && d.Explanation != nil {
		printExplanation(w, *d.Explanation)
	}
	if hint {
		if explain {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "  this line would permit it:\n\n  %s\n", printable(line))
	}
}

// printExplanation writes who is allowed and who is not, and why.
func printExplanation(w io.Writer, e authz.Explanation) {
	fmt.Fprintln(w)
	for _, l := range e.Links {
		if !l.Covers {
			fmt.Fprintf(w, "  the delegation from %s to %s does not include it\n", oneLine(l.From), oneLine(l.To))
		}
	}
	for _, p := range e.Principals {
		printPrincipal(w, p)
	}
	ways := 0
	for _, c := range e.Changes {
		if c.Line == "" { // the line comes by itself
			if ways++; ways == 1 {
				fmt.Fprintf(w, "\n  to have it allowed\n")
			}
			fmt.Fprintf(w, "    - %s\n", oneLine(c.Text))
		}
	}
}

func printPrincipal(w io.Writer, p authz.ExplainedPrincipal) {
	groups := ""
	if len(p.Groups) > 0 {
		groups = " (in " + oneLine(strings.Join(p.Groups, ", ")) + ")"
	}
	fmt.Fprintf(w, "  %s%s: %s\n", oneLine(p.Principal), groups, p.Decision)
	if len(p.Policies) == 0 {
		fmt.Fprintf(w, "      no policy's scope includes this action on this resource\n")
	}
	for _, policy := range p.Policies {
		mark := " "
		if policy.Decides {
			mark = "*"
		}
		effect := policy.Effect + "s"
		switch policy.Result {
		case "unsatisfied":
			effect = "does not " + policy.Effect
		case "error":
			effect = "cannot be evaluated; it is a " + policy.Effect
			if policy.Effect == "forbid" {
				effect += ", so it denies"
			}
		}
		if policy.Asks != "" && policy.Result == "satisfied" {
			effect += ", with the consent of " + oneLine(policy.Asks)
		}
		fmt.Fprintf(w, "    %s %s (%s:%d) %s\n", mark, oneLine(policy.ID), oneLine(policy.File), policy.Line, effect)
		for _, c := range policy.Conditions {
			printCondition(w, c)
		}
	}
	if p.More > 0 {
		fmt.Fprintf(w, "      and %d more policies, none of which decides\n", p.More)
	}
}

func printCondition(w io.Writer, c authz.ExplainedCondition) {
	text := oneLine(c.Text)
	if c.Unless {
		text = "unless " + text
	}
	result := "is " + c.Result
	if c.Result == "error" {
		result = "fails"
	}
	var reads []string
	for _, r := range c.Reads {
		is := " is "
		if r.Value == "" {
			is = " "
		}
		reads = append(reads, oneLine(r.Name+is+r.Value))
	}
	if c.Error != "" {
		result += ": " + oneLine(c.Error)
		if absent := c.Reads; len(absent) == 1 && absent[0].Value == "absent" {
			reads = nil // it says so already
		}
	}
	if len(reads) > 0 {
		result += ": " + strings.Join(reads, ", ")
	}
	fmt.Fprintf(w, "        %d:%d  %s\n               %s\n", c.Line, c.Column, text, result)
}
