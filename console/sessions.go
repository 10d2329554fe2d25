package console

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"errors"
	"time"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/db"
)

// How long a login code and a session last.
const (
	loginTTL   = 15 * time.Minute
	sessionTTL = 12 * time.Hour
)

// Sessions knows who is logged in. Codes and sessions are kept as digests, so
// that reading the database logs nobody in.
type Sessions struct {
	db    *sql.DB
	clock consensus.Clock
}

// NewSessions returns the sessions in d.
func NewSessions(d *sql.DB, clock consensus.Clock) *Sessions { return &Sessions{db: d, clock: clock} }

// Session is a person who logged in.
type Session struct {
	Human creto.ID
	// CSRF must come back with every form.
	CSRF string
}

func newSecret() string {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // documented never to return an error
	return base64.RawURLEncoding.EncodeToString(raw[:])
}

// NewLogin returns a code that logs human in once, within 15 minutes.
//
// Errors: Unavailable (Degraded).
func (s *Sessions) NewLogin(ctx context.Context, human creto.ID) (string, error) {
	const op fault.Op = "console.NewLogin"
	now, err := s.clock.Now(ctx)
	if err != nil {
		return "", fault.Wrap(op, err)
	}
	for _, table := range []string{"login_code", "session"} { // those that ended
		if _, err := s.db.ExecContext(ctx, "DELETE FROM "+table+" WHERE expires_ns <= $1", now.Physical); err != nil {
			return "", db.Classify(op, err)
		}
	}
	code := newSecret()
	digest := creto.DigestOf([]byte(code))
	_, err = s.db.ExecContext(ctx, "INSERT INTO login_code (digest, principal, expires_ns) VALUES ($1, $2, $3)",
		digest[:], human.String(), now.Time().Add(loginTTL).UnixNano())
	return code, db.Classify(op, err)
}

// Login spends a code and returns the token of a new session.
//
// Errors: Unauthenticated (Permanent) for a code that is unknown, used or old.
func (s *Sessions) Login(ctx context.Context, code string) (string, error) {
	const op fault.Op = "console.Login"
	now, err := s.clock.Now(ctx)
	if err != nil {
		return "", fault.Wrap(op, err)
	}
	digest := creto.DigestOf([]byte(code))
	var human string
	err = s.db.QueryRowContext(ctx, "UPDATE login_code SET used = 1 WHERE digest = $1 AND used = 0 AND expires_ns > $2 RETURNING principal",
		digest[:], now.Physical).Scan(&human)
	if errors.Is(err, sql.ErrNoRows) {
		return "", fault.New(op, fault.Unauthenticated, "this login has been used or is older than %v; get another with: creto human login NAME", loginTTL)
	}
	if err != nil {
		return "", db.Classify(op, err)
	}
	id, err := creto.ParseID(human)
	if err != nil {
		return "", fault.Wrap(op, err)
	}
	token, _, err := s.New(ctx, id)
	return token, err
}

// New returns the token of a session, and when that ends, for somebody who is
// known otherwise.
//
// Errors: Unavailable (Degraded).
func (s *Sessions) New(ctx context.Context, human creto.ID) (string, time.Time, error) {
	const op fault.Op = "console.NewSession"
	now, err := s.clock.Now(ctx)
	if err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	token, expires := newSecret(), now.Time().Add(sessionTTL)
	digest := creto.DigestOf([]byte(token))
	_, err = s.db.ExecContext(ctx, "INSERT INTO session (digest, principal, csrf, expires_ns) VALUES ($1, $2, $3, $4)",
		digest[:], human.String(), newSecret(), expires.UnixNano())
	return token, expires, db.Classify(op, err)
}

// Find returns the session of a token.
//
// Errors: Unauthenticated (Permanent).
func (s *Sessions) Find(ctx context.Context, token string) (Session, error) {
	const op fault.Op = "console.Find"
	now, err := s.clock.Now(ctx)
	if err != nil {
		return Session{}, fault.Wrap(op, err)
	}
	digest := creto.DigestOf([]byte(token))
	var session Session
	var human string
	err = s.db.QueryRowContext(ctx, `SELECT s.principal, s.csrf FROM session s JOIN principal p ON p.id = s.principal AND p.active = 1
		WHERE s.digest = $1 AND s.expires_ns > $2`, digest[:], now.Physical).Scan(&human, &session.CSRF)
	if errors.Is(err, sql.ErrNoRows) {
		return Session{}, fault.New(op, fault.Unauthenticated, "you are not logged in; get a login with: creto human login NAME")
	}
	if err != nil {
		return Session{}, db.Classify(op, err)
	}
	session.Human, err = creto.ParseID(human)
	return session, fault.Wrap(op, err)
}

// End ends the session of a token.
//
// Errors: Unavailable (Degraded).
func (s *Sessions) End(ctx context.Context, token string) error {
	digest := creto.DigestOf([]byte(token))
	_, err := s.db.ExecContext(ctx, "DELETE FROM session WHERE digest = $1", digest[:])
	return db.Classify("console.End", err)
}
