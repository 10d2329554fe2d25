package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"creto.dev"
	"creto.dev/authz/localauthz"
)

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
