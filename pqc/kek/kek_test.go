package kek_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/pqc"
	"creto.dev/pqc/kek"
	"creto.dev/pqc/localpqc"
)

const passphrase = "correct horse battery"

func byPassphrase(text string) kek.Config {
	return kek.Config{Source: kek.SourcePassphrase, Passphrase: creto.NewSecret(text)}
}

// byLocalKey is a KMS whose key is n times 32.
func byLocalKey(n byte) kek.Config {
	url := "base64key://" + base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{n}, 32))
	return kek.Config{Source: kek.SourceKMS, KMSURL: creto.NewSecret(url)}
}

func open(t *testing.T, cfg kek.Config, dir string) pqc.SymmetricKey {
	t.Helper()
	key, err := kek.Open(t.Context(), cfg, dir, localpqc.New())
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// refused expects an error of Open that says what to do.
func refused(t *testing.T, cfg kek.Config, dir string, want fault.Code, hint string) {
	t.Helper()
	key, err := kek.Open(t.Context(), cfg, dir, localpqc.New())
	if err == nil || !errors.Is(err, want) || key.Bytes != nil {
		t.Fatalf("Open = %v, want %v", err, want)
	}
	text := fault.Message(err)
	if !strings.Contains(text, hint) {
		t.Errorf("the message %q does not say %q", text, hint)
	}
	for _, secret := range []string{cfg.Passphrase.Reveal(), cfg.KMSURL.Reveal()} {
		if len(secret) > 8 && strings.Contains(err.Error(), secret) {
			t.Errorf("the error %q holds a secret", err)
		}
	}
}

// wrappedOnly expects that no file of dir holds the key itself.
func wrappedOnly(t *testing.T, dir string, key pqc.SymmetricKey) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, key.Bytes) || bytes.Contains(data, []byte(base64.StdEncoding.EncodeToString(key.Bytes))) {
			t.Errorf("%s holds the key itself", e.Name())
		}
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	key := open(t, kek.Config{}, dir)
	if key.Algorithm != pqc.AES256GCM || len(key.Bytes) != 32 || key.ID == "" {
		t.Errorf("Open = %d bytes of %s, id %q", len(key.Bytes), key.Algorithm, key.ID)
	}
	if again := open(t, kek.Config{Source: kek.SourceFile}, dir); again.ID != key.ID || !bytes.Equal(again.Bytes, key.Bytes) {
		t.Error("a second Open returns another key")
	}
	if other := open(t, kek.Config{}, t.TempDir()); other.ID == key.ID {
		t.Error("two directories have one key")
	}
	data, err := os.ReadFile(filepath.Join(dir, "kek"))
	if err != nil || string(data) != base64.StdEncoding.EncodeToString(key.Bytes)+"\n" {
		t.Errorf("the file holds %d bytes, %v", len(data), err)
	}
	for _, bad := range []string{"", "\n", "AAAA\n", string(data[:40]), string(data) + "A", "\xa0", "\xa5\x01"} {
		if err := os.WriteFile(filepath.Join(dir, "kek"), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, kek.Config{}, dir, fault.DataLoss, "restore it from a backup")
	}
	refused(t, kek.Config{}, filepath.Join(dir, "none"), fault.Unavailable, "")
}

func TestPassphrase(t *testing.T) {
	dir := t.TempDir()
	refused(t, byPassphrase("too short"), dir, fault.InvalidArgument, "at least 15")
	key := open(t, byPassphrase(passphrase), dir)
	wrappedOnly(t, dir, key)
	if again := open(t, byPassphrase(passphrase), dir); again.ID != key.ID {
		t.Error("a second Open returns another key")
	}
	for _, wrong := range []string{passphrase + " ", "Correct horse battery"} {
		refused(t, byPassphrase(wrong), dir, fault.CryptoDecryptionFailed, "give the one it was wrapped with")
	}

	file := filepath.Join(t.TempDir(), "passphrase")
	byFile := kek.Config{Source: kek.SourcePassphrase, PassphraseFile: file}
	refused(t, byFile, dir, fault.Unavailable, file)
	for text, want := range map[string]error{
		passphrase: nil, passphrase + "\n": nil, passphrase + "\r\n": nil,
		passphrase + "\n\n": fault.CryptoDecryptionFailed, "\n": fault.InvalidArgument, "": fault.InvalidArgument,
		strings.Repeat("x", 5000): fault.InvalidArgument,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := kek.Open(t.Context(), byFile, dir, localpqc.New())
		if want == nil && (err != nil || got.ID != key.ID) || want != nil && !errors.Is(err, want) {
			t.Errorf("Open with the file %.30q = %v, want %v", text, err, want)
		}
	}
}

