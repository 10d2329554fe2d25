package localauthz

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/localauthz/program"
	"creto.dev/fault"
)

// draft is a set of policies that is being read.
type draft struct {
	before   map[uint64]*written // of the library before
	library  *library
	policies []*written
	reads    []string // of the context; any number of times
}

// library is what was read of a set's policies, by a hash of their text: the next set
// has most of them again.
type library struct {
	seed     maphash.Seed
	kept     map[uint64]*written
	compiler *program.Compiler
}

// written is a policy as it was read. It is immutable, and sets share it.
type written struct {
	policy
	named    bool           // by its @id
	number   int            // in its file
	at       cedar.Position // in its piece
	compiled *program.Policy
	reads    []string // of the context
}

// newSnapshot returns the set of a tenant's policies, and what is wrong with
// them. It calls rest after each. What the library before has is not read again; it
// may be nil.
func newSnapshot(files []file, version creto.Digest, before *library, rest func()) (*snapshot, []string) {
	d := newDraft(before)
	var problems []string
	for _, f := range files {
		wrong, number := 0, 1
		for p := range pieces(f.text) {
			rest()
			found, err := d.add(f, number, p)
			if found {
				number++
			}
			if err == nil {
				continue
			}
			if wrong++; wrong <= maxMistakes {
				problems = append(problems, err.Error())
			}
		}
		if wrong > maxMistakes {
			problems = append(problems, fmt.Sprintf("%s: %d more policies cannot be used", f.name, wrong-maxMistakes))
		}
	}
	s, wrong := d.snapshot(version, rest)
	return s, append(problems, wrong...)
}

func newDraft(before *library) *draft {
	d := &draft{}
	if before == nil {
		before = &library{seed: maphash.MakeSeed()}
	}
	d.before = before.kept
	d.library = &library{seed: before.seed, kept: make(map[uint64]*written, len(before.kept)), compiler: program.NewCompiler(before.compiler)}
	d.policies = make([]*written, 0, len(before.kept))
	return d
}

// add takes the policy of a piece into the set, if there is one: found. It is the
// one of this number in its file, which it is named by if it has no @id.
func (d *draft) add(f file, number int, p piece) (found bool, err error) {
	hash := maphash.Bytes(d.library.seed, p.text)
	one := d.before[hash]
	if one == nil || !bytes.Equal(one.place.text, p.text) {
		p.text = bytes.Clone(p.text)
		if one, err = d.read(f.name, number, p); err != nil || one == nil {
			return one != nil, err
		}
	}
	if p.text = one.place.text; one.number != number || one.place.at != p.at || one.place.file != f.name {
		one = one.moved(f.name, number, p)
	}
	if one.ref.ID == "" {
		return true, one.mistake(fault.New("localauthz.add", fault.InvalidArgument, "a policy has no id"))
	}
	d.library.compiler.Keep(one.compiled)
	d.library.kept[hash] = one
	d.policies, d.reads = append(d.policies, one), append(d.reads, one.reads...)
	return true, nil
}

// moved returns a policy as it is elsewhere.
func (w *written) moved(name string, number int, p piece) *written {
	one := *w
	one.put(name, number, p)
	one.compiled = one.compiled.At(one.place.position)
	return &one
}

// put says where a policy is.
func (w *written) put(name string, number int, p piece) {
	w.number, w.place = number, &place{piece: p, file: name, position: p.locate(name, w.at)}
	if !w.named {
		w.ref.ID = strings.TrimSuffix(name, ".cedar") + "#" + strconv.Itoa(number)
	}
}

// mistake says where a policy is that something is wrong with.
func (w *written) mistake(err error) error {
	return fmt.Errorf("%s:%d: %s", w.place.file, w.place.position.Line, fault.Message(err))
}

// read reads, checks and compiles the policy of a piece; nil if there is none. With a
// mistake in it, it is returned too.
func (d *draft) read(name string, number int, p piece) (*written, error) {
	source, err := p.parse(name)
	if err != nil || source == nil {
		return nil, err
	}
	one := &written{at: source.Position()}
	one.put(name, number, p)
	(*ast.Policy)(source.AST()).Position = ast.Position(one.place.position)
	if err := one.annotate(source); err != nil {
		return one, one.mistake(err)
	}
	if err := checkNames(source); err != nil {
		return one, one.mistake(err)
	}
	if one.compiled, err = d.library.compiler.Compile(source); err != nil {
		return one, one.mistake(err)
	}
	for number := range actions {
		if one.compiled.Includes(actions[number].uid) {
			one.actions |= 1 << number
		}
	}
	one.reads = readsOf(source)
	return one, nil
}

