package localnhi

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/nhi"
)

const (
	// MaxX509SVIDTTL bounds the life of an X.509-SVID.
	MaxX509SVIDTTL = time.Hour
	// MaxJWTSVIDTTL bounds the life of a JWT-SVID: nobody asks us whether it
	// was revoked.
	MaxJWTSVIDTTL = 5 * time.Minute
	// caTTL is the life of a certificate authority's certificate; after half
	// of it another takes over.
	caTTL = 180 * 24 * time.Hour
	// skew is how far a peer's clock may be behind ours.
	skew = time.Minute
)

// svids signs SVIDs.
type svids struct {
	renewal sync.Mutex // held while the certificate authority is replaced

	mu     sync.RWMutex // guards everything below
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
	signer jose.Signer
	jwt    []svidKey // the newest first
	x509   []caCertificate
}

// svidKey verifies JWT-SVIDs, and caCertificate X.509-SVIDs; retired is zero
// for the one in use.
type svidKey struct {
	public  jose.JSONWebKey
	retired time.Time
}

type caCertificate struct {
	certificate *x509.Certificate
	retired     time.Time
}

// gone reports whether all that a key signed has ended.
func gone(retired, now time.Time, ttl time.Duration) bool {
	return !retired.IsZero() && now.Sub(retired) > ttl
}

// loadSVIDKeys reads the keys of svids, making the first.
func (a *Authority) loadSVIDKeys(ctx context.Context) error {
	const op fault.Op = "localnhi.loadSVIDKeys"
	ca, err := a.key(ctx, Platform, RoleCA)
	if err != nil {
		return fault.Wrap(op, err)
	}
	caKey, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), ca.seed)
	if err != nil {
		return fault.WrapAs(op, fault.DataLoss, err, "the key of the certificate authority is damaged")
	}
	active, err := a.key(ctx, Platform, RoleSVID)
	if err != nil {
		return fault.Wrap(op, err)
	}
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), active.seed)
	if err != nil {
		return fault.WrapAs(op, fault.DataLoss, err, "the key of JWT-SVIDs is damaged")
	}
	// JWT-SVID, section 2.3: typ is JWT or JOSE if it is there.
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: private, KeyID: string(active.ID)}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return fault.WrapAs(op, fault.CryptoInternal, err, "")
	}
	stored, err := a.Keys(ctx, Platform)
	if err != nil {
		return fault.Wrap(op, err)
	}
	var jwtKeys []svidKey
	var certificates []caCertificate
	for _, k := range stored {
		switch k.Role {
		case RoleSVID:
			public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), k.Public)
			if err != nil {
				return fault.WrapAs(op, fault.DataLoss, err, "the key %s is damaged", k.ID)
			}
			jwtKeys = append(jwtKeys, svidKey{public: jose.JSONWebKey{Key: public, KeyID: string(k.ID), Algorithm: string(jose.ES256), Use: "sig"}, retired: k.Retired})
		case RoleCA:
			certificate, err := x509.ParseCertificate(k.Public)
			if err != nil {
				return fault.WrapAs(op, fault.DataLoss, err, "the certificate of the key %s is damaged", k.ID)
			}
			certificates = append(certificates, caCertificate{certificate: certificate, retired: k.Retired})
		}
	}
	s := a.svids
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ca, s.caKey, s.signer, s.jwt, s.x509 = certificates[0].certificate, caKey, signer, jwtKeys, certificates
	return nil
}

// generateCA returns a fresh key of a certificate authority of this trust
// domain, and its certificate (X509-SVID, section 4, for signing certificates).
func (a *Authority) generateCA(ctx context.Context) (seed, certificate []byte, err error) {
	const op fault.Op = "localnhi.generateCA"
	now, err := a.now(ctx)
	if err != nil {
		return nil, nil, fault.Wrap(op, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fault.WrapAs(op, fault.CryptoInternal, err, "")
	}
	number, err := serial()
	if err != nil {
		return nil, nil, fault.Wrap(op, err)
	}
	template := &x509.Certificate{
		SerialNumber: number,
		// Verifiers that look for an issuer by its name find the right one.
		Subject:   pkix.Name{Organization: []string{a.cfg.TrustDomain}, CommonName: "Creto SVID CA", SerialNumber: number.Text(16)},
		URIs:      []*url.URL{{Scheme: "spiffe", Host: a.cfg.TrustDomain}},
		NotBefore: now.Add(-skew), NotAfter: now.Add(caTTL),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	certificate, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fault.WrapAs(op, fault.CryptoSignatureGenerationFailed, err, "")
	}
	seed, err = key.Bytes()
	return seed, certificate, fault.WrapAs(op, fault.CryptoInternal, err, "")
}

// serial returns a certificate's number: 127 random bits, positive (RFC 5280,
// section 4.1.2.2).
func serial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fault.WrapAs("localnhi.serial", fault.CryptoInternal, err, "")
	}
	return n.Add(n, big.NewInt(1)), nil
}

