package nhi

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"strings"
	"unicode/utf8"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/canon"
)

// Bounds of what a proof may hold, in bytes. A credential's id is bounded by
// WebAuthn level 3, section 4; a subject by OpenID Connect Core 1.0, section 2.
// The others are generous for what is in use.
const (
	maxProofBytes      = 16 << 10
	maxCredentialID    = 1023
	maxCredentialKey   = 2 << 10
	maxAuthData        = 2 << 10
	maxClientData      = 4 << 10
	maxSignature       = 1 << 10
	maxNameText        = 512 // of an origin, an issuer or an audience
	maxSubject         = 255
	authTimeSkew       = 120 // seconds that an identity provider's clock may be behind
	minRSABits         = 2048
	maxRSABits         = 4096
	authDataHeader     = 37 // rpIdHash, flags, signCount (WebAuthn level 3, section 6.1)
	flagUserPresent    = 0x01
	flagUserVerified   = 0x04
	flagBackupEligible = 0x08
	flagBackupState    = 0x10
	flagAttested       = 0x40
	flagExtensions     = 0x80
)

// The COSE algorithms, key types and curves of WebAuthn keys (RFC 9053, sections
// 2 and 7; RFC 8812, section 2).
const (
	coseES256, coseEdDSA, coseRS256 = -7, -8, -257
	coseOKP, coseEC2, coseRSA       = 1, 2, 3
	coseP256, coseEd25519           = 1, 6
)

// Challenge is what a human confirms: the digest of everything that the link
// says, its nonce included, without the proof. A passkey signs it as its
// challenge, an identity provider repeats it as its nonce, each in unpadded
// base64url.
//
// Errors: Internal (Permanent), never for a Link.
func (l Link) Challenge() (creto.Digest, error) {
	l.Version, l.Proof = linkVersion, Proof{}
	body, err := canon.Marshal(l)
	return creto.DigestOf(body), err
}

// WebAuthnAssertion is the proof of kind [ProofWebAuthn]: a passkey of the human
// signed the link's Challenge. That the passkey is that human's is the word of
// the root, which signs the link with the assertion in it.
type WebAuthnAssertion struct {
	// RPID is the relying party's domain, and Origin where the ceremony took
	// place.
	RPID   string `cbor:"1,keyasint"`
	Origin string `cbor:"2,keyasint"`
	// CredentialID and PublicKey (a COSE_Key, RFC 9052 section 7) are the
	// passkey's.
	CredentialID []byte `cbor:"3,keyasint"`
	PublicKey    []byte `cbor:"4,keyasint"`
	// AuthenticatorData, ClientDataJSON and Signature are the authenticator's
	// answer, byte for byte.
	AuthenticatorData []byte `cbor:"5,keyasint"`
	ClientDataJSON    []byte `cbor:"6,keyasint"`
	Signature         []byte `cbor:"7,keyasint"`
}

// Proof encodes the assertion. It verifies nothing.
//
// Errors: Internal (Permanent), never for an assertion.
func (a WebAuthnAssertion) Proof() (Proof, error) {
	data, err := canon.Marshal(a)
	return Proof{Kind: ProofWebAuthn, Data: data}, err
}

// OIDCEvidence is the proof of kind [ProofOIDC]: an identity provider
// authenticated the human for this link alone, whose Challenge was the request's
// nonce. The ID token's signature was verified by the node, whose root vouches
// for that; whoever is given the token can compare it with TokenHash.
type OIDCEvidence struct {
	Issuer   string `cbor:"1,keyasint"`
	Subject  string `cbor:"2,keyasint"`
	Audience string `cbor:"3,keyasint"` // the node's client id
	// TokenHash is the SHA-256 of the ID token as it was received.
	TokenHash []byte `cbor:"4,keyasint"`
	// AuthTime is when the provider says the human authenticated, in Unix
	// seconds.
	AuthTime int64 `cbor:"5,keyasint"`
	// Nonce is the token's: base64url of the link's Challenge.
	Nonce string `cbor:"6,keyasint"`
}

// Proof encodes the evidence. It verifies nothing.
//
// Errors: Internal (Permanent), never for evidence.
func (e OIDCEvidence) Proof() (Proof, error) {
	data, err := canon.Marshal(e)
	return Proof{Kind: ProofOIDC, Data: data}, err
}

// String says how the human was known, for people. Parts of it are words of
// others: whoever shows it escapes them.
func (p Proof) String() string {
	switch p.Kind {
	case ProofBootstrap:
		return "by bootstrap: whoever held the data directory"
	case ProofWebAuthn:
		var a WebAuthnAssertion
		if p.decode(&a) {
			return "by passkey (" + a.RPID + ")"
		}
	case ProofOIDC:
		var e OIDCEvidence
		if p.decode(&e) {
			return "by OIDC " + e.Issuer + " subject " + e.Subject
		}
	}
	return fmt.Sprintf("by an unknown proof %q", p.Kind)
}

