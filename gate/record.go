package gate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/fault"
)

// A record must always find room in the log (audit.MaxRecordBytes), whatever an
// agent, an act or a policy put into it.
const (
	maxTextBytes = 2 << 10
	maxDetails   = 32 // times two texts
	maxPolicies  = 64
	// maxMethodBytes is more than any method of HTTP has (RFC 9110, section 16.1).
	maxMethodBytes = 20
)

// recordTimeout bounds how long an outcome waits for room in the log, once its
// caller may be gone.
const recordTimeout = 5 * time.Second

// refuse records that an action did not happen, and returns why.
func (p *pass) refuse(ctx context.Context, why error) (audit.RecordID, error) {
	r := p.record(ctx)
	r.Outcome, r.Why, r.Detail = audit.Denied, reason(why), bounded(p.decidedOn(), r.Detail)
	return p.end(ctx, r, why)
}

// riskKey is how likely a model call is an attack, in thousandths.
const riskKey = "risk"

// decidedOn returns what of an action's context belongs into the record of its
// refusal: what an Act would have said, had there been one. It is none of the
// text that agents or people write.
func (p *pass) decidedOn() map[string]string {
	if risk, ok := p.action.Context[riskKey].(int64); ok && p.action.Name == creto.CallModel {
		return map[string]string{riskKey: strconv.FormatInt(risk, 10)}
	}
	key := map[string]string{creto.HTTPRequest: methodKey, creto.AccessSecret: deliveryKey}[p.action.Name]
	value, ok := p.action.Context[key].(string)
	if !ok || len(value) > maxMethodBytes {
		return nil
	}
	return map[string]string{key: value}
}

// end writes the record, whether or not the caller still waits, and settles
// what hangs on the outcome. It returns err, joined with what went wrong here:
// the code stays err's.
func (p *pass) end(ctx context.Context, r audit.Record, err error) (audit.RecordID, error) {
	const op fault.Op = "gate.end"
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	defer p.settle(Charged(r))
	id, failed := p.gate.write(ctx, r)
	if failed == nil && p.consumed {
		failed = p.gate.approver.Finish(ctx, p.requests()...)
	}
	switch {
	case failed == nil:
		return id, err
	case err == nil:
		return id, fault.Wrap(op, failed)
	}
	return id, errors.Join(err, fault.Wrap(op, failed))
}

// write logs r. What the log finds wrong with a record is in what others said
// of the action: it is dropped rather than the outcome.
func (g *Gate) write(ctx context.Context, r audit.Record) (audit.RecordID, error) {
	id, err := g.log.Log(ctx, r)
	if errors.Is(err, fault.AuditValidationFailed) {
		r.Why = "the details did not fit into a record"
		if units := Units(r); units > 1 {
			r.Detail = map[string]string{authz.AmountKey: strconv.FormatInt(units, 10)}
		} else {
			r.Detail = nil
		}
		if r.Decision != nil {
			short := *r.Decision
			short.Policies, short.Reason = nil, "the policies did not fit into a record"
			r.Decision = &short
		}
		id, err = g.log.Log(ctx, r)
	}
	if err != nil {
		g.doubt.Store(true)
	}
	return id, err
}

// record fills in what is known of an action beside its outcome. The record of
// a consented action has the consent's id (see Approver.Consume).
func (p *pass) record(ctx context.Context) audit.Record {
	r := audit.Record{
		Who: p.caller.identity.ID, OnBehalfOf: p.chain.Human(), Chain: p.chain.Digest(),
		What: p.action.Name, Resource: text(p.action.Resource.String(), maxResourceBytes+maxTextBytes), Args: p.action.ArgsDigest(),
		Sandbox: text(p.action.Sandbox, maxTextBytes), Isolation: text(p.action.Isolation, maxTextBytes), Detail: p.detail,
	}
	if n, err := authz.Units(p.action.Name, p.action.Context); err == nil && n > 1 { // a restart counts it again
		r.Detail = bounded(r.Detail, map[string]string{authz.AmountKey: strconv.FormatInt(n, 10)})
	}
	p.date(ctx, &r)
	r.ID = creto.NewUUIDAt(r.Stamp.Time())
	if d := p.decision; !d.Version.IsZero() {
		r.Decision = &audit.Decision{Kind: d.Kind.String(), Version: d.Version}
		for i, policy := range d.Policies {
			if i == maxPolicies {
				r.Decision.Reason = fmt.Sprintf("and %d more policies", len(d.Policies)-maxPolicies)
				break
			}
			r.Decision.Policies = append(r.Decision.Policies, audit.PolicyRef{ID: text(policy.ID, maxTextBytes), Digest: policy.Digest})
		}
	}
	if p.tainted != "" {
		r.Detail = bounded(r.Detail, map[string]string{taintKey: text(p.tainted, maxTextBytes/8)})
	}
	for _, answer := range p.answers {
		r.Consents = append(r.Consents, answer.Consent)
	}
	if p.consumed {
		if id, err := creto.ParseUUID(p.answers[0].Consent.ID); err == nil {
			r.ID = id
		}
	}
	return r
}

// date stamps the record with the present or, if the chain has ended since or
// the clock has gone away, with when it was last found in force: a receipt is
// verified at its stamp, and what was done is recorded whatever the clock does.
func (p *pass) date(ctx context.Context, r *audit.Record) {
	stamp, err := p.gate.clock.Now(context.WithoutCancel(ctx))
	if err != nil {
		if r.Stamp = p.stamp; p.stamp != (creto.Timestamp{}) { // else the log says why not
			r.Detail = bounded(map[string]string{"ended": "the clock could not be read"}, r.Detail)
		}
		return
	}
	r.Stamp = stamp
	if p.chain.Valid() && !stamp.Time().Before(p.chain.NotAfter()) {
		r.Stamp = p.stamp
		r.Detail = bounded(map[string]string{"ended": stamp.String()}, r.Detail)
	}
}

// reason returns what a record says of an error.
func reason(err error) string { return text(fault.Message(err), maxTextBytes) }

// text makes s fit for a record: cut to limit bytes, and valid UTF-8.
func text(s string, limit int) string {
	s = s[:min(len(s), limit)]
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	return s
}

// bounded joins what act says of itself with what gate says; gate's word wins.
func bounded(said, own map[string]string) map[string]string {
	if len(said) == 0 {
		return own
	}
	keys := make([]string, 0, len(said))
	for key := range said {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	detail := make(map[string]string, len(said)+len(own))
	for _, key := range keys[:min(len(keys), maxDetails)] {
		detail[text(key, maxTextBytes/8)] = text(said[key], maxTextBytes/2)
	}
	for key, value := range own {
		detail[key] = value
	}
	return detail
}
