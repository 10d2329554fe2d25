package localauthz

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/localauthz/program"
	"creto.dev/fault"
)

// ParseCases reads a file of cases; tenant is whose principals they speak of.
// It takes what is one YAML document and nothing that is not known.
//
// Errors: InvalidArgument (Permanent), with a line for every mistake, as
// file:line:column: what is wrong.
func ParseCases(name, tenant string, text []byte) (CaseFile, error) {
	const op fault.Op = "localauthz.ParseCases"
	p := caseParser{name: name, tenant: tenant, groups: make(map[creto.ID][]string), budget: maxCaseNodes}
	p.document(text)
	if len(p.wrong) > 0 {
		return CaseFile{Name: name}, fault.New(op, fault.InvalidArgument, "%s", strings.Join(p.wrong, "\n"))
	}
	return CaseFile{Name: name, Cases: p.cases}, nil
}

const (
	// maxCaseNodes bounds what aliases may expand to.
	maxCaseNodes = 1 << 20
	// maxCaseMistakes bounds what is said of one file.
	maxCaseMistakes = 50
	// maxContextNesting is more than any context may be nested.
	maxContextNesting = 32
)

// caseParser reads one file.
type caseParser struct {
	name   string
	tenant string
	groups map[creto.ID][]string
	chain  []creto.ID // for cases that name none
	cases  []Case
	wrong  []string
	budget int // of nodes
}

func (p *caseParser) mistake(n *yaml.Node, format string, args ...any) {
	if len(p.wrong) < maxCaseMistakes {
		p.wrong = append(p.wrong, fmt.Sprintf("%s:%d:%d: %s", p.name, max(n.Line, 1), max(n.Column, 1), fmt.Sprintf(format, args...)))
	}
}

// yamlMistake is how the YAML library says where a mistake is.
var yamlMistake = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

func (p *caseParser) document(text []byte) {
	d := yaml.NewDecoder(bytes.NewReader(text))
	var root, second yaml.Node
	err := d.Decode(&root)
	if errors.Is(err, io.EOF) {
		return // no cases yet
	}
	if err != nil {
		m := yamlMistake.FindStringSubmatch(strings.SplitN(err.Error(), "\n", 2)[0])
		if m == nil {
			m = []string{"", "", err.Error()}
		}
		line, _ := strconv.Atoi(m[1])
		p.mistake(&yaml.Node{Line: line}, "%s", m[2])
		return
	}
	if err := d.Decode(&second); !errors.Is(err, io.EOF) {
		p.mistake(&second, "there is a second document; write all cases in one")
	}
	if len(root.Content) != 1 {
		return
	}
	var cases *yaml.Node
	p.fields(root.Content[0], "a file of cases", map[string]func(*yaml.Node){
		"principals": p.principals,
		"chain":      func(n *yaml.Node) { p.chain = p.readChain(n) },
		"cases":      func(n *yaml.Node) { cases = n },
	})
	if cases == nil {
		return
	}
	if cases.Kind != yaml.SequenceNode {
		p.mistake(cases, "cases is a list")
		return
	}
	for _, n := range cases.Content {
		p.readCase(p.resolve(n))
	}
}

// resolve follows an alias.
func (p *caseParser) resolve(n *yaml.Node) *yaml.Node {
	for range maxContextNesting {
		if n.Kind != yaml.AliasNode || n.Alias == nil {
			break
		}
		n = n.Alias
	}
	return n
}

// fields reads a mapping, each of whose keys is known and there once.
func (p *caseParser) fields(n *yaml.Node, what string, known map[string]func(*yaml.Node)) {
	if n = p.resolve(n); n.Kind != yaml.MappingNode {
		p.mistake(n, "%s is a mapping", what)
		return
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		read := known[key.Value]
		switch {
		case read == nil:
			p.mistake(key, "%q is unknown; %s has %s", key.Value, what, strings.Join(sortedNames(known), ", "))
		case seen[key.Value]:
			p.mistake(key, "%q is there twice", key.Value)
		default:
			seen[key.Value] = true
			read(p.resolve(value))
		}
	}
}

