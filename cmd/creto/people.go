package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// table writes aligned columns.
func table(w io.Writer, header string, rows func(io.Writer)) {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, header) // a tabwriter keeps its error for Flush
	rows(t)
	_ = t.Flush() // as with every line printed: whoever closed the pipe has read enough
}

func (a *app) agentCommand() *cobra.Command {
	c := &cobra.Command{Use: "agent", Short: "Add, list, delegate to and revoke agents"}
	c.AddCommand(a.agentAddCommand(), a.agentDelegateCommand(), &cobra.Command{
		Use: "list", Short: "List the agents", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.node(func(n *client.Client) error {
				list, err := n.Agents(c.Context())
				if err != nil {
					return err
				}
				return a.print(list, func(w io.Writer) {
					if len(list) == 0 {
						fmt.Fprintln(w, "no agents yet; add one with: creto agent add NAME")
						return
					}
					table(w, "NAME\tON BEHALF OF\tSTATE\tPOLICY", func(w io.Writer) {
						for _, x := range list {
							state := "active"
							switch {
							case !x.Active:
								state = "revoked"
							case x.OnBehalfOf == "":
								state = "acts for nobody yet"
							}
							fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", x.Name, x.OnBehalfOf, state, x.PolicyFile)
						}
					})
				})
			})
		},
	}, a.agentRevokeCommand())
	return c
}

func (a *app) agentRevokeCommand() *cobra.Command {
	var in client.Revocation
	var delegation bool
	c := &cobra.Command{
		Use:   "revoke NAME | --on-behalf-of HUMAN | --all",
		Short: "End agents' tokens and delegations, and all below them, at once",
		Long: `End an agent's tokens and delegations, and everything that was delegated below
it, at once: also of programs that are running. Its name is not used again.

  creto agent revoke shop-bot
  creto agent revoke shop-bot --delegation     # it can be delegated to again
  creto agent revoke --on-behalf-of alice      # every agent that acts for alice
  creto agent revoke --all                     # every agent there is`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			chosen := len(args)
			for _, set := range []bool{in.OnBehalfOf != "", in.All} {
				if set {
					chosen++
				}
			}
			if chosen != 1 || delegation && len(args) == 0 {
				return fmt.Errorf("name one thing to revoke; usage: %s", c.UseLine())
			}
			return a.node(func(n *client.Client) error {
				out := client.Revoked{Agents: args}
				var err error
				switch {
				case delegation:
					in.Delegation = args[0]
					out, err = n.Revoke(c.Context(), in)
				case len(args) == 1:
					err = n.RevokeAgent(c.Context(), args[0])
				default:
					out, err = n.Revoke(c.Context(), in)
				}
				if err != nil {
					return err
				}
				return a.print(out, func(w io.Writer) {
					if len(out.Agents) == 0 {
						fmt.Fprintln(w, "there was no agent to revoke")
					}
					for _, name := range out.Agents {
						fmt.Fprintf(w, "revoked %s\n", name)
					}
				})
			})
		},
	}
	c.Flags().BoolVar(&delegation, "delegation", false, "end what it was given, not the agent itself")
	c.Flags().StringVar(&in.OnBehalfOf, "on-behalf-of", "", "every agent that acts for this `HUMAN`")
	c.Flags().BoolVar(&in.All, "all", false, "every agent")
	return c
}