// kept is the file's encoding.
type kept struct {
	Version uint      `cbor:"1,keyasint"`
	Source  string    `cbor:"2,keyasint"`
	Key     pqc.KeyID `cbor:"3,keyasint"`
	Stretch *struct {
		Passes    uint32 `cbor:"1,keyasint"`
		MemoryKiB uint32 `cbor:"2,keyasint"`
		Lanes     uint8  `cbor:"3,keyasint"`
		Salt      []byte `cbor:"4,keyasint"`
	} `cbor:"4,keyasint,omitempty"`
	Wrapped []byte `cbor:"5,keyasint"`
}

// Nothing in the file can be changed unnoticed, and parameters that would make
// guessing cheap, or take all memory, are refused before they are used.
func TestPassphraseFileIsBound(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kek")
	open(t, byPassphrase(passphrase), dir)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*kept)
		want   fault.Code
	}{
		"the key's id":       {func(k *kept) { k.Key = "00112233445566778899aabbccddeeff" }, fault.CryptoDecryptionFailed},
		"more passes":        {func(k *kept) { k.Stretch.Passes++ }, fault.CryptoDecryptionFailed},
		"the salt":           {func(k *kept) { k.Stretch.Salt[0] ^= 1 }, fault.CryptoDecryptionFailed},
		"the ciphertext":     {func(k *kept) { k.Wrapped[20] ^= 1 }, fault.CryptoDecryptionFailed},
		"a short ciphertext": {func(k *kept) { k.Wrapped = k.Wrapped[:10] }, fault.CryptoDecryptionFailed},
		"a short salt":       {func(k *kept) { k.Stretch.Salt = k.Stretch.Salt[1:] }, fault.DataLoss},
		"one pass":           {func(k *kept) { k.Stretch.Passes = 1 }, fault.DataLoss},
		"endless passes":     {func(k *kept) { k.Stretch.Passes = 1 << 31 }, fault.DataLoss},
		"little memory":      {func(k *kept) { k.Stretch.MemoryKiB = 8 }, fault.DataLoss},
		"all memory":         {func(k *kept) { k.Stretch.MemoryKiB = 1 << 31 }, fault.DataLoss},
		"no lanes":           {func(k *kept) { k.Stretch.Lanes = 0 }, fault.DataLoss},
		"another version":    {func(k *kept) { k.Version = 2 }, fault.DataLoss},
		"no parameters":      {func(k *kept) { k.Stretch = nil }, fault.DataLoss},
		"an unknown source":  {func(k *kept) { k.Source = "hsm" }, fault.DataLoss},
		"source file":        {func(k *kept) { k.Source = "file" }, fault.DataLoss},
		"source kms":         {func(k *kept) { k.Source = "kms" }, fault.DataLoss},
	} {
		var k kept
		if err := canon.Unmarshal(data, &k); err != nil {
			t.Fatal(err)
		}
		tt.change(&k)
		changed, err := canon.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := kek.Open(t.Context(), byPassphrase(passphrase), dir, localpqc.New()); !errors.Is(err, tt.want) {
			t.Errorf("Open with %s changed = %v, want %v", name, err, tt.want)
		}
	}
}

func TestLocalKMS(t *testing.T) {
	dir := t.TempDir()
	key := open(t, byLocalKey(1), dir)
	wrappedOnly(t, dir, key)
	if again := open(t, byLocalKey(1), dir); again.ID != key.ID {
		t.Error("a second Open returns another key")
	}
	// Another directory's key, under the same KMS key, put into this one's file.
	elsewhere := t.TempDir()
	open(t, byLocalKey(1), elsewhere)
	var mine, theirs kept
	for dir, k := range map[string]*kept{dir: &mine, elsewhere: &theirs} {
		data, err := os.ReadFile(filepath.Join(dir, "kek"))
		if err != nil {
			t.Fatal(err)
		}
		if err := canon.Unmarshal(data, k); err != nil {
			t.Fatal(err)
		}
	}
	theirs.Wrapped = mine.Wrapped
	swapped, err := canon.Marshal(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(elsewhere, "kek"), swapped, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, byLocalKey(1), elsewhere, fault.CryptoDecryptionFailed, "opens something else")
	refused(t, byLocalKey(2), dir, fault.CryptoDecryptionFailed, "check that keys.kms_url names the key it was wrapped with")
}

