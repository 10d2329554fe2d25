package nhi_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// station is an authority of which a test says what it answers.
type station struct {
	nhi.Authority
	name  string
	root  pqc.PublicKey
	epoch atomic.Uint64
	fails atomic.Pointer[fault.Code]
	asked atomic.Int32
}

func newStation(name string, epoch uint64) *station {
	s := &station{name: name, root: keyOf("root")}
	s.epoch.Store(epoch)
	return s
}

func (s *station) err() error {
	if code := s.fails.Load(); code != nil {
		return fault.New("station", *code, "%s", s.name)
	}
	return nil
}

func (s *station) Epoch() (uint64, error) { return s.epoch.Load(), s.err() }

func (s *station) Roots(context.Context) ([]pqc.PublicKey, error) {
	return []pqc.PublicKey{s.root}, s.err()
}

func (s *station) Resolve(context.Context, nhi.Credential) (nhi.Identity, error) {
	s.asked.Add(1)
	if code := s.fails.Load(); code != nil && *code != fault.NHIUnavailable {
		return nhi.Identity{}, s.err()
	}
	return nhi.Identity{Instance: s.name}, s.err()
}

// failing is a station whose Resolve fails while its epoch is known.
type failing struct {
	*station
	code fault.Code
}

func (f failing) Resolve(context.Context, nhi.Credential) (nhi.Identity, error) {
	f.asked.Add(1)
	return nhi.Identity{}, fault.New("failing", f.code, "no")
}

func TestOrdered(t *testing.T) {
	down := func(s *station) *station { code := fault.NHIUnavailable; s.fails.Store(&code); return s }
	foreign := func(s *station) *station { s.root = keyOf("another root"); return s }
	tests := []struct {
		name string
		list []nhi.Authority
		want string // who answers; "" for nobody
		code fault.Code
	}{
		{"the first answers", []nhi.Authority{newStation("1", 5), newStation("2", 5)}, "1", fault.OK},
		{"the next when it is down", []nhi.Authority{down(newStation("1", 5)), newStation("2", 5)}, "2", fault.OK},
		{"the next when it is slow", []nhi.Authority{failing{newStation("1", 5), fault.NHITimeout}, newStation("2", 5)}, "2", fault.OK},
		{"nobody after a denial", []nhi.Authority{failing{newStation("1", 5), fault.NHITokenInvalid}, newStation("2", 5)}, "", fault.NHITokenInvalid},
		{"nobody after an expiry", []nhi.Authority{failing{newStation("1", 5), fault.NHITokenExpired}, newStation("2", 5)}, "", fault.NHITokenExpired},
		{"nobody after a mistake", []nhi.Authority{failing{newStation("1", 5), fault.NHIInternal}, newStation("2", 5)}, "", fault.NHIInternal},
		{"not one that is behind", []nhi.Authority{failing{newStation("1", 5), fault.NHIUnavailable}, newStation("2", 4)}, "", fault.NHIUnavailable},
		{"one that is ahead", []nhi.Authority{down(newStation("1", 5)), newStation("2", 6)}, "2", fault.OK},
		{"never another trust domain", []nhi.Authority{down(newStation("1", 5)), foreign(newStation("2", 5))}, "", fault.SecurityViolation},
		{"nobody there", nil, "", fault.NHIUnavailable},
		{"all down", []nhi.Authority{down(newStation("1", 5)), down(newStation("2", 5))}, "", fault.NHIUnavailable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := nhi.NewOrdered([]pqc.PublicKey{keyOf("root")}, tt.list...)
			got, err := a.Resolve(t.Context(), nhi.Credential{})
			if got.Instance != tt.want || fault.CodeOf(err) != tt.code {
				t.Errorf("Resolve = %q, %v; want %q and %v", got.Instance, err, tt.want, tt.code)
			}
		})
	}
}

