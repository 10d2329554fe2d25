package localpqc

import (
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"creto.dev/fault"
	"creto.dev/pqc"
)

// These tests are in the package, as most published vectors have an empty
// context, which a Purpose cannot be: they go to the tables' rows, below
// Provider's checks.

const (
	wycheproof = "github.com/c2sp/wycheproof"
	circl      = "github.com/cloudflare/circl"
)

// basepoint is a valid X25519 public key (RFC 7748).
var basepoint = [32]byte{9}

// hexBytes is a field of a vector.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) error {
	decoded, err := hex.DecodeString(string(text))
	*h = decoded
	return err
}

// readModule decodes a JSON file of a module at the version that go.mod pins,
// which go.sum vouches for.
func readModule(t *testing.T, module, name string, v any) {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", module).Output()
	var downloaded struct{ Dir string }
	if err == nil {
		err = json.Unmarshal(output, &downloaded)
	}
	if err != nil {
		missing(t, "the vectors of %s cannot be had; try go mod download %s (%v)", module, module, err)
	}
	readJSON(t, filepath.Join(downloaded.Dir, filepath.FromSlash(name)), v)
}

// missing skips a test for want of vectors, or fails it where none may be skipped.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CRETO_TEST_REQUIRE") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	var in io.Reader = file
	if strings.HasSuffix(path, ".gz") {
		if in, err = gzip.NewReader(file); err != nil {
			t.Fatal(err)
		}
	}
	if err := json.NewDecoder(in).Decode(v); err != nil {
		t.Fatal(err)
	}
}

// count guards against vectors that a change of format hides.
func count(t *testing.T, got, least int) {
	t.Helper()
	if got < least {
		t.Errorf("%d vectors were tried, want at least %d", got, least)
	}
}

func TestWycheproofGCM(t *testing.T) {
	var file struct {
		TestGroups []struct {
			KeySize, IVSize, TagSize int
			Tests                    []struct {
				ID                         int `json:"tcId"`
				Key, IV, AAD, Msg, CT, Tag hexBytes
				Result                     string
			}
		}
	}
	readModule(t, wycheproof, "testvectors_v1/aes_gcm_test.json", &file)
	p, tried := New(), 0
	for _, group := range file.TestGroups {
		if group.KeySize != 256 || group.IVSize != 96 || group.TagSize != 128 {
			continue
		}
		for _, v := range group.Tests {
			tried++
			key := pqc.NewSymmetricKey(pqc.AES256GCM, v.Key)
			data := pqc.EncryptedData{Algorithm: pqc.AES256GCM, Key: key.ID, Bytes: bytes.Join([][]byte{v.IV, v.CT, v.Tag}, nil)}
			got, err := p.Decrypt(data, v.AAD, key)
			if v.Result == "valid" && (err != nil || !bytes.Equal(got, v.Msg)) {
				t.Errorf("%d: Decrypt = %x, %v; want %x", v.ID, got, err, v.Msg)
			}
			if v.Result == "invalid" && !errors.Is(err, fault.CryptoDecryptionFailed) {
				t.Errorf("%d: Decrypt = %x, %v; want CryptoDecryptionFailed", v.ID, got, err)
			}
		}
	}
	count(t, tried, 60)
}

// The composite's classical half is Ed25519 without a context.
func TestWycheproofEd25519(t *testing.T) {
	var file struct {
		TestGroups []struct {
			PublicKey struct{ PK hexBytes }
			Tests     []struct {
				ID       int `json:"tcId"`
				Msg, Sig hexBytes
				Result   string
			}
		}
	}
	readModule(t, wycheproof, "testvectors_v1/ed25519_test.json", &file)
	tried := 0
	for _, group := range file.TestGroups {
		for _, v := range group.Tests {
			tried++
			if got := ed25519.Verify(ed25519.PublicKey(group.PublicKey.PK), v.Msg, v.Sig); got != (v.Result == "valid") {
				t.Errorf("%d: Verify = %v, want %s", v.ID, got, v.Result)
			}
		}
	}
	count(t, tried, 150)
}

