package main

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"creto.dev/client"
)

func (a *app) quotaCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "quota", Short: "Bound how much, and how fast, agents may act",
		Long: `Bound how much, and how fast, agents may act.

A quota is an amount in each window of time; windows begin on the hour, at midnight
UTC, and so on. A rate spreads what is allowed evenly, with bursts. Several may bound
one action: all must have room. A change takes effect at once.

  creto quota set shop-bot call_model 100/1h
  creto quota set shop-bot call_model 1000/24h          # beside the other
  creto quota set shop-bot "*" 5000/24h                 # of all actions together
  creto quota set shop-bot call_model 20/1h --for alice # of what it does for alice
  creto quota rate shop-bot http_request 10/s --burst 20

What an action took counts unless it surely did not happen. After a restart it is
counted again from the audit log.`,
	}
	c.AddCommand(a.quotaSetCommand(), a.quotaRateCommand(), a.quotaListCommand(), a.quotaClearCommand())
	return c
}

// forFlag is whose chains count.
func forFlag(c *cobra.Command, human *string) {
	c.Flags().StringVar(human, "for", "", "only what it does on behalf of this `HUMAN`")
}

func (a *app) quotaSetCommand() *cobra.Command {
	var in client.Limit
	c := &cobra.Command{
		Use: "set AGENT ACTION AMOUNT/WINDOW", Short: "Set how often an agent may take an action in each window", Args: cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			in.Agent, in.Action, in.Quota = args[0], args[1], args[2]
			return a.setLimit(c, in)
		},
	}
	forFlag(c, &in.For)
	return c
}

func (a *app) quotaRateCommand() *cobra.Command {
	var in client.Limit
	c := &cobra.Command{
		Use: "rate AGENT ACTION COUNT/PERIOD", Short: "Set how fast an agent may take an action", Args: cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			in.Agent, in.Action, in.Rate = args[0], args[1], args[2]
			return a.setLimit(c, in)
		},
	}
	forFlag(c, &in.For)
	c.Flags().Int64Var(&in.Burst, "burst", 0, "how many may come at once (default COUNT)")
	return c
}

func (a *app) setLimit(c *cobra.Command, in client.Limit) error {
	return a.node(func(n *client.Client) error {
		out, err := n.SetLimit(c.Context(), in)
		if err != nil {
			return err
		}
		return a.print(out, func(w io.Writer) {
			whose := ""
			if out.For != "" {
				whose = " on behalf of " + out.For
			}
			if out.Rate != "" {
				fmt.Fprintf(w, "%s may take %s %s%s, at most %d at once\n", out.Agent, oneLine(out.Action), out.Rate, whose, out.Burst)
				return
			}
			fmt.Fprintf(w, "%s may take %s %s%s; %d are used, %d left until %s\n", out.Agent, oneLine(out.Action), out.Quota, whose, out.Used, out.Left, resetOf(out))
		})
	})
}

// resetOf is when a quota's window ends.
func resetOf(l client.Limit) string { return l.Reset.Local().Format(time.DateTime) }

func (a *app) quotaListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list [AGENT]", Short: "List the limits, and what is left of them", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			agent := ""
			if len(args) > 0 {
				agent = args[0]
			}
			return a.node(func(n *client.Client) error {
				list, err := n.Limits(c.Context(), agent)
				if err != nil {
					return err
				}
				return a.print(list, func(w io.Writer) {
					if len(list) == 0 {
						fmt.Fprintf(w, "nothing is limited; set a quota with: %s\n", a.hint("quota set AGENT ACTION 100/1h"))
						return
					}
					table(w, "AGENT\tFOR\tACTION\tLIMIT\tUSED\tLEFT\tRESET", func(w io.Writer) {
						for _, x := range list {
							human := x.For
							if human == "" {
								human = "anybody"
							}
							if x.Rate != "" {
								fmt.Fprintf(w, "%s\t%s\t%s\t%s, burst %d\t\t%d\t\n", x.Agent, human, x.Action, x.Rate, x.Burst, x.Left)
								continue
							}
							used := strconv.FormatInt(x.Used, 10)
							if x.Lent > 0 {
								used += fmt.Sprintf(" (%d lent)", x.Lent)
							}
							fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", x.Agent, human, x.Action, x.Quota, used, x.Left, resetOf(x))
						}
					})
				})
			})
		},
	}
}

func (a *app) quotaClearCommand() *cobra.Command {
	var in client.LimitName
	c := &cobra.Command{
		Use: "clear AGENT ACTION", Short: "Remove an agent's limits of an action", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			in.Agent, in.Action = args[0], args[1]
			return a.node(func(n *client.Client) error {
				out, err := n.ClearLimit(c.Context(), in)
				if err != nil {
					return err
				}
				return a.print(out, func(w io.Writer) {
					fmt.Fprintf(w, "removed %d quotas and %d rates of %s on %s\n", out.Quotas, out.Rates, in.Agent, oneLine(in.Action))
				})
			})
		},
	}
	forFlag(c, &in.For)
	c.Flags().DurationVar(&in.Window, "window", 0, "only the quota with windows of this length")
	c.Flags().BoolVar(&in.Rate, "rate", false, "only the rate")
	c.MarkFlagsMutuallyExclusive("window", "rate")
	return c
}
