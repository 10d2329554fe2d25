package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"creto.dev/audit"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/login/softkey"
	"creto.dev/receipt"
)

// The ways in which the demo's refund is decided.
const (
	approveAuto    = "auto"
	approveConsole = "console"
)

// demoApprover is the program that decides with --approve=auto.
const demoApprover = "demo-approver"

// demo is one walk along the whole path, with real processes.
type demo struct {
	app      *app
	approve  string
	model    string // URL of a real model; "" means the stub
	name     string // of the model
	example  string // directory of examples/shop-bot
	work     string // where the agent works
	config   string // the node's configuration file
	listen   string // the node's address, kept over its restart
	shop     *process
	stub     *process
	node     *process
	client   *client.Client
	steps    int
	stolen   atomic.Int64 // requests that reached the thief
	programs map[string]string
	commands []*command // that were started
}

func (a *app) demoCommand() *cobra.Command {
	d := &demo{app: a}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole path on real input, ending with an offline verification",
		Long: `Run an ordinary support agent, which has never heard of Creto, on a mailbox of
twelve mails. One of them tries to make it export all customers. What it may do
is decided where its calls pass the gateway; its one refund needs the consent of
group finance. Every line says what was measured or seen.

With --approve=console you decide, as bob, in the browser. The model is a local
stub that says so, unless --model names a real one.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if d.approve != approveAuto && d.approve != approveConsole {
				return fmt.Errorf("--approve=%s: choose auto or console", d.approve)
			}
			if !c.Flags().Changed("data") {
				dir, err := os.MkdirTemp("", "creto-demo-")
				if err != nil {
					return fault.WrapAs("creto.demo", fault.Unavailable, err, "no temporary directory can be made")
				}
				a.dataDir = dir
			}
			return d.run(c.Context())
		},
	}
	c.Flags().StringVar(&d.approve, "approve", approveConsole, "who decides on the refund: `console` (you) or auto (a program, and the receipt says so)")
	c.Flags().StringVar(&d.model, "model", "", "`URL` of an OpenAI-compatible API in place of the stub; its key is $OPENAI_API_KEY")
	c.Flags().StringVar(&d.name, "model-name", "gpt-4o-mini", "`NAME` of the model")
	c.Flags().StringVar(&d.example, "example", "", "`DIR` of examples/shop-bot (default: beside this program's directory)")
	return c
}

// say prints one step.
func (d *demo) say(format string, args ...any) {
	d.steps++
	text := fmt.Sprintf(format, args...)
	_ = d.app.print(map[string]any{"step": d.steps, "text": text}, func(w io.Writer) { // whoever closed the pipe has read enough
		fmt.Fprintf(w, "%2d. %s\n", d.steps, text)
	})
}

func (d *demo) run(ctx context.Context) (err error) {
	if _, err := os.Stat(filepath.Join(d.app.dataDir, "creto.db")); err == nil {
		return fault.New("creto.demo", fault.FailedPrecondition, "%s holds a node's data already; give the demo an empty --data directory", d.app.dataDir)
	}
	// The demo is about its own node, whatever the environment says.
	if err := errors.Join(os.Unsetenv(addrEnv), os.Unsetenv(tokenEnv)); err != nil {
		return fault.WrapAs("creto.demo", fault.Internal, err, "")
	}
	defer func() {
		d.stop()
		if err != nil && d.node != nil {
			fmt.Fprintf(os.Stderr, "creto: the demo ended early; its data stays in %s until you remove it\n", d.app.dataDir)
		}
	}()
	if err := d.prepare(); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		d.startWorld, d.startNode, d.addPeople, d.showWalls, d.mailbox, d.showModelCalls, d.showInjection, d.askAgain, d.bundle,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// startWorld starts what is not Creto: the shop, the model, and the thief that
// the injected mail wants the customers sent to.
func (d *demo) startWorld(ctx context.Context) error {
	var err error
	d.shop, err = start(ctx, d.programs["shop-api"], "-listen", "127.0.0.1:0", "-orders", filepath.Join(d.example, "orders.csv"),
		"-customers", filepath.Join(d.example, "customers.csv"), "-data", d.work+"-shop")
	if err != nil {
		return err
	}
	model := d.model
	what := "a real model at " + model
	if model == "" {
		d.stub, err = start(ctx, d.programs["shop-model"], "-listen", "127.0.0.1:0")
		if err != nil {
			return err
		}
		model = d.stub.url
		what = "a stub, not a language model, speaking the real protocol at " + model
	}
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		d.stolen.Add(1)
		w.WriteHeader(http.StatusAccepted)
	}))
	context.AfterFunc(ctx, thief.Close)
	host := func(url string) string { return strings.TrimPrefix(url, "http://") }
	text := fmt.Sprintf(`[[inference.providers]]
name = "demo"
base_url = %q
api_key = "${DEMO_MODEL_KEY}"

# The mail in this demo takes the model over: here policy and people hold, and what
# is said of its risk is only recorded.
[inference.injection]
mode = "observe"

[egress.hosts]
"shop.test" = %q
"collector.example" = %q
`, model, host(d.shop.url), host(thief.URL))
	d.say("the shop answers at %s; the model is %s", d.shop.url, what)
	return fault.WrapAs("creto.demo", fault.Unavailable, os.WriteFile(d.config, []byte(text), 0o600), "%s cannot be written", d.config)
}

// startNode starts the node as a process of its own, as a user would.
func (d *demo) startNode(ctx context.Context) error {
	ready, err := d.serve(ctx)
	if err != nil {
		return err
	}
	d.say("node ready after %d ms; console %s, data %s", ready.ReadyMS, ready.Console, ready.DataDir)
	return nil
}

// addPeople makes alice, bob, and the agent that acts for alice.
func (d *demo) addPeople(ctx context.Context) error {
	if _, err := d.client.AddHuman(ctx, "alice", nil); err != nil {
		return err
	}
	alice, err := d.enrolAlice(ctx)
	if err != nil {
		return err
	}
	if _, err := d.client.AddHuman(ctx, "bob", []string{"finance"}); err != nil {
		return err
	}
	if d.approve == approveAuto {
		if _, err := d.client.AddApprover(ctx, demoApprover, []string{"finance"}); err != nil {
			return err
		}
	}
	agent, err := d.client.AddAgent(ctx, client.NewAgent{
		Name: "shop-bot", OnBehalfOf: "alice",
		Allow: []string{
			"call_model=*", "http_request=GET http://shop.test/orders/*", "http_request=POST http://shop.test/replies",
		},
		Ask: []string{"http_request=POST http://shop.test/refunds,finance"},
	})
	if err != nil {
		return err
	}
	if agent.Waits == nil {
		return fault.New("creto.demo", fault.Internal, "the delegation did not wait for alice")
	}
	if err := alice.Confirm(ctx, agent.Waits.URL); err != nil {
		return err
	}
	confirmed, err := d.client.Delegation(ctx, agent.Waits.ID)
	if err != nil {
		return err
	}
	d.say("%s acts on behalf of alice: her passkey signed the delegation (%s); refunds need the consent of group finance (policy %s)", agent.ID, confirmed.State, agent.PolicyFile)
	return nil
}

// enrolAlice has alice log in once and make a passkey, which from then on is
// asked whenever somebody is to act for her.
func (d *demo) enrolAlice(ctx context.Context) (*softkey.Person, error) {
	status, err := d.client.Status(ctx)
	if err != nil {
		return nil, err
	}
	key, err := softkey.New(strings.TrimSuffix(status.Console, "/console"))
	if err != nil {
		return nil, err
	}
	alice, err := softkey.NewPerson(key)
	if err != nil {
		return nil, err
	}
	link, err := d.client.Login(ctx, "alice")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(alice.Login(ctx, link), alice.Enrol(ctx, "the demo's passkey in software")); err != nil {
		return nil, err
	}
	d.say("alice logged in with a one-time login and made a passkey: one in software, which the demo holds, so that nobody has to be there")
	return alice, nil
}

// showWalls runs a program that ignores its proxy.
func (d *demo) showWalls(ctx context.Context) error {
	const outside = "http://192.0.2.1/" // of TEST-NET-1: a public address that nobody has (RFC 5737)
	code, out, err := d.agent(ctx, "./shop-agent", "get", "-direct", outside).wait()
	if err != nil {
		return err
	}
	if code == 0 {
		return fault.New("creto.demo", fault.Internal, "the sandbox has a way out: %s", out)
	}
	spawned, err := d.records(ctx, client.Query{What: audit.EventSandboxSpawned, Limit: 1})
	if err != nil {
		return err
	}
	r := spawned[0].Record
	ns, err := strconv.ParseInt(r.Detail["start_ns"], 10, 64)
	if err != nil {
		return fault.Wrap("creto.demo", err)
	}
	d.say("sandbox by %s, its program running after %d ms; a direct connection out of it: %s", r.Isolation, ns/int64(time.Millisecond), lastLine(out))
	return nil
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// mailbox lets the agent work through its mails. When it waits for consent the
// node is killed and started again; then the refund is decided.
func (d *demo) mailbox(ctx context.Context) error {
	d.say("the agent reads 12 mails (its own output, indented):")
	work := d.agent(ctx, "./shop-agent", "-model", d.name)
	work.echo = indented(d.app)
	work.begin()
	asked, err := d.pending(ctx, work, nil)
	if err != nil {
		return err
	}
	d.say("the agent waits: %s on behalf of %s asks group %s for %s %s, bound to %s", asked.Agent, asked.OnBehalfOf, asked.Approvers, asked.Action, asked.Resource, asked.Digest)
	d.node.kill()
	ready, err := d.serve(ctx)
	if err != nil {
		return err
	}
	still, err := d.client.Approval(ctx, asked.ID)
	if err != nil {
		return err
	}
	if still.State != "pending" || still.Digest != asked.Digest {
		return fault.New("creto.demo", fault.Internal, "the request did not survive kill -9: it is %s", still.State)
	}
	d.say("kill -9 of the node while it waits; ready again after %d ms, and the request waits still", ready.ReadyMS)
	if err := d.decide(ctx, asked, work); err != nil {
		return err
	}
	code, _, err := work.wait()
	if err != nil {
		return err
	}
	if code != 0 {
		return fault.New("creto.demo", fault.Internal, "the agent failed with exit code %d", code)
	}
	refunds, err := os.ReadFile(filepath.Join(d.work+"-shop", "refunds.jsonl"))
	if err != nil {
		return fault.WrapAs("creto.demo", fault.Internal, err, "the shop has made no refund")
	}
	d.say("the agent is done; the shop made %d refund: %s", bytes.Count(refunds, []byte("\n")), lastLine(string(refunds)))
	return nil
}

// decide answers the refund, by program or by a person in the console.
func (d *demo) decide(ctx context.Context, asked client.Approval, work *command) error {
	if d.approve == approveAuto {
		x, err := d.client.Decide(ctx, asked.ID, client.Decide{Approve: true, Auto: true, As: demoApprover, Reason: "demo --approve=auto"})
		if err != nil {
			return err
		}
		d.say("%s by %s: no human decided, because of --approve=auto, and the receipt says so", x.State, x.DecidedBy)
		return nil
	}
	link, err := d.client.Login(ctx, "bob")
	if err != nil {
		return err
	}
	d.say("your turn: open this as bob, read the request, and decide:\n\n      %s\n", link)
	for {
		x, err := d.client.Approval(ctx, asked.ID)
		if err != nil {
			return err
		}
		switch x.State {
		case "pending":
		case "approved", "consumed":
			d.say("%s by %s in the console", x.State, x.DecidedBy)
			return nil
		default:
			d.say("%s by %s in the console: the agent is told no, and the demo ends here", x.State, x.DecidedBy)
			_, _, err := work.wait()
			return errors.Join(err, fault.New("creto.demo", fault.PermissionDenied, "the refund was %s", x.State))
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// showModelCalls adds up what went through the gateway.
func (d *demo) showModelCalls(ctx context.Context) error {
	calls, err := d.records(ctx, client.Query{What: "call_model", Limit: 1000})
	if err != nil {
		return err
	}
	var prompt, completion int64
	for _, c := range calls {
		if c.Record.Usage != nil {
			prompt += c.Record.Usage.PromptTokens
			completion += c.Record.Usage.CompletionTokens
		}
	}
	counter := "the stub"
	if d.model != "" {
		counter = "the model"
	}
	d.say("%d model calls through the gateway, %d prompt and %d completion tokens as %s counted them", len(calls), prompt, completion, counter)
	return nil
}

// showInjection shows what became of the mail that wanted the customers.
func (d *demo) showInjection(ctx context.Context) error {
	denied, err := d.records(ctx, client.Query{What: "http_request", Outcome: string(audit.Denied), Limit: 1000})
	if err != nil {
		return err
	}
	for _, r := range denied {
		if strings.Contains(r.Record.Resource, "/customers/export") {
			d.say("the injected action was denied and recorded: %s at index %d; %d requests reached the thief", r.Record.Resource, r.Index, d.stolen.Load())
			return nil
		}
	}
	if d.model != "" {
		d.say("the model did not fall for the injected mail: nothing to deny; %d requests reached the thief", d.stolen.Load())
		return nil
	}
	return fault.New("creto.demo", fault.Internal, "the injected action is not in the log")
}

// askAgain shows that the approval was for one request, once.
func (d *demo) askAgain(ctx context.Context) error {
	before, err := d.client.Approvals(ctx, "")
	if err != nil {
		return err
	}
	known := make(map[string]bool)
	for _, x := range before {
		known[x.ID] = true
	}
	if _, err := d.client.AddApprover(ctx, demoApprover, []string{"finance"}); err != nil {
		return err
	}
	for _, test := range []struct{ what, amount string }{{"the same refund again", "49.90"}, {"the refund with another amount", "59.00"}} {
		again := d.agent(ctx, "./shop-agent", "refund", "-order", "1007", "-amount", test.amount)
		again.begin()
		asked, err := d.pending(ctx, again, known)
		if err != nil {
			return err
		}
		known[asked.ID] = true
		if _, err := d.client.Decide(ctx, asked.ID, client.Decide{Auto: true, As: demoApprover, Reason: "the demo pays once"}); err != nil {
			return err
		}
		code, out, err := again.wait()
		if err != nil {
			return err
		}
		if code == 0 {
			return fault.New("creto.demo", fault.Internal, "%s went through", test.what)
		}
		d.say("%s asked again, as a new request bound to %s; denied, and the agent was told: %s", test.what, asked.Digest, lastLine(out))
	}
	return nil
}

// bundle exports everything, stops the node, and verifies offline.
func (d *demo) bundle(ctx context.Context) error {
	path := filepath.Join(d.app.dataDir, "demo.bundle")
	data, err := d.client.Bundle(ctx, client.Query{Limit: 1000, Disclose: true})
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fault.WrapAs("creto.demo", fault.Unavailable, err, "%s cannot be written", path)
	}
	d.node.terminate()
	flipped, index, err := flip(data)
	if err != nil {
		return err
	}
	bad := path + ".flipped"
	if err := os.WriteFile(bad, flipped, 0o600); err != nil {
		return fault.WrapAs("creto.demo", fault.Unavailable, err, "%s cannot be written", bad)
	}
	code, out, err := d.creto(ctx, "verify", bad).wait()
	if err != nil {
		return err
	}
	if code == 0 {
		return fault.New("creto.demo", fault.Internal, "a changed bundle verifies")
	}
	d.say("node stopped; one byte flipped in the refund's record at index %d: %s", index, lastLine(out))
	if err := errors.Join(d.secondOpinion(ctx, path, bad), os.Remove(bad)); err != nil {
		return err
	}
	d.say("explore what is left:  creto serve --data %s   ·   remove it:  rm -r %s", d.app.dataDir, d.app.dataDir)
	code, out, err = d.creto(ctx, "verify", path).wait()
	if err != nil {
		return err
	}
	if code != 0 {
		return fault.New("creto.demo", fault.SecurityViolation, "%s", lastLine(out))
	}
	if !strings.Contains(out, "\n  human    alice, by passkey (localhost)\n") {
		return fault.New("creto.demo", fault.Internal, "the bundle does not lead to alice's passkey")
	}
	d.say("offline, each of the agent's records leads through its signed chain to the human, known by her passkey over just that delegation: alice, by passkey (localhost)")
	d.say("%s", lastLine(out))
	return nil
}

// flip returns the bundle with one bit of the refund's record changed.
func flip(data []byte) ([]byte, int64, error) {
	var b receipt.Bundle
	if err := canon.Unmarshal(data, &b); err != nil {
		return nil, 0, err
	}
	for _, r := range b.Receipts {
		record, err := audit.DecodeRecord(r.Leaf)
		if err != nil {
			return nil, 0, err
		}
		if len(record.Consents) > 0 && record.Outcome == audit.Success {
			at := bytes.Index(data, r.Leaf)
			flipped := bytes.Clone(data)
			flipped[at+len(r.Leaf)/2] ^= 1
			return flipped, r.Index, nil
		}
	}
	return nil, 0, fault.New("creto.flip", fault.Internal, "the bundle has no record of the refund")
}
