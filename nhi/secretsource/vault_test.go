package secretsource_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/nhi/secretsource"
)

// vault speaks the part of Vault's HTTP protocol that the source uses, with its
// status codes and its forms of answers.
type vault struct {
	*httptest.Server
	mu        sync.Mutex           // guards what follows
	tokens    map[string]time.Time // and when they end; zero for never
	ttl       int                  // seconds; of tokens that are logged in for
	renewable bool
	requests  []string
	headers   []http.Header
	hook      func(http.ResponseWriter, *http.Request) bool // answers, if true
}

const (
	rootToken = "hvs.root-token"
	roleID    = "role-1"
	secretID  = "canary-secret-id"
)

func newVault(t *testing.T, start func(http.Handler) *httptest.Server) *vault {
	v := &vault{tokens: map[string]time.Time{rootToken: {}}, ttl: 3600, renewable: true}
	v.Server = start(http.HandlerFunc(v.serve))
	t.Cleanup(func() { v.CloseClientConnections(); v.Close() })
	return v
}

// data are the secrets, as the paths below kv/data have them; nil is deleted.
func data() map[string]map[string]any {
	return map[string]map[string]any{
		"shop":         {"api_key": canary, "port": 8443, "nested": map[string]any{"a": canary}, "empty": "", "flag": true, "big": strings.Repeat("x", 70_000)},
		"deep/er/path": {"x": canary}, "deleted": nil,
	}
}

func (v *vault) locked(do func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	do()
}

func (v *vault) seen(prefix string) (n int) {
	v.locked(func() {
		for _, r := range v.requests {
			if strings.HasPrefix(r, prefix) {
				n++
			}
		}
	})
	return n
}

func (v *vault) answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// refuse answers as Vault does, and quotes a secret, as a proxy's error page may.
func (v *vault) refuse(w http.ResponseWriter, status int) {
	v.answer(w, status, map[string]any{"errors": []string{"permission denied " + canary}})
}

