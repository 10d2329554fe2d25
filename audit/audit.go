// Package audit is the contract for the log of everything that happened: append
// only, in a Merkle tree, so that a record cannot be changed or removed without
// the proof of every later reader failing (R-AUD-1…32).
package audit

import (
	"context"
	"time"

	"creto.dev"
	"creto.dev/pqc"
)

// RecordID names a record. It is chosen by who makes the record, so that a
// retry is the same record.
type RecordID = creto.UUID

// MaxRecordBytes bounds a record's canonical encoding as its maker hands it in;
// MaxLeafBytes what becomes of it in the tree, where personal fields are sealed
// ([Record.Seal]): an entry of a C2SP tlog-tiles bundle has 16 bits for its length.
const (
	MaxRecordBytes = 60 << 10
	MaxLeafBytes   = 1<<16 - 1
)

// Outcome says how an action ended (R-AUD-8).
type Outcome string

// The outcomes. Unknown is an action whose result never came, as after a
// crash.
const (
	Success Outcome = "success"
	Failure Outcome = "failure"
	Denied  Outcome = "denied"
	Timeout Outcome = "timeout"
	Unknown Outcome = "unknown"
)

// The events that records speak of beside the actions of package creto
// (R-AUD-22…26).
const (
	EventSandboxSpawned     = "sandbox_spawned"
	EventSandboxTerminated  = "sandbox_terminated"
	EventOversightRequested = "oversight_requested"
	EventApproved           = "approved"
	EventOversightDenied    = "denied"
	EventOversightExpired   = "oversight_expired"
	EventConsentConsumed    = "consent_consumed"
	EventDelegationIssued   = "delegation_issued"
	EventDelegationRevoked  = "delegation_revoked"
	EventTokenIssued        = "token_issued"
	EventTokenRevoked       = "token_revoked"
	EventSVIDIssued         = "svid_issued" // an X.509-SVID; a JWT-SVID is a token
	EventKeyRotated         = "key_rotated"
	EventTenantAdded        = "tenant_added"
	EventHumanAdded         = "human_added"
	EventHumanRemoved       = "human_removed"
	EventGroupLeft          = "group_left"
	EventLoginIssued        = "login_issued"
	EventLoggedIn           = "logged_in"
	EventPasskeyAdded       = "passkey_added"
	EventPasskeyRemoved     = "passkey_removed"
	EventPasskeyCloned      = "passkey_cloned"
	EventIdentityLinked     = "identity_linked"
	EventIdentityUnlinked   = "identity_unlinked"
	EventDelegationAsked    = "delegation_asked"
	EventDelegationDeclined = "delegation_declined"
	EventSecretSet          = "secret_set"
	EventSecretRemoved      = "secret_removed"
	EventPolicyChanged      = "policy_changed"
	EventNodeStarted        = "node_started"
	EventClockDegraded      = "clock_degraded"  // stamps of this node are local from here on (R-CON-14)
	EventClockAnchored      = "clock_anchored"  // consensus is back; what it tells lies between two of its stamps
	EventSplitView          = "split_view"      // the log is not the one that was published
	EventLimitChanged       = "limit_changed"   // a quota or a rate was set or removed
	EventQuotaChecked       = "quota_checked"   // what a window of a quota came to (R-AUD-27)
	EventAuditGap           = "audit_gap"       // informational records that were only counted (R-OQ-2), or that a damaged disk lost
	EventSubjectErased      = "subject_erased"  // a person's key is gone (R-GAP-11)
	EventSessionTainted     = "session_tainted" // it read what looks like an attack (R-GAP-13)
	EventSegmentSealed      = "segment_sealed"  // the oldest records left the database; their hashes stay
)

// The events that an action's record stands for beside its own name: what
// [Record.Event] returns.
const (
	EventAuthzDenied     = "authz_denied"
	EventQuotaExceeded   = "quota_exceeded"
	EventInferenceCalled = "inference_called"
	EventEgressAttempted = "egress_attempted"
	EventMessageSent     = "message_sent"
	EventDeliveryDenied  = "delivery_denied"
)

// What became of an access to a secret (R-AUD-26): the detail DetailEvent of the
// record of access_secret, of which there is one for each access, as of any
// action.
const (
	DetailEvent         = "event"
	EventSecretAccessed = "secret_accessed"
	EventSecretMissing  = "secret_missing"
)

