package login_test

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/login"
	"creto.dev/login/softkey"
	"creto.dev/nhi"
)

// authenticator is a passkey in software, which a test may bend.
type authenticator struct {
	t testing.TB
	*softkey.Key
}

func newAuthenticator(t testing.TB) *authenticator {
	t.Helper()
	key, err := softkey.New(origin)
	if err != nil {
		t.Fatal(err)
	}
	return &authenticator{t: t, Key: key}
}

func b64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// asked is what matters of the options that a browser gets.
type asked struct {
	Challenge string `json:"challenge"`
	User      struct {
		ID string `json:"id"`
	} `json:"user"`
	RP struct {
		ID string `json:"id"`
	} `json:"rp"`
	UserVerification string                `json:"userVerification"`
	Allow            []struct{ ID string } `json:"allowCredentials"`
}

func (a *authenticator) parse(o login.Options) asked {
	a.t.Helper()
	var q asked
	if err := json.Unmarshal(o.PublicKey, &q); err != nil {
		a.t.Fatal(err)
	}
	return q
}

// copied returns another with the same key.
func (a *authenticator) copied() *authenticator {
	key := *a.Key
	return &authenticator{t: a.t, Key: &key}
}

// create answers navigator.credentials.create.
func (a *authenticator) create(o login.Options) []byte {
	a.t.Helper()
	answer, err := a.Create(o.PublicKey)
	if err != nil {
		a.t.Fatal(err)
	}
	return answer
}

// get answers navigator.credentials.get.
func (a *authenticator) get(o login.Options) []byte {
	a.t.Helper()
	answer, err := a.Get(o.PublicKey)
	if err != nil {
		a.t.Fatal(err)
	}
	return answer
}

// enrol gives a human a passkey.
func (h *house) enrol(t testing.TB, name string) *authenticator {
	t.Helper()
	a := newAuthenticator(t)
	s := h.session(t, name, login.MethodBootstrap)
	o, err := h.passkeys.BeginEnrol(t.Context(), s, "b")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.passkeys.Enrol(t.Context(), s, "b", o.Ceremony, name+"'s key", a.create(o)); err != nil {
		t.Fatal(err)
	}
	return a
}

