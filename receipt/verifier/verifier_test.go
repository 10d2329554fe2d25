package verifier_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/nhi"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
	"creto.dev/receipt"
	"creto.dev/receipt/verifier"
)

// TestVendored: each file is as vendor.json says, and no other is there.
func TestVendored(t *testing.T) {
	text, err := os.ReadFile("vendor.json")
	if err != nil {
		t.Fatal(err)
	}
	var pins struct {
		Packages map[string]struct{} `json:"packages"`
		Files    map[string]string   `json:"files"`
	}
	if err := json.Unmarshal(text, &pins); err != nil {
		t.Fatal(err)
	}
	seen := 0
	err = fs.WalkDir(verifier.Files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !vendored(path) {
			return err
		}
		data, err := verifier.Files.ReadFile(path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		if want := pins.Files[path]; hex.EncodeToString(sum[:]) != want {
			t.Errorf("%s has another content than vendor.json says; write both with: node vendor.mjs", path)
		}
		seen++
		return nil
	})
	if err != nil || seen == 0 || seen != len(pins.Files) {
		t.Errorf("%d files are vendored, vendor.json has %d (%v)", seen, len(pins.Files), err)
	}
	for name := range pins.Packages {
		if _, err := verifier.Files.ReadFile(strings.TrimPrefix(name, "@") + "/LICENSE"); err != nil {
			t.Error(err)
		}
	}
}

// vendored reports whether a file of the verifier's is somebody else's.
func vendored(path string) bool {
	return strings.HasPrefix(path, "noble/") || strings.HasPrefix(path, "cborg/")
}

// TestLines: all of it that is not vendored can be read in one sitting.
func TestLines(t *testing.T) {
	const most, widest = 300, 140
	total := 0
	err := fs.WalkDir(verifier.Files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || vendored(path) {
			return err
		}
		text, err := verifier.Files.ReadFile(path)
		if err != nil {
			return err
		}
		for number, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
			if width := utf8.RuneCountInString(line); width > widest {
				t.Errorf("%s:%d has %d characters, want at most %d", path, number+1, width, widest)
			}
			total++
		}
		return nil
	})
	if err != nil || total == 0 || total > most {
		t.Errorf("the verifier has %d lines, want at most %d (%v)", total, most, err)
	}
}

// second is the other verifier, in a process of its own.
type second struct {
	in    io.Writer
	out   *bufio.Scanner
	first remembering // what the first one verifies with
}

// remembering computes each signature once, as the second verifier does here:
// thousands of bundles share nearly all of them.
type remembering struct {
	pqc.Provider
	mu    sync.Mutex // guards known
	known map[[32]byte]error
}

// Verify implements pqc.Provider.
func (r *remembering) Verify(purpose pqc.Purpose, message []byte, sig pqc.Signature, key pqc.PublicKey) error {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(purpose), message, sig.Bytes, []byte(sig.Algorithm), []byte(sig.Key), key.Bytes, []byte(key.Algorithm), []byte(key.ID)} {
		_, _ = fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	name := [32]byte(h.Sum(nil))
	r.mu.Lock()
	defer r.mu.Unlock()
	err, ok := r.known[name]
	if !ok {
		err = r.Provider.Verify(purpose, message, sig, key)
		r.known[name] = err
	}
	return err
}

// answer is what it says of one bundle.
type answer struct {
	Verdict string   `json:"verdict"`
	Why     string   `json:"why"`
	Size    string   `json:"size"`
	Who     []string `json:"who"`
}

func node(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("node")
	if err != nil {
		if os.Getenv("CRETO_TEST_REQUIRE") == "1" {
			t.Fatal("node is required: the second verifier runs in it")
		}
		t.Skip("there is no node on the PATH, in which the second verifier runs")
	}
	return path
}

func start(t *testing.T) *second {
	t.Helper()
	c := exec.CommandContext(context.WithoutCancel(t.Context()), node(t), filepath.Join("testdata", "answer.mjs"))
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	})
	s := &second{in: in, out: bufio.NewScanner(out), first: remembering{Provider: localpqc.New(), known: make(map[[32]byte]error)}}
	s.out.Buffer(nil, 1<<20)
	return s
}

