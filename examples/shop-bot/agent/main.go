// Command shop-agent is the support agent of Kiln & Leaf, a pottery shop that
// does not exist. It reads a mailbox and lets a language model answer each mail
// with the help of a few tools, which are calls to the shop's HTTP API.
//
// It is an ordinary program written with OpenAI's official SDK: it knows
// nothing of Creto, asks nobody for permission, and does what the model says.
// The SDK's usual environment (OPENAI_BASE_URL, OPENAI_API_KEY) says where the
// model is; HTTP_PROXY is honoured as in any Go program.
//
// Usage:
//
//	shop-agent [-model NAME] [-mailbox DIR] [-shop URL]     work through the mailbox
//	shop-agent refund -order ID -amount N [-reason TEXT] [-shop URL]     send one refund
//	shop-agent get [-direct] URL                            fetch a page, print its status
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/openai/openai-go/v3"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "shop-agent:", err)
		os.Exit(1)
	}
}

// run chooses the command.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case "refund":
			return runRefund(ctx, args[1:], stdout)
		case "get":
			return runGet(ctx, args[1:], stdout)
		}
	}
	return runMailbox(ctx, args, stdout)
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

// defaultShop is where the shop's API is, unless -shop says otherwise.
const defaultShop = "http://shop.test"

// runMailbox works through the mailbox.
func runMailbox(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("shop-agent", flag.ContinueOnError)
	model := flags.String("model", "gpt-4o-mini", "use the model `name`")
	mailbox := flags.String("mailbox", "mailbox", "answer the mails in `dir`/*.eml")
	shopURL := flags.String("shop", defaultShop, "the shop's API is at `url`")
	if err := parse(flags, args, stdout); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unknown command %q; there are refund and get", flags.Arg(0))
	}
	mails, err := readMailbox(*mailbox)
	if err != nil {
		return err
	}
	a := &agent{
		client: openai.NewClient(),
		model:  *model,
		tools:  tools(shop{base: *shopURL, client: http.DefaultClient}),
		out:    stdout,
	}
	for _, m := range mails {
		if err := a.handle(ctx, m); err != nil {
			return fmt.Errorf("%s: %w", m.ID, err)
		}
	}
	fmt.Fprintf(stdout, "%d mails, %d model calls, %d tokens, %d tool calls (%d failed)\n",
		len(mails), a.modelCalls, a.tokens, a.toolCalls, a.failedCalls)
	return nil
}

// runRefund sends one refund, exactly as the refund tool does.
func runRefund(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("shop-agent refund", flag.ContinueOnError)
	order := flags.String("order", "", "refund part of the order `id`")
	amount := flags.String("amount", "", "refund this `sum`, as in 59.00")
	reason := flags.String("reason", "The goods arrived damaged.", "give this `text` as reason")
	shopURL := flags.String("shop", defaultShop, "the shop's API is at `url`")
	if err := parse(flags, args, stdout); err != nil {
		return err
	}
	if *order == "" || *amount == "" || flags.NArg() > 0 {
		return errors.New("refund needs -order ID and -amount N, and no other arguments")
	}
	s := shop{base: *shopURL, client: http.DefaultClient}
	status, body, err := s.refund(ctx, refundArgs{Order: *order, Amount: json.Number(*amount), Reason: *reason})
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s\n%s\n", status, strings.TrimSpace(body))
	if !status.ok() {
		return fmt.Errorf("the refund was refused: %s", status)
	}
	return nil
}

// getTimeout bounds a get, so that an unreachable network is an answer.
const getTimeout = 10 * time.Second

// runGet fetches a page and prints its status. With -direct it ignores the
// proxy that the environment names and connects by itself.
func runGet(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("shop-agent get", flag.ContinueOnError)
	direct := flags.Bool("direct", false, "connect without the environment's proxy")
	if err := parse(flags, args, stdout); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("get needs exactly one URL")
	}
	client := http.DefaultClient
	if *direct {
		client = &http.Client{Transport: &http.Transport{}}
	}
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	s := shop{client: client}
	status, _, err := s.do(ctx, http.MethodGet, flags.Arg(0), "", nil)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "GET %s: %s\n", flags.Arg(0), status)
	if !status.ok() {
		return fmt.Errorf("GET %s was refused: %s", flags.Arg(0), status)
	}
	return nil
}
