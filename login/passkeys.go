package login

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/nhi"
)

// maxPasskeys bounds one human's passkeys, and maxPasskeyName the bytes of a
// passkey's name.
const (
	maxPasskeys    = 32
	maxPasskeyName = 64
)

// Passkeys is the relying party of WebAuthn level 3: humans' passkeys, and the
// ceremonies that enrol them, log in with them, and confirm with them. Every
// passkey is discoverable and verifies its user. Safe for concurrent use.
type Passkeys struct {
	db         *sql.DB
	clock      consensus.Clock
	log        audit.Log
	rp         *webauthn.WebAuthn
	origin     string
	ceremonies ceremonies[passkeyCeremony]
}

// passkeyCeremony is what was asked of an authenticator.
type passkeyCeremony struct {
	purpose purpose
	human   creto.ID // zero for a login, which finds out
	data    webauthn.SessionData
}

type purpose string

const (
	toEnrol   purpose = "enrol"
	toLogin   purpose = "login"
	toConfirm purpose = "confirm"
)

// OpenPasskeys returns the passkeys for people who see the console at origin, to
// whose host they are bound.
//
// Errors: InvalidArgument (Permanent) for an origin that can have none.
func OpenPasskeys(origin string, d *sql.DB, clock consensus.Clock, log audit.Log) (*Passkeys, error) {
	const op fault.Op = "login.OpenPasskeys"
	u, err := url.Parse(origin)
	if err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "console.origin %q is no URL", origin)
	}
	rp, err := webauthn.New(&webauthn.Config{
		RPID: u.Hostname(), RPDisplayName: "Creto", RPOrigins: []string{origin},
		AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementRequired, RequireResidentKey: protocol.ResidentKeyRequired(),
			UserVerification: protocol.VerificationRequired,
		},
	})
	if err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "passkeys cannot be bound to %q", origin)
	}
	return &Passkeys{db: d, clock: clock, log: log, rp: rp, origin: origin}, nil
}

// Passkey is one passkey of a human.
type Passkey struct {
	// ID is the credential's, in base64url.
	ID      string
	Name    string
	Created time.Time
	// Used is when it was used last; zero for never.
	Used time.Time
	// Synced says that it is backed up elsewhere, as by a password manager.
	Synced bool
	// Cloned says that its counter once went backwards: there may be a copy.
	// It is not accepted any more.
	Cloned bool
}

// Options are what a browser passes to navigator.credentials, and the name of
// the ceremony that comes back with the answer.
type Options struct {
	Ceremony  string          `json:"ceremony"`
	PublicKey json.RawMessage `json:"publicKey"`
}

// user is a human as WebAuthn sees one.
type user struct {
	human       creto.ID
	handle      []byte
	credentials []webauthn.Credential
}

var _ webauthn.User = user{}

// WebAuthnID implements webauthn.User.
func (u user) WebAuthnID() []byte { return u.handle }

// WebAuthnName implements webauthn.User.
func (u user) WebAuthnName() string { return u.human.Name }

// WebAuthnDisplayName implements webauthn.User.
func (u user) WebAuthnDisplayName() string { return u.human.Name }

// WebAuthnCredentials implements webauthn.User.
func (u user) WebAuthnCredentials() []webauthn.Credential { return u.credentials }

// List returns a human's passkeys, the oldest first.
//
// Errors: Unavailable (Degraded).
func (p *Passkeys) List(ctx context.Context, human creto.ID) ([]Passkey, error) {
	const op fault.Op = "login.Passkeys.List"
	rows, err := p.db.QueryContext(ctx, "SELECT credential, name, flags, cloned, created_ns, used_ns FROM passkey WHERE principal = $1 ORDER BY created_ns, credential", human.String())
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	var list []Passkey
	for rows.Next() {
		var id []byte
		var flags byte
		var created, used int64
		var k Passkey
		if err := rows.Scan(&id, &k.Name, &flags, &k.Cloned, &created, &used); err != nil {
			return nil, db.Classify(op, err)
		}
		k.ID, k.Created = base64.RawURLEncoding.EncodeToString(id), time.Unix(0, created)
		k.Synced = protocol.AuthenticatorFlags(flags).HasBackupState()
		if used > 0 {
			k.Used = time.Unix(0, used)
		}
		list = append(list, k)
	}
	return list, db.Classify(op, rows.Err())
}

