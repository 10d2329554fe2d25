package localauthz

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go/types"

	"creto.dev/authz/localauthz/program"
	"creto.dev/fault"
)

// Severity says how bad a finding is.
type Severity string

// The severities. An error is a policy that cannot do what it says; a warning is
// one that probably is not what was meant.
const (
	SeverityError   Severity = "error"
	SeverityWarning Severity = "warning"
)

// LintRule is one thing that lint looks for.
type LintRule struct {
	Name     string   `json:"name"`
	Severity Severity `json:"severity"`
	Reason   string   `json:"reason"` // why it matters
	Fix      string   `json:"fix"`
}

// The rules.
var (
	ruleMistake = LintRule{"mistake", SeverityError, "policies that cannot be read are not taken into force", "correct it; the node keeps the policies before until then"}
	ruleNever   = LintRule{"never-matches", SeverityError, "no request is in its scope: a permit permits nothing, a forbid is a hole", "correct the scope; each action has one type of resource"}
	ruleFalse   = LintRule{"never-holds", SeverityError, "its conditions are false for every request", "correct the conditions, or delete the policy"}
	ruleType    = LintRule{"type-error", SeverityError, "the condition cannot be evaluated, or is always false: its sides have different types", "compare with a value of the attribute's type"}
	ruleUnknown = LintRule{"unknown-attribute", SeverityError, "no action in scope has the attribute: a permit never applies, a forbid denies everything in scope", "use an attribute of the schema: creto policy schema"}
	ruleMaybe   = LintRule{"undeclared-attribute", SeverityWarning, "the schema does not say that an action in scope has the attribute", "make sure that who asks sends it"}
	ruleGuard   = LintRule{"unguarded-forbid", SeverityWarning, "a forbid that cannot be evaluated denies: every request without the attribute is denied", "ask for the attribute first: context has NAME && …"}
	ruleMissing = LintRule{"forbid-beyond", SeverityWarning, "a forbid denies what it cannot be evaluated on: actions in its scope that never have the attribute", "name the actions that have it in the scope"}
	ruleShadow  = LintRule{"shadowed", SeverityWarning, "another policy always says the same: it changes nothing", "delete it, or narrow the other one"}
	ruleTwice   = LintRule{"duplicate", SeverityWarning, "the same policy is there twice", "delete one"}
	ruleUseless = LintRule{"never-permits", SeverityWarning, "a forbid always applies where it does", "delete it, or narrow the forbid"}
	ruleUnasked = LintRule{"oversight-never-asked", SeverityWarning, "another permit without @oversight always applies where it does: nobody is asked", "narrow the other permit, or give it @oversight too"}
	ruleBroad   = LintRule{"permits-everything", SeverityWarning, "every agent may do everything that its delegation includes", "name principals, actions or resources"}
	ruleSpell   = LintRule{"misspelt-annotation", SeverityError, "an annotation that Creto does not know has no effect: the permit may ask nobody", "write @id, @oversight, @timeout or @quorum"}
	ruleNote    = LintRule{"unknown-annotation", SeverityWarning, "an annotation that Creto does not know has no effect", "use @doc for what is for readers"}
	ruleGroup   = LintRule{"unknown-group", SeverityWarning, "nobody is in the group: the policy applies to nobody, or nobody can consent", "add somebody: creto human add NAME --group GROUP"}
	ruleNobody  = LintRule{"unknown-principal", SeverityWarning, "there is nobody of that name", "correct the name, or delete the policy"}
)

// LintRules returns all rules, errors first, by name.
func LintRules() []LintRule {
	rules := []LintRule{
		ruleMistake, ruleNever, ruleFalse, ruleType, ruleUnknown, ruleMaybe, ruleGuard, ruleMissing, ruleShadow, ruleTwice, ruleUseless, ruleUnasked, ruleBroad,
		ruleSpell, ruleNote, ruleGroup, ruleNobody,
	}
	slices.SortFunc(rules, func(a, b LintRule) int {
		return cmp.Or(strings.Compare(string(a.Severity), string(b.Severity)), strings.Compare(a.Name, b.Name))
	})
	return rules
}

// Finding is something that lint found. Its JSON form is stable.
type Finding struct {
	Rule     string   `json:"rule"`
	Severity Severity `json:"severity"`
	File     string   `json:"file"`
	Line     int      `json:"line"`   // from 1; 0 for the file as a whole
	Column   int      `json:"column"` // from 1; 0 for the line as a whole
	Policy   string   `json:"policy,omitempty"`
	// Text says what was found, Reason why it matters, and Fix what to do.
	Text   string `json:"text"`
	Reason string `json:"reason"`
	Fix    string `json:"fix"`
}