func (v *vault) serve(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	v.requests = append(v.requests, r.Method+" "+r.URL.Path)
	v.headers = append(v.headers, r.Header)
	hook := v.hook
	v.mu.Unlock()
	if hook != nil && hook(w, r) {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	auth := func(token string) map[string]any {
		return map[string]any{"auth": map[string]any{"client_token": token, "lease_duration": v.ttl, "renewable": v.renewable}}
	}
	if r.URL.Path == "/v1/auth/approle/login" {
		var in map[string]string
		_ = json.NewDecoder(r.Body).Decode(&in)
		if in["role_id"] != roleID || in["secret_id"] != secretID {
			v.refuse(w, http.StatusBadRequest)
			return
		}
		token := "hvs." + creto.NewUUID().String()
		v.tokens[token] = time.Now().Add(time.Duration(v.ttl) * time.Second)
		v.answer(w, http.StatusOK, auth(token))
		return
	}
	token := r.Header.Get("X-Vault-Token")
	ends, ok := v.tokens[token]
	if !ok || !ends.IsZero() && time.Now().After(ends) {
		v.refuse(w, http.StatusForbidden)
		return
	}
	switch path := r.URL.Path; {
	case path == "/v1/auth/token/lookup-self":
		left := 0
		if !ends.IsZero() {
			left = max(1, int(time.Until(ends).Seconds()))
		}
		v.answer(w, http.StatusOK, map[string]any{"data": map[string]any{"ttl": left, "renewable": v.renewable}})
	case path == "/v1/auth/token/renew-self" && (!v.renewable || ends.IsZero()):
		v.answer(w, http.StatusBadRequest, map[string]any{"errors": []string{"lease is not renewable"}})
	case path == "/v1/auth/token/renew-self":
		v.tokens[token] = time.Now().Add(time.Duration(v.ttl) * time.Second)
		v.answer(w, http.StatusOK, auth(token))
	case path == "/v1/auth/token/revoke-self":
		delete(v.tokens, token)
		w.WriteHeader(http.StatusNoContent)
	case strings.HasPrefix(path, "/v1/kv/data/"):
		fields, ok := data()[strings.TrimPrefix(path, "/v1/kv/data/")]
		metadata := map[string]any{"version": 3, "created_time": "2026-11-22T09:00:00Z", "deletion_time": "", "destroyed": false}
		switch {
		case !ok:
			v.answer(w, http.StatusNotFound, map[string]any{"errors": []string{}})
		case fields == nil:
			metadata["deletion_time"] = "2026-11-22T10:00:00Z"
			v.answer(w, http.StatusNotFound, map[string]any{"data": map[string]any{"data": nil, "metadata": metadata}})
		default:
			v.answer(w, http.StatusOK, map[string]any{"data": map[string]any{"data": fields, "metadata": metadata}})
		}
	case strings.HasPrefix(path, "/v1/forbidden/"):
		v.refuse(w, http.StatusForbidden)
	default:
		v.answer(w, http.StatusNotFound, map[string]any{"errors": []string{"no handler for route"}})
	}
}

// quick retries soon.
var quick = call.Policy{Timeout: 300 * time.Millisecond, Attempts: 3, InitialDelay: time.Millisecond, MaxDelay: 2 * time.Millisecond}

func open(t *testing.T, cfg secretsource.VaultConfig) *secretsource.Vault {
	t.Helper()
	if cfg.RoleID == "" && cfg.Token.IsZero() {
		cfg.Token = creto.NewSecret(rootToken)
	}
	cfg.Calls = quick
	source, err := secretsource.NewVault(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(source.Close)
	return source
}

func TestVault(t *testing.T) {
	v := newVault(t, httptest.NewServer)
	// What the environment says is for the vault's own command line.
	t.Setenv("VAULT_ADDR", "http://127.0.0.1:1")
	t.Setenv("VAULT_TOKEN", "hvs.from-the-environment")
	t.Setenv("VAULT_NAMESPACE", "theirs")
	t.Setenv("VAULT_HEADERS", `{"X-Theirs": "1"}`)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	source := open(t, secretsource.VaultConfig{Address: v.URL, Namespace: "team/a"})
	check(t, source, "kv/shop#api_key", canary)
	check(t, source, "kv/shop#port", "8443")
	check(t, source, "kv/deep/er/path#x", canary)
	for _, h := range v.headers {
		if h.Get("X-Vault-Token") != rootToken || h.Get("X-Vault-Namespace") != "team/a" || h.Get("X-Theirs") != "" || h.Get("X-Vault-Request") != "true" {
			t.Errorf("the vault got %v", h)
		}
	}
	for _, locator := range []string{"kv/none#x", "kv/shop#none", "kv/shop#empty", "kv/deleted#x", "other/shop#x", "kv/../sys#x", "nonsense"} {
		refuse(t, source, locator, fault.NHISecretNotFound)
	}
	for _, locator := range []string{"kv/shop#nested", "kv/shop#flag", "kv/shop#big"} {
		refuse(t, source, locator, fault.FailedPrecondition)
	}
	before := v.seen("GET /v1/forbidden/data/x")
	refuse(t, source, "forbidden/x#y", fault.NHISecretAccessDenied)
	if n := v.seen("GET /v1/forbidden/data/x") - before; n != 1 {
		t.Errorf("what is forbidden was asked for %d times, want once", n)
	}
}

// What passes is tried again; what does not is not. No answer's text is in an
// error.
func TestVaultFaults(t *testing.T) {
	status := func(status int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, `{"errors":["%s"]}`, canary)
			return true
		}
	}
	for _, test := range []struct {
		name  string
		hook  func(http.ResponseWriter, *http.Request) bool
		want  fault.Code
		tries int
	}{
		{"too many requests", status(http.StatusTooManyRequests), fault.RateLimited, 3},
		{"an error", status(http.StatusInternalServerError), fault.NHIUnavailable, 3},
		{"a gateway", status(http.StatusBadGateway), fault.NHIUnavailable, 3},
		{"sealed", status(http.StatusServiceUnavailable), fault.NHIUnavailable, 3},
		{"a standby", status(473), fault.NHIUnavailable, 3},
		{"behind", status(http.StatusPreconditionFailed), fault.NHIUnavailable, 3},
		{"a bad request", status(http.StatusBadRequest), fault.FailedPrecondition, 1},
		{"a method", status(http.StatusMethodNotAllowed), fault.FailedPrecondition, 1},
		{"a page", func(w http.ResponseWriter, _ *http.Request) bool { _, _ = fmt.Fprint(w, "<html>"+canary); return true }, fault.NHIUnavailable, 3},
		{"another form", func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = fmt.Fprintf(w, `{"data":{"data":"%s"}}`, canary)
			return true
		}, fault.NHIUnavailable, 3},
		{"no metadata", func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = fmt.Fprintf(w, `{"data":{"api_key":"%s"}}`, canary)
			return true
		}, fault.NHIUnavailable, 3},
		{"a large answer", func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = fmt.Fprintf(w, `{"data":{"data":{"api_key":"%s","x":"%s"},"metadata":{"version":1,"created_time":"2026-11-22T09:00:00Z","deletion_time":"","destroyed":false}}}`, canary, strings.Repeat("x", 1<<20))
			return true
		}, fault.NHIUnavailable, 3},
		{"hangs up", func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, fault.NHIUnavailable, 3},
		{"slow", func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }, fault.NHITimeout, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := newVault(t, httptest.NewServer)
			v.hook = test.hook
			refuse(t, open(t, secretsource.VaultConfig{Address: v.URL}), "kv/shop#api_key", test.want)
			if n := v.seen("GET /v1/kv/data/shop"); n != test.tries {
				t.Errorf("it was asked %d times, want %d", n, test.tries)
			}
			// It recovers, and the next access finds it.
			v.locked(func() { v.hook = nil })
			check(t, open(t, secretsource.VaultConfig{Address: v.URL}), "kv/shop#api_key", canary)
		})
	}
	t.Run("recovers meanwhile", func(t *testing.T) {
		v := newVault(t, httptest.NewServer)
		failures := 2
		v.hook = func(w http.ResponseWriter, _ *http.Request) bool {
			failures--
			return failures >= 0 && status(http.StatusServiceUnavailable)(w, nil)
		}
		check(t, open(t, secretsource.VaultConfig{Address: v.URL}), "kv/shop#api_key", canary)
	})
	t.Run("a redirect", func(t *testing.T) {
		thief := newVault(t, httptest.NewServer)
		v := newVault(t, httptest.NewServer)
		v.hook = func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		refuse(t, open(t, secretsource.VaultConfig{Address: v.URL}), "kv/shop#api_key", fault.NHIUnavailable)
		if n := thief.seen(""); n > 0 {
			t.Errorf("a redirect carried the token elsewhere, %d times", n)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		v := newVault(t, httptest.NewServer)
		v.Close()
		refuse(t, open(t, secretsource.VaultConfig{Address: v.URL}), "kv/shop#api_key", fault.NHIUnavailable)
	})
	t.Run("the caller leaves", func(t *testing.T) {
		v := newVault(t, httptest.NewServer)
		ctx, cancel := context.WithCancel(t.Context())
		v.hook = func(_ http.ResponseWriter, r *http.Request) bool { cancel(); <-r.Context().Done(); return true }
		if _, err := open(t, secretsource.VaultConfig{Address: v.URL}).Secret(ctx, "kv/shop#api_key"); fault.CodeOf(err) != fault.Canceled {
			t.Errorf("Secret = %v, want Canceled", err)
		}
	})
}

