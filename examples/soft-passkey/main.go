// Command soft-passkey is a passkey in software, for the README's tour and for
// scripts: it stands for a person at the console where nobody is there to press
// a button. People use the passkeys of their devices, in a browser.
//
//	soft-passkey -file alice.passkey -enrol "$(creto human login alice)"
//	soft-passkey -file alice.passkey -confirm http://localhost:7300/console/delegations/ID
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"strings"

	"creto.dev/fault"
	"creto.dev/login/softkey"
)

func main() {
	file := flag.String("file", "", "where the passkey is kept")
	enrol := flag.String("enrol", "", "a one-time login: make a passkey, and make it known there")
	confirm := flag.String("confirm", "", "the page of a delegation: confirm it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *file, strings.TrimSpace(*enrol), strings.TrimSpace(*confirm)); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "soft-passkey:", fault.Message(err))
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

func run(ctx context.Context, file, enrol, confirm string) error {
	const op fault.Op = "soft-passkey"
	if file == "" || (enrol == "") == (confirm == "") {
		return fault.New(op, fault.InvalidArgument, "give -file FILE, and either -enrol LOGIN or -confirm PAGE")
	}
	if confirm != "" {
		key, err := load(file)
		if err != nil {
			return err
		}
		p, err := softkey.NewPerson(key)
		if err == nil {
			err = p.LoginWithKey(ctx)
		}
		if err == nil {
			err = p.Confirm(ctx, confirm)
		}
		if err == nil {
			fmt.Println("confirmed with the passkey in", file)
		}
		return errors.Join(err, save(file, key))
	}
	u, err := url.Parse(enrol)
	if err != nil {
		return fault.WrapAs(op, fault.InvalidArgument, err, "that is no login")
	}
	key, err := softkey.New(u.Scheme + "://" + u.Host)
	if err != nil {
		return err
	}
	p, err := softkey.NewPerson(key)
	if err == nil {
		err = p.Login(ctx, enrol)
	}
	if err == nil {
		err = p.Enrol(ctx, "in software")
	}
	if err == nil {
		err = save(file, key)
	}
	if err == nil {
		fmt.Println("enrolled a passkey in software, kept in", file)
	}
	return err
}

func load(file string) (*softkey.Key, error) {
	const op fault.Op = "soft-passkey"
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fault.WrapAs(op, fault.NotFound, err, "there is no passkey in %s; make one with -enrol", file)
	}
	key := new(softkey.Key)
	return key, fault.WrapAs(op, fault.InvalidArgument, json.Unmarshal(data, key), "%s is no passkey in software", file)
}

// save also keeps the count, which a relying party expects to grow.
func save(file string, key *softkey.Key) error {
	data, err := json.Marshal(key)
	if err != nil {
		return err
	}
	return fault.WrapAs("soft-passkey", fault.Unavailable, os.WriteFile(file, data, 0o600), "%s cannot be written", file)
}
