// Package oversight puts an agent's action before a human and keeps the answer:
// who may answer, what exactly was shown, and that an approval counts once
// (R-OVS-1…14).
package oversight

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/internal/canon"
	"creto.dev/internal/db"
	"creto.dev/internal/logkey"
)

// State is where a request stands. Every end state is final.
type State string

// The states. Consumed is an approval whose action has started.
const (
	Pending  State = "pending"
	Approved State = "approved"
	Denied   State = "denied"
	Expired  State = "expired"
	Consumed State = "consumed"
)

// The channels in which a decision arrives, and how its maker is known there.
const (
	ChannelCLI     = "cli"
	ChannelConsole = "console"
	ChannelAPI     = "api"
	ChannelAuto    = "auto"
)

// verification says how well a channel knows who decided.
var verification = map[string]string{
	ChannelCLI:     "holder of the node's socket",
	ChannelConsole: "session of a one-time login",
	ChannelAPI:     "token of a session",
	ChannelAuto:    "nobody: a program decided",
}

// Request is one question and its answer.
type Request struct {
	ID         string
	State      State
	Digest     creto.Digest
	Agent      creto.ID
	OnBehalfOf creto.ID
	Chain      []creto.ID
	Action     string
	Resource   string
	// Args is the exact request as the agent made it, and ArgsDigest what a
	// consent is bound to.
	Args        []byte
	ArgsDigest  creto.Digest
	ChainDigest creto.Digest
	// Method and the like, as policies saw them.
	Context   map[string]string
	Policy    audit.PolicyRef
	Approvers string
	// Quorum is how many humans are asked in all, one after the other, and
	// Consented who did before: they cannot answer this one.
	Quorum    int
	Consented []creto.ID
	Created   time.Time
	Expires   time.Time
	DecidedBy creto.ID
	DecidedAt time.Time
	Channel   string
	Reason    string
}

// body is what a request's row holds beside its columns.
type body struct {
	Question audit.Question    `cbor:"1,keyasint"`
	Chain    []creto.ID        `cbor:"2,keyasint"`
	Args     []byte            `cbor:"3,keyasint"`
	Context  map[string]string `cbor:"4,keyasint"`
	// Quorum is left out where it is one.
	Quorum    int        `cbor:"5,keyasint,omitempty"`
	Consented []creto.ID `cbor:"6,keyasint,omitempty"`
}

const (
	// defaultTimeout is how long a question waits if nobody says.
	defaultTimeout = 30 * time.Minute
	// maxArgsBytes bounds what is put before a human: nobody reads more.
	maxArgsBytes = 1 << 20
	// maxReasonBytes bounds what a human gives as a reason.
	maxReasonBytes = 1000
	// undoTimeout bounds taking back a change that could not be recorded.
	undoTimeout = 5 * time.Second
)

// Config is the behaviour that may be chosen.
type Config struct {
	// Timeout is how long a question waits if its policy does not say. 0 means
	// 30 minutes. A question that nobody answers is denied.
	Timeout time.Duration
}

// Desk holds the requests of one node. Run expires them. Safe for concurrent
// use.
type Desk struct {
	cfg    Config
	db     *sql.DB
	clock  consensus.Clock
	log    audit.Log
	groups func(ctx context.Context, id creto.ID) ([]string, error)
	slog   *slog.Logger

	mu      sync.Mutex // guards what follows
	changed chan struct{}
	watches map[string]*watch // by request
}

// watch wakes those who wait for one request.
type watch struct {
	changed chan struct{}
	waiters int
}

var _ gate.Approver = (*Desk)(nil)

// Open returns the desk over d. Approvals that were consumed in an earlier life
// and never finished are recorded with outcome unknown.
//
// Errors: Unavailable (Degraded).
func Open(ctx context.Context, cfg Config, d *sql.DB, clock consensus.Clock, log audit.Log, groups func(context.Context, creto.ID) ([]string, error), logger *slog.Logger) (*Desk, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	desk := &Desk{cfg: cfg, db: d, clock: clock, log: log, groups: groups, slog: logger, changed: make(chan struct{}), watches: make(map[string]*watch)}
	return desk, desk.recover(ctx)
}

// recover records what a crash left open between the start of an action and its
// outcome.
func (d *Desk) recover(ctx context.Context) error {
	const op fault.Op = "oversight.recover"
	list, damaged, err := d.query(ctx, "state = $1 AND finished = 0", string(Consumed))
	if err != nil {
		return fault.Wrap(op, err)
	}
	d.warn(ctx, damaged)
	for _, r := range list {
		record := d.event(r, r.Action, r.Agent, audit.Unknown)
		record.Why = "the node stopped while the action ran; its outcome is not known"
		if units, ok := r.Context[authz.AmountKey]; ok { // a quota counts them
			record.Detail[authz.AmountKey] = units
		}
		record.Chain, record.Args, record.Consents = r.ChainDigest, r.ArgsDigest, []audit.Consent{r.consent()}
		// The id that the action's own record has, if it was written and only
		// Finish did not come: the log keeps the first of the two.
		if record.ID, err = creto.ParseUUID(r.ID); err != nil {
			return fault.Wrap(op, err)
		}
		if _, err := d.log.Log(ctx, record); err != nil {
			return fault.Wrap(op, err)
		}
		if err := d.Finish(ctx, r.ID); err != nil {
			return fault.Wrap(op, err)
		}
	}
	return nil
}

