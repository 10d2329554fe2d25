package audit_test

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
)

func human(name string) creto.ID {
	return creto.ID{TrustDomain: "test.local", Tenant: "default", Kind: creto.KindHuman, Name: name}
}

func recordOf(who creto.ID) audit.Record {
	stamp := creto.Timestamp{Logical: 1, Physical: 1, Source: "local", Node: "n1"}
	return audit.Record{ID: creto.NewUUID(), Stamp: stamp, Who: who, What: creto.CallTool, Resource: "Tool::t", Outcome: audit.Success, Detail: map[string]string{}}
}

// Who can write into a record and knows somebody's pseudonym must not be able to
// have the record name another.
func TestForgedPseudonym(t *testing.T) {
	alice := human("alice")
	subjects := map[creto.ID]audit.Subject{}
	subject := func(id creto.ID) (audit.Subject, error) {
		s, ok := subjects[id]
		if !ok {
			s = audit.Subject{ID: creto.NewUUID(), Key: make([]byte, 32)}
			subjects[id] = s
		}
		return s, nil
	}
	s, _ := subject(alice)
	forged := audit.Pseudonym(alice, s.ID)
	r := recordOf(creto.ID{TrustDomain: "test.local", Tenant: "default", Kind: creto.KindAgent, Name: "a"})
	r.OnBehalfOf = alice
	r.Detail["to"] = forged.String()
	r.Consents = []audit.Consent{{Approver: forged.String()}}
	sealed, err := r.Seal(subject)
	if err != nil {
		t.Fatal(err)
	}
	if sealed.OnBehalfOf != forged {
		t.Errorf("the leaf is on behalf of %s, not of %s: who asks for alice does not find it", sealed.OnBehalfOf, forged)
	}
	opened, err := sealed.Open(func(box audit.Personal) []byte {
		key, _ := audit.Subject{ID: box.Subject, Key: make([]byte, 32)}.RecordKey(sealed.ID)
		return key
	})
	if err != nil || opened.OnBehalfOf != alice {
		t.Errorf("opened, the record is on behalf of %s, %v; want alice", opened.OnBehalfOf, err)
	}
	r.OnBehalfOf = forged
	if _, err := r.Encode(); !errors.Is(err, fault.AuditValidationFailed) {
		t.Errorf("Encode of a record on behalf of a pseudonym = %v", err)
	}
	r.Who, r.OnBehalfOf = forged, creto.ID{}
	if _, err := r.Encode(); !errors.Is(err, fault.AuditValidationFailed) {
		t.Errorf("Encode of a record by a pseudonym = %v", err)
	}
	r.Who = creto.ID{TrustDomain: "test.local", Tenant: "default", Kind: creto.KindAgent, Name: "no name"}
	if _, err := r.Encode(); !errors.Is(err, fault.AuditValidationFailed) {
		t.Errorf("Encode of a record that nobody could decode = %v", err)
	}
}

// A record that is accepted must fit into a leaf once it is sealed: the log could
// neither take it nor go on without it.
func TestSealedSize(t *testing.T) {
	zero := func(creto.ID) (audit.Subject, error) { return audit.Subject{Key: make([]byte, 32)}, nil }
	for _, c := range []struct {
		name   string
		people func(i int) creto.ID
		text   int
	}{
		{"many people", func(i int) creto.ID { return human(fmt.Sprintf("h%d", i)) }, 0},
		{"one person, many times", func(int) creto.ID { return human("a") }, 0},
		{"much text", func(int) creto.ID { return human("a") }, 59 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			accepted := 0
			for n := 1; n < 3000; n = n*5/4 + 1 {
				r := recordOf(human("a"))
				r.Why = strings.Repeat("x", c.text)
				for i := range n {
					r.Detail[fmt.Sprint(i)] = c.people(i).String()
				}
				if _, err := r.Encode(); err != nil {
					if !errors.Is(err, fault.AuditValidationFailed) {
						t.Fatal(err)
					}
					break
				}
				accepted = n
				sealed, err := r.Seal(zero)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := sealed.Encode(); err != nil {
					t.Fatalf("with %d people: accepted, and no leaf: %v", n, err)
				}
			}
			if accepted == 0 {
				t.Error("nothing was accepted")
			}
		})
	}
}

// The key of a box is what RFC 5869 says, by the standard library's word.
func TestRecordKey(t *testing.T) {
	s := audit.Subject{ID: creto.NewUUID(), Key: []byte("0123456789abcdef0123456789abcdef")}
	id := creto.NewUUID()
	want, err := hkdf.Expand(sha256.New, s.Key, "creto/audit/personal/v1\x00"+string(id[:]), 32)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.RecordKey(id); err != nil || !bytes.Equal(got, want) {
		t.Errorf("RecordKey = %x, %v; want %x", got, err, want)
	}
	s.Key = s.Key[:31]
	if _, err := s.RecordKey(id); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("RecordKey of a short key = %v, want InvalidArgument", err)
	}
}
