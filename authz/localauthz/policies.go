package localauthz

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/localauthz/program"
	"creto.dev/fault"
)

// namespace begins every entity type in policies.
const namespace = "Creto::"

// pollInterval is how often the policies' directory is looked at for changes: at
// its files' names, sizes and times, and each fullPoll-th time at their text. A
// change takes effect within it.
const (
	pollInterval = 300 * time.Millisecond
	fullPoll     = 16
)

// maxFileBytes bounds one policy file, and maxPolicyBytes one policy in it: the
// parser's stack grows with how deep an expression is nested, and has an end that
// nothing recovers from.
const (
	maxFileBytes   = 4 << 20
	maxPolicyBytes = 128 << 10
)

// policy is what a check needs to know of one policy beside its program.
type policy struct {
	ref       authz.Policy
	forbid    bool
	approvers string // of @oversight; "" if it asks nobody
	timeout   time.Duration
	quorum    int    // how many must consent
	actions   uint8  // a bit for each action in its scope, by number
	place     *place // for people
}

// snapshot is one immutable set of policies, with what sessions share under it.
type snapshot struct {
	program  *program.Program
	policies []policy // by their numbers in the program
	version  creto.Digest
	tables   *tables
	reads    []string // the names in the context that a policy reads, in order; see readsAll
}

// names returns the id of the resource that a policy is about, for one action;
// "" if it is about every resource of the action's type. False means that it is
// about none, or not about the action.
func (s *snapshot) names(number, action int) (id string, ok bool) {
	if s.policies[number].actions&(1<<action) == 0 {
		return "", false
	}
	scope, kind := s.program.Resource(number), actions[action].resourceType
	switch scope.Kind {
	case program.ScopeAll:
		return "", true
	case program.ScopeIs:
		return "", scope.Type == kind
	case program.ScopeIsIn:
		if scope.Type != kind {
			return "", false
		}
	}
	// A resource is in nothing but itself.
	id = string(scope.Entity.ID)
	return id, scope.Entity.Type == kind && validID(id)
}

