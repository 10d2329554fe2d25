package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"creto.dev/client"
	"creto.dev/node"
)

func (a *app) auditFsckCommand() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:   "fsck",
		Short: "Check the stored log, and say what is damaged",
		Long: `Compute the log anew from its records (every leaf, tile and the root), and its
index, and compare with what is stored and with the heads of audit.checkpoint_file.
Where a node runs it checks its own; otherwise the data directory is opened, which
works also where a damaged log keeps the node from starting. Exits 1 if anything is
wrong.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			n, err := a.client()
			if err != nil {
				return err
			}
			out, err := n.Fsck(c.Context())
			if isUnreachable(err) && os.Getenv(addrEnv) == "" && !errors.Is(err, os.ErrPermission) {
				cfg, configErr := loadConfig(config)
				if configErr != nil {
					return configErr
				}
				out, err = node.Fsck(c.Context(), node.Options{DataDir: a.dataDir, Config: cfg})
			}
			if err != nil {
				return a.unreachable(err)
			}
			if err := a.print(out, func(w io.Writer) { printFsck(w, out) }); err != nil {
				return err
			}
			if out.Found > 0 {
				return exitError(exitFailure)
			}
			return nil
		},
	}
	c.Flags().StringVar(&config, "config", "", "the node's configuration `FILE`, where none runs")
	return c
}

func printFsck(w io.Writer, f client.Fsck) {
	for _, p := range f.Problems {
		fmt.Fprintf(w, "%s: %s\n", oneLine(p.Place), oneLine(p.Reason))
	}
	if more := f.Found - len(f.Problems); more > 0 {
		fmt.Fprintf(w, "and %d more\n", more)
	}
	verdict := "whole"
	if f.Found > 0 {
		verdict = "DAMAGED"
	}
	fmt.Fprintf(w, "%s: %d records of %d in the database; tiles: %d, heads seen: %d; root %s\n", verdict, f.Records, f.Size, f.Tiles, f.Heads, f.Root)
}
