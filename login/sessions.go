package login

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/db"
)

// SessionTTL is how long a session lasts, and loginTTL how long a login code.
const (
	loginTTL   = 15 * time.Minute
	SessionTTL = 12 * time.Hour
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
	// Method is how they were known, and AuthenticatedAt when; zero if nobody
	// was present.
	Method          Method
	AuthenticatedAt time.Time
	// Fresh says that this was less than FreshFor ago.
	Fresh bool
	// Expires is when the session ends.
	Expires time.Time
}

// NewLogin returns a code that logs human in once, within 15 minutes. method is
// what the session will say: MethodBootstrap for who holds the data directory,
// else MethodToken.
//
// Errors: Unavailable (Degraded).
func (s *Sessions) NewLogin(ctx context.Context, human creto.ID, method Method) (string, error) {
	const op fault.Op = "login.NewLogin"
	now, err := s.clock.Now(ctx)
	if err != nil {
		return "", fault.Wrap(op, err)
	}
	if err := s.sweep(ctx, now.Physical); err != nil {
		return "", fault.Wrap(op, err)
	}
	code := newSecret()
	digest := creto.DigestOf([]byte(code))
	_, err = s.db.ExecContext(ctx, "INSERT INTO login_code (digest, principal, expires_ns, method) VALUES ($1, $2, $3, $4)",
		digest[:], human.String(), now.Time().Add(loginTTL).UnixNano(), string(method))
	return code, db.Classify(op, err)
}

// sweep forgets what ended.
func (s *Sessions) sweep(ctx context.Context, now int64) error {
	for _, table := range []string{"login_code", "session"} {
		if _, err := s.db.ExecContext(ctx, "DELETE FROM "+table+" WHERE expires_ns <= $1", now); err != nil {
			return db.Classify("login.sweep", err)
		}
	}
	return nil
}

// Login spends a code and returns the token of a new session.
//
// Errors: Unauthenticated (Permanent) for a code that is unknown, used or old.
func (s *Sessions) Login(ctx context.Context, code string) (string, error) {
	const op fault.Op = "login.Login"
	now, err := s.clock.Now(ctx)
	if err != nil {
		return "", fault.Wrap(op, err)
	}
	digest := creto.DigestOf([]byte(code))
	var human string
	var method Method
	err = db.Tx(ctx, s.db, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, "UPDATE login_code SET used = 1 WHERE digest = $1 AND used = 0 AND expires_ns > $2 RETURNING principal, method",
			digest[:], now.Physical).Scan(&human, &method)
	})
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
	token, _, err := s.New(ctx, id, method)
	return token, err
}

// New returns the token of a session, and when that ends, for a human who was
// just known by method.
//
// Errors: Unavailable (Degraded).
func (s *Sessions) New(ctx context.Context, human creto.ID, method Method) (string, time.Time, error) {
	const op fault.Op = "login.Sessions.New"
	now, err := s.clock.Now(ctx)
	if err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	return s.NewSince(ctx, human, method, now.Time())
}

// NewSince is New for a human who was known at some time before; zero for
// nobody knows when.
//
// Errors: Unavailable (Degraded).
func (s *Sessions) NewSince(ctx context.Context, human creto.ID, method Method, since time.Time) (string, time.Time, error) {
	const op fault.Op = "login.Sessions.NewSince"
	now, err := s.clock.Now(ctx)
	if err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	if err := s.sweep(ctx, now.Physical); err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	var authenticated int64
	if method != MethodToken && !since.IsZero() {
		authenticated = min(since.UnixNano(), now.Physical)
	}
	token, expires := newSecret(), now.Time().Add(SessionTTL)
	digest := creto.DigestOf([]byte(token))
	_, err = s.db.ExecContext(ctx, "INSERT INTO session (digest, principal, csrf, expires_ns, method, authenticated_ns) VALUES ($1, $2, $3, $4, $5, $6)",
		digest[:], human.String(), newSecret(), expires.UnixNano(), string(method), authenticated)
	return token, expires, db.Classify(op, err)
}

// Find returns the session of a token.
//
// Errors: Unauthenticated (Permanent).
func (s *Sessions) Find(ctx context.Context, token string) (Session, error) {
	const op fault.Op = "login.Find"
	now, err := s.clock.Now(ctx)
	if err != nil {
		return Session{}, fault.Wrap(op, err)
	}
	digest := creto.DigestOf([]byte(token))
	var session Session
	var human string
	var authenticated, expires int64
	err = s.db.QueryRowContext(ctx, `SELECT s.principal, s.csrf, s.method, s.authenticated_ns, s.expires_ns FROM session s JOIN principal p ON p.id = s.principal AND p.active = 1
		WHERE s.digest = $1 AND s.expires_ns > $2`, digest[:], now.Physical).Scan(&human, &session.CSRF, &session.Method, &authenticated, &expires)
	if errors.Is(err, sql.ErrNoRows) {
		return Session{}, fault.New(op, fault.Unauthenticated, "you are not logged in; get a login with: creto human login NAME")
	}
	if err != nil {
		return Session{}, db.Classify(op, err)
	}
	session.Expires = time.Unix(0, expires)
	if authenticated > 0 {
		session.AuthenticatedAt = time.Unix(0, authenticated)
		session.Fresh = now.Time().Before(session.AuthenticatedAt.Add(FreshFor))
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
	return db.Classify("login.End", err)
}

// EndOthers ends the sessions of a human, but for the one of token.
//
// Errors: Unavailable (Degraded).
func (s *Sessions) EndOthers(ctx context.Context, human creto.ID, token string) error {
	digest := creto.DigestOf([]byte(token))
	_, err := s.db.ExecContext(ctx, "DELETE FROM session WHERE principal = $1 AND digest <> $2", human.String(), digest[:])
	return db.Classify("login.EndOthers", err)
}

// errNotFresh refuses what only a human who was just known may do.
func errNotFresh(op fault.Op) error {
	return fault.New(op, fault.PermissionDenied, "log in again first: your login is older than %d minutes, or was made from another session", int(FreshFor.Minutes()))
}
