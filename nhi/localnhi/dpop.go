package localnhi

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"creto.dev/fault"
	"creto.dev/nhi"
)

const (
	// proofWindow is how old a proof may be, and proofSkew how far the clock of
	// who made it may be ahead of ours (RFC 9449, section 11.1).
	proofWindow = time.Minute
	proofSkew   = 10 * time.Second
	// maxProofs bounds the memory of proofs that were used within proofWindow
	// and proofSkew; beyond it every proof is refused until the oldest have aged
	// out. maxProofsOfKey bounds those of one key, so that no agent takes the
	// memory from all others.
	maxProofs      = 100_000
	maxProofsOfKey = 20_000
	// maxProofBytes bounds a proof and maxProofID its jti.
	maxProofBytes = 4 << 10
	maxProofID    = 128
)

// dpop remembers the proofs that were used, in memory: of those from before it
// began it knows nothing, and refuses them.
type dpop struct {
	began time.Time

	mu          sync.Mutex // guards what follows
	now, before usedProofs // those of a while, and of the while before
	turn        time.Time  // when now becomes before
}

// usedProofs are proofs, by digest, and how many of them each key made.
type usedProofs struct {
	proofs map[[32]byte]bool
	ofKey  map[string]int
}

// proofClaims are those of a DPoP proof (RFC 9449, section 4.2).
type proofClaims struct {
	ID       string           `json:"jti"`
	Method   string           `json:"htm"`
	URL      string           `json:"htu"`
	IssuedAt *jwt.NumericDate `json:"iat"`
	Token    string           `json:"ath"`
}

// possessed returns nil if c's sender has the key that the token is bound to.
//
// Errors: NHITokenInvalid (Security).
func (t *tokens) possessed(c nhi.Credential, cnf nhi.Confirmation, now time.Time) error {
	const op fault.Op = "localnhi.possessed"
	if cnf.X5T != "" {
		got := base64.RawURLEncoding.EncodeToString(c.Certificate[:])
		if c.Certificate == [32]byte{} || subtle.ConstantTimeCompare([]byte(got), []byte(cnf.X5T)) != 1 {
			return fault.New(op, fault.NHITokenInvalid, "the token is bound to another client certificate")
		}
		return nil
	}
	key, err := t.dpop.verify(c.DPoP, c.Method, c.URL, c.Token, now)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(key), []byte(cnf.JKT)) != 1 {
		return fault.New(op, fault.NHITokenInvalid, "the token is bound to another DPoP key")
	}
	return nil
}

// Possession returns the key that a request for a token proves to have, which
// the new token is to be bound to: cnf, if it is not zero, and no other; else
// that of a DPoP proof, which names no token (RFC 9449, section 5), or the
// client's certificate (RFC 8705); else the zero Confirmation. c's token is not
// looked at.
//
// Errors: NHITokenInvalid (Security).
func (a *Authority) Possession(ctx context.Context, c nhi.Credential, cnf nhi.Confirmation) (nhi.Confirmation, error) {
	const op fault.Op = "localnhi.Possession"
	now, err := a.now(ctx)
	if err != nil {
		return nhi.Confirmation{}, fault.Wrap(op, err)
	}
	c.Token = ""
	if !cnf.IsZero() {
		return cnf, a.tokens.possessed(c, cnf, now)
	}
	switch {
	case c.DPoP != "":
		key, err := a.tokens.dpop.verify(c.DPoP, c.Method, c.URL, "", now)
		return nhi.Confirmation{JKT: key}, err
	case c.Certificate != [32]byte{}:
		return nhi.Confirmation{X5T: base64.RawURLEncoding.EncodeToString(c.Certificate[:])}, nil
	}
	return nhi.Confirmation{}, nil
}

