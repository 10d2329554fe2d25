package localauthz

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"

	"creto.dev"
	"creto.dev/authz/localauthz/program"
	"creto.dev/fault"
)

// Description says in words what one policy does. Its JSON form is stable.
type Description struct {
	ID     string `json:"id"`
	Tenant string `json:"tenant"`
	File   string `json:"file"`
	Line   int    `json:"line"`
	Effect string `json:"effect"` // permit or forbid
	// Asks is the group of @oversight, and Timeout how long it is waited for, as
	// in 30m; "" if the policy does not say.
	Asks    string `json:"asks,omitempty"`
	Timeout string `json:"timeout,omitempty"`
	// Quorum is how many of them must consent.
	Quorum int `json:"quorum,omitempty"`
	// Who, What and On are the scope.
	Who  string   `json:"who"`
	What []string `json:"what"`
	On   string   `json:"on"`
	// If are the conditions, all of which must hold.
	If []Clause `json:"if,omitempty"`
	// Text is the policy as it is written, and Digest that of Cedar's form of it,
	// which records and consents name.
	Text   string       `json:"text"`
	Digest creto.Digest `json:"digest"`
}

// Clause is one condition of a policy.
type Clause struct {
	Words  string `json:"words"`
	Text   string `json:"text"` // in Cedar
	Line   int    `json:"line"`
	Column int    `json:"column"`
	// Unless says that Text must not hold.
	Unless bool `json:"unless,omitempty"`
}

// Describe returns what the policies of an id do: one for each tenant that has
// it.
//
// Errors: NotFound (Permanent), naming ids like it.
func (p *Policies) Describe(id string) ([]Description, error) {
	var found []Description
	var near []string
	p.each(func(tenant string, s *snapshot, number int, one *policy) {
		switch {
		case one.ref.ID == id:
			found = append(found, describe(tenant, s, number))
		case strings.Contains(one.ref.ID, id) || distance(one.ref.ID, cut(id, 100)) <= 2:
			near = append(near, one.ref.ID)
		}
	})
	if len(found) > 0 {
		return found, nil
	}
	const op, most = fault.Op("localauthz.Describe"), 10
	if len(near) == 0 {
		return nil, fault.New(op, fault.NotFound, "there is no policy %q in %s", id, p.dir)
	}
	return nil, fault.New(op, fault.NotFound, "there is no policy %q in %s; there is %s", id, p.dir, strings.Join(near[:min(len(near), most)], ", "))
}

// IDs returns the ids of all policies, in order, each once.
func (p *Policies) IDs() []string {
	var ids []string
	p.each(func(_ string, _ *snapshot, _ int, one *policy) { ids = append(ids, one.ref.ID) })
	slices.Sort(ids)
	return slices.Compact(ids)
}

func describe(tenant string, s *snapshot, number int) Description {
	one, f := s.policies[number], factsOf(s, number)
	d := Description{
		ID: one.ref.ID, Tenant: tenant, File: one.place.file, Line: one.place.position.Line, Effect: "permit", Asks: one.approvers, Quorum: one.quorum,
		Who: who(f.principal), On: on(f.resource), Text: one.place.source(), Digest: one.ref.Digest,
	}
	if one.forbid {
		d.Effect = "forbid"
	}
	if one.timeout > 0 {
		d.Timeout = short(one.timeout)
	}
	for i := range actions {
		if f.actions&(1<<i) != 0 {
			d.What = append(d.What, actions[i].name)
		}
	}
	if why := f.impossible(); why != "" {
		d.What = []string{"nothing: " + why}
	}
	for _, part := range partsOf(one.place, s.program.Source(number)) {
		d.If = append(d.If, Clause{Words: needs(part, true), Text: oneLine(part.text), Line: part.line, Column: part.column, Unless: part.unless})
	}
	return d
}

// source returns a policy as it is written.
func (p *place) source() string {
	s := scanner{text: p.text, at: p.begins(), end: len(p.text)}
	from := s.at
	for {
		c, _, ok := s.next()
		if !ok || c == ';' && s.depth == 0 {
			return string(bytes.TrimSpace(p.text[from:s.at]))
		}
	}
}

// plain names an entity without Creto's namespace.
func plain(uid types.EntityUID) string {
	return fmt.Sprintf("%s %q", strings.TrimPrefix(string(uid.Type), namespace), string(uid.ID))
}

// who says which principals are in a scope.
func who(s program.Scope) string {
	kind := strings.TrimPrefix(string(s.Type), namespace)
	switch s.Kind {
	case program.ScopeEq:
		return plain(s.Entity)
	case program.ScopeIn:
		return "everybody in " + plain(s.Entity)
	case program.ScopeIs:
		return "every " + kind
	case program.ScopeIsIn:
		return "every " + kind + " in " + plain(s.Entity)
	}
	return "everybody"
}

// on says which resources are in a scope.
func on(s program.Scope) string {
	kind := strings.TrimPrefix(string(s.Type), namespace)
	switch s.Kind {
	case program.ScopeEq, program.ScopeIn:
		return plain(s.Entity)
	case program.ScopeIs:
		return "every " + kind
	case program.ScopeIsIn:
		return kind + " in " + plain(s.Entity)
	}
	return "every resource"
}