// warn tells a person of requests whose rows do not hold what was asked.
func (d *Desk) warn(ctx context.Context, damaged map[string]error) {
	for _, err := range damaged {
		d.slog.LogAttrs(ctx, slog.LevelError, "an approval request is damaged and cannot be answered", slog.Any(logkey.Error, err))
	}
}

// Await implements gate.Approver.
func (d *Desk) Await(ctx context.Context, q gate.Question) (gate.Answer, error) {
	const op fault.Op = "oversight.Await"
	r, err := d.attach(ctx, q)
	if err != nil {
		return gate.Answer{}, fault.Wrap(op, err)
	}
	defer d.leave(d.enter(r.ID))
	for {
		changed := d.changes(r.ID)
		if r, err = d.show(ctx, r.ID); err != nil {
			return gate.Answer{}, fault.Wrap(op, err)
		}
		switch r.State {
		case Approved:
			return gate.Answer{Approved: true, Consent: r.consent()}, nil
		case Denied:
			reason := "denied by " + r.DecidedBy.Name
			if r.Reason != "" {
				reason += ": " + r.Reason
			}
			return gate.Answer{Reason: reason, Consent: r.consent()}, nil
		case Expired:
			return gate.Answer{Reason: "nobody answered in time", Consent: r.consent()}, nil
		case Consumed:
			return gate.Answer{}, fault.New(op, fault.FailedPrecondition, "the approval %s has been used; ask again", r.ID)
		case Pending:
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return gate.Answer{}, fault.Wrap(op, ctx.Err())
		}
	}
}

// attach finds the request that a question belongs to, or makes one. A retry
// with the same key, or the same question while one is open, is that one.
func (d *Desk) attach(ctx context.Context, q gate.Question) (Request, error) {
	const op fault.Op = "oversight.attach"
	chain := q.Chain
	question := audit.Question{
		Tenant: chain.Agent().Tenant, Agent: chain.Agent(), Chain: chain.Digest(), Action: q.Action.Name,
		Resource: q.Action.Resource.String(), Args: q.Action.ArgsDigest(), Policy: audit.PolicyRef{ID: q.Policy.ID, Digest: q.Policy.Digest},
	}
	identity, err := question.Digest() // without id and expiry
	if err != nil {
		return Request{}, fault.Wrap(op, err)
	}
	now, err := d.clock.Now(ctx)
	if err != nil {
		return Request{}, fault.Wrap(op, err)
	}
	if n := len(q.Action.Args); n > maxArgsBytes {
		return Request{}, fault.New(op, fault.InvalidArgument, "the arguments have %d bytes; a human can be shown at most %d", n, maxArgsBytes)
	}
	timeout := q.Timeout
	if timeout == 0 {
		timeout = d.cfg.Timeout
	}
	question.ID = creto.NewUUID().String()
	question.ExpiresNS = now.Time().Add(timeout).UnixNano()
	digest, err := question.Digest()
	if err != nil {
		return Request{}, fault.Wrap(op, err)
	}
	b := body{Question: question, Chain: chain.Principals(), Args: q.Action.Args, Context: shown(q.Action)}
	if q.Quorum > 1 {
		b.Quorum = q.Quorum
	}
	for _, c := range q.Consented {
		id, err := creto.ParseID(c.Approver)
		if err != nil {
			return Request{}, fault.Wrap(op, err)
		}
		b.Consented = append(b.Consented, id)
	}
	row, err := canon.Marshal(b)
	if err != nil {
		return Request{}, fault.Wrap(op, err)
	}
	if len(b.Consented) > 0 { // the next human's question is another one
		if identity, err = seat(identity, q.Consented); err != nil {
			return Request{}, fault.Wrap(op, err)
		}
	}
	var id string
	fresh := false
	err = db.Tx(ctx, d.db, func(tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, `SELECT id FROM oversight_request WHERE identity = $1 AND expires_ns > $2 AND
			(state IN ('pending', 'approved') OR state = 'denied' AND idempotency_key = $3 AND $3 <> '')
			ORDER BY created_ns DESC LIMIT 1`, identity[:], now.Physical, q.Action.IdempotencyKey).Scan(&id)
		if !errors.Is(err, sql.ErrNoRows) {
			return db.Classify(op, err)
		}
		id, fresh = question.ID, true
		_, err = tx.ExecContext(ctx, `INSERT INTO oversight_request
			(id, tenant, digest, identity, idempotency_key, agent, on_behalf_of, body, approvers, state, created_ns, expires_ns)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'pending', $10, $11)`,
			id, question.Tenant, digest[:], identity[:], q.Action.IdempotencyKey, question.Agent.String(), chain.Human().String(),
			row, q.Approvers, now.Physical, question.ExpiresNS)
		return db.Classify(op, err)
	})
	if err != nil {
		return Request{}, err
	}
	r, err := d.show(ctx, id)
	if err != nil || !fresh {
		return r, err
	}
	if _, err = d.log.Log(ctx, d.event(r, audit.EventOversightRequested, r.Agent, audit.Success)); err != nil {
		d.undo(ctx, r, Pending, Expired)
		return r, fault.Wrap(op, err)
	}
	d.announce(r.ID)
	return r, nil
}

