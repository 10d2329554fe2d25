// Command creto runs AI agents under authority: it serves a node, runs programs
// as agents, asks humans for their consent, and verifies receipts offline.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"

	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/sandbox/guest"
)

// version is set by the linker.
var version = "dev"

// exitError ends the program with a code and without a message: what there was
// to say has been said.
type exitError int

// Error implements error.
func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// exitFailure is the code of a failure.
const exitFailure = 1

func main() {
	if guest.Called(os.Args) {
		guest.Main() // this process is the first one in a sandbox
		return
	}
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// What a first signal does not end, a second one does.
	context.AfterFunc(ctx, stop)
	root := newRoot()
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exitError](err); ok {
		return int(code)
	}
	fmt.Fprintln(os.Stderr, "creto: "+explain(err))
	return exitFailure
}

// explain returns the line that a person reads: a fault's message, never the
// text of its causes.
func explain(err error) string {
	if _, ok := errors.AsType[*fault.Error](err); !ok {
		return printable(err.Error()) // cobra's, on flags and arguments
	}
	text := fault.Message(err)
	if fault.CodeOf(err).Kind() == fault.Internal {
		// On one's own machine the cause is the only help there is.
		text = "something is wrong inside creto: " + err.Error()
	}
	return printable(text) // it may quote what an agent wrote
}

// app holds what every command shares.
type app struct {
	dataDir string
	asJSON  bool
	tenant  string
	out     io.Writer
}

func newRoot() *cobra.Command {
	a := &app{out: os.Stdout}
	root := &cobra.Command{
		Use:   "creto",
		Short: "Run AI agents under authority",
		Long: `Creto runs AI agents under authority: each has an identity, a chain of delegation
back to a human, a policy decision on every action, a human's consent where
policy asks for one, a sandbox, and receipts that anybody can verify offline.

Start with:  creto demo`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&a.dataDir, "data", defaultDataDir(), "the node's data `directory`")
	root.PersistentFlags().BoolVar(&a.asJSON, "json", false, "print JSON")
	root.PersistentFlags().StringVar(&a.tenant, "tenant", os.Getenv("CRETO_TENANT"), "whose people, agents and records: a `tenant` (default the node's own, or $CRETO_TENANT)")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; see: %s --help", err, c.CommandPath())
	})
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run:"},
		&cobra.Group{ID: "people", Title: "Agents and people:"},
		&cobra.Group{ID: "proof", Title: "What happened, and its proof:"},
		&cobra.Group{ID: "node", Title: "The node:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("run", a.demoCommand(), a.runCommand())
	add("people", a.agentCommand(), a.humanCommand(), a.workloadCommand(), a.loginCommand(), a.logoutCommand(), a.tokenCommand(), a.svidCommand(), a.secretCommand(), a.approvalsCommand(), a.policyCommand(), a.quotaCommand(), a.checkCommand())
	add("proof", a.receiptsCommand(), a.auditCommand(), a.verifyCommand())
	add("node", a.serveCommand(), a.modelCommand(), a.witnessCommand(), a.tenantCommand(), a.healthCommand(), a.configCommand(), a.keysCommand())
	explainUsage(root)
	return root
}

// explainUsage makes every command say its usage when its arguments are
// wrong, and one that only groups others refuse words it does not know, instead
// of printing its help and succeeding.
func explainUsage(c *cobra.Command) {
	for _, sub := range c.Commands() {
		explainUsage(sub)
	}
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return fmt.Errorf("%w; usage: %s", err, c.UseLine())
			}
			return nil
		}
	}
	if c.HasSubCommands() && c.RunE == nil && c.Run == nil && c.HasParent() {
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return fmt.Errorf("unknown command %q for %q; see: %s --help", args[0], c.CommandPath(), c.CommandPath())
		}
	}
}

// defaultDataDir is $XDG_DATA_HOME/creto, or /var/lib/creto for root.
func defaultDataDir() string {
	// The XDG base directory specification: a relative path is to be ignored.
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "creto")
	}
	if os.Geteuid() == 0 {
		return "/var/lib/creto"
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "creto-data"
	}
	return filepath.Join(home, ".local", "share", "creto")
}

// client returns the client of the running node: $CRETO_ADDR, or the socket in
// the data directory.
func (a *app) client() (*client.Client, error) {
	address := os.Getenv(addrEnv)
	if address == "" {
		address = filepath.Join(a.dataDir, client.SocketName)
	}
	token, err := a.tokenFor(address)
	if err != nil {
		return nil, err
	}
	c, err := client.New(address, token)
	if err != nil {
		return nil, err
	}
	return c.For(a.tenant), nil
}

// The environment that names a node elsewhere, and a session's token for it.
const (
	addrEnv  = "CRETO_ADDR"
	tokenEnv = "CRETO_TOKEN"
)

// node runs do with a client, and says what to do if no node runs.
func (a *app) node(do func(*client.Client) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	return a.unreachable(do(c))
}

// unreachable says what to do about an error of reaching the node. Others stay
// what they are.
func (a *app) unreachable(err error) error {
	const op fault.Op = "creto"
	if !isUnreachable(err) {
		return err
	}
	switch address := os.Getenv(addrEnv); {
	case address != "":
		return fault.New(op, fault.Unavailable, "no node answers at %s, which CRETO_ADDR names; it takes http://HOST:PORT or the path of a socket", address)
	case errors.Is(err, os.ErrPermission):
		return fault.New(op, fault.PermissionDenied, "the node of %s is another user's; run this as that user", a.dataDir)
	}
	return fault.New(op, fault.Unavailable, "no node is running for %s; start one with: %s", a.dataDir, a.hint("serve"))
}

// isUnreachable reports whether err says that no connection to the node could
// be made.
func isUnreachable(err error) bool {
	dial, ok := errors.AsType[*net.OpError](err)
	return ok && dial.Op == "dial"
}

// hint returns a command line to type next, for the same data directory.
func (a *app) hint(command string) string {
	if a.tenant != "" {
		command = "--tenant " + quoted(a.tenant) + " " + command
	}
	if a.dataDir == defaultDataDir() {
		return "creto " + command
	}
	return "creto --data " + quoted(a.dataDir) + " " + command
}

// quoted returns text as one word of a shell.
func quoted(text string) string {
	plain := func(r rune) bool {
		return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("/._-+:=@,", r)
	}
	if text != "" && strings.IndexFunc(text, func(r rune) bool { return !plain(r) }) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// printable replaces control characters, and those that reverse or hide text: an
// agent could rewrite the screen of who reads them.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || 0x7f <= r && r < 0xa0 || 0x200b <= r && r <= 0x200f || 0x2028 <= r && r <= 0x202e || 0x2060 <= r && r <= 0x2069 || r == 0xfeff {
			return '\uFFFD'
		}
		return r
	}, text)
}

// oneLine is printable for a place in a table or a sentence.
func oneLine(text string) string {
	return strings.NewReplacer("\n", "\uFFFD", "\t", "\uFFFD").Replace(printable(text))
}

// print writes v as JSON where that is wanted, else what text writes.
func (a *app) print(v any, text func(io.Writer)) error {
	if !a.asJSON {
		text(a.out)
		return nil
	}
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fault.WrapAs("creto.print", fault.Internal, err, "")
	}
	return nil
}
