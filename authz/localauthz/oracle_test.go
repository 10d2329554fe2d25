package localauthz_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/localauthz"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// oracle decides by the book: it asks cedar-go about everybody in the chain, one
// after the other, over all policies.
type oracle struct {
	set      *cedar.PolicySet
	policies map[cedar.PolicyID]oraclePolicy
}

type oraclePolicy struct {
	ref       authz.Policy
	forbid    bool
	approvers string
	timeout   time.Duration
	quorum    int
}

// newOracle reads policies that each have an @id.
func newOracle(text string) (*oracle, error) {
	list, err := cedar.NewPolicyListFromBytes("policies", []byte(text))
	if err != nil {
		return nil, err
	}
	o := &oracle{set: cedar.NewPolicySet(), policies: make(map[cedar.PolicyID]oraclePolicy)}
	for _, p := range list {
		annotations := p.Annotations()
		one := oraclePolicy{
			ref:    authz.Policy{ID: string(annotations["id"]), Digest: creto.DigestOf(p.MarshalCedar())},
			forbid: p.Effect() == cedar.Forbid, approvers: string(annotations["oversight"]),
		}
		if one.approvers != "" {
			one.quorum = 1
		}
		if annotations["quorum"] == "2" {
			one.quorum = 2
		}
		if timeout := annotations["timeout"]; timeout != "" {
			if one.timeout, err = time.ParseDuration(string(timeout)); err != nil {
				return nil, err
			}
		}
		o.policies[cedar.PolicyID(one.ref.ID)] = one
		o.set.Add(cedar.PolicyID(one.ref.ID), p)
	}
	return o, nil
}

// check is what Check must return, but for the version.
func (o *oracle) check(chain nhi.VerifiedChain, groups map[string][]string, r authz.Request) (authz.Decision, error) {
	if err := (creto.Action{Name: r.Action, Resource: r.Resource}).Validate(); err != nil {
		return authz.Decision{}, fault.AuthzInvalidRequest
	}
	fields, err := oracleFields(r.Context, 0)
	if err != nil {
		return authz.Decision{}, fault.AuthzInvalidRequest
	}
	deny := func(format string, args ...any) authz.Decision {
		return authz.Decision{Kind: authz.Deny, Reason: fmt.Sprintf(format, args...)}
	}
	if !chain.Valid() {
		return deny("the caller has no verified chain of delegation"), nil
	}
	if !chain.Covers(r.Action, r.Resource) {
		return deny("the delegation to %s does not include %s on %s", chain.Agent().Name, r.Action, r.Resource), nil
	}
	resource := cedar.NewEntityUID(types.EntityType("Creto::"+r.Resource.Type), types.String(r.Resource.ID))
	entities := types.EntityMap{resource: {UID: resource, Attributes: cedar.NewRecord(cedar.RecordMap{"id": types.String(r.Resource.ID)})}}
	kinds := map[creto.Kind]types.EntityType{creto.KindAgent: "Creto::Agent", creto.KindHuman: "Creto::Human"}
	for _, id := range chain.Principals() {
		uid := cedar.NewEntityUID(kinds[id.Kind], types.String(id.Name))
		parents := []cedar.EntityUID{cedar.NewEntityUID("Creto::Tenant", types.String(id.Tenant))}
		for _, g := range groups[id.Name] {
			parents = append(parents, cedar.NewEntityUID("Creto::Group", types.String(g)))
		}
		entities[uid] = types.Entity{UID: uid, Parents: cedar.NewEntityUIDSet(parents...), Attributes: cedar.NewRecord(cedar.RecordMap{
			"id": types.String(id.Name), "name": types.String(id.Name), "tenant": types.String(id.Tenant),
		})}
	}
	result := authz.Decision{Kind: authz.Allow}
	for _, id := range chain.Principals() {
		uid := cedar.NewEntityUID(kinds[id.Kind], types.String(id.Name))
		verdict, diagnostic := cedar.Authorize(o.set, entities, cedar.Request{
			Principal: uid, Action: cedar.NewEntityUID("Creto::Action", types.String(r.Action)), Resource: resource, Context: cedar.NewRecord(fields),
		})
		var reasons, failed []oraclePolicy
		for _, reason := range diagnostic.Reasons {
			reasons = append(reasons, o.policies[reason.PolicyID])
		}
		for _, e := range diagnostic.Errors {
			if p := o.policies[e.PolicyID]; p.forbid {
				failed = append(failed, p)
			}
		}
		byID := func(a, b oraclePolicy) int { return strings.Compare(a.ref.ID, b.ref.ID) }
		slices.SortFunc(reasons, byID)
		slices.SortFunc(failed, byID)
		switch {
		case len(failed) > 0:
			d := deny("policy %q forbids, and cannot be evaluated on this request", failed[0].ref.ID)
			d.Policies = []authz.Policy{failed[0].ref}
			return d, nil
		case verdict != cedar.Allow && len(reasons) > 0:
			d := deny("policy %q forbids %s on %s", reasons[0].ref.ID, r.Action, r.Resource)
			d.Policies = []authz.Policy{reasons[0].ref}
			return d, nil
		case verdict != cedar.Allow:
			return deny("no policy permits %s %q to %s on %s; this line would: %s", id.Kind, id.Name, r.Action, r.Resource, localauthz.PermitFor(id, r)), nil
		}
		if result.Kind == authz.RequiresOversight {
			continue
		}
		free := false
		for _, p := range reasons {
			if !slices.Contains(result.Policies, p.ref) {
				result.Policies = append(result.Policies, p.ref)
			}
			free = free || p.given(r.Consents) >= p.quorum
		}
		if !free {
			first := reasons[0]
			result = authz.Decision{
				Kind: authz.RequiresOversight, Approvers: first.approvers, Timeout: first.timeout, Quorum: first.quorum, Policies: []authz.Policy{first.ref},
				Reason: fmt.Sprintf("policy %q asks for the consent of %s", first.ref.ID, first.approvers),
			}
			if first.quorum > 1 {
				result.Reason = fmt.Sprintf("policy %q asks for the consent of %d of %s; %d more must give theirs", first.ref.ID, first.quorum, first.approvers, first.quorum-first.given(r.Consents))
			}
		}
	}
	return result, nil
}