// What became of a model call that is an attack (R-INF-33, R-AUD-26), in DetailEvent
// of its record likewise. A leaked canary is what an answer gave away.
const (
	EventPromptInjectionBlocked = "prompt_injection_blocked"
	EventCanaryLeaked           = "canary_leaked"
)

// Decision is the policy decision that a record is about.
type Decision struct {
	Kind   string `cbor:"1,keyasint" json:"kind"`
	Reason string `cbor:"2,keyasint,omitempty" json:"reason,omitempty"`
	// Policies name what decided, each with the digest of its text.
	Policies []PolicyRef `cbor:"3,keyasint,omitempty" json:"policies,omitempty"`
	// Version is the digest of the whole policy set.
	Version creto.Digest `cbor:"4,keyasint,omitzero" json:"version"`
}

// PolicyRef names one policy and its exact text.
type PolicyRef struct {
	ID     string       `cbor:"1,keyasint" json:"id"`
	Digest creto.Digest `cbor:"2,keyasint" json:"digest"`
}

// Consent is who allowed an action that policy wanted a person to see.
type Consent struct {
	// Request is the digest of the exact request that was shown.
	Request creto.Digest `cbor:"1,keyasint" json:"request"`
	// ID names the oversight request.
	ID string `cbor:"2,keyasint" json:"id"`
	// Approver decided, in Channel, known by Verification.
	Approver     string `cbor:"3,keyasint" json:"approver"`
	Channel      string `cbor:"4,keyasint" json:"channel"`
	Verification string `cbor:"5,keyasint" json:"verification"`
	// Human is false if no person took part.
	Human bool `cbor:"6,keyasint" json:"human"`
	// Policy asked for the consent; ExpiresNS is when it would have ended, in
	// Unix nanoseconds.
	Policy    PolicyRef `cbor:"7,keyasint" json:"policy"`
	ExpiresNS int64     `cbor:"8,keyasint" json:"expires_ns"`
}

// Usage is what a model call consumed.
type Usage struct {
	PromptTokens     int64 `cbor:"1,keyasint" json:"prompt_tokens"`
	CompletionTokens int64 `cbor:"2,keyasint" json:"completion_tokens"`
	// Estimated says that the provider did not count.
	Estimated bool `cbor:"3,keyasint,omitempty" json:"estimated,omitempty"`
}

// Record is one entry. Its canonical CBOR encoding is a leaf of the tree.
type Record struct {
	ID    RecordID        `cbor:"1,keyasint" json:"id"`
	Stamp creto.Timestamp `cbor:"2,keyasint" json:"stamp"`
	// Who acted; in an action's record the agent.
	Who creto.ID `cbor:"3,keyasint" json:"who"`
	// OnBehalfOf is the human at the root of Who's chain.
	OnBehalfOf creto.ID `cbor:"4,keyasint,omitzero" json:"on_behalf_of"`
	// Chain is the digest of the verified chain; zero where none is involved.
	Chain creto.Digest `cbor:"5,keyasint,omitzero" json:"chain"`
	// What happened: an action's name or an event.
	What string `cbor:"6,keyasint" json:"what"`
	// Resource it happened to, as Type::id.
	Resource string `cbor:"7,keyasint" json:"resource"`
	// Args is the digest of the action's exact arguments.
	Args creto.Digest `cbor:"8,keyasint,omitzero" json:"args"`
	// Why is the reason that the actor gave, or that an outcome has.
	Why      string    `cbor:"9,keyasint,omitempty" json:"why,omitempty"`
	Outcome  Outcome   `cbor:"10,keyasint" json:"outcome"`
	Decision *Decision `cbor:"11,keyasint,omitempty" json:"decision,omitempty"`
	// Consents are all that the action needed, in the order they were given.
	Consents []Consent `cbor:"12,keyasint,omitempty" json:"consents,omitempty"`
	Usage    *Usage    `cbor:"13,keyasint,omitempty" json:"usage,omitempty"`
	// Sandbox is the run, and Isolation the kind of its walls.
	Sandbox   string `cbor:"14,keyasint,omitempty" json:"sandbox,omitempty"`
	Isolation string `cbor:"15,keyasint,omitempty" json:"isolation,omitempty"`
	Trace     string `cbor:"16,keyasint,omitempty" json:"trace,omitempty"`
	// Detail holds facts of this kind of record, such as an HTTP status.
	Detail map[string]string `cbor:"17,keyasint,omitempty" json:"detail,omitempty"`
	// Signature is the agent's own, where it gave one, and SignatureStatus
	// what became of it: "valid" or "invalid".
	Signature       *pqc.Signature `cbor:"18,keyasint,omitempty" json:"-"`
	SignatureStatus string         `cbor:"19,keyasint,omitempty" json:"signature_status,omitempty"`
	// Personal is what a leaf holds of people: boxes whose content [Record.Open]
	// puts back. Whoever makes a record leaves it empty.
	Personal []Personal `cbor:"20,keyasint,omitempty" json:"personal,omitempty"`
}

