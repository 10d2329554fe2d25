package localauthz

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
)

// CaseFile is a file of test cases for policies, NAME_test.yaml beside
// NAME.cedar:
//
//	principals:                 # who is in which groups; others are in none
//	  human:alice: [staff]
//	chain: [human:alice, agent:shop-bot]    # for cases that name none
//	cases:
//	- name: small refunds need nobody
//	  action: http_request
//	  resource: http://shop.test/refunds
//	  context: {method: POST, body: {amount: 50}}
//	  expect: allow             # or deny, requires_oversight
//	  policy: shop/small        # optional: one that decides
//	  asks: finance             # optional, with requires_oversight
type CaseFile struct {
	// Name is relative to the directory of policies.
	Name  string
	Cases []Case
}

// Case is one request and what must come of it.
type Case struct {
	Name string
	Line int // in the file
	// Principals are the chain, the human first, all of the file's tenant.
	Principals []Principal
	Request    authz.Request
	// Expect is allow, deny or requires_oversight.
	Expect authz.Kind
	// Policy is one that must decide, and Asks the group that must be asked; ""
	// for any.
	Policy, Asks string
}

// TestResult is what became of one case. Its JSON form is stable.
type TestResult struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Wrong are the fields that differ.
	Wrong []Difference `json:"wrong,omitempty"`
	// Explanation says how the policies came to their decision.
	Explanation authz.Explanation `json:"explanation"`
}

// Difference is a field of a case that differs.
type Difference struct {
	Field string `json:"field"` // expect, policy, asks or request
	Want  string `json:"want"`
	Got   string `json:"got"`
}

// Covered says how often test cases had a policy decide.
type Covered struct {
	ID   string `json:"id"`
	File string `json:"file"`
	Line int    `json:"line"`
	// Cases counts the cases in which it decided for somebody in the chain.
	Cases int `json:"cases"`
}

// caseFile is how a file of cases is called.
var caseFile = regexp.MustCompile(`_test\.ya?ml$`)

// maxCaseFileBytes bounds one file of cases.
const maxCaseFileBytes = 4 << 20

// Cases reads the files of cases below the directory, in lexical order.
//
// Errors: InvalidArgument (Permanent), with a line for every mistake;
// Unavailable (Degraded) for what cannot be read.
func (p *Policies) Cases() ([]CaseFile, error) {
	const op fault.Op = "localauthz.Cases"
	var files []CaseFile
	var wrong []string
	err := filepath.WalkDir(p.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !caseFile.MatchString(entry.Name()) {
			return err
		}
		name, err := filepath.Rel(p.dir, path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.Size() > maxCaseFileBytes {
			wrong = append(wrong, fmt.Sprintf("%s: has %d bytes, limit %d", name, info.Size(), maxCaseFileBytes))
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		tenant := p.home
		if rest, ok := strings.CutPrefix(name, tenantsDir+"/"); ok {
			tenant, _, _ = strings.Cut(rest, "/")
		}
		f, err := ParseCases(name, tenant, text)
		if err != nil {
			wrong = append(wrong, fault.Message(err))
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "the cases in %s cannot be read", p.dir)
	}
	if len(wrong) > 0 {
		return nil, fault.New(op, fault.InvalidArgument, "%s", strings.Join(wrong, "\n"))
	}
	return files, nil
}

// Test runs one case.
func (p *Policies) Test(file string, c Case) TestResult {
	result := TestResult{File: file, Line: c.Line, Name: c.Name}
	e, err := p.Explain(c.Principals, c.Request)
	if err != nil {
		result.Wrong = []Difference{{Field: "request", Want: "one that can be decided on", Got: fault.Message(err)}}
		return result
	}
	result.Explanation = e
	differ := func(field, want, got string) { result.Wrong = append(result.Wrong, Difference{field, want, got}) }
	if e.Decision != c.Expect.String() {
		differ("expect", c.Expect.String(), e.Decision)
	}
	deciding, asked := decidingOf(e)
	if c.Policy != "" && !slices.Contains(deciding, c.Policy) {
		differ("policy", c.Policy, listedOr(deciding, "none decides"))
	}
	if c.Asks != "" && !slices.Contains(asked, c.Asks) {
		differ("asks", c.Asks, listedOr(asked, "nobody is asked"))
	}
	result.OK = len(result.Wrong) == 0
	return result
}

func listedOr(texts []string, none string) string {
	if len(texts) == 0 {
		return none
	}
	return strings.Join(texts, ", ")
}

// decidingOf returns the policies that decide: those of everybody who decides the
// whole. asked are the groups that it asks.
func decidingOf(e authz.Explanation) (deciding, asked []string) {
	for _, principal := range e.Principals {
		if principal.Decision != e.Decision {
			continue
		}
		for _, policy := range principal.Policies {
			if !policy.Decides {
				continue
			}
			if !slices.Contains(deciding, policy.ID) {
				deciding = append(deciding, policy.ID)
			}
			if e.Decision == authz.RequiresOversight.String() && !slices.Contains(asked, policy.Asks) {
				asked = append(asked, policy.Asks)
			}
		}
	}
	return deciding, asked
}

// Coverage says of every policy how often it decided for somebody.
func (p *Policies) Coverage(results []TestResult) []Covered {
	counts := make(map[[2]string]int) // by file and id
	for _, r := range results {
		seen := make(map[[2]string]bool)
		for _, principal := range r.Explanation.Principals {
			for _, policy := range principal.Policies {
				if key := [2]string{policy.File, policy.ID}; policy.Decides && !seen[key] {
					seen[key] = true
					counts[key]++
				}
			}
		}
	}
	all := make([]Covered, 0, p.Count())
	p.each(func(_ string, _ *snapshot, _ int, one *policy) {
		all = append(all, Covered{ID: one.ref.ID, File: one.place.file, Line: one.place.position.Line, Cases: counts[[2]string{one.place.file, one.ref.ID}]})
	})
	slices.SortFunc(all, func(a, b Covered) int {
		return cmp.Or(strings.Compare(a.File, b.File), a.Line-b.Line, strings.Compare(a.ID, b.ID))
	})
	return all
}

// each calls f with every policy, by tenant and id.
func (p *Policies) each(f func(tenant string, s *snapshot, number int, one *policy)) {
	for _, tenant := range slices.Sorted(maps.Keys(p.book.tenants)) {
		s := p.book.tenants[tenant]
		for i := range s.policies {
			f(tenant, s, i, s.policies[i])
		}
	}
}

// parseName reads human:alice.
func parseName(tenant, text string) (creto.ID, error) {
	kind, name, ok := strings.Cut(text, ":")
	id := creto.ID{TrustDomain: "policy.test", Tenant: tenant, Kind: creto.Kind(kind), Name: name}
	if !ok || kind != string(creto.KindHuman) && kind != string(creto.KindAgent) && kind != string(creto.KindWorkload) {
		return id, errors.New("write human:NAME, agent:NAME or workload:NAME")
	}
	if err := id.Validate(); err != nil {
		return id, errors.New(fault.Message(err))
	}
	return id, nil
}
