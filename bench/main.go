// Command bench measures Creto and its peers, in the same run on the same
// machine, prints a table, and writes the numbers as JSON.
//
//	go run . -list
//	go run . -subject gate -out ../out/bench
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
)

// subject is one thing that is measured; its file is named after it.
type subject struct {
	name  string
	about string
	run   func(ctx context.Context, r *report) error
}

// subjects are all that there are, in the order that -subject all takes.
func subjects() []subject {
	return []subject{
		{"identity", "who is this, may it, and the signatures that both stand on", benchIdentity},
		{"consensus", "what a stamp costs, in this process, over a wire, and of a cluster", benchConsensus},
		{"audit", "what a record costs its caller, the tree, and proofs", benchAudit},
		{"authz", "what a decision costs, and other engines on the same policies", benchAuthz},
		{"gateway", "what a model call takes through the product, a bare proxy, and nothing", benchGateway},
		{"gate", "what the gate adds to an action, and the contracts that it asks", benchGate},
	}
}

func main() {
	if what := os.Getenv(childEnv); what != "" {
		fmt.Fprintln(os.Stderr, "bench:", child(what))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		stop()
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	name := flags.String("subject", "all", "what to measure, or all")
	dir := flags.String("out", filepath.Join("..", "out", "bench"), "where SUBJECT.json is written")
	list := flags.Bool("list", false, "list the subjects")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	known := false
	var names []string
	for _, s := range subjects() {
		names = append(names, s.name)
		if *list {
			fmt.Fprintf(out, "%-10s %s\n", s.name, s.about)
			continue
		}
		if *name != "all" && *name != s.name {
			continue
		}
		known = true
		r := newReport(ctx, s.name)
		if err := s.run(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := r.print(out); err != nil {
			return err
		}
		file := filepath.Join(*dir, s.name+".json")
		if err := r.write(file); err != nil {
			return err
		}
		fmt.Fprintf(out, "\nwritten to %s\n", file)
	}
	if !known && !*list {
		return fmt.Errorf("there is no subject %q; there are %s", *name, strings.Join(names, ", "))
	}
	return nil
}
