package logkey_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strconv"
	"testing"
)

// TestKeys demands snake_case, and each key once.
func TestKeys(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "logkey.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	snake := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	seen := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if !ok {
			return true
		}
		key, err := strconv.Unquote(lit.Value)
		if err != nil {
			t.Fatal(err)
		}
		if !snake.MatchString(key) || seen[key] {
			t.Errorf("%q is not snake_case, or there twice", key)
		}
		seen[key] = true
		return true
	})
	if len(seen) == 0 {
		t.Error("found no keys")
	}
}
