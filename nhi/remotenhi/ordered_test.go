package remotenhi_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/internal/wire"
	"creto.dev/internal/wire/wiretest"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/nhi/remotenhi"
	"creto.dev/pqc/localpqc"
)

// Several authorities in order do what one does, also while the first is down
// (R-OQ-1).
func TestOrdered(t *testing.T) {
	nhitest.Run(t, func(t *testing.T) nhitest.Harness {
		h := harness(t, wiretest.InMemory)
		roots, err := h.Authority.Roots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		down := remotenhi.New(wiretest.Dial(t, wire.Config{Address: "127.0.0.1:1"}), call.Policy{Timeout: patience, Attempts: 1})
		listening(t, down)
		h.Authority = nhi.NewOrdered(roots, down, h.Authority)
		return h
	})
}

// TestRevocationUnderLoad: in a process that asks over a wire, callers check as
// fast as they can what package gate checks before each action, while one of
// them is revoked in the authority's process. Within a second nothing of it is
// allowed any more (R-GAP-2).
func TestRevocationUnderLoad(t *testing.T) {
	const (
		limit  = time.Second
		warmup = 50_000 // checks before the revocation
	)
	a, clock := local(t)
	remote := remotenhi.New(wiretest.OverTLS(t, func(s grpc.ServiceRegistrar) { remotenhi.Register(s, a) }), call.Policy{Timeout: patience})
	listening(t, remote)
	alice, bot := a.ID(creto.KindHuman, "alice"), a.ID(creto.KindAgent, "bot")
	if err := errors.Join(a.AddMember(t.Context(), alice), a.AddAgent(t.Context(), bot), delegate(t, a, alice, bot, nhi.Everything())); err != nil {
		t.Fatal(err)
	}
	token, _, err := a.IssueToken(t.Context(), bot, localnhi.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	epoch, _ := a.Epoch()
	eventually(t, remote, epoch)
	who, err := remote.Resolve(t.Context(), nhi.Credential{Token: token})
	if err != nil {
		t.Fatal(err)
	}
	links, err := remote.DelegationChain(t.Context(), bot)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := remote.Roots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stamp, err := clock.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	verifier := nhi.NewVerifier(localpqc.New(), 0)
	// check is what gate does: what was good under the epoch is good; under
	// another everything is asked again.
	check := func(standing *uint64) error {
		epoch, err := remote.Epoch()
		if err != nil || epoch == *standing {
			return err
		}
		if err := remote.Recheck(t.Context(), who); err != nil {
			return err
		}
		if _, err := verifier.Verify(t.Context(), links, roots, stamp.Time(), remote); err != nil {
			return err
		}
		*standing = epoch
		return nil
	}
	var checks atomic.Int64
	var last atomic.Int64 // when the latest allowed check began, in Unix nanoseconds
	var stop atomic.Bool
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			var standing uint64
			for !stop.Load() {
				begin := time.Now().UnixNano()
				if err := check(&standing); err == nil {
					for old := last.Load(); begin > old && !last.CompareAndSwap(old, begin); old = last.Load() {
					}
				} else if c := fault.CategoryOf(err); c != fault.Security && c != fault.Degraded && c != fault.Transient {
					t.Errorf("a check failed otherwise: %v", err)
				}
				checks.Add(1)
			}
		})
	}
	start := time.Now()
	for checks.Load() < warmup {
		time.Sleep(time.Millisecond)
	}
	rate := float64(checks.Load()) / time.Since(start).Seconds()
	if err := a.Revoke(t.Context(), bot); err != nil {
		t.Fatal(err)
	}
	revoked := time.Now()
	time.Sleep(limit + 200*time.Millisecond)
	stop.Store(true)
	group.Wait()
	effective := time.Unix(0, last.Load()).Sub(revoked)
	t.Logf("%.0f checks a second; the last that was allowed began %v after the revocation", rate, effective)
	if effective > limit {
		t.Errorf("a check was allowed %v after the revocation, want at most %v", effective, limit)
	}
}
