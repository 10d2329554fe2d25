package creto_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

// module is the product's module path.
const module = "creto.dev"

// layer is one line of the layer table. A package may import packages of lower
// layers only; those of its own layer only if one is the other's parent.
type layer struct {
	name     string
	packages string // patterns as of path.Match; a last element ... stands for everything below
}

// layers is the layer table of docs/architecture.md, lowest first, with every
// package of its tree, built or not. Where the order within a layer matters,
// its lines are split. <contract>test holds a contract's conformance suite, and
// <where><contract> implements it: local, remote, or the name of an engine.
var layers = []layer{
	{"0", "fault internal/logkey"},
	{"1", "."},
	{"2", "call health fault/faulthttp"},
	{"3a", "internal/canon"}, // the contracts' one encoder
	{"3a", "pqc consensus"},
	{"3b", "nhi"},
	{"3c", "audit"},
	{"3d", "authz memory storage"},
	{"3e", "inference"},
	{"3f", "gate receipt receipt/verifier"},
	{"4", "internal/durable"},
	{"4", "internal/journal"}, // a queue of bytes
	{"4", "internal/db"},      // the enablement layer and the engines keep tables; contracts do not
	{"4", "sandbox/guest"},    // what runs inside; it knows nothing of Creto
	{"4", "metering oversight sandbox messaging"},
	{"5", "internal/db/dbtest"},
	{"5", "internal/llamacpptest"},               // a real engine for the tests of providers and gateway
	{"5", "pqc/pqctest consensus/consensustest"}, // a suite may use the fakes of contracts below its own
	{"5", "nhi/nhitest"},
	{"5", "audit/audittest"},
	{"5", "authz/authztest memory/memorytest storage/storagetest"},
	{"5", "inference/inferencetest"},
	{"5", "gate/gatetest receipt/receipttest"},
	{"5", "metering/meteringtest oversight/oversighttest sandbox/sandboxtest messaging/messagingtest"},
	{"6", "internal/gen/creto/pqc/..."}, // keys and signatures are in the messages of others
	{"6", "internal/gen/creto/nhi/..."}, // so are links
	{"6", "internal/gen/... fault/faultgrpc"},
	{"7", "internal/wire internal/wire/wiretest"},
	{"7", "internal/otlp internal/otlp/otlptest"}, // telemetry, on its way out
	{"8", "inference/telemetry inference/cache"},  // decorators of models
	{"8", "inference/injection/..."},              // what attacks models is judged above every contract, for the gateway
	{"8", "audit/intake"},                         // the front that logs share
	{"8", "authz/localauthz/program"},             // Cedar, compiled
	{"8", "sandbox/internal/launch"},              // what the sandbox backends share
	{"8", "pqc/kek"},
	{"8", "pqc/*pqc consensus/*consensus nhi/*nhi nhi/secretsource audit/*audit authz/*authz memory/*memory storage/*storage inference/*inference audit/witness audit/export"},
	{"8", "metering/*metering oversight/*oversight sandbox/*sandbox messaging/*messaging"},
	{"8", "inference/provider/... oversight/channel/... metering/billing/... sandbox/gvisor sandbox/namespaces"},
	{"8", "login/..."}, // humans: sessions, passkeys, identity providers, and an authenticator in software
	{"9", "client"},
	{"10", "console/... gateway/... internal/serve internal/sts"},
	{"11", "node"},
	{"12", "cmd/creto examples/soft-passkey"},
}

// contractLayer is the layer of the contracts, whatever its letter.
const contractLayer = "3"

// foreign lists what contracts may import besides the standard library and
// lower layers, with the reason.
var foreign = map[string][]string{
	"internal/canon": {"github.com/fxamacker/cbor/v2"}, // it is there to wrap it
	"audit":          {"golang.org/x/mod/sumdb/"},      // the Merkle tree's hashes and proofs are part of the contract
	"receipt":        {"golang.org/x/mod/sumdb/"},      // likewise, and the signed note
}

// never lists imports that a package may not have though the table permits them,
// with the reason.
var never = map[string][]string{
	"gate":             {"call", "internal/wire"}, // authorization in this process is asked once and believed (package call)
	"authz":            {"call", "internal/wire"},
	"authz/localauthz": {"call", "internal/wire"},
}

