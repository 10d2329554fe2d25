package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"creto.dev/client"
	"creto.dev/node"
)

func (a *app) keysCommand() *cobra.Command {
	c := &cobra.Command{Use: "keys", Short: "List, replace and export keys, and change what protects them"}
	var config, from string
	rewrap := &cobra.Command{
		Use:   "rewrap",
		Short: "Protect the key-encryption key as the configuration says",
		Long: `Protect the key under which the node's other keys are sealed as [keys] of the
configuration says: by a file's mode, a passphrase, or a KMS. Stop the node first.
The key stays the same, and a copy of the old file keeps opening it the old way.

How it is protected now says the file --from; without it, by its file's mode.

  creto keys rewrap --config new.toml                    # from a fresh node's file
  creto keys rewrap --from old.toml --config new.toml    # to another passphrase, say`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			to, err := loadConfig(config)
			if err != nil {
				return err
			}
			old := node.Default()
			if from != "" {
				if old, err = loadConfig(from); err != nil {
					return err
				}
			}
			if err := node.RewrapKey(c.Context(), a.dataDir, old.Keys, to.Keys); err != nil {
				return err
			}
			return a.print(map[string]string{"source": string(to.Keys.Source)}, func(w io.Writer) {
				fmt.Fprintf(w, "the key-encryption key is kept by %s now\n", to.Keys.Source)
			})
		},
	}
	rewrap.Flags().StringVar(&config, "config", "", "configuration `file` to go by (default "+node.ConfigPath+", if there)")
	rewrap.Flags().StringVar(&from, "from", "", "configuration `file` that held until now")
	c.AddCommand(a.keysListCommand(), a.keysRotateCommand(), a.keysExportCommand(), rewrap)
	return c
}

func (a *app) keysListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the keys, without their secrets", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.node(func(n *client.Client) error {
				keys, err := n.Keys(c.Context())
				if err != nil {
					return err
				}
				return a.print(keys, func(w io.Writer) {
					table(w, "ID\tROLE\tOWNER\tALGORITHM\tCREATED\tSTATE", func(w io.Writer) {
						for _, k := range keys.Keys {
							state := "in use"
							if !k.Retired.IsZero() {
								state = "replaced " + k.Retired.UTC().Format(time.DateOnly) + ", verifies still"
							}
							fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, k.Role, k.Owner, k.Algorithm, k.Created.UTC().Format(time.DateOnly), state)
						}
					})
					fmt.Fprintf(w, "\nroot  %s\n", keys.Root)
				})
			})
		},
	}
}

func (a *app) keysRotateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate ROLE | agent:NAME",
		Short: "Replace a key; what the old one signed still verifies",
		Long: `Replace a key, and destroy the old one's secret. What the old key signed still
verifies: tokens until they end, links and records for good.

  root         signs humans' delegations and the keys below; the new root and the
               old one certify each other, so that whoever pinned either trusts both
  checkpoint   signs the heads of the audit log
  token        signs access tokens
  svid, ca     sign JWT-SVIDs and X.509-SVIDs
  agent:NAME   the agent's own; delegate to it again before it delegates further`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			name := client.KeyName{Role: args[0]}
			if agent, ok := strings.CutPrefix(args[0], "agent:"); ok {
				name = client.KeyName{Agent: agent}
			}
			return a.node(func(n *client.Client) error {
				key, err := n.RotateKey(c.Context(), name)
				if err != nil {
					return err
				}
				return a.print(key, func(w io.Writer) { fmt.Fprintf(w, "the key of %s is %s now\n", args[0], key.ID) })
			})
		},
	}
}

func (a *app) keysExportCommand() *cobra.Command {
	var public bool
	c := &cobra.Command{
		Use:   "export --public",
		Short: "Print the public keys, for whoever verifies",
		Long: `Print the public keys as JSON, each as its algorithm encodes it, in base64.
Secrets are never exported: back up the data directory, which holds them sealed.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !public {
				return errors.New("only public keys are exported: creto keys export --public; secrets stay sealed in the data directory, which can be backed up")
			}
			return a.node(func(n *client.Client) error {
				keys, err := n.Keys(c.Context())
				if err != nil {
					return err
				}
				text, err := json.MarshalIndent(keys, "", "  ")
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(a.out, string(text))
				return err
			})
		},
	}
	c.Flags().BoolVar(&public, "public", false, "the public halves, the only ones there are to export")
	return c
}
