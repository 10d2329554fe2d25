package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"creto.dev/fault"
	"creto.dev/inference/injection"
)

// maxScanned bounds what is read to be judged: as much as a request may hold.
const maxScanned = 32 << 20

// scanned is what is found in a text.
type scanned struct {
	// Risk is in thousandths, as in policies and records.
	Risk    int64    `json:"risk"`
	Source  string   `json:"source"`
	Reasons []string `json:"reasons"`
	Bytes   int      `json:"bytes"`
}

func (a *app) modelScanCommand() *cobra.Command {
	var from string
	c := &cobra.Command{
		Use: "scan FILE", Short: "Judge how likely a text is a prompt injection", Args: cobra.ExactArgs(1),
		Long: `Judge how likely a text is a prompt injection.

FILE may be - for standard input. The text is judged as a node judges it by its
built-in detector: as what a user says or, with --from document, as what a tool
returned. It needs no node, and exits 0 whatever it finds. The risk is an order from 0
to 1 rather than a probability; nodes taint sessions from 0.500 and refuse calls from
0.900 where their configuration does not say otherwise.

  creto model scan prompt.txt
  curl -s https://example.com | creto model scan --from document -`,
		RunE: func(c *cobra.Command, args []string) error {
			const op fault.Op = "creto.scan"
			source, err := injection.ParseSource(from)
			if err != nil {
				return err
			}
			in := c.InOrStdin()
			if args[0] != "-" {
				file, err := os.Open(args[0])
				if err != nil {
					return fault.WrapAs(op, fault.NotFound, err, "%s cannot be read", args[0])
				}
				defer func() { _ = file.Close() }()
				in = file
			}
			text, err := io.ReadAll(io.LimitReader(in, maxScanned+1))
			if err != nil {
				return fault.WrapAs(op, fault.InvalidArgument, err, "%s cannot be read", args[0])
			}
			if len(text) > maxScanned {
				return fault.New(op, fault.InvalidArgument, "%s is larger than %d MiB", args[0], maxScanned>>20)
			}
			found := injection.New().Judge(string(text), source)
			out := scanned{Risk: int64(found.Risk), Source: source.String(), Reasons: append([]string{}, found.Reasons...), Bytes: len(text)}
			return a.print(out, func(w io.Writer) {
				if len(out.Reasons) == 0 {
					fmt.Fprintf(w, "%s\n", found.Risk)
					return
				}
				fmt.Fprintf(w, "%s  %s\n", found.Risk, strings.Join(out.Reasons, " "))
			})
		},
	}
	c.Flags().StringVar(&from, "from", injection.User.String(), "where the text stands: user or document")
	return c
}
