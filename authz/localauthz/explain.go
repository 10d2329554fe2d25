package localauthz

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cedar-policy/cedar-go/types"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/localauthz/program"
	"creto.dev/fault"
)

// The bounds of an explanation.
const (
	maxExplained      = 200 // policies of one principal
	maxExplainedText  = 400 // bytes of a condition
	maxExplainedValue = 160 // bytes of a value
	maxChanges        = 16
	maxNearMisses     = 3 // permits that a principal nearly has
)

// Explain decides as Peek does and says how it came to that. It evaluates a
// second time, slowly, under the same policies; checks pay nothing for it.
//
// Errors: as Peek.
func (a *Authorizer) Explain(ctx context.Context, s authz.Session, r authz.Request) (authz.Decision, authz.Explanation, error) {
	const op fault.Op = "localauthz.Explain"
	own, ok := s.(*session)
	if !ok {
		return authz.Decision{}, authz.Explanation{}, foreign(op)
	}
	for {
		snapshot := own.under(a.current.Load()).snapshot
		d, err := a.Peek(ctx, s, r)
		if err != nil {
			return d, authz.Explanation{}, err
		}
		if d.Version != snapshot.version { // they changed in between
			if err := ctx.Err(); err != nil {
				return authz.Decision{}, authz.Explanation{}, fault.Wrap(op, err)
			}
			continue
		}
		e := own.explain(snapshot, creto.ActionNumber(r.Action), &r)
		e.Changes = append(e.Changes, changesOf(d, own.chain.Human())...)
		return d, e, nil
	}
}

// explain says what the policies and the links' scopes come to on a request that
// is well formed.
func (s *session) explain(snapshot *snapshot, number int, r *authz.Request) authz.Explanation {
	var e authz.Explanation
	kind := authz.Allow
	links, err := linksOf(s, r)
	if e.Links = links; err != nil || len(s.principals) == 0 {
		return authz.Explanation{Decision: authz.Deny.String(), Changes: []authz.Change{{Kind: authz.ChangeScope, Text: "there must be a verified chain of delegation"}}}
	}
	for _, l := range links {
		if !l.Covers {
			kind = authz.Deny
			e.Changes = append(e.Changes, authz.Change{Kind: authz.ChangeScope, Principal: l.To, Text: fmt.Sprintf(
				"the delegation from %s to %s must include %s on %s; it includes %s on %s", l.From, l.To, r.Action, r.Resource, listed(l.Actions), listed(l.Resources))})
		}
	}
	for i := range s.principals {
		one, decided := s.explainPrincipal(snapshot, i, number, r)
		e.Principals = append(e.Principals, one)
		switch {
		case decided == authz.Deny:
			kind = authz.Deny
			e.Changes = append(e.Changes, s.wayOut(i, one, r)...)
		case decided == authz.RequiresOversight && kind == authz.Allow:
			kind = decided
		}
	}
	if len(e.Changes) > maxChanges {
		e.Changes = e.Changes[:maxChanges]
	}
	e.Decision = kind.String()
	return e
}

func listed(texts []string) string {
	if len(texts) == 0 {
		return "nothing"
	}
	return strings.Join(texts, ", ")
}

// nameOf names a principal as people do.
func nameOf(id creto.ID) string { return string(id.Kind) + ":" + id.Name }

// linksOf returns the links of a session's chain; none for principals that have
// no chain.
func linksOf(s *session, r *authz.Request) ([]authz.ExplainedLink, error) {
	if !s.chain.Valid() {
		if s.imagined {
			return nil, nil
		}
		return nil, fault.New("localauthz.linksOf", fault.AuthzInvalidRequest, "there is no chain")
	}
	var links []authz.ExplainedLink
	for _, signed := range s.chain.Links() {
		link, err := signed.Link()
		if err != nil {
			return nil, err
		}
		one := authz.ExplainedLink{From: nameOf(link.Issuer), To: nameOf(link.Subject), Covers: link.Scope.Covers(r.Action, r.Resource.String())}
		if !one.Covers {
			one.Actions, one.Resources = link.Scope.Actions, link.Scope.Resources
		}
		links = append(links, one)
	}
	return links, nil
}

