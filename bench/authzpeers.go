package main

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/casbin/casbin/v3"
	"github.com/casbin/casbin/v3/model"
	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"creto.dev/authz"
)

// contestant is a peer on an estate.
type contestant struct {
	who, note string
	do        decider
}

// benchPeers measures the other engines on an estate, after all agreed on what is
// allowed: also on what is forbidden, and on what nobody permits.
func benchPeers(ctx context.Context, r *report, e *estate, mine decider) error {
	peers, err := peersOf(ctx, e)
	if err != nil {
		return err
	}
	if err := agree(e, append([]contestant{{who: creto, do: mine}}, peers...)); err != nil {
		return err
	}
	for _, p := range peers {
		for _, pattern := range []string{"hot", "spread"} {
			probes := e.probes(pattern)
			begin := time.Now()
			if _, err := p.do(probes[0]); err != nil {
				return err
			}
			b := contest("session/"+e.setting()+"/"+pattern+"/quota=off", p.who, p.note, probes, p.do)
			b.n = min(checkTimes, max(10, int(peerTime/max(time.Since(begin), time.Microsecond))))
			if err := measureAll(ctx, r, []bench{b}); err != nil {
				return err
			}
		}
	}
	return nil
}

// agree fails if two contestants answer a request differently.
func agree(e *estate, all []contestant) error {
	random := rand.New(rand.NewPCG(5, 6))
	count := map[bool]int{}
	for i := range agreeProbes {
		p := e.all[random.IntN(len(e.all))]
		switch i % 4 {
		case 1: // perhaps of other teams
			other := e.rules[random.IntN(len(e.rules))]
			p.id, p.request = -1, authz.Request{Action: other.action, Resource: other.resource}
		case 2: // forbidden to the last principal of a long chain
			resources := len(e.rules) / rulesPerResource
			p.id, p.request = -1, e.request((e.team(p.chain, 0)-1+resources)%resources*rulesPerResource, i)
		case 3: // that no rule names
			p.id, p.request.Resource.ID = -1, fmt.Sprintf("nothing-%d", i)
		}
		want, err := all[0].do(p)
		if err != nil {
			return err
		}
		count[want]++
		for _, c := range all[1:] {
			if got, err := c.do(p); err != nil || got != want {
				return fmt.Errorf("%s says %v to %s on %s by %v, %s %v (%w)", creto, want, p.request.Action, p.request.Resource, principals(p.chain, e.depth), c.who, got, err)
			}
		}
	}
	if count[true] < agreeProbes/20 || count[false] < agreeProbes/20 {
		return fmt.Errorf("only %v of %d requests were compared", count, agreeProbes)
	}
	return nil
}

func peersOf(ctx context.Context, e *estate) ([]contestant, error) {
	plain, indexed, err := cedarPeers(e)
	if err != nil {
		return nil, err
	}
	opa, err := opaPeer(ctx, e)
	if err != nil {
		return nil, err
	}
	casbin, err := casbinPeer(e)
	return []contestant{
		{"cedar-go", "one Authorize for each principal, entities and requests built before", plain},
		{"cedar-go-indexed", "as cedar-go, on the policies that an index by team, action and resource picks", indexed},
		{"opa", "a prepared query that looks rules up in data by team, action and resource; input parsed before", opa},
		{"casbin", "one Enforce for each principal; RBAC with keyMatch", casbin},
	}, err
}

// prepared returns what make makes of a probe: before, for those of the estate.
func prepared[T any](e *estate, make func(probe) (T, error)) (func(probe) (T, error), error) {
	var ready []T
	for _, p := range e.all {
		t, err := make(p)
		if err != nil {
			return nil, err
		}
		ready = append(ready, t)
	}
	return func(p probe) (T, error) {
		if p.id >= 0 {
			return ready[p.id], nil
		}
		return make(p)
	}, nil
}

// candidates are policies that an index picked.
type candidates [2]map[cedar.PolicyID]*cedar.Policy

// All implements cedar.PolicyIterator.
func (c candidates) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for _, some := range c {
			for id, p := range some {
				if !yield(id, p) {
					return
				}
			}
		}
	}
}