// verify checks a proof (RFC 9449, section 4.3), and that it was not used
// before, and returns the thumbprint of its key.
func (d *dpop) verify(proof, method, target, token string, now time.Time) (string, error) {
	const op fault.Op = "localnhi.dpop"
	bad := func(why string) (string, error) {
		return "", fault.New(op, fault.NHITokenInvalid, "the DPoP proof is not valid: %s", why)
	}
	if proof == "" {
		return "", fault.New(op, fault.NHITokenInvalid, "the token is bound to a key: a DPoP proof is missing")
	}
	if len(proof) > maxProofBytes {
		return bad("it is too long")
	}
	parsed, err := jwt.ParseSigned(proof, []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA})
	if err != nil {
		return bad("it is no JWT signed with ES256 or EdDSA")
	}
	header := parsed.Headers[0]
	if typ, _ := header.ExtraHeaders[jose.HeaderType].(string); typ != "dpop+jwt" {
		return bad("its type is not dpop+jwt")
	}
	if header.JSONWebKey == nil || !header.JSONWebKey.Valid() || !header.JSONWebKey.IsPublic() {
		return bad("it has no public key")
	}
	var c proofClaims
	if err := parsed.Claims(header.JSONWebKey.Key, &c); err != nil {
		return bad("it is not signed by its key")
	}
	switch {
	case c.ID == "" || len(c.ID) > maxProofID:
		return bad("its jti is missing or too long")
	case c.Method != method || method == "":
		return bad("it is for another method")
	case !sameURL(c.URL, target):
		return bad("it is for another URL")
	case c.IssuedAt == nil || now.Sub(c.IssuedAt.Time()) > proofWindow || c.IssuedAt.Time().Sub(now) > proofSkew:
		return bad("its time is not now; is the clock right?")
	case c.IssuedAt.Time().Unix() < d.began.Unix(): // its time is to the second
		return bad("it is from before the node's start; make another")
	}
	if token != "" {
		digest := sha256.Sum256([]byte(token))
		if subtle.ConstantTimeCompare([]byte(c.Token), []byte(base64.RawURLEncoding.EncodeToString(digest[:]))) != 1 {
			return bad("it is for another token")
		}
	}
	thumbprint, err := header.JSONWebKey.Thumbprint(crypto.SHA256)
	if err != nil {
		return bad("its key has no thumbprint")
	}
	key := base64.RawURLEncoding.EncodeToString(thumbprint)
	if why := d.use(key, c.ID, now); why != "" {
		return bad(why)
	}
	return key, nil
}

// use remembers a proof, as long as its time can pass, and says why it may not be
// used.
func (d *dpop) use(key, id string, now time.Time) string {
	digest := sha256.Sum256([]byte(key + " " + id))
	d.mu.Lock()
	defer d.mu.Unlock()
	if !now.Before(d.turn) {
		d.before, d.now = d.now, usedProofs{make(map[[32]byte]bool), make(map[string]int)}
		if now.Sub(d.turn) >= proofWindow+proofSkew { // a while without any proof
			d.before = usedProofs{}
		}
		d.turn = now.Add(proofWindow + proofSkew)
	}
	switch {
	case d.now.proofs[digest] || d.before.proofs[digest]:
		return "it was used before"
	case len(d.now.proofs) >= maxProofs || d.now.ofKey[key] >= maxProofsOfKey:
		return "too many proofs were used lately; try again in a minute"
	}
	d.now.proofs[digest] = true
	d.now.ofKey[key]++
	return ""
}

// sameURL compares without query and fragment (RFC 9449, section 4.3), after
// normalizing (RFC 3986, sections 6.2.2 and 6.2.3).
func sameURL(a, b string) bool {
	x, err := url.Parse(a)
	if err != nil {
		return false
	}
	y, err := url.Parse(b)
	if err != nil {
		return false
	}
	return x.Scheme != "" && x.Host != "" && normal(x) == normal(y)
}

func normal(u *url.URL) string {
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "http":
		host = strings.TrimSuffix(host, ":80")
	case "https":
		host = strings.TrimSuffix(host, ":443")
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	return scheme + "://" + host + path
}