// Event returns what the record is called in R-AUD-22…27: authz_denied for any
// action that was refused, inference_called for a model call, and so on; What
// where that is the event's own name.
func (r Record) Event() string {
	if event := r.Detail[DetailEvent]; event != "" {
		return event
	}
	_, action := creto.ResourceType(r.What)
	switch {
	case action && r.Outcome == Denied && r.Decision != nil && r.Decision.Kind == EventQuotaExceeded:
		return EventQuotaExceeded
	case r.What == creto.SendMessage && r.Outcome == Denied:
		return EventDeliveryDenied
	case action && r.Outcome == Denied:
		return EventAuthzDenied
	}
	switch r.What {
	case creto.CallModel:
		return EventInferenceCalled
	case creto.HTTPRequest, creto.NetworkEgress:
		return EventEgressAttempted
	case creto.SendMessage:
		return EventMessageSent
	}
	return r.What
}

// SecurityRelevant reports whether the record must be on disk before its action
// goes on: everything but allowed model, tool and egress calls without consent,
// and what quotas came to.
func (r Record) SecurityRelevant() bool {
	switch r.What {
	case creto.CallModel, creto.CallTool, creto.HTTPRequest, creto.NetworkEgress, creto.SendMessage, creto.ConsumeQuota, EventQuotaChecked:
		return r.Outcome == Denied || len(r.Consents) > 0 || r.Signature != nil
	}
	return true
}

// Entry is a record in the tree.
type Entry struct {
	// Record is what the leaf says, with personal fields as far as their keys
	// exist and the reader may see them.
	Record Record
	// Index is the leaf's index.
	Index int64
	// Leaf is the leaf: the canonical encoding of the sealed record.
	Leaf []byte
}

// Checkpoint is a signed head of the tree: a C2SP tlog-checkpoint note.
type Checkpoint struct {
	Size int64
	Root [32]byte
	// Note has the log's own signatures.
	Note []byte
	// Others are further lines of the note, such as witnesses' cosignatures.
	Others []byte
}

// Filter selects records. Empty fields select everything.
type Filter struct {
	// Tenant is whose records: those of its principals. "" means everybody's,
	// which only the platform itself may ask for.
	Tenant string
	Actor  string // who acted: a principal's name or SPIFFE id
	Human  string // who acted, or on whose behalf: a human's name or SPIFFE id
	// What is an action or an event, by [Record.What] or [Record.Event].
	What     string
	Resource string // as Type::id; with a last * what begins so
	Outcome  Outcome
	// Since and Until bound the physical part of the stamps: since ≤ t < until.
	// The zero time is no bound.
	Since, Until time.Time
	// Before selects records of a smaller index; 0 means from the newest.
	Before int64
	// Oldest has the page go up, from the index From on, and not down.
	Oldest bool
	From   int64
	// Limit bounds the page. 0 means 50; the most is MaxPage.
	Limit int
}

// MaxPage is the most entries that a query returns.
const MaxPage = 1000