// A secondary that was good is refused from the moment on that the primary told
// of a revocation which it does not know, also once the primary is gone.
func TestOrderedRemembersTheEpoch(t *testing.T) {
	primary, secondary := newStation("1", 5), newStation("2", 5)
	a := nhi.NewOrdered([]pqc.PublicKey{keyOf("root")}, primary, secondary)
	seen := func() uint64 {
		epoch, err := a.Epoch()
		if err != nil {
			t.Fatal(err)
		}
		return epoch
	}
	if got := seen(); got != 5 {
		t.Fatalf("Epoch = %d, want 5", got)
	}
	primary.epoch.Store(6)
	if got := seen(); got != 6 {
		t.Fatalf("Epoch = %d, want 6", got)
	}
	code := fault.NHIUnavailable
	primary.fails.Store(&code)
	if epoch, err := a.Epoch(); !errors.Is(err, fault.NHIUnavailable) {
		t.Errorf("Epoch with only a secondary that is behind = %d, %v; want NHIUnavailable", epoch, err)
	}
	if _, err := a.Resolve(t.Context(), nhi.Credential{}); !errors.Is(err, fault.NHIUnavailable) || secondary.asked.Load() > 0 {
		t.Errorf("Resolve with only a secondary that is behind = %v, want NHIUnavailable without asking it", err)
	}
	secondary.epoch.Store(6)
	if who, err := a.Resolve(t.Context(), nhi.Credential{}); err != nil || who.Instance != "2" {
		t.Errorf("Resolve once it caught up = %q, %v", who.Instance, err)
	}
}

func TestVerifier(t *testing.T) {
	links, root := chainOf(t, nil)
	at := time.Unix(1500, 0)
	counting := &counting{Provider: localpqc.New()}
	v := nhi.NewVerifier(counting, 2)
	verify := func(links []nhi.SignedLink, roots ...pqc.PublicKey) error {
		_, err := v.Verify(t.Context(), links, roots, at, nil)
		return err
	}
	for range 3 {
		if err := verify(links, root); err != nil {
			t.Fatal(err)
		}
	}
	if n := counting.n.Load(); n != 2 {
		t.Errorf("%d signatures were verified for the same chain three times, want its 2 once", n)
	}
	if err := verify(links, keyOf("another root")); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
		t.Errorf("a known chain under another root = %v, want NHIDelegationVerificationFailed", err)
	}
	// The caller's bytes are not what is remembered.
	links[1].Body[len(links[1].Body)-1]++
	if err := verify(links, root); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
		t.Errorf("a known chain that was changed = %v, want NHIDelegationVerificationFailed", err)
	}
	links[1].Body[len(links[1].Body)-1]--
	links[1].Signature.Bytes[0]++
	if err := verify(links, root); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
		t.Errorf("a known chain with another signature = %v, want NHIDelegationVerificationFailed", err)
	}
	links[1].Signature.Bytes[0]--
	if err := verify(links, root); err != nil {
		t.Errorf("the chain as it was = %v", err)
	}
	if _, err := v.Verify(t.Context(), links, []pqc.PublicKey{root}, at.Add(time.Hour), nil); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
		t.Errorf("a known chain that has expired = %v, want NHIDelegationVerificationFailed", err)
	}
	if _, err := v.Verify(t.Context(), links, []pqc.PublicKey{root}, at, revoking(1)); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
		t.Errorf("a known chain that was revoked = %v, want NHIDelegationVerificationFailed", err)
	}
}

type revoking int

func (r revoking) Revoked(context.Context, []nhi.LinkRef) (int, error) { return int(r), nil }

// counting counts the signatures that are verified.
type counting struct {
	pqc.Provider
	n atomic.Int32
}

func (c *counting) Verify(purpose pqc.Purpose, message []byte, sig pqc.Signature, key pqc.PublicKey) error {
	c.n.Add(1)
	return c.Provider.Verify(purpose, message, sig, key)
}
