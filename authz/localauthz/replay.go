package localauthz

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/authz/localauthz/program"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// Unknown is what a decision would be that depends on what its record does not
// say.
const Unknown = "unknown"

// Past is who acted in a record: the chain as it was, of people in the groups
// that they are in now, which the record does not say.
type Past struct {
	Principals []Principal
	Scopes     []nhi.Scope // of the links
}

// Replayed is one recorded decision under other policies. Its JSON form is
// stable.
type Replayed struct {
	// Was is what was decided: allow, deny, requires_oversight (also where the
	// consent was given), quota_exceeded or rate_limited.
	Was string `json:"was"`
	// Would is what would be decided, or unknown. A quota that was spent stays
	// so, where policies still allow.
	Would string `json:"would"`
	// By are the policies that would decide, for an answer that is known.
	By []string `json:"by,omitempty"`
	// Missing is what would decide and the record does not say, as in
	// context.body.amount, or another reason why it is unknown.
	Missing []string `json:"missing,omitempty"`
}

// Same reports whether the decision would be the same.
func (r Replayed) Same() bool { return r.Was == r.Would }

// Decided reports whether a record has a decision that can be replayed: those of
// actions have.
func Decided(r audit.Record) bool {
	_, action := creto.ResourceType(r.What)
	return action && r.Decision != nil && r.Decision.Kind != ""
}

// Replay decides again on a record, which is Decided. What of the request's
// context the record says is known; a decision that depends on more is Unknown,
// never guessed.
func (p *Policies) Replay(r audit.Record, past Past) Replayed {
	out := Replayed{Was: r.Decision.Kind, Would: Unknown}
	if len(r.Consents) > 0 && out.Was == authz.Allow.String() {
		out.Was = authz.RequiresOversight.String()
	}
	s, err := imagine(past.Principals)
	if err != nil {
		out.Missing = []string{"the chain"}
		return out
	}
	kind, id, _ := strings.Cut(r.Resource, "::")
	request := authz.Request{Action: r.What, Resource: creto.Resource{Type: kind, ID: id}}
	number, err := wellFormed(&request)
	if err != nil {
		out.Missing = []string{"the resource: " + fault.Message(err)}
		return out
	}
	if slices.ContainsFunc(past.Scopes, func(s nhi.Scope) bool { return !s.Covers(r.What, r.Resource) }) {
		out.Would = authz.Deny.String()
		return out
	}
	request.Context = make(map[string]any)
	known := contextOf(r, request.Context)
	replay := replay{session: s, snapshot: p.book.of(past.Principals[len(past.Principals)-1].ID.Tenant), number: number, request: &request, known: known}
	all := replay.decide()
	if len(all) != 1 {
		out.Missing = replay.missing
		return out
	}
	if out.Would = all[0].String(); all[0] == authz.Allow && (out.Was == authz.QuotaExceeded.String() || out.Was == authz.RateLimited.String()) {
		out.Would = out.Was
	}
	for _, number := range replay.deciding {
		one := replay.snapshot.policies[number]
		if all[0] == authz.RequiresOversight && one.approvers == "" || slices.Contains(out.By, one.ref.ID) {
			continue
		}
		out.By = append(out.By, one.ref.ID)
	}
	return out
}

// The details of records that say what was in the context; see packages gateway
// and gate.
const (
	detailMethod    = "method"
	detailDelivery  = "delivery"
	detailTaint     = "taint"
	detailRisk      = "risk"
	detailDecidedOn = "decided_on"
	withoutBody     = "method and path"
)

// contextOf puts into context what a record says of it, and returns the paths
// that are known: also those that were surely absent.
func contextOf(r audit.Record, context map[string]any) map[string]bool {
	known := map[string]bool{"context.isolation": true, "context.taint": true} // gate says so itself, and nobody else can
	set := func(name string, value any) {
		known["context."+name] = true
		context[name] = value
	}
	if r.Isolation != "" {
		set("isolation", r.Isolation)
	}
	if taint := r.Detail[detailTaint]; taint != "" {
		set("taint", taint)
	}
	_, id, _ := strings.Cut(r.Resource, "::")
	switch r.What {
	case creto.CallModel:
		if risk, err := strconv.ParseInt(r.Detail[detailRisk], 10, 64); err == nil {
			set("risk", risk)
		}
	case creto.HTTPRequest:
		if u, err := url.Parse(id); err == nil {
			set("host", u.Host)
			set("path", u.Path)
		}
		if method := r.Detail[detailMethod]; method != "" {
			set("method", method)
		}
		if r.Detail[detailDecidedOn] == withoutBody {
			known["context.body"] = true
		}
	case creto.NetworkEgress:
		set("host", id)
	case creto.AccessSecret:
		if delivery := r.Detail[detailDelivery]; delivery != "" {
			set("delivery", delivery)
		}
	}
	return known
}