// TestDeps holds the source to the layer table and to what style.md says of
// imports and global state.
func TestDeps(t *testing.T) {
	problems, err := checkTree(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
}

// TestCheckTree shows the checker trees in which one thing is wrong.
func TestCheckTree(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string // source by file, without the package clause
		want  string            // the only problem; "" if there is none
	}{
		{"downwards", map[string]string{"nhi/a.go": `import ("context"; "creto.dev"; "creto.dev/pqc"; "creto.dev/internal/canon")`}, ""},
		{"upwards", map[string]string{"pqc/a.go": `import "creto.dev/nhi"`}, "pqc/a.go:2:8: pqc (layer 3a) imports nhi (layer 3b)"},
		{"a contract and its implementation", map[string]string{"audit/a.go": `import "creto.dev/audit/localaudit"`}, "audit/a.go:2:8: audit (layer 3c) imports audit/localaudit (layer 8)"},
		{"an enabling package and an implementation", map[string]string{"oversight/a.go": `import "creto.dev/audit/localaudit"`}, "oversight/a.go:2:8: oversight (layer 4) imports audit/localaudit (layer 8)"},
		{"a suite and an implementation", map[string]string{"audit/audittest/a.go": `import "creto.dev/audit/localaudit"`}, "audit/audittest/a.go:2:8: audit/audittest (layer 5) imports audit/localaudit (layer 8)"},
		{"sideways", map[string]string{"authz/a.go": `import "creto.dev/storage"`}, "authz/a.go:2:8: authz (layer 3d) imports storage (layer 3d)"},
		{"a child", map[string]string{"gateway/a.go": `import "creto.dev/gateway/openai"`}, ""},
		{"a parent", map[string]string{"gateway/openai/a.go": `import "creto.dev/gateway"`}, ""},
		{"a sibling", map[string]string{"gateway/openai/a.go": `import "creto.dev/gateway/egress"`}, "gateway/openai/a.go:2:8: gateway/openai (layer 10) imports gateway/egress (layer 10)"},
		{"the root", map[string]string{"creto.go": `import "creto.dev/call"`}, "creto.go:2:8: . (layer 1) imports call (layer 2)"},
		{"a policy around local authorization", map[string]string{"authz/localauthz/a.go": `import "creto.dev/call"`}, "authz/localauthz/a.go:2:8: authz/localauthz must do without call (see never in deps_test.go)"},
		{"unknown", map[string]string{"util/a.go": ""}, "util: not in the layer table; add it to layers in deps_test.go and to docs/architecture.md"},
		{"an unknown import", map[string]string{"node/a.go": `import "creto.dev/util"`}, "node/a.go:2:8: creto.dev/util: not in the layer table; add it to layers in deps_test.go and to docs/architecture.md"},
		{"a foreign import in a contract", map[string]string{"nhi/a.go": `import "github.com/google/uuid"`}, "nhi/a.go:2:8: nhi is a contract: it may not import github.com/google/uuid"},
		{"a named exception", map[string]string{"audit/a.go": `import "golang.org/x/mod/sumdb/tlog"`}, ""},
		{"a foreign import elsewhere", map[string]string{"node/a.go": `import "github.com/google/uuid"`}, ""},
		{"an alias", map[string]string{"node/a.go": `import trail "creto.dev/audit"`}, "node/a.go:2:8: import of creto.dev/audit is renamed to trail"},
		{"an alias of the standard library", map[string]string{"node/a.go": `import stdlog "log"`}, "node/a.go:2:8: import of log is renamed to stdlog"},
		{"an alias of generated code", map[string]string{"internal/wire/a.go": `import auditv1 "creto.dev/internal/gen/creto/audit/v1"`}, ""},
		{"a foreign package's own name", map[string]string{"node/a.go": `import cedar "github.com/cedar-policy/cedar-go"`}, ""},
		{"a dot import", map[string]string{"node/a.go": `import . "creto.dev/audit"`}, "node/a.go:2:8: import of creto.dev/audit is renamed to ."},
		{"an import for its effect", map[string]string{"node/a.go": `import _ "embed"`}, ""},
		{"init", map[string]string{"node/a.go": "func init() {}"}, "node/a.go:2:6: func init: construct things where they are used"},
		{"a method named init", map[string]string{"node/a.go": "type t int\nfunc (t) init() {}"}, ""},
		{"a registry", map[string]string{"node/a.go": "var engines = map[string]int{}\nfunc Register(s string) { engines[s]++ }"}, "node/a.go:3:27: package variable engines is written to: pass state as a value"},
		{"a registry in another file", map[string]string{"node/a.go": "var engines []string", "node/b.go": "func Register(s string) { engines = append(engines, s) }"}, "node/b.go:2:27: package variable engines is written to: pass state as a value"},
		{"a registry's address", map[string]string{"node/a.go": "var count int\nfunc Count() *int { return &count }"}, "node/a.go:3:29: package variable count is written to: pass state as a value"},
		{"a global lock", map[string]string{"node/a.go": "import \"sync\"\nvar mu sync.Mutex"}, "node/a.go:3:5: package variable mu has type sync.Mutex: pass state as a value"},
		{"a global counter", map[string]string{"node/a.go": "import \"sync/atomic\"\nvar n, m atomic.Int64"}, "node/a.go:3:5: package variable n has type atomic.Int64: pass state as a value"},
		{"a table", map[string]string{"node/a.go": "var engines = map[string]int{}\nfunc f() int { engines := []int{1}; engines[0] = 2; return engines[0] }"}, ""},
		{"a test", map[string]string{"pqc/a_test.go": `import a "creto.dev/node"`}, ""},
		{"another module", map[string]string{"bench/go.mod": "module x", "bench/a.go": `import "example.com/peer"; func init() {}`}, ""},
		{"testdata", map[string]string{"node/testdata/a.go": `func init() {}`}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tree := fstest.MapFS{}
			for name, source := range tt.files {
				tree[name] = &fstest.MapFile{Data: []byte("package p\n" + source)}
			}
			problems, err := checkTree(tree)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(problems, "\n"); got != tt.want {
				t.Errorf("checkTree = %q, want %q", got, tt.want)
			}
		})
	}
	t.Run("bad source", func(t *testing.T) {
		if _, err := checkTree(fstest.MapFS{"node/a.go": &fstest.MapFile{Data: []byte("pakage node")}}); err == nil {
			t.Error("checkTree of a file that does not parse = nil, want an error")
		}
	})
}

