package main

import (
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/spf13/cobra"

	"creto.dev/client"
	"creto.dev/health"
)

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