func (a *app) agentAddCommand() *cobra.Command {
	var in client.NewAgent
	var wait bool
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "Add an agent that acts on behalf of a human",
		Long: `Add an agent. Without flags it may do nothing but run in a sandbox; each denial
prints the line that would permit it.

Rules are ACTION=RESOURCE-GLOB, where * stands for anything:

  --allow call_model=gpt-4o-mini
  --allow "http_request=GET http://shop.test/orders/*"
  --allow network_egress=api.example.com:443
  --allow access_secret=shop-key                for the gateway to add; "raw shop-key" to hold it
  --ask   "http_request=POST http://shop.test/refunds,finance"    ask group finance first

A human with a passkey or an identity provider confirms in the browser that the
agent acts for them; this command prints where, and waits. --proof bootstrap
answers for them, which every receipt of the agent will say.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			in.Name = args[0]
			return a.node(func(n *client.Client) error {
				agent, err := n.AddAgent(c.Context(), in)
				if err != nil {
					return err
				}
				if agent.Waits != nil {
					if err := a.awaitHuman(c, n, agent.Waits, wait); err != nil {
						return err
					}
				}
				return a.print(agent, func(w io.Writer) {
					if agent.Waits != nil && agent.Waits.State == delegationPending {
						fmt.Fprintf(w, "added %s, which waits for %s\n", agent.Name, agent.OnBehalfOf)
					} else {
						fmt.Fprintf(w, "added %s, on behalf of %s\n", agent.Name, agent.OnBehalfOf)
					}
					fmt.Fprintf(w, "its policy is %s:\n\n%s\n", agent.PolicyFile, indent(agent.Policy))
					fmt.Fprintf(w, "next:  %s\n", a.hint("run "+agent.Name+" -- COMMAND"))
				})
			})
		},
	}
	c.Flags().StringVar(&in.OnBehalfOf, "on-behalf-of", "", "`HUMAN` who delegates, or agent:NAME (default admin)")
	c.Flags().StringArrayVar(&in.Allow, "allow", nil, "what it may do: `ACTION=RESOURCE-GLOB` (repeatable)")
	c.Flags().StringArrayVar(&in.Ask, "ask", nil, "what it may do with consent: `ACTION=RESOURCE-GLOB,GROUP` (repeatable)")
	c.Flags().StringArrayVar(&in.Quota, "quota", nil, "how often: `ACTION=AMOUNT/WINDOW` (repeatable)")
	grantFlags(c, &in, &wait)
	return c
}

// grantFlags are those of a delegation.
func grantFlags(c *cobra.Command, in *client.NewAgent, wait *bool) {
	depth := uint(nhi.DefaultMaxDepth)
	c.Flags().DurationVar(&in.TTL, "ttl", 90*24*time.Hour, "how long the delegation lasts")
	c.Flags().StringArrayVar(&in.Actions, "only-action", nil, "pass on no other action, whatever policies allow: `ACTION`, or its beginning and * (repeatable)")
	c.Flags().StringArrayVar(&in.Resources, "only-resource", nil, "pass on nothing on any other resource: `TYPE::ID`, or its beginning and * (repeatable)")
	c.Flags().UintVar(&depth, "depth", depth, "how many further agents may follow below")
	c.Flags().StringVar(&in.Proof, "proof", "", "`bootstrap` answers for the human, as who holds the data directory")
	c.Flags().BoolVar(wait, "wait", true, "wait until the human has confirmed it")
	in.Depth = &depth
}

func (a *app) agentDelegateCommand() *cobra.Command {
	var in client.NewAgent
	var wait bool
	c := &cobra.Command{
		Use:   "delegate NAME",
		Short: "Give an agent another delegation, in place of the one it has",
		Long: `Give an agent another delegation, in place of the one it has: by another human or
agent, for another time, or within narrower bounds. Its tokens and whatever was
delegated below it end. What it may do stays in its policy; both must allow it.

  creto agent delegate shop-bot --on-behalf-of alice --only-action "call_*" --only-action spawn_sandbox
  creto agent delegate helper --on-behalf-of agent:shop-bot --only-resource "Model::gpt-*" --depth 0

creto run needs the action spawn_sandbox.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			in.Name = args[0]
			return a.node(func(n *client.Client) error {
				agent, err := n.Delegate(c.Context(), in)
				if err != nil {
					return err
				}
				if agent.Waits != nil {
					if err := a.awaitHuman(c, n, agent.Waits, wait); err != nil {
						return err
					}
				}
				return a.print(agent, func(w io.Writer) {
					if agent.Waits != nil && agent.Waits.State == delegationPending {
						fmt.Fprintf(w, "%s waits for %s\n", agent.Name, agent.OnBehalfOf)
						return
					}
					fmt.Fprintf(w, "%s acts on behalf of %s now\n", agent.Name, agent.OnBehalfOf)
				})
			})
		},
	}
	c.Flags().StringVar(&in.OnBehalfOf, "on-behalf-of", "", "`HUMAN` who delegates, or agent:NAME (default admin)")
	grantFlags(c, &in, &wait)
	return c
}

// The states of a delegation that waits for its human.
const (
	delegationPending   = "pending"
	delegationConfirmed = "confirmed"
)

