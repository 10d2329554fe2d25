package localauthz

import (
	_ "embed"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/resolved"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"

	"creto.dev"
	"creto.dev/authz/localauthz/program"
	"creto.dev/fault"
)

//go:embed creto.cedarschema
var schemaText string

// Schema returns Creto's Cedar schema: principals, actions, and what the context
// of each action holds.
func Schema() string { return schemaText }

// schemaIndex is [Schema] as rules ask it.
type schemaIndex struct {
	contexts  [creto.Actions]resolved.RecordType
	open      [creto.Actions]bool // the context may hold more
	validator *validate.Validator
}

// openAnnotation marks what holds more than the schema says.
const openAnnotation = "open"

func readSchema() (*schemaIndex, error) {
	const op fault.Op = "localauthz.readSchema"
	var parsed schema.Schema
	if err := parsed.UnmarshalCedar([]byte(schemaText)); err != nil {
		return nil, fault.WrapAs(op, fault.Internal, err, "")
	}
	r, err := parsed.Resolve()
	if err != nil {
		return nil, fault.WrapAs(op, fault.Internal, err, "")
	}
	index := &schemaIndex{}
	for i := range actions {
		a, ok := r.Actions[actions[i].uid]
		if !ok || a.AppliesTo == nil {
			return nil, fault.New(op, fault.Internal, "the schema has no %s", actions[i].name)
		}
		index.contexts[i] = a.AppliesTo.Context
		_, index.open[i] = a.Annotations[openAnnotation]
		// Whether an attribute is there is another rule's question.
		there := maps.Clone(a.AppliesTo.Context)
		for name, attribute := range there {
			attribute.Optional = false
			there[name] = attribute
		}
		appliesTo := *a.AppliesTo
		appliesTo.Context = there
		a.AppliesTo = &appliesTo
		r.Actions[actions[i].uid] = a
	}
	index.validator = validate.New(r)
	return index, nil
}

// presence says whether the context of an action has an attribute.
type presence uint8

const (
	never      presence = iota
	undeclared          // the schema leaves it open
	sometimes
	always
)

// has returns whether the context of an action has what is at a path below it.
func (s *schemaIndex) has(action int, path []string) presence {
	record, found := s.contexts[action], always
	for i, name := range path {
		attribute, ok := record[types.String(name)]
		switch {
		case !ok && i == 0 && s.open[action]:
			return undeclared
		case !ok:
			return never
		case attribute.Optional:
			found = sometimes
		}
		if _, open := attribute.Annotations[openAnnotation]; open && i < len(path)-1 {
			return sometimes // what is below is anybody's
		}
		next, ok := attribute.Type.(resolved.RecordType)
		if !ok && i < len(path)-1 {
			return never
		}
		record = next
	}
	return found
}

// readsOpen reports whether an expression reads what the schema leaves open.
func (s *schemaIndex) readsOpen(action int, n ast.IsNode) bool {
	return slices.ContainsFunc(program.Paths(n), func(n ast.IsNode) bool {
		path := program.PathOf(n)
		if path[0] != "context" {
			return false
		}
		if len(path) == 1 {
			return true
		}
		if s.has(action, path[1:]) == never {
			return true // another rule says so
		}
		_, open := s.contexts[action][types.String(path[1])].Annotations[openAnnotation]
		return open || s.has(action, path[1:]) == undeclared
	})
}

// attributes finds what the context of no action has, and what a forbid reads
// without knowing that it is there.
func (l *linter) attributes(number int, parts []clause) {
	guarded := make(map[string]bool)
	for _, p := range parts {
		for _, n := range program.Paths(p.condition.Source()) {
			path := program.PathOf(n)
			if path[0] != "context" || len(path) == 1 {
				l.ownAttribute(number, p, path)
				continue
			}
			name := strings.Join(path, ".")
			if _, has := n.(ast.NodeTypeHas); has {
				l.attribute(number, p, path, true)
				guarded[name] = true
				continue
			}
			if l.attribute(number, p, path, guarded[name]) {
				guarded[name] = true // once is enough
			}
		}
	}
}

