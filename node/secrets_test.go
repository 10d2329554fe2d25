package node_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/node"
	"creto.dev/sandbox"
	"github.com/google/go-cmp/cmp"
)

// canaries are secrets of each source, which only an upstream may see.
const (
	storeCanary = "canary-store-1c7e"
	envCanary   = "canary-env-88d0"
	fileCanary  = "canary-file-f31b"
	vaultCanary = "canary-vault-6a42"
	tokenCanary = "hvs.canary-token-9e05"
)

// buffer is a log's file.
type buffer struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// TestSecretsAreNowhere uses a secret of each source, with everything that can
// go wrong, and then looks for their values in all that the node wrote or
// answered.
func TestSecretsAreNowhere(t *testing.T) {
	var seen []string
	shop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.URL.Path+" "+r.Header.Get("X-Key"))
		if r.URL.Path == "/broken" {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, "hello")
	}))
	defer shop.Close()
	down := false
	vault := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case down:
			http.Error(w, `{"errors":["`+vaultCanary+`"]}`, http.StatusInternalServerError)
		case r.URL.Path != "/v1/kv/data/shop" || r.Header.Get("X-Vault-Token") != tokenCanary:
			http.Error(w, `{"errors":[]}`, http.StatusNotFound)
		default:
			_, _ = io.WriteString(w, `{"data":{"data":{"key":"`+vaultCanary+`"},"metadata":{"version":1,"created_time":"2026-11-22T09:00:00Z","deletion_time":"","destroyed":false}}}`)
		}
	}))
	defer vault.Close()
	files := t.TempDir()
	if err := errors.Join(os.Chmod(files, 0o700), os.WriteFile(filepath.Join(files, "key"), []byte(fileCanary+"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CRETO_SECRET_KEY", envCanary)

	o := options(t, t.TempDir())
	logged := &buffer{}
	o.Log = slog.New(slog.NewJSONHandler(logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	o.Config.Secrets.Env.Prefix = "CRETO_SECRET_"
	o.Config.Secrets.Files.Dir = files
	o.Config.Secrets.Vault.Address = vault.URL
	o.Config.Secrets.Vault.Token = creto.NewSecret(tokenCanary)
	o.Config.Secrets.Vault.Attempts = 1
	o.Config.Egress.Hosts = map[string]string{}
	for name, from := range map[string]string{"env": "env:CRETO_SECRET_KEY", "file": "file:key", "vault": "vault:kv/shop#key", "alias": "store:store", "lost": "vault:kv/lost#key"} {
		o.Config.Secrets.Names = append(o.Config.Secrets.Names, node.SecretNameConfig{Name: name, From: from})
	}
	for _, name := range []string{"store", "env", "file", "vault", "alias", "lost", "forbidden"} {
		host := name + ".test"
		o.Config.Egress.Hosts[host] = shop.Listener.Addr().String()
		o.Config.Egress.Credentials = append(o.Config.Egress.Credentials, node.CredentialConfig{Host: host, Header: "X-Key", Secret: name})
	}
	_, c, stop := running(t, o)
	var answers bytes.Buffer // of the administrator's API and of the sandbox's way out
	keep := func(v any, err error) {
		text, _ := json.Marshal(v)
		answers.Write(text)
		if err != nil {
			answers.WriteString(err.Error())
		}
	}
	agent := client.NewAgent{Name: "bob", Allow: []string{"http_request=*"}}
	for _, name := range []string{"store", "env", "file", "vault", "alias", "lost"} {
		agent.Allow = append(agent.Allow, "access_secret="+name)
	}
	if _, err := c.AddAgent(t.Context(), agent); err != nil {
		t.Fatal(err)
	}
	set, err := c.SetSecret(t.Context(), client.NewSecret{Name: "store", Value: creto.NewSecret(storeCanary), Agents: []string{"bob"}})
	keep(set, err)
	keep(c.SetSecret(t.Context(), client.NewSecret{Name: "env", Value: creto.NewSecret(storeCanary)}))         // elsewhere
	keep(c.SetSecret(t.Context(), client.NewSecret{Name: storeCanary + "!", Value: creto.NewSecret("value")})) // no name
	answers.Reset()                                                                                            // that quoted the name, as it should
	keep(set, err)
	keep(c.Secrets(t.Context()))
	run, err := c.StartRun(t.Context(), client.NewRun{Agent: "bob", Isolation: "namespaces", Command: []string{"true"}, Dir: "/", PID: supervisor(t).Process.Pid})
	if err != nil {
		t.Fatal(err)
	}
	get := func(url string) int {
		t.Helper()
		conn, err := net.Dial("unix", filepath.Join(run.GatewayDir, sandbox.SocketName))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "GET "+url+" HTTP/1.1\r\nHost: x\r\nX-Key: placeholder\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", url, err)
		}
		body, _ := io.ReadAll(response.Body)
		answers.Write(body)
		_ = response.Header.Write(&answers)
		return response.StatusCode
	}
	for url, want := range map[string]int{
		"http://store.test/": 200, "http://env.test/": 200, "http://file.test/": 200, "http://vault.test/": 200, "http://alias.test/": 200,
		"http://store.test/broken": 503, "http://lost.test/": 404, "http://forbidden.test/": 403, "http://localhost/v1/secrets/store": 403,
	} {
		if got := get(url); got != want {
			t.Errorf("%s: %d, want %d", url, got, want)
		}
	}
	down = true
	if got := get("http://vault.test/"); got != 503 {
		t.Errorf("without the vault: %d, want 503", got)
	}
	for _, want := range []string{"/ " + storeCanary, "/ " + envCanary, "/ " + fileCanary, "/ " + vaultCanary, "/broken " + storeCanary} {
		if !strings.Contains(strings.Join(seen, "\n")+"\n", want+"\n") {
			t.Errorf("no upstream got %q, but %q", want, seen)
		}
	}
	if len(seen) != 6 {
		t.Errorf("the upstreams got %q, want 6 requests", seen)
	}

	receipts, err := c.Receipts(t.Context(), client.Query{Limit: 1000})
	keep(receipts, err)
	events := map[string]int{}
	for _, r := range receipts {
		if r.Record.What == creto.AccessSecret {
			events[r.Record.Detail[audit.DetailEvent]+" "+string(r.Record.Outcome)]++
		}
	}
	if want := map[string]int{"secret_accessed success": 6, "secret_missing failure": 1, " denied": 2, " failure": 1}; !cmp.Equal(want, events) {
		t.Errorf("recorded were %v, want %v", events, want)
	}
	bundle, err := c.Bundle(t.Context(), client.Query{Limit: 1000})
	keep(nil, err)
	answers.Write(bundle)
	keep(c.Agents(t.Context()))
	keep(c.Status(t.Context()))
	keep(nil, c.RemoveSecret(t.Context(), "store"))
	if err := c.EndRun(t.Context(), run.ID, client.RunEnded{}); err != nil {
		t.Error(err)
	}
	c.Close()
	stop()

	find := func(where string, data []byte) {
		for _, canary := range []string{storeCanary, envCanary, fileCanary, vaultCanary, tokenCanary} {
			if i := bytes.Index(data, []byte(canary)); i >= 0 {
				t.Errorf("%s holds %s: %q", where, canary, data[max(0, i-100):min(len(data), i+100)])
			}
		}
	}
	find("the log", logged.text.Bytes())
	find("an answer", answers.Bytes())
	if len(logged.text.Bytes()) == 0 || answers.Len() < 1000 {
		t.Error("there was nothing to look through")
	}
	looked := 0
	err = filepath.WalkDir(o.DataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		find(path, data)
		looked++
		return err
	})
	if err != nil || looked < 4 {
		t.Errorf("%d files of the data directory were looked through, %v", looked, err)
	}
}