func (s *second) ask(t *testing.T, data []byte, root creto.Digest) (a answer) {
	t.Helper()
	pinned := "-"
	if !root.IsZero() {
		pinned = root.String()
	}
	if _, err := fmt.Fprintf(s.in, "%s %s\n", pinned, base64.StdEncoding.EncodeToString(data)); err != nil {
		t.Fatal(err)
	}
	if !s.out.Scan() {
		t.Fatalf("the second verifier ended: %v", s.out.Err())
	}
	if err := json.Unmarshal(s.out.Bytes(), &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// part is what a refusal begins with.
var part = regexp.MustCompile(`^(bundle|record \d+|link \d+|checkpoint|key|disclosure)\b`)

// tally counts what the two agreed on.
type tally struct{ accepted, refused, samePart int }

// agree holds the two verifiers to one verdict.
func (s *second) agree(t *testing.T, n *tally, name string, data []byte, root creto.Digest) {
	t.Helper()
	v, err := receipt.Verify(t.Context(), &s.first, data, root)
	want, why := "refused", ""
	switch {
	case err != nil:
		why = fault.Message(err)
	case v.Trusted:
		want = "trusted"
	default:
		want = "consistent"
	}
	got := s.ask(t, data, root)
	if got.Verdict != want {
		keep := filepath.Join(t.ArtifactDir(), "bundle.cbor")
		_ = os.WriteFile(keep, data, 0o600)
		t.Errorf("%s: the first says %s (%s), the second %s (%s)", name, want, why, got.Verdict, got.Why)
		return
	}
	if err != nil {
		n.refused++
		if !part.MatchString(got.Why) {
			t.Errorf("%s: the second names no part: %q", name, got.Why)
		}
		if part.FindString(why) == part.FindString(got.Why) {
			n.samePart++
		}
		return
	}
	n.accepted++
	var who []string
	for _, e := range v.Records {
		who = append(who, e.Record.Who.String()+" "+e.Record.OnBehalfOf.String())
	}
	if !slices.Equal(who, got.Who) || fmt.Sprint(v.Size) != got.Size {
		t.Errorf("%s: the first proves %v of %d, the second %v of %s", name, who, v.Size, got.Who, got.Size)
	}
}

// Every golden bundle, with every byte of a sample flipped, cut, and taken apart.
func TestGoldenBundles(t *testing.T) {
	files, err := filepath.Glob("../testdata/*.cbor")
	if err != nil || len(files) < 3 {
		t.Fatalf("golden bundles: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			golden, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			v, err := receipt.Verify(t.Context(), localpqc.New(), golden, creto.Digest{})
			if err != nil {
				t.Fatal(err)
			}
			s, n := start(t), &tally{}
			s.agree(t, n, "as it is", golden, creto.Digest{})
			s.agree(t, n, "with its root", golden, v.Root)
			s.agree(t, n, "with another root", golden, creto.DigestOf(nil))
			if n.accepted != 2 {
				t.Fatalf("accepted %d", n.accepted)
			}
			stride := 97
			if os.Getenv("CRETO_TORTURE") == "1" {
				stride = 1
			}
			for i := 0; i < len(golden); i += stride {
				flipped := bytes.Clone(golden)
				flipped[i] ^= 1 << (i % 8)
				s.agree(t, n, fmt.Sprintf("byte %d flipped", i), flipped, v.Root)
			}
			for _, size := range []int{0, 1, 2, 100, len(golden) / 2, len(golden) - 1} {
				s.agree(t, n, fmt.Sprintf("cut to %d", size), golden[:size], v.Root)
			}
			s.agree(t, n, "a byte follows", append(bytes.Clone(golden), 0), v.Root)
			s.agree(t, n, "lists in lists", bytes.Repeat([]byte{0x81}, 1<<20), v.Root)
			s.agree(t, n, "maps in maps", bytes.Repeat([]byte{0xa1, 1}, 1<<18), v.Root)
			for name, data := range variants(golden) {
				s.agree(t, n, name, data, v.Root)
			}
			t.Logf("%d accepted, %d refused, %d of them for the same part", n.accepted, n.refused, n.samePart)
		})
	}
}

// What the root and the log sign themselves, however wrong: links, records and
// certificates that are malformed in every way, and rules that are broken.
func TestSignedAnyway(t *testing.T) {
	base := newForge(t)
	for name, f := range map[string]func(*forge){
		"bootstrap": func(f *forge) { f.delegate(t, nhi.Proof{Kind: nhi.ProofBootstrap}, "bot") },
		"three links, narrower each": func(f *forge) {
			f.scopes = []nhi.Scope{
				{Actions: []string{"call_*", "http_request"}, Resources: []string{"*"}, Spend: amount(t, "100.00 EUR")},
				{Actions: []string{"call_model", "call_t*"}, Resources: []string{"Model::*", "Url::x"}, Spend: amount(t, "99.999999999 EUR")},
				{Actions: []string{"call_model"}, Resources: []string{"Model::gpt-*"}, Spend: amount(t, "0.50 EUR")},
			}
			f.delegate(t, nhi.Proof{Kind: nhi.ProofBootstrap}, "boss", "helper", "intern")
		},
		"ES256": func(f *forge) { f.present(t, "ES256", nil) },
		"EdDSA": func(f *forge) { f.present(t, "EdDSA", nil) },
		"RS256": func(f *forge) { f.present(t, "RS256", nil) },
		"OIDC":  func(f *forge) { f.authenticated(t, nil) },
		"people": func(f *forge) {
			f.delegate(t, nhi.Proof{Kind: nhi.ProofBootstrap}, "bot")
			f.people = true
		},
		"a local stamp": func(f *forge) {
			f.delegate(t, nhi.Proof{Kind: nhi.ProofBootstrap}, "bot")
			f.edit = func(r *audit.Record) { r.Stamp.Source, r.Stamp.Uncertainty = creto.SourceLocal, 5e6 }
		},
		"a new root": func(f *forge) {
			f.delegate(t, nhi.Proof{Kind: nhi.ProofBootstrap}, "bot")
			f.rotated = true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, n := start(t), &tally{}
			one := base
			f(&one)
			data, root := one.bundle(t, nil)
			s.agree(t, n, "as it is", data, root)
			s.agree(t, n, "without a root", data, creto.Digest{})
			if one.rotated {
				s.agree(t, n, "with the old root", data, one.old(t))
			}
			if n.refused > 0 {
				_, err := receipt.Verify(t.Context(), localpqc.New(), data, root)
				t.Fatalf("it is refused: %v", err)
			}
			keep := 47 // one of so many variants
			if os.Getenv("CRETO_TORTURE") == "1" {
				keep = 1
			}
			for what, target := range map[string]int{"link": 1, "record": 1, "certificate": 2, "proof": 2} {
				i := 0
				pick := func(body []byte) map[string][]byte { return variants(body) }
				original := one.original(t, what)
				if original == nil {
					continue
				}
				variations := pick(original)
				for _, variant := range slices.Sorted(keysOf(variations)) {
					if i++; i%max(1, keep/target) != 0 {
						continue
					}
					replaced := false
					data, root := one.bundle(t, func(kind string, body []byte) []byte {
						if kind == what && !replaced && bytes.Equal(body, original) {
							replaced = true
							return variations[variant]
						}
						return body
					})
					if !replaced {
						t.Fatalf("there is no such %s any more", what)
					}
					s.agree(t, n, what+": "+variant, data, root)
				}
			}
			for what, edit := range one.rules(t) {
				changed := one
				changed.links = slices.Clone(one.links)
				edit(&changed)
				data, root := changed.bundle(t, nil)
				s.agree(t, n, what, data, root)
			}
			t.Logf("%d accepted, %d refused, %d of them for the same part", n.accepted, n.refused, n.samePart)
		})
	}
}