// vault speaks the part of the transit engine's protocol that is used here
// (https://developer.hashicorp.com/vault/api-docs/secret/transit). Its ciphertext
// is the plaintext, reversed.
type vault struct {
	status   int // of every answer, if it is not 0
	body     string
	requests []string
}

func (v *vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.requests = append(v.requests, r.Method+" "+r.URL.Path)
	var in, out struct {
		Plaintext  string `json:"plaintext,omitempty"`
		Ciphertext string `json:"ciphertext,omitempty"`
	}
	switch {
	case r.Header.Get("X-Vault-Token") != "s.token":
		v.answer(w, http.StatusForbidden, `{"errors":["permission denied"]}`)
	case v.status != 0:
		v.answer(w, v.status, v.body)
	case json.NewDecoder(r.Body).Decode(&in) != nil:
		v.answer(w, http.StatusBadRequest, `{"errors":["not JSON"]}`)
	case r.URL.Path == "/v1/transit/encrypt/creto" || r.URL.Path == "/v1/kv-transit/encrypt/creto":
		out.Ciphertext = "vault:v1:" + reverse(in.Plaintext)
		v.answer(w, http.StatusOK, encode(out))
	case strings.HasSuffix(r.URL.Path, "transit/decrypt/creto") && strings.HasPrefix(in.Ciphertext, "vault:v1:"):
		out.Plaintext = reverse(strings.TrimPrefix(in.Ciphertext, "vault:v1:"))
		v.answer(w, http.StatusOK, encode(out))
	default:
		v.answer(w, http.StatusBadRequest, `{"errors":["cipher: message authentication failed"]}`)
	}
}

// encode returns a secret as Vault answers it.
func encode(data any) string {
	encoded, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		panic(err) // two strings
	}
	return string(encoded)
}

func reverse(text string) string {
	b := []byte(text)
	slices.Reverse(b)
	return string(b)
}

func (v *vault) answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // the client notices
}