func (p Proof) decode(v any) bool {
	return len(p.Data) <= maxProofBytes && canon.Unmarshal(p.Data, v) == nil
}

// violation returns what is wrong with p as the proof of a human's link, or "".
func (p Proof) violation(link Link) string {
	switch p.Kind {
	case "":
		return "has no proof of its human"
	case ProofBootstrap: // most links have this one, and it needs no challenge
		if len(p.Data) > 0 {
			return "has a bootstrap proof with data"
		}
		return ""
	}
	challenge, err := link.Challenge()
	if err != nil {
		return "has no challenge"
	}
	nonce := base64.RawURLEncoding.EncodeToString(challenge[:])
	switch p.Kind {
	case ProofWebAuthn:
		var a WebAuthnAssertion
		if !p.decode(&a) {
			return "has a malformed passkey assertion"
		}
		if err := a.verify(nonce); err != nil {
			return "has a passkey assertion that does not hold: " + err.Error()
		}
		return ""
	case ProofOIDC:
		var e OIDCEvidence
		if !p.decode(&e) {
			return "has malformed OIDC evidence"
		}
		if err := e.verify(link, nonce); err != nil {
			return "has OIDC evidence that does not hold: " + err.Error()
		}
		return ""
	}
	return fmt.Sprintf("has a proof of the unknown kind %.32q", p.Kind)
}

// verify checks the assertion as WebAuthn level 3, section 7.2, has a relying
// party do it, steps 10 to 23; what those leave open is refused.
func (a WebAuthnAssertion) verify(challenge string) error {
	switch {
	case !bounded(len(a.CredentialID), maxCredentialID), !bounded(len(a.PublicKey), maxCredentialKey),
		!bounded(len(a.ClientDataJSON), maxClientData), !bounded(len(a.Signature), maxSignature),
		len(a.AuthenticatorData) < authDataHeader || len(a.AuthenticatorData) > maxAuthData:
		return errors.New("a part has a wrong size")
	case !originOf(a.Origin, a.RPID):
		return errors.New("its origin is none of its relying party's")
	}
	if err := checkClientData(a.ClientDataJSON, challenge, a.Origin); err != nil {
		return err
	}
	rpIDHash := sha256.Sum256([]byte(a.RPID))
	flags := a.AuthenticatorData[32]
	switch {
	case !bytes.Equal(a.AuthenticatorData[:32], rpIDHash[:]):
		return errors.New("it is for another relying party")
	case flags&flagUserPresent == 0:
		return errors.New("nobody was present")
	case flags&flagUserVerified == 0:
		return errors.New("the user was not verified")
	case flags&flagBackupState != 0 && flags&flagBackupEligible == 0:
		return errors.New("its flags contradict each other")
	case flags&flagAttested != 0, (flags&flagExtensions != 0) != (len(a.AuthenticatorData) > authDataHeader):
		return errors.New("its authenticator data is malformed")
	}
	clientDataHash := sha256.Sum256(a.ClientDataJSON)
	signed, err := verifierOf(a.PublicKey)
	if err == nil && !signed(append(bytes.Clone(a.AuthenticatorData), clientDataHash[:]...), a.Signature) {
		err = errors.New("its signature is wrong")
	}
	return err
}

func bounded(size, limit int) bool { return 0 < size && size <= limit }

// The forms of an origin, as browsers serialise one with a domain (HTML, section
// 7.1.1), and of an issuer. They are narrower than what package url reads, so that
// every verifier reads the same.
var (
	originForm = regexp.MustCompile(`^(https?)://([a-z0-9.-]+)(?::[0-9]{1,5})?$`)
	issuerForm = regexp.MustCompile("^https?://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[!\"$->@-~]*)?$")
)

// originOf reports whether a page at origin may use rpID: its host is that
// domain or lies below it, and the page came over https or from this machine
// (WebAuthn level 3, section 5.1.4; Secure Contexts, section 3.1).
func originOf(origin, rpID string) bool {
	form := originForm.FindStringSubmatch(origin)
	if form == nil || len(origin) > maxNameText || rpID == "" {
		return false
	}
	scheme, host := form[1], form[2]
	local := host == "localhost" || strings.HasSuffix(host, ".localhost")
	return (host == rpID || strings.HasSuffix(host, "."+rpID)) && (scheme == "https" || local)
}

