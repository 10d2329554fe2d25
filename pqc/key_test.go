package pqc_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/pqc"
)

// The encoding is {1: "ed25519", 2: four bytes} (RFC 8949), whatever the id.
const goldenKey = "a2016765643235353139024401020304"

func TestKeyID(t *testing.T) {
	key := pqc.NewPublicKey(pqc.Ed25519, []byte{1, 2, 3, 4})
	encoded, err := canon.Marshal(key)
	if err != nil || hex.EncodeToString(encoded) != goldenKey {
		t.Fatalf("Marshal = %x, %v; want %s", encoded, err, goldenKey)
	}
	digest := creto.DigestOf(encoded)
	if want := pqc.KeyID(hex.EncodeToString(digest[:16])); key.ID != want {
		t.Errorf("the id is %q, want the beginning of the digest, %q", key.ID, want)
	}
	var again pqc.PublicKey
	if err := canon.Unmarshal(encoded, &again); err != nil || again.ID != key.ID || !bytes.Equal(again.Bytes, key.Bytes) {
		t.Errorf("Unmarshal = %+v, %v; want %+v", again, err, key)
	}
	ids := map[pqc.KeyID]bool{key.ID: true}
	for _, other := range []pqc.KeyID{
		pqc.NewPublicKey(pqc.MLDSA65, key.Bytes).ID,
		pqc.NewPublicKey(pqc.Ed25519, []byte{1, 2, 3, 5}).ID,
		pqc.NewPublicKey("ed2551", []byte{'9', 1, 2, 3, 4}).ID,
		pqc.NewSymmetricKey(pqc.AES256GCM, key.Bytes).ID,
	} {
		if ids[other] {
			t.Errorf("two keys have id %q", other)
		}
		ids[other] = true
	}
}

func TestSecretsAreHidden(t *testing.T) {
	seed := []byte("do not print me")
	for _, secret := range []any{
		pqc.NewSymmetricKey(pqc.AES256GCM, seed),
		pqc.SigningKey{Algorithm: pqc.Ed25519, ID: "id", Seed: seed},
		pqc.DecapsulationKey{Algorithm: pqc.MLKEM768, ID: "id", Seed: seed},
	} {
		var logged bytes.Buffer
		slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", slog.Any("key", secret))
		slog.New(slog.NewTextHandler(&logged, nil)).Info("x", slog.Any("key", secret))
		text := logged.String() + fmt.Sprintf("%v %+v %#v %s %x %d %q", secret, secret, secret, secret, secret, secret, secret)
		encoded, err := json.Marshal(secret)
		if err == nil {
			text += string(encoded)
		}
		for _, leak := range []string{"do not print", "ZG8gbm90", hex.EncodeToString(seed), "100 111 32", "0x64, 0x6f"} {
			if strings.Contains(text, leak) {
				t.Errorf("%T prints %q", secret, text)
			}
		}
	}
}

// decoders read what comes from outside.
var decoders = map[string]func(data []byte) (any, error){
	"public key": func(data []byte) (any, error) {
		var k pqc.PublicKey
		err := canon.Unmarshal(data, &k)
		if err == nil && k.ID != pqc.NewPublicKey(k.Algorithm, k.Bytes).ID {
			err = errors.New("the id is not the key's")
			panic(err)
		}
		return k, err
	},
	"encapsulation key": func(data []byte) (any, error) {
		var k pqc.EncapsulationKey
		err := canon.Unmarshal(data, &k)
		return k, err
	},
	"signature": func(data []byte) (any, error) {
		var s pqc.Signature
		err := canon.Unmarshal(data, &s)
		return s, err
	},
	"encrypted data": func(data []byte) (any, error) {
		var d pqc.EncryptedData
		err := canon.Unmarshal(data, &d)
		return d, err
	},
	"sealed": func(data []byte) (any, error) {
		var s pqc.Sealed
		err := canon.Unmarshal(data, &s)
		return s, err
	},
}

func TestDecodersAreStrict(t *testing.T) {
	sealed, err := canon.Marshal(pqc.Sealed{Algorithm: "a", Key: "k", Encapsulated: []byte{1}, Ciphertext: []byte{2}})
	if err != nil {
		t.Fatal(err)
	}
	good := map[string]string{
		"public key": goldenKey, "encapsulation key": goldenKey,
		"signature":      "a3016765643235353139024401020304036178",
		"encrypted data": "a3016765643235353139024401020304036178",
		"sealed":         hex.EncodeToString(sealed),
	}
	for name, decode := range decoders {
		data, err := hex.DecodeString(good[name])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for what, bad := range map[string][]byte{
			"nothing":                   {},
			"a byte more":               append(bytes.Clone(data), 0),
			"a byte less":               data[:len(data)-1],
			"a longer form of a number": append([]byte{data[0], 0x18, 0x01}, data[2:]...),
			"no map":                    {0x01},
			"null":                      {0xf6},
			"an indefinite map":         append(append([]byte{0xbf}, data[1:]...), 0xff),
		} {
			if got, err := decode(bad); !errors.Is(err, fault.InvalidArgument) {
				t.Errorf("%s with %s = %+v, %v; want InvalidArgument", name, what, got, err)
			}
		}
	}
	// A key that says its own id.
	withID, err := canon.Marshal(pqc.Signature{Algorithm: pqc.Ed25519, Bytes: []byte{1}, Key: "00"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decoders["public key"](withID); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("a public key with an id = %+v, %v; want InvalidArgument", got, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{goldenKey, "a3016765643235353139024401020304036178", "a4016161026162034163044164", "f6"} {
		data, err := hex.DecodeString(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for name, decode := range decoders {
			v, err := decode(data)
			if err != nil {
				continue
			}
			if again, err := canon.Marshal(v); err != nil || !bytes.Equal(again, data) {
				t.Errorf("%s: %x decodes to what encodes to %x, %v", name, data, again, err)
			}
		}
	})
}
