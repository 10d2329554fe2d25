package remoteconsensus_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/consensus"
	"creto.dev/consensus/consensustest"
	"creto.dev/consensus/localconsensus"
	"creto.dev/consensus/remoteconsensus"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
	consensusv1 "creto.dev/internal/gen/creto/consensus/v1"
	"creto.dev/internal/wire"
	"creto.dev/internal/wire/wiretest"
)

// patience is for machines that are busy with other tests.
const patience = 10 * time.Second

func serving(c consensus.Clock) func(grpc.ServiceRegistrar) {
	return func(s grpc.ServiceRegistrar) { remoteconsensus.Register(s, c, nil) }
}

var wires = map[string]func(testing.TB, func(grpc.ServiceRegistrar)) *grpc.ClientConn{
	"in memory": wiretest.InMemory, "over TLS": wiretest.OverTLS,
}

func TestClock(t *testing.T) {
	for name, connect := range wires {
		t.Run(name, func(t *testing.T) {
			d := dbtest.Open(t)
			for variant, wrap := range map[string]func(*consensus.Guard) consensus.Clock{
				"alone": func(g *consensus.Guard) consensus.Clock { return g },
				"with a fallback": func(g *consensus.Guard) consensus.Clock {
					return consensus.NewFallback(g, consensus.FallbackConfig{Node: "client", Local: true, Policy: call.Policy{Timeout: patience}})
				},
			} {
				t.Run(variant, func(t *testing.T) {
					consensustest.Run(t, func(t *testing.T) consensus.Clock {
						c, err := localconsensus.Open(t.Context(), d, "server")
						if err != nil {
							t.Fatal(err)
						}
						return wrap(remoteconsensus.New(connect(t, serving(c)), call.Policy{Timeout: patience}))
					})
				})
			}
		})
	}
}

// gate is a clock that counts questions, and holds each until it is let through.
type gate struct {
	consensustest.Manual
	mu    sync.Mutex // guards sizes
	sizes []int
	came  chan int
	pass  chan struct{}
}

