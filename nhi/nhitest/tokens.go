package nhitest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// patience is how long a suite waits for a revocation to be seen, on a machine
// that is busy; that it takes no second is measured where there is load.
const patience = 10 * time.Second

func (h Harness) token(t *testing.T, agent creto.ID) string {
	t.Helper()
	return h.Token(t, agent, "", nhi.Confirmation{})
}

func (h Harness) epoch(t *testing.T) uint64 {
	t.Helper()
	epoch, err := h.Authority.Epoch()
	if err != nil {
		t.Fatal(err)
	}
	return epoch
}

// later waits until the epoch is later than before.
func (h Harness) later(t *testing.T, before uint64) {
	t.Helper()
	end := time.After(patience)
	for h.epoch(t) <= before {
		select {
		case <-time.After(time.Millisecond):
		case <-end:
			t.Fatalf("the epoch is still %d, %v after a revocation", before, patience)
		}
	}
}

// resolved adds an agent and resolves a token of it.
func resolved(t *testing.T, h Harness) nhi.Identity {
	t.Helper()
	agent := h.Delegated(t, "bot", h.Human(t, "alice"), nhi.Everything())
	who, err := h.Authority.Resolve(t.Context(), nhi.Credential{Token: h.token(t, agent)})
	if err != nil {
		t.Fatal(err)
	}
	return who
}

func testRecheck(t *testing.T, h Harness) {
	who := resolved(t, h)
	if err := h.Authority.Recheck(t.Context(), who); err != nil {
		t.Errorf("Recheck of what Resolve returned = %v", err)
	}
	for name, edit := range map[string]func(*nhi.Identity){
		"another agent":     func(i *nhi.Identity) { i.ID.Name = "boss" },
		"another tenant":    func(i *nhi.Identity) { i.ID.Tenant = "other" },
		"another token":     func(i *nhi.Identity) { i.TokenID = creto.NewUUID().String() },
		"another chain":     func(i *nhi.Identity) { i.Chain[0]++ },
		"a longer life":     func(i *nhi.Identity) { i.ExpiresAt = i.ExpiresAt.Add(time.Hour) },
		"a sandbox":         func(i *nhi.Identity) { i.Sandbox = "x" },
		"another human":     func(i *nhi.Identity) { i.Human.Name = "bob" },
		"nothing at all":    func(i *nhi.Identity) { *i = nhi.Identity{} },
		"another instance":  func(i *nhi.Identity) { i.Instance = "2" },
		"a bound key":       func(i *nhi.Identity) { i.Confirmation.JKT = "x" },
		"a later epoch":     func(i *nhi.Identity) { i.Epoch++ },
		"another certified": func(i *nhi.Identity) { i.Confirmation.X5T = "x" },
	} {
		other := who
		edit(&other)
		if err := h.Authority.Recheck(t.Context(), other); !errors.Is(err, fault.NHITokenInvalid) {
			t.Errorf("Recheck of an identity with %s = %v, want NHITokenInvalid", name, err)
		}
	}
	h.Advance(nhi.MaxTokenTTL + time.Second)
	if err := h.Authority.Recheck(t.Context(), who); !errors.Is(err, fault.NHITokenExpired) {
		t.Errorf("Recheck after the token ended = %v, want NHITokenExpired", err)
	}
}

func testRevokeOne(t *testing.T, h Harness) {
	alice := h.Human(t, "alice")
	boss := h.Delegated(t, "boss", alice, nhi.Everything())
	helper := h.Delegated(t, "helper", boss, nhi.Everything())
	other := h.Delegated(t, "other", alice, nhi.Everything())
	first, second := h.token(t, boss), h.token(t, boss)
	who, err := h.Authority.Resolve(t.Context(), nhi.Credential{Token: first})
	if err != nil {
		t.Fatal(err)
	}
	before := h.epoch(t)
	h.RevokeToken(t, who)
	h.later(t, before)
	if _, err := h.Authority.Resolve(t.Context(), nhi.Credential{Token: first}); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Resolve of a revoked token = %v, want NHITokenInvalid", err)
	}
	if err := h.Authority.Recheck(t.Context(), who); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Recheck of a revoked token = %v, want NHITokenInvalid", err)
	}
	if _, err := h.Authority.Resolve(t.Context(), nhi.Credential{Token: second}); err != nil {
		t.Errorf("Resolve of the agent's other token = %v", err)
	}
	before = h.epoch(t)
	h.RevokeLink(t, boss)
	h.later(t, before)
	for _, agent := range []creto.ID{boss, helper} {
		if _, err := verify(t, h, agent); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
			t.Errorf("the chain of %s with a revoked link = %v, want NHIDelegationVerificationFailed", agent.Name, err)
		}
	}
	if _, err := verify(t, h, other); err != nil {
		t.Errorf("the chain beside the revoked link = %v", err)
	}
}

