package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"creto.dev/authz/localauthz"
)

func (a *app) policyCommand() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Check, test, lint, explain and replay policies"}
	c.AddCommand(a.policyTestCommand(), a.policyLintCommand(), a.policyExplainCommand(), a.policyReplayCommand(), a.policySchemaCommand(), &cobra.Command{
		Use:   "check [DIR]",
		Short: "Report every mistake in a directory of policies, without a node",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir := a.policyDir(args)
			p, err := localauthz.ReadPolicies(dir, a.home())
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