func (g *gate) Stamps(ctx context.Context, n int) ([]creto.Timestamp, error) {
	if err := consensus.CheckBatch(n); err != nil {
		return nil, err
	}
	g.mu.Lock()
	g.sizes = append(g.sizes, n)
	g.mu.Unlock()
	var stamps []creto.Timestamp
	for range n {
		s, err := g.Manual.Now(ctx)
		if err != nil {
			return nil, err
		}
		stamps = append(stamps, s)
	}
	g.came <- n
	select {
	case <-g.pass:
		return stamps, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// One question is under way at a time, and asks for everybody who waits; who comes
// while it is under way gets no stamp of it, for those were made before.
func TestBatches(t *testing.T) {
	g := &gate{came: make(chan int, 100), pass: make(chan struct{})}
	c := remoteconsensus.New(wiretest.InMemory(t, serving(g)), call.Policy{Timeout: patience})
	results := make(chan creto.Timestamp, 100)
	ask := func() {
		s, err := c.Now(t.Context())
		if err != nil {
			t.Errorf("Now = %v", err)
		}
		results <- s
	}
	go ask()
	if n := <-g.came; n != 1 {
		t.Fatalf("the first question is for %d", n)
	}
	var started sync.WaitGroup
	for range 50 {
		started.Go(func() { go ask() })
	}
	started.Wait()
	// What the server gave out so far; those who came later must get more.
	marker, err := g.Manual.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g.pass <- struct{}{}
	if s := <-results; creto.Order(s, marker) >= 0 {
		t.Errorf("the first answer %+v was made late", s)
	}
	for got := 0; got < 50; {
		n := <-g.came
		g.pass <- struct{}{}
		got += n
		for range n {
			if s := <-results; creto.Order(marker, s) >= 0 {
				t.Errorf("%+v was made before its caller asked, at %+v", s, marker)
			}
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.sizes) > 10 {
		t.Errorf("51 callers were asked for in %d questions: %v", len(g.sizes), g.sizes)
	}
}

// Who leaves hinders nobody.
func TestCallerLeaves(t *testing.T) {
	g := &gate{came: make(chan int, 100), pass: make(chan struct{})}
	c := remoteconsensus.New(wiretest.InMemory(t, serving(g)), call.Policy{Timeout: patience})
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { _, err := c.Now(ctx); left <- err }()
	<-g.came
	cancel()
	if err := <-left; !errors.Is(err, fault.Canceled) {
		t.Errorf("Now of who left = %v, want Canceled", err)
	}
	go func() { g.pass <- struct{}{}; <-g.came; g.pass <- struct{}{} }()
	if _, err := c.Now(t.Context()); err != nil {
		t.Errorf("Now of who stayed = %v", err)
	}
}

// Only one that leads answers what was passed on.
func TestLeading(t *testing.T) {
	var follower, leader consensustest.Manual
	follower.Fail(true)
	conn := wiretest.InMemory(t, func(s grpc.ServiceRegistrar) { remoteconsensus.Register(s, &follower, &leader) })
	if _, err := remoteconsensus.New(conn, call.Policy{Attempts: 1, Timeout: patience}).Now(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("Now = %v, want ConsensusUnavailable", err)
	}
	forwarder := remoteconsensus.NewForwarder(conn, call.Policy{Attempts: 1, Timeout: patience})
	if _, err := forwarder.Now(t.Context()); err != nil {
		t.Errorf("Now of one that leads = %v", err)
	}
	if err := forwarder.Ping(t.Context()); err != nil {
		t.Errorf("Ping of one that leads = %v", err)
	}
	alone := remoteconsensus.NewForwarder(wiretest.InMemory(t, serving(&leader)), call.Policy{Attempts: 1, Timeout: patience})
	if _, err := alone.Now(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("Now of one without a cluster = %v, want ConsensusUnavailable", err)
	}
}

// liar answers what nobody asked.
type liar struct {
	consensusv1.UnimplementedClockServiceServer
	stamps []*consensusv1.Timestamp
}

func (l liar) Stamps(context.Context, *consensusv1.StampsRequest) (*consensusv1.StampsResponse, error) {
	return &consensusv1.StampsResponse{Stamps: l.stamps}, nil
}

func (liar) Register(context.Context, *consensusv1.RegisterRequest) (*consensusv1.RegisterResponse, error) {
	return &consensusv1.RegisterResponse{}, nil
}

func (liar) OrderEvents(context.Context, *consensusv1.OrderEventsRequest) (*consensusv1.OrderEventsResponse, error) {
	return &consensusv1.OrderEventsResponse{Events: []*consensusv1.OrderedEvent{{Id: []byte("short")}}}, nil
}

func TestRefusesLies(t *testing.T) {
	local := &consensusv1.Timestamp{Logical: 1 << 41, Source: "local", Node: "n"}
	for name, stamps := range map[string][]*consensusv1.Timestamp{"none": nil, "empty": {nil}, "two": {local, local}, "local": {local}} {
		c := remoteconsensus.New(wiretest.InMemory(t, func(s grpc.ServiceRegistrar) { consensusv1.RegisterClockServiceServer(s, liar{stamps: stamps}) }), call.Policy{Timeout: patience})
		if s, err := c.Now(t.Context()); !errors.Is(err, fault.ConsensusOrderingConflict) {
			t.Errorf("%s: Now = %+v, %v; want ConsensusOrderingConflict", name, s, err)
		}
		if s, err := c.Register(t.Context(), creto.DigestOf(nil)); !errors.Is(err, fault.ConsensusOrderingConflict) {
			t.Errorf("%s: Register = %+v, %v; want ConsensusOrderingConflict", name, s, err)
		}
		if s, err := c.OrderEvents(t.Context(), []consensus.EventID{creto.DigestOf(nil)}); !errors.Is(err, fault.ConsensusOrderingConflict) {
			t.Errorf("%s: OrderEvents = %+v, %v; want ConsensusOrderingConflict", name, s, err)
		}
	}
}

// A server refuses names that are no digests.
func TestServerRefuses(t *testing.T) {
	rpc := consensusv1.NewClockServiceClient(wiretest.InMemory(t, serving(&consensustest.Manual{})))
	if _, err := rpc.Register(t.Context(), &consensusv1.RegisterRequest{Id: []byte("x")}); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("Register = %v, want InvalidArgument", err)
	}
	if _, err := rpc.OrderEvents(t.Context(), &consensusv1.OrderEventsRequest{Ids: [][]byte{nil}}); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("OrderEvents = %v, want InvalidArgument", err)
	}
	if _, err := rpc.Stamps(t.Context(), &consensusv1.StampsRequest{Count: 1 << 31}); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("Stamps of very many = %v, want InvalidArgument", err)
	}
}

// Nobody there, and nobody who answers in time, have the contract's codes.
func TestNobody(t *testing.T) {
	down := remoteconsensus.New(wiretest.Dial(t, wire.Config{Address: "127.0.0.1:1"}), call.Policy{Attempts: 1, Timeout: patience})
	if _, err := down.Now(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) || fault.CodeOf(err) != fault.ConsensusUnavailable {
		t.Errorf("Now of nobody = %v, want ConsensusUnavailable", err)
	}
	g := &gate{came: make(chan int, 100), pass: make(chan struct{})}
	slow := remoteconsensus.New(wiretest.InMemory(t, serving(g)), call.Policy{Attempts: 1, Timeout: 50 * time.Millisecond})
	if _, err := slow.Now(t.Context()); fault.CodeOf(err) != fault.ConsensusTimeout {
		t.Errorf("Now of one that is slow = %v, want ConsensusTimeout", err)
	}
}

func BenchmarkNow(b *testing.B) {
	c := remoteconsensus.New(wiretest.OverTLS(b, serving(&consensustest.Manual{})), call.Policy{Timeout: patience})
	b.ReportAllocs()
	b.Run("one caller", func(b *testing.B) {
		for b.Loop() {
			if _, err := c.Now(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("100 callers", func(b *testing.B) {
		b.SetParallelism(50)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, err := c.Now(b.Context()); err != nil {
					b.Error(err)
				}
			}
		})
	})
}