func sortedNames(known map[string]func(*yaml.Node)) []string {
	names := make([]string, 0, len(known))
	for name := range known {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// text reads a scalar as it is written.
func (p *caseParser) text(n *yaml.Node, what string) string {
	if n.Kind != yaml.ScalarNode || n.Value == "" {
		p.mistake(n, "%s is a text", what)
		return ""
	}
	return n.Value
}

func (p *caseParser) texts(n *yaml.Node, what string) []string {
	if n.Kind != yaml.SequenceNode {
		p.mistake(n, "%s is a list, as in [a, b]", what)
		return nil
	}
	var out []string
	for _, item := range n.Content {
		if text := p.text(p.resolve(item), "an item of "+what); text != "" {
			out = append(out, text)
		}
	}
	return out
}

func (p *caseParser) principals(n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		p.mistake(n, "principals is a mapping, as in human:alice: [staff]")
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		id, err := parseName(p.tenant, n.Content[i].Value)
		if err != nil {
			p.mistake(n.Content[i], "%q is no principal: %v", n.Content[i].Value, err)
			continue
		}
		if _, twice := p.groups[id]; twice {
			p.mistake(n.Content[i], "%q is there twice", n.Content[i].Value)
		}
		p.groups[id] = p.texts(p.resolve(n.Content[i+1]), "the groups of "+n.Content[i].Value)
	}
}

// readChain reads a chain from a human down to an agent.
func (p *caseParser) readChain(n *yaml.Node) []creto.ID {
	var chain []creto.ID
	for _, text := range p.texts(n, "chain") {
		id, err := parseName(p.tenant, text)
		if err != nil {
			p.mistake(n, "%q is no principal: %v", text, err)
			return nil
		}
		if slices.Contains(chain, id) {
			p.mistake(n, "%s is in the chain twice", text)
		}
		chain = append(chain, id)
	}
	if len(chain) < 2 || chain[0].Kind == creto.KindAgent || chain[len(chain)-1].Kind != creto.KindAgent {
		p.mistake(n, "a chain leads from a human to an agent, as in [human:alice, agent:shop-bot]")
	}
	return chain
}

func (p *caseParser) readCase(n *yaml.Node) {
	before := len(p.wrong)
	c := Case{Line: n.Line}
	chain := p.chain
	var resource string
	var at, expect *yaml.Node
	p.fields(n, "a case", map[string]func(*yaml.Node){
		"name":     func(n *yaml.Node) { c.Name = p.text(n, "name") },
		"chain":    func(n *yaml.Node) { chain = p.readChain(n) },
		"action":   func(n *yaml.Node) { c.Request.Action = p.text(n, "action") },
		"resource": func(n *yaml.Node) { resource, at = p.text(n, "resource"), n },
		"context":  func(n *yaml.Node) { c.Request.Context = p.context(n) },
		"expect":   func(n *yaml.Node) { expect = n },
		"policy":   func(n *yaml.Node) { c.Policy = p.text(n, "policy") },
		"asks":     func(n *yaml.Node) { c.Asks = p.text(n, "asks") },
	})
	if len(p.wrong) > before {
		return
	}
	switch {
	case c.Name == "":
		p.mistake(n, "the case has no name")
	case chain == nil:
		p.mistake(n, "the case %q has no chain, and the file has none either", c.Name)
	case c.Request.Action == "":
		p.mistake(n, "the case %q has no action", c.Name)
	case at == nil:
		p.mistake(n, "the case %q has no resource", c.Name)
	case expect == nil:
		p.mistake(n, "the case %q has no expect", c.Name)
	default:
		p.finish(&c, chain, resource, at, expect)
	}
}

// finish adds a case that has everything.
func (p *caseParser) finish(c *Case, chain []creto.ID, resource string, at, expect *yaml.Node) {
	before := len(p.wrong)
	var err error
	if c.Request.Resource, err = creto.ParseResource(c.Request.Action, resource); err != nil {
		p.mistake(at, "%s", fault.Message(err))
	}
	switch expect.Value {
	case authz.Allow.String():
		c.Expect = authz.Allow
	case authz.Deny.String():
		c.Expect = authz.Deny
	case authz.RequiresOversight.String():
		c.Expect = authz.RequiresOversight
	default:
		p.mistake(expect, "%q cannot be expected; policies come to allow, deny or requires_oversight", expect.Value)
	}
	if c.Asks != "" && c.Expect != authz.RequiresOversight {
		p.mistake(expect, "asks goes with expect: requires_oversight")
	}
	for _, id := range chain {
		c.Principals = append(c.Principals, Principal{ID: id, Groups: p.groups[id]})
	}
	if len(p.wrong) == before {
		p.cases = append(p.cases, *c)
	}
}

// context reads what policies may read.
func (p *caseParser) context(n *yaml.Node) map[string]any {
	context, ok := p.value(n, 0).(map[string]any)
	if !ok {
		p.mistake(n, "context is a mapping")
		return nil
	}
	if err := program.CheckContext(context); err != nil {
		p.mistake(n, "%s", fault.Message(err))
	}
	return context
}

// plainNumber is how numbers are written that JSON has too.
var plainNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?$`)

// value returns a node as JSON has it. What YAML takes for a time is a text.
func (p *caseParser) value(n *yaml.Node, depth int) any {
	if p.budget--; p.budget < 0 || depth > maxContextNesting {
		if p.budget == -1 || depth > maxContextNesting {
			p.mistake(n, "the context is too large")
		}
		return nil
	}
	switch n = p.resolve(n); n.Kind {
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" {
				p.mistake(key, "a key of a context is a text")
				continue
			}
			if _, twice := m[key.Value]; twice {
				p.mistake(key, "%q is there twice", key.Value)
			}
			m[key.Value] = p.value(n.Content[i+1], depth+1)
		}
		return m
	case yaml.SequenceNode:
		items := make([]any, 0, len(n.Content))
		for _, item := range n.Content {
			items = append(items, p.value(item, depth+1))
		}
		return items
	case yaml.ScalarNode:
		return p.scalar(n)
	}
	p.mistake(n, "this is no value")
	return nil
}

func (p *caseParser) scalar(n *yaml.Node) any {
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!bool":
		var b bool
		if err := n.Decode(&b); err != nil {
			p.mistake(n, "%q is no bool", n.Value)
		}
		return b
	case "!!int", "!!float":
		if !plainNumber.MatchString(n.Value) {
			p.mistake(n, "the number %s is not written as in JSON without an exponent; if it is a text, put it in quotes", n.Value)
			return nil
		}
		return json.Number(n.Value)
	case "!!str", "!!timestamp":
		return n.Value
	}
	p.mistake(n, "%s is no type of a context", n.Tag)
	return nil
}