// What authenticators and providers may send, and what they may not.
func TestProofsOfHumans(t *testing.T) {
	base := newForge(t)
	s, n := start(t), &tally{}
	one := func(name string, prepare func(*forge)) {
		f := base
		prepare(&f)
		data, root := f.bundle(t, nil)
		s.agree(t, n, name, data, root)
	}
	for name, edit := range map[string]func(*ceremony){
		"another challenge":          func(c *ceremony) { c.client = strings.Replace(c.client, c.nonce, "AAAA", 1) },
		"other members first":        func(c *ceremony) { c.client = `{"x":[{"type":1}],` + c.client[1:] },
		"spaces":                     func(c *ceremony) { c.client = " \n\t" + strings.ReplaceAll(c.client, ":", " : ") + " " },
		"a member twice, last wrong": func(c *ceremony) { c.client = c.client[:len(c.client)-1] + `,"type":"webauthn.create"}` },
		"crossed after all":          func(c *ceremony) { c.client = c.client[:len(c.client)-1] + `,"crossOrigin":true}` },
		"a name in capitals":         func(c *ceremony) { c.client = strings.Replace(c.client, `"type"`, `"Type"`, 1) },
		"a member twice":             func(c *ceremony) { c.client = `{"type":"webauthn.get",` + c.client[1:] },
		"a member twice, escaped":    func(c *ceremony) { c.client = `{"\u0074ype":"webauthn.get",` + c.client[1:] },
		"escaped":                    func(c *ceremony) { c.client = strings.Replace(c.client, `"type"`, `"t\u0079pe"`, 1) },
		"lone surrogates":            func(c *ceremony) { c.client = `{"\ud800":1,"\ud801":2,` + c.client[1:] },
		"one lone surrogate":         func(c *ceremony) { c.client = `{"\ud800":1,` + c.client[1:] },
		"a prototype":                func(c *ceremony) { c.client = `{"__proto__":{"topOrigin":1},` + c.client[1:] },
		"nested twice":               func(c *ceremony) { c.client = `{"x":{"a":1,"a":2},` + c.client[1:] },
		"braces in text":             func(c *ceremony) { c.client = `{"x":"}{\"][:","y\\":":",` + c.client[1:] },
		"a list":                     func(c *ceremony) { c.client = "[" + c.client + "]" },
		"null":                       func(c *ceremony) { c.client = "null" },
		"something follows":          func(c *ceremony) { c.client += "{}" },
		"a comma too many":           func(c *ceremony) { c.client = c.client[:len(c.client)-1] + ",}" },
		"a mark in front":            func(c *ceremony) { c.client = "\ufeff" + c.client },
		"no UTF-8":                   func(c *ceremony) { c.client = "{\"x\":\"\xff\"," + c.client[1:] },
		"a control character":        func(c *ceremony) { c.client = "{\"x\":\"\x01\"," + c.client[1:] },
		"a number with a zero":       func(c *ceremony) { c.client = `{"x":01,` + c.client[1:] },
		"a large number":             func(c *ceremony) { c.client = `{"x":1e999,` + c.client[1:] },
		"cross-origin":               func(c *ceremony) { c.client = strings.Replace(c.client, "false", "true", 1) },
		"cross-origin, quoted":       func(c *ceremony) { c.client = strings.Replace(c.client, "false", `"false"`, 1) },
		"cross-origin, null":         func(c *ceremony) { c.client = strings.Replace(c.client, "false", "null", 1) },
		"cross-origin not said":      func(c *ceremony) { c.client = strings.Replace(c.client, `,"crossOrigin":false`, "", 1) },
		"in a frame":                 func(c *ceremony) { c.client = `{"topOrigin":null,` + c.client[1:] },
		"another type":               func(c *ceremony) { c.client = strings.Replace(c.client, "webauthn.get", "webauthn.create", 1) },
		"a type that is a number":    func(c *ceremony) { c.client = strings.Replace(c.client, `"webauthn.get"`, "7", 1) },
		"nobody there":               func(c *ceremony) { c.flags &^= 1 },
		"not verified":               func(c *ceremony) { c.flags &^= 4 },
		"backed up, not eligible":    func(c *ceremony) { c.flags = 0x15 },
		"not backed up":              func(c *ceremony) { c.flags = 0x05 },
		"attested":                   func(c *ceremony) { c.flags |= 0x40 },
		"extensions that are not":    func(c *ceremony) { c.flags |= 0x80 },
		"extensions":                 func(c *ceremony) { c.flags |= 0x80; c.extra = []byte{0xa0} },
		"extensions that are silent": func(c *ceremony) { c.extra = []byte{0xa0} },
		"another party":              func(c *ceremony) { c.party = "example.com" },
		"below its party":            func(c *ceremony) { c.move("https://login.shop.example:8443", "shop.example") },
		"beside its party":           func(c *ceremony) { c.move("https://loginshop.example", "shop.example") },
		"in clear":                   func(c *ceremony) { c.move("http://shop.example", "shop.example") },
		"in clear, here":             func(c *ceremony) { c.move("http://a.localhost:1", "localhost") },
		"with a path":                func(c *ceremony) { c.move("https://shop.example/", "shop.example") },
		"in capitals":                func(c *ceremony) { c.move("https://Shop.example", "Shop.example") },
		"with a user":                func(c *ceremony) { c.move("https://a@shop.example", "shop.example") },
		"an address":                 func(c *ceremony) { c.move("https://[::1]", "::1") },
		"another port":               func(c *ceremony) { c.move("https://shop.example:", "shop.example") },
		"a long port":                func(c *ceremony) { c.move("https://shop.example:123456", "shop.example") },
		"percent":                    func(c *ceremony) { c.move("https://shop%2eexample", "shop.example") },
		"umlauts":                    func(c *ceremony) { c.move("https://ümlaut.example", "ümlaut.example") },
		"another scheme":             func(c *ceremony) { c.move("ftp://shop.example", "shop.example") },
		"no party":                   func(c *ceremony) { c.move("https://shop.example", "") },
		"a changed signature":        func(c *ceremony) { c.spoil = func(sig []byte) []byte { sig[len(sig)-1] ^= 1; return sig } },
		"a longer signature":         func(c *ceremony) { c.spoil = func(sig []byte) []byte { return append(sig, 0) } },
		"a shorter signature":        func(c *ceremony) { c.spoil = func(sig []byte) []byte { return sig[:len(sig)-1] } },
		"no signature":               func(c *ceremony) { c.spoil = func([]byte) []byte { return nil } },
		"a credential of no length":  func(c *ceremony) { c.credential = []byte{} },
		"a credential too long":      func(c *ceremony) { c.credential = make([]byte, 1024) },
	} {
		for _, kind := range []string{"ES256", "EdDSA", "RS256"} {
			one(kind+" "+name, func(f *forge) { f.present(t, kind, edit) })
		}
	}
	for name, key := range map[string]map[int]any{
		"off the curve":     {1: 2, 3: -7, -1: 1, -2: make([]byte, 32), -3: make([]byte, 32)},
		"short coordinates": {1: 2, 3: -7, -1: 1, -2: make([]byte, 31), -3: make([]byte, 32)},
		"another curve":     {1: 2, 3: -7, -1: 2, -2: make([]byte, 32), -3: make([]byte, 32)},
		"another algorithm": {1: 1, 3: -7, -1: 6, -2: make([]byte, 32)},
		"no parameters":     {1: 1, 3: -8},
		"small RSA":         {1: 3, 3: -257, -1: append([]byte{1}, make([]byte, 127)...), -2: []byte{1, 0, 1}},
		"even RSA":          {1: 3, 3: -257, -1: append([]byte{0x80}, make([]byte, 255)...), -2: []byte{1, 0, 1}},
		"no exponent":       {1: 3, 3: -257, -1: bytes.Repeat([]byte{0xff}, 256), -2: []byte{}},
		"exponent one":      {1: 3, 3: -257, -1: bytes.Repeat([]byte{0xff}, 256), -2: []byte{1}},
		"long exponent":     {1: 3, 3: -257, -1: bytes.Repeat([]byte{0xff}, 256), -2: []byte{1, 0, 0, 1}},
		"one more":          {1: 1, 3: -8, -1: 6, -2: make([]byte, 32), 4: 1},
	} {
		one(name, func(f *forge) {
			f.present(t, "EdDSA", func(c *ceremony) { c.cose = must(canon.Marshal(key)) })
		})
	}
	for name, edit := range map[string]func(*nhi.OIDCEvidence){
		"another nonce":      func(e *nhi.OIDCEvidence) { e.Nonce = "AAAA" },
		"too early":          func(e *nhi.OIDCEvidence) { e.AuthTime = 1000 - 121 },
		"just in time":       func(e *nhi.OIDCEvidence) { e.AuthTime = 1000 - 120 },
		"too late":           func(e *nhi.OIDCEvidence) { e.AuthTime = 2000 },
		"a short hash":       func(e *nhi.OIDCEvidence) { e.TokenHash = e.TokenHash[1:] },
		"nobody":             func(e *nhi.OIDCEvidence) { e.Subject = "" },
		"a long subject":     func(e *nhi.OIDCEvidence) { e.Subject = strings.Repeat("ä", 128) },
		"for nobody":         func(e *nhi.OIDCEvidence) { e.Audience = "" },
		"an issuer's path":   func(e *nhi.OIDCEvidence) { e.Issuer = "https://id.example:8443/realms/x" },
		"an issuer's query":  func(e *nhi.OIDCEvidence) { e.Issuer = "https://id.example/?x" },
		"an issuer's end":    func(e *nhi.OIDCEvidence) { e.Issuer = "https://id.example/#x" },
		"an empty query":     func(e *nhi.OIDCEvidence) { e.Issuer = "https://id.example/?" },
		"no host":            func(e *nhi.OIDCEvidence) { e.Issuer = "https:///x" },
		"no address":         func(e *nhi.OIDCEvidence) { e.Issuer = "id.example" },
		"an issuer's user":   func(e *nhi.OIDCEvidence) { e.Issuer = "https://me@id.example" },
		"in capitals":        func(e *nhi.OIDCEvidence) { e.Issuer = "HTTPS://ID.example" },
		"a host in capitals": func(e *nhi.OIDCEvidence) { e.Issuer = "https://ID.example" },
		"a broken escape":    func(e *nhi.OIDCEvidence) { e.Issuer = "https://id.example/%zz" },
		"a space":            func(e *nhi.OIDCEvidence) { e.Issuer = "https://id.example/a b" },
		"a long issuer":      func(e *nhi.OIDCEvidence) { e.Issuer = "https://id.example/" + strings.Repeat("x", 512) },
	} {
		one("OIDC "+name, func(f *forge) { f.authenticated(t, edit) })
	}
	for name, p := range map[string]nhi.Proof{
		"none": {}, "unknown": {Kind: "word"}, "bootstrap with data": {Kind: nhi.ProofBootstrap, Data: []byte{1}},
		"a passkey without data": {Kind: nhi.ProofWebAuthn}, "data alone": {Data: []byte{1}}, "data of zeros": {Data: make([]byte, 32)},
		"too large": {Kind: nhi.ProofOIDC, Data: make([]byte, 16<<10+1)},
	} {
		one("a proof: "+name, func(f *forge) { f.delegate(t, p, "bot") })
	}
	t.Logf("%d accepted, %d refused, %d of them for the same part", n.accepted, n.refused, n.samePart)
	if n.accepted < 20 || n.refused < 100 {
		t.Errorf("%d accepted and %d refused: that is not much of a test", n.accepted, n.refused)
	}
}

