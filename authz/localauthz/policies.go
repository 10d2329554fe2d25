package localauthz

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
)

// namespace begins every entity type in policies.
const namespace = "Creto::"

// pollInterval is how often the policies' directory is read for changes. A
// change takes effect within it.
const pollInterval = 300 * time.Millisecond

// maxPolicyBytes bounds one policy file.
const maxPolicyBytes = 4 << 20

// policy is what a check needs to know of one policy beside its Cedar text.
type policy struct {
	ref       authz.Policy
	forbid    bool
	approvers string // of @oversight; "" if it asks nobody
	timeout   time.Duration
}

// snapshot is one immutable set of policies.
type snapshot struct {
	set      *cedar.PolicySet
	policies map[cedar.PolicyID]policy
	version  creto.Digest
}

// book holds the policies of every tenant. It is immutable.
type book struct {
	tenants map[string]*snapshot
	none    *snapshot // of a tenant that has no policies
	version creto.Digest
}

// of returns a tenant's policies.
func (b *book) of(tenant string) *snapshot {
	if s, ok := b.tenants[tenant]; ok {
		return s
	}
	return b.none
}

// tenantsDir is where the policies of other tenants are, in a directory each.
const tenantsDir = "tenants"

// loadBook reads every *.cedar file below dir, in lexical order.
func loadBook(dir, home string) (*book, error) {
	const op fault.Op = "localauthz.load"
	files, err := read(dir)
	if err != nil {
		return nil, err
	}
	shelves := map[string][]file{home: nil}
	var problems, texts []string
	for _, f := range files {
		tenant := home
		if rest, ok := strings.CutPrefix(f.name, tenantsDir+"/"); ok {
			var below bool
			if tenant, _, below = strings.Cut(rest, "/"); !below || tenant == home {
				problems = append(problems, fmt.Sprintf("%s: below %s there is a directory for each tenant but %q, whose policies are in %s itself", f.name, tenantsDir, home, dir))
				continue
			}
		}
		shelves[tenant] = append(shelves[tenant], f)
	}
	b := &book{tenants: make(map[string]*snapshot)}
	for _, tenant := range slices.Sorted(maps.Keys(shelves)) {
		s, wrong := newSnapshot(shelves[tenant])
		problems = append(problems, wrong...)
		b.tenants[tenant] = s
		texts = append(texts, tenant+" "+s.version.String())
	}
	b.none, _ = newSnapshot(nil)
	if len(problems) > 0 {
		return nil, fault.New(op, fault.InvalidArgument, "the policies in %s cannot be used:\n  %s", dir, strings.Join(problems, "\n  "))
	}
	b.version = b.tenants[home].version
	if len(texts) > 1 {
		b.version = creto.DigestOf([]byte(strings.Join(texts, "\n")))
	}
	return b, nil
}

// newSnapshot returns the set of a tenant's policies, and what is wrong with
// them.
func newSnapshot(files []file) (*snapshot, []string) {
	s := &snapshot{set: cedar.NewPolicySet(), policies: make(map[cedar.PolicyID]policy)}
	var texts bytes.Buffer
	var problems []string
	for _, f := range files {
		fmt.Fprintf(&texts, "%s %d\n%s", f.name, len(f.text), f.text)
		list, err := cedar.NewPolicyListFromBytes(f.name, f.text)
		if err != nil {
			problems = append(problems, mistake(f.name, err))
			continue
		}
		for i, p := range list {
			if err := s.add(f.name, i+1, p); err != nil {
				problems = append(problems, fmt.Sprintf("%s:%d: %s", f.name, p.Position().Line, fault.Message(err)))
			}
		}
	}
	s.version = creto.DigestOf(texts.Bytes())
	return s, problems
}

// parseError is how cedar-go says what it did not expect, and where.
var parseError = regexp.MustCompile(`at <input>:(\d+):(\d+) "(.*)": (.*)$`)

// mistake says it in the form that editors and people know.
func mistake(name string, err error) string {
	m := parseError.FindStringSubmatch(err.Error())
	if m == nil {
		return name + ": " + err.Error()
	}
	found, why := fmt.Sprintf("%q", m[3]), m[4]
	if m[3] == "" {
		found = "the end"
	}
	if _, want, ok := strings.Cut(why, " want "); ok {
		why = "expected " + want
	}
	return fmt.Sprintf("%s:%s:%s: at %s: %s", name, m[1], m[2], found, why)
}

type file struct {
	name string
	text []byte
}

func read(dir string) ([]file, error) {
	const op fault.Op = "localauthz.read"
	var files []file
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".cedar" {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.Size() > maxPolicyBytes {
			return fault.New(op, fault.InvalidArgument, "the policy file %s has %d bytes, limit %d", path, info.Size(), maxPolicyBytes)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		files = append(files, file{name: filepath.ToSlash(name), text: text})
		return err
	})
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return nil, err
	}
	return files, fault.WrapAs(op, fault.Unavailable, err, "the policies in %s cannot be read", dir)
}

