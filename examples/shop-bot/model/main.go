// Command shop-model stands in for a language model in the shop-bot example.
// It speaks OpenAI's chat-completions protocol, streaming and not, and checks
// requests as strictly as the vendor does, so that an unmodified SDK can tell
// no difference; but it is a stub and says so, on its first line, in every
// answer's model and system_fingerprint, and as owned_by in the list of models.
// Behind the protocol is a page of rules (see [plan]) that behave like a
// helpful and gullible model: it also obeys orders that a mail smuggles in.
//
// Its answers are a function of the conversation. It has no tokenizer: the
// usage that it reports is the number of characters divided by four, rounded
// up.
//
// The first line of standard output is the address, as in
// "listening on http://127.0.0.1:41873/v1 (a rule-based stub, not a language model)".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "shop-model:", err)
		os.Exit(1)
	}
}

// run serves the stub until ctx ends.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("shop-model", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:0", "listen on `host:port`; port 0 picks a free one")
	key := flags.String("key", "", "require this `key` as bearer; empty accepts any and none")
	aliases := flags.String("alias", "gpt-4o-mini", "answer to these model `names`, separated by commas, besides "+stubModel)
	if err := parse(flags, args, stdout); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	a := &api{key: *key, models: []string{stubModel}, now: time.Now}
	if *aliases != "" {
		a.models = append(a.models, strings.Split(*aliases, ",")...)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "listening on http://%s/v1 (a rule-based stub, not a language model)\n", listener.Addr())
	return serve(ctx, listener, a.handler())
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