// source is the non-test source of one package.
type source struct {
	dir   string // from the module's root, "." for the root itself
	files []*ast.File
}

// checkTree returns what is wrong with the module's source, in the order of
// its files.
func checkTree(fsys fs.FS) ([]string, error) {
	fset := token.NewFileSet()
	packages, err := parseTree(fset, fsys, func(name string) bool { return !strings.HasSuffix(name, "_test.go") })
	if err != nil {
		return nil, err
	}
	var problems []string
	for _, p := range packages {
		problems = append(problems, checkImports(fset, p)...)
		problems = append(problems, checkGlobals(fset, p)...)
	}
	return problems, nil
}

// parseTree parses the wanted Go files of a module, whatever their build
// constraints. Nested modules, testdata and hidden directories are not part of
// it.
func parseTree(fset *token.FileSet, fsys fs.FS, want func(name string) bool) ([]source, error) {
	var packages []source
	err := fs.WalkDir(fsys, ".", func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if dir != "." {
			if strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" {
				return fs.SkipDir
			}
			if _, err := fs.Stat(fsys, path.Join(dir, "go.mod")); err == nil {
				return fs.SkipDir
			}
		}
		names, err := fs.Glob(fsys, path.Join(dir, "*.go"))
		if err != nil {
			return err
		}
		p := source{dir: dir}
		for _, name := range names {
			if !want(name) {
				continue
			}
			text, err := fs.ReadFile(fsys, name)
			if errors.Is(err, fs.ErrNotExist) {
				continue // an editor's temporary file
			}
			if err != nil {
				return err
			}
			file, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			p.files = append(p.files, file)
		}
		if len(p.files) > 0 {
			packages = append(packages, p)
		}
		return nil
	})
	return packages, err
}

const notInTable = "not in the layer table; add it to layers in deps_test.go and to docs/architecture.md"

// checkImports holds a package's imports to the layer table.
func checkImports(fset *token.FileSet, p source) []string {
	rank, ok := rankOf(p.dir)
	if !ok {
		return []string{p.dir + ": " + notInTable}
	}
	var problems []string
	for _, file := range p.files {
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				panic(err) // it parsed
			}
			report := func(format string, args ...any) {
				problems = append(problems, fmt.Sprintf("%s: %s", fset.Position(spec.Pos()), fmt.Sprintf(format, args...)))
			}
			dir, own := dirOf(imported)
			if name := spec.Name; name != nil && renamed(name.Name, imported) && !ast.IsGenerated(file) {
				report("import of %s is renamed to %s", imported, name.Name)
			}
			switch {
			case !own:
				if strings.HasPrefix(layers[rank].name, contractLayer) && !standard(imported) && !mayImport(p.dir, imported) {
					report("%s is a contract: it may not import %s", p.dir, imported)
				}
			default:
				theirs, ok := rankOf(dir)
				switch {
				case slices.Contains(never[p.dir], dir):
					report("%s must do without %s (see never in deps_test.go)", p.dir, dir)
				case !ok:
					report("%s: %s", imported, notInTable)
				case theirs > rank, theirs == rank && !related(p.dir, dir):
					report("%s (layer %s) imports %s (layer %s)", p.dir, layers[rank].name, dir, layers[theirs].name)
				}
			}
		}
	}
	return problems
}