// given counts the consents to a policy.
func (p oraclePolicy) given(consents []authz.Consent) (n int) {
	for _, c := range consents {
		if c.For(p.ref) {
			n++
		}
	}
	return n
}

// oracleFields turns a request's context into Cedar values as the contract says:
// integers are Long, fractions decimal, null is dropped.
func oracleFields(m map[string]any, depth int) (cedar.RecordMap, error) {
	fields := make(cedar.RecordMap, len(m))
	for key, value := range m {
		if value == nil {
			continue
		}
		v, err := oracleValue(value, depth+1)
		if err != nil {
			return nil, err
		}
		fields[types.String(key)] = v
	}
	return fields, nil
}

func oracleValue(value any, depth int) (types.Value, error) {
	if depth > 16 {
		return nil, errors.New("too deep")
	}
	switch v := value.(type) {
	case string:
		return types.String(strings.ToValidUTF8(v, "\uFFFD")), nil
	case bool:
		return types.Boolean(v), nil
	case int:
		return types.Long(v), nil
	case int64:
		return types.Long(v), nil
	case json.Number:
		return oracleNumber(v.String())
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return types.Long(int64(v)), nil
		}
		return oracleNumber(strconv.FormatFloat(v, 'f', -1, 64))
	case map[string]any:
		fields, err := oracleFields(v, depth)
		return cedar.NewRecord(fields), err
	case []any:
		set := make([]types.Value, 0, len(v))
		for _, item := range v {
			if item == nil {
				continue
			}
			converted, err := oracleValue(item, depth+1)
			if err != nil {
				return nil, err
			}
			set = append(set, converted)
		}
		return cedar.NewSet(set...), nil
	}
	return nil, fmt.Errorf("a %T", value)
}

func oracleNumber(text string) (types.Value, error) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return types.Long(n), nil
	}
	_, fraction, isFraction := strings.Cut(text, ".")
	d, err := types.ParseDecimal(text)
	if !isFraction || len(fraction) > 4 || err != nil {
		return nil, errors.Join(err, errors.New("not representable"))
	}
	return d, nil
}
