package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func newShop(t *testing.T, dir string) *shop {
	t.Helper()
	orders, err := loadOrders("../orders.csv")
	if err != nil {
		t.Fatal(err)
	}
	refunds, err := openJournal(dir, "refunds.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	replies, err := openJournal(dir, "replies.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { refunds.Close(); replies.Close() })
	return &shop{
		orders: orders, customersFile: "../customers.csv", refunds: refunds, replies: replies,
		now: func() time.Time { return time.Date(2026, 10, 19, 9, 0, 0, 0, time.UTC) },
		log: slog.New(slog.DiscardHandler),
	}
}

func TestAPI(t *testing.T) {
	const jsonType = "application/json"
	tests := []struct {
		name                string
		method, path        string
		contentType, body   string
		wantStatus          int
		wantType, wantInOut string
	}{
		{"an order", "GET", "/orders/1007", "", "", 200, jsonType, `"total":109.80,"currency":"EUR","status":"delivered"`},
		{"no such order", "GET", "/orders/9999", "", "", 404, "application/problem+json", `there is no order \"9999\"`},
		{"customers", "GET", "/customers/export", "", "", 200, "text/csv; charset=utf-8", "carla.rossi@example.com"},
		{"a reply", "POST", "/replies", jsonType, `{"mail":"07","text":"Dear Carla"}`, 201, jsonType, `"id":"M-0001"`},
		{"an empty reply", "POST", "/replies", jsonType, `{"mail":"07","text":" "}`, 422, "application/problem+json", "mail and text are required"},
		{"a refund", "POST", "/refunds", jsonType, `{"order":"1007","amount":49.90,"reason":"broken"}`, 201, jsonType, `"id":"R-0001","order":"1007","amount":49.90,"currency":"EUR"`},
		{"one place is enough", "POST", "/refunds", jsonType, `{"order":"1007","amount":49.9,"reason":"broken"}`, 201, jsonType, `"amount":49.90`},
		{"charset is fine", "POST", "/refunds", jsonType + "; charset=utf-8", `{"order":"1007","amount":50,"reason":"broken"}`, 201, jsonType, `"amount":50.00`},
		{"more than the total", "POST", "/refunds", jsonType, `{"order":"1007","amount":109.81,"reason":"broken"}`, 422, "application/problem+json", "outside 0.01 to 109.80"},
		{"nothing", "POST", "/refunds", jsonType, `{"order":"1007","amount":0,"reason":"broken"}`, 422, "application/problem+json", "outside 0.01"},
		{"negative", "POST", "/refunds", jsonType, `{"order":"1007","amount":-1,"reason":"broken"}`, 400, "application/problem+json", "is no amount"},
		{"a third place", "POST", "/refunds", jsonType, `{"order":"1007","amount":49.901,"reason":"broken"}`, 400, "application/problem+json", "is no amount"},
		{"an exponent", "POST", "/refunds", jsonType, `{"order":"1007","amount":4e1,"reason":"broken"}`, 400, "application/problem+json", "is no amount"},
		{"a string", "POST", "/refunds", jsonType, `{"order":"1007","amount":"49.90","reason":"broken"}`, 400, "application/problem+json", "is no amount"},
		{"no reason", "POST", "/refunds", jsonType, `{"order":"1007","amount":1}`, 422, "application/problem+json", "reason is required"},
		{"unknown order", "POST", "/refunds", jsonType, `{"order":"1","amount":1,"reason":"broken"}`, 422, "application/problem+json", "there is no order"},
		{"unknown field", "POST", "/refunds", jsonType, `{"order":"1007","amount":1,"reason":"broken","to":"me"}`, 400, "application/problem+json", "unknown field"},
		{"two values", "POST", "/refunds", jsonType, `{"order":"1007","amount":1,"reason":"x"}{}`, 400, "application/problem+json", "more than one value"},
		{"no JSON", "POST", "/refunds", jsonType, `order=1007`, 400, "application/problem+json", "bad JSON"},
		{"a form", "POST", "/refunds", "application/x-www-form-urlencoded", `order=1007`, 415, "application/problem+json", "Content-Type"},
		{"too large", "POST", "/refunds", jsonType, strings.Repeat(" ", maxBodyBytes+1), 413, "application/problem+json", "above 65536 bytes"},
		{"wrong method", "GET", "/refunds", "", "", 405, "application/problem+json", "use POST"},
		{"wrong path", "GET", "/admin", "", "", 404, "application/problem+json", "nothing at /admin"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			api := newShop(t, t.TempDir()).handler()
			r := httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body))
			if tt.contentType != "" {
				r.Header.Set("Content-Type", tt.contentType)
			}
			w := httptest.NewRecorder()
			api.ServeHTTP(w, r)
			if w.Code != tt.wantStatus || w.Header().Get("Content-Type") != tt.wantType {
				t.Errorf("%s %s = %d %s, want %d %s", tt.method, tt.path, w.Code, w.Header().Get("Content-Type"), tt.wantStatus, tt.wantType)
			}
			if !strings.Contains(w.Body.String(), tt.wantInOut) {
				t.Errorf("%s %s = %s, want it to contain %s", tt.method, tt.path, w.Body, tt.wantInOut)
			}
		})
	}
}