// Known is who is there. Its zero value has nothing be unknown.
type Known struct {
	// Groups have somebody in them, and Principals are there, as in agent:bob.
	Groups, Principals []string
	// Tenant is whose they are.
	Tenant string
}

// linter looks at the policies of one tenant.
type linter struct {
	*snapshot
	known    Known
	schema   *schemaIndex
	facts    []*facts // of each policy
	dead     []bool   // it never matches or holds
	findings []Finding
}

// Lint looks for policies that cannot do what they say, or probably are not what
// was meant. dir and tenant are as for [Open]; policies that cannot be read are
// findings too.
//
// Errors: Unavailable (Degraded) if dir cannot be read.
func Lint(dir, tenant string, known Known) ([]Finding, error) {
	const op fault.Op = "localauthz.Lint"
	p, err := ReadPolicies(dir, tenant)
	if fault.CodeOf(err) == fault.InvalidArgument {
		return mistakesOf(err), nil
	}
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	schema, err := readSchema()
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	findings := []Finding{}
	for name, s := range p.book.tenants {
		l := linter{snapshot: s, schema: schema}
		if name == known.Tenant {
			l.known = known
		}
		findings = append(findings, l.run()...)
	}
	slices.SortFunc(findings, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.File, b.File), a.Line-b.Line, a.Column-b.Column, strings.Compare(a.Rule, b.Rule), strings.Compare(a.Text, b.Text))
	})
	return findings, nil
}

// mistakePlace is how the mistakes of a set of policies begin.
var mistakePlace = regexp.MustCompile(`^  (.+?):(\d+)(?::(\d+))?: (.*)$`)

// mistakesOf turns what is wrong with policies into findings.
func mistakesOf(err error) []Finding {
	var findings []Finding
	lines := strings.Split(fault.Message(err), "\n")
	for _, line := range lines[min(1, len(lines)-1):] {
		f := Finding{Rule: ruleMistake.Name, Severity: ruleMistake.Severity, Text: strings.TrimSpace(line), Reason: ruleMistake.Reason, Fix: ruleMistake.Fix}
		if m := mistakePlace.FindStringSubmatch(line); m != nil {
			f.File, f.Text = m[1], m[4]
			f.Line, _ = strconv.Atoi(m[2])
			f.Column, _ = strconv.Atoi(m[3])
		}
		findings = append(findings, f)
	}
	return findings
}

// report adds a finding about a policy as a whole.
func (l *linter) report(rule LintRule, number int, format string, args ...any) {
	at := l.policies[number].place
	l.reportAt(rule, number, at.position.Line, at.position.Column, format, args...)
}

func (l *linter) reportAt(rule LintRule, number, line, column int, format string, args ...any) {
	one := l.policies[number]
	l.findings = append(l.findings, Finding{
		Rule: rule.Name, Severity: rule.Severity, File: one.place.file, Line: line, Column: column, Policy: one.ref.ID,
		Text: fmt.Sprintf(format, args...), Reason: rule.Reason, Fix: rule.Fix,
	})
}

func (l *linter) run() []Finding {
	l.facts, l.dead = make([]*facts, len(l.policies)), make([]bool, len(l.policies))
	for i := range l.policies {
		l.annotations(i)
		l.names(i)
		l.facts[i] = factsOf(l.snapshot, i)
		if why := l.facts[i].impossible(); why != "" {
			l.report(ruleNever, i, "%s", why)
			l.dead[i] = true
			continue
		}
		parts := partsOf(l.policies[i].place, l.program.Source(i))
		if l.contradiction(i, parts) {
			l.dead[i] = true
			continue
		}
		l.attributes(i, parts)
		l.types(i, parts)
		l.broad(i)
	}
	l.coverage()
	return l.findings
}

// readerNotes are annotations that are for readers.
var readerNotes = []string{"doc", "description", "reason", "owner", "ticket", "url", "since", "advice"}

// annotations finds those that Creto does not know.
func (l *linter) annotations(number int) {
	for _, a := range l.program.Source(number).Annotations {
		key := string(a.Key)
		if slices.Contains([]string{"id", "oversight", "timeout", "quorum"}, key) || slices.Contains(readerNotes, key) {
			continue
		}
		for _, known := range []string{"oversight", "timeout", "quorum", "id"} {
			if distance(strings.ToLower(key), known) <= len(known)/3 {
				l.report(ruleSpell, number, "@%s is not @%s", key, known)
				key = ""
				break
			}
		}
		if key != "" {
			l.report(ruleNote, number, "@%s means nothing to Creto", key)
		}
	}
}