// book holds the policies of every tenant. It is immutable.
type book struct {
	tenants map[string]*snapshot
	none    *snapshot // of a tenant that has no policies
	version creto.Digest
	files   map[string]creto.Digest // of the text of each file
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

// loadBook reads every *.cedar file below dir, in lexical order. Tenants whose
// policies are those of the book before keep their snapshot; that may be nil.
func loadBook(dir, home string, before *book) (*book, error) {
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
	b := &book{tenants: make(map[string]*snapshot), files: make(map[string]creto.Digest, len(files))}
	for _, f := range files {
		b.files[f.name] = creto.DigestOf(f.text)
	}
	for _, tenant := range slices.Sorted(maps.Keys(shelves)) {
		version := versionOf(shelves[tenant])
		s := before.with(tenant, version)
		if s == nil {
			var wrong []string
			s, wrong = newSnapshot(shelves[tenant], version)
			problems = append(problems, wrong...)
		}
		b.tenants[tenant] = s
		texts = append(texts, tenant+" "+s.version.String())
	}
	b.none, _ = newSnapshot(nil, versionOf(nil))
	if len(problems) > 0 {
		return nil, fault.New(op, fault.InvalidArgument, "the policies in %s cannot be used:\n  %s", dir, strings.Join(problems, "\n  "))
	}
	b.version = b.tenants[home].version
	if len(texts) > 1 {
		b.version = creto.DigestOf([]byte(strings.Join(texts, "\n")))
	}
	return b, nil
}

// with returns a tenant's snapshot if it has this version, else nil.
func (b *book) with(tenant string, version creto.Digest) *snapshot {
	if b == nil || b.tenants[tenant] == nil || b.tenants[tenant].version != version {
		return nil
	}
	return b.tenants[tenant]
}

// versionOf returns the digest of a tenant's files.
func versionOf(files []file) creto.Digest {
	var texts bytes.Buffer
	for _, f := range files {
		fmt.Fprintf(&texts, "%s %d\n%s", f.name, len(f.text), f.text)
	}
	return creto.DigestOf(texts.Bytes())
}

// newSnapshot returns the set of a tenant's policies, and what is wrong with
// them.
func newSnapshot(files []file, version creto.Digest) (*snapshot, []string) {
	d := draft{set: make(map[cedar.PolicyID]*cedar.Policy), policies: make(map[cedar.PolicyID]policy)}
	var problems []string
	for _, f := range files {
		if line := tooLong(f.text); line > 0 {
			problems = append(problems, fmt.Sprintf("%s:%d: the policy has more than %d bytes", f.name, line, maxPolicyBytes))
			continue
		}
		list, err := cedar.NewPolicyListFromBytes(f.name, f.text)
		if err != nil {
			problems = append(problems, mistake(f.name, err))
			continue
		}
		for i, p := range list {
			if err := d.add(f, i+1, p); err != nil {
				problems = append(problems, fmt.Sprintf("%s:%d: %s", f.name, p.Position().Line, fault.Message(err)))
			}
		}
	}
	compiled, err := program.Compile(d.set)
	if err != nil {
		return &snapshot{version: version}, append(problems, d.uncompiled()...)
	}
	s := &snapshot{program: compiled, policies: make([]policy, compiled.Len()), version: version, tables: newTables(), reads: slices.Compact(slices.Sorted(slices.Values(d.reads)))}
	for i := range s.policies {
		s.policies[i] = d.policies[compiled.ID(i)]
		for number := range actions {
			if compiled.Action(i).Includes(actions[number].uid, nil) {
				s.policies[i].actions |= 1 << number
			}
		}
	}
	return s, problems
}

// tooLong returns the line on which a policy begins that is too long; 0 if there
// is none. Policies end with a semicolon that is neither in a string nor in a
// comment.
func tooLong(text []byte) int {
	line, first, begin := 1, 1, 0
	begun, quoted, comment := false, false, false
	for i := 0; i < len(text); i++ {
		c := text[i]
		opens := c == '/' && i+1 < len(text) && text[i+1] == '/'
		if !begun && !comment && !opens && c > ' ' {
			begun, first = true, line
		}
		switch {
		case c == '\n':
			line++
			comment = false
		case comment:
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && opens:
			comment = true
		case !quoted && c == ';':
			begun, begin = false, i+1
		}
		if i-begin >= maxPolicyBytes {
			return first
		}
	}
	return 0
}

// draft is a set of policies that is being read.
type draft struct {
	set      map[cedar.PolicyID]*cedar.Policy
	policies map[cedar.PolicyID]policy
	reads    []string // of the context; any number of times
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
		if info.Size() > maxFileBytes {
			return fault.New(op, fault.InvalidArgument, "the policy file %s has %d bytes, limit %d", path, info.Size(), maxFileBytes)
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

// uncompiled returns which policies cannot be compiled.
func (d *draft) uncompiled() []string {
	var problems []string
	for _, id := range slices.Sorted(maps.Keys(d.set)) {
		p := d.set[id]
		if _, err := program.Compile(map[cedar.PolicyID]*cedar.Policy{id: p}); err != nil {
			at := p.Position()
			problems = append(problems, fmt.Sprintf("%s:%d: %s", at.Filename, at.Line, fault.Message(err)))
		}
	}
	return problems
}

// add checks one policy and names it: by @id, else by its file and number.
func (d *draft) add(f file, number int, p *cedar.Policy) error {
	const op fault.Op = "localauthz.add"
	annotations := p.Annotations()
	id := strings.TrimSuffix(f.name, ".cedar") + "#" + fmt.Sprint(number)
	if own, ok := annotations["id"]; ok {
		id = string(own)
	}
	text := p.MarshalCedar()
	entry := policy{ref: authz.Policy{ID: id, Digest: creto.DigestOf(text)}, forbid: p.Effect() == cedar.Forbid, place: &place{file: f, position: p.Position()}}
	if _, taken := d.policies[cedar.PolicyID(id)]; taken || id == "" {
		return fault.New(op, fault.InvalidArgument, "a second policy has the id %q", id)
	}
	if approvers, ok := annotations["oversight"]; ok {
		if entry.forbid || approvers == "" {
			return fault.New(op, fault.InvalidArgument, "@oversight belongs on a permit and names a group, as in @oversight(\"finance\")")
		}
		entry.approvers = string(approvers)
	}
	if timeout, ok := annotations["timeout"]; ok {
		wait, err := time.ParseDuration(string(timeout))
		if err != nil || wait <= 0 || entry.approvers == "" {
			return fault.New(op, fault.InvalidArgument, "@timeout(%q) must be a duration such as 30m, beside @oversight", timeout)
		}
		entry.timeout = wait
	}
	if entry.approvers != "" {
		entry.quorum = 1
	}
	if quorum, ok := annotations["quorum"]; ok {
		n, err := strconv.Atoi(string(quorum))
		if err != nil || n < 1 || n > authz.MaxQuorum || entry.approvers == "" {
			return fault.New(op, fault.InvalidArgument, "@quorum(%q) must be 1 to %d, beside @oversight", quorum, authz.MaxQuorum)
		}
		if n > 1 && entry.approvers == authz.Principal {
			return fault.New(op, fault.InvalidArgument, "@quorum(%q) asks several humans, and @oversight(\"principal\") one: name a group", quorum)
		}
		entry.quorum = n
	}
	if err := checkNames(p); err != nil {
		return err
	}
	d.reads = append(d.reads, readsOf(p)...)
	d.policies[cedar.PolicyID(id)] = entry
	d.set[cedar.PolicyID(id)] = p
	return nil
}

// entityTypes are the types that policies may name.
var entityTypes = []string{"Action", "Agent", "Human", "Workload", "Group", "Tenant", "Model", "Tool", "Url", "Host", "Image", "Secret", "Meter"}

// checkNames finds misspelt entity types and actions: Cedar itself takes any
// name, and a permit that can never match is a mistake, a forbid that can never
// match is a hole.
func checkNames(p *cedar.Policy) error {
	const op fault.Op = "localauthz.checkNames"
	var wrong error
	checkType := func(name types.EntityType) {
		if short, in := strings.CutPrefix(string(name), namespace); !in || !slices.Contains(entityTypes, short) {
			wrong = fault.New(op, fault.InvalidArgument, "%q is no type of Creto; there are %s%s", name, namespace, strings.Join(entityTypes, ", "+namespace))
		}
	}
	checkEntity := func(uid types.EntityUID) {
		checkType(uid.Type)
		if _, ok := creto.ResourceType(string(uid.ID)); uid.Type == namespace+"Action" && !ok {
			names := creto.ActionNames()
			slices.Sort(names)
			wrong = fault.New(op, fault.InvalidArgument, "%q is no action; there are %s", uid.ID, strings.Join(names, ", "))
		}
	}
	tree := (*ast.Policy)(p.AST())
	for _, scope := range []ast.IsScopeNode{tree.Principal, tree.Action, tree.Resource} {
		switch s := scope.(type) {
		case ast.ScopeTypeEq:
			checkEntity(s.Entity)
		case ast.ScopeTypeIn:
			checkEntity(s.Entity)
		case ast.ScopeTypeInSet:
			for _, uid := range s.Entities {
				checkEntity(uid)
			}
		case ast.ScopeTypeIs:
			checkType(s.Type)
		case ast.ScopeTypeIsIn:
			checkType(s.Type)
			checkEntity(s.Entity)
		}
	}
	for _, c := range tree.Conditions {
		ast.Inspect(ast.NewNode(c.Body), func(n ast.IsNode) bool {
			switch n := n.(type) {
			case ast.NodeValue:
				if uid, ok := n.Value.(types.EntityUID); ok {
					checkEntity(uid)
				}
			case ast.NodeTypeIs:
				checkType(n.EntityType)
			case ast.NodeTypeIsIn:
				checkType(n.EntityType)
			}
			return true
		})
	}
	return wrong
}

// tickInterval is how long a chain stays bound for the next Bind, and so how old
// the groups of its principals can be.
const tickInterval = 250 * time.Millisecond

// Run reloads the policies when their directory changes, until ctx ends. While
// it is running, Bind does without asking for groups that it asked for a moment
// before.
func (a *Authorizer) Run(ctx context.Context) error {
	var group sync.WaitGroup
	group.Go(func() { a.tick(ctx) })
	defer group.Wait()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	var refused string // the last mistake that was reported
	var seen listing
	for polls := 0; ; polls++ {
		var now time.Time
		select {
		case <-ctx.Done():
			return nil
		case now = <-ticker.C:
		}
		found := list(a.dir, now)
		if found.same(seen) && polls%fullPoll != 0 {
			continue
		}
		before := a.Version()
		err := a.Reload(ctx)
		if seen = found; err != nil && fault.CodeOf(err) != fault.InvalidArgument {
			seen = listing{} // it was not read
		}
		switch {
		case err != nil && err.Error() != refused:
			refused = err.Error()
			a.changed(ctx, Change{Before: before, After: before, Err: err})
		case err == nil && refused != "":
			refused = ""
			if a.Version() == before { // Reload has not said so
				a.changed(ctx, changeOf(a.current.Load(), a.current.Load()))
			}
		}
	}
}

// listing is what a directory shows without its files being read.
type listing struct {
	digest creto.Digest
	// settled says that every file is older than the grain of the clock that its
	// time is from: a later change shows.
	settled bool
}

// clockGrain is a bound on how coarse the times of files are.
const clockGrain = 2 * time.Second

func (l listing) same(before listing) bool { return before.settled && l.digest == before.digest }

// list returns the listing of a directory's policies; one that is not settled if
// it cannot be listed.
func list(dir string, now time.Time) listing {
	var text bytes.Buffer
	settled := true
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".cedar" {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		settled = settled && now.Sub(info.ModTime()) > clockGrain
		fmt.Fprintf(&text, "%q %v %d %d\n", path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		return nil
	})
	return listing{digest: creto.DigestOf(text.Bytes()), settled: settled && err == nil}
}

// tick ends, again and again, what Bind remembers.
func (a *Authorizer) tick(ctx context.Context) {
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	a.sessions.tick.Add(1)
	a.sessions.ticking.Store(true)
	defer a.sessions.ticking.Store(false)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			a.sessions.tick.Add(1)
		}
	}
}

// Reload takes the directory's policies into force now: no check that begins
// after it returned is decided by those before.
//
// Errors: as Open; the policies before then stay in force.
func (a *Authorizer) Reload(ctx context.Context) error {
	before, b, err := a.replace()
	if b != nil {
		a.changed(ctx, changeOf(before, b))
	}
	return err
}

// replace takes the directory's policies into force, and returns those before
// and, if they are others, those now.
func (a *Authorizer) replace() (before, now *book, err error) {
	a.reload.Lock()
	defer a.reload.Unlock()
	before = a.current.Load()
	b, err := loadBook(a.dir, a.tenant, before)
	if err != nil || b.version == before.version {
		return before, nil, err
	}
	a.live.each(func(s *session) { s.prepare(b) })
	a.current.Store(b)
	// A session that nobody uses must not keep in memory what was replaced.
	a.live.each(func(s *session) { s.release(b) })
	return before, b, nil
}