// explainPrincipal says what the policies come to for one of the chain.
func (s *session) explainPrincipal(snapshot *snapshot, i, number int, r *authz.Request) (authz.ExplainedPrincipal, authz.Kind) {
	p := &s.principals[i]
	env, candidates := s.scope(snapshot, i, number, r)
	e := authz.ExplainedPrincipal{Principal: nameOf(p.id), Groups: s.groups[i], Policies: []authz.ExplainedPolicy{}}
	var forbids, failed, permits, free []int32
	for _, number := range candidates {
		one := snapshot.policies[number]
		switch verdict := snapshot.program.Evaluate(int(number), env); {
		case one.forbid && verdict == program.Errored:
			failed = append(failed, number)
		case one.forbid && verdict == program.Satisfied:
			forbids = append(forbids, number)
		case !one.forbid && verdict == program.Satisfied:
			permits = append(permits, number)
			if one.missing(r.Consents) == 0 {
				free = append(free, number)
			}
		}
	}
	var kind authz.Kind
	var deciding []int32
	switch {
	case len(failed) > 0:
		kind, deciding = authz.Deny, failed[:1]
	case len(forbids) > 0:
		kind, deciding = authz.Deny, forbids[:1]
	case len(permits) == 0:
		kind = authz.Deny
	case len(free) == 0:
		kind, deciding = authz.RequiresOversight, permits[:1]
	default:
		kind, deciding = authz.Allow, permits
	}
	e.Decision = kind.String()
	// Those that decide are never left out.
	slices.SortStableFunc(candidates, func(a, b int32) int {
		return cmp.Compare(btoi(slices.Contains(deciding, b)), btoi(slices.Contains(deciding, a)))
	})
	for _, number := range candidates[:min(len(candidates), maxExplained)] {
		e.Policies = append(e.Policies, snapshot.explainPolicy(int(number), env, slices.Contains(deciding, number)))
	}
	slices.SortFunc(e.Policies, func(a, b authz.ExplainedPolicy) int { return strings.Compare(a.ID, b.ID) })
	e.More = max(0, len(candidates)-maxExplained)
	return e, kind
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// scope returns the request as it is for one of the chain, and the policies in
// scope of it.
func (s *session) scope(snapshot *snapshot, i, number int, r *authz.Request) (*program.Env, []int32) {
	resource := types.EntityUID{Type: actions[number].resourceType, ID: types.String(r.Resource.ID)}
	env := &program.Env{Principal: s.principals[i].entity.UID, Action: actions[number].uid, Resource: resource, Entities: s, Itself: true, Fields: r.Context}
	var above []types.EntityUID
	for _, p := range s.principals {
		if p.entity.UID == resource {
			env.Itself, above = false, p.parents
		}
	}
	return env, snapshot.program.InScope(types.Request{Principal: env.Principal, Action: env.Action, Resource: resource}, s.principals[i].parents, nil, above)
}

var (
	verdictNames = [...]string{program.Unsatisfied: "unsatisfied", program.Satisfied: "satisfied", program.Errored: "error"}
	truthNames   = [...]string{program.Unsatisfied: "false", program.Satisfied: "true", program.Errored: "error"}
)

// explainPolicy says what one policy came to on a request in its scope.
func (s *snapshot) explainPolicy(number int, env *program.Env, decides bool) authz.ExplainedPolicy {
	one := s.policies[number]
	verdict := s.program.Evaluate(number, env)
	e := authz.ExplainedPolicy{
		ID: one.ref.ID, File: one.place.file, Line: one.place.position.Line, Column: one.place.position.Column,
		Effect: "permit", Result: verdictNames[verdict], Decides: decides, Asks: one.approvers,
	}
	if one.forbid {
		e.Effect = "forbid"
	}
	for _, p := range partsOf(one.place, s.program.Source(number)) {
		result := p.condition.Evaluate(env)
		holds := result == program.Satisfied && !p.unless || result == program.Unsatisfied && p.unless
		if verdict != program.Satisfied && holds {
			continue
		}
		c := authz.ExplainedCondition{
			Text: cut(oneLine(p.text), maxExplainedText), Line: p.line, Column: p.column, Unless: p.unless, Result: truthNames[result], Error: p.condition.Mistake(env),
		}
		for _, read := range p.condition.Reads(env) {
			c.Reads = append(c.Reads, authz.ExplainedValue{Name: read.Name(), Value: shown(read)})
			if read.Value == nil && strings.Contains(c.Error, "does not have the attribute") {
				c.Error = "the request has no " + read.Name()
			}
		}
		switch {
		case !one.forbid && !holds:
			c.Needs = cut(needs(p, true), maxExplainedText)
		case one.forbid && holds:
			c.Needs = cut(needs(p, false), maxExplainedText)
		}
		e.Conditions = append(e.Conditions, c)
		if verdict == program.Errored && result == program.Errored {
			break // what follows was not looked at
		}
	}
	return e
}

// oneLine writes a condition that goes over lines in one.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// cut bounds a text, at the end of a character.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit] + "…"
}