// add checks one policy and names it: by @id, else by its file and number.
func (s *snapshot) add(file string, number int, p *cedar.Policy) error {
	const op fault.Op = "localauthz.add"
	annotations := p.Annotations()
	id := strings.TrimSuffix(file, ".cedar") + "#" + fmt.Sprint(number)
	if own, ok := annotations["id"]; ok {
		id = string(own)
	}
	text := p.MarshalCedar()
	entry := policy{ref: authz.Policy{ID: id, Digest: creto.DigestOf(text)}, forbid: p.Effect() == cedar.Forbid}
	if _, taken := s.policies[cedar.PolicyID(id)]; taken || id == "" {
		return fault.New(op, fault.InvalidArgument, "a second policy has the id %q", id)
	}
	if approvers, ok := annotations["oversight"]; ok {
		if entry.forbid || approvers == "" {
			return fault.New(op, fault.InvalidArgument, "@oversight belongs on a permit and names a group, as in @oversight(\"finance\")")
		}
		entry.approvers = string(approvers)
	}
	if timeout, ok := annotations["timeout"]; ok {
		d, err := time.ParseDuration(string(timeout))
		if err != nil || d <= 0 || entry.approvers == "" {
			return fault.New(op, fault.InvalidArgument, "@timeout(%q) must be a duration such as 30m, beside @oversight", timeout)
		}
		entry.timeout = d
	}
	if quorum, ok := annotations["quorum"]; ok && quorum != "1" {
		return fault.New(op, fault.InvalidArgument, "@quorum(%q) is not built yet; one approver decides", quorum)
	}
	if err := checkNames(p); err != nil {
		return err
	}
	s.policies[cedar.PolicyID(id)] = entry
	s.set.Add(cedar.PolicyID(id), p)
	return nil
}

// entityTypes are the types that policies may name.
var entityTypes = []string{"Action", "Agent", "Human", "Workload", "Group", "Tenant", "Model", "Tool", "Url", "Host", "Image", "Secret", "Meter"}

// checkNames finds misspelt entity types and actions: Cedar itself takes any
// name, and a permit that can never match is a mistake, a forbid that can never
// match is a hole.
func checkNames(p *cedar.Policy) error {
	const op fault.Op = "localauthz.checkNames"
	text, err := p.MarshalJSON()
	if err != nil {
		return fault.WrapAs(op, fault.InvalidArgument, err, "the policy cannot be encoded")
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		return fault.WrapAs(op, fault.Internal, err, "")
	}
	var wrong error
	visit(tree, func(node map[string]any) {
		for _, key := range []string{"type", "entity_type"} {
			name, ok := node[key].(string)
			if !ok {
				continue
			}
			id, isEntity := node["id"].(string)
			if key == "type" && !isEntity {
				continue
			}
			short, in := strings.CutPrefix(name, namespace)
			switch {
			case !in || !slices.Contains(entityTypes, short):
				wrong = fault.New(op, fault.InvalidArgument, "%q is no type of Creto; there are %s%s", name, namespace, strings.Join(entityTypes, ", "+namespace))
			case short == "Action":
				if _, ok := creto.ResourceType(id); !ok {
					names := creto.ActionNames()
					slices.Sort(names)
					wrong = fault.New(op, fault.InvalidArgument, "%q is no action; there are %s", id, strings.Join(names, ", "))
				}
			}
		}
	})
	return wrong
}

func visit(node any, do func(map[string]any)) {
	switch n := node.(type) {
	case map[string]any:
		do(n)
		for _, child := range n {
			visit(child, do)
		}
	case []any:
		for _, child := range n {
			visit(child, do)
		}
	}
}

// Run reloads the policies when their directory changes, until ctx ends.
func (a *Authorizer) Run(ctx context.Context) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	var refused string // the last mistake that was reported
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		before := a.Version()
		switch err := a.Reload(ctx); {
		case err != nil && err.Error() != refused:
			refused = err.Error()
			a.changed(ctx, a.Version(), err)
		case err == nil && refused != "":
			refused = ""
			if a.Version() == before { // Reload has not said so
				a.changed(ctx, before, nil)
			}
		}
	}
}

// Reload takes the directory's policies into force now.
//
// Errors: as Open; the policies before then stay in force.
func (a *Authorizer) Reload(ctx context.Context) error {
	b, err := loadBook(a.dir, a.tenant)
	if err != nil {
		return err
	}
	if b.version != a.Version() {
		a.current.Store(b)
		a.changed(ctx, b.version, nil)
	}
	return nil
}
