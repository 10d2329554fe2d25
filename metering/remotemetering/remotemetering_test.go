package remotemetering_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/audit/audittest"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/authz"
	"creto.dev/call"
	"creto.dev/consensus"
	"creto.dev/consensus/consensustest"
	"creto.dev/consensus/localconsensus"
	"creto.dev/fault"
	"creto.dev/gate/gatetest"
	"creto.dev/internal/db/dbtest"
	meteringv1 "creto.dev/internal/gen/creto/metering/v1"
	"creto.dev/internal/journal"
	"creto.dev/internal/wire"
	"creto.dev/internal/wire/wiretest"
	"creto.dev/metering"
	"creto.dev/metering/meteringtest"
	"creto.dev/metering/remotemetering"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// patience is for machines that are busy with other tests.
const patience = 10 * time.Second

var at = time.Date(2026, 11, 22, 9, 30, 0, 0, time.UTC)

// owner is a node's quota with a limit of 1000 model calls an hour of chain's agent.
func owner(t testing.TB, clock consensus.Clock, chain nhi.VerifiedChain) *metering.Quota {
	t.Helper()
	dir := t.TempDir()
	d := dbtest.OpenIn(t, dir)
	p := localpqc.New()
	signer, err := audittest.Signer(p, "test.local/log")
	if err != nil {
		t.Fatal(err)
	}
	log, err := localaudit.Open(t.Context(), localaudit.Config{Intake: intake.Config{Journal: journal.Config{Dir: dir, RingBytes: 4 << 20}}}, d, p, clock, signer, pqc.NewSymmetricKey(pqc.AES256GCM, make([]byte, pqc.SymmetricKeySize)), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(log.Close(), d.Close()); err != nil {
			t.Error(err)
		}
	})
	q, err := metering.OpenQuota(t.Context(), d, clock, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.SetLimit(t.Context(), subject(chain), metering.Limit{Amount: 1000, Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	return q
}

func subject(chain nhi.VerifiedChain) metering.Subject {
	return metering.Subject{Agent: chain.Agent(), Action: creto.CallModel}
}

func manual() *consensustest.Manual {
	clock := &consensustest.Manual{}
	clock.Set(at)
	return clock
}

func serving(l metering.Lender) func(grpc.ServiceRegistrar) {
	return func(s grpc.ServiceRegistrar) { remotemetering.Register(s, l) }
}

var wires = map[string]func(testing.TB, func(grpc.ServiceRegistrar)) *grpc.ClientConn{
	"in memory": wiretest.InMemory, "over TLS": wiretest.OverTLS,
}

// A lender elsewhere is one, and who borrows from it is a meter.
func TestWire(t *testing.T) {
	chain := nhitest.Chain(t, localpqc.New(), at, nhi.Everything(), "alice", "bot")
	for name, connect := range wires {
		t.Run(name, func(t *testing.T) {
			rate := metering.Rate{Count: 10, Period: time.Second, Burst: 20}
			meteringtest.RunLender(t, func(t *testing.T) meteringtest.Lender {
				clock := manual()
				q := owner(t, clock, chain)
				if err := q.SetRate(t.Context(), subject(chain), rate); err != nil {
					t.Fatal(err)
				}
				return meteringtest.Lender{
					Lender: remotemetering.New(connect(t, serving(q)), call.Policy{Timeout: patience, Attempts: 1}),
					Agent:  chain.Agent(), Human: chain.Human(), Limit: 1000, Rate: rate, Advance: clock.Advance, Fail: clock.Fail,
				}
			})
			gatetest.RunMeter(t, func(t *testing.T) gatetest.Meter {
				clock := manual()
				b := metering.NewBorrower(remotemetering.New(connect(t, serving(owner(t, clock, chain))), call.Policy{Timeout: patience}), clock, "b")
				return gatetest.Meter{Extension: b, Meter: b, Chain: chain, Limit: 1000}
			})
		})
	}
}

// liar answers what nobody asked.
type liar struct {
	meteringv1.UnimplementedLenderServiceServer
	terms *meteringv1.TermsResponse
	lease *meteringv1.LeaseResponse
}

func (l liar) Terms(context.Context, *meteringv1.TermsRequest) (*meteringv1.TermsResponse, error) {
	return l.terms, nil
}

func (l liar) Lease(context.Context, *meteringv1.LeaseRequest) (*meteringv1.LeaseResponse, error) {
	return l.lease, nil
}

// A lender that tells nonsense is believed nothing: what it would limit is denied.
func TestRefusesLies(t *testing.T) {
	chain := nhitest.Chain(t, localpqc.New(), at, nhi.Everything(), "alice", "bot")
	good := &meteringv1.Subject{Agent: chain.Agent().String(), Action: creto.CallModel}
	quota := func(s *meteringv1.Subject, amount, window int64) *meteringv1.TermsResponse {
		return &meteringv1.TermsResponse{Quotas: []*meteringv1.Quota{{Subject: s, Amount: amount, WindowNs: window}}}
	}
	hour := int64(time.Hour)
	lent := &meteringv1.LeaseResponse{StartNs: at.UnixNano(), Held: 10, TtlNs: hour / 60, Limit: 10, Used: 10, ResetNs: hour}
	for name, test := range map[string]liar{
		"of nobody":           {terms: quota(nil, 1, hour), lease: lent},
		"of another":          {terms: quota(&meteringv1.Subject{Agent: "spiffe://test.local/default/agent/other", Action: "*"}, 1, hour), lease: lent},
		"for another":         {terms: quota(&meteringv1.Subject{Agent: good.GetAgent(), Human: "spiffe://test.local/default/human/eve", Action: "*"}, 1, hour), lease: lent},
		"no window":           {terms: quota(good, 1, 0), lease: lent},
		"a negative amount":   {terms: quota(good, -1, hour), lease: lent},
		"an endless rate":     {terms: &meteringv1.TermsResponse{Rates: []*meteringv1.Rate{{Subject: good, Count: 1 << 62, PeriodNs: 1, Burst: 1}}}, lease: lent},
		"too many":            {terms: &meteringv1.TermsResponse{Quotas: make([]*meteringv1.Quota, 100)}, lease: lent},
		"a lease for ever":    {terms: quota(good, 1, hour), lease: &meteringv1.LeaseResponse{Held: 10, TtlNs: hour * 24}},
		"a negative lease":    {terms: quota(good, 1, hour), lease: &meteringv1.LeaseResponse{Held: -10, TtlNs: hour / 60}},
		"a lease in the past": {terms: quota(good, 1, hour), lease: &meteringv1.LeaseResponse{Held: 10, TtlNs: -1}},
	} {
		t.Run(name, func(t *testing.T) {
			conn := wiretest.InMemory(t, func(s grpc.ServiceRegistrar) { meteringv1.RegisterLenderServiceServer(s, test) })
			b := metering.NewBorrower(remotemetering.New(conn, call.Policy{Timeout: patience}), manual(), "b")
			bound, err := b.Bind(t.Context(), chain)
			if err == nil {
				_, _, err = bound.Evaluate(t.Context(), authz.Request{Action: creto.CallModel}, true)
			}
			if !errors.Is(err, fault.AuthzUnavailable) {
				t.Errorf("Evaluate = %v, want AuthzUnavailable", err)
			}
		})
	}
}

// Nobody there, and what cannot be read, have the contract's codes.
func TestNobody(t *testing.T) {
	chain := nhitest.Chain(t, localpqc.New(), at, nhi.Everything(), "alice", "bot")
	down := remotemetering.New(wiretest.Dial(t, wire.Config{Address: "127.0.0.1:1"}), call.Policy{Attempts: 1, Timeout: patience})
	if err := down.Ping(t.Context()); fault.CodeOf(err) != fault.AuthzUnavailable {
		t.Errorf("Ping of nobody = %v, want AuthzUnavailable", err)
	}
	b := metering.NewBorrower(down, manual(), "b")
	if _, err := b.Bind(t.Context(), chain); !errors.Is(err, fault.AuthzUnavailable) {
		t.Errorf("Bind without a lender = %v, want AuthzUnavailable", err)
	}
	rpc := meteringv1.NewLenderServiceClient(wiretest.InMemory(t, serving(owner(t, manual(), chain))))
	for name, in := range map[string]*meteringv1.LeaseRequest{
		"no subject": {Borrower: "b", WindowNs: int64(time.Hour)}, "no id": {Borrower: "b", Subject: &meteringv1.Subject{Agent: "bot", Action: "*"}},
		"no borrower": {Subject: &meteringv1.Subject{Agent: chain.Agent().String(), Action: creto.CallModel}, WindowNs: int64(time.Hour)},
	} {
		if _, err := rpc.Lease(t.Context(), in); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: Lease = %v, want InvalidArgument", name, err)
		}
	}
	if _, err := rpc.Terms(t.Context(), &meteringv1.TermsRequest{Agent: "bot"}); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("Terms = %v, want InvalidArgument", err)
	}
}