func TestWycheproofMLKEM(t *testing.T) {
	var file struct {
		TestGroups []struct {
			Tests []struct {
				ID             int `json:"tcId"`
				Seed, EK, C, K hexBytes
				M              hexBytes
				Result         string
			}
		}
	}
	readModule(t, wycheproof, "testvectors_v1/mlkem_768_test.json", &file)
	p, tried := New(), 0
	for _, group := range file.TestGroups {
		for _, v := range group.Tests {
			tried++
			var public pqc.EncapsulationKey
			var secret []byte
			key, err := p.DecapsulationKeyFromSeed(pqc.MLKEM768, v.Seed)
			if err == nil {
				public, err = p.Encapsulation(key)
			}
			if err == nil {
				secret, err = p.Decapsulate(v.C, key)
			}
			if v.Result == "valid" && (err != nil || !bytes.Equal(public.Bytes, v.EK) || !bytes.Equal(secret, v.K)) {
				t.Errorf("%d: Decapsulate = %x, %v; want %x", v.ID, secret, err, v.K)
			}
			if v.Result == "invalid" && err == nil {
				t.Errorf("%d: Decapsulate = %x, want an error", v.ID, secret)
			}
		}
	}
	count(t, tried, 200)

	readModule(t, wycheproof, "testvectors_v1/mlkem_768_keygen_seed_test.json", &file)
	tried = 0
	for _, group := range file.TestGroups {
		for _, v := range group.Tests {
			tried++
			key, err := p.DecapsulationKeyFromSeed(pqc.MLKEM768, v.Seed)
			if err != nil {
				t.Errorf("%d: %v", v.ID, err)
				continue
			}
			if public, err := p.Encapsulation(key); err != nil || !bytes.Equal(public.Bytes, v.EK) {
				t.Errorf("%d: Encapsulation = %x, %v; want %x", v.ID, public.Bytes, err, v.EK)
			}
		}
	}
	count(t, tried, 100)

	readModule(t, wycheproof, "testvectors_v1/mlkem_768_encaps_test.json", &file)
	tried = 0
	for _, group := range file.TestGroups {
		for _, v := range group.Tests {
			tried++
			_, _, err := p.Encapsulate(pqc.NewEncapsulationKey(pqc.MLKEM768, v.EK))
			if (err == nil) != (v.Result == "valid") {
				t.Errorf("%d: Encapsulate = %v, want %s", v.ID, err, v.Result)
			}
			// X-Wing has the same half, by another implementation.
			_, _, err = p.Encapsulate(pqc.NewEncapsulationKey(pqc.MLKEM768X25519, append(bytes.Clone(v.EK), basepoint[:]...)))
			if v.Result == "invalid" && err == nil {
				t.Errorf("%d: Encapsulate for X-Wing succeeds", v.ID)
			}
		}
	}
	count(t, tried, 200)
}

