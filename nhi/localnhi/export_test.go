package localnhi

import (
	"crypto/ed25519"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// SignWithTokenKey signs claims as a token of the authority's, of any type.
func (a *Authority) SignWithTokenKey(t testing.TB, typ string, claims any) string {
	t.Helper()
	active, err := a.key(t.Context(), Platform, RoleToken)
	if err != nil {
		t.Fatal(err)
	}
	key := jose.JSONWebKey{Key: ed25519.NewKeyFromSeed(active.seed), KeyID: string(active.ID)}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