// childEnv names the address that a borrower in another process uses; see TestKill.
const childEnv = "CRETO_TEST_LENDER"

// TestBorrowingProcess is no test: it is the process that TestKill kills. It says how
// many it was granted after each.
func TestBorrowingProcess(t *testing.T) {
	address := os.Getenv(childEnv)
	if address == "" {
		t.Skip("it is run by TestKill")
	}
	d := dbtest.Open(t)
	clock, err := localconsensus.Open(t.Context(), d, "child")
	if err != nil {
		t.Fatal(err)
	}
	conn := wiretest.Dial(t, wire.Config{Address: "unix:" + address})
	b := metering.NewBorrower(remotemetering.New(conn, call.Policy{Timeout: patience}), clock, "child")
	chain := nhitest.Chain(t, localpqc.New(), time.Now(), nhi.Everything(), "alice", "bot")
	bound, err := b.Bind(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; ; n++ {
		held, d, err := bound.Evaluate(t.Context(), authz.Request{Action: creto.CallModel}, true)
		if err != nil {
			t.Fatal(err)
		}
		if d != nil {
			break
		}
		b.Commit(held)
		if _, err := os.Stderr.WriteString("granted " + strconv.Itoa(n) + "\n"); err != nil {
			t.Fatal(err)
		}
	}
}

// A borrower that is killed takes with it no more than it had and did not use, and
// nobody ever gets more than there is.
func TestKill(t *testing.T) {
	if os.Getenv(childEnv) != "" {
		t.Skip("this is the child")
	}
	d := dbtest.Open(t)
	clock, err := localconsensus.Open(t.Context(), d, "owner")
	if err != nil {
		t.Fatal(err)
	}
	chain := nhitest.Chain(t, localpqc.New(), time.Now(), nhi.Everything(), "alice", "bot")
	q := owner(t, clock, chain)
	// A window that does not end meanwhile.
	_, err = q.ClearLimit(t.Context(), subject(chain), 0)
	if err := errors.Join(err, q.SetLimit(t.Context(), subject(chain), metering.Limit{Amount: 1000, Window: 100_000 * time.Hour})); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	wiretest.Serve(t, l, wire.ServerConfig{}, serving(q))
	granted := 0
	for range 3 {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBorrowingProcess$")
		child.Env = append(os.Environ(), childEnv+"="+socket)
		said, err := child.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		buffer := make([]byte, 256)
		for strings.Count(text.String(), "\n") < 30 {
			n, err := said.Read(buffer)
			if err != nil {
				t.Fatalf("the child ended: %v\n%s", err, text.String())
			}
			text.Write(buffer[:n])
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for { // what it said before it died
			n, err := said.Read(buffer)
			text.Write(buffer[:n])
			if err != nil {
				break
			}
		}
		_ = child.Wait() // it was killed
		granted += strings.Count(text.String(), "\n")
	}
	limits, _, err := q.Limits(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if limits[0].Used < int64(granted) || limits[0].Used > 1000 {
		t.Errorf("the dead were granted %d, and count as %d", granted, limits[0].Used)
	}
	b := metering.NewBorrower(remotemetering.New(wiretest.Dial(t, wire.Config{Address: "unix:" + socket}), call.Policy{Timeout: patience}), clock, "b")
	bound, err := b.Bind(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	last := int64(0)
	for {
		held, d, err := bound.Evaluate(t.Context(), authz.Request{Action: creto.CallModel}, true)
		if err != nil {
			t.Fatal(err)
		}
		if d != nil {
			break
		}
		b.Commit(held)
		last++
	}
	// What a dead one had just asked for, and was never told of, may have come back.
	after, _, err := q.Limits(t.Context())
	if err != nil || after[0].Used != 1000 {
		t.Errorf("Limits = %+v, %v; want everything used", after, err)
	}
	if last < 1000-limits[0].Used || last+int64(granted) > 1000 || granted == 0 {
		t.Errorf("the last one was granted %d, the dead %d of the %d that they were lent", last, granted, limits[0].Used)
	}
}