// A node whose sources cannot be used does not start.
func TestSecretSourcesFail(t *testing.T) {
	for name, spoil := range map[string]func(*node.Config){
		"no directory": func(c *node.Config) { c.Secrets.Files.Dir = filepath.Join(t.TempDir(), "none") },
		"no certificates": func(c *node.Config) {
			c.Secrets.Vault.Address, c.Secrets.Vault.Token, c.Secrets.Vault.CAFile = "https://v.test", creto.NewSecret("x"), "/none"
		},
		"no source":        func(c *node.Config) { c.Secrets.Names = []node.SecretNameConfig{{Name: "a", From: "env:A"}} },
		"a bad credential": func(c *node.Config) { c.Egress.Credentials = []node.CredentialConfig{{Host: "a.test"}} },
	} {
		o := options(t, t.TempDir())
		spoil(&o.Config)
		n, err := node.Open(context.WithoutCancel(t.Context()), o)
		if err == nil {
			t.Errorf("%s: Open succeeded", name)
			_ = n.Close()
		}
	}
}

func TestSecretProblems(t *testing.T) {
	const head = "[secrets.env]\nprefix = 'CRETO_SECRET_'\n"
	for _, tt := range []struct{ name, doc, want string }{
		{"a long memory", "[secrets]\ncache_ttl = '1h'", `c.toml:2:1: secrets.cache_ttl: 1h0m0s is outside 0s to 1m0s`},
		{"a prefix", "[secrets.env]\nprefix = 'A-'", `c.toml:2:1: secrets.env.prefix: "A-" is no beginning of a variable's name`},
		{"a relative directory", "[secrets.files]\ndir = 'x'", `c.toml:2:1: secrets.files.dir: "x" is not an absolute path`},
		{"half a vault", "[secrets.vault]\naddress = 'https://v.test'\nrole_id = 'x'", `c.toml:1:10: secrets.vault: an AppRole has a role_id and a secret_id; one of them is missing`},
		{"a vault without a token", "[secrets.vault]\naddress = 'https://v.test'", `c.toml:1:10: secrets.vault: a vault takes a token, or the role_id and secret_id of an AppRole`},
		{"a vault nowhere", "[secrets.vault]\ntoken = 'x'", `c.toml:1:10: secrets.vault.address: is required for the rest of the section`},
		{"a vault's relative certificates", "[secrets.vault]\naddress = 'https://v.test'\ntoken = 'x'\nca_file = 'ca.pem'", `c.toml:4:1: secrets.vault.ca_file: "ca.pem" is not an absolute path`},
		{"a relative passphrase", "[keys]\nsource = 'passphrase'\npassphrase_file = 'pass'", `c.toml:3:1: keys.passphrase_file: "pass" is not an absolute path`},
		{"a value for a reference", head + "[[secrets.names]]\nname = 'a'\nfrom = '" + planted + "'", `c.toml:5:1: secrets.names[0].from: not a reference to a secret; write store:NAME, env:VARIABLE, file:PATH or vault:MOUNT/PATH#FIELD`},
		{"another variable", head + "[[secrets.names]]\nname = 'a'\nfrom = 'env:HOME'", `c.toml:5:1: secrets.names[0].from: "HOME" does not begin with secrets.env.prefix, "CRETO_SECRET_"`},
		{"no such source", "[[secrets.names]]\nname = 'a'\nfrom = 'vault:kv/a#b'", `c.toml:3:1: secrets.names[0].from: "vault:kv/a#b" needs secrets.vault.address`},
		{"twice", "[[secrets.names]]\nname = 'a'\nfrom = 'store:a'\n[[secrets.names]]\nname = 'a'\nfrom = 'store:b'", `c.toml:5:1: secrets.names[1].name: "a" is there twice`},
		{"a tenant", "[[egress.credentials]]\nhost = 'a.test'\nheader = 'X'\nsecret = 'a'\ntenant = '../b'", `c.toml:5:1: egress.credentials[0].tenant: "../b" is no tenant; use a-z, 0-9, '-', '_' and '.'`},
		{"an agent", "[[secrets.names]]\nname = 'a'\nfrom = 'store:a'\nagents = ['*']", `c.toml:4:1: secrets.names[0].agents: "*" is no agent's name`},
		{"a credential", "[[egress.credentials]]\nhost = 'a.test'\nheader = 'Host'\nsecret = 'a'", `c.toml:1:10: egress.credentials[0]: "Host" is no header that can carry a secret`},
	} {
		_, err := node.ParseConfig("c.toml", []byte(tt.doc), env())
		if !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: error = %v, want InvalidArgument", tt.name, err)
			continue
		}
		if diff := cmp.Diff(tt.want, fault.Message(err)); diff != "" {
			t.Errorf("%s: problems (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestSecretWarnings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	doc := `
[egress.hosts]
"local.test" = "127.0.0.1:1"
"far.test:8080" = "192.0.2.1:1"
[secrets.vault]
address = "http://vault.example:8200"
token = "${TOKEN}"
`
	for _, host := range []string{"local.test", "far.test:8080", "open.test", "localhost:80"} {
		doc += "[[egress.credentials]]\nhost = '" + host + "'\nheader = 'X-Key'\nsecret = 'key'\n"
	}
	if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	_, warnings, err := node.Load(path, env("TOKEN", planted))
	if got := strings.Join(warnings, "\n"); err != nil || len(warnings) != 3 || strings.Contains(got, planted) ||
		!strings.Contains(got, "the vault gives") || !strings.Contains(got, "far.test:8080 gets") || !strings.Contains(got, "open.test gets") {
		t.Errorf("warnings = %q, %v; want one for the vault and two for hosts elsewhere", warnings, err)
	}
}

// Two tenants with an agent, a host and a secret of the same names: each gets its
// own, and neither can see, change or use the other's.
func TestSecretTenants(t *testing.T) {
	var seen []string
	shop := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.URL.Path+" "+r.Header.Get("X-Key"))
	}))
	defer shop.Close()
	o := options(t, t.TempDir())
	o.Config.Egress.Hosts = map[string]string{"shop.test": shop.Listener.Addr().String()}
	o.Config.Egress.Credentials = []node.CredentialConfig{
		{Host: "shop.test", Header: "X-Key", Secret: "key"}, {Host: "shop.test", Header: "X-Key", Secret: "key", Tenant: "acme"},
	}
	o.Config.Secrets.Env.Prefix = "CRETO_SECRET_"
	o.Config.Secrets.Names = []node.SecretNameConfig{{Name: "only", From: "env:CRETO_SECRET_ONLY"}}
	t.Setenv("CRETO_SECRET_ONLY", envCanary)
	_, home, stop := running(t, o)
	defer stop()
	if _, err := home.AddTenant(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	acme := home.For("acme")
	for name, c := range map[string]*client.Client{"home": home, "acme": acme} {
		_, err := c.AddAgent(t.Context(), client.NewAgent{Name: "bot", Allow: []string{"http_request=*", "access_secret=*", "access_secret=raw *"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.SetSecret(t.Context(), client.NewSecret{Name: "key", Value: creto.NewSecret("of " + name), Agents: []string{"bot"}}); err != nil {
			t.Fatal(err)
		}
	}
	get := func(c *client.Client, url string) (int, string) {
		t.Helper()
		token, err := c.Token(t.Context(), "bot", client.NewToken{})
		if err != nil {
			t.Fatal(err)
		}
		status, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+status.Listen+url, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+token.Token)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		body, _ := io.ReadAll(response.Body)
		return response.StatusCode, string(body)
	}
	for name, c := range map[string]*client.Client{"home": home, "acme": acme} {
		if status, body := get(c, "/v1/secrets/key"); status != http.StatusOK || body != "of "+name {
			t.Errorf("the key of %s is %d %q", name, status, body)
		}
	}
	if status, body := get(home, "/v1/secrets/only"); status != http.StatusOK || body != envCanary {
		t.Errorf("home's other secret is %d %q", status, body)
	}
	if status, body := get(acme, "/v1/secrets/only"); status != http.StatusNotFound || strings.Contains(body, envCanary) {
		t.Errorf("home's secret, for acme, is %d %q", status, body)
	}
	if list, err := acme.Secrets(t.Context()); err != nil || len(list) != 1 || list[0].Owner != "spiffe://creto.local/acme/human/admin" {
		t.Errorf("acme sees %+v, %v", list, err)
	}
	if err := acme.RemoveSecret(t.Context(), "key"); err != nil {
		t.Fatal(err)
	}
	if status, body := get(home, "/v1/secrets/key"); status != http.StatusOK || body != "of home" {
		t.Errorf("after acme removed its key, home's is %d %q", status, body)
	}
	if _, err := acme.SetSecret(t.Context(), client.NewSecret{Name: "key", Value: creto.NewSecret("again")}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*client.Client{home, acme} {
		run, err := c.StartRun(t.Context(), client.NewRun{Agent: "bot", Isolation: "namespaces", Command: []string{"true"}, Dir: "/", PID: supervisor(t).Process.Pid})
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: "gateway"}), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(run.GatewayDir, sandbox.SocketName))
		}}
		response, err := (&http.Client{Transport: transport}).Get("http://shop.test/x")
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		transport.CloseIdleConnections()
	}
	if got, want := strings.Join(seen, ", "), "/x of home, /x again"; got != want {
		t.Errorf("the shop got %s, want %s", got, want)
	}
}