// checkClientData reads the client data (WebAuthn level 3, section 5.8.1) as
// JSON.parse does (ECMA-262, section 25.5.1): names are exact, and the last of
// the same counts. Whoever can have the passkey sign a name twice can have it
// sign the other value alone.
func checkClientData(data []byte, challenge, origin string) error {
	var members map[string]json.RawMessage
	if !utf8.Valid(data) || json.Unmarshal(data, &members) != nil {
		return errors.New("its client data is malformed")
	}
	text := func(name string) string {
		var s *string
		if json.Unmarshal(members[name], &s) != nil || s == nil {
			return ""
		}
		return *s
	}
	_, embedded := members["topOrigin"]
	if cross, ok := members["crossOrigin"]; ok && string(cross) != "false" {
		embedded = true
	}
	switch {
	case text("type") != "webauthn.get":
		return errors.New("it is no login")
	case text("challenge") != challenge:
		return errors.New("it is for another challenge")
	case text("origin") != origin:
		return errors.New("it was made at another origin")
	case embedded:
		return errors.New("it was made inside another site's page")
	}
	return nil
}

// COSE keys in the one form that authenticators send (CTAP 2.2, section 6):
// canonical, without optional parameters.
type (
	keyEC2 struct {
		Type      int    `cbor:"1,keyasint"`
		Algorithm int    `cbor:"3,keyasint"`
		Curve     int    `cbor:"-1,keyasint"`
		X         []byte `cbor:"-2,keyasint"`
		Y         []byte `cbor:"-3,keyasint"`
	}
	keyOKP struct {
		Type      int    `cbor:"1,keyasint"`
		Algorithm int    `cbor:"3,keyasint"`
		Curve     int    `cbor:"-1,keyasint"`
		X         []byte `cbor:"-2,keyasint"`
	}
	keyRSA struct {
		Type      int    `cbor:"1,keyasint"`
		Algorithm int    `cbor:"3,keyasint"`
		N         []byte `cbor:"-1,keyasint"`
		E         []byte `cbor:"-2,keyasint"`
	}
)

// errUnknownKey is of a key that no assertion can be verified with.
var errUnknownKey = errors.New("its key is of an unknown form")

// CheckCredentialKey reports whether a passkey with this public key, a COSE_Key,
// can prove a delegation: ES256, EdDSA with Ed25519, or RS256.
//
// Errors: InvalidArgument (Permanent).
func CheckCredentialKey(key []byte) error {
	_, err := verifierOf(key)
	return fault.WrapAs("nhi.CheckCredentialKey", fault.InvalidArgument, err, "the passkey's key is of a form that creto cannot verify")
}

// verifierOf returns what checks signatures by a COSE key.
func verifierOf(key []byte) (func(message, signature []byte) bool, error) {
	var (
		ec  keyEC2
		okp keyOKP
		rs  keyRSA
	)
	switch {
	case !bounded(len(key), maxCredentialKey):
		return nil, errUnknownKey
	case canon.Unmarshal(key, &ec) == nil:
		if ec.Type != coseEC2 || ec.Algorithm != coseES256 || ec.Curve != coseP256 || len(ec.X) != 32 || len(ec.Y) != 32 {
			return nil, errUnknownKey
		}
		public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, ec.X...), ec.Y...))
		if err != nil {
			return nil, errors.New("its key is no point of its curve")
		}
		return func(message, signature []byte) bool {
			digest := sha256.Sum256(message)
			return ecdsa.VerifyASN1(public, digest[:], signature)
		}, nil
	case canon.Unmarshal(key, &okp) == nil:
		if okp.Type != coseOKP || okp.Algorithm != coseEdDSA || okp.Curve != coseEd25519 || len(okp.X) != ed25519.PublicKeySize {
			return nil, errUnknownKey
		}
		return func(message, signature []byte) bool { return ed25519.Verify(okp.X, message, signature) }, nil
	case canon.Unmarshal(key, &rs) == nil:
		n, e := new(big.Int).SetBytes(rs.N), new(big.Int).SetBytes(rs.E)
		if rs.Type != coseRSA || rs.Algorithm != coseRS256 || n.BitLen() < minRSABits || n.BitLen() > maxRSABits || len(rs.E) > 3 {
			return nil, errUnknownKey
		}
		public := &rsa.PublicKey{N: n, E: int(e.Int64())}
		return func(message, signature []byte) bool {
			digest := sha256.Sum256(message)
			return rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature) == nil
		}, nil
	}
	return nil, errUnknownKey
}

// verify checks that the evidence is well formed and for this link alone
// (OpenID Connect Core 1.0, sections 2 and 3.1.3.7). The provider must have
// authenticated the human after the link was drafted.
func (e OIDCEvidence) verify(link Link, nonce string) error {
	switch {
	case len(e.Issuer) > maxNameText || !issuerForm.MatchString(e.Issuer):
		return errors.New("its issuer is no address")
	case !bounded(len(e.Subject), maxSubject) || !bounded(len(e.Audience), maxNameText):
		return errors.New("its subject or audience has a wrong size")
	case len(e.TokenHash) != sha256.Size:
		return errors.New("its token's hash has a wrong size")
	case e.Nonce != nonce:
		return errors.New("its token was issued for another nonce")
	case e.AuthTime < link.NotBefore-authTimeSkew || e.AuthTime >= link.NotAfter:
		return errors.New("its human did not authenticate for it")
	}
	return nil
}
