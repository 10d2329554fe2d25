package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"creto.dev/authz/localauthz"
)

func (a *app) policyExplainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain ID [DIR]",
		Short: "Say in words what a policy does, without a node",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := localauthz.ReadPolicies(a.policyDir(args[1:]), a.home())
			if err != nil {
				return err
			}
			list, err := p.Describe(args[0])
			if err != nil {
				return err
			}
			return a.print(list, func(w io.Writer) {
				for i, d := range list {
					if i > 0 {
						fmt.Fprintln(w)
					}
					printDescription(w, d)
				}
			})
		},
	}
}

func printDescription(w io.Writer, d localauthz.Description) {
	does := d.Effect + "s"
	if d.Asks != "" {
		does += ", with the consent of "
		if d.Quorum > 1 {
			does += fmt.Sprintf("%d of ", d.Quorum)
		}
		does += d.Asks
		if d.Timeout != "" {
			does += " within " + d.Timeout
		}
	}
	fmt.Fprintf(w, "%s (%s:%d) %s\n", oneLine(d.ID), oneLine(d.File), d.Line, oneLine(does))
	fmt.Fprintf(w, "  who   %s\n", oneLine(d.Who))
	fmt.Fprintf(w, "  what  %s\n", oneLine(strings.Join(d.What, ", ")))
	fmt.Fprintf(w, "  on    %s\n", oneLine(d.On))
	for i, c := range d.If {
		word := "and"
		if i == 0 {
			word = "if "
		}
		fmt.Fprintf(w, "  %s   %s  (%d:%d)\n", word, oneLine(c.Words), c.Line, c.Column)
	}
	fmt.Fprintf(w, "  digest  %s\n\n", d.Digest)
	for line := range strings.SplitSeq(d.Text, "\n") {
		fmt.Fprintf(w, "  %s\n", strings.TrimRight(printable(line), "\r"))
	}
}

func (a *app) policySchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the Cedar schema of Creto's principals, actions and contexts",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(a.out, localauthz.Schema())
			return err
		},
	}
}