func TestWycheproofMLDSA(t *testing.T) {
	row := schemes[pqc.MLDSA65]
	var signing struct {
		TestGroups []struct {
			PrivateSeed, PublicKey hexBytes
			Tests                  []struct {
				ID            int `json:"tcId"`
				Msg, Ctx, Sig *hexBytes
				Result        string
				Flags         []string
			}
		}
	}
	readModule(t, wycheproof, "testvectors_v1/mldsa_65_sign_seed_test.json", &signing)
	tried := 0
	for _, group := range signing.TestGroups {
		if len(group.PrivateSeed) != row.seedSize {
			continue // Provider refuses it before the row; see pqctest
		}
		s := row.signer(group.PrivateSeed)
		if len(group.PublicKey) > 0 && !bytes.Equal(s.public(), group.PublicKey) {
			t.Errorf("a seed has another public key")
		}
		for _, v := range group.Tests {
			if v.Msg == nil || strings.Contains(strings.Join(v.Flags, " "), "Internal") || strings.Contains(strings.Join(v.Flags, " "), "Randomized") {
				continue // of interfaces that we do not use
			}
			tried++
			var purpose pqc.Purpose
			if v.Ctx != nil {
				purpose = pqc.Purpose(*v.Ctx)
			}
			got, err := s.sign(purpose, *v.Msg)
			if v.Result == "valid" && (err != nil || !bytes.Equal(got, *v.Sig)) {
				t.Errorf("%d: sign = %v, want the signature", v.ID, err)
			}
			if v.Result == "invalid" && err == nil && purpose.Validate() == nil {
				t.Errorf("%d: sign succeeds", v.ID)
			}
		}
	}
	count(t, tried, 60)

	var verifying struct {
		TestGroups []struct {
			PublicKey hexBytes
			Tests     []struct {
				ID       int `json:"tcId"`
				Msg, Sig hexBytes
				Ctx      hexBytes
				Result   string
			}
		}
	}
	readModule(t, wycheproof, "testvectors_v1/mldsa_65_verify_test.json", &verifying)
	p, tried := New(), 0
	for _, group := range verifying.TestGroups {
		public := pqc.NewPublicKey(pqc.MLDSA65, group.PublicKey)
		for _, v := range group.Tests {
			tried++
			var ok bool
			if len(v.Ctx) > 0 {
				sig := pqc.Signature{Algorithm: pqc.MLDSA65, Key: public.ID, Bytes: v.Sig}
				ok = p.Verify(pqc.Purpose(v.Ctx), v.Msg, sig, public) == nil
			} else {
				ok = len(group.PublicKey) == row.publicSize && len(v.Sig) == row.signatureSize &&
					row.verifier(group.PublicKey).verify("", v.Msg, v.Sig)
			}
			if ok != (v.Result == "valid") {
				t.Errorf("%d: verify = %v, want %s", v.ID, ok, v.Result)
			}
		}
	}
	count(t, tried, 200)
}

// acvp is a file of NIST's Automated Cryptographic Validation Protocol.
type acvp struct {
	TestGroups []struct {
		ParameterSet string
		Function     string
		Tests        []acvpTest
	}
}

// acvpTest is a prompt or its result.
type acvpTest struct {
	ID   int      `json:"tcId"`
	Seed hexBytes // ML-DSA: xi
	D, Z hexBytes // ML-KEM: the seed's halves
	EK   hexBytes
	PK   hexBytes
	M    hexBytes // the randomness of an encapsulation
	C, K hexBytes
}

// eachACVP calls check with each prompt of a parameter set and its result, and
// returns how many there were.
func eachACVP(t *testing.T, folder, set, function string, check func(prompt, want acvpTest)) int {
	t.Helper()
	var prompts, results acvp
	readModule(t, circl, folder+"/prompt.json.gz", &prompts)
	readModule(t, circl, folder+"/expectedResults.json.gz", &results)
	tried := 0
	for g, group := range prompts.TestGroups {
		if group.ParameterSet != set || group.Function != function {
			continue
		}
		for i, prompt := range group.Tests {
			want := results.TestGroups[g].Tests[i]
			if want.ID != prompt.ID {
				t.Fatalf("%s: result %d is of test %d", folder, prompt.ID, want.ID)
			}
			tried++
			check(prompt, want)
		}
	}
	return tried
}