// user reads a human's handle and passkeys. Those of another origin's host, or
// that were cloned, are none.
func (p *Passkeys) user(ctx context.Context, human creto.ID) (user, error) {
	const op fault.Op = "login.Passkeys.user"
	u := user{human: human}
	err := p.db.QueryRowContext(ctx, "SELECT handle FROM passkey_user WHERE principal = $1", human.String()).Scan(&u.handle)
	if errors.Is(err, sql.ErrNoRows) {
		return u, nil
	}
	if err != nil {
		return u, db.Classify(op, err)
	}
	rows, err := p.db.QueryContext(ctx, "SELECT credential, public_key, aaguid, transports, flags, sign_count FROM passkey WHERE principal = $1 AND rp_id = $2 AND cloned = 0",
		human.String(), p.rp.Config.RPID)
	if err != nil {
		return u, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var c webauthn.Credential
		var transports string
		var flags byte
		if err := rows.Scan(&c.ID, &c.PublicKey, &c.Authenticator.AAGUID, &transports, &flags, &c.Authenticator.SignCount); err != nil {
			return u, db.Classify(op, err)
		}
		c.Flags = webauthn.NewCredentialFlags(protocol.AuthenticatorFlags(flags))
		for t := range strings.FieldsSeq(transports) {
			c.Transport = append(c.Transport, protocol.AuthenticatorTransport(t))
		}
		u.credentials = append(u.credentials, c)
	}
	return u, db.Classify(op, rows.Err())
}

// Usable reports whether a human has a passkey that can confirm something.
//
// Errors: Unavailable (Degraded).
func (p *Passkeys) Usable(ctx context.Context, human creto.ID) (bool, error) {
	u, err := p.user(ctx, human)
	return len(u.credentials) > 0, err
}

// begin keeps a ceremony and encodes what the browser is asked.
func (p *Passkeys) begin(ctx context.Context, browser string, c passkeyCeremony, ask any) (Options, error) {
	const op fault.Op = "login.Passkeys.begin"
	now, err := p.clock.Now(ctx)
	if err != nil {
		return Options{}, fault.Wrap(op, err)
	}
	data, err := json.Marshal(ask)
	if err != nil {
		return Options{}, fault.WrapAs(op, fault.Internal, err, "")
	}
	return Options{Ceremony: p.ceremonies.begin(now.Time(), browser, c), PublicKey: data}, nil
}

// end takes a ceremony of that purpose and human.
func (p *Passkeys) end(ctx context.Context, browser, name string, why purpose, human creto.ID) (passkeyCeremony, error) {
	const op fault.Op = "login.Passkeys.end"
	now, err := p.clock.Now(ctx)
	if err != nil {
		return passkeyCeremony{}, fault.Wrap(op, err)
	}
	c, err := p.ceremonies.take(now.Time(), browser, name)
	if err != nil {
		return passkeyCeremony{}, fault.Wrap(op, err)
	}
	if c.purpose != why || c.human != human {
		return passkeyCeremony{}, fault.New(op, fault.Unauthenticated, "this answer belongs to something else; begin again")
	}
	return c, nil
}

// BeginEnrol begins to enrol a passkey of s's human, who must have been known
// just now. browser names the browser.
//
// Errors: PermissionDenied (Security) for a session that is not fresh;
// ResourceExhausted (Transient) for too many passkeys; Unavailable (Degraded).
func (p *Passkeys) BeginEnrol(ctx context.Context, s Session, browser string) (Options, error) {
	const op fault.Op = "login.Passkeys.BeginEnrol"
	if !s.Fresh {
		return Options{}, errNotFresh(op)
	}
	list, err := p.List(ctx, s.Human)
	if err != nil {
		return Options{}, fault.Wrap(op, err)
	}
	if len(list) >= maxPasskeys {
		return Options{}, fault.New(op, fault.ResourceExhausted, "%s has %d passkeys; remove one first", s.Human.Name, len(list))
	}
	var handle [32]byte
	_, _ = rand.Read(handle[:]) // documented never to return an error
	if _, err := p.db.ExecContext(ctx, "INSERT INTO passkey_user (principal, handle) VALUES ($1, $2) ON CONFLICT DO NOTHING", s.Human.String(), handle[:]); err != nil {
		return Options{}, db.Classify(op, err)
	}
	u, err := p.user(ctx, s.Human)
	if err != nil {
		return Options{}, fault.Wrap(op, err)
	}
	creation, data, err := p.rp.BeginRegistration(u, webauthn.WithCredentialParameters(webauthn.CredentialParametersRecommendedL3()), webauthn.WithExclusions(descriptors(u.credentials)))
	if err != nil {
		return Options{}, fault.WrapAs(op, fault.Internal, err, "")
	}
	return p.begin(ctx, browser, passkeyCeremony{purpose: toEnrol, human: s.Human, data: *data}, creation.Response)
}