// annotate reads what a policy says of itself.
func (w *written) annotate(p *cedar.Policy) error {
	const op fault.Op = "localauthz.annotate"
	annotations := p.Annotations()
	if id, named := annotations["id"]; named {
		w.named, w.ref.ID = true, string(id)
	}
	w.ref.Digest, w.forbid = creto.DigestOf(p.MarshalCedar()), p.Effect() == cedar.Forbid
	if approvers, ok := annotations["oversight"]; ok {
		if w.forbid || approvers == "" {
			return fault.New(op, fault.InvalidArgument, "@oversight belongs on a permit and names a group, as in @oversight(\"finance\")")
		}
		w.approvers = string(approvers)
	}
	if timeout, ok := annotations["timeout"]; ok {
		wait, err := time.ParseDuration(string(timeout))
		if err != nil || wait <= 0 || w.approvers == "" {
			return fault.New(op, fault.InvalidArgument, "@timeout(%q) must be a duration such as 30m, beside @oversight", timeout)
		}
		w.timeout = wait
	}
	if w.approvers != "" {
		w.quorum = 1
	}
	if quorum, ok := annotations["quorum"]; ok {
		n, err := strconv.Atoi(string(quorum))
		if err != nil || n < 1 || n > authz.MaxQuorum || w.approvers == "" {
			return fault.New(op, fault.InvalidArgument, "@quorum(%q) must be 1 to %d, beside @oversight", quorum, authz.MaxQuorum)
		}
		if n > 1 && w.approvers == authz.Principal {
			return fault.New(op, fault.InvalidArgument, "@quorum(%q) asks several humans, and @oversight(\"principal\") one: name a group", quorum)
		}
		w.quorum = n
	}
	return nil
}

// snapshot returns the set. problems are what is wrong with it as a whole.
func (d *draft) snapshot(version creto.Digest, rest func()) (s *snapshot, problems []string) {
	d.library.compiler.Done()
	d.sort(rest)
	policies, named := make([]*policy, len(d.policies)), make([]program.Named, len(d.policies))
	for i, one := range d.policies {
		rest()
		policies[i], named[i] = &one.policy, program.Named{ID: cedar.PolicyID(one.ref.ID), Policy: one.compiled}
		if i > 0 && one.ref.ID == policies[i-1].ref.ID {
			problems = append(problems, one.mistake(fault.New("localauthz.snapshot", fault.InvalidArgument, "a second policy has the id %q", one.ref.ID)).Error())
		}
	}
	return &snapshot{
		program: program.New(named, rest), policies: policies, version: version, tables: newTables(), library: d.library,
		reads: slices.Compact(slices.Sorted(slices.Values(d.reads))),
	}, problems
}

// sort puts the policies in the order of their ids, with rests: few at once, then
// together.
func (d *draft) sort(rest func()) {
	const few = 64
	less := func(a, b *written) int {
		return cmp.Or(strings.Compare(a.ref.ID, b.ref.ID), strings.Compare(a.place.file, b.place.file), cmp.Compare(a.number, b.number))
	}
	for some := range slices.Chunk(d.policies, few) {
		slices.SortFunc(some, less)
		rest()
	}
	from, to := d.policies, make([]*written, len(d.policies))
	for size := few; size < len(from); size *= 2 {
		for at := 0; at < len(from); at += 2 * size {
			middle, end := min(at+size, len(from)), min(at+2*size, len(from))
			left, right := from[at:middle], from[middle:end]
			for i := at; i < end; i++ {
				if i%few == 0 {
					rest()
				}
				if len(right) == 0 || len(left) > 0 && less(left[0], right[0]) <= 0 {
					to[i], left = left[0], left[1:]
				} else {
					to[i], right = right[0], right[1:]
				}
			}
		}
		from, to = to, from
	}
	d.policies = from
}
