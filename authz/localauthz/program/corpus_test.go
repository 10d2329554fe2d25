package program_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	exptypes "github.com/cedar-policy/cedar-go/x/exp/types"
)

// The size of Cedar's official corpus, as cedar-go v1.9.0 carries it.
const (
	corpusTests    = 7_750
	corpusRequests = 62_000
)

// TestCorpus runs Cedar's official corpus, which Cedar's authors generate with
// their reference implementation: decisions, reasons and errors must be equal.
func TestCorpus(t *testing.T) {
	files := corpus(t)
	tests, requests := 0, 0
	for name, text := range files {
		if !strings.HasSuffix(name, ".json") || strings.HasSuffix(name, ".entities.json") {
			continue
		}
		tests++
		requests += testCorpusFile(t, files, name, text)
	}
	if tests != corpusTests || requests != corpusRequests {
		t.Errorf("%d tests with %d requests ran, want %d with %d", tests, requests, corpusTests, corpusRequests)
	}
}

func testCorpusFile(t *testing.T, files map[string][]byte, name string, text []byte) int {
	t.Helper()
	var test struct {
		Schema, Policies, Entities string
		Requests                   []struct {
			Description                 string
			Principal, Action, Resource cedar.EntityUID
			Context                     cedar.Record
			Decision                    cedar.Decision
			Reason, Errors              []cedar.PolicyID
		}
	}
	if err := json.Unmarshal(text, &test); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	policies, err := cedar.NewPolicySetFromBytes("policy.cedar", files[test.Policies])
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	p, err := compileSet(policies)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var shape schema.Schema
	if err := shape.UnmarshalCedar(files[test.Schema]); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	resolved, err := shape.Resolve()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var entities exptypes.EntityMap
	if err := entities.UnmarshalJSONWithSchema(files[test.Entities], resolved); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for _, r := range test.Requests {
		decision, diagnostic := p.Authorize(cedar.EntityMap(entities), cedar.Request{Principal: r.Principal, Action: r.Action, Resource: r.Resource, Context: r.Context})
		slices.Sort(r.Reason)
		slices.Sort(r.Errors)
		if decision != r.Decision || !slices.Equal(reasons(diagnostic), r.Reason) || !slices.Equal(failures(t, diagnostic), r.Errors) {
			t.Errorf("%s, %s: %v, reasons %v, errors %v; want %v, %v, %v", name, r.Description,
				decision, reasons(diagnostic), failures(t, diagnostic), r.Decision, r.Reason, r.Errors)
		}
	}
	return len(test.Requests)
}

func reasons(d cedar.Diagnostic) []cedar.PolicyID {
	ids := make([]cedar.PolicyID, 0, len(d.Reasons))
	for _, r := range d.Reasons {
		ids = append(ids, r.PolicyID)
	}
	return ids
}

func failures(t *testing.T, d cedar.Diagnostic) []cedar.PolicyID {
	t.Helper()
	ids := make([]cedar.PolicyID, 0, len(d.Errors))
	for _, e := range d.Errors {
		if e.Message == "" {
			t.Errorf("the error of policy %q says nothing", e.PolicyID)
		}
		ids = append(ids, e.PolicyID)
	}
	return ids
}

// corpus returns the files of the corpus, which is part of the module cedar-go.
func corpus(t *testing.T) map[string][]byte {
	t.Helper()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/cedar-policy/cedar-go").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	packed, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "corpus-tests.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	unzipped, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string][]byte)
	for archive := tar.NewReader(unzipped); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if files[header.Name], err = io.ReadAll(archive); err != nil {
			t.Fatal(fmt.Errorf("%s: %w", header.Name, err))
		}
	}
}
