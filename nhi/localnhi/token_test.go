package localnhi_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"creto.dev"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// withBot returns an authority with an agent that acts for alice.
func withBot(t testing.TB) (*localnhi.Authority, *consensustest.Manual, creto.ID) {
	t.Helper()
	a, clock, _ := open(t)
	alice, bot := a.ID(creto.KindHuman, "alice"), a.ID(creto.KindAgent, "bot")
	if err := errors.Join(a.AddMember(t.Context(), alice), a.AddAgent(t.Context(), bot), delegate(t, a, alice, bot, nhi.Everything())); err != nil {
		t.Fatal(err)
	}
	return a, clock, bot
}

func issue(t testing.TB, a *localnhi.Authority, agent creto.ID) string {
	t.Helper()
	token, _, err := a.IssueToken(t.Context(), agent, localnhi.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func encode(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// parts are a token's header and claims.
func parts(t testing.TB, token string) (header, claims map[string]any) {
	t.Helper()
	for i, to := range []*map[string]any{&header, &claims} {
		text, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, to); err != nil {
			t.Fatal(err)
		}
	}
	return header, claims
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestTokenForm: what others see is what the RFCs say.
func TestTokenForm(t *testing.T) {
	a, _, bot := withBot(t)
	helper := a.ID(creto.KindAgent, "helper")
	if err := errors.Join(a.AddAgent(t.Context(), helper), delegate(t, a, bot, helper, nhi.Everything())); err != nil {
		t.Fatal(err)
	}
	header, claims := parts(t, issue(t, a, helper))
	if header["typ"] != "at+jwt" || header["alg"] != "EdDSA" || header["kid"] == "" || header["jwk"] != nil {
		t.Errorf("the header is %v", header)
	}
	act := map[string]any{"sub": helper.String(), "act": map[string]any{"sub": bot.String()}}
	if string(marshal(t, claims["act"])) != string(marshal(t, act)) || claims["client_id"] != helper.String() || claims["sub"] != a.ID(creto.KindHuman, "alice").String() {
		t.Errorf("the claims are %v", claims)
	}
	for _, name := range []string{"iss", "aud", "exp", "iat", "jti", "chain", "epoch"} {
		if claims[name] == nil {
			t.Errorf("the claim %s is missing", name)
		}
	}
	if life := claims["exp"].(float64) - claims["iat"].(float64); life > nhi.MaxTokenTTL.Seconds() {
		t.Errorf("the token lives %v s", life)
	}
}

// TestForged: tokens that others sign, and those that this authority would never
// issue, though its key signed them.
func TestForged(t *testing.T) {
	a, clock, bot := withBot(t)
	other, _, otherBot := withBot(t)
	token := issue(t, a, bot)
	header, claims := parts(t, token)
	set, err := a.VerificationKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	public := set.Keys[0].Key.(ed25519.PublicKey)
	ecdsaKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	with := func(of map[string]any, pairs ...any) map[string]any {
		next := maps.Clone(of)
		for i := 0; i < len(pairs); i += 2 {
			if next[pairs[i].(string)] = pairs[i+1]; pairs[i+1] == nil {
				delete(next, pairs[i].(string))
			}
		}
		return next
	}
	signed := func(header map[string]any, sign func([]byte) []byte) string {
		text := encode(marshal(t, header)) + "." + encode(marshal(t, claims))
		return text + "." + encode(sign([]byte(text)))
	}
	hmacWith := func(key []byte) func([]byte) []byte {
		return func(text []byte) []byte { m := hmac.New(sha256.New, key); m.Write(text); return m.Sum(nil) }
	}
	es256 := func(text []byte) []byte {
		digest := sha256.Sum256(text)
		r, s, err := ecdsa.Sign(rand.Reader, ecdsaKey, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		sig := make([]byte, 64)
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
		return sig
	}
	ed := func(text []byte) []byte { return ed25519.Sign(edKey, text) }
	ours := func(pairs ...any) string { return a.SignWithTokenKey(t, "at+jwt", with(claims, pairs...)) }
	jwk := jose.JSONWebKey{Key: edKey.Public(), KeyID: header["kid"].(string)}
	svid, _, err := a.IssueJWTSVID(t.Context(), bot, localnhi.JWTSVIDRequest{Audience: localnhi.Audience})
	if err != nil {
		t.Fatal(err)
	}
	now := clockTime(t, clock)
	bad := map[string]string{
		"nothing":                       "",
		"garbage":                       "x.y.z",
		"something huge":                strings.Repeat("x", 1<<20),
		"alg none":                      signed(with(header, "alg", "none"), func([]byte) []byte { return nil }),
		"alg None":                      signed(with(header, "alg", "None"), func([]byte) []byte { return nil }),
		"no signature":                  strings.Join(strings.Split(token, ".")[:2], ".") + ".",
		"HS256 with the public key":     signed(with(header, "alg", "HS256"), hmacWith(public)),
		"HS256 with the key's JWK":      signed(with(header, "alg", "HS256"), hmacWith(marshal(t, set.Keys[0]))),
		"ES256 under the EdDSA kid":     signed(with(header, "alg", "ES256"), es256),
		"another EdDSA key":             signed(header, ed),
		"a key that it brings itself":   signed(with(header, "jwk", jwk), ed),
		"a key at a URL":                signed(with(header, "jku", "https://evil.test/jwks.json"), ed),
		"an unknown kid":                signed(with(header, "kid", "00000000000000000000000000000000"), ed),
		"no kid":                        signed(with(header, "kid", nil), ed),
		"a critical header":             signed(with(header, "crit", []string{"x"}, "x", 1), ed),
		"another authority":             issue(t, other, otherBot),
		"a JWT-SVID":                    svid,
		"type JWT":                      a.SignWithTokenKey(t, "JWT", claims),
		"type dpop+jwt":                 a.SignWithTokenKey(t, "dpop+jwt", claims),
		"another issuer":                ours("iss", "https://evil.test"),
		"no issuer":                     ours("iss", nil),
		"another audience":              ours("aud", "https://evil.test"),
		"no audience":                   ours("aud", nil),
		"no expiry":                     ours("exp", nil),
		"no time":                       ours("iat", nil),
		"no jti":                        ours("jti", nil),
		"no actor":                      ours("act", nil),
		"a long life":                   ours("exp", now.Add(16*time.Minute).Unix()),
		"a time to come":                ours("iat", now.Add(time.Minute).Unix(), "exp", now.Add(2*time.Minute).Unix()),
		"a start to come":               ours("nbf", now.Add(time.Minute).Unix()),
		"another trust domain":          ours("act", map[string]any{"sub": "spiffe://evil.test/default/agent/bot"}),
		"an agent of another tenant":    ours("act", map[string]any{"sub": "spiffe://test.local/other/agent/bot"}),
		"a human of another tenant":     ours("sub", "spiffe://test.local/other/human/alice"),
		"an agent for a human":          ours("sub", bot.String()),
		"a human for an agent":          ours("act", map[string]any{"sub": "spiffe://test.local/default/human/alice"}),
		"an unknown agent":              ours("act", map[string]any{"sub": "spiffe://test.local/default/agent/nobody"}),
		"no name at all":                ours("sub", "alice"),
		"two keys":                      ours("cnf", map[string]any{"jkt": "a", "x5t#S256": "b"}),
		"an earlier epoch":              ours("epoch", 1),
		"an expiry that is no number":   ours("exp", "tomorrow"),
		"a digest that is none":         ours("chain", "x"),
		"an audience that is no string": ours("aud", 7),
	}
	for name, forged := range bad {
		if _, err := a.Resolve(t.Context(), nhi.Credential{Token: forged}); !errors.Is(err, fault.NHITokenInvalid) {
			t.Errorf("Resolve of a token with %s = %v, want NHITokenInvalid", name, err)
		}
		if _, err := a.Inspect(t.Context(), forged); name != "another audience" && name != "no audience" && !errors.Is(err, fault.NHITokenInvalid) {
			t.Errorf("Inspect of a token with %s = %v, want NHITokenInvalid", name, err)
		}
	}
	if _, err := a.Resolve(t.Context(), nhi.Credential{Token: ours("exp", now.Add(-time.Second).Unix(), "iat", now.Add(-time.Minute).Unix())}); !errors.Is(err, fault.NHITokenExpired) {
		t.Errorf("Resolve of an expired token = %v, want NHITokenExpired", err)
	}
	// The forger of these tests can also sign a good one.
	if _, err := a.Resolve(t.Context(), nhi.Credential{Token: ours("jti", "another")}); err != nil {
		t.Errorf("Resolve of a good token = %v", err)
	}
}

func clockTime(t testing.TB, clock *consensustest.Manual) time.Time {
	t.Helper()
	stamp, err := clock.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return stamp.Time()
}

// TestTokenKeyRotation: a token of a replaced key lives its life, also when the
// authority has forgotten it; then nothing that the key signs counts.
func TestTokenKeyRotation(t *testing.T) {
	a, clock, bot := withBot(t)
	old := issue(t, a, bot)
	header, claims := parts(t, old)
	claims["jti"] = "later"
	claims["iat"], claims["exp"] = clockTime(t, clock).Add(15*time.Minute).Unix(), clockTime(t, clock).Add(29*time.Minute).Unix()
	stolen := a.SignWithTokenKey(t, "at+jwt", claims) // by who has a copy of the old key
	if _, err := a.Rotate(t.Context(), "platform", localnhi.RoleToken); err != nil {
		t.Fatal(err)
	}
	if next, _ := parts(t, issue(t, a, bot)); next["kid"] == header["kid"] {
		t.Error("a token after the rotation has the old key")
	}
	clock.Advance(nhi.MaxTokenTTL - 2*time.Second)
	if _, err := a.Resolve(t.Context(), nhi.Credential{Token: old}); err != nil {
		t.Errorf("Resolve of a token of the replaced key, before it ends = %v", err)
	}
	clock.Advance(3 * time.Second)
	if _, err := a.Resolve(t.Context(), nhi.Credential{Token: old}); !errors.Is(err, fault.NHITokenExpired) {
		t.Errorf("Resolve of a token of the replaced key, after it ended = %v, want NHITokenExpired", err)
	}
	if _, err := a.Resolve(t.Context(), nhi.Credential{Token: stolen}); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Resolve of what the replaced key signed for later = %v, want NHITokenInvalid", err)
	}
}

// TestProofAfterRestart: a proof that an earlier life may have seen is refused.
func TestProofAfterRestart(t *testing.T) {
	const target = "http://localhost:7300/v1/models"
	d := dbtest.Open(t)
	provider, clock := localpqc.New(), &consensustest.Manual{}
	clock.Set(time.Date(2026, 11, 22, 9, 0, 0, 5e8, time.UTC))
	kek, err := provider.GenerateSymmetricKey(pqc.AES256GCM)
	if err != nil {
		t.Fatal(err)
	}
	life := func() *localnhi.Authority {
		a, err := localnhi.Open(t.Context(), localnhi.Config{TrustDomain: "test.local", Tenant: creto.DefaultTenant}, d, provider, clock, kek)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	first := life()
	p := nhitest.NewProver(t, "ES256")
	proof := p.Prove(t, "dpop+jwt", p.Claims("GET", target, "", clockTime(t, clock)))
	c := nhi.Credential{DPoP: proof, Method: "GET", URL: target}
	if _, err := first.Possession(t.Context(), c, nhi.Confirmation{}); err != nil {
		t.Fatal(err)
	}
	clock.Advance(2 * time.Second)
	second := life()
	if _, err := second.Possession(t.Context(), c, nhi.Confirmation{}); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Possession with a proof of before the restart = %v, want NHITokenInvalid", err)
	}
	c.DPoP = p.Prove(t, "dpop+jwt", p.Claims("GET", target, "", clockTime(t, clock)))
	if _, err := second.Possession(t.Context(), c, nhi.Confirmation{}); err != nil {
		t.Errorf("Possession with a proof of after the restart = %v", err)
	}
}

// TestIssueRefuses: nothing is issued that is for nobody, or that nobody could
// use.
func TestIssueRefuses(t *testing.T) {
	a, _, bot := withBot(t)
	digest := sha256.Sum256([]byte("key"))
	good := encode(digest[:])
	for name, r := range map[string]localnhi.TokenRequest{
		"a space in the audience": {Audience: "a b"},
		"a long audience":         {Audience: strings.Repeat("x", 513)},
		"a short thumbprint":      {Confirmation: nhi.Confirmation{JKT: "abc"}},
		"a padded thumbprint":     {Confirmation: nhi.Confirmation{JKT: good + "="}},
		"a hexadecimal one":       {Confirmation: nhi.Confirmation{X5T: strings.Repeat("ab", 32)}},
		"two keys":                {Confirmation: nhi.Confirmation{JKT: good, X5T: good}},
	} {
		if token, _, err := a.IssueToken(t.Context(), bot, r); !errors.Is(err, fault.InvalidArgument) || token != "" {
			t.Errorf("IssueToken with %s = %v, want InvalidArgument", name, err)
		}
	}
	if _, _, err := a.IssueToken(t.Context(), bot, localnhi.TokenRequest{Chain: creto.DigestOf([]byte("x"))}); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
		t.Errorf("IssueToken under another chain = %v, want NHIDelegationVerificationFailed", err)
	}
	if err := a.Revoke(t.Context(), bot); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.IssueToken(t.Context(), bot, localnhi.TokenRequest{}); !errors.Is(err, fault.NHINotFound) {
		t.Errorf("IssueToken for a revoked agent = %v, want NHINotFound", err)
	}
}

func FuzzResolve(f *testing.F) {
	a, _, bot := withBot(f)
	token := issue(f, a, bot)
	who, err := a.Resolve(f.Context(), nhi.Credential{Token: token})
	if err != nil {
		f.Fatal(err)
	}
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	jwk := jose.JSONWebKey{Key: public}
	for _, seed := range []string{token, token[:len(token)-1], "x.y.z", "", `{"payload":"","signatures":[]}`, "e30.e30.e30", encode(marshal(f, map[string]any{"alg": "none"})) + ".e30.", encode(marshal(f, map[string]any{"alg": "EdDSA", "jwk": jwk})) + ".e30.AA"} {
		f.Add(seed, "", "GET", "http://localhost:7300/v1/models")
		f.Add(token, seed, "GET", "http://localhost:7300/v1/models")
	}
	f.Fuzz(func(t *testing.T, text, proof, method, url string) {
		got, err := a.Resolve(t.Context(), nhi.Credential{Token: text, DPoP: proof, Method: method, URL: url})
		switch {
		case err == nil && got != who: // the text may have another base64 of the same bytes
			t.Fatalf("Resolve(%q) = %+v", text, got)
		case err != nil && !errors.Is(err, fault.NHITokenInvalid):
			t.Fatalf("Resolve(%q) = %v, want NHITokenInvalid", text, err)
		}
		// A proof alone proves nothing about our keys, and must not panic.
		if cnf, err := a.Possession(t.Context(), nhi.Credential{DPoP: proof, Method: method, URL: url}, nhi.Confirmation{}); err == nil && (cnf.JKT == "") != (proof == "") {
			t.Fatalf("Possession of %q = %+v", proof, cnf)
		}
	})
}
