package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"creto.dev/client"
)

func (a *app) modelCommand() *cobra.Command {
	c := &cobra.Command{Use: "model", Short: "Show the providers of models, who serves what, and what a prompt is taken for"}
	c.AddCommand(a.modelListCommand(), a.modelRouteCommand(), a.modelScanCommand())
	return c
}

func (a *app) modelListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the providers of models, and how they stand", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.node(func(n *client.Client) error {
				list, err := n.ModelProviders(c.Context())
				if err != nil {
					return err
				}
				return a.print(list, func(w io.Writer) {
					if len(list) == 0 {
						fmt.Fprintln(w, "no model provider is configured; add one under [[inference.providers]]")
						return
					}
					table(w, "PROVIDER\tMODELS\tLOCAL\tREGION\tONLY\tKEYS\tCIRCUIT", func(w io.Writer) {
						for _, p := range list {
							keys := fmt.Sprint(p.Keys)
							if p.Resting > 0 {
								keys += fmt.Sprintf(" (%d rest)", p.Resting)
							}
							fmt.Fprintf(w, "%s\t%s\t%v\t%s\t%s\t%s\t%s\n", p.Provider, oneLine(strings.Join(p.Models, " ")), p.Local, oneLine(p.Region), strings.Join(p.Classifications, " "), keys, p.Circuit)
						}
					})
				})
			})
		},
	}
}

func (a *app) modelRouteCommand() *cobra.Command {
	var in client.ModelRoute
	c := &cobra.Command{
		Use: "route MODEL", Short: "Explain who would serve a model, in which order, and why the others not", Args: cobra.ExactArgs(1),
		Long: `Explain who would serve a model, in which order, and why the others not. Nobody is
asked. Where weights are drawn, the next request may differ.

  creto model route gpt-5.2
  creto model route gpt-5.2 --agent shop-bot --classification restricted`,
		RunE: func(c *cobra.Command, args []string) error {
			in.Model = args[0]
			return a.node(func(n *client.Client) error {
				out, err := n.RouteModel(c.Context(), in)
				if err != nil {
					return err
				}
				return a.print(out, func(w io.Writer) { printRouting(w, in, out) })
			})
		},
	}
	c.Flags().StringVar(&in.Agent, "agent", "", "as this `AGENT`, and the policies that permit it")
	c.Flags().StringVar(&in.Classification, "classification", "", "what the request says of itself: a `NAME`")
	c.Flags().Int64Var(&in.MaxTokens, "max-tokens", 0, "a bound of the answer, for what it costs")
	return c
}

func printRouting(w io.Writer, in client.ModelRoute, out client.ModelRouting) {
	if out.Decision != "" && out.Decision != "allow" {
		fmt.Fprintf(w, "policy says %s; see: creto check %s call_model %s\n", out.Decision, in.Agent, oneLine(in.Model))
	}
	if out.Route != "" {
		fmt.Fprintf(w, "route %s\n", oneLine(out.Route))
	}
	if out.Strategy != "" {
		fmt.Fprintf(w, "strategy %s\n", out.Strategy)
	}
	if out.Classification != "" {
		fmt.Fprintf(w, "classified as %s\n", out.Classification)
	}
	n := 0
	for _, x := range out.Choices {
		name := oneLine(x.Provider)
		if x.Model != in.Model {
			name += " as " + oneLine(x.Model)
		}
		if x.Skipped != "" {
			fmt.Fprintf(w, "   %s is not asked: %s\n", name, x.Skipped)
			continue
		}
		n++
		var facts []string
		if x.Local {
			facts = append(facts, "local")
		}
		if x.Cost != "" {
			facts = append(facts, "about "+x.Cost+" USD")
		}
		if x.P95MS > 0 {
			facts = append(facts, fmt.Sprintf("95 %% within %d ms", x.P95MS))
		}
		if x.Circuit != "closed" {
			facts = append(facts, "circuit "+x.Circuit)
		}
		if len(facts) > 0 {
			name += " (" + strings.Join(facts, ", ") + ")"
		}
		fmt.Fprintf(w, "%d. %s\n", n, name)
	}
	if n == 0 {
		fmt.Fprintln(w, "nobody may serve it")
	}
}
