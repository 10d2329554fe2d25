// Package authz is the contract for deciding whether an agent may act: policy
// first, then whether a human must be asked, then quota, then rate (R-AZ-1…31).
package authz

import (
	"context"
	"time"

	"creto.dev"
	"creto.dev/nhi"
)

// Kind is what a decision comes to. The zero value denies.
type Kind uint8

// The kinds of decisions (R-AZ-4…8).
const (
	Deny Kind = iota
	Allow
	RequiresOversight
	QuotaExceeded
	RateLimited
)

// String returns the kind's name on every wire and in every record.
func (k Kind) String() string {
	return [...]string{"deny", "allow", "requires_oversight", "quota_exceeded", "rate_limited"}[k]
}

// Decision is the answer to a check. A denial is an answer, not an error; the
// zero Decision denies.
type Decision struct {
	Kind Kind
	// Reason is for people; a denial's says what would permit the action.
	Reason string
	// Policies decided, and are not to be changed; Version is the digest of the
	// whole set.
	Policies []Policy
	Version  creto.Digest
	// Approvers is the group to ask, or Principal; Timeout is how long to
	// wait for it, 0 if policy does not say; Quorum is how many different
	// humans must consent in all. Set for RequiresOversight.
	Approvers string
	Timeout   time.Duration
	Quorum    int
	// Reservation is set for Allow, if a quota applies: whoever acts commits
	// or refunds it, once.
	Reservation Reservation
	// Limit, Used and ResetAt are set for QuotaExceeded.
	Limit, Used int64
	ResetAt     time.Time
	// RetryAfter is set for RateLimited.
	RetryAfter time.Duration
}

// Principal as the group of approvers means the human at the chain's root.
const Principal = "principal"

// MaxQuorum bounds how many humans a policy may ask for one action.
const MaxQuorum = 5

// Policy names one policy and its exact text.
type Policy struct {
	ID     string
	Digest creto.Digest
}

// Reservation is an amount of quota that is held until it is committed or
// refunded. The zero value holds nothing.
type Reservation struct {
	ID     uint64
	Amount int64
}

// Request asks about one action.
type Request struct {
	Action   string
	Resource creto.Resource
	// Context holds what policies may read; see creto.Action.
	Context map[string]any
	// Consents turn RequiresOversight of their policy into Allow, as many as
	// its quorum. Who makes the request sees to it that they are of different
	// humans.
	Consents []Consent
}

// Consent is a human's word for one policy, as oversight gives it. It fits one
// exact text of that policy.
type Consent struct{ policy Policy }

// NewConsent is called by who verified that the human consented.
func NewConsent(p Policy) Consent { return Consent{policy: p} }

// Policy returns the policy that the consent is for.
func (c Consent) Policy() Policy { return c.policy }

// For reports whether the consent is for just this policy.
func (c Consent) For(p Policy) bool { return c.policy == p && p.ID != "" }

// Query asks what a session may act on.
type Query struct {
	Action string
	// After is the last grant of the page before; the zero Grant begins.
	After Grant
	// Limit is how many grants to return at most; 0 means 100, and more than
	// 1,000 mean 1,000.
	Limit int
}

// Page is one page of what a session may act on: single resources by id, then
// prefixes, both ascending.
type Page struct {
	Grants []Grant
	// More says that there are others, after the last one.
	More bool
}

// Grant is one resource that a session may act on, or many.
type Grant struct {
	Resource creto.Resource
	// Prefix says that it is every resource whose id begins with the one here,
	// which may be empty, but for those that are named by a policy.
	Prefix bool
	// Conditional says that it depends on more than the resource: on conditions
	// of policies, or on a human's consent.
	Conditional bool
}

// Session is a chain that an Authorizer has prepared for checks. It stays valid
// when policies change. Safe for concurrent use.
type Session interface {
	Chain() nhi.VerifiedChain
}

// Authorizer decides. Safe for concurrent use.
//
// Everything fails closed: on any error the action is denied. Errors of every
// method: AuthzUnavailable (Degraded), AuthzTimeout (Transient),
// AuthzInvalidRequest (Permanent) for a malformed request.
//
// The order is fixed (R-GAP-5): an error in a forbid that is in scope → forbid
// → no permit → oversight → quota → rate → Allow.
type Authorizer interface {
	// Bind prepares a chain. The zero chain binds, and is denied everything.
	Bind(ctx context.Context, chain nhi.VerifiedChain) (Session, error)

	// Check decides, and reserves quota as its last step and only if the
	// answer is Allow.
	Check(ctx context.Context, s Session, r Request) (Decision, error)

	// Peek is Check without a reservation.
	Peek(ctx context.Context, s Session, r Request) (Decision, error)

	// CheckBatch answers each request, in order, as Check would. One that cannot
	// be answered is denied, with the reason in its place; the others stand. An
	// error says that none was answered.
	CheckBatch(ctx context.Context, s Session, rs []Request) ([]Decision, error)

	// List returns what a session may act on, by policies and the links' scopes.
	// It asks no extension and reserves nothing.
	List(ctx context.Context, s Session, q Query) (Page, error)

	// Ping reports whether policies are loaded. It evaluates none (B-21).
	Ping(ctx context.Context) error
}

// Extension decides what policies cannot: quota and rate (R-AZ-9, R-AZ-10).
// Safe for concurrent use.
type Extension interface {
	// Name identifies the extension in logs.
	Name() string

	// Bind prepares a chain, as Authorizer.Bind does. What it returns stays
	// valid when limits change. An error denies.
	Bind(ctx context.Context, chain nhi.VerifiedChain) (Evaluator, error)

	// Refund gives a reservation back, when a later extension denied.
	Refund(r Reservation)
}

// Evaluator is an extension for one chain. Safe for concurrent use.
type Evaluator interface {
	// Evaluate returns the decision that ends the check, or nil to go on. With
	// reserve it holds what it grants, and says so: nothing if it ends the check.
	// An error denies.
	Evaluate(ctx context.Context, r Request, reserve bool) (Reservation, *Decision, error)
}
