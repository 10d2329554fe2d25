package remotenhi_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
	nhiv1 "creto.dev/internal/gen/creto/nhi/v1"
	"creto.dev/internal/wire"
	"creto.dev/internal/wire/wiretest"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/nhi/remotenhi"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

const patience = 20 * time.Second

// local opens an authority of this process.
func local(t testing.TB) (*localnhi.Authority, *consensustest.Manual) {
	t.Helper()
	d := dbtest.Open(t)
	p := localpqc.New()
	kek, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	if err != nil {
		t.Fatal(err)
	}
	clock := &consensustest.Manual{}
	clock.Set(time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC))
	a, err := localnhi.Open(t.Context(), localnhi.Config{TrustDomain: "test.local", Tenant: creto.DefaultTenant}, d, p, clock, kek)
	if err != nil {
		t.Fatal(err)
	}
	return a, clock
}

// listening runs a until the test ends.
func listening(t testing.TB, a *remotenhi.Authority) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// eventually waits until the epoch is want.
func eventually(t testing.TB, a *remotenhi.Authority, want uint64) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		epoch, err := a.Epoch()
		if err == nil && epoch == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("Epoch = %d, %v; want %d", epoch, err, want)
		}
	}
}

func TestAuthority(t *testing.T) {
	for name, connect := range map[string]func(testing.TB, func(grpc.ServiceRegistrar)) *grpc.ClientConn{
		"in memory": wiretest.InMemory, "over TLS": wiretest.OverTLS,
	} {
		t.Run(name, func(t *testing.T) {
			nhitest.Run(t, func(t *testing.T) nhitest.Harness { return harness(t, connect) })
		})
	}
}

func harness(t *testing.T, connect func(testing.TB, func(grpc.ServiceRegistrar)) *grpc.ClientConn) nhitest.Harness {
	t.Helper()
	a, clock := local(t)
	remote := remotenhi.New(connect(t, func(s grpc.ServiceRegistrar) { remotenhi.Register(s, a) }), call.Policy{Timeout: patience})
	listening(t, remote)
	epoch, err := a.Epoch()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, remote, epoch)
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	return nhitest.Harness{
		Authority: remote, Provider: localpqc.New(),
		Human: func(t *testing.T, name string, groups ...string) creto.ID {
			id := a.ID(creto.KindHuman, name)
			must(t, a.AddMember(t.Context(), id, groups...))
			return id
		},
		Delegated: func(t *testing.T, name string, issuer creto.ID, scope nhi.Scope) creto.ID {
			id := a.ID(creto.KindAgent, name)
			must(t, a.AddAgent(t.Context(), id))
			must(t, delegate(t, a, issuer, id, scope))
			return id
		},
		Redelegate: func(t *testing.T, agent, issuer creto.ID, scope nhi.Scope) {
			must(t, delegate(t, a, issuer, agent, scope))
		},
		Token: func(t *testing.T, agent creto.ID, audience string, cnf nhi.Confirmation) string {
			token, _, err := a.IssueToken(t.Context(), agent, localnhi.TokenRequest{Audience: audience, Confirmation: cnf})
			must(t, err)
			return token
		},
		Revoke: func(t *testing.T, id creto.ID) { must(t, a.Revoke(t.Context(), id)) },
		RevokeLink: func(t *testing.T, id creto.ID) {
			links, err := a.DelegationChain(t.Context(), id)
			must(t, err)
			must(t, a.RevokeLink(t.Context(), links[len(links)-1].Digest()))
		},
		RevokeToken: func(t *testing.T, who nhi.Identity) { must(t, a.RevokeToken(t.Context(), who)) },
		Secret: func(t *testing.T, agent creto.ID, name, value string) {
			info := localnhi.SecretInfo{Tenant: agent.Tenant, Name: nhi.SecretRef(name), Owner: a.ID(creto.KindHuman, "alice"), Agents: []creto.ID{agent}}
			_, err := a.SetSecret(t.Context(), info, creto.NewSecret(value))
			must(t, err)
		},
		Now:     func() time.Time { stamp, _ := clock.Now(t.Context()); return stamp.Time() },
		Advance: func(d time.Duration) { clock.Advance(d) },
	}
}