// svidEnd returns nil for who may have an SVID now, and when their authority
// ends, zero if it does not.
func (a *Authority) svidEnd(ctx context.Context, id creto.ID, under creto.Digest) (time.Time, error) {
	const op fault.Op = "localnhi.svidEnd"
	switch id.Kind {
	case creto.KindAgent:
		chain, err := a.Chain(ctx, id)
		if err != nil {
			return time.Time{}, fault.Wrap(op, err)
		}
		if !under.IsZero() && under != chain.Digest() {
			return time.Time{}, fault.New(op, fault.NHIDelegationVerificationFailed, "the delegation of %s was replaced", id)
		}
		return chain.NotAfter(), nil
	case creto.KindWorkload:
		return time.Time{}, fault.Wrap(op, a.Known(ctx, id))
	}
	return time.Time{}, fault.New(op, fault.InvalidArgument, "only agents and workloads have SVIDs")
}

// IssueX509SVID returns a certificate for the key of a PKCS #10 request, in DER,
// that id is known by to SPIFFE peers for at most MaxX509SVIDTTL: an agent with
// a delegation in force, no longer than that, or an active workload. Nothing
// else of the request is taken over.
//
// Errors: NHINotFound (Permanent); NHIDelegationVerificationFailed (Security);
// InvalidArgument (Permanent) for a human, and for a request that is malformed,
// not signed by its key, with a weak key, or for another name.
func (a *Authority) IssueX509SVID(ctx context.Context, id creto.ID, csr []byte) (*x509.Certificate, error) {
	const op fault.Op = "localnhi.IssueX509SVID"
	name, err := url.Parse(id.String())
	if err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "%s is no SPIFFE id", id)
	}
	public, err := requestedKey(csr, name.String())
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	end, err := a.svidEnd(ctx, id, creto.Digest{})
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	now, err := a.now(ctx)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	ca, caKey, err := a.certificateAuthority(ctx, now)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	number, err := serial()
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	expires := now.Add(MaxX509SVIDTTL)
	if !end.IsZero() && end.Before(expires) {
		expires = end
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{Organization: []string{a.cfg.TrustDomain}},
		URIs: []*url.URL{name}, NotBefore: now.Add(-skew), NotAfter: expires,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, ca, public, caKey)
	if err != nil {
		return nil, fault.WrapAs(op, fault.CryptoSignatureGenerationFailed, err, "")
	}
	leaf, err := x509.ParseCertificate(der)
	return leaf, fault.WrapAs(op, fault.CryptoInternal, err, "")
}

// certificateAuthority returns the one that signs at now, after replacing it if
// it has lived half its life.
func (a *Authority) certificateAuthority(ctx context.Context, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	s := a.svids
	current := func() (*x509.Certificate, *ecdsa.PrivateKey, bool) {
		s.mu.RLock()
		defer s.mu.RUnlock()
		return s.ca, s.caKey, now.Before(s.ca.NotAfter.Add(-caTTL / 2))
	}
	if ca, key, young := current(); young {
		return ca, key, nil
	}
	s.renewal.Lock()
	defer s.renewal.Unlock()
	if ca, key, young := current(); young {
		return ca, key, nil
	}
	if _, err := a.Rotate(ctx, Platform, RoleCA); err != nil {
		return nil, nil, err
	}
	ca, key, _ := current()
	return ca, key, nil
}

// The sizes of RSA keys that are certified. NIST SP 800-57 part 1, table 2, has
// the lower; the upper bounds the work of whoever verifies.
const (
	minRSABits = 2048
	maxRSABits = 4096
)

// requestedKey returns the key of a request that may only be for name.
func requestedKey(csr []byte, name string) (any, error) {
	const op fault.Op = "localnhi.requestedKey"
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "the request is no PKCS #10 certificate request")
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "the request is not signed by its key")
	}
	if len(request.DNSNames)+len(request.EmailAddresses)+len(request.IPAddresses) > 0 || len(request.URIs) > 1 || len(request.URIs) == 1 && request.URIs[0].String() != name {
		return nil, fault.New(op, fault.InvalidArgument, "the request is for another name than %s", name)
	}
	switch key := request.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() {
			return key, nil
		}
	case ed25519.PublicKey:
		return key, nil
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); minRSABits <= bits && bits <= maxRSABits {
			return key, nil
		}
	}
	return nil, fault.New(op, fault.InvalidArgument, "the request's key is not of P-256, P-384, Ed25519 or RSA with %d to %d bits", minRSABits, maxRSABits)
}