func testRedelegate(t *testing.T, h Harness) {
	alice := h.Human(t, "alice")
	bot := h.Delegated(t, "bot", alice, nhi.Everything())
	old, err := verify(t, h, bot)
	if err != nil {
		t.Fatal(err)
	}
	helper := h.Delegated(t, "helper", bot, nhi.Everything())
	before := h.epoch(t)
	h.Redelegate(t, bot, alice, nhi.Scope{Actions: []string{creto.CallModel}, Resources: []string{"*"}})
	h.later(t, before)
	chain, err := verify(t, h, bot)
	if err != nil || chain.Digest() == old.Digest() || chain.Covers(creto.CallTool, creto.Resource{Type: "Tool", ID: "x/y"}) {
		t.Errorf("after a narrower delegation the chain is %v, %v", chain.Digest(), err)
	}
	if chain, err := verify(t, h, helper); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
		t.Errorf("the chain below the delegation that was replaced = %v, %v; want NHIDelegationVerificationFailed", chain.Digest(), err)
	}
}

func testWatch(t *testing.T, h Harness) {
	who := resolved(t, h)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	epochs, ended := make(chan uint64, 100), make(chan error, 1)
	go func() { ended <- h.Authority.Watch(ctx, func(epoch uint64) { epochs <- epoch }) }()
	next := func() uint64 {
		t.Helper()
		select {
		case epoch := <-epochs:
			return epoch
		case <-time.After(patience):
			t.Fatalf("nothing was seen within %v", patience)
			return 0
		}
	}
	first := next()
	h.Revoke(t, who.ID)
	for seen := first; seen <= first; { // a remote authority repeats itself
		seen = next()
	}
	stop()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("Watch ended without saying why")
		}
	case <-time.After(patience):
		t.Error("Watch goes on after its context ended")
	}
}

func testSign(t *testing.T, h Harness) {
	who := resolved(t, h)
	keys, err := h.Authority.PublicKeys(t.Context(), who.ID)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("hello")
	for _, purpose := range []pqc.Purpose{pqc.PurposeMessage, pqc.PurposeRecord} {
		sig, err := h.Authority.Sign(t.Context(), who, purpose, message)
		if err != nil {
			t.Fatalf("Sign for %s = %v", purpose, err)
		}
		if err := h.Provider.Verify(purpose, message, sig, keys.Signing[0].Public); err != nil {
			t.Errorf("a signature for %s does not verify: %v", purpose, err)
		}
	}
	for _, purpose := range []pqc.Purpose{pqc.PurposeDelegation, pqc.PurposeKey, pqc.PurposeCheckpoint, pqc.PurposeInvoice, "creto/other/v1", ""} {
		if sig, err := h.Authority.Sign(t.Context(), who, purpose, message); !errors.Is(err, fault.PermissionDenied) || len(sig.Bytes) > 0 {
			t.Errorf("Sign for %q = %v, want PermissionDenied", purpose, err)
		}
	}
	forged := who
	forged.TokenID = creto.NewUUID().String()
	if _, err := h.Authority.Sign(t.Context(), forged, pqc.PurposeMessage, message); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Sign for an identity that was never resolved = %v, want NHITokenInvalid", err)
	}
	h.Revoke(t, who.ID)
	if _, err := h.Authority.Sign(t.Context(), who, pqc.PurposeMessage, message); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Sign for a revoked agent = %v, want NHITokenInvalid", err)
	}
}