// credentialWords are those by which the name of an attribute says that it holds
// a credential.
var credentialWords = []string{"auth", "cookie", "credential", "key", "pass", "pin", "secret", "session", "signature", "token"}

// shown returns a value as an explanation has it.
func shown(r program.Read) string {
	if r.Value == nil {
		return "absent"
	}
	if r.Path[0] == "context" {
		for _, name := range r.Path[1:] {
			name = strings.ToLower(name)
			if slices.ContainsFunc(credentialWords, func(word string) bool { return strings.Contains(name, word) }) && name != "max_tokens" {
				return "***"
			}
		}
		switch r.Value.(type) {
		case types.Record: // its attributes may be credentials
			return "a record"
		}
	}
	return cut(valueText(r.Value), maxExplainedValue)
}

// valueText writes a value in Cedar.
func valueText(v types.Value) string { return string(v.MarshalCedar()) }

// wayOut returns what would have a principal permitted that is denied.
func (s *session) wayOut(i int, e authz.ExplainedPrincipal, r *authz.Request) []authz.Change {
	var changes []authz.Change
	for _, p := range e.Policies {
		if p.Effect != "forbid" || p.Result == "unsatisfied" {
			continue
		}
		text := fmt.Sprintf("%s at %s:%d forbids it", quoteID(p.ID), p.File, p.Line)
		switch n := len(p.Conditions); {
		case p.Result == "error" && n > 0:
			last := p.Conditions[n-1]
			text = fmt.Sprintf("%s at %s:%d forbids what it cannot be evaluated on: %s", quoteID(p.ID), p.File, last.Line, last.Error)
		case n > 0:
			var ends []string
			for _, c := range p.Conditions {
				ends = append(ends, c.Needs)
			}
			text += "; instead, " + strings.Join(ends, ", or ")
		}
		changes = append(changes, authz.Change{Kind: authz.ChangeForbid, Principal: e.Principal, Policy: p.ID, Text: text})
	}
	if slices.ContainsFunc(e.Policies, func(p authz.ExplainedPolicy) bool { return p.Effect == "permit" && p.Result == "satisfied" }) {
		return changes
	}
	near := slices.DeleteFunc(slices.Clone(e.Policies), func(p authz.ExplainedPolicy) bool { return p.Effect != "permit" })
	slices.SortStableFunc(near, func(a, b authz.ExplainedPolicy) int { return cmp.Compare(len(a.Conditions), len(b.Conditions)) })
	for _, p := range near[:min(len(near), maxNearMisses)] {
		var missing []string
		for _, c := range p.Conditions {
			missing = append(missing, c.Needs)
		}
		text := fmt.Sprintf("%s: then %s permits it", strings.Join(missing, ", and "), quoteID(p.ID))
		if p.Asks != "" {
			text += ", with the consent of " + p.Asks
		}
		changes = append(changes, authz.Change{Kind: authz.ChangeCondition, Principal: e.Principal, Policy: p.ID, Text: text})
	}
	return append(changes, authz.Change{
		Kind: authz.ChangePermit, Principal: e.Principal, Text: "a policy must permit it to " + e.Principal, Line: PermitFor(s.principals[i].id, *r),
	})
}

func quoteID(id string) string { return fmt.Sprintf("policy %q", id) }

// short writes a duration without parts that are zero.
func short(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// changesOf returns what a decision that is no denial waits for.
func changesOf(d authz.Decision, human creto.ID) []authz.Change {
	switch d.Kind {
	case authz.RequiresOversight:
		who := "a member of " + d.Approvers + ", who is not in the chain,"
		if d.Approvers == authz.Principal {
			who = nameOf(human) + ", at the root of the chain,"
		}
		if d.Quorum > 1 {
			who = fmt.Sprintf("%d different members of %s, none of them in the chain,", d.Quorum, d.Approvers)
		}
		text := who + " must consent"
		if d.Timeout > 0 {
			text += " within " + short(d.Timeout)
		}
		return []authz.Change{{Kind: authz.ChangeConsent, Text: text, Policy: d.Policies[0].ID}}
	case authz.QuotaExceeded:
		return []authz.Change{{Kind: authz.ChangeQuota, Text: fmt.Sprintf("%d of %d are used; the quota resets at %s", d.Used, d.Limit, d.ResetAt.UTC().Format(time.RFC3339))}}
	case authz.RateLimited:
		return []authz.Change{{Kind: authz.ChangeQuota, Text: fmt.Sprintf("it was too often of late; again after %v", d.RetryAfter)}}
	}
	return nil
}
