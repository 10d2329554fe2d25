package creto_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/token"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// nestedModules are the patterns of the repository's other modules with code.
var nestedModules = []string{"bench/go.mod", "examples/*/go.mod"}

// houseSource parses the non-test source of every module of the repository.
func houseSource(t *testing.T, fset *token.FileSet) []source {
	t.Helper()
	house := os.DirFS(".")
	roots := []string{"."}
	for _, pattern := range nestedModules {
		files, err := fs.Glob(house, pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			roots = append(roots, path.Dir(file))
		}
	}
	var all []source
	for _, root := range roots {
		tree, err := fs.Sub(house, root)
		if err != nil {
			t.Fatal(err)
		}
		packages, err := parseTree(fset, tree, func(name string) bool { return !strings.HasSuffix(name, "_test.go") })
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range packages {
			p.dir = path.Join(root, p.dir)
			all = append(all, p)
		}
	}
	return all
}

// TestPackageComments demands that every package says what it is for, in one
// place.
func TestPackageComments(t *testing.T) {
	for _, p := range houseSource(t, token.NewFileSet()) {
		if err := checkPackageComment(p); err != nil {
			t.Errorf("%s: %v", p.dir, err)
		}
	}
}

// checkPackageComment reports whether a package is introduced as godoc expects.
func checkPackageComment(p source) error {
	var comments []string
	for _, file := range p.files {
		if file.Doc != nil && file.Doc.Text() != "" {
			comments = append(comments, file.Doc.Text())
		}
	}
	name := p.files[0].Name.Name
	want := "Package " + name + " "
	if name == "main" {
		want = "Command "
	}
	switch {
	case len(comments) == 0 && ast.IsGenerated(p.files[0]):
		return nil
	case len(comments) == 0:
		return errors.New("no package comment")
	case len(comments) > 1:
		return fmt.Errorf("%d package comments, want one", len(comments))
	case !strings.HasPrefix(comments[0], want):
		return fmt.Errorf("the package comment begins with %.40q, want %q", comments[0], want)
	}
	return nil
}

// maxFileLines is where a file has more than one idea: style.md says to split
// past 500 lines or so.
const maxFileLines = 600

func TestFileSize(t *testing.T) {
	fset := token.NewFileSet()
	for _, p := range houseSource(t, fset) {
		for _, file := range p.files {
			f := fset.File(file.Pos())
			if lines := f.LineCount(); lines > maxFileLines && !ast.IsGenerated(file) {
				t.Errorf("%s has %d lines, more than %d: split it by idea", path.Join(p.dir, path.Base(f.Name())), lines, maxFileLines)
			}
		}
	}
}

// TestSpecMap holds docs/spec-map.md to the tree: each package it names exists,
// and each exported name it gives is declared there.
func TestSpecMap(t *testing.T) {
	text, err := os.ReadFile("docs/spec-map.md")
	if err != nil {
		t.Fatal(err)
	}
	entries := specMapEntries(string(text))
	if len(entries) == 0 {
		t.Fatal("docs/spec-map.md names no packages")
	}
	declared := map[string]map[string]bool{}
	for _, p := range houseSource(t, token.NewFileSet()) {
		declared[p.dir] = declaredNames(p)
	}
	for _, e := range entries {
		names, ok := declared[e.dir]
		if !ok {
			t.Errorf("%s: there is no package %s", e.term, e.dir)
			continue
		}
		for _, name := range e.names {
			if !names[name] {
				t.Errorf("%s: package %s declares no %s", e.term, e.dir, name)
			}
		}
	}
}

// specEntry is one line of the spec map that names a package.
type specEntry struct {
	term  string
	dir   string
	names []string // as in "Check" or "Check.Name"
}

var codeSpan = regexp.MustCompile("`([^`]+)`")

// specMapEntries reads the tables of the spec map. Their columns are the spec's
// term, the package, and the names in it; a line whose package is no code span
// stands for something that is not built.
func specMapEntries(markdown string) []specEntry {
	var entries []specEntry
	for line := range strings.Lines(markdown) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 5 { // the outer bars give two empty ones
			continue
		}
		e := specEntry{term: strings.TrimSpace(cells[1])}
		dir := codeSpan.FindStringSubmatch(cells[2])
		if dir == nil {
			continue
		}
		e.dir = strings.TrimSuffix(dir[1], "/")
		if e.dir == "creto" {
			e.dir = "."
		}
		for _, name := range codeSpan.FindAllStringSubmatch(cells[3], -1) {
			if token.IsExported(name[1]) {
				e.names = append(e.names, name[1])
			}
		}
		entries = append(entries, e)
	}
	return entries
}

