// Package softkey is a passkey in software: an authenticator without hardware and
// without a person, for demos and tests. What it confirms nobody has seen.
package softkey

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"net/url"

	"creto.dev/fault"
	"creto.dev/internal/canon"
)

// The flags of authenticator data (WebAuthn level 3, section 6.1).
const (
	UserPresent  = 1 << 0
	UserVerified = 1 << 2
	attested     = 1 << 6
)

// Key is one passkey, and the browser around it. Its fields can be bent to see
// what a relying party refuses. Not safe for concurrent use.
type Key struct {
	Private *ecdsa.PrivateKey
	// ID names the credential, Handle the user it was made for.
	ID, Handle []byte
	// Count is raised by each use.
	Count uint32
	// Flags are what it says of its user.
	Flags byte
	// Origin is the page that asks, RPID its relying party.
	Origin, RPID string
}

// New returns a key for the pages of origin, such as http://localhost:7300.
//
// Errors: InvalidArgument (Permanent) for what is no origin.
func New(origin string) (*Key, error) {
	const op fault.Op = "softkey.New"
	u, err := url.Parse(origin)
	if err != nil || u.Hostname() == "" {
		return nil, fault.New(op, fault.InvalidArgument, "%q is no origin", origin)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fault.WrapAs(op, fault.CryptoInternal, err, "")
	}
	k := &Key{Private: private, ID: make([]byte, 32), Flags: UserPresent | UserVerified, Origin: origin, RPID: u.Hostname()}
	_, _ = rand.Read(k.ID) // documented never to return an error
	return k, nil
}

// kept is a key in a file.
type kept struct {
	Origin  string `json:"origin"`
	RPID    string `json:"rp_id"`
	ID      []byte `json:"id"`
	Handle  []byte `json:"handle"`
	Count   uint32 `json:"count"`
	Flags   byte   `json:"flags"`
	Private []byte `json:"private"` // PKCS #8
}

// MarshalJSON returns the key, its secret included.
func (k *Key) MarshalJSON() ([]byte, error) {
	private, err := x509.MarshalPKCS8PrivateKey(k.Private)
	if err != nil {
		return nil, err
	}
	return json.Marshal(kept{k.Origin, k.RPID, k.ID, k.Handle, k.Count, k.Flags, private})
}

// UnmarshalJSON reads what MarshalJSON returned.
func (k *Key) UnmarshalJSON(data []byte) error {
	const op fault.Op = "softkey.UnmarshalJSON"
	var f kept
	if err := json.Unmarshal(data, &f); err != nil {
		return fault.WrapAs(op, fault.InvalidArgument, err, "this is no passkey in software")
	}
	private, err := x509.ParsePKCS8PrivateKey(f.Private)
	key, ok := private.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return fault.New(op, fault.InvalidArgument, "this is no passkey in software")
	}
	*k = Key{Private: key, ID: f.ID, Handle: f.Handle, Count: f.Count, Flags: f.Flags, Origin: f.Origin, RPID: f.RPID}
	return nil
}

// options are what matters of what a page hands to navigator.credentials.
type options struct {
	Challenge string `json:"challenge"`
	User      struct {
		ID string `json:"id"`
	} `json:"user"`
}

func encode(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

func (k *Key) clientData(kind, challenge string) ([]byte, error) {
	return json.Marshal(struct {
		Type        string `json:"type"`
		Challenge   string `json:"challenge"`
		Origin      string `json:"origin"`
		CrossOrigin bool   `json:"crossOrigin"`
	}{kind, challenge, k.Origin, false})
}

// data is the authenticator data of the next use (section 6.1).
func (k *Key) data(credential []byte) []byte {
	k.Count++
	hash := sha256.Sum256([]byte(k.RPID))
	flags := k.Flags
	if len(credential) > 0 {
		flags |= attested
	}
	return append(binary.BigEndian.AppendUint32(append(hash[:], flags), k.Count), credential...)
}

// Create answers navigator.credentials.create: it makes the passkey known.
//
// Errors: InvalidArgument (Permanent) for options that are none.
func (k *Key) Create(publicKey []byte) ([]byte, error) {
	const op fault.Op = "softkey.Create"
	var o options
	if err := json.Unmarshal(publicKey, &o); err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "these are no options")
	}
	var err error
	if k.Handle, err = base64.RawURLEncoding.DecodeString(o.User.ID); err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "the options name no user")
	}
	point, err := k.Private.PublicKey.Bytes()
	if err != nil {
		return nil, fault.WrapAs(op, fault.CryptoInternal, err, "")
	}
	// A COSE key for ES256 (RFC 9053, section 7.1.1).
	cose, err := canon.Marshal(map[int]any{1: 2, 3: -7, -1: 1, -2: point[1:33], -3: point[33:]})
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	credential := append(make([]byte, 16), 0, byte(len(k.ID))) // of no known model
	credential = append(append(credential, k.ID...), cose...)
	object, err := canon.Marshal(map[string]any{"fmt": "none", "attStmt": map[string]any{}, "authData": k.data(credential)})
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	client, err := k.clientData("webauthn.create", o.Challenge)
	if err != nil {
		return nil, fault.WrapAs(op, fault.Internal, err, "")
	}
	return k.answer(map[string]any{"clientDataJSON": encode(client), "attestationObject": encode(object), "transports": []string{"internal"}})
}

// Get answers navigator.credentials.get: it signs the challenge.
//
// Errors: InvalidArgument (Permanent) for options that are none.
func (k *Key) Get(publicKey []byte) ([]byte, error) {
	const op fault.Op = "softkey.Get"
	var o options
	if err := json.Unmarshal(publicKey, &o); err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "these are no options")
	}
	client, err := k.clientData("webauthn.get", o.Challenge)
	if err != nil {
		return nil, fault.WrapAs(op, fault.Internal, err, "")
	}
	data, hash := k.data(nil), sha256.Sum256(client)
	digest := sha256.Sum256(append(append([]byte(nil), data...), hash[:]...))
	signature, err := ecdsa.SignASN1(rand.Reader, k.Private, digest[:])
	if err != nil {
		return nil, fault.WrapAs(op, fault.CryptoSignatureGenerationFailed, err, "")
	}
	return k.answer(map[string]any{
		"clientDataJSON": encode(client), "authenticatorData": encode(data), "signature": encode(signature), "userHandle": encode(k.Handle),
	})
}

func (k *Key) answer(response map[string]any) ([]byte, error) {
	data, err := json.Marshal(map[string]any{"id": encode(k.ID), "rawId": encode(k.ID), "type": "public-key", "clientExtensionResults": map[string]any{}, "response": response})
	return data, fault.WrapAs("softkey.answer", fault.Internal, err, "")
}