// cedarPeers returns deciders by the bare engine, on all policies and on candidates.
func cedarPeers(e *estate) (plain, indexed decider, err error) {
	set, err := cedar.NewPolicySetFromBytes("bench.cedar", []byte(e.cedarText("")))
	if err != nil {
		return nil, nil, err
	}
	type place struct { // of policies for a type the resource has no id
		team             int
		action, resource string
	}
	index := make(map[place]map[cedar.PolicyID]*cedar.Policy)
	for id, p := range set.All() {
		var n int
		if _, err := fmt.Sscanf(string(id), "policy%d", &n); err != nil {
			return nil, nil, err
		}
		r := e.rules[n]
		at := place{r.team, r.action, r.resource.String()}
		if r.prefix {
			at.resource = r.resource.Type
		}
		if index[at] == nil {
			index[at] = make(map[cedar.PolicyID]*cedar.Policy)
		}
		index[at][id] = p
	}
	entities := make(types.EntityMap)
	for name, team := range e.groups() {
		kind := types.EntityType("Creto::Agent")
		if strings.HasPrefix(name, "human-") {
			kind = "Creto::Human"
		}
		uid := cedar.NewEntityUID(kind, types.String(name))
		entities[uid] = types.Entity{UID: uid, Parents: cedar.NewEntityUIDSet(cedar.NewEntityUID("Creto::Group", types.String(team)))}
	}
	build := func(p probe) (built []cedar.Request) {
		resource := cedar.NewEntityUID(types.EntityType("Creto::"+p.request.Resource.Type), types.String(p.request.Resource.ID))
		entities[resource] = types.Entity{UID: resource, Attributes: cedar.NewRecord(cedar.RecordMap{"id": types.String(p.request.Resource.ID)})}
		for i, name := range principals(p.chain, e.depth) {
			kind := types.EntityType("Creto::Agent")
			if i == 0 {
				kind = "Creto::Human"
			}
			built = append(built, cedar.Request{
				Principal: cedar.NewEntityUID(kind, types.String(name)), Resource: resource,
				Action: cedar.NewEntityUID("Creto::Action", types.String(p.request.Action)),
			})
		}
		return built
	}
	requests, err := prepared(e, func(p probe) ([]cedar.Request, error) { return build(p), nil })
	if err != nil {
		return nil, nil, err
	}
	each := func(p probe, policies func(principal int) cedar.PolicyIterator) (bool, error) {
		list, err := requests(p)
		if err != nil {
			return false, err
		}
		for i, request := range list {
			if decision, _ := cedar.Authorize(policies(i), entities, request); decision != cedar.Allow {
				return false, nil
			}
		}
		return true, nil
	}
	plain = func(p probe) (bool, error) {
		return each(p, func(int) cedar.PolicyIterator { return set })
	}
	indexed = func(p probe) (bool, error) {
		resource := p.request.Resource.String()
		return each(p, func(principal int) cedar.PolicyIterator {
			team := e.team(p.chain, principal)
			return candidates{index[place{team, p.request.Action, resource}], index[place{team, p.request.Action, p.request.Resource.Type}]}
		})
	}
	return plain, indexed, nil
}

// regoText looks everything up in data.
const regoText = `package creto

default allow := false

allow if {
	not forbidden
	every p in input.principals { permitted(p) }
}

permitted(p) if applies(data.permits[data.groups[p]][input.action])

forbidden if {
	some p in input.principals
	applies(data.forbids[data.groups[p]][input.action])
}

applies(rules) if rules.exact[input.resource]

applies(rules) if {
	some prefix in rules.prefixes
	startswith(input.resource, prefix)
}
`

func opaPeer(ctx context.Context, e *estate) (decider, error) {
	data := make(map[string]any)
	object := func(in any, key string) map[string]any {
		m, _ := in.(map[string]any)
		if m[key] == nil {
			m[key] = map[string]any{}
		}
		next, _ := m[key].(map[string]any)
		return next
	}
	for name, team := range e.groups() {
		object(data, "groups")[name] = team
	}
	for _, r := range e.rules {
		kind := "permits"
		if r.forbid {
			kind = "forbids"
		}
		rules := object(object(object(data, kind), fmt.Sprintf("team-%d", r.team)), r.action)
		if r.prefix {
			list, _ := rules["prefixes"].([]any)
			rules["prefixes"] = append(list, r.resource.String())
		} else {
			object(rules, "exact")[r.resource.String()] = true
		}
	}
	query, err := rego.New(rego.Query("data.creto.allow"), rego.Module("creto.rego", regoText), rego.Store(inmem.NewFromObject(data))).PrepareForEval(ctx)
	if err != nil {
		return nil, err
	}
	input, err := prepared(e, func(p probe) (ast.Value, error) {
		return ast.InterfaceToValue(map[string]any{"principals": principals(p.chain, e.depth), "action": p.request.Action, "resource": p.request.Resource.String()})
	})
	if err != nil {
		return nil, err
	}
	return func(p probe) (bool, error) {
		v, err := input(p)
		if err != nil {
			return false, err
		}
		result, err := query.Eval(ctx, rego.EvalParsedInput(v))
		return result.Allowed(), err
	}, nil
}

// casbinModel is role-based access with patterns; what is cheap is compared first.
const casbinModel = `
[request_definition]
r = sub, obj, act
[policy_definition]
p = sub, obj, act, eft
[role_definition]
g = _, _
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = r.act == p.act && keyMatch(r.obj, p.obj) && g(r.sub, p.sub)
`

func casbinPeer(e *estate) (decider, error) {
	m, err := model.NewModelFromString(casbinModel)
	if err != nil {
		return nil, err
	}
	enforcer, err := casbin.NewEnforcer(m)
	if err != nil {
		return nil, err
	}
	var policies, roles [][]string
	for _, r := range e.rules {
		effect, resource := "allow", r.resource.String()
		if r.forbid {
			effect = "deny"
		}
		if r.prefix {
			resource += "*"
		}
		policies = append(policies, []string{fmt.Sprintf("team-%d", r.team), resource, r.action, effect})
	}
	for name, team := range e.groups() {
		roles = append(roles, []string{name, team})
	}
	if _, err := enforcer.AddPolicies(policies); err != nil {
		return nil, err
	}
	if _, err := enforcer.AddGroupingPolicies(roles); err != nil {
		return nil, err
	}
	return func(p probe) (bool, error) {
		resource := p.request.Resource.String()
		for _, name := range principals(p.chain, e.depth) {
			if ok, err := enforcer.Enforce(name, resource, p.request.Action); err != nil || !ok {
				return false, err
			}
		}
		return true, nil
	}, nil
}