// ownAttribute finds attributes that principals and resources do not have.
func (l *linter) ownAttribute(number int, p clause, path []string) {
	allowed := map[string][]string{"principal": {"id", "name", "tenant"}, "resource": {"id"}, "action": nil}
	if l.facts[number].actions == 1<<sendMessage { // an agent too
		allowed["resource"] = allowed["principal"]
	}
	names, known := allowed[path[0]]
	if !known || len(path) == 1 || len(path) == 2 && slices.Contains(names, path[1]) {
		return
	}
	l.reportAt(ruleUnknown, number, p.line, p.column, "there is no %s; %s has %s", strings.Join(path, "."), path[0], listed(names))
}

// attribute looks at one attribute of the context, and reports whether it found
// something.
func (l *linter) attribute(number int, p clause, path []string, guarded bool) bool {
	name := strings.Join(path, ".")
	var without, with, maybe, perhaps []string
	for i := range actions {
		if l.facts[number].actions&(1<<i) == 0 {
			continue
		}
		switch l.schema.has(i, path[1:]) {
		case never:
			without = append(without, actions[i].name)
		case undeclared:
			maybe = append(maybe, actions[i].name)
		case sometimes:
			perhaps = append(perhaps, actions[i].name)
		case always:
			with = append(with, actions[i].name)
		}
	}
	forbid := l.policies[number].forbid
	switch {
	case len(with)+len(perhaps)+len(maybe) == 0:
		l.reportAt(ruleUnknown, number, p.line, p.column, "there is no %s for %s%s", name, listed(without), l.instead(number, path))
	case len(with)+len(perhaps) == 0:
		l.reportAt(ruleMaybe, number, p.line, p.column, "the schema has no %s for %s", name, listed(maybe))
	case forbid && !guarded && len(without) > 0:
		l.reportAt(ruleMissing, number, p.line, p.column, "there is no %s for %s, which it therefore always denies", name, listed(without))
	case forbid && !guarded && len(perhaps)+len(maybe) > 0:
		l.reportAt(ruleGuard, number, p.line, p.column, "%s may have no %s, and is denied then", listed(append(perhaps, maybe...)), name)
	default:
		return false
	}
	return true
}

// instead returns the attribute that was probably meant.
func (l *linter) instead(number int, path []string) string {
	for i := range actions {
		if l.facts[number].actions&(1<<i) == 0 {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(l.schema.contexts[i])) {
			if d := distance(string(name), path[1]); d > 0 && d <= max(1, len(name)/3) {
				return "; there is context." + string(name)
			}
		}
	}
	return ""
}

// types finds parts whose sides have types that cannot be compared.
func (l *linter) types(number int, parts []clause) {
	source := l.program.Source(number)
	for _, p := range parts {
		seen := make(map[string]bool)
		for i := range actions {
			if l.facts[number].actions&(1<<i) == 0 || l.schema.readsOpen(i, p.condition.Source()) {
				continue
			}
			one := &ast.Policy{
				Effect: source.Effect, Principal: source.Principal, Action: ast.ScopeTypeEq{Entity: actions[i].uid}, Resource: ast.ScopeTypeIs{Type: actions[i].resourceType},
				Conditions: []ast.ConditionType{{Condition: ast.ConditionWhen, Body: p.condition.Source()}},
			}
			for _, mistake := range flattened(l.schema.validator.Policy("", one)) {
				text := strings.ReplaceAll(mistake.Error(), "`", "")
				// What is not there, and what is always the same, are other rules'.
				if seen[text] || strings.Contains(text, "not found") || strings.Contains(text, "impossible") || strings.Contains(text, "unrecognized") {
					continue
				}
				seen[text] = true
				l.reportAt(ruleType, number, p.line, p.column, "%s: %s", cut(oneLine(p.text), maxExplainedText), text)
			}
		}
	}
}

// flattened returns the errors that are joined in err.
func flattened(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := errors.AsType[interface {
		error
		Unwrap() []error
	}](err); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, flattened(e)...)
		}
		return all
	}
	return []error{err}
}