// TestCommand: as a program it has the exit codes of creto verify.
func TestCommand(t *testing.T) {
	golden, err := os.ReadFile("../testdata/bundle-v1-disclosed.cbor")
	if err != nil {
		t.Fatal(err)
	}
	v, err := receipt.Verify(t.Context(), localpqc.New(), golden, creto.Digest{})
	if err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(t.TempDir(), "broken")
	golden[len(golden)/2] ^= 1
	if err := os.WriteFile(broken, golden, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"../testdata/bundle-v1-disclosed.cbor", "--root", v.Root.String()}, 0, "root trusted"},
		{[]string{"../testdata/bundle-v1-disclosed.cbor"}, 3, "signer not trusted"},
		{[]string{"../testdata/bundle-v1-disclosed.cbor", "--root", creto.DigestOf(nil).String()}, 1, "FAILED: key: "},
		{[]string{broken}, 1, "FAILED: "},
		{[]string{"../testdata/bundle-v1-disclosed.cbor", "--root", "x"}, 1, "FAILED: key: "},
		{[]string{"../testdata/bundle-v1-disclosed.cbor", "--root"}, 1, "usage"},
		{[]string{"../testdata/bundle-v1-disclosed.cbor", "--roots", "x"}, 1, "usage"},
		{[]string{"nowhere"}, 1, "FAILED"},
		{nil, 1, "usage"},
	} {
		out, err := exec.CommandContext(t.Context(), node(t), append([]string{"verify.mjs"}, test.args...)...).CombinedOutput()
		code := 0
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			code = exit.ExitCode()
		}
		if code != test.code || !strings.Contains(string(out), test.says) {
			t.Errorf("verify.mjs %v = %d %s, want %d and %q", test.args, code, out, test.code, test.says)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func amount(t *testing.T, text string) creto.Money {
	t.Helper()
	m, err := creto.ParseMoney(text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func keysOf[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// signingKey has a fixed seed.
func signingKey(n byte) (pqc.SigningKey, pqc.PublicKey) {
	p := localpqc.New()
	key := must(p.SigningKeyFromSeed(pqc.MLDSA65Ed25519, bytes.Repeat([]byte{n}, pqc.CompositeSeedSize)))
	return key, must(p.Public(key))
}

// forge makes bundles whose every part is signed by who should, whatever it says.
type forge struct {
	signer  *audit.Signer
	links   []nhi.Link // of one chain
	scopes  []nhi.Scope
	people  bool
	rotated bool
	edit    func(*audit.Record)
	keys    map[string]passkey
	// signatures that were made, to be used again.
	signatures *sync.Map
}

func newForge(t *testing.T) forge {
	t.Helper()
	composite, _ := signingKey(1)
	signer, err := audit.NewSigner(localpqc.New(), composite, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, 32)), "test.local/log")
	if err != nil {
		t.Fatal(err)
	}
	return forge{signer: signer, keys: passkeys(), signatures: new(sync.Map)}
}

func id(kind creto.Kind, name string) creto.ID {
	return creto.ID{TrustDomain: "test.local", Tenant: "default", Kind: kind, Name: name}
}

// delegate makes the chain from alice down.
func (f *forge) delegate(t *testing.T, proof nhi.Proof, agents ...string) {
	t.Helper()
	issuer := id(creto.KindHuman, "alice")
	f.links = nil
	for i, name := range agents {
		_, public := signingKey(byte(10 + i))
		l := nhi.Link{
			Version: 2, Issuer: issuer, Subject: id(creto.KindAgent, name), SubjectKey: public, Scope: nhi.Everything(),
			NotBefore: 1000, NotAfter: 2000, MaxDepth: uint(len(agents) - i), Nonce: creto.UUID{byte(i + 1)},
		}
		if f.scopes != nil {
			l.Scope = f.scopes[i]
		}
		if i == 0 {
			l.Proof = proof
		}
		issuer = l.Subject
		f.links = append(f.links, l)
	}
}

// old is the fingerprint of the root before the present one.
func (forge) old(t *testing.T) creto.Digest {
	t.Helper()
	_, public := signingKey(5)
	return must(nhi.Fingerprint(public))
}

// bundle signs everything; change, if any, sees each body before it is signed.
func (f forge) bundle(t *testing.T, change func(kind string, body []byte) []byte) ([]byte, creto.Digest) {
	t.Helper()
	p := localpqc.New()
	if change == nil {
		change = func(_ string, body []byte) []byte { return body }
	}
	sign := func(purpose pqc.Purpose, body []byte, n byte) pqc.Signature {
		name := fmt.Sprintf("%s/%d/%x", purpose, n, sha256.Sum256(body))
		if made, ok := f.signatures.Load(name); ok {
			return made.(pqc.Signature)
		}
		key, _ := signingKey(n)
		made := must(p.Sign(purpose, body, key))
		f.signatures.Store(name, made)
		return made
	}
	const root = 4
	_, public := signingKey(root)
	b := receipt.Bundle{Version: receipt.Version, Keys: receipt.Keys{Root: public}}
	certify := func(by byte, c nhi.Certificate) {
		c.Version, c.NotBefore = 1, 900
		body := change("certificate", must(canon.Marshal(c)))
		b.Keys.Certificates = append(b.Keys.Certificates, nhi.SignedCertificate{Body: body, Signature: sign(pqc.PurposeKey, body, by)})
	}
	keys := f.signer.Keys()
	certify(root, nhi.Certificate{Role: nhi.RoleCheckpoint, Name: keys.Origin, Key: keys.Key})
	certify(root, nhi.Certificate{Role: nhi.RoleCheckpointEd25519, Name: keys.Origin, Key: pqc.NewPublicKey(audit.NoteEd25519, keys.Ed25519)})
	humans := byte(root)
	if f.rotated {
		humans = 5 // the link is of the old root's days
		_, before := signingKey(5)
		certify(5, nhi.Certificate{Role: nhi.RoleRoot, Name: "test.local", Key: public})
		certify(root, nhi.Certificate{Role: nhi.RoleRoot, Name: "test.local", Key: before})
	}
	var parent creto.Digest
	for i, l := range f.links {
		l.Parent = parent
		if l.Proof.Data != nil {
			l.Proof.Data = change("proof", l.Proof.Data)
		}
		by := humans
		if i > 0 {
			by = byte(10 + i - 1)
		}
		body := change("link", must(canon.Marshal(l)))
		signed := nhi.SignedLink{Body: body, Signature: sign(pqc.PurposeDelegation, body, by)}
		parent = signed.Digest()
		b.Links = append(b.Links, signed)
	}
	chain := must(nhi.ChainDigest(b.Links))
	slices.SortFunc(b.Links, func(x, y nhi.SignedLink) int { a, b := x.Digest(), y.Digest(); return bytes.Compare(a[:], b[:]) })
	r := audit.Record{
		ID: creto.UUID{7}, Stamp: creto.Timestamp{Logical: 1 << 40, Physical: 1500e9, Source: creto.SourceConsensus, Node: "n"},
		Who: f.links[len(f.links)-1].Subject, OnBehalfOf: f.links[0].Issuer, Chain: chain, What: creto.CallModel, Resource: "Model::gpt-4",
		Args: creto.DigestOf([]byte("args")), Outcome: audit.Success, Why: "because",
		Decision: &audit.Decision{Kind: "allow", Policies: []audit.PolicyRef{{ID: "p"}}, Version: creto.DigestOf(nil)},
		Usage:    &audit.Usage{PromptTokens: 3, CompletionTokens: -1, Estimated: true}, Sandbox: "s", Isolation: "gvisor", Trace: "t", Detail: map[string]string{"a": "1", "bb": ""},
	}
	for i, name := range []string{"c1", "c2"} {
		c := audit.Consent{ID: name, Approver: id(creto.KindHuman, "bob").String(), Channel: "cli", Human: i == 0, Policy: audit.PolicyRef{ID: "refund", Digest: creto.DigestOf(nil)}, ExpiresNS: int64(i)*1e12 - 5}
		c.Request = must(audit.Question{ID: c.ID, Tenant: r.Who.Tenant, Agent: r.Who, Chain: r.Chain, Action: r.What, Resource: r.Resource, Args: r.Args, Policy: c.Policy, ExpiresNS: c.ExpiresNS}.Digest())
		r.Consents = append(r.Consents, c)
	}
	if f.edit != nil {
		f.edit(&r)
	}
	if f.people {
		r = must(r.Seal(func(who creto.ID) (audit.Subject, error) {
			sum := sha256.Sum256([]byte(who.String()))
			s := audit.Subject{ID: creto.UUID(sum[:16]), Key: sum[:]}
			b.Disclosures = append(b.Disclosures, audit.Disclosure{Index: 2, Subject: s.ID, Key: must(s.RecordKey(r.ID))})
			return s, nil
		}))
		slices.SortFunc(b.Disclosures, func(a, b audit.Disclosure) int { return bytes.Compare(a.Subject[:], b.Subject[:]) })
	}
	event := audit.Record{ID: creto.UUID{8}, Stamp: r.Stamp, Who: id(creto.KindWorkload, "w"), What: audit.EventNodeStarted, Resource: "Node::n", Outcome: audit.Denied}
	leaves := [][]byte{[]byte("a"), must(canon.Marshal(event)), change("record", must(canon.Marshal(r))), []byte("b"), []byte("c")}
	var stored hashes
	for i, leaf := range leaves {
		stored = append(stored, must(tlog.StoredHashes(int64(i), leaf, stored))...)
	}
	for _, i := range []int64{1, 2} {
		one := receipt.Receipt{Leaf: leaves[i], Index: i}
		for _, h := range must(tlog.ProveRecord(int64(len(leaves)), i, stored)) {
			one.Proof = append(one.Proof, h[:])
		}
		b.Receipts = append(b.Receipts, one)
	}
	head := must(f.signer.Sign(int64(len(leaves)), must(tlog.TreeHash(int64(len(leaves)), stored))))
	b.Checkpoint = head.Note
	return must(canon.Marshal(b)), must(nhi.Fingerprint(public))
}

// original is the body of the first of its kind.
func (f forge) original(t *testing.T, kind string) (found []byte) {
	t.Helper()
	f.bundle(t, func(k string, body []byte) []byte {
		if k == kind && found == nil {
			found = bytes.Clone(body)
		}
		return body
	})
	return found
}

// rules are edits that break, or stretch, one rule each.
func (f forge) rules(t *testing.T) map[string]func(*forge) {
	t.Helper()
	edit := func(what func(*audit.Record)) func(*forge) { return func(f *forge) { f.edit = what } }
	last := len(f.links) - 1
	all := map[string]func(*forge){
		"before the chain":        edit(func(r *audit.Record) { r.Stamp.Physical = 1000e9 - 1 }),
		"at its beginning":        edit(func(r *audit.Record) { r.Stamp.Physical = 1000e9 }),
		"at its end":              edit(func(r *audit.Record) { r.Stamp.Physical = 2000e9 }),
		"another agent":           edit(func(r *audit.Record) { r.Who.Name = "mallory" }),
		"another human":           edit(func(r *audit.Record) { r.OnBehalfOf.Name = "mallory" }),
		"a pseudonym":             edit(func(r *audit.Record) { r.OnBehalfOf.Name = "subject.f47ac10b-58cc-4372-a567-0e02b2c3d479" }),
		"nearly a pseudonym":      edit(func(r *audit.Record) { r.OnBehalfOf.Name = "subject.f47ac10b-58cc-4372-a567-0e02b2c3d47" }),
		"nobody's":                edit(func(r *audit.Record) { r.OnBehalfOf = creto.ID{} }),
		"no chain":                edit(func(r *audit.Record) { r.Chain = creto.Digest{} }),
		"another chain":           edit(func(r *audit.Record) { r.Chain[0] ^= 1 }),
		"a consent twice":         edit(func(r *audit.Record) { r.Consents[1] = r.Consents[0] }),
		"a consent twice, denied": edit(func(r *audit.Record) { r.Consents[1] = r.Consents[0]; r.Outcome = audit.Denied }),
		"a consent to another":    edit(func(r *audit.Record) { r.Resource += "o" }),
		"no arguments":            edit(func(r *audit.Record) { r.Args = creto.Digest{} }),
		"no consents":             edit(func(r *audit.Record) { r.Consents = nil }),
		"links without need":      edit(func(r *audit.Record) { r.Consents, r.Chain = nil, creto.Digest{} }),
		"large numbers":           edit(func(r *audit.Record) { r.Usage.PromptTokens = -1 << 63; r.Stamp.Logical = 1<<64 - 1 }),
		"a local stamp":           edit(func(r *audit.Record) { r.Stamp.Source, r.Stamp.Uncertainty = creto.SourceLocal, 7 }),
		"of unknown uncertainty": edit(func(r *audit.Record) {
			r.Stamp.Source, r.Stamp.Uncertainty = creto.SourceLocal, creto.UncertaintyUnknown
		}),
		"text of all kinds": edit(func(r *audit.Record) { r.Why = "\ufeffä\x00\U0001F600\ufffd"; r.Detail["é"] = "\u2028" }),
	}
	for what, change := range map[string]func(*nhi.Link){
		"never in force":         func(l *nhi.Link) { l.NotAfter = l.NotBefore },
		"another tenant":         func(l *nhi.Link) { l.Subject.Tenant = "other" },
		"another domain":         func(l *nhi.Link) { l.Subject.TrustDomain = "other.local" },
		"to a human":             func(l *nhi.Link) { l.Subject.Kind = creto.KindHuman },
		"to a workload":          func(l *nhi.Link) { l.Subject.Kind = creto.KindWorkload },
		"by an agent":            func(l *nhi.Link) { l.Issuer = id(creto.KindAgent, "mallory") },
		"by another":             func(l *nhi.Link) { l.Issuer.Name = "mallory" },
		"to nobody":              func(l *nhi.Link) { l.Subject = creto.ID{} },
		"longer":                 func(l *nhi.Link) { l.NotAfter++ },
		"earlier":                func(l *nhi.Link) { l.NotBefore -= 500 },
		"deeper":                 func(l *nhi.Link) { l.MaxDepth++ },
		"wider":                  func(l *nhi.Link) { l.Scope = nhi.Everything() },
		"wider in actions":       func(l *nhi.Link) { l.Scope.Actions = []string{"*"} },
		"wider in resources":     func(l *nhi.Link) { l.Scope.Resources = []string{"*"} },
		"nothing":                func(l *nhi.Link) { l.Scope = nhi.Scope{} },
		"stars":                  func(l *nhi.Link) { l.Scope.Actions = []string{"call_**", "call_model*", "**"} },
		"no money":               func(l *nhi.Link) { l.Scope.Spend = creto.Money{} },
		"other money":            func(l *nhi.Link) { l.Scope.Spend = amount(t, "0.10 USD") },
		"more money":             func(l *nhi.Link) { l.Scope.Spend = amount(t, "170000000000000000000000000000.00 EUR") },
		"less than no money":     func(l *nhi.Link) { l.Scope.Spend = amount(t, "-0.01 EUR") },
		"zero":                   func(l *nhi.Link) { l.Scope.Spend = amount(t, "0 EUR") },
		"a long pattern":         func(l *nhi.Link) { l.Scope.Actions = []string{strings.Repeat("ä", 513)} },
		"many patterns":          func(l *nhi.Link) { l.Scope.Resources = slices.Repeat([]string{"Model::gpt-4"}, 257) },
		"a version of the past":  func(l *nhi.Link) { l.Version = 1 },
		"a proof":                func(l *nhi.Link) { l.Proof = nhi.Proof{Kind: nhi.ProofBootstrap} },
		"another subject's key":  func(l *nhi.Link) { _, l.SubjectKey = signingKey(99) },
		"a key of another kind":  func(l *nhi.Link) { l.SubjectKey = pqc.NewPublicKey("rsa", []byte{1}) },
		"epochs without measure": func(l *nhi.Link) { l.IssuerEpoch, l.SubjectEpoch = 1<<64-1, 1<<63 },
	} {
		for _, i := range slices.Compact([]int{0, last}) {
			all[fmt.Sprintf("link %d: %s", i+1, what)] = func(f *forge) { change(&f.links[i]) }
		}
	}
	return all
}

// hashes are a tree's.
type hashes []tlog.Hash

// ReadHashes implements tlog.HashReader.
func (h hashes) ReadHashes(at []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(at))
	for i, p := range at {
		out[i] = h[p]
	}
	return out, nil
}

// passkey is an authenticator in software.
type passkey struct {
	cose []byte
	sign func(message []byte) []byte
}

func passkeys() map[string]passkey {
	ec := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	point := must(ec.PublicKey.Bytes())
	ed := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, 32))
	rs := must(rsa.GenerateKey(rand.Reader, 2048))
	digest := func(message []byte) []byte { d := sha256.Sum256(message); return d[:] }
	return map[string]passkey{
		"ES256": {must(canon.Marshal(map[int]any{1: 2, 3: -7, -1: 1, -2: point[1:33], -3: point[33:]})), func(m []byte) []byte { return must(ecdsa.SignASN1(rand.Reader, ec, digest(m))) }},
		"EdDSA": {must(canon.Marshal(map[int]any{1: 1, 3: -8, -1: 6, -2: []byte(ed.Public().(ed25519.PublicKey))})), func(m []byte) []byte { return ed25519.Sign(ed, m) }},
		"RS256": {must(canon.Marshal(map[int]any{1: 3, 3: -257, -1: rs.N.Bytes(), -2: big.NewInt(int64(rs.E)).Bytes()})), func(m []byte) []byte {
			return must(rsa.SignPKCS1v15(nil, rs, crypto.SHA256, digest(m)))
		}},
	}
}

