package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
)

// loginsFile is where logins of this command line are, by address, in the data
// directory.
const loginsFile = "logins.json"

// savedLogin is one.
type savedLogin struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// logins reads those that are saved; none if the file is not there.
func (a *app) logins() (map[string]savedLogin, error) {
	const op fault.Op = "creto.logins"
	path := filepath.Join(a.dataDir, loginsFile)
	saved := make(map[string]savedLogin)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return saved, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &saved)
	}
	return saved, fault.WrapAs(op, fault.FailedPrecondition, err, "%s cannot be read; remove it and log in again", path)
}

// saveLogins writes them for this user alone, whole or not at all.
func (a *app) saveLogins(saved map[string]savedLogin) error {
	const op fault.Op = "creto.saveLogins"
	path := filepath.Join(a.dataDir, loginsFile)
	data, err := json.Marshal(saved)
	if err != nil {
		return fault.WrapAs(op, fault.Internal, err, "")
	}
	err = os.MkdirAll(a.dataDir, 0o700)
	var next *os.File
	if err == nil {
		next, err = os.CreateTemp(a.dataDir, loginsFile+".*") // mode 0600
	}
	if err == nil {
		_, err = next.Write(data)
		err = errors.Join(err, next.Close())
		if err == nil {
			err = os.Rename(next.Name(), path)
		}
		if err != nil {
			err = errors.Join(err, os.Remove(next.Name()))
		}
	}
	return fault.WrapAs(op, fault.Unavailable, err, "%s cannot be written", path)
}

// tokenFor returns what to send to a node at address over TCP: $CRETO_TOKEN, or
// that of a login.
func (a *app) tokenFor(address string) (creto.Secret, error) {
	if token := os.Getenv(tokenEnv); token != "" || !overTCP(address) {
		return creto.NewSecret(token), nil
	}
	saved, err := a.logins()
	if err != nil {
		return creto.Secret{}, err
	}
	return creto.NewSecret(saved[strings.TrimSuffix(address, "/")].Token), nil
}

func overTCP(address string) bool {
	return strings.HasPrefix(address, "http://") || strings.HasPrefix(address, "https://")
}

// elsewhere returns a client of the node that CRETO_ADDR names, without a token.
func (a *app) elsewhere() (*client.Client, string, error) {
	address := strings.TrimSuffix(os.Getenv(addrEnv), "/")
	if !overTCP(address) {
		return nil, "", fault.New("creto.login", fault.InvalidArgument, "say which node: CRETO_ADDR=http://HOST:PORT; on the node's own machine no login is needed")
	}
	n, err := client.New(address, creto.Secret{})
	return n, address, err
}

func (a *app) loginCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "login",
		Short: "Log this command line in to the node that CRETO_ADDR names",
		Long: `Log this command line in to a node elsewhere. It prints an address and a code;
whoever opens the address in a browser, is logged in there and confirms the code
is who this command line acts as, for twelve hours.

  export CRETO_ADDR=https://creto.example
  creto login

The session's token is kept in the data directory, for this user alone, until
creto logout.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			n, address, err := a.elsewhere()
			if err != nil {
				return err
			}
			defer n.Close()
			host, err := os.Hostname()
			if err != nil {
				host = "a machine without a name"
			}
			d, err := n.BeginLogin(c.Context(), "creto "+version+" on "+host)
			if err != nil {
				return a.unreachable(err)
			}
			fmt.Fprintf(c.ErrOrStderr(), "open   %s\nand compare the code   %s\n", printable(d.URLWithCode), printable(d.UserCode))
			token, err := n.AwaitLogin(c.Context(), d)
			if err != nil {
				return a.unreachable(err)
			}
			saved, err := a.logins()
			if err != nil {
				return err
			}
			saved[address] = savedLogin{Token: token.Token, Expires: token.Expires}
			if err := a.saveLogins(saved); err != nil {
				return err
			}
			return a.print(map[string]any{"address": address, "expires": token.Expires}, func(w io.Writer) {
				fmt.Fprintf(w, "logged in to %s, until %s\n", address, token.Expires.Local().Format("15:04"))
			})
		},
	}
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "End the login of this command line", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			n, address, err := a.elsewhere()
			if err != nil {
				return err
			}
			defer n.Close()
			saved, err := a.logins()
			if err != nil {
				return err
			}
			one, ok := saved[address]
			if !ok {
				return fault.New("creto.logout", fault.NotFound, "this command line is not logged in to %s", address)
			}
			// The node is told first: a token that is only forgotten here
			// would still count.
			if err := n.WithToken(creto.NewSecret(one.Token)).EndLogin(c.Context()); err != nil {
				return a.unreachable(err)
			}
			delete(saved, address)
			if err := a.saveLogins(saved); err != nil {
				return err
			}
			return a.print(map[string]string{"ended": address}, func(w io.Writer) { fmt.Fprintf(w, "logged out of %s\n", address) })
		},
	}
}