func TestVault(t *testing.T) {
	v := &vault{}
	server := httptest.NewServer(v)
	defer server.Close()
	t.Setenv("VAULT_ADDR", server.URL)
	t.Setenv("VAULT_TOKEN", "s.token")
	named := func(name string) kek.Config {
		return kek.Config{Source: kek.SourceKMS, KMSURL: creto.NewSecret("hashivault://" + name)}
	}
	t.Setenv("VAULT_MAX_RETRIES", "0")
	dir := t.TempDir()
	key := open(t, named("creto"), dir)
	wrappedOnly(t, dir, key)
	v.requests = nil
	if again := open(t, named("creto"), dir); again.ID != key.ID {
		t.Error("a second Open returns another key")
	}
	if got := strings.Join(v.requests, ", "); got != "PUT /v1/transit/decrypt/creto" {
		t.Errorf("a start asks %q, want one decryption", got)
	}
	refused(t, named("other"), dir, fault.CryptoDecryptionFailed, "it answers 400")
	if engine := open(t, named("creto?engine=kv-transit"), t.TempDir()); engine.ID == key.ID {
		t.Error("another engine's key is the same")
	}

	for _, tt := range []struct {
		status int
		body   string
		want   fault.Code
		hint   string
	}{
		{http.StatusForbidden, `{"errors":["permission denied"]}`, fault.CryptoDecryptionFailed, "it answers 403"},
		{http.StatusNotFound, `{"errors":[]}`, fault.CryptoDecryptionFailed, ""},
		{http.StatusTooManyRequests, `{}`, fault.Unavailable, "it answers 429"},
		{http.StatusNotImplemented, `{"errors":["Vault is sealed"]}`, fault.Unavailable, "it answers 501"},
		{http.StatusOK, `{"data":{"plaintext":7}}`, fault.CryptoDecryptionFailed, "makes no sense"},
		{http.StatusOK, `{"data":{}}`, fault.CryptoDecryptionFailed, "makes no sense"},
		{http.StatusNoContent, ``, fault.CryptoDecryptionFailed, "makes no sense"},
		{http.StatusOK, `{"data":{"plaintext":"AAAA"}}`, fault.CryptoDecryptionFailed, "opens something else"},
		{http.StatusOK, `nonsense`, fault.CryptoDecryptionFailed, ""},
	} {
		v.status, v.body = tt.status, tt.body
		refused(t, named("creto"), dir, tt.want, tt.hint)
	}
	// The right name with other bytes.
	other, err := canon.Marshal(struct {
		Version uint      `cbor:"1,keyasint"`
		Key     pqc.KeyID `cbor:"2,keyasint"`
		Bytes   []byte    `cbor:"3,keyasint"`
	}{1, key.ID, make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	v.status, v.body = http.StatusOK, `{"data":{"plaintext":"`+base64.StdEncoding.EncodeToString(other)+`"}}`
	refused(t, named("creto"), dir, fault.DataLoss, "restore it from a backup")
	// What cannot be opened again is not kept.
	empty := t.TempDir()
	v.status, v.body = http.StatusOK, `{"data":{"ciphertext":"vault:v1:x","plaintext":"AAAA"}}`
	refused(t, named("creto"), empty, fault.CryptoDecryptionFailed, "")
	if entries, err := os.ReadDir(empty); err != nil || len(entries) != 0 {
		t.Errorf("a key that cannot be opened again is kept: %v, %v", entries, err)
	}
	v.status = 0

	t.Setenv("VAULT_TOKEN", "s.other")
	refused(t, named("creto"), dir, fault.CryptoDecryptionFailed, "it answers 403")
	t.Setenv("VAULT_TOKEN", "s.token")
	t.Setenv("VAULT_ADDR", "http://vault.example:8200")
	refused(t, named("creto"), dir, fault.InvalidArgument, "use https://")
	server.Close()
	t.Setenv("VAULT_ADDR", server.URL)
	refused(t, named("creto"), dir, fault.Unavailable, "it cannot be reached")
}

func TestSourceMustBeConfigured(t *testing.T) {
	dir := t.TempDir()
	open(t, kek.Config{}, dir)
	refused(t, byPassphrase(passphrase), dir, fault.FailedPrecondition, "creto keys rewrap")
	refused(t, byLocalKey(1), dir, fault.FailedPrecondition, `kept by "file"`)
}

func TestRewrap(t *testing.T) {
	dir, p := t.TempDir(), localpqc.New()
	if err := kek.Rewrap(t.Context(), kek.Config{}, byLocalKey(1), dir, p); !errors.Is(err, fault.NotFound) {
		t.Errorf("Rewrap of nothing = %v, want NotFound", err)
	}
	steps := []kek.Config{{}, byPassphrase(passphrase), byPassphrase("another horse battery"), byLocalKey(1), byLocalKey(2), {}}
	key := open(t, steps[0], dir)
	for i, to := range steps[1:] {
		from := steps[i]
		if err := kek.Rewrap(t.Context(), from, to, dir, p); err != nil {
			t.Fatal(err)
		}
		if got := open(t, to, dir); got.ID != key.ID || !bytes.Equal(got.Bytes, key.Bytes) {
			t.Errorf("step %d: another key", i)
		}
		if _, err := kek.Open(t.Context(), from, dir, p); err == nil {
			t.Errorf("step %d: the old way still opens it", i)
		}
		if to.Source != "" {
			wrappedOnly(t, dir, key)
		}
	}
	// A wrong old way changes nothing.
	before, err := os.ReadFile(filepath.Join(dir, "kek"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ from, to kek.Config }{
		{byLocalKey(1), byLocalKey(2)}, {kek.Config{}, byPassphrase("short")}, {kek.Config{}, kek.Config{Source: "x"}},
	} {
		if err := kek.Rewrap(t.Context(), tt.from, tt.to, dir, p); err == nil {
			t.Error("Rewrap succeeds")
		}
	}
	if after, err := os.ReadFile(filepath.Join(dir, "kek")); err != nil || !bytes.Equal(after, before) {
		t.Errorf("a refused Rewrap changed the file (err %v)", err)
	}
}

// A crash may leave the temporary file of an earlier write, with the key in it.
func TestLeftoversAreRemoved(t *testing.T) {
	dir, p := t.TempDir(), localpqc.New()
	key := open(t, kek.Config{}, dir)
	if err := os.Link(filepath.Join(dir, "kek"), filepath.Join(dir, ".new-1")); err != nil {
		t.Fatal(err)
	}
	if err := kek.Rewrap(t.Context(), kek.Config{}, byLocalKey(1), dir, p); err != nil {
		t.Fatal(err)
	}
	wrappedOnly(t, dir, key)
}

// crashEnv makes the test binary rewrap a directory until it is killed.
const crashEnv = "CRETO_TEST_REWRAP"

func TestMain(m *testing.M) {
	dir := os.Getenv(crashEnv)
	if dir == "" {
		os.Exit(m.Run())
	}
	p := localpqc.New()
	for {
		for _, way := range [][2]kek.Config{{byLocalKey(1), byLocalKey(2)}, {byLocalKey(2), {}}, {{}, byLocalKey(1)}} {
			if err := kek.Rewrap(context.Background(), way[0], way[1], dir, p); err != nil && !errors.Is(err, fault.FailedPrecondition) && !errors.Is(err, fault.CryptoDecryptionFailed) {
				_, _ = os.Stderr.WriteString(err.Error())
				os.Exit(3)
			}
		}
	}
}

// TestRewrapSurvivesCrashes kills a process that changes the source, at any
// moment. The key must open in one of the ways, and be the same.
func TestRewrapSurvivesCrashes(t *testing.T) {
	dir := t.TempDir()
	key := open(t, byLocalKey(1), dir)
	ways := []kek.Config{byLocalKey(1), byLocalKey(2), {}}
	contents := map[string]bool{}
	for i := range 40 {
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), crashEnv+"="+dir)
		var stderr bytes.Buffer
		child.Stderr = &stderr
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(20+i) * time.Millisecond) // when it dies is what varies
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait() // it was killed
		if stderr.Len() > 0 {
			t.Fatalf("the process says: %s", stderr.String())
		}
		opened := 0
		for _, way := range ways {
			got, err := kek.Open(t.Context(), way, dir, localpqc.New())
			if err == nil {
				opened++
			}
			if err == nil && got.ID != key.ID {
				t.Fatalf("crash %d left another key", i)
			}
		}
		if opened != 1 {
			t.Fatalf("after crash %d, %d ways open the key, want 1", i, opened)
		}
		data, err := os.ReadFile(filepath.Join(dir, "kek"))
		if err != nil {
			t.Fatal(err)
		}
		contents[string(data)] = true
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Fatalf("after crash %d and a start the directory holds %v, %v", i, entries, err)
		}
	}
	if len(contents) < 2 {
		t.Error("the source was never changed before a crash")
	}
}