// ceremony is what a browser and an authenticator do.
type ceremony struct {
	nonce, party, origin, client string
	flags                        byte
	extra, credential, cose      []byte
	spoil                        func([]byte) []byte
}

func (c *ceremony) move(origin, party string) {
	c.client = strings.Replace(c.client, c.origin, origin, 1)
	c.origin, c.party = origin, party
}

// present makes a chain whose human used a passkey.
func (f *forge) present(t *testing.T, kind string, edit func(*ceremony)) {
	t.Helper()
	f.delegate(t, nhi.Proof{}, "bot")
	challenge := must(f.links[0].Challenge())
	c := ceremony{nonce: base64.RawURLEncoding.EncodeToString(challenge[:]), party: "localhost", origin: "http://localhost:7300", flags: 0x1d, credential: []byte{1}, cose: f.keys[kind].cose}
	c.client = `{"type":"webauthn.get","challenge":"` + c.nonce + `","origin":"` + c.origin + `","crossOrigin":false}`
	if edit != nil {
		edit(&c)
	}
	party, client := sha256.Sum256([]byte(c.party)), sha256.Sum256([]byte(c.client))
	data := append(append(party[:], c.flags, 0, 0, 0, 7), c.extra...)
	signature := f.keys[kind].sign(append(bytes.Clone(data), client[:]...))
	if c.spoil != nil {
		signature = c.spoil(signature)
	}
	f.links[0].Proof = must(nhi.WebAuthnAssertion{
		RPID: c.party, Origin: c.origin, CredentialID: c.credential, PublicKey: c.cose, AuthenticatorData: data, ClientDataJSON: []byte(c.client), Signature: signature,
	}.Proof())
}