func descriptors(credentials []webauthn.Credential) []protocol.CredentialDescriptor {
	list := make([]protocol.CredentialDescriptor, 0, len(credentials))
	for _, c := range credentials {
		list = append(list, c.Descriptor())
	}
	return list
}

// Enrol ends what BeginEnrol began. name is the human's for it.
//
// Errors: InvalidArgument (Permanent) for a bad name or answer; Unauthenticated
// (Permanent) for an answer to nothing; AlreadyExists (Permanent) for a passkey
// that is enrolled; Unavailable (Degraded).
func (p *Passkeys) Enrol(ctx context.Context, s Session, browser, ceremony, name string, answer []byte) error {
	const op fault.Op = "login.Passkeys.Enrol"
	name, err := passkeyName(name)
	if err != nil {
		return fault.Wrap(op, err)
	}
	c, err := p.end(ctx, browser, ceremony, toEnrol, s.Human)
	if err != nil {
		return fault.Wrap(op, err)
	}
	u, err := p.user(ctx, s.Human)
	if err != nil {
		return fault.Wrap(op, err)
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes(answer)
	if err != nil {
		return fault.WrapAs(op, fault.InvalidArgument, err, "the browser's answer cannot be read")
	}
	credential, err := p.rp.CreateCredential(u, c.data, parsed)
	if err != nil {
		return fault.WrapAs(op, fault.InvalidArgument, err, "the authenticator's answer is not what was asked for")
	}
	if err := nhi.CheckCredentialKey(credential.PublicKey); err != nil {
		return fault.Wrap(op, err)
	}
	now, err := p.clock.Now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	transports := make([]string, 0, len(credential.Transport))
	for _, t := range credential.Transport {
		if text := string(t); !strings.ContainsAny(text, " \t\r\n") && len(text) <= maxPasskeyName {
			transports = append(transports, text)
		}
	}
	_, err = p.db.ExecContext(ctx, `INSERT INTO passkey (principal, credential, rp_id, name, public_key, aaguid, transports, flags, sign_count, created_ns)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`, s.Human.String(), credential.ID, p.rp.Config.RPID, name, credential.PublicKey,
		credential.Authenticator.AAGUID, strings.Join(transports, " "), int64(credential.Flags.ProtocolValue()), int64(credential.Authenticator.SignCount), now.Physical)
	if err := db.Classify(op, err); err != nil {
		if errors.Is(err, fault.AlreadyExists) {
			return fault.New(op, fault.AlreadyExists, "this passkey is enrolled already")
		}
		return err
	}
	return p.record(ctx, s.Human, audit.EventPasskeyAdded, credential.ID, map[string]string{"name": name, "login": string(s.Method)})
}

func passkeyName(name string) (string, error) {
	name = strings.TrimSpace(name)
	if name == "" {
		name = "passkey"
	}
	if len(name) > maxPasskeyName || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' }) {
		return "", fault.New("login.passkeyName", fault.InvalidArgument, "a passkey's name is at most %d bytes of text", maxPasskeyName)
	}
	return name, nil
}

// record logs what happened to a passkey.
func (p *Passkeys) record(ctx context.Context, human creto.ID, what string, credential []byte, detail map[string]string) error {
	_, err := p.log.Log(ctx, audit.Record{
		Who: human, What: what, Resource: "Passkey::" + base64.RawURLEncoding.EncodeToString(credential), Outcome: audit.Success, Detail: detail,
	})
	return err
}

// BeginLogin begins a login of whoever has a passkey. It asks for no name, so
// that nobody learns who is known here.
//
// Errors: Internal (Permanent).
func (p *Passkeys) BeginLogin(ctx context.Context, browser string) (Options, error) {
	const op fault.Op = "login.Passkeys.BeginLogin"
	assertion, data, err := p.rp.BeginDiscoverableLogin()
	if err != nil {
		return Options{}, fault.WrapAs(op, fault.Internal, err, "")
	}
	return p.begin(ctx, browser, passkeyCeremony{purpose: toLogin, data: *data}, assertion.Response)
}

// errUnknownPasskey is the one answer to every login that does not hold.
func errUnknownPasskey(op fault.Op, cause error) error {
	return fault.WrapAs(op, fault.Unauthenticated, cause, "this passkey is not known here")
}