func TestACVP(t *testing.T) {
	p := New()
	tried := eachACVP(t, "sign/mldsa/testdata/ML-DSA-keyGen-FIPS204", "ML-DSA-65", "", func(prompt, want acvpTest) {
		key, err := p.SigningKeyFromSeed(pqc.MLDSA65, prompt.Seed)
		if err != nil {
			t.Fatal(err)
		}
		if public, err := p.Public(key); err != nil || !bytes.Equal(public.Bytes, want.PK) {
			t.Errorf("%d: Public differs (err %v)", prompt.ID, err)
		}
	})
	tried += eachACVP(t, "kem/mlkem/testdata/ML-KEM-keyGen-FIPS203", "ML-KEM-768", "", func(prompt, want acvpTest) {
		key, err := p.DecapsulationKeyFromSeed(pqc.MLKEM768, append(bytes.Clone(prompt.D), prompt.Z...))
		if err != nil {
			t.Fatal(err)
		}
		if public, err := p.Encapsulation(key); err != nil || !bytes.Equal(public.Bytes, want.EK) {
			t.Errorf("%d: Encapsulation differs (err %v)", prompt.ID, err)
		}
	})
	// Its decapsulations are of expanded keys, which nobody here accepts.
	tried += eachACVP(t, "kem/mlkem/testdata/ML-KEM-encapDecap-FIPS203", "ML-KEM-768", "encapsulation", func(prompt, want acvpTest) {
		k, err := mlkem.NewEncapsulationKey768(prompt.EK)
		if err != nil {
			t.Fatal(err)
		}
		secret, ciphertext, err := mlkemtest.Encapsulate768(k, prompt.M)
		if err != nil || !bytes.Equal(secret, want.K) || !bytes.Equal(ciphertext, want.C) {
			t.Errorf("%d: Encapsulate differs (err %v)", prompt.ID, err)
		}
	})
	count(t, tried, 75)
}

// The vectors of draft-ietf-hpke-pq that the standard library tests itself with:
// X-Wing here is another implementation.
func TestHPKEVectors(t *testing.T) {
	root, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(strings.TrimSpace(string(root)), "src", "crypto", "hpke", "testdata", "hpke-pq.json")
	if _, err := os.Stat(path); err != nil {
		missing(t, "this Go comes without its tests; install one from go.dev/dl (%v)", err)
	}
	var vectors []struct {
		KEM    int      `json:"kem_id"`
		SK     hexBytes `json:"skRm"`
		PK     hexBytes `json:"pkRm"`
		Enc    hexBytes `json:"enc"`
		Secret hexBytes `json:"shared_secret"`
	}
	readJSON(t, path, &vectors)
	algorithms := map[int]pqc.Algorithm{0x0041: pqc.MLKEM768, 0x647a: pqc.MLKEM768X25519}
	p, tried := New(), 0
	for i, v := range vectors {
		algorithm, ok := algorithms[v.KEM]
		if !ok {
			continue
		}
		tried++
		key, err := p.DecapsulationKeyFromSeed(algorithm, v.SK)
		if err != nil {
			t.Fatal(err)
		}
		if public, err := p.Encapsulation(key); err != nil || !bytes.Equal(public.Bytes, v.PK) {
			t.Errorf("%d: Encapsulation = %x, %v; want %x", i, public.Bytes, err, v.PK)
		}
		if secret, err := p.Decapsulate(v.Enc, key); err != nil || !bytes.Equal(secret, v.Secret) {
			t.Errorf("%d: Decapsulate = %x, %v; want %x", i, secret, err, v.Secret)
		}
	}
	count(t, tried, 3)
}

// The draft's own signature without a context, and what must not hold of it.
func TestCompositeWithoutContext(t *testing.T) {
	var v struct {
		M, Ctx, PK, S, SWithContext []byte
	}
	readJSON(t, "testdata/composite.json", &v)
	k := schemes[pqc.MLDSA65Ed25519].verifier(v.PK)
	if !k.verify("", v.M, v.S) || !k.verify(pqc.Purpose(v.Ctx), v.M, v.SWithContext) {
		t.Fatal("the draft's signatures do not hold")
	}
	if k.verify(pqc.Purpose(v.Ctx), v.M, v.S) || k.verify("", v.M, v.SWithContext) {
		t.Error("a signature holds for another context")
	}
	// Halves of two good signatures.
	const half = 3309
	for _, mixed := range [][]byte{
		append(bytes.Clone(v.S[:half]), v.SWithContext[half:]...),
		append(bytes.Clone(v.SWithContext[:half]), v.S[half:]...),
	} {
		if k.verify("", v.M, mixed) || k.verify(pqc.Purpose(v.Ctx), v.M, mixed) {
			t.Error("halves of two signatures hold together")
		}
	}
}