func testSecrets(t *testing.T, h Harness) {
	who := resolved(t, h)
	h.Secret(t, who.ID, "shop-key", "s3cr3t")
	h.Secret(t, who.ID, "other-key", "0ther")
	got, err := h.Authority.DelegatedSecrets(t.Context(), who, []nhi.SecretRef{"other-key", "shop-key"})
	if err != nil || len(got) != 2 || got[0].Reveal() != "0ther" || got[1].Reveal() != "s3cr3t" {
		t.Errorf("DelegatedSecrets = %d secrets, %v; want both, in the order asked", len(got), err)
	}
	got, err = h.Authority.DelegatedSecrets(t.Context(), who, []nhi.SecretRef{"shop-key", "missing"})
	if !errors.Is(err, fault.NHISecretNotFound) || len(got) > 0 || !strings.Contains(fault.Message(err), "missing") || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("DelegatedSecrets with one missing = %d secrets, %v; want none and NHISecretNotFound, naming it", len(got), err)
	}
	for _, bad := range []nhi.SecretRef{"", "../shop-key", "Shop-Key", "env:HOME", "shop-key\x00", nhi.SecretRef(strings.Repeat("x", 1<<16))} {
		if got, err := h.Authority.DelegatedSecrets(t.Context(), who, []nhi.SecretRef{bad}); !errors.Is(err, fault.NHISecretNotFound) || len(got) > 0 {
			t.Errorf("DelegatedSecrets(%.20q) = %d secrets, %v; want NHISecretNotFound", bad, len(got), err)
		}
	}
	if got, err := h.Authority.DelegatedSecrets(t.Context(), who, make([]nhi.SecretRef, nhi.MaxSecretRefs+1)); !errors.Is(err, fault.InvalidArgument) || len(got) > 0 {
		t.Errorf("DelegatedSecrets of too many = %d secrets, %v; want InvalidArgument", len(got), err)
	}
	if got, err := h.Authority.DelegatedSecrets(t.Context(), who, nil); err != nil || len(got) > 0 {
		t.Errorf("DelegatedSecrets of none = %d secrets, %v", len(got), err)
	}
	// Whose secret it is, is not only policy's to say.
	other := h.Delegated(t, "other", h.Human(t, "carol"), nhi.Everything())
	another, err := h.Authority.Resolve(t.Context(), nhi.Credential{Token: h.token(t, other)})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := h.Authority.DelegatedSecrets(t.Context(), another, []nhi.SecretRef{"shop-key"}); !errors.Is(err, fault.NHISecretAccessDenied) || len(got) > 0 || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("DelegatedSecrets of another agent = %d secrets, %v; want NHISecretAccessDenied", len(got), err)
	}
	forged := another
	forged.ID = who.ID
	if got, err := h.Authority.DelegatedSecrets(t.Context(), forged, []nhi.SecretRef{"shop-key"}); !errors.Is(err, fault.NHITokenInvalid) || len(got) > 0 {
		t.Errorf("DelegatedSecrets of a forged identity = %d secrets, %v; want NHITokenInvalid", len(got), err)
	}
	h.Revoke(t, who.ID)
	if got, err := h.Authority.DelegatedSecrets(t.Context(), who, []nhi.SecretRef{"shop-key"}); !errors.Is(err, fault.NHITokenInvalid) || len(got) > 0 {
		t.Errorf("DelegatedSecrets of a revoked agent = %d secrets, %v; want NHITokenInvalid", len(got), err)
	}
}

func testCertificate(t *testing.T, h Harness) {
	agent := h.Delegated(t, "bot", h.Human(t, "alice"), nhi.Everything())
	certificate := sha256.Sum256([]byte("a certificate"))
	cnf := nhi.Confirmation{X5T: base64.RawURLEncoding.EncodeToString(certificate[:])}
	token := h.Token(t, agent, "", cnf)
	who, err := h.Authority.Resolve(t.Context(), nhi.Credential{Token: token, Certificate: certificate})
	if err != nil || who.Confirmation != cnf {
		t.Fatalf("Resolve with the certificate = %+v, %v", who, err)
	}
	for name, c := range map[string]nhi.Credential{
		"no certificate":      {Token: token},
		"another certificate": {Token: token, Certificate: sha256.Sum256([]byte("another"))},
	} {
		if _, err := h.Authority.Resolve(t.Context(), c); !errors.Is(err, fault.NHITokenInvalid) {
			t.Errorf("Resolve with %s = %v, want NHITokenInvalid", name, err)
		}
	}
}

// A Prover makes DPoP proofs (RFC 9449) as a client does.
type Prover struct {
	key crypto.Signer
	alg string
}