// confirmInterval is how often a command line asks whether a human has answered.
const confirmInterval = time.Second

// awaitHuman says where d is confirmed, and waits until it is; what d says is
// brought up to date.
func (a *app) awaitHuman(c *cobra.Command, n *client.Client, d *client.Delegation, wait bool) error {
	const op fault.Op = "creto.agent"
	fmt.Fprintf(c.ErrOrStderr(), "%s must confirm that %s acts for them, until %s:\n\n  %s\n\n", d.OnBehalfOf, d.Agent, d.Expires.Local().Format("15:04:05"), d.URL)
	if !wait {
		return nil
	}
	ticker := time.NewTicker(confirmInterval)
	defer ticker.Stop()
	for d.State == delegationPending {
		select {
		case <-c.Context().Done():
			return fault.Wrap(op, c.Context().Err())
		case <-ticker.C:
		}
		now, err := n.Delegation(c.Context(), d.ID)
		if err != nil {
			return err
		}
		*d = now
	}
	if d.State != delegationConfirmed {
		return fault.New(op, fault.PermissionDenied, "%s acts for nobody: the delegation is %s; to ask again, run the same command", d.Agent, d.State)
	}
	return nil
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ") + "\n"
}

func (a *app) humanCommand() *cobra.Command {
	c := a.memberCommands(false, &cobra.Command{
		Use: "human", Short: "Add, list and remove people, and log them in",
		Long: `Add, list and remove people, and log them in.

Groups are what policies and approvals speak of. Two of them are roles: admins
administer the tenant over TCP, auditors read it.`,
	}, "person")
	c.AddCommand(a.humanLoginCommand())
	return c
}

func (a *app) workloadCommand() *cobra.Command {
	return a.memberCommands(true, &cobra.Command{
		Use: "workload", Short: "Add, list and remove programs that have an identity of their own",
		Long: `Add, list and remove programs that have an identity of their own and act for
nobody, such as other nodes. Members of the group nodes may call this node's
contracts with their X.509-SVID: creto svid x509 --workload NAME.`,
	}, "workload")
}

// memberCommands adds what people and workloads have in common.
func (a *app) memberCommands(workload bool, c *cobra.Command, what string) *cobra.Command {
	var groups []string
	add := &cobra.Command{
		Use: "add NAME", Short: "Add a " + what + ", or add groups to one", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.node(func(n *client.Client) error {
				add := n.AddHuman
				if workload {
					add = n.AddApprover
				}
				h, err := add(c.Context(), args[0], groups)
				if err != nil {
					return err
				}
				return a.print(h, func(w io.Writer) {
					fmt.Fprintf(w, "%s is known, in groups: %s\n", h.Name, cmp.Or(strings.Join(h.Groups, ", "), "none"))
				})
			})
		},
	}
	add.Flags().StringArrayVar(&groups, "group", nil, "`GROUP` that the "+what+" is in (repeatable)")
	list := &cobra.Command{
		Use: "list", Short: "List them", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.node(func(n *client.Client) error {
				list := n.Humans
				if workload {
					list = n.Workloads
				}
				members, err := list(c.Context())
				if err != nil {
					return err
				}
				return a.print(members, func(w io.Writer) {
					table(w, "NAME\tGROUPS", func(w io.Writer) {
						for _, h := range members {
							fmt.Fprintf(w, "%s\t%s\n", h.Name, strings.Join(h.Groups, ", "))
						}
					})
				})
			})
		},
	}
	var group string
	remove := &cobra.Command{
		Use: "remove NAME", Short: "End a " + what + "'s logins and agents at once, or take them out of a group",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			m := client.Member{Name: args[0], Workload: workload, Group: group}
			return a.node(func(n *client.Client) error {
				if err := n.RemoveMember(c.Context(), m); err != nil {
					return err
				}
				return a.print(m, func(w io.Writer) {
					if group != "" {
						fmt.Fprintf(w, "%s is not in the group %s any more\n", m.Name, group)
						return
					}
					fmt.Fprintf(w, "removed %s; whatever acted for them has ended\n", m.Name)
				})
			})
		},
	}
	remove.Flags().StringVar(&group, "group", "", "only out of this `GROUP`")
	c.AddCommand(add, list, remove)
	return c
}