func (h *house) login(t testing.TB, a *authenticator) (creto.ID, error) {
	t.Helper()
	o, err := h.passkeys.BeginLogin(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	return h.passkeys.Login(t.Context(), "b", o.Ceremony, a.get(o))
}

func TestPasskeyLogin(t *testing.T) {
	h := open(t)
	ctx := t.Context()
	alices, bobs := h.enrol(t, "alice"), h.enrol(t, "bob")
	for name, a := range map[string]*authenticator{"alice": alices, "bob": bobs} {
		if id, err := h.login(t, a); err != nil || id != h.human(name) {
			t.Errorf("login = %v, %v, want %s", id, err, name)
		}
	}
	o, err := h.passkeys.BeginLogin(ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	if q := alices.parse(o); len(q.Allow) > 0 || q.UserVerification != "required" || strings.Contains(string(o.PublicKey), "alice") {
		t.Errorf("a login tells %s", o.PublicKey)
	}
	// One answer counts once, in one browser, in time.
	answer := alices.get(o)
	_, err = h.passkeys.Login(ctx, "another", o.Ceremony, answer)
	refused(t, "another browser", err, fault.Unauthenticated)
	_, err = h.passkeys.Login(ctx, "b", o.Ceremony, answer)
	refused(t, "after another browser", err, fault.Unauthenticated)
	o, _ = h.passkeys.BeginLogin(ctx, "b")
	answer = alices.get(o)
	if _, err := h.passkeys.Login(ctx, "b", o.Ceremony, answer); err != nil {
		t.Fatal(err)
	}
	_, err = h.passkeys.Login(ctx, "b", o.Ceremony, answer)
	refused(t, "a second time", err, fault.Unauthenticated)
	o, _ = h.passkeys.BeginLogin(ctx, "b")
	_, err = h.passkeys.Login(ctx, "b", o.Ceremony, answer)
	refused(t, "an answer to another challenge", err, fault.Unauthenticated)
	o, _ = h.passkeys.BeginLogin(ctx, "")
	_, err = h.passkeys.Login(ctx, "", o.Ceremony, alices.get(o))
	refused(t, "no browser", err, fault.Unauthenticated)
	o, _ = h.passkeys.BeginLogin(ctx, "b")
	h.clock.Advance(5 * time.Minute)
	_, err = h.passkeys.Login(ctx, "b", o.Ceremony, alices.get(o))
	refused(t, "too late", err, fault.Unauthenticated)

	for name, edit := range map[string]func(*authenticator){
		"not verified":         func(a *authenticator) { a.Flags = 0x01 },
		"nobody present":       func(a *authenticator) { a.Flags = 0x04 },
		"another origin":       func(a *authenticator) { a.Origin = "https://evil.example" },
		"another user":         func(a *authenticator) { a.Handle = bobs.Handle },
		"an unknown user":      func(a *authenticator) { a.Handle = make([]byte, 32) },
		"no user":              func(a *authenticator) { a.Handle = nil },
		"another key":          func(a *authenticator) { a.Private = bobs.Private },
		"an unknown key":       func(a *authenticator) { a.ID = make([]byte, 32) },
		"another's credential": func(a *authenticator) { a.ID = bobs.ID },
	} {
		a := alices.copied()
		a.Count += 100
		edit(a)
		id, err := h.login(t, a)
		refused(t, name, err, fault.Unauthenticated)
		// The reader cannot tell what was wrong.
		if !id.IsZero() || fault.Message(err) != "this passkey is not known here" {
			t.Errorf("%s: %v, %q", name, id, fault.Message(err))
		}
	}
	for _, garbage := range []string{"", "{}", "[]", `{"id":"x"}`} {
		o, _ := h.passkeys.BeginLogin(ctx, "b")
		_, err := h.passkeys.Login(ctx, "b", o.Ceremony, []byte(garbage))
		refused(t, garbage, err, fault.Unauthenticated)
	}
	// A revoked human's passkey is nobody's.
	if err := h.authority.Revoke(ctx, h.human("bob")); err != nil {
		t.Fatal(err)
	}
	_, err = h.login(t, bobs)
	refused(t, "a revoked human", err, fault.Unauthenticated)
}

// A copy shows by its counter: neither it nor the original counts from then on.
func TestPasskeyClone(t *testing.T) {
	h := open(t)
	original := h.enrol(t, "alice")
	copied := original.copied()
	for range 3 {
		if _, err := h.login(t, original); err != nil {
			t.Fatal(err)
		}
	}
	_, err := h.login(t, copied)
	refused(t, "a copy", err, fault.Unauthenticated)
	if !strings.Contains(fault.Message(err), "copy") {
		t.Errorf("it says %q", fault.Message(err))
	}
	h.records(t, audit.EventPasskeyCloned, 1)
	_, err = h.login(t, original)
	refused(t, "the original", err, fault.Unauthenticated)
	if usable, err := h.passkeys.Usable(t.Context(), h.human("alice")); err != nil || usable {
		t.Errorf("Usable = %v, %v", usable, err)
	}
	// Those that do not count, as synced ones, always pass.
	still := h.enrol(t, "bob")
	if _, err := h.db.ExecContext(t.Context(), "UPDATE passkey SET sign_count = 0"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		still.Count = ^uint32(0) // which wraps to 0
		if _, err := h.login(t, still); err != nil {
			t.Errorf("without a counter: %v", err)
		}
	}
}

func TestPasskeyEnrol(t *testing.T) {
	h := open(t)
	ctx := t.Context()
	a := h.enrol(t, "alice")
	h.records(t, audit.EventPasskeyAdded, 1)
	fresh, bobs := h.session(t, "alice", login.MethodPasskey), h.session(t, "bob", login.MethodPasskey)

	_, err := h.passkeys.BeginEnrol(ctx, h.session(t, "alice", login.MethodToken), "b")
	refused(t, "a session from another one", err, fault.PermissionDenied)
	begin := func(s login.Session) login.Options {
		o, err := h.passkeys.BeginEnrol(ctx, s, "b")
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	o := begin(fresh)
	if strings.Contains(string(o.PublicKey), "spiffe") || !strings.Contains(string(o.PublicKey), b64(a.ID)) {
		t.Errorf("an enrolment tells %s", o.PublicKey)
	}
	refused(t, "the same passkey again", h.passkeys.Enrol(ctx, fresh, "b", o.Ceremony, "again", a.create(o)), fault.AlreadyExists)
	o = begin(bobs)
	refused(t, "another's passkey", h.passkeys.Enrol(ctx, bobs, "b", o.Ceremony, "x", a.create(o)), fault.AlreadyExists)
	o = begin(fresh)
	refused(t, "another's ceremony", h.passkeys.Enrol(ctx, bobs, "b", o.Ceremony, "x", newAuthenticator(t).create(o)), fault.Unauthenticated)
	o = begin(fresh)
	refused(t, "another browser", h.passkeys.Enrol(ctx, fresh, "c", o.Ceremony, "x", newAuthenticator(t).create(o)), fault.Unauthenticated)
	o = begin(fresh)
	refused(t, "a long name", h.passkeys.Enrol(ctx, fresh, "b", o.Ceremony, strings.Repeat("x", 65), newAuthenticator(t).create(o)), fault.InvalidArgument)
	unverified := newAuthenticator(t)
	unverified.Flags = 0x01
	o = begin(fresh)
	refused(t, "an unverified user", h.passkeys.Enrol(ctx, fresh, "b", o.Ceremony, "x", unverified.create(o)), fault.InvalidArgument)
	elsewhere := newAuthenticator(t)
	elsewhere.Origin = "https://evil.example"
	o = begin(fresh)
	refused(t, "another origin", h.passkeys.Enrol(ctx, fresh, "b", o.Ceremony, "x", elsewhere.create(o)), fault.InvalidArgument)
	o, _ = h.passkeys.BeginLogin(ctx, "b")
	refused(t, "a login's ceremony", h.passkeys.Enrol(ctx, fresh, "b", o.Ceremony, "x", newAuthenticator(t).create(o)), fault.Unauthenticated)

	h.clock.Advance(login.FreshFor)
	token, _, err := h.sessions.NewSince(ctx, h.human("alice"), login.MethodOIDC, at)
	if err != nil {
		t.Fatal(err)
	}
	stale, err := h.sessions.Find(ctx, token)
	if err != nil || stale.Fresh {
		t.Fatalf("Find = %+v, %v", stale, err)
	}
	_, err = h.passkeys.BeginEnrol(ctx, stale, "b")
	refused(t, "a stale session", err, fault.PermissionDenied)

	// Only a fresh session removes, and the last one only on purpose.
	list, err := h.passkeys.List(ctx, h.human("alice"))
	if err != nil || len(list) != 1 || list[0].Name != "alice's key" {
		t.Fatalf("List = %+v, %v", list, err)
	}
	fresh = h.session(t, "alice", login.MethodPasskey)
	refused(t, "removing from a stale session", h.passkeys.Remove(ctx, stale, list[0].ID, true), fault.PermissionDenied)
	refused(t, "removing the last one", h.passkeys.Remove(ctx, fresh, list[0].ID, false), fault.FailedPrecondition)
	refused(t, "removing another's", h.passkeys.Remove(ctx, h.session(t, "bob", login.MethodPasskey), list[0].ID, true), fault.NotFound)
	refused(t, "renaming another's", h.passkeys.Rename(ctx, h.human("bob"), list[0].ID, "x"), fault.NotFound)
	h.enrol(t, "alice")
	if err := h.passkeys.Remove(ctx, fresh, list[0].ID, false); err != nil {
		t.Errorf("removing one of two: %v", err)
	}
	_, err = h.login(t, a)
	refused(t, "a removed passkey", err, fault.Unauthenticated)
	// Another tenant's human of the same name is another human.
	other := fresh
	other.Human.Tenant = "other"
	if list, err := h.passkeys.List(ctx, other.Human); err != nil || len(list) > 0 {
		t.Errorf("another tenant sees %v, %v", list, err)
	}
}

func TestPasskeyConfirm(t *testing.T) {
	h := open(t)
	ctx := t.Context()
	alices, bobs := h.enrol(t, "alice"), h.enrol(t, "bob")
	d, err := h.delegations.Ask(ctx, h.draft(t, "alice", "bot"), login.Shown{Policy: "permit"}, h.human("bob"))
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := d.Link.Challenge()
	if err != nil {
		t.Fatal(err)
	}
	begin := func(name string, challenge creto.Digest) login.Options {
		o, err := h.passkeys.BeginConfirm(ctx, h.human(name), "b", challenge)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	o := begin("alice", challenge)
	if q := alices.parse(o); q.Challenge != b64(challenge[:]) || len(q.Allow) != 1 || q.Allow[0].ID != b64(alices.ID) || q.UserVerification != "required" {
		t.Errorf("a confirmation asks %s", o.PublicKey)
	}
	// Nobody confirms for another, whichever way they mix it.
	_, err = h.passkeys.Confirm(ctx, h.human("alice"), "b", o.Ceremony, bobs.get(o))
	refused(t, "bob's passkey for alice", err, fault.Unauthenticated)
	posing := bobs.copied()
	posing.ID, posing.Handle = alices.ID, alices.Handle
	o = begin("alice", challenge)
	_, err = h.passkeys.Confirm(ctx, h.human("alice"), "b", o.Ceremony, posing.get(o))
	refused(t, "bob's key in alice's name", err, fault.Unauthenticated)
	o = begin("bob", challenge)
	_, err = h.passkeys.Confirm(ctx, h.human("alice"), "b", o.Ceremony, bobs.get(o))
	refused(t, "bob's ceremony for alice", err, fault.Unauthenticated)
	o, _ = h.passkeys.BeginLogin(ctx, "b")
	_, err = h.passkeys.Confirm(ctx, h.human("alice"), "b", o.Ceremony, alices.get(o))
	refused(t, "a login for a confirmation", err, fault.Unauthenticated)
	o = begin("alice", challenge)
	_, err = h.passkeys.Login(ctx, "b", o.Ceremony, alices.get(o))
	refused(t, "a confirmation for a login", err, fault.Unauthenticated)

	o = begin("bob", challenge)
	bobsProof, err := h.passkeys.Confirm(ctx, h.human("bob"), "b", o.Ceremony, bobs.get(o))
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.delegations.Confirm(ctx, d.ID, h.human("bob"), bobsProof)
	refused(t, "bob confirms alice's", err, fault.NotFound)
	refused(t, "bob declines alice's", h.delegations.Decline(ctx, d.ID, h.human("bob")), fault.NotFound)
	stranger := h.human("alice")
	stranger.Tenant = "other"
	_, err = h.delegations.Confirm(ctx, d.ID, stranger, bobsProof)
	refused(t, "another tenant's alice", err, fault.NotFound)

	// A proof is of one delegation, which waits on if it is of another.
	o = begin("alice", creto.DigestOf([]byte("another")))
	wrong, err := h.passkeys.Confirm(ctx, h.human("alice"), "b", o.Ceremony, alices.get(o))
	if err != nil {
		t.Fatal(err)
	}
	for name, proof := range map[string]nhi.Proof{"another challenge": wrong, "none": {}, "a palm": {Kind: "palm"}} {
		_, err = h.delegations.Confirm(ctx, d.ID, h.human("alice"), proof)
		refused(t, name, err, fault.NHIDelegationVerificationFailed)
	}
	o = begin("alice", challenge)
	proof, err := h.passkeys.Confirm(ctx, h.human("alice"), "b", o.Ceremony, alices.get(o))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := h.delegations.Confirm(ctx, d.ID, h.human("alice"), proof)
	if err != nil || chain.Human() != h.human("alice") || chain.Proof() != nhi.ProofWebAuthn {
		t.Fatalf("Confirm = %v, %v", chain.Human(), err)
	}
	_, err = h.delegations.Confirm(ctx, d.ID, h.human("alice"), proof)
	refused(t, "a second time", err, fault.FailedPrecondition)
	issued := h.records(t, audit.EventDelegationIssued, 1)
	if len(issued) != 1 || issued[0].Record.Who != h.human("alice") || issued[0].Record.Detail["known"] != "by passkey (localhost)" {
		t.Errorf("recorded are %+v", issued)
	}
}