// declaredNames returns what a package exports: functions, types, variables and
// constants by name, methods and fields as Type.Name.
func declaredNames(p source) map[string]bool {
	names := map[string]bool{}
	for _, file := range p.files {
		for _, decl := range file.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				if decl.Recv == nil {
					names[decl.Name.Name] = true
				} else if receiver := root(unindexed(decl.Recv.List[0].Type)); receiver != nil {
					names[receiver.Name+"."+decl.Name.Name] = true
				}
			case *ast.GenDecl:
				for _, spec := range decl.Specs {
					switch spec := spec.(type) {
					case *ast.ValueSpec:
						for _, name := range spec.Names {
							names[name.Name] = true
						}
					case *ast.TypeSpec:
						names[spec.Name.Name] = true
						for _, member := range members(spec.Type) {
							names[spec.Name.Name+"."+member] = true
						}
					}
				}
			}
		}
	}
	return names
}

// unindexed strips the type parameters of a receiver.
func unindexed(e ast.Expr) ast.Expr {
	if star, ok := e.(*ast.StarExpr); ok {
		e = star.X
	}
	if index, ok := e.(*ast.IndexExpr); ok {
		return index.X
	}
	return e
}

// members returns the fields of a struct or the methods of an interface.
func members(e ast.Expr) []string {
	var list *ast.FieldList
	switch e := e.(type) {
	case *ast.StructType:
		list = e.Fields
	case *ast.InterfaceType:
		list = e.Methods
	default:
		return nil
	}
	var names []string
	for _, field := range list.List {
		for _, name := range field.Names {
			names = append(names, name.Name)
		}
	}
	return names
}

// TestTour checks that README.md has a tour, whose commands can be taken from
// it.
func TestTour(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("there is no README.md")
	}
	if err != nil {
		t.Fatal(err)
	}
	blocks := tourBlocks(string(readme))
	if len(blocks) == 0 {
		t.Error("README.md has no block marked ```sh run")
	}
	for i, block := range blocks {
		if strings.TrimSpace(block) == "" {
			t.Errorf("README.md: block %d of the tour is empty", i+1)
		}
	}
}

// tourBlocks returns the commands of README.md's tour: its code blocks whose
// info string is "sh run". A block "sh" is for reading.
func tourBlocks(markdown string) []string {
	var (
		blocks []string
		block  []string
		inside bool // any code block
		tour   bool // one of the tour
	)
	for line := range strings.Lines(markdown) {
		info, fence := strings.CutPrefix(strings.TrimRight(line, "\n"), "```")
		switch {
		case fence && !inside:
			inside, tour, block = true, strings.TrimSpace(info) == "sh run", nil
		case fence:
			if tour {
				blocks = append(blocks, strings.Join(block, ""))
			}
			inside, tour = false, false
		case inside:
			block = append(block, line)
		}
	}
	return blocks
}

// TestHouse tests what the tests above are made of.
func TestHouse(t *testing.T) {
	t.Run("tour blocks", func(t *testing.T) {
		got := tourBlocks("a\n```sh run\nx\ny\n```\n```sh\nno\n```\n```\nsh run\n```\n```sh run\nz\n```\n")
		if want := []string{"x\ny\n", "z\n"}; !slices.Equal(got, want) {
			t.Errorf("tourBlocks = %q, want %q", got, want)
		}
	})
	t.Run("spec map entries", func(t *testing.T) {
		const table = "| Spec | Package | Names |\n|---|---|---|\n| `A` | `nhi` | `B`, `C.D` replace `a` |\n| E | not built yet | `F` |\n| G | `creto` | |\n"
		got := fmt.Sprint(specMapEntries(table))
		if want := "[{`A` nhi [B C.D]} {G . []}]"; got != want {
			t.Errorf("specMapEntries = %s, want %s", got, want)
		}
	})
	t.Run("package comments", func(t *testing.T) {
		for source, want := range map[string]string{
			"// Package p does.\npackage p":                     "",
			"// Command p does.\npackage main":                  "",
			"package p":                                         "no package comment",
			"// Helpers.\npackage p":                            `the package comment begins with "Helpers.\n", want "Package p "`,
			"// Package p does.\npackage main":                  `the package comment begins with "Package p does.\n", want "Command "`,
			"// Code generated by x. DO NOT EDIT.\n\npackage p": "",
		} {
			got := ""
			if err := checkPackageComment(parsed(t, source)); err != nil {
				got = err.Error()
			}
			if got != want {
				t.Errorf("checkPackageComment(%q) = %q, want %q", source, got, want)
			}
		}
	})
	t.Run("declared names", func(t *testing.T) {
		names := declaredNames(parsed(t, "package p\nvar V int\nconst C = 1\nfunc F() {}\ntype T struct{ A, B int }\nfunc (t *T) M() {}\ntype G[X any] int\nfunc (g *G[X]) N() {}\ntype I interface{ O() }"))
		for _, want := range []string{"V", "C", "F", "T", "T.A", "T.B", "T.M", "G.N", "I.O"} {
			if !names[want] {
				t.Errorf("declaredNames lacks %s", want)
			}
		}
	})
}

// parsed returns a package of one file.
func parsed(t *testing.T, text string) source {
	t.Helper()
	packages, err := parseTree(token.NewFileSet(), fstest.MapFS{"p.go": &fstest.MapFile{Data: []byte(text)}}, func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	return packages[0]
}