// rankOf returns the index in layers of the package in dir.
func rankOf(dir string) (int, bool) {
	for rank, l := range layers {
		for _, pattern := range strings.Fields(l.packages) {
			if base, subtree := strings.CutSuffix(pattern, "/..."); subtree && within(base, dir) {
				return rank, true
			}
			if ok, err := path.Match(pattern, dir); err != nil {
				panic(err) // the table is wrong
			} else if ok {
				return rank, true
			}
		}
	}
	return 0, false
}

// dirOf returns the directory of an import path of this module.
func dirOf(imported string) (dir string, own bool) {
	if imported == module {
		return ".", true
	}
	return strings.CutPrefix(imported, module+"/")
}

// within reports whether dir is base or below it.
func within(base, dir string) bool { return dir == base || strings.HasPrefix(dir, base+"/") }

// related reports whether one directory is above the other.
func related(a, b string) bool { return within(a, b) || within(b, a) }

// standard reports whether an import path is the standard library's: only its
// first elements have no dot.
func standard(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return !strings.Contains(first, ".")
}

// mayImport reports whether the contract in dir is granted the import.
func mayImport(dir, imported string) bool {
	return slices.ContainsFunc(foreign[dir], func(prefix string) bool { return strings.HasPrefix(imported, prefix) })
}

// renamed reports whether an import's name is an alias that style.md forbids.
// Generated packages have names that clash; and the name of a foreign package
// is often not the end of its path, so that stating it helps the reader.
func renamed(name, imported string) bool {
	switch {
	case name == "_":
		return false
	case name == ".":
		return true
	case within(module+"/internal/gen", imported):
		return false
	}
	_, own := dirOf(imported)
	return own || standard(imported)
}

// checkGlobals looks for what runs or changes behind the reader's back: init
// functions, and package variables that are written to.
func checkGlobals(fset *token.FileSet, p source) []string {
	// Imports are not resolved: what matters is which names are the package's
	// own, and that go/types knows without them.
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: noImports{}, Error: func(error) {}, DisableUnusedImportCheck: true}
	pkg, _ := config.Check(p.dir, fset, p.files, info)

	var problems []string
	report := func(pos token.Pos, format string, args ...any) {
		problems = append(problems, fmt.Sprintf("%s: %s", fset.Position(pos), fmt.Sprintf(format, args...)))
	}
	written := func(e ast.Expr) {
		name := root(e)
		if name == nil {
			return
		}
		if v, ok := info.Uses[name].(*types.Var); ok && v.Parent() == pkg.Scope() {
			report(name.Pos(), "package variable %s is written to: pass state as a value", name.Name)
		}
	}
	for _, file := range p.files {
		if ast.IsGenerated(file) {
			continue
		}
		for _, decl := range file.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				if decl.Recv == nil && decl.Name.Name == "init" {
					report(decl.Name.Pos(), "func init: construct things where they are used")
				}
				ast.Inspect(decl, func(n ast.Node) bool {
					switch n := n.(type) {
					case *ast.AssignStmt:
						for _, e := range n.Lhs {
							written(e)
						}
					case *ast.IncDecStmt:
						written(n.X)
					case *ast.UnaryExpr:
						if n.Op == token.AND {
							written(n.X)
						}
					}
					return true
				})
			case *ast.GenDecl:
				for _, spec := range decl.Specs {
					if v, ok := spec.(*ast.ValueSpec); ok {
						if kind := stateful(v.Type); kind != "" && decl.Tok == token.VAR {
							report(v.Pos(), "package variable %s has type %s: pass state as a value", v.Names[0].Name, kind)
						}
					}
				}
			}
		}
	}
	return problems
}

// root returns the variable that an assignment to e changes, or nil.
func root(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// stateful returns the type's name if its only use is to change. A sync.Pool
// is none of them: nobody can tell whether it is there.
func stateful(e ast.Expr) string {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	from, ok := s.X.(*ast.Ident)
	if !ok || from.Name != "atomic" && from.Name != "sync" || s.Sel.Name == "Pool" {
		return ""
	}
	return from.Name + "." + s.Sel.Name
}

// noImports is an importer that finds nothing.
type noImports struct{}

// Import implements types.Importer.
func (noImports) Import(string) (*types.Package, error) { return nil, errors.New("not resolved") }