// delegate passes scope on for an hour.
func delegate(t testing.TB, a *localnhi.Authority, issuer, agent creto.ID, scope nhi.Scope) error {
	t.Helper()
	link, err := a.Draft(t.Context(), issuer, agent, nhi.Grant{Scope: scope, TTL: time.Hour, MaxDepth: nhi.DefaultMaxDepth})
	if err != nil {
		return err
	}
	var proof nhi.Proof
	if issuer.Kind == creto.KindHuman {
		proof.Kind = nhi.ProofBootstrap
	}
	_, err = a.Delegate(t.Context(), link, proof)
	return err
}

// fake is an authority of which only the epoch matters.
type fake struct {
	nhi.Authority
	epoch atomic.Uint64
}

func (f *fake) Epoch() (uint64, error) { return f.epoch.Load(), nil }

// Watch tells nothing: what is learned is learned by asking.
func (f *fake) Watch(ctx context.Context, _ func(uint64)) error {
	<-ctx.Done()
	return ctx.Err()
}

// link forwards connections to address until it is stalled, and goes on when it is
// released: nothing that was sent is lost.
type link struct {
	net.Listener
	gate sync.RWMutex // locked while it is stalled
}

func newLink(t *testing.T, address string) *link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &link{Listener: l}
	var all sync.WaitGroup
	pass := func(to, from net.Conn) {
		defer func() { _ = to.Close() }()
		buffer := make([]byte, 1<<15)
		for {
			n, err := from.Read(buffer)
			k.gate.RLock()
			_, wrong := to.Write(buffer[:n])
			k.gate.RUnlock()
			if err != nil || wrong != nil {
				return
			}
		}
	}
	all.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", address)
			if err != nil {
				_ = near.Close()
				continue
			}
			all.Go(func() { pass(near, far) })
			all.Go(func() { pass(far, near) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	return k
}

// served serves a over TCP behind a link, and listens to it.
func served(t *testing.T, a nhi.Authority) (*remotenhi.Authority, *link, *grpc.Server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := newLink(t, l.Addr().String())
	server := wiretest.Serve(t, l, wire.ServerConfig{}, func(s grpc.ServiceRegistrar) { remotenhi.Register(s, a) })
	remote := remotenhi.New(wiretest.Dial(t, wire.Config{Address: k.Addr().String()}), call.Policy{})
	return remote, k, server
}

// Without having heard anything, nothing proceeds.
func TestEpochUnheard(t *testing.T) {
	remote, _, _ := served(t, &fake{})
	if _, err := remote.Epoch(); fault.CodeOf(err) != fault.NHIUnavailable || fault.CategoryOf(err) != fault.Degraded {
		t.Errorf("Epoch = %v", err)
	}
}

// A connection that stalls is noticed in time, and what arrives late says nothing
// of now: once something was revoked, the epoch before it is never told again.
func TestStall(t *testing.T) {
	a := &fake{}
	remote, k, _ := served(t, a)
	listening(t, remote)
	eventually(t, remote, 0)
	time.Sleep(3 * nhi.WatchInterval)
	for range 2 {
		before := a.epoch.Load()
		k.gate.Lock()
		stalled := time.Now()
		time.Sleep(nhi.WatchInterval / 2)
		revoked := time.Now()
		a.epoch.Add(1)
		var silent time.Time
		for silent.IsZero() {
			if _, err := remote.Epoch(); err != nil {
				silent = time.Now()
			}
			if time.Since(stalled) > patience {
				k.gate.Unlock()
				t.Fatal("a stalled connection goes unnoticed")
			}
			time.Sleep(time.Millisecond)
		}
		if took := silent.Sub(revoked); took > nhi.WatchTimeout {
			t.Errorf("what was revoked is accepted for %v, want at most %v", took, nhi.WatchTimeout)
		}
		if took := silent.Sub(stalled); took < nhi.WatchTimeout-2*nhi.WatchInterval {
			t.Errorf("it is given up after %v", took)
		}
		k.gate.Unlock()
		for resumed := time.Now(); ; {
			epoch, err := remote.Epoch()
			if err == nil && epoch == before {
				t.Fatalf("after the stall the epoch is %d as before the revocation", epoch)
			}
			if err == nil {
				break
			}
			if time.Since(resumed) > patience {
				t.Fatal("it never hears again")
			}
		}
	}
}

// late answers the first question late, and no other.
type late struct {
	nhiv1.UnimplementedAuthorityServiceServer
	asked chan time.Time
}

func (l late) Watch(s grpc.BidiStreamingServer[nhiv1.WatchRequest, nhiv1.WatchResponse]) error {
	in, err := s.Recv()
	if err != nil {
		return err
	}
	l.asked <- time.Now()
	time.Sleep(nhi.WatchTimeout * 3 / 4)
	if err := s.Send(&nhiv1.WatchResponse{Epoch: 1, Beat: in.GetBeat()}); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

// An answer is as old as its question: one that was long on its way is not good
// for long.
func TestLateAnswer(t *testing.T) {
	l := late{asked: make(chan time.Time, 1)}
	remote := remotenhi.New(wiretest.InMemory(t, func(s grpc.ServiceRegistrar) { nhiv1.RegisterAuthorityServiceServer(s, l) }), call.Policy{})
	heard := false
	err := remote.Watch(t.Context(), func(epoch uint64) {
		now, err := remote.Epoch()
		heard = err == nil && now == epoch
	})
	took := time.Since(<-l.asked)
	if fault.CodeOf(err) != fault.NHIUnavailable || !heard || took > nhi.WatchTimeout*5/4 {
		t.Errorf("Watch = %v, %v after the only question that was answered; the answer counted: %v", err, took, heard)
	}
	if epoch, err := remote.Epoch(); err == nil {
		t.Errorf("the epoch is %d still", epoch)
	}
}

// pusher tells epochs all the time and answers the first question only.
type pusher struct {
	nhiv1.UnimplementedAuthorityServiceServer
}

func (pusher) Watch(s grpc.BidiStreamingServer[nhiv1.WatchRequest, nhiv1.WatchResponse]) error {
	in, err := s.Recv()
	if err != nil {
		return err
	}
	out := &nhiv1.WatchResponse{Beat: in.GetBeat()}
	for tick := time.NewTicker(nhi.WatchInterval / 4); ; out.Beat = 0 {
		out.Epoch++
		if err := s.Send(out); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-s.Context().Done():
			return nil
		}
	}
}

// What is pushed may have waited in a buffer: it makes nothing fresher.
func TestPushedIsNotFresh(t *testing.T) {
	remote := remotenhi.New(wiretest.InMemory(t, func(s grpc.ServiceRegistrar) { nhiv1.RegisterAuthorityServiceServer(s, pusher{}) }), call.Policy{})
	ended := make(chan error, 1)
	start := time.Now()
	go func() { ended <- remote.Watch(t.Context(), func(uint64) {}) }()
	eventually(t, remote, 2) // a push tells the epoch at once
	for {
		_, err := remote.Epoch()
		if took := time.Since(start); err != nil {
			break
		} else if took > nhi.WatchTimeout*3/2 {
			t.Errorf("%v after the only question that was answered, the epoch holds still", took)
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := <-ended; fault.CodeOf(err) != fault.NHIUnavailable || time.Since(start) > nhi.WatchTimeout*3/2 {
		t.Errorf("Watch = %v after %v", err, time.Since(start))
	}
}

// A server that dies without a word, and comes back, is unheard in between.
func TestServerDies(t *testing.T) {
	a := &fake{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	first := grpc.NewServer(wire.ServerOptions(wire.ServerConfig{})...)
	remotenhi.Register(first, a)
	go func() { _ = first.Serve(l) }()
	remote := remotenhi.New(wiretest.Dial(t, wire.Config{Address: address}), call.Policy{})
	listening(t, remote)
	eventually(t, remote, 0)
	first.Stop()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, err := remote.Epoch(); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a dead server goes unnoticed")
		}
	}
	if err := remote.Ping(t.Context()); fault.CodeOf(err) != fault.NHIUnavailable {
		t.Errorf("Ping = %v, want NHIUnavailable", err)
	}
	a.epoch.Store(7)
	if l, err = net.Listen("tcp", address); err != nil {
		t.Skipf("the port was taken meanwhile: %v", err)
	}
	wiretest.Serve(t, l, wire.ServerConfig{}, func(s grpc.ServiceRegistrar) { remotenhi.Register(s, a) })
	eventually(t, remote, 7)
}

// An authority that is behind what it said could bring back what was revoked.
func TestBehind(t *testing.T) {
	a := &fake{}
	a.epoch.Store(5)
	remote, _, _ := served(t, a)
	listening(t, remote)
	eventually(t, remote, 5)
	a.epoch.Store(4)
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		epoch, err := remote.Epoch()
		if err != nil {
			break
		}
		if epoch != 5 || time.Now().After(deadline) {
			t.Fatalf("Epoch = %d of an authority that is behind", epoch)
		}
	}
	if err := remote.Watch(t.Context(), func(epoch uint64) { t.Errorf("epoch %d is seen", epoch) }); fault.CodeOf(err) != fault.NHIUnavailable {
		t.Errorf("Watch = %v", err)
	}
	a.epoch.Store(6)
	eventually(t, remote, 6)
}

// A revocation crosses at once, not with the next question.
func TestRevocationIsPushed(t *testing.T) {
	a, _ := local(t)
	remote, _, _ := served(t, a)
	listening(t, remote)
	quickest := patience
	for _, name := range []string{"anna", "bob", "carol", "dan", "eve"} {
		id := a.ID(creto.KindHuman, name)
		if err := a.AddMember(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		epoch, err := a.Epoch()
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, remote, epoch)
		if err := a.Revoke(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		after, _ := a.Epoch()
		eventually(t, remote, after)
		quickest = min(quickest, time.Since(start))
	}
	if quickest > nhi.WatchInterval/4 {
		t.Errorf("the quickest of five revocations took %v to cross", quickest)
	}
}

// liar answers with nothing, or with too much.
type liar struct {
	nhiv1.UnimplementedAuthorityServiceServer
	calls atomic.Int32
}

func (*liar) Revoked(_ context.Context, r *nhiv1.RevokedRequest) (*nhiv1.RevokedResponse, error) {
	return &nhiv1.RevokedResponse{Index: int32(r.GetLinks()[0].GetIssuerEpoch()) - 2}, nil
}

func (*liar) DelegationChain(context.Context, *nhiv1.DelegationChainRequest) (*nhiv1.DelegationChainResponse, error) {
	return &nhiv1.DelegationChainResponse{}, nil
}

func (*liar) PublicKeys(context.Context, *nhiv1.PublicKeysRequest) (*nhiv1.PublicKeysResponse, error) {
	return &nhiv1.PublicKeysResponse{}, nil
}

func (*liar) Sign(context.Context, *nhiv1.SignRequest) (*nhiv1.SignResponse, error) {
	return &nhiv1.SignResponse{}, nil
}

func (*liar) DelegatedSecrets(context.Context, *nhiv1.DelegatedSecretsRequest) (*nhiv1.DelegatedSecretsResponse, error) {
	return &nhiv1.DelegatedSecretsResponse{Values: []string{"one"}}, nil
}

func (*liar) Roots(context.Context, *nhiv1.RootsRequest) (*nhiv1.RootsResponse, error) {
	return &nhiv1.RootsResponse{}, nil
}

func (l *liar) Resolve(_ context.Context, r *nhiv1.ResolveRequest) (*nhiv1.ResolveResponse, error) {
	l.calls.Add(1)
	if r.GetCredential().GetToken() == "down" {
		return nil, fault.New("test", fault.Unavailable, "down")
	}
	return &nhiv1.ResolveResponse{Who: &nhiv1.Identity{}}, nil
}

func (*liar) Watch(s grpc.BidiStreamingServer[nhiv1.WatchRequest, nhiv1.WatchResponse]) error {
	if err := s.Send(&nhiv1.WatchResponse{Epoch: 1, Beat: 1 << 40}); err != nil {
		return err
	}
	for {
		if _, err := s.Recv(); err != nil {
			return err
		}
	}
}

// resolving answers with an identity that edit, if any, has spoiled.
type resolving struct {
	nhiv1.UnimplementedAuthorityServiceServer
	edit func(*nhiv1.Identity)
}

func (r *resolving) Resolve(context.Context, *nhiv1.ResolveRequest) (*nhiv1.ResolveResponse, error) {
	id := func(kind, name string) *nhiv1.ID {
		return &nhiv1.ID{TrustDomain: "test.local", Tenant: "default", Kind: kind, Name: name}
	}
	who := &nhiv1.Identity{Id: id("agent", "bot"), Human: id("human", "anna"), TokenId: "t", Chain: bytes.Repeat([]byte{1}, 32), ExpiresAt: timestamppb.New(time.Unix(2e9, 0))}
	if r.edit != nil {
		r.edit(who)
	}
	return &nhiv1.ResolveResponse{Who: who}, nil
}

// An identity has all that decisions are made on, or is none.
func TestIncompleteIdentity(t *testing.T) {
	r := &resolving{}
	remote := remotenhi.New(wiretest.InMemory(t, func(s grpc.ServiceRegistrar) { nhiv1.RegisterAuthorityServiceServer(s, r) }), call.Policy{})
	if who, err := remote.Resolve(t.Context(), nhi.Credential{Token: "x"}); err != nil || who.ID.Name != "bot" || who.Human.Name != "anna" {
		t.Fatalf("Resolve = %+v, %v", who, err)
	}
	for name, edit := range map[string]func(*nhiv1.Identity){
		"no id":             func(w *nhiv1.Identity) { w.Id = nil },
		"a bad id":          func(w *nhiv1.Identity) { w.Id.Name = "../x" },
		"no human":          func(w *nhiv1.Identity) { w.Human = nil },
		"another's kind":    func(w *nhiv1.Identity) { w.Human.Kind = "god" },
		"no chain":          func(w *nhiv1.Identity) { w.Chain = nil },
		"a part of a chain": func(w *nhiv1.Identity) { w.Chain = w.GetChain()[:31] },
		"no end":            func(w *nhiv1.Identity) { w.ExpiresAt = nil },
	} {
		r.edit = edit
		if who, err := remote.Resolve(t.Context(), nhi.Credential{Token: "x"}); fault.CodeOf(err) != fault.NHIInternal || who != (nhi.Identity{}) {
			t.Errorf("%s: Resolve = %+v, %v", name, who, err)
		}
	}
}

// An answer that is not what was asked for is no answer.
func TestLiar(t *testing.T) {
	l := &liar{}
	remote := remotenhi.New(wiretest.InMemory(t, func(s grpc.ServiceRegistrar) { nhiv1.RegisterAuthorityServiceServer(s, l) }), call.Policy{})
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"Resolve":         func() error { _, err := remote.Resolve(ctx, nhi.Credential{Token: "x"}); return err },
		"Revoked, below":  func() error { _, err := remote.Revoked(ctx, []nhi.LinkRef{{IssuerEpoch: 0}}); return err },
		"Revoked, beyond": func() error { _, err := remote.Revoked(ctx, []nhi.LinkRef{{IssuerEpoch: 3}}); return err },
		"DelegationChain": func() error { _, err := remote.DelegationChain(ctx, creto.ID{}); return err },
		"PublicKeys":      func() error { _, err := remote.PublicKeys(ctx, creto.ID{}); return err },
		"Sign":            func() error { _, err := remote.Sign(ctx, nhi.Identity{}, "x", nil); return err },
		"DelegatedSecrets": func() error {
			_, err := remote.DelegatedSecrets(ctx, nhi.Identity{}, []nhi.SecretRef{"a", "b"})
			return err
		},
		"Roots": func() error { _, err := remote.Roots(ctx); return err },
	} {
		if err := call(); fault.CodeOf(err) != fault.NHIInternal {
			t.Errorf("%s = %v, want NHIInternal", name, err)
		}
	}
	// An empty answer to Revoked is a revocation.
	if i, err := remote.Revoked(ctx, []nhi.LinkRef{{IssuerEpoch: 2}}); i != 0 || err != nil {
		t.Errorf("Revoked = %d, %v", i, err)
	}
	if err := remote.Recheck(ctx, nhi.Identity{}); !errors.Is(err, fault.Unimplemented) {
		t.Errorf("Recheck = %v", err)
	}
	if err := remote.Watch(ctx, func(uint64) {}); fault.CodeOf(err) != fault.NHIUnavailable {
		t.Errorf("Watch of answers to no question = %v", err)
	}
	if _, err := remote.Epoch(); err == nil {
		t.Error("an answer to no question tells the epoch")
	}
}

// A DPoP proof is good once: what carries it is sent once.
func TestProofIsSentOnce(t *testing.T) {
	l := &liar{}
	remote := remotenhi.New(wiretest.InMemory(t, func(s grpc.ServiceRegistrar) { nhiv1.RegisterAuthorityServiceServer(s, l) }),
		call.Policy{InitialDelay: time.Millisecond, MaxDelay: time.Millisecond})
	for credential, want := range map[nhi.Credential]int32{{Token: "down"}: 3, {Token: "down", DPoP: "proof"}: 1} {
		l.calls.Store(0)
		if _, err := remote.Resolve(t.Context(), credential); fault.CodeOf(err) != fault.NHIUnavailable || l.calls.Load() != want {
			t.Errorf("Resolve = %v after %d calls, want NHIUnavailable after %d", err, l.calls.Load(), want)
		}
	}
}

// A server that hangs is slow, not absent.
func TestTimeout(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	remote := remotenhi.New(wiretest.Dial(t, wire.Config{Address: l.Addr().String()}), call.Policy{Timeout: 20 * time.Millisecond, Attempts: 1})
	if err := remote.Ping(t.Context()); fault.CodeOf(err) != fault.NHITimeout {
		t.Errorf("Ping = %v, want NHITimeout", err)
	}
	start := time.Now()
	if err := remote.Watch(t.Context(), func(uint64) {}); fault.CodeOf(err) != fault.NHIUnavailable || time.Since(start) > 5*nhi.WatchTimeout {
		t.Errorf("Watch = %v after %v", err, time.Since(start))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := remote.Watch(ctx, func(uint64) {}); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("Watch = %v, want Canceled", err)
	}
}

// Nothing of either side is left running.
func TestLeaks(t *testing.T) {
	t.Run("watch", func(t *testing.T) {
		remote, _, _ := served(t, &fake{})
		for range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			if err := remote.Watch(ctx, func(uint64) { cancel() }); fault.CodeOf(err) != fault.Canceled {
				t.Errorf("Watch = %v", err)
			}
		}
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if !strings.Contains(string(stacks), "remotenhi.(*Authority)") && !strings.Contains(string(stacks), "remotenhi.server") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("left:\n%s", stacks)
		}
	}
}

func BenchmarkEpoch(b *testing.B) {
	remote := remotenhi.New(wiretest.InMemory(b, func(s grpc.ServiceRegistrar) { remotenhi.Register(s, &fake{}) }), call.Policy{})
	listening(b, remote)
	eventually(b, remote, 0)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := remote.Epoch(); err != nil {
			b.Fatal(err)
		}
	}
}