func TestVaultTLS(t *testing.T) {
	v := newVault(t, httptest.NewTLSServer)
	refuse(t, open(t, secretsource.VaultConfig{Address: v.URL}), "kv/shop#api_key", fault.NHIUnavailable)
	if n := v.seen(""); n > 0 {
		t.Errorf("%d requests reached a server without a trusted certificate", n)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	check(t, open(t, secretsource.VaultConfig{Address: v.URL, CAFile: ca}), "kv/shop#api_key", canary)
}

func role(v *vault) secretsource.VaultConfig {
	return secretsource.VaultConfig{Address: v.URL, RoleID: roleID, SecretID: creto.NewSecret(secretID)}
}

// An AppRole logs in once for many, and again when its token is gone.
func TestVaultAppRole(t *testing.T) {
	v := newVault(t, httptest.NewServer)
	source := open(t, role(v))
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() { check(t, source, "kv/shop#api_key", canary) })
	}
	group.Wait()
	if n := v.seen("PUT /v1/auth/approle/login"); n != 1 {
		t.Errorf("8 accesses logged in %d times, want once", n)
	}
	v.locked(func() { maps.DeleteFunc(v.tokens, func(token string, _ time.Time) bool { return token != rootToken }) })
	for range 8 {
		group.Go(func() { check(t, source, "kv/shop#api_key", canary) })
	}
	group.Wait()
	if n := v.seen("PUT /v1/auth/approle/login"); n != 2 {
		t.Errorf("after its token was revoked it logged in %d times in all, want twice", n)
	}
	for range 3 {
		refuse(t, source, "forbidden/x#y", fault.NHISecretAccessDenied)
	}
	if n := v.seen("PUT /v1/auth/approle/login"); n != 2 {
		t.Errorf("what is forbidden made it log in: %d times in all", n)
	}
	wrong := role(v)
	wrong.SecretID = creto.NewSecret("canary-wrong")
	refuse(t, open(t, wrong), "kv/shop#api_key", fault.NHISecretAccessDenied)
	// A static token that is gone cannot be replaced.
	v.locked(func() { delete(v.tokens, rootToken) })
	refuse(t, open(t, secretsource.VaultConfig{Address: v.URL}), "kv/shop#api_key", fault.NHISecretAccessDenied)
}

