package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"creto.dev/node"
)

func (a *app) keysCommand() *cobra.Command {
	c := &cobra.Command{Use: "keys", Short: "Change what protects the node's keys"}
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
	c.AddCommand(rewrap)
	return c
}