// replay is one decision whose context is known in part.
type replay struct {
	session  *session
	snapshot *snapshot
	number   int
	request  *authz.Request
	known    map[string]bool
	missing  []string
	deciding []int32 // if there is one answer
}

// unknown reports whether the record does not say what is at a path.
func (r *replay) unknown(path []string) bool {
	if path[0] != "context" {
		return false
	}
	if len(path) == 1 {
		return true // only parts of it are known
	}
	return !r.known["context."+path[1]]
}

// decide returns what the decision may be.
func (r *replay) decide() []authz.Kind {
	mayDeny, mayAsk := false, false
	every := []bool{true, true} // everybody may be permitted; everybody may be allowed
	surely := false             // somebody is surely denied
	for i := range r.session.principals {
		kinds, deciding := r.principal(i)
		denied, asked, allowed := slices.Contains(kinds, authz.Deny), slices.Contains(kinds, authz.RequiresOversight), slices.Contains(kinds, authz.Allow)
		mayDeny, mayAsk = mayDeny || denied, mayAsk || asked
		every[0] = every[0] && (asked || allowed)
		every[1] = every[1] && allowed
		if len(kinds) == 1 && denied && !surely {
			surely, r.deciding = true, deciding
		}
		if !surely {
			r.deciding = append(r.deciding, deciding...)
		}
	}
	var all []authz.Kind
	if mayDeny {
		all = append(all, authz.Deny)
	}
	if every[0] && mayAsk {
		all = append(all, authz.RequiresOversight)
	}
	if every[1] {
		all = append(all, authz.Allow)
	}
	return all
}

// principal returns what may come of one principal, and what decides if that is
// one thing.
func (r *replay) principal(i int) (kinds []authz.Kind, deciding []int32) {
	env, candidates := r.session.scope(r.snapshot, i, r.number, r.request)
	var forbidding, permitting, free, asking []int32 // surely
	mayForbid, mayFree, mayAsk := false, false, false
	for _, number := range candidates {
		one := r.snapshot.policies[number]
		o := r.snapshot.program.PossibleOf(int(number), env, r.unknown)
		if o&(o-1) != 0 {
			r.misses(number)
		}
		switch {
		case one.forbid && o&program.MayBeUnsatisfied == 0:
			forbidding = append(forbidding, number)
		case one.forbid:
			mayForbid = mayForbid || o != program.MayBeUnsatisfied
		case o == program.MayBeSatisfied && one.approvers == "":
			free, permitting = append(free, number), append(permitting, number)
		case o == program.MayBeSatisfied:
			asking, permitting = append(asking, number), append(permitting, number)
		case o&program.MayBeSatisfied != 0 && one.approvers == "":
			mayFree = true
		case o&program.MayBeSatisfied != 0:
			mayAsk = true
		}
	}
	if len(forbidding) > 0 {
		return []authz.Kind{authz.Deny}, forbidding[:1]
	}
	if mayForbid || len(permitting) == 0 {
		kinds = append(kinds, authz.Deny)
	}
	if len(free) == 0 && (len(asking) > 0 || mayAsk) {
		kinds = append(kinds, authz.RequiresOversight)
	}
	if len(free) > 0 || mayFree {
		kinds = append(kinds, authz.Allow)
	}
	return kinds, permitting
}

// misses notes what of a policy's conditions the record does not say.
func (r *replay) misses(number int32) {
	for _, c := range r.snapshot.program.Source(int(number)).Conditions {
		for _, n := range program.Paths(c.Body) {
			path := program.PathOf(n)
			if name := strings.Join(path, "."); r.unknown(path) && !slices.Contains(r.missing, name) {
				r.missing = append(r.missing, name)
			}
		}
	}
}