// A token in the environment is another's: no request has it.
func TestVaultTokenOfTheEnvironment(t *testing.T) {
	const foreign = "hvs.of-the-environment"
	t.Setenv("VAULT_TOKEN", foreign)
	v := newVault(t, httptest.NewServer)
	check(t, open(t, role(v)), "kv/shop#api_key", canary)
	check(t, open(t, secretsource.VaultConfig{Address: v.URL}), "kv/shop#api_key", canary)
	v.locked(func() {
		if len(v.headers) < 3 {
			t.Errorf("%d requests were made", len(v.headers))
		}
		for i, h := range v.headers {
			if h.Get("X-Vault-Token") == foreign {
				t.Errorf("%s has it", v.requests[i])
			}
		}
	})
}

// Run keeps a token with a short lease alive, gets another one when it cannot,
// and leaves none behind.
func TestVaultRun(t *testing.T) {
	for _, test := range []struct {
		name      string
		renewable bool
		sign      string // of what is expected to happen
	}{
		{"renewable", true, "PUT /v1/auth/token/renew-self"},
		{"not renewable", false, "PUT /v1/auth/approle/login"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			v := newVault(t, httptest.NewServer)
			v.ttl, v.renewable = 1, test.renewable
			source := open(t, role(v))
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- source.Run(ctx) }()
			for deadline := time.After(10 * time.Second); v.seen(test.sign) < 4; {
				select {
				case <-deadline:
					t.Fatalf("%s was seen %d times", test.sign, v.seen(test.sign))
				case <-time.After(20 * time.Millisecond):
				}
				check(t, source, "kv/shop#api_key", canary)
			}
			if n := v.seen("PUT /v1/auth/approle/login"); test.renewable && n != 1 {
				t.Errorf("it logged in %d times, want once", n)
			}
			stop()
			if err := <-ended; err != nil {
				t.Errorf("Run = %v", err)
			}
			if n := v.seen("PUT /v1/auth/token/revoke-self"); n != 1 {
				t.Errorf("the token was given back %d times, want once", n)
			}
		})
	}
}

func TestVaultConfig(t *testing.T) {
	good := secretsource.VaultConfig{Address: "https://vault.test:8200/", Token: creto.NewSecret("x")}
	if err := good.Validate(); err != nil {
		t.Errorf("Validate = %v", err)
	}
	for name, edit := range map[string]func(*secretsource.VaultConfig){
		"no address":       func(c *secretsource.VaultConfig) { c.Address = "" },
		"no scheme":        func(c *secretsource.VaultConfig) { c.Address = "vault.test:8200" },
		"a socket":         func(c *secretsource.VaultConfig) { c.Address = "unix:///run/vault" },
		"a path":           func(c *secretsource.VaultConfig) { c.Address = "https://vault.test/v1" },
		"a password":       func(c *secretsource.VaultConfig) { c.Address = "https://a:b@vault.test" },
		"no token":         func(c *secretsource.VaultConfig) { c.Token = creto.Secret{} },
		"two ways":         func(c *secretsource.VaultConfig) { c.RoleID, c.SecretID = "a", creto.NewSecret("b") },
		"half a role":      func(c *secretsource.VaultConfig) { c.RoleID = "a" },
		"half a role too":  func(c *secretsource.VaultConfig) { c.SecretID = creto.NewSecret("b") },
		"a strange mount":  func(c *secretsource.VaultConfig) { c.AppRoleMount = "../sys" },
		"a strange space":  func(c *secretsource.VaultConfig) { c.Namespace = "a b" },
		"endless attempts": func(c *secretsource.VaultConfig) { c.Calls.Attempts = 1000 },
	} {
		c := good
		edit(&c)
		if _, err := secretsource.NewVault(c); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("NewVault with %s = %v, want InvalidArgument", name, err)
		}
	}
	c := good
	c.CAFile = filepath.Join(t.TempDir(), "none.pem")
	if _, err := secretsource.NewVault(c); fault.CodeOf(err) != fault.InvalidArgument {
		t.Errorf("NewVault without its certificates = %v, want InvalidArgument", err)
	}
}
