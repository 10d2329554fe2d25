package nhi_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/nhi"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// passkey is an authenticator in software with one key.
type passkey struct {
	cose []byte
	sign func(message []byte) []byte
}

func passkeys(t testing.TB) map[string]passkey {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	encode := func(v any) []byte {
		data, err := canon.Marshal(v)
		check(err)
		return data
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	point, err := ec.PublicKey.Bytes()
	check(err)
	edPublic, ed, err := ed25519.GenerateKey(rand.Reader)
	check(err)
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	check(err)
	return map[string]passkey{
		"ES256": {
			encode(map[int]any{1: 2, 3: -7, -1: 1, -2: point[1:33], -3: point[33:]}),
			func(message []byte) []byte {
				digest := sha256.Sum256(message)
				signature, err := ecdsa.SignASN1(rand.Reader, ec, digest[:])
				check(err)
				return signature
			},
		},
		"EdDSA": {
			encode(map[int]any{1: 1, 3: -8, -1: 6, -2: []byte(edPublic)}),
			func(message []byte) []byte { return ed25519.Sign(ed, message) },
		},
		"RS256": {
			encode(map[int]any{1: 3, 3: -257, -1: rs.N.Bytes(), -2: big.NewInt(int64(rs.E)).Bytes()}),
			func(message []byte) []byte {
				digest := sha256.Sum256(message)
				signature, err := rsa.SignPKCS1v15(nil, rs, crypto.SHA256, digest[:])
				check(err)
				return signature
			},
		},
	}
}

// ceremony is what a browser and an authenticator do; edits are of the parts
// that get signed.
type ceremony struct {
	nonce      string
	rpID       string
	origin     string
	flags      byte
	extra      []byte
	clientData string
}

func (k passkey) assert(link nhi.Link, edit func(*ceremony)) nhi.WebAuthnAssertion {
	challenge, err := link.Challenge()
	if err != nil {
		panic(err)
	}
	c := ceremony{nonce: base64.RawURLEncoding.EncodeToString(challenge[:]), rpID: "localhost", origin: "http://localhost:7300", flags: 0x1d}
	c.clientData = `{"type":"webauthn.get","challenge":"` + c.nonce + `","origin":"` + c.origin + `","crossOrigin":false,"other":{"a":[1]}}`
	if edit != nil {
		edit(&c)
	}
	hash := sha256.Sum256([]byte(c.rpID))
	data := append(append(hash[:], c.flags, 0, 0, 0, 7), c.extra...)
	client := sha256.Sum256([]byte(c.clientData))
	return nhi.WebAuthnAssertion{
		RPID: c.rpID, Origin: c.origin, CredentialID: []byte{1, 2, 3}, PublicKey: k.cose,
		AuthenticatorData: data, ClientDataJSON: []byte(c.clientData), Signature: k.sign(append(bytes.Clone(data), client[:]...)),
	}
}

// root is a trust domain that signs whatever link it is given.
type root struct {
	p      pqc.Provider
	key    pqc.SigningKey
	public pqc.PublicKey
}

func newRoot(t testing.TB) root {
	t.Helper()
	r := root{p: localpqc.New()}
	var err error
	if r.key, err = r.p.GenerateSigningKey(pqc.MLDSA65Ed25519); err != nil {
		t.Fatal(err)
	}
	if r.public, err = r.p.Public(r.key); err != nil {
		t.Fatal(err)
	}
	return r
}

// draft is a link of alice's without a proof.
func (r root) draft() nhi.Link {
	return nhi.Link{
		Issuer:  creto.ID{TrustDomain: "test.local", Tenant: "default", Kind: creto.KindHuman, Name: "alice"},
		Subject: creto.ID{TrustDomain: "test.local", Tenant: "default", Kind: creto.KindAgent, Name: "boss"}, SubjectKey: r.public,
		Scope: nhi.Everything(), NotBefore: 1000, NotAfter: 2000, MaxDepth: 2, Nonce: creto.NewUUID(),
	}
}

// verify signs link with proof and verifies the chain it makes.
func (r root) verify(t testing.TB, link nhi.Link, proof nhi.Proof) (nhi.VerifiedChain, error) {
	t.Helper()
	link.Proof = proof
	signed, err := nhi.SignLink(r.p, r.key, link)
	if err != nil {
		t.Fatal(err)
	}
	return nhi.VerifyDelegation(t.Context(), []nhi.SignedLink{signed}, []pqc.PublicKey{r.public}, r.p, time.Unix(1500, 0), nil)
}

func proofOf(t testing.TB, p interface{ Proof() (nhi.Proof, error) }) nhi.Proof {
	t.Helper()
	proof, err := p.Proof()
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

func TestChallenge(t *testing.T) {
	r := newRoot(t)
	link := r.draft()
	want, err := link.Challenge()
	if err != nil || want.IsZero() {
		t.Fatalf("Challenge = %v, %v", want, err)
	}
	link.Proof, link.Version = nhi.Proof{Kind: nhi.ProofWebAuthn, Data: []byte("x")}, 1
	if got, err := link.Challenge(); err != nil || got != want {
		t.Errorf("with a proof it is %v, %v, want %v", got, err, want)
	}
	for name, edit := range map[string]func(*nhi.Link){
		"nonce":    func(l *nhi.Link) { l.Nonce = creto.NewUUID() },
		"issuer":   func(l *nhi.Link) { l.Issuer.Name = "bob" },
		"subject":  func(l *nhi.Link) { l.Subject.Name = "other" },
		"scope":    func(l *nhi.Link) { l.Scope.Actions = []string{"call_model"} },
		"end":      func(l *nhi.Link) { l.NotAfter++ },
		"depth":    func(l *nhi.Link) { l.MaxDepth++ },
		"its key":  func(l *nhi.Link) { l.SubjectKey.Bytes = []byte{1} },
		"an epoch": func(l *nhi.Link) { l.IssuerEpoch++ },
	} {
		changed := link
		edit(&changed)
		if got, err := changed.Challenge(); err != nil || got == want {
			t.Errorf("another %s has the same challenge, %v", name, err)
		}
	}
}

func TestPasskeyProof(t *testing.T) {
	r := newRoot(t)
	keys := passkeys(t)
	for name, key := range keys {
		link := r.draft()
		proof := proofOf(t, key.assert(link, nil))
		chain, err := r.verify(t, link, proof)
		if err != nil || chain.Proof() != nhi.ProofWebAuthn || chain.HumanProof().String() != proof.String() {
			t.Errorf("%s: %q, %v", name, chain.HumanProof(), err)
		}
		if got := proof.String(); got != "by passkey (localhost)" {
			t.Errorf("String = %q", got)
		}
		a := key.assert(link, nil)
		a.Signature[len(a.Signature)-1] ^= 1
		refuseProof(t, r, name+" with a changed signature", link, proofOf(t, a), "")
		other := key.assert(link, nil)
		other.PublicKey = passkeys(t)[name].cose
		refuseProof(t, r, name+" of another key", link, proofOf(t, other), "signature is wrong")
	}
	link := r.draft()
	es256 := keys["ES256"]
	for name, test := range map[string]struct {
		edit func(*ceremony)
		says string
	}{
		"below a domain, over https": {func(c *ceremony) {
			c.rpID, c.origin, c.clientData = "creto.example", "https://a.creto.example", strings.Replace(c.clientData, c.origin, "https://a.creto.example", 1)
		}, ""},
		"without crossOrigin":          {func(c *ceremony) { c.clientData = strings.Replace(c.clientData, `,"crossOrigin":false`, "", 1) }, ""},
		"with extensions":              {func(c *ceremony) { c.flags |= 0x80; c.extra = []byte{0xa0} }, ""},
		"a registration":               {func(c *ceremony) { c.clientData = strings.Replace(c.clientData, "webauthn.get", "webauthn.create", 1) }, "no login"},
		"another challenge":            {func(c *ceremony) { c.clientData = strings.Replace(c.clientData, c.nonce, c.nonce[1:]+"A", 1) }, "another challenge"},
		"a padded challenge":           {func(c *ceremony) { c.clientData = strings.Replace(c.clientData, c.nonce, c.nonce+"=", 1) }, "another challenge"},
		"another origin":               {func(c *ceremony) { c.clientData = strings.Replace(c.clientData, ":7300", ":7301", 1) }, "another origin"},
		"in a frame":                   {func(c *ceremony) { c.clientData = strings.Replace(c.clientData, "false", "true", 1) }, "another site's page"},
		"in a frame, oddly":            {func(c *ceremony) { c.clientData = strings.Replace(c.clientData, "false", `"no"`, 1) }, "another site's page"},
		"with a top origin":            {func(c *ceremony) { c.clientData = strings.Replace(c.clientData, `"other"`, `"topOrigin"`, 1) }, "another site's page"},
		"a name twice, the last wrong": {func(c *ceremony) { c.clientData = strings.Replace(c.clientData, `"other"`, `"challenge"`, 1) }, "another challenge"},
		"a name twice, the last right": {func(c *ceremony) { c.clientData = `{"type":"webauthn.create",` + c.clientData[1:] }, ""},
		"embedded after all": {func(c *ceremony) {
			c.clientData = strings.Replace(c.clientData, `"other"`, `"crossOrigin":true,"other"`, 1)
		}, "another site's page"},
		"a name in capitals":             {func(c *ceremony) { c.clientData = strings.Replace(c.clientData, `"type"`, `"Type"`, 1) }, "no login"},
		"no object":                      {func(c *ceremony) { c.clientData = `"x"` }, "malformed"},
		"something behind":               {func(c *ceremony) { c.clientData += "{}" }, "malformed"},
		"half":                           {func(c *ceremony) { c.clientData = c.clientData[:40] }, "malformed"},
		"not UTF-8":                      {func(c *ceremony) { c.clientData = strings.Replace(c.clientData, "other", "\xff", 1) }, "malformed"},
		"nothing":                        {func(c *ceremony) { c.clientData = "" }, "wrong size"},
		"too much":                       {func(c *ceremony) { c.clientData += strings.Repeat(" ", 5000) }, "wrong size"},
		"nobody present":                 {func(c *ceremony) { c.flags &^= 0x01 }, "nobody was present"},
		"nobody verified":                {func(c *ceremony) { c.flags &^= 0x04 }, "not verified"},
		"a backup that is not eligible":  {func(c *ceremony) { c.flags &^= 0x08 }, "contradict"},
		"attested data":                  {func(c *ceremony) { c.flags |= 0x40 }, "malformed"},
		"extensions that are not there":  {func(c *ceremony) { c.flags |= 0x80 }, "malformed"},
		"extensions without their flag":  {func(c *ceremony) { c.extra = []byte{0xa0} }, "malformed"},
		"a relying party that is not it": {func(c *ceremony) { c.rpID = "host" }, "relying party"},
		"no relying party":               {func(c *ceremony) { c.rpID = "" }, "relying party"},
		"in the clear": {func(c *ceremony) {
			c.rpID, c.origin, c.clientData = "creto.example", "http://creto.example", strings.Replace(c.clientData, c.origin, "http://creto.example", 1)
		}, "relying party"},
		"a path": {func(c *ceremony) {
			c.clientData = strings.Replace(c.clientData, c.origin, c.origin+"/", 1)
			c.origin += "/"
		}, "relying party"},
	} {
		proof := proofOf(t, es256.assert(link, test.edit))
		if test.says == "" {
			if _, err := r.verify(t, link, proof); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		refuseProof(t, r, name, link, proof, test.says)
	}
	for name, test := range map[string]struct {
		edit func(*nhi.WebAuthnAssertion)
		says string
	}{
		"another rpIdHash":   {func(a *nhi.WebAuthnAssertion) { a.AuthenticatorData[0] ^= 1 }, "another relying party"},
		"a changed counter":  {func(a *nhi.WebAuthnAssertion) { a.AuthenticatorData[36] ^= 1 }, "signature is wrong"},
		"short":              {func(a *nhi.WebAuthnAssertion) { a.AuthenticatorData = a.AuthenticatorData[:36] }, "wrong size"},
		"no credential":      {func(a *nhi.WebAuthnAssertion) { a.CredentialID = nil }, "wrong size"},
		"a large credential": {func(a *nhi.WebAuthnAssertion) { a.CredentialID = make([]byte, 1024) }, "wrong size"},
		"no signature":       {func(a *nhi.WebAuthnAssertion) { a.Signature = nil }, "wrong size"},
		"no key":             {func(a *nhi.WebAuthnAssertion) { a.PublicKey = nil }, "wrong size"},
		"no COSE key":        {func(a *nhi.WebAuthnAssertion) { a.PublicKey = []byte{0xa0} }, "unknown form"},
		"a key off its curve": {func(a *nhi.WebAuthnAssertion) {
			a.PublicKey = bytes.Clone(a.PublicKey)
			a.PublicKey[len(a.PublicKey)-1] ^= 1
		}, "no point"},
		"another algorithm": {func(a *nhi.WebAuthnAssertion) {
			a.PublicKey = bytes.Replace(a.PublicKey, []byte{0x03, 0x26}, []byte{0x03, 0x27}, 1)
		}, "unknown form"},
	} {
		a := es256.assert(link, nil)
		test.edit(&a)
		refuseProof(t, r, name, link, proofOf(t, a), test.says)
	}
	// A confirmation is for one link.
	refuseProof(t, r, "another link", r.draft(), proofOf(t, es256.assert(link, nil)), "another challenge")
}

// refuseProof holds verification to refuse a proof, for that reason.
func refuseProof(t *testing.T, r root, name string, link nhi.Link, proof nhi.Proof, says string) {
	t.Helper()
	_, err := r.verify(t, link, proof)
	if !errors.Is(err, fault.NHIDelegationVerificationFailed) || !strings.Contains(fault.Message(err), says) {
		t.Errorf("%s: %v, want NHIDelegationVerificationFailed that says %q", name, err, says)
	}
}

func TestOIDCProof(t *testing.T) {
	r := newRoot(t)
	link := r.draft()
	challenge, err := link.Challenge()
	if err != nil {
		t.Fatal(err)
	}
	good := nhi.OIDCEvidence{
		Issuer: "https://idp.example/realm", Subject: "248289761001", Audience: "creto", TokenHash: make([]byte, 32),
		AuthTime: 1000, Nonce: base64.RawURLEncoding.EncodeToString(challenge[:]),
	}
	proof := proofOf(t, good)
	if chain, err := r.verify(t, link, proof); err != nil || chain.Proof() != nhi.ProofOIDC {
		t.Errorf("a good one: %q, %v", chain.Proof(), err)
	}
	if got, want := proof.String(), "by OIDC https://idp.example/realm subject 248289761001"; got != want {
		t.Errorf("String = %q, want %q", got, want)
	}
	for name, test := range map[string]struct {
		edit func(*nhi.OIDCEvidence)
		says string
	}{
		"another nonce":       {func(e *nhi.OIDCEvidence) { e.Nonce = strings.ToLower(e.Nonce) }, "another nonce"},
		"no nonce":            {func(e *nhi.OIDCEvidence) { e.Nonce = "" }, "another nonce"},
		"no issuer":           {func(e *nhi.OIDCEvidence) { e.Issuer = "" }, "no address"},
		"an issuer's query":   {func(e *nhi.OIDCEvidence) { e.Issuer += "?x" }, "no address"},
		"another scheme":      {func(e *nhi.OIDCEvidence) { e.Issuer = "ftp://idp.example" }, "no address"},
		"no subject":          {func(e *nhi.OIDCEvidence) { e.Subject = "" }, "wrong size"},
		"a long subject":      {func(e *nhi.OIDCEvidence) { e.Subject = strings.Repeat("x", 256) }, "wrong size"},
		"no audience":         {func(e *nhi.OIDCEvidence) { e.Audience = "" }, "wrong size"},
		"half a hash":         {func(e *nhi.OIDCEvidence) { e.TokenHash = e.TokenHash[:16] }, "hash has a wrong size"},
		"an old login":        {func(e *nhi.OIDCEvidence) { e.AuthTime = 879 }, "did not authenticate"},
		"a login of tomorrow": {func(e *nhi.OIDCEvidence) { e.AuthTime = 2000 }, "did not authenticate"},
	} {
		e := good
		test.edit(&e)
		refuseProof(t, r, name, link, proofOf(t, e), test.says)
	}
	refuseProof(t, r, "another link", r.draft(), proof, "another nonce")
}

func TestProofKinds(t *testing.T) {
	r := newRoot(t)
	link := r.draft()
	if _, err := r.verify(t, link, nhi.Proof{Kind: nhi.ProofBootstrap}); err != nil {
		t.Errorf("bootstrap: %v", err)
	}
	for name, proof := range map[string]nhi.Proof{
		"none":                   {},
		"unknown":                {Kind: "palm-reading"},
		"bootstrap with data":    {Kind: nhi.ProofBootstrap, Data: []byte{1}},
		"a passkey without data": {Kind: nhi.ProofWebAuthn},
		"OIDC without data":      {Kind: nhi.ProofOIDC},
		"a passkey of nothing":   {Kind: nhi.ProofWebAuthn, Data: []byte{0xa0}},
		"too large":              {Kind: nhi.ProofWebAuthn, Data: make([]byte, 17<<10)},
		"OIDC data as a passkey": {Kind: nhi.ProofWebAuthn, Data: proofOf(t, nhi.OIDCEvidence{Issuer: "https://x"}).Data},
	} {
		refuseProof(t, r, name, link, proof, "")
		if strings.Contains(proof.String(), "by passkey (") {
			t.Errorf("%s is shown as %q", name, proof)
		}
	}
}

// Whatever bytes a proof holds, it is refused or it is the one that was made.
func FuzzParseProof(f *testing.F) {
	r := newRoot(f)
	link := r.draft()
	for _, key := range passkeys(f) {
		f.Add(nhi.ProofWebAuthn, proofOf(f, key.assert(link, nil)).Data)
	}
	f.Add(nhi.ProofOIDC, proofOf(f, nhi.OIDCEvidence{Issuer: "https://x", TokenHash: make([]byte, 32)}).Data)
	f.Add(nhi.ProofBootstrap, []byte(nil))
	other := r.draft() // which nothing above confirms
	f.Fuzz(func(t *testing.T, kind string, data []byte) {
		proof := nhi.Proof{Kind: kind, Data: data}
		_ = proof.String()
		if kind == nhi.ProofBootstrap && len(data) == 0 {
			return
		}
		if _, err := r.verify(t, other, proof); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
			t.Errorf("%v", err)
		}
	})
}

// Client data is written by browsers: whatever is there, only this link's is
// taken.
func FuzzParseClientData(f *testing.F) {
	r := newRoot(f)
	link := r.draft()
	key := passkeys(f)["EdDSA"]
	f.Add(string(key.assert(link, nil).ClientDataJSON))
	f.Add(`{"type":"webauthn.get","type":"webauthn.get"}`)
	f.Fuzz(func(t *testing.T, text string) {
		a := key.assert(link, func(c *ceremony) { c.clientData = text })
		if _, err := r.verify(t, link, proofOf(t, a)); err == nil && !strings.Contains(text, "webauthn.get") && !strings.Contains(text, `\u`) {
			t.Errorf("accepted %q", text)
		}
	})
}