// JWTSVIDRequest says what a JWT-SVID is for.
type JWTSVIDRequest struct {
	// ID is its jti; "" makes one.
	ID string
	// Audience is whom it is for. Required.
	Audience string
	// Confirmation is stated for peers that ask for possession; SPIFFE itself
	// does not.
	Confirmation nhi.Confirmation
	// Chain must be the agent's chain, if it is not zero.
	Chain creto.Digest
	// NotAfter bounds its life further, if it is not zero.
	NotAfter time.Time
}

// svidClaims are those of a JWT-SVID. The issuer is for verifiers that know OIDC
// and not SPIFFE.
type svidClaims struct {
	jwt.Claims
	Cnf nhi.Confirmation `json:"cnf,omitzero"`
}

// IssueJWTSVID returns a token that names an agent, or a workload, alone: for
// services that look at nothing but sub. It ends after MaxJWTSVIDTTL and cannot
// be revoked.
//
// Errors: those of IssueX509SVID; InvalidArgument (Permanent) without an
// audience.
func (a *Authority) IssueJWTSVID(ctx context.Context, id creto.ID, r JWTSVIDRequest) (string, time.Time, error) {
	const op fault.Op = "localnhi.IssueJWTSVID"
	if r.Audience == "" {
		return "", time.Time{}, fault.New(op, fault.InvalidArgument, "a JWT-SVID needs an audience")
	}
	if err := errors.Join(CheckAudience(r.Audience), checkConfirmation(r.Confirmation)); err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	end, err := a.svidEnd(ctx, id, r.Chain)
	if err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	now, err := a.now(ctx)
	if err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	expires := now.Add(MaxJWTSVIDTTL)
	for _, bound := range []time.Time{end, r.NotAfter} {
		if !bound.IsZero() && bound.Before(expires) {
			expires = bound
		}
	}
	if r.ID == "" {
		r.ID = creto.NewUUID().String()
	}
	a.svids.mu.RLock()
	signer := a.svids.signer
	a.svids.mu.RUnlock()
	token, err := jwt.Signed(signer).Claims(svidClaims{Claims: jwt.Claims{
		Issuer: a.cfg.Issuer, Subject: id.String(), Audience: jwt.Audience{r.Audience}, ID: r.ID,
		IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(expires),
	}, Cnf: r.Confirmation}).Serialize()
	if err != nil {
		return "", time.Time{}, fault.WrapAs(op, fault.CryptoSignatureGenerationFailed, err, "")
	}
	return token, expires.Truncate(time.Second), nil
}

// Bundle is what verifies the SVIDs of this trust domain (SPIFFE Trust Domain
// and Bundle, section 4).
type Bundle struct {
	X509 []*x509.Certificate
	JWT  []jose.JSONWebKey
	// Sequence is greater in every bundle that differs from the one before.
	Sequence uint64
}

// Bundle returns the trust domain's bundle: the keys in use, and those replaced
// ones whose SVIDs have not all ended.
//
// Errors: those of the clock.
func (a *Authority) Bundle(ctx context.Context) (Bundle, error) {
	now, err := a.now(ctx)
	if err != nil {
		return Bundle{}, fault.Wrap("localnhi.Bundle", err)
	}
	s := a.svids
	s.mu.RLock()
	defer s.mu.RUnlock()
	var b Bundle
	// Keys only come, and once gone they stay so: each change adds.
	b.Sequence = uint64(len(s.x509) + len(s.jwt))
	for _, c := range s.x509 {
		if gone(c.retired, now, MaxX509SVIDTTL) {
			b.Sequence++
			continue
		}
		b.X509 = append(b.X509, c.certificate)
	}
	for _, k := range s.jwt {
		if gone(k.retired, now, MaxJWTSVIDTTL) {
			b.Sequence++
			continue
		}
		b.JWT = append(b.JWT, k.public)
	}
	return b, nil
}

// VerificationKeys returns what verifies this authority's access tokens and
// JWT-SVIDs now, those in use first of each.
//
// Errors: those of the clock.
func (a *Authority) VerificationKeys(ctx context.Context) (jose.JSONWebKeySet, error) {
	const op fault.Op = "localnhi.VerificationKeys"
	now, err := a.now(ctx)
	if err != nil {
		return jose.JSONWebKeySet{}, fault.Wrap(op, err)
	}
	var set jose.JSONWebKeySet
	a.tokens.mu.RLock()
	for _, k := range a.tokens.keys {
		if !gone(k.retired, now, nhi.MaxTokenTTL) {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.public, KeyID: k.id, Algorithm: string(jose.EdDSA), Use: "sig"})
		}
	}
	a.tokens.mu.RUnlock()
	bundle, err := a.Bundle(ctx)
	if err != nil {
		return jose.JSONWebKeySet{}, fault.Wrap(op, err)
	}
	set.Keys = append(set.Keys, bundle.JWT...)
	return set, nil
}