// errNone stands for a cause that is ours alone to know.
var errNone = errors.New("no such passkey")

// Login ends what BeginLogin began, and returns who logged in.
//
// Errors: Unauthenticated (Permanent), the same for whatever does not hold;
// Unavailable (Degraded).
func (p *Passkeys) Login(ctx context.Context, browser, ceremony string, answer []byte) (creto.ID, error) {
	const op fault.Op = "login.Passkeys.Login"
	c, err := p.end(ctx, browser, ceremony, toLogin, creto.ID{})
	if err != nil {
		return creto.ID{}, fault.Wrap(op, err)
	}
	parsed, err := protocol.ParseCredentialRequestResponseBytes(answer)
	if err != nil {
		return creto.ID{}, errUnknownPasskey(op, err)
	}
	var found user
	var lookup error
	credential, err := p.rp.ValidateDiscoverableLogin(func(rawID, handle []byte) (webauthn.User, error) {
		found, lookup = p.owner(ctx, rawID, handle)
		return found, lookup
	}, c.data, parsed)
	if errors.Is(lookup, fault.Unavailable) {
		return creto.ID{}, fault.Wrap(op, lookup)
	}
	if err != nil {
		return creto.ID{}, errUnknownPasskey(op, err)
	}
	if err := p.used(ctx, found.human, credential); err != nil {
		return creto.ID{}, fault.Wrap(op, err)
	}
	return found.human, p.record(ctx, found.human, audit.EventLoggedIn, credential.ID, map[string]string{"method": string(MethodPasskey)})
}

// owner returns the active human with a handle and a passkey.
func (p *Passkeys) owner(ctx context.Context, credential, handle []byte) (user, error) {
	const op fault.Op = "login.Passkeys.owner"
	var principal string
	err := p.db.QueryRowContext(ctx, `SELECT u.principal FROM passkey_user u JOIN passkey k ON k.principal = u.principal AND k.credential = $1
		JOIN principal p ON p.id = u.principal AND p.active = 1 WHERE u.handle = $2`, credential, handle).Scan(&principal)
	if errors.Is(err, sql.ErrNoRows) {
		return user{}, errNone
	}
	if err != nil {
		return user{}, db.Classify(op, err)
	}
	human, err := creto.ParseID(principal)
	if err != nil {
		return user{}, fault.Wrap(op, err)
	}
	return p.user(ctx, human)
}

// used counts a use of a passkey. One whose counter did not grow may be a copy:
// it is refused from then on (WebAuthn level 3, section 7.2, step 22, leaves that
// to the relying party). Two at once cannot both pass.
func (p *Passkeys) used(ctx context.Context, human creto.ID, c *webauthn.Credential) error {
	const op fault.Op = "login.Passkeys.used"
	now, err := p.clock.Now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	passed := int64(0)
	if !c.Authenticator.CloneWarning {
		result, err := p.db.ExecContext(ctx, `UPDATE passkey SET sign_count = $1, flags = $2, used_ns = $3
			WHERE principal = $4 AND credential = $5 AND cloned = 0 AND (sign_count < $1 OR sign_count = 0 AND $1 = 0)`,
			int64(c.Authenticator.SignCount), int64(c.Flags.ProtocolValue()), now.Physical, human.String(), c.ID)
		if err != nil {
			return db.Classify(op, err)
		}
		if passed, err = result.RowsAffected(); err != nil {
			return db.Classify(op, err)
		}
	}
	if passed == 1 {
		return nil
	}
	if _, err := p.db.ExecContext(ctx, "UPDATE passkey SET cloned = 1 WHERE principal = $1 AND credential = $2", human.String(), c.ID); err != nil {
		return db.Classify(op, err)
	}
	if err := p.record(ctx, human, audit.EventPasskeyCloned, c.ID, nil); err != nil {
		return fault.Wrap(op, err)
	}
	return fault.New(op, fault.Unauthenticated, "this passkey's counter went backwards: there may be a copy of it, and it is not accepted any more; log in otherwise and remove it")
}

// BeginConfirm asks a human to confirm what has this challenge with one of their
// passkeys.
//
// Errors: FailedPrecondition (Permanent) without a passkey; Unavailable
// (Degraded).
func (p *Passkeys) BeginConfirm(ctx context.Context, human creto.ID, browser string, challenge creto.Digest) (Options, error) {
	const op fault.Op = "login.Passkeys.BeginConfirm"
	u, err := p.user(ctx, human)
	if err != nil {
		return Options{}, fault.Wrap(op, err)
	}
	if len(u.credentials) == 0 {
		return Options{}, fault.New(op, fault.FailedPrecondition, "%s has no passkey for %s", human.Name, p.rp.Config.RPID)
	}
	assertion, data, err := p.rp.BeginLogin(u, webauthn.WithChallenge(challenge[:]))
	if err != nil {
		return Options{}, fault.WrapAs(op, fault.Internal, err, "")
	}
	return p.begin(ctx, browser, passkeyCeremony{purpose: toConfirm, human: human, data: *data}, assertion.Response)
}