// authenticated makes a chain whose human logged in at a provider.
func (f *forge) authenticated(t *testing.T, edit func(*nhi.OIDCEvidence)) {
	t.Helper()
	f.delegate(t, nhi.Proof{}, "bot")
	challenge := must(f.links[0].Challenge())
	e := nhi.OIDCEvidence{Issuer: "https://id.example", Subject: "s", Audience: "a", TokenHash: make([]byte, 32), AuthTime: 1000, Nonce: base64.RawURLEncoding.EncodeToString(challenge[:])}
	if edit != nil {
		edit(&e)
	}
	f.links[0].Proof = must(e.Proof())
}

// An uncertainty of 0 is left out, so that a record has one form.
func TestNoUncertaintyIsAbsent(t *testing.T) {
	f := newForge(t)
	f.delegate(t, nhi.Proof{Kind: nhi.ProofBootstrap}, "bot")
	f.edit = func(r *audit.Record) { r.Stamp.Source, r.Stamp.Uncertainty = creto.SourceLocal, 5e6 }
	data, root := f.bundle(t, func(kind string, body []byte) []byte {
		if kind != "record" {
			return body
		}
		zero := bytes.Replace(body, []byte{0x05, 0x1a, 0x00, 0x4c, 0x4b, 0x40}, []byte{0x05, 0x00}, 1)
		if bytes.Equal(zero, body) {
			t.Fatal("the record has no such uncertainty")
		}
		return zero
	})
	s, n := start(t), &tally{}
	s.agree(t, n, "an uncertainty of 0", data, root)
	if n.refused != 1 {
		t.Errorf("%d refused, want 1", n.refused)
	}
}
