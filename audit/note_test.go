package audit_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"

	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/fault"
	"creto.dev/pqc/localpqc"
)

const origin = "test.local/log"

func signed(t testing.TB, size int64) (audit.Checkpoint, audit.LogKeys) {
	t.Helper()
	signer, err := audittest.Signer(localpqc.New(), origin)
	if err != nil {
		t.Fatal(err)
	}
	c, err := signer.Sign(size, [32]byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	return c, signer.Keys()
}

// cosign adds a witness's line.
func cosign(t testing.TB, n []byte, name string) []byte {
	t.Helper()
	w, err := torchwood.NewCosignatureSigner(name, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(string(n), "\n\n")
	lines, err := note.Sign(&note.Note{Text: text + "\n"}, w)
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(lines), "\n\n")
	return append(bytes.Clone(n), line...)
}

// Other programs read our checkpoints: x/mod's note and torchwood's parser.
func TestCheckpointForOthers(t *testing.T) {
	c, keys := signed(t, 42)
	plain, composite := keys.VKeys()
	verifier, err := note.NewVerifier(plain)
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(c.Note, note.VerifierList(verifier))
	if err != nil || len(n.Sigs) != 1 || len(n.UnverifiedSigs) != 1 {
		t.Fatalf("note.Open = %+v, %v; want the Ed25519 line verified and the composite one unknown", n, err)
	}
	head, err := torchwood.ParseCheckpoint(n.Text)
	if err != nil || head.Origin != origin || head.N != 42 || head.Hash != c.Root {
		t.Errorf("torchwood.ParseCheckpoint = %+v, %v", head, err)
	}
	if id := fmt.Sprintf("%s+%08x+", origin, n.UnverifiedSigs[0].Hash); !strings.HasPrefix(composite, id) {
		t.Errorf("the composite key is %.40q, its line has %q", composite, id)
	}
}

func TestVerifyCheckpoint(t *testing.T) {
	c, keys := signed(t, 42)
	p := localpqc.New()
	unknown := keys
	unknown.Ed25519 = nil
	head, sigs, _ := strings.Cut(string(c.Note), "\n\n")
	lines := strings.SplitAfter(sigs, "\n")
	of := func(lines ...string) []byte { return []byte(head + "\n\n" + strings.Join(lines, "")) }
	other := keys
	other.Origin = "other.local/log"
	many := bytes.Clone(c.Note)
	for i := range 120 {
		many = cosign(t, many, fmt.Sprintf("w%d.test", i))
	}
	blob, err := base64.StdEncoding.DecodeString(strings.Fields(lines[1])[2])
	if err != nil {
		t.Fatal(err)
	}
	// The last character of this base64 holds bits that decode to nothing.
	loose := strings.TrimSuffix(lines[1], "\n")
	if len(blob)%3 == 0 {
		t.Fatal("the composite line has no loose bits; choose another")
	}
	i := strings.IndexByte(loose, '=') - 1
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	loose = loose[:i] + string(alphabet[strings.IndexByte(alphabet, loose[i])^1]) + loose[i+1:] + "\n"
	const ok = fault.Code(0)
	for _, test := range []struct {
		name string
		note []byte
		keys audit.LogKeys
		want fault.Code // 0 for none
	}{
		{"as signed", c.Note, keys, ok},
		{"cosigned", cosign(t, cosign(t, c.Note, "w1.test"), "w2.test"), keys, ok},
		{"the composite line alone, as on the first day", of(lines[1]), unknown, ok},
		{"another's cosignature in front", of(strings.TrimPrefix(string(cosign(t, of(), "w.test")), head+"\n\n"), lines[0], lines[1]), keys, ok},
		{"the lines in another order", of(lines[1], lines[0]), keys, fault.AuditValidationFailed},
		{"no composite line", of(lines[0]), keys, fault.AuditInvalidSignature},
		{"no Ed25519 line", of(lines[1]), keys, fault.AuditInvalidSignature},
		{"the Ed25519 line, unknown, in front", c.Note, unknown, ok},
		{"another log's", c.Note, other, fault.AuditInvalidSignature},
		{"bits that mean nothing", of(lines[0], loose), keys, fault.AuditValidationFailed},
		{"more lines than a note has", many, keys, fault.AuditValidationFailed},
		{"a line that is none", append(bytes.Clone(c.Note), "- x\n"...), keys, fault.AuditValidationFailed},
		{"a leading zero", bytes.Replace(c.Note, []byte("\n42\n"), []byte("\n042\n"), 1), keys, fault.AuditInvalidSignature},
		{"nothing", nil, keys, fault.AuditValidationFailed},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := audit.VerifyCheckpoint(p, test.note, test.keys)
			if test.want == ok {
				if err != nil || got.Size != 42 || got.Root != c.Root || len(got.Note)+len(got.Others) != len(test.note) {
					t.Errorf("VerifyCheckpoint = %+v, %v", got, err)
				}
				return
			}
			if fault.CodeOf(err) != test.want || got.Note != nil {
				t.Errorf("VerifyCheckpoint = %+v, %v; want %v", got, err, test.want)
			}
		})
	}
}

func TestNewSigner(t *testing.T) {
	for _, name := range []string{"", "a b", "a+b", "a\nb"} {
		if _, err := audittest.Signer(localpqc.New(), name); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("a signer of %q = %v, want InvalidArgument", name, err)
		}
	}
}

func FuzzVerifyCheckpoint(f *testing.F) {
	c, keys := signed(f, 42)
	f.Add(c.Note)
	f.Add(cosign(f, c.Note, "w.test"))
	p := localpqc.New()
	f.Fuzz(func(t *testing.T, data []byte) {
		if head, err := audit.ParseHead(data, origin); err == nil && (head.Size < 0 || !bytes.Equal(head.Note, data)) {
			t.Errorf("ParseHead = %+v", head)
		}
		got, err := audit.VerifyCheckpoint(p, data, keys)
		if err == nil && !bytes.Equal(got.Note, c.Note) {
			t.Errorf("a note that nobody signed verifies: %q", data)
		}
	})
}