// NewProver returns one with a fresh key for ES256, or EdDSA.
func NewProver(t testing.TB, alg string) Prover {
	t.Helper()
	var key crypto.Signer
	var err error
	if alg == "EdDSA" {
		_, key, err = ed25519.GenerateKey(rand.Reader)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return Prover{key: key, alg: alg}
}

// jwk is the public key in the members, and the order, of RFC 7638.
func (p Prover) jwk(t testing.TB) string {
	t.Helper()
	switch public := p.key.Public().(type) {
	case ed25519.PublicKey:
		return `{"crv":"Ed25519","kty":"OKP","x":"` + base64.RawURLEncoding.EncodeToString(public) + `"}`
	case *ecdsa.PublicKey:
		point, err := public.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return `{"crv":"P-256","kty":"EC","x":"` + base64.RawURLEncoding.EncodeToString(point[1:33]) + `","y":"` + base64.RawURLEncoding.EncodeToString(point[33:]) + `"}`
	}
	t.Fatal("no such key")
	return ""
}

// Thumbprint is the key's, as a token's cnf has it (RFC 7638).
func (p Prover) Thumbprint(t testing.TB) string {
	digest := sha256.Sum256([]byte(p.jwk(t)))
	return base64.RawURLEncoding.EncodeToString(digest[:])
}

// Claims returns those of a good proof.
func (p Prover) Claims(method, url, token string, at time.Time) map[string]any {
	digest := sha256.Sum256([]byte(token))
	return map[string]any{
		"jti": creto.NewUUID().String(), "htm": method, "htu": url, "iat": at.Unix(), "ath": base64.RawURLEncoding.EncodeToString(digest[:]),
	}
}

// Prove signs a proof of the given claims, under a header whose typ is given.
func (p Prover) Prove(t testing.TB, typ string, claims map[string]any) string {
	t.Helper()
	body, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"typ":"`+typ+`","alg":"`+p.alg+`","jwk":`+p.jwk(t)+`}`)) + "." + encode(body)
	var sig []byte
	switch key := p.key.(type) {
	case ed25519.PrivateKey:
		sig = ed25519.Sign(key, []byte(signed))
	case *ecdsa.PrivateKey:
		digest := sha256.Sum256([]byte(signed))
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		sig = make([]byte, 64)
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
	}
	return signed + "." + encode(sig)
}

func testDPoP(t *testing.T, h Harness) {
	const url = "http://localhost:7300/v1/models"
	agent := h.Delegated(t, "bot", h.Human(t, "alice"), nhi.Everything())
	for _, alg := range []string{"ES256", "EdDSA"} {
		p := NewProver(t, alg)
		token := h.Token(t, agent, "", nhi.Confirmation{JKT: p.Thumbprint(t)})
		good := func() map[string]any { return p.Claims("GET", url, token, h.Now()) }
		present := func(proof string) nhi.Credential {
			return nhi.Credential{Token: token, DPoP: proof, Method: "GET", URL: url}
		}
		proof := p.Prove(t, "dpop+jwt", good())
		who, err := h.Authority.Resolve(t.Context(), present(proof))
		if err != nil || who.Confirmation.JKT != p.Thumbprint(t) {
			t.Fatalf("%s: Resolve with a proof = %+v, %v", alg, who, err)
		}
		if err := h.Authority.Recheck(t.Context(), who); err != nil {
			t.Errorf("%s: Recheck of a proven identity = %v", alg, err)
		}
		with := func(key string, value any) string {
			claims := good()
			claims[key] = value
			return p.Prove(t, "dpop+jwt", claims)
		}
		other := good()
		bad := map[string]nhi.Credential{
			"no proof":            {Token: token, Method: "GET", URL: url},
			"a used proof":        present(proof),
			"another method":      {Token: token, DPoP: p.Prove(t, "dpop+jwt", good()), Method: "POST", URL: url},
			"another URL":         {Token: token, DPoP: p.Prove(t, "dpop+jwt", good()), Method: "GET", URL: "http://localhost:7300/v1/other"},
			"another host":        {Token: token, DPoP: p.Prove(t, "dpop+jwt", good()), Method: "GET", URL: "http://evil.test/v1/models"},
			"no method":           {Token: token, DPoP: p.Prove(t, "dpop+jwt", good()), URL: url},
			"no URL":              {Token: token, DPoP: p.Prove(t, "dpop+jwt", good()), Method: "GET"},
			"another token":       present(with("ath", "AAAA")),
			"no token":            present(with("ath", nil)),
			"an old proof":        present(with("iat", h.Now().Add(-2*time.Minute).Unix())),
			"a proof of tomorrow": present(with("iat", h.Now().Add(24*time.Hour).Unix())),
			"no id":               present(with("jti", "")),
			"a long id":           present(with("jti", strings.Repeat("x", 1000))),
			"no time":             present(with("iat", nil)),
			"another type":        present(p.Prove(t, "JWT", good())),
			"another's key":       present(NewProver(t, "ES256").Prove(t, "dpop+jwt", other)),
			"garbage":             present("x.y.z"),
			"a huge proof":        present(strings.Repeat("x", 1<<20)),
			"the token as proof":  present(token),
		}
		for name, c := range bad {
			if _, err := h.Authority.Resolve(t.Context(), c); !errors.Is(err, fault.NHITokenInvalid) {
				t.Errorf("%s: Resolve with %s = %v, want NHITokenInvalid", alg, name, err)
			}
		}
		query := present(p.Prove(t, "dpop+jwt", good()))
		query.URL += "?limit=1#top"
		if _, err := h.Authority.Resolve(t.Context(), query); err != nil {
			t.Errorf("%s: Resolve of a request with a query = %v; it is no part of the proof", alg, err)
		}
	}
}

func testAudience(t *testing.T, h Harness) {
	agent := h.Delegated(t, "bot", h.Human(t, "alice"), nhi.Everything())
	token := h.Token(t, agent, "https://api.example.com", nhi.Confirmation{})
	if _, err := h.Authority.Resolve(t.Context(), nhi.Credential{Token: token}); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Resolve of a token for somebody else = %v, want NHITokenInvalid", err)
	}
}
