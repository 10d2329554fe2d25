package node_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit/export"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/health"
	"creto.dev/node"
)

// exported returns the indexes in a file of lines.
func exported(t *testing.T, path string) (indexes []int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Buffer(nil, 1<<20); lines.Scan(); {
		var l export.Line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		indexes = append(indexes, l.Index)
	}
	return indexes
}

// Exports go on where they were, life after life.
func TestExports(t *testing.T) {
	o := options(t, t.TempDir())
	path := filepath.Join(t.TempDir(), "log.jsonl")
	o.Config.Audit.Exports = []node.ExportConfig{{Name: "file", Format: "jsonl", To: path}}
	var size int64
	for life := range 3 {
		_, c, stop := running(t, o)
		if _, err := c.AddHuman(t.Context(), "bob"+string(rune('a'+life)), nil); err != nil {
			t.Fatal(err)
		}
		list, err := c.Receipts(t.Context(), client.Query{Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		size = list[0].Index + 1
		for deadline := time.Now().Add(20 * time.Second); int64(len(exported(t, path))) < size; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d of %d records are exported", len(exported(t, path)), size)
			}
		}
		stop()
	}
	for i, index := range exported(t, path) {
		if index != int64(i) {
			t.Fatalf("line %d is of record %d", i, index)
		}
	}
}

// A collector that refuses stops the export and not the node, and health says so.
func TestExportRefused(t *testing.T) {
	var calls atomic.Int64
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		if r.Header.Get("Authorization") != "Bearer canary-5" {
			t.Errorf("the header is %q", r.Header.Get("Authorization"))
		}
		w.WriteHeader(http.StatusForbidden)
	}))
	defer collector.Close()
	o := options(t, t.TempDir())
	o.Config.Audit.Exports = []node.ExportConfig{{Name: "siem", Format: "otlp", To: collector.URL, Headers: map[string]creto.Secret{"Authorization": creto.NewSecret("Bearer canary-5")}}}
	_, c, stop := running(t, o)
	defer stop()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, report, err := c.Health(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(report)
		if err != nil {
			t.Fatal(err)
		}
		if report.Status.State == health.Degraded && strings.Contains(string(text), "siem: ") && strings.Contains(string(text), "does not accept the credentials") {
			if strings.Contains(string(text), "canary") {
				t.Errorf("health shows a secret: %s", text)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %d calls health is %s", calls.Load(), text)
		}
	}
	if _, err := c.AddHuman(t.Context(), "bob", nil); err != nil {
		t.Errorf("the node does nothing any more: %v", err)
	}
}

func TestExportConfig(t *testing.T) {
	for _, test := range []struct {
		config node.ExportConfig
		key    string // that is wrong; "" if none is
	}{
		{node.ExportConfig{Name: "a", Format: "ocsf", To: "/var/log/x"}, ""},
		{node.ExportConfig{Name: "a", Format: "jsonl", To: "s3://bucket/p?region=x"}, ""},
		{node.ExportConfig{Name: "a", Format: "otlp", To: "https://collector.example"}, ""},
		{node.ExportConfig{Format: "ocsf", To: "/x"}, "name"},
		{node.ExportConfig{Name: "A B", Format: "ocsf", To: "/x"}, "name"},
		{node.ExportConfig{Name: "a", Format: "xml", To: "/x"}, "format"},
		{node.ExportConfig{Name: "a", Format: "ocsf", To: "x"}, "to"},
		{node.ExportConfig{Name: "a", Format: "ocsf", To: "https://collector.example"}, "to"},
		{node.ExportConfig{Name: "a", Format: "otlp", To: "/x"}, "to"},
		{node.ExportConfig{Name: "a", Format: "otlp", To: "http://collector.example"}, "to"},
		{node.ExportConfig{Name: "a", Format: "ocsf", To: "/x", Headers: map[string]creto.Secret{"A": creto.NewSecret("b")}}, "headers"},
	} {
		cfg := node.Default()
		cfg.Audit.Exports = []node.ExportConfig{test.config}
		err := cfg.Validate()
		if (err == nil) != (test.key == "") || err != nil && (!errors.Is(err, fault.InvalidArgument) || !strings.Contains(fault.Message(err), "audit.exports[0]."+test.key)) {
			t.Errorf("%+v = %v, want %q to be wrong", test.config, err, test.key)
		}
	}
}