func TestJournal(t *testing.T) {
	t.Run("counts on after a restart", func(t *testing.T) {
		dir := t.TempDir()
		for range 2 {
			api := newShop(t, dir).handler()
			var group sync.WaitGroup
			for range 4 {
				group.Go(func() {
					r := httptest.NewRequest("POST", "/refunds", strings.NewReader(`{"order":"1007","amount":1,"reason":"x"}`))
					r.Header.Set("Content-Type", "application/json")
					api.ServeHTTP(httptest.NewRecorder(), r)
				})
			}
			group.Wait()
		}
		ids := map[string]bool{}
		for _, line := range lines(t, filepath.Join(dir, "refunds.jsonl")) {
			var got refund
			if err := json.Unmarshal([]byte(line), &got); err != nil {
				t.Fatal(err)
			}
			ids[got.ID] = true
		}
		if len(ids) != 8 || !ids["R-0008"] {
			t.Errorf("refunds = %v, want R-0001 to R-0008", ids)
		}
	})
	t.Run("cuts a torn last line", func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "refunds.jsonl")
		if err := os.WriteFile(file, []byte("{\"id\":\"R-0001\"}\n{\"id\":\"R-00"), 0o644); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(dir, "refunds.jsonl")
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close()
		if err := j.Append(func(n int) any { return n }); err != nil {
			t.Fatal(err)
		}
		if got := lines(t, file); len(got) != 2 || got[1] != "2" {
			t.Errorf("journal = %q, want two lines, the second 2", got)
		}
	})
}

func lines(t *testing.T, file string) []string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
}

func TestRun(t *testing.T) {
	out, stdout := io.Pipe()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"-orders", "../orders.csv", "-customers", "../customers.csv", "-data", filepath.Join(t.TempDir(), "new")}, stdout, io.Discard)
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	base, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok {
		t.Fatalf("first line = %q, want the address", line)
	}
	resp, err := http.Get(base + "/orders/1001")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("GET /orders/1001 = %s, want 200", resp.Status)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("run = %v after its context ended, want nil", err)
	}
}

func TestRunRefusals(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.csv")
	if err := os.WriteFile(bad, []byte("id,total\n1,2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"no order file", []string{"-orders", "absent.csv"}, "absent.csv"},
		{"wrong columns", []string{"-orders", bad}, "must name the columns"},
		{"an argument", []string{"extra"}, `unexpected argument "extra"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := run(t.Context(), tt.args, io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("run(%q) = %v, want an error that contains %q", tt.args, err, tt.want)
			}
		})
	}
}

func FuzzParseCents(f *testing.F) {
	for _, seed := range []string{"49.90", "49.9", "50", "0", ".5", "1.", "-1", "1e3", "1000000.01", "00.00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCents(text)
		if err != nil {
			return
		}
		if again, err := parseCents(c.String()); err != nil || again != c || c < 0 || c > maxCents {
			t.Errorf("parseCents(%q) = %d, which reads back as %d, %v", text, c, again, err)
		}
	})
}