// seat returns the identity of the question to one more human, behind those whose
// consents there are.
func seat(identity creto.Digest, consented []audit.Consent) (creto.Digest, error) {
	ids := []string{identity.String()}
	for _, c := range consented {
		ids = append(ids, c.ID)
	}
	data, err := canon.Marshal(ids)
	return creto.DigestOf(data), err
}

// undo takes back a change that the log does not know of, unless the request
// has moved on since.
func (d *Desk) undo(ctx context.Context, r Request, from, to State) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	query := "UPDATE oversight_request SET state = $1 WHERE id = $2 AND state = $3"
	if to == Pending {
		query = "UPDATE oversight_request SET state = $1, decided_by = '', decided_ns = 0, channel = '', reason = '' WHERE id = $2 AND state = $3"
	}
	if _, err := d.db.ExecContext(ctx, query, string(to), r.ID, string(from)); err != nil {
		d.slog.LogAttrs(ctx, slog.LevelError, "an approval request changed without a record", slog.String(logkey.RequestID, r.ID), slog.Any(logkey.Error, db.Classify("oversight.undo", err)))
	}
	d.announce(r.ID)
}

// shown keeps the plain facts of a context, and how many units of quota an action
// asks for, for the approver.
func shown(a creto.Action) map[string]string {
	facts := make(map[string]string)
	for key, value := range a.Context {
		if text, ok := value.(string); ok {
			facts[strings.ToValidUTF8(key, "\uFFFD")] = strings.ToValidUTF8(text, "\uFFFD")
		}
	}
	if n, err := authz.Units(a.Name, a.Context); err == nil && n > 1 {
		facts[authz.AmountKey] = strconv.FormatInt(n, 10)
	}
	return facts
}

// enter begins to wait for a request, and leave ends it.
func (d *Desk) enter(id string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.watches[id]
	if w == nil {
		w = &watch{changed: make(chan struct{})}
		d.watches[id] = w
	}
	w.waiters++
	return id
}

func (d *Desk) leave(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.watches[id]
	if w.waiters--; w.waiters == 0 {
		delete(d.watches, id)
	}
}

// changes returns a channel that is closed at the next change of a request that
// somebody waits for.
func (d *Desk) changes(id string) <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.watches[id].changed
}

// announce wakes whoever waits for these requests.
func (d *Desk) announce(ids ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range ids {
		if w := d.watches[id]; w != nil {
			close(w.changed)
			w.changed = make(chan struct{})
		}
	}
	close(d.changed)
	d.changed = make(chan struct{})
}

// Changed returns a channel that is closed at the next change of any request.
func (d *Desk) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

// expireInterval is how often overdue requests are closed.
const expireInterval = time.Second

// Run closes overdue requests until ctx ends.
func (d *Desk) Run(ctx context.Context) error {
	ticker := time.NewTicker(expireInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := d.expire(ctx); err != nil && ctx.Err() == nil {
			d.slog.LogAttrs(ctx, slog.LevelError, "overdue approvals stay open", slog.Any(logkey.Error, err))
		}
	}
}

func (d *Desk) expire(ctx context.Context) error {
	const op fault.Op = "oversight.expire"
	now, err := d.clock.Now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	overdue, damaged, err := d.query(ctx, "state IN ('pending', 'approved') AND expires_ns <= $1", now.Physical)
	if err != nil {
		return fault.Wrap(op, err)
	}
	for id := range damaged { // one bad row must not keep the others open
		if _, err := d.db.ExecContext(ctx, "UPDATE oversight_request SET state = 'expired' WHERE id = $1", id); err != nil {
			return db.Classify(op, err)
		}
		d.announce(id)
	}
	d.warn(ctx, damaged)
	for _, r := range overdue {
		result, err := d.db.ExecContext(ctx, "UPDATE oversight_request SET state = 'expired' WHERE id = $1 AND state = $2", r.ID, string(r.State))
		if err != nil {
			return db.Classify(op, err)
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			continue // somebody was faster
		}
		// An end is announced even if the log fails, so that nobody waits for
		// ever; it denies.
		d.announce(r.ID)
		if _, err := d.log.Log(ctx, d.event(r, audit.EventOversightExpired, r.Agent, audit.Timeout)); err != nil {
			return fault.Wrap(op, err)
		}
	}
	return nil
}

// event returns the audit record of a transition.
func (d *Desk) event(r Request, what string, who creto.ID, outcome audit.Outcome) audit.Record {
	return audit.Record{
		ID: creto.NewUUID(), Who: who, OnBehalfOf: r.OnBehalfOf, What: what, Resource: r.Resource, Outcome: outcome,
		Detail: map[string]string{"request": r.ID, "digest": r.Digest.String(), "approvers": r.Approvers},
	}
}
