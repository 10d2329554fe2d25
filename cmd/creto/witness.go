package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"creto.dev/audit/witness"
	"creto.dev/fault"
	"creto.dev/internal/serve"
	"creto.dev/node"
)

func (a *app) witnessCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "witness",
		Short: "Watch the logs of others, so that nobody is shown another one",
		Long: `Watch the audit logs of others (C2SP tlog-witness). A witness cosigns a log's head
only if it extends the last one that it cosigned; it learns sizes and hashes, and no
records. It needs no node, and belongs on somebody else's machine than the log's.`,
	}
	c.AddCommand(a.witnessKeyCommand(), a.witnessServeCommand())
	return c
}

// witnessDir is below the data directory.
func (a *app) witnessDir() (string, error) {
	dir := filepath.Join(a.dataDir, "witness")
	return dir, fault.WrapAs("creto.witness", fault.Unavailable, os.MkdirAll(dir, 0o700), "%s cannot be made; choose another directory with --data", dir)
}

const witnessKeyFile = "key"

func (a *app) witnessKeyCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:   "key",
		Short: "Print the witness's key, made on first use",
		Long: `Print the verifier key that the logs' owners configure as audit.witnesses.vkey. On
first use --name gives the witness its name for good, as in witness.example/w1.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			dir, err := a.witnessDir()
			if err != nil {
				return err
			}
			signer, err := witness.OpenKey(filepath.Join(dir, witnessKeyFile), name)
			if err != nil {
				return err
			}
			vkey := signer.Verifier().String()
			return a.print(map[string]string{"name": signer.Name(), "vkey": vkey}, func(w io.Writer) { fmt.Fprintln(w, vkey) })
		},
	}
	c.Flags().StringVar(&name, "name", "", "the witness's `NAME`, when its key is made")
	return c
}

func (a *app) witnessServeCommand() *cobra.Command {
	var listen string
	var logs []string
	c := &cobra.Command{
		Use:   "serve --log VKEY",
		Short: "Cosign the heads of logs",
		Long: `Cosign the heads of the logs that --log names by their Ed25519 verifier keys, which
creto audit key prints; one log may have several. What crosses the port is public
and signed, so that it needs no TLS.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			const op fault.Op = "creto.witness"
			dir, err := a.witnessDir()
			if err != nil {
				return err
			}
			signer, err := witness.OpenKey(filepath.Join(dir, witnessKeyFile), "")
			if err != nil {
				return fault.New(op, fault.CodeOf(err), "%s; make a key first: %s", fault.Message(err), a.hint("witness key --name NAME"))
			}
			log := newLogger(node.Default().Log)
			w, err := witness.Open(dir, signer, logs, log)
			if err != nil {
				return err
			}
			defer func() { _ = w.Close() }() // nothing is lost with the lock
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return fault.WrapAs(op, fault.Unavailable, err, "cannot listen on %s; choose another with --listen", listen)
			}
			out := map[string]any{"listen": l.Addr().String(), "vkey": w.VKey(), "logs": len(logs)}
			if err := a.print(out, func(o io.Writer) {
				fmt.Fprintf(o, "the witness of %d logs listens on http://%s\n%s\n", len(logs), l.Addr(), w.VKey())
			}); err != nil {
				return err
			}
			return serve.Serve(c.Context(), l, w, log)
		},
	}
	c.Flags().StringVar(&listen, "listen", "localhost:7310", "`ADDRESS` to listen on")
	c.Flags().StringArrayVar(&logs, "log", nil, "verifier key `VKEY` of a log; repeatable")
	_ = c.MarkFlagRequired("log") // the flag is there
	return c
}