func TestConfigProblems(t *testing.T) {
	secret := creto.NewSecret
	for _, tt := range []struct {
		name string
		cfg  kek.Config
		want []string
	}{
		{"nothing", kek.Config{}, nil},
		{"file", kek.Config{Source: kek.SourceFile}, nil},
		{"unknown", kek.Config{Source: "hsm"}, []string{"source"}},
		{"passphrase", byPassphrase("x"), nil},
		{"no passphrase", kek.Config{Source: kek.SourcePassphrase}, []string{"passphrase"}},
		{"two passphrases", kek.Config{Source: kek.SourcePassphrase, Passphrase: secret("x"), PassphraseFile: "y"}, []string{"passphrase"}},
		{"useless", kek.Config{Passphrase: secret("x"), PassphraseFile: "y", KMSURL: secret("hashivault://k")}, []string{"passphrase", "passphrase_file", "kms_url"}},
		{"kms", byLocalKey(1), nil},
		{"vault", kek.Config{Source: kek.SourceKMS, KMSURL: secret("hashivault://creto")}, nil},
		{"no url", kek.Config{Source: kek.SourceKMS}, []string{"kms_url"}},
		{"no key", kek.Config{Source: kek.SourceKMS, KMSURL: secret("base64key://")}, []string{"kms_url"}},
		{"not linked", kek.Config{Source: kek.SourceKMS, KMSURL: secret("awskms://alias/x")}, []string{"kms_url"}},
		{"no address", kek.Config{Source: kek.SourceKMS, KMSURL: secret("hashivault://%zz")}, []string{"kms_url"}},
	} {
		var got []string
		for key, text := range tt.cfg.Problems() {
			got = append(got, key)
			if url := tt.cfg.KMSURL.Reveal(); len(url) > 12 && strings.Contains(text, url) {
				t.Errorf("%s: %q quotes the URL", tt.name, text)
			}
		}
		if strings.Join(got, " ") != strings.Join(tt.want, " ") {
			t.Errorf("%s: Problems = %q, want %q", tt.name, got, tt.want)
		}
		if err := tt.cfg.Validate(); (err == nil) != (tt.want == nil) || err != nil && !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: Validate = %v", tt.name, err)
		}
	}
}

func BenchmarkOpenPassphrase(b *testing.B) {
	dir, p := b.TempDir(), localpqc.New()
	if _, err := kek.Open(b.Context(), byPassphrase(passphrase), dir, p); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := kek.Open(b.Context(), byPassphrase(passphrase), dir, p); err != nil {
			b.Fatal(err)
		}
	}
}