func (a *app) humanLoginCommand() *cobra.Command {
	var token bool
	c := &cobra.Command{
		Use: "login NAME", Short: "Print a link that logs a person in to the console, once", Args: cobra.ExactArgs(1),
		Long: `Print a link that logs a person in to the console, once, within 15 minutes.
With --token, print the token of a session instead, valid for 12 hours: what the
command line of an administrator elsewhere sends.

  CRETO_ADDR=http://HOST:7300 CRETO_TOKEN=$(ssh HOST creto human login admin --token) creto agent list`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.node(func(n *client.Client) error {
				if token {
					t, err := n.Session(c.Context(), args[0])
					if err != nil {
						return err
					}
					return a.print(t, func(w io.Writer) { fmt.Fprintln(w, t.Token) })
				}
				link, err := n.Login(c.Context(), args[0])
				if err != nil {
					return err
				}
				return a.print(map[string]string{"url": link}, func(w io.Writer) { fmt.Fprintln(w, link) })
			})
		},
	}
	c.Flags().BoolVar(&token, "token", false, "print the token of a session")
	return c
}

func (a *app) approvalsCommand() *cobra.Command {
	var all bool
	list := &cobra.Command{
		Use: "list", Short: "List what waits for consent", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			state := "pending"
			if all {
				state = ""
			}
			return a.node(func(n *client.Client) error {
				list, err := n.Approvals(c.Context(), state)
				if err != nil {
					return err
				}
				return a.print(list, func(w io.Writer) {
					if len(list) == 0 {
						fmt.Fprintln(w, "nothing waits for consent")
						return
					}
					table(w, "ID\tSTATE\tAGENT\tFOR\tASKS\tACTION", func(w io.Writer) {
						for _, x := range list {
							fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s %s\n", x.ID, x.State, x.Agent, x.OnBehalfOf, x.Approvers, x.Action, oneLine(x.Resource))
						}
					})
				})
			})
		},
	}
	list.Flags().BoolVar(&all, "all", false, "also what was decided")
	c := &cobra.Command{Use: "approvals", Short: "See and answer what waits for consent"}
	c.AddCommand(list, &cobra.Command{
		Use: "show ID", Short: "Show one request with its exact arguments", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.node(func(n *client.Client) error {
				x, err := n.Approval(c.Context(), args[0])
				if err != nil {
					return err
				}
				return a.print(x, func(w io.Writer) { printApproval(w, x) })
			})
		},
	}, a.decideCommand("approve", true), a.decideCommand("deny", false))
	return c
}

func printApproval(w io.Writer, x client.Approval) {
	fmt.Fprintf(w, "%s asks, for %s: %s %s\n", x.Agent, x.OnBehalfOf, x.Action, oneLine(x.Resource))
	fmt.Fprintf(w, "state     %s", x.State)
	if x.DecidedBy != "" {
		fmt.Fprintf(w, " by %s %s", x.DecidedBy, oneLine(x.Reason))
	}
	fmt.Fprintf(w, "\npolicy    %s asks %s\n", x.Policy, x.Approvers)
	if x.Quorum > 1 {
		fmt.Fprintf(w, "consents  %d of %d%s\n", len(x.Consented), x.Quorum, strings.Join(append([]string{""}, x.Consented...), ", "))
	}
	fmt.Fprintf(w, "until     %s\n", x.Expires.Format(time.RFC3339))
	fmt.Fprintf(w, "digest    %s\n", x.Digest)
	fmt.Fprintf(w, "the exact request, written by the agent:\n\n%s\n", indent(printable(x.Args)))
}

func (a *app) decideCommand(verb string, approve bool) *cobra.Command {
	var d client.Decide
	c := &cobra.Command{
		Use: verb + " ID", Short: strings.ToUpper(verb[:1]) + verb[1:] + " one request", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			d.Approve = approve
			return a.node(func(n *client.Client) error {
				x, err := n.Decide(c.Context(), args[0], d)
				if err != nil {
					return err
				}
				return a.print(x, func(w io.Writer) {
					fmt.Fprintf(w, "%s by %s: %s %s\n", x.State, x.DecidedBy, x.Action, oneLine(x.Resource))
				})
			})
		},
	}
	c.Flags().StringVar(&d.As, "as", "", "the `HUMAN` who decides (default admin)")
	c.Flags().StringVar(&d.Reason, "reason", "", "`text` for the record")
	return c
}
