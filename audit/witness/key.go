package witness

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"

	"filippo.io/torchwood"

	"creto.dev/fault"
	"creto.dev/internal/durable"
)

// keyPrefix begins the one line of a key file: PRIVATE+KEY+<name>+<base64 of the
// seed>.
const keyPrefix = "PRIVATE+KEY+"

// OpenKey returns the witness's key in path. If there is none it makes one for a
// witness called name, in a file for its owner only; name may be empty otherwise.
//
// Errors: InvalidArgument (Permanent) for a name that no witness can have, or
// another than the key's; FailedPrecondition (Permanent) for a file that is no
// key, or open to others; Unavailable (Degraded).
func OpenKey(path, name string) (*torchwood.CosignatureSigner, error) {
	const op fault.Op = "witness.OpenKey"
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return makeKey(path, name)
	}
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(op, fault.FailedPrecondition, "others may read the key %s; chmod 600 it, or make another", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "the key %s cannot be read", path)
	}
	rest, ok := strings.CutPrefix(strings.TrimSuffix(string(text), "\n"), keyPrefix)
	own, encoded, found := strings.Cut(rest, "+")
	seed, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || !found || err != nil || len(seed) != ed25519.SeedSize {
		return nil, fault.New(op, fault.FailedPrecondition, "%s is no key of a witness", path)
	}
	if name != "" && name != own {
		return nil, fault.New(op, fault.InvalidArgument, "the key %s is of the witness %q", path, own)
	}
	return signerOf(own, ed25519.NewKeyFromSeed(seed))
}

func makeKey(path, name string) (*torchwood.CosignatureSigner, error) {
	const op fault.Op = "witness.makeKey"
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fault.WrapAs(op, fault.CryptoInternal, err, "")
	}
	signer, err := signerOf(name, private)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	line := fmt.Sprintf("%s%s+%s\n", keyPrefix, name, base64.StdEncoding.EncodeToString(private.Seed()))
	return signer, fault.WrapAs(op, fault.Unavailable, durable.Create(path, []byte(line)), "the key %s cannot be written", path)
}

func signerOf(name string, key ed25519.PrivateKey) (*torchwood.CosignatureSigner, error) {
	signer, err := torchwood.NewCosignatureSigner(name, key)
	return signer, fault.WrapAs("witness.signerOf", fault.InvalidArgument, err, "%q cannot name a witness: like witness.example/w1, without spaces and +", name)
}
