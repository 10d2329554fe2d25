package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/nhi"
)

func (a *app) secretCommand() *cobra.Command {
	c := &cobra.Command{Use: "secret", Short: "Store, list and remove secrets that agents use without holding them"}
	c.AddCommand(a.secretSetCommand(), &cobra.Command{
		Use: "list", Short: "List the secrets, without their values", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.node(func(n *client.Client) error {
				list, err := n.Secrets(c.Context())
				if err != nil {
					return err
				}
				return a.print(list, func(w io.Writer) {
					if len(list) == 0 {
						fmt.Fprintln(w, "no secrets yet; store one with: creto secret set NAME")
						return
					}
					table(w, "NAME\tFROM\tVERSION\tWHO MAY", func(w io.Writer) {
						for _, s := range list {
							version := "-"
							if s.Version > 0 {
								version = fmt.Sprint(s.Version)
							}
							fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Name, s.From, version, whoMay(s))
						}
					})
				})
			})
		},
	}, &cobra.Command{
		Use: "remove NAME", Short: "Destroy a stored secret", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.node(func(n *client.Client) error {
				if err := n.RemoveSecret(c.Context(), args[0]); err != nil {
					return err
				}
				return a.print(map[string]string{"removed": args[0]}, func(w io.Writer) { fmt.Fprintf(w, "removed %s\n", args[0]) })
			})
		},
	})
	return c
}

// whoMay says who a secret is granted to.
func whoMay(s client.Secret) string {
	return cmp.Or(strings.Join(s.Agents, ", "), "whom policy permits")
}

func (a *app) secretSetCommand() *cobra.Command {
	var in client.NewSecret
	var file string
	c := &cobra.Command{
		Use:   "set NAME",
		Short: "Store a secret, read from standard input or a file",
		Long: `Store a secret, sealed, in place of the value that it had. It is read from
standard input or --from-file, never from the command line, which others can see;
one line break at its end is dropped.

An agent uses it where a policy permits access_secret, and only the agents named
with --agent, if there are any. As a rule the gateway adds it to requests on their
way out ([[egress.credentials]] in the configuration), and the agent never sees it.

  pass show shop | creto secret set shop-key --agent shop-bot
  creto agent add shop-bot --allow access_secret=shop-key --allow "http_request=http://shop.test/*"`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			in.Name = args[0]
			var err error
			if in.Value, err = readSecret(c.InOrStdin(), file); err != nil {
				return err
			}
			return a.node(func(n *client.Client) error {
				s, err := n.SetSecret(c.Context(), in)
				if err != nil {
					return err
				}
				return a.print(s, func(w io.Writer) {
					fmt.Fprintf(w, "stored %s, version %d, for %s\n", s.Name, s.Version, whoMay(s))
				})
			})
		},
	}
	c.Flags().StringVar(&file, "from-file", "", "read it from `FILE`")
	c.Flags().StringArrayVar(&in.Agents, "agent", nil, "`AGENT` that may have it (repeatable; default whom policy permits)")
	return c
}

// readSecret reads a value from a file, or else from in.
func readSecret(in io.Reader, file string) (creto.Secret, error) {
	const op fault.Op = "creto.readSecret"
	what := "standard input"
	if file != "" {
		what = file
		f, err := os.Open(file)
		if err != nil {
			return creto.Secret{}, fault.WrapAs(op, fault.InvalidArgument, err, "%s cannot be read", file)
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	} else if isTerminal(os.Stdin) {
		return creto.Secret{}, fault.New(op, fault.InvalidArgument, "a terminal would show the secret: pipe it in, or use --from-file")
	}
	value, err := io.ReadAll(io.LimitReader(in, nhi.MaxSecretBytes+3)) // and a line break
	if err != nil {
		return creto.Secret{}, fault.WrapAs(op, fault.InvalidArgument, err, "%s cannot be read", what)
	}
	defer clear(value)
	if cut, ok := bytes.CutSuffix(value, []byte("\n")); ok {
		value = bytes.TrimSuffix(cut, []byte("\r"))
	}
	if len(bytes.TrimFunc(value, unicode.IsSpace)) == 0 {
		return creto.Secret{}, fault.New(op, fault.InvalidArgument, "there is no secret in %s", what)
	}
	return creto.NewSecret(string(value)), nil
}