// distance is Damerau's and Levenshtein's, of neighbours swapped: how many
// letters were typed wrong.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+btoi(a[i-1] != b[j-1]))
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// names finds groups and principals that are not there, if it is known who is.
func (l *linter) names(number int) {
	if l.known.Tenant == "" {
		return
	}
	scope, one := l.program.Principal(number), l.policies[number]
	if one.approvers != "" && one.approvers != "principal" && !slices.Contains(l.known.Groups, one.approvers) {
		l.report(ruleGroup, number, "@oversight asks the group %q, and nobody is in it", one.approvers)
	}
	switch name := string(scope.Entity.ID); strings.TrimPrefix(string(scope.Entity.Type), namespace) {
	case "Group":
		if !slices.Contains(l.known.Groups, name) {
			l.report(ruleGroup, number, "the scope names the group %q, and nobody is in it", name)
		}
	case "Agent", "Human", "Workload":
		if who := kindOf(scope.Entity) + ":" + name; !slices.Contains(l.known.Principals, who) {
			l.report(ruleNobody, number, "the scope names %s, who is not there", who)
		}
	}
}

// broad finds permits that bound nothing.
func (l *linter) broad(number int) {
	one, scope := l.policies[number], l.program.Principal(number)
	agents := scope.Kind == program.ScopeAll || scope.Kind == program.ScopeIs && scope.Type == namespace+"Agent"
	if !one.forbid && one.approvers == "" && agents && one.actions == 1<<len(actions)-1 && l.program.Resource(number).Kind == program.ScopeAll && !l.program.Conditional(number) {
		l.report(ruleBroad, number, "it permits every action on every resource to every agent")
	}
}

// contradiction finds conditions that are false whatever the request is.
func (l *linter) contradiction(number int, parts []clause) bool {
	effect := "the permit never applies"
	if l.policies[number].forbid {
		effect = "the forbid denies only what it cannot be evaluated on"
	}
	for i, p := range parts {
		if value, ok := p.condition.Constant(); ok && value == p.unless {
			if i == 0 {
				effect = strings.Replace(effect, "denies only what it cannot be evaluated on", "never applies", 1)
			}
			l.reportAt(ruleFalse, number, p.line, p.column, "%s is always %v; %s", oneLine(p.text), value, effect)
			return true
		}
	}
	if why := l.facts[number].contradiction; why != "" {
		l.report(ruleFalse, number, "%s; %s", why, effect)
		return true
	}
	return false
}

var principalTypes = []types.EntityType{namespace + "Agent", namespace + "Human", namespace + "Workload"}

// impossible returns why no request is in a policy's scope; "" if one may be.
func (f *facts) impossible() string {
	p := f.principal
	above := append(slices.Clone(principalTypes), namespace+"Group", namespace+"Tenant")
	switch {
	case p.Kind == program.ScopeEq && !slices.Contains(principalTypes, p.Entity.Type):
		if p.Entity.Type == namespace+"Group" || p.Entity.Type == namespace+"Tenant" {
			return fmt.Sprintf("nobody is a %s; write: principal in %s", kindOf(p.Entity), p.Entity)
		}
		return fmt.Sprintf("%s is no principal", p.Entity)
	case (p.Kind == program.ScopeIs || p.Kind == program.ScopeIsIn) && !slices.Contains(principalTypes, p.Type):
		return fmt.Sprintf("no principal is a %s", p.Type)
	case (p.Kind == program.ScopeIn || p.Kind == program.ScopeIsIn) && !slices.Contains(above, p.Entity.Type):
		return fmt.Sprintf("no principal is in %s", p.Entity)
	case p.Kind == program.ScopeIsIn && slices.Contains(principalTypes, p.Entity.Type) && p.Entity.Type != p.Type:
		return fmt.Sprintf("no %s is in %s", p.Type, p.Entity)
	}
	if f.named == 0 {
		return "its scope names no action"
	}
	if f.actions == 0 {
		var takes []string
		for i := range actions {
			if f.named&(1<<i) != 0 {
				takes = append(takes, actions[i].name+" acts on "+namespace+actions[i].resource)
			}
		}
		return "the resource does not fit the action: " + strings.Join(takes, ", ")
	}
	return ""
}
