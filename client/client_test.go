package client_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
)

func TestNew(t *testing.T) {
	for _, address := range []string{"http://", "https:///path", "http://user:pass@localhost:7300", "http://localhost:7300?x=1", "http://a b/"} {
		if _, err := client.New(address, creto.Secret{}); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("New(%q) = %v, want InvalidArgument", address, err)
		}
	}
}

func TestNobodyThere(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "creto.sock")
	for _, address := range []string{socket, "unix:" + socket, "http://127.0.0.1:1"} {
		c, err := client.New(address, creto.Secret{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Status(t.Context())
		if want := "no node answers at " + strings.TrimPrefix(address, "unix:"); !errors.Is(err, fault.Unavailable) || fault.Message(err) != want {
			t.Errorf("Status = %v, %q, want Unavailable, %q", err, fault.Message(err), want)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Status(ctx); !errors.Is(err, fault.Canceled) {
			t.Errorf("Status after the end = %v, want Canceled", err)
		}
	}
}

// Something else may listen there.
func TestNoNode(t *testing.T) {
	tokens := make(chan string, 8)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tokens <- r.Header.Get("Authorization")
		switch r.URL.Path {
		case "/api/v1/status":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "/api/v1/agents":
			_, _ = io.WriteString(w, "<html>")
		case "/api/v1/humans":
			http.Error(w, "the secret of another program", http.StatusInternalServerError)
		case "/health":
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"status":{"state":"unhealthy"}}`)
		}
	}))
	defer server.Close()
	c, err := client.New(server.URL+"/", creto.NewSecret("t-1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Status(t.Context()); !errors.Is(err, fault.Internal) {
		t.Errorf("a redirect: %v, want Internal", err)
	}
	if _, err := c.Agents(t.Context()); !errors.Is(err, fault.Internal) {
		t.Errorf("a page: %v, want Internal", err)
	}
	if _, err := c.Humans(t.Context()); !errors.Is(err, fault.Internal) || strings.Contains(fault.Message(err), "secret") {
		t.Errorf("an error: %v, want Internal", err)
	}
	if status, _, err := c.Health(t.Context()); status != http.StatusServiceUnavailable {
		t.Errorf("Health = %d, %v", status, err)
	}
	for range 4 {
		if got := <-tokens; got != "Bearer t-1" {
			t.Errorf("sent %q", got)
		}
	}
	if len(tokens) != 0 {
		t.Error("the redirect was followed")
	}
}
