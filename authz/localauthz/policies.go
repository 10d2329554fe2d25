package localauthz

import (
	"crypto/sha3"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
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
	policies []*policy // by their numbers in the program
	version  creto.Digest
	tables   *tables
	reads    []string // the names in the context that a policy reads, in order; see readsAll
	library  *library // what the next set may keep
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
// policies are those of the book before keep their snapshot, and of others the
// policies that are as before are not read again; it may be nil. It calls rest after
// each policy. Nothing of the book is in the desk's memory.
func loadBook(dir, home string, before *book, on *desk, rest func()) (*book, error) {
	const op fault.Op = "localauthz.load"
	room := on.take()
	defer on.put(room)
	files, err := read(dir, room)
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
		text := sha3.New256()
		hash(text, f.text, rest)
		b.files[f.name] = creto.Digest(text.Sum(nil))
	}
	for _, tenant := range slices.Sorted(maps.Keys(shelves)) {
		version := versionOf(shelves[tenant], rest)
		s := before.with(tenant, version)
		if s == nil {
			var wrong []string
			s, wrong = newSnapshot(shelves[tenant], version, before.library(tenant), rest)
			problems = append(problems, wrong...)
		}
		b.tenants[tenant] = s
		texts = append(texts, tenant+" "+s.version.String())
	}
	b.none, _ = newSnapshot(nil, versionOf(nil, rest), nil, rest)
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

// library returns what was read of a tenant's policies; nil if nothing was.
func (b *book) library(tenant string) *library {
	if b == nil || b.tenants[tenant] == nil {
		return nil
	}
	return b.tenants[tenant].library
}

// versionOf returns the digest of a tenant's files.
func versionOf(files []file, rest func()) creto.Digest {
	texts := sha3.New256()
	for _, f := range files {
		_, _ = fmt.Fprintf(texts, "%s %d\n", f.name, len(f.text)) // it never fails
		hash(texts, f.text, rest)
	}
	return creto.Digest(texts.Sum(nil))
}

// hash writes a text to a digest. It calls rest now and then.
func hash(to *sha3.SHA3, text []byte, rest func()) {
	for some := range slices.Chunk(text, hashStep) {
		_, _ = to.Write(some) // it never fails
		rest()
	}
}

// hashStep is how many bytes are hashed between rests, in some ten µs.
const hashStep = 4 << 10

type file struct {
	name string
	text []byte
}

// desk has memory for the texts of files while they are read. What reloads in quick
// succession leave behind is less for it, and so are the garbage collector's turns; of
// an authorizer whose policies stay the collector takes it. The zero value is ready.
type desk struct{ rooms sync.Pool }

// take returns memory for one reload, as long as nobody else has it.
func (d *desk) take() *[]byte {
	if room, ok := d.rooms.Get().(*[]byte); ok {
		return room
	}
	return new([]byte)
}

// put gives memory back. No text in it is in use.
func (d *desk) put(room *[]byte) {
	*room = (*room)[:0]
	d.rooms.Put(room)
}

// read returns the policy files below dir, their texts in room.
func read(dir string, room *[]byte) ([]file, error) {
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
		begin := len(*room)
		if *room, err = appendFile(*room, path, int(info.Size())); err != nil {
			return err
		}
		text := (*room)[begin:len(*room):len(*room)]
		name, err := filepath.Rel(dir, path)
		files = append(files, file{name: filepath.ToSlash(name), text: text})
		return err
	})
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return nil, err
	}
	return files, fault.WrapAs(op, fault.Unavailable, err, "the policies in %s cannot be read", dir)
}

// appendFile appends the content of a file, of about this size, to a text.
func appendFile(text []byte, path string, size int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return text, err
	}
	defer func() { _ = f.Close() }() // it was only read
	for {
		text = slices.Grow(text, size+1) // one more, to see the end
		n, err := f.Read(text[len(text):cap(text)])
		text, size = text[:len(text)+n], 0
		if err == io.EOF {
			return text, nil
		}
		if err != nil {
			return text, err
		}
	}
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