// Log accepts records and proves that they are in it. Safe for concurrent use.
//
// Errors of every method: AuditUnavailable (Degraded), AuditTimeout (Transient).
type Log interface {
	// Log accepts r and returns its id. When Log returns, r survives the death
	// of this process, and, if it is security relevant, a power cut; its index
	// in the tree is assigned later. The log keeps no reference to r. A second
	// record with the same id is not added again.
	//
	// When the log has no room at all, a security-relevant record fails, and
	// another one is counted in an audit_gap record that follows (R-OQ-2).
	//
	// Errors: AuditValidationFailed (Permanent) if r is incomplete or larger
	// than MaxRecordBytes; AuditUnavailable (Degraded) if there was no room
	// until ctx ended.
	Log(ctx context.Context, r Record) (RecordID, error)

	// LogBatch is Log for several records (R-AUD-6). The result has one error,
	// or nil, for each; those that are security relevant share one sync.
	// Records without an id get one, which the caller sees in rs.
	LogBatch(ctx context.Context, rs []Record) []error

	// LogSigned is Log for a record that its actor signed, and always durable.
	// The signature is over SigningBytes for pqc.PurposeRecord. If it does
	// not verify, the record is kept with the signature as evidence and
	// SignatureStatus "invalid", and the call fails.
	//
	// Errors: those of Log; AuditInvalidSignature (Security).
	LogSigned(ctx context.Context, r Record, sig pqc.Signature, key pqc.PublicKey) (RecordID, error)

	// Entry returns a record that has its place in the tree, waiting for it
	// until ctx ends if it was accepted a moment ago.
	//
	// Errors: AuditNotFound (Permanent); DataLoss (Security) if what is stored
	// is not what was logged.
	Entry(ctx context.Context, id RecordID) (Entry, error)

	// Query returns a page of records, the greatest index first unless f.Oldest.
	// Every record accepted before the call is considered.
	//
	// Errors: InvalidArgument (Permanent) for a filter that makes no sense;
	// DataLoss (Security) as for Entry.
	Query(ctx context.Context, f Filter) ([]Entry, error)

	// Wait returns the size of the tree once that is more than size.
	//
	// Errors: AuditTimeout (Transient) if ctx ended first.
	Wait(ctx context.Context, size int64) (int64, error)

	// Checkpoint returns a signed head that includes every record accepted
	// before the call.
	Checkpoint(ctx context.Context) (Checkpoint, error)

	// Proof returns the RFC 6962 inclusion proof of a leaf in the tree of
	// that size.
	//
	// Errors: AuditNotFound (Permanent) if the tree has no such leaf or was
	// never of that size; DataLoss (Security) if the stored tree is damaged.
	Proof(ctx context.Context, index, size int64) ([][32]byte, error)

	// Consistency returns the RFC 6962 proof that the tree of size from is the
	// beginning of the tree of size to; empty if from is 0 or to.
	//
	// Errors: those of Proof.
	Consistency(ctx context.Context, from, to int64) ([][32]byte, error)

	// Disclose returns the keys of what is personal in an entry, as far as they
	// exist: whoever is given them can read it, in this record alone.
	//
	// Errors: AuditNotFound (Permanent) if the entry is not in the log.
	Disclose(ctx context.Context, e Entry) ([]Disclosure, error)

	// Ping reports whether the log can accept and prove. It adds nothing
	// (B-16).
	//
	// Errors: AuditUnavailable (Degraded); AuditTimeout (Transient) if it is slow:
	// four fifths of the room for waiting records are taken; AuditProofVerificationFailed (Security) or
	// DataLoss (Security) if the newest record cannot be proven.
	Ping(ctx context.Context) error
}

// Follow calls see with every entry that f selects, in the order of the tree,
// from f.From on, waiting for new ones until ctx ends or see returns an error,
// which it returns.
//
// Errors: those of Query and Wait; see's.
func Follow(ctx context.Context, log Log, f Filter, see func(Entry) error) error {
	f.Oldest = true
	if f.Limit == 0 || f.Limit > MaxPage { // a page that is not full is the last
		f.Limit = MaxPage
	}
	size := f.From
	for {
		var err error
		if size, err = log.Wait(ctx, size); err != nil {
			return err
		}
		for more := true; more; {
			page, err := log.Query(ctx, f)
			if err != nil {
				return err
			}
			for _, e := range page {
				if err := see(e); err != nil {
					return err
				}
				f.From = e.Index + 1
			}
			more = len(page) == f.Limit
		}
		f.From = max(f.From, size) // everything below was considered
	}
}