// Confirm ends what BeginConfirm began for the same human, and returns the
// proof.
//
// Errors: Unauthenticated (Permanent) for whatever does not hold; Unavailable
// (Degraded).
func (p *Passkeys) Confirm(ctx context.Context, human creto.ID, browser, ceremony string, answer []byte) (nhi.Proof, error) {
	const op fault.Op = "login.Passkeys.Confirm"
	c, err := p.end(ctx, browser, ceremony, toConfirm, human)
	if err != nil {
		return nhi.Proof{}, fault.Wrap(op, err)
	}
	parsed, err := protocol.ParseCredentialRequestResponseBytes(answer)
	if err != nil {
		return nhi.Proof{}, errUnknownPasskey(op, err)
	}
	u, err := p.user(ctx, human)
	if err != nil {
		return nhi.Proof{}, fault.Wrap(op, err)
	}
	credential, err := p.rp.ValidateLogin(u, c.data, parsed)
	if err != nil {
		return nhi.Proof{}, errUnknownPasskey(op, err)
	}
	if err := p.used(ctx, human, credential); err != nil {
		return nhi.Proof{}, fault.Wrap(op, err)
	}
	response := parsed.Raw.AssertionResponse
	return nhi.WebAuthnAssertion{
		RPID: p.rp.Config.RPID, Origin: p.origin, CredentialID: credential.ID, PublicKey: credential.PublicKey,
		AuthenticatorData: response.AuthenticatorData, ClientDataJSON: response.ClientDataJSON, Signature: response.Signature,
	}.Proof()
}

// Rename names a passkey.
//
// Errors: InvalidArgument, NotFound (Permanent); Unavailable (Degraded).
func (p *Passkeys) Rename(ctx context.Context, human creto.ID, id, name string) error {
	const op fault.Op = "login.Passkeys.Rename"
	name, err := passkeyName(name)
	if err != nil {
		return fault.Wrap(op, err)
	}
	return p.change(ctx, op, "UPDATE passkey SET name = $3 WHERE principal = $1 AND credential = $2", human, id, name)
}

func (p *Passkeys) change(ctx context.Context, op fault.Op, query string, human creto.ID, id string, more ...any) error {
	credential, err := base64.RawURLEncoding.DecodeString(id)
	if err != nil {
		return fault.New(op, fault.NotFound, "there is no such passkey")
	}
	result, err := p.db.ExecContext(ctx, query, append([]any{human.String(), credential}, more...)...)
	if err != nil {
		return db.Classify(op, err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(fault.New(op, fault.NotFound, "there is no such passkey"), err)
	}
	return nil
}

// Remove removes a passkey of s's human, who must have been known just now. The
// last one that works goes only if evenLast: without one, a delegation in this
// human's name is proven by who holds the data directory again.
//
// Errors: PermissionDenied (Security) for a session that is not fresh;
// FailedPrecondition, NotFound (Permanent); Unavailable (Degraded).
func (p *Passkeys) Remove(ctx context.Context, s Session, id string, evenLast bool) error {
	const op fault.Op = "login.Passkeys.Remove"
	if !s.Fresh {
		return errNotFresh(op)
	}
	u, err := p.user(ctx, s.Human)
	if err != nil {
		return fault.Wrap(op, err)
	}
	others := slices.ContainsFunc(u.credentials, func(c webauthn.Credential) bool {
		return base64.RawURLEncoding.EncodeToString(c.ID) != id
	})
	if !others && !evenLast {
		return fault.New(op, fault.FailedPrecondition, "this is your last passkey: without one, delegations in your name are proven by whoever holds the data directory; tick the box if that is what you want")
	}
	if err := p.change(ctx, op, "DELETE FROM passkey WHERE principal = $1 AND credential = $2", s.Human, id); err != nil {
		return err
	}
	_, err = p.log.Log(ctx, audit.Record{Who: s.Human, What: audit.EventPasskeyRemoved, Resource: "Passkey::" + id, Outcome: audit.Success})
	return fault.Wrap(op, err)
}
