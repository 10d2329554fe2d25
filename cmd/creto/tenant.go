package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"creto.dev/client"
)

func (a *app) tenantCommand() *cobra.Command {
	c := &cobra.Command{Use: "tenant", Short: "Add and list tenants: sets of people, agents and policies that see nothing of each other"}
	c.AddCommand(&cobra.Command{
		Use: "add NAME", Short: "Add a tenant, with its first administrator and base policies", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.node(func(n *client.Client) error {
				t, err := n.AddTenant(c.Context(), args[0])
				if err != nil {
					return err
				}
				return a.print(t, func(w io.Writer) {
					fmt.Fprintf(w, "added the tenant %s; its policies are in %s\n", t.Name, t.PolicyDir)
					fmt.Fprintf(w, "next:  %s\n", (&app{dataDir: a.dataDir, tenant: t.Name}).hint("human login admin"))
				})
			})
		},
	}, &cobra.Command{
		Use: "list", Short: "List the tenants", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.node(func(n *client.Client) error {
				list, err := n.Tenants(c.Context())
				if err != nil {
					return err
				}
				return a.print(list, func(w io.Writer) {
					table(w, "NAME\tPOLICIES", func(w io.Writer) {
						for _, t := range list {
							fmt.Fprintf(w, "%s\t%s\n", t.Name, t.PolicyDir)
						}
					})
				})
			})
		},
	})
	return c
}
