// Command shop-api is the HTTP API of Kiln & Leaf, a small pottery shop that
// does not exist: orders, replies to customers, refunds, and an export of the
// customers. It trusts whoever can reach it, as such services do; it knows
// nothing of agents or of Creto.
//
// The address that it listens on is the first line of its standard output, as
// in "listening on http://127.0.0.1:41873". Requests are logged to standard
// error. SIGTERM lets running requests finish.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "shop-api:", err)
		os.Exit(1)
	}
}

// run serves the shop until ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("shop-api", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:0", "listen on `host:port`; port 0 picks a free one")
	orders := flags.String("orders", "orders.csv", "load the orders from `file`")
	customers := flags.String("customers", "customers.csv", "export the customers of `file`")
	data := flags.String("data", "shop-data", "keep refunds.jsonl and replies.jsonl in `dir`")
	if err := parse(flags, args, stdout); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}

	s := &shop{
		customersFile: *customers,
		now:           time.Now,
		log:           slog.New(slog.NewTextHandler(stderr, nil)),
	}
	var err error
	if s.orders, err = loadOrders(*orders); err != nil {
		return err
	}
	if err := os.MkdirAll(*data, 0o755); err != nil {
		return err
	}
	if s.refunds, err = openJournal(*data, "refunds.jsonl"); err != nil {
		return err
	}
	defer s.refunds.Close()
	if s.replies, err = openJournal(*data, "replies.jsonl"); err != nil {
		return err
	}
	defer s.replies.Close()

	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "listening on http://%s\n", listener.Addr())
	return serve(ctx, listener, s.handler())
}

// parse reads the flags; asked for help, it prints that to help and returns
// [flag.ErrHelp]. Other errors are left to the caller to print, once.
func parse(flags *flag.FlagSet, args []string, help io.Writer) error {
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(help)
		flags.Usage()
	}
	return err
}

// drainTimeout bounds how long running requests may take once ctx ended.
const drainTimeout = 5 * time.Second

// serve serves h on l until ctx ends, then lets running requests finish.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		return err
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
