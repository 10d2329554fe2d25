package node_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/node"
	"github.com/google/go-cmp/cmp"
)

const planted = "sk-planted-secret"

func env(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

// compare reveals secrets, which are equal to cmp only when their text is.
func compare() cmp.Option {
	return cmp.Comparer(func(a, b creto.Secret) bool { return a.Reveal() == b.Reveal() })
}

func TestDefaultsFileIsDefault(t *testing.T) {
	got, err := node.ParseConfig("defaults.toml", node.Defaults(), env("SLACK_BOT_TOKEN", "x"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(node.Default(), got, compare()); diff != "" {
		t.Errorf("the defaults file is not Default (-want +got):\n%s", diff)
	}
	var b bytes.Buffer
	if err := node.WriteDefaults(&b); err != nil || !bytes.Equal(b.Bytes(), node.Defaults()) {
		t.Errorf("WriteDefaults wrote %d bytes, %v", b.Len(), err)
	}
}

// TestDefaultsFileHasEveryKey demands that each key stands below its section,
// if only as a comment, with something said about the section.
func TestDefaultsFileHasEveryKey(t *testing.T) {
	header := regexp.MustCompile(`^(?:# )?\[+([a-z_.]+)\]+$`)
	assignment := regexp.MustCompile(`^(?:# )?([a-z_]+) = `)
	found := map[string]bool{"egress.hosts": true}
	section := ""
	for line := range strings.Lines(string(node.Defaults())) {
		if m := header.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			section = m[1]
		} else if m := assignment.FindStringSubmatch(line); m != nil {
			found[section+"."+m[1]] = true
		}
	}
	for _, key := range node.ConfigKeys() {
		if !found[key] {
			t.Errorf("key %s is not in the defaults file", key)
		}
	}
}

// TestSpecifiedKeys holds every row of requirements §18 with its default.
func TestSpecifiedKeys(t *testing.T) {
	d := node.Default().Integrations
	for _, tt := range []struct {
		row       string
		got, want any
	}{
		{"R-CFG-1", d.NHI.Endpoint, ""}, {"R-CFG-2", d.NHI.TimeoutMS, 100}, {"R-CFG-3", d.NHI.RetryMaxAttempts, 3},
		{"R-CFG-4", d.NHI.RetryInitialDelayMS, 50}, {"R-CFG-5", d.NHI.RetryMaxDelayMS, 500},
		{"R-CFG-6", d.NHI.CircuitBreakerEnabled, true}, {"R-CFG-7", d.NHI.CircuitBreakerFailureThreshold, 5},
		{"R-CFG-8", d.NHI.CircuitBreakerResetTimeoutSec, 30},
		{"R-CFG-9", d.Authz.Endpoint, ""}, {"R-CFG-10", d.Authz.TimeoutMS, 10}, {"R-CFG-11", d.Authz.CacheEnabled, true},
		{"R-CFG-12", d.Authz.CacheTTLSeconds, 60}, {"R-CFG-13", d.Authz.CacheMaxEntries, 10000}, {"R-CFG-14", d.Authz.CircuitBreakerEnabled, true},
		{"R-CFG-15", d.Crypto.SymmetricAlgorithm, "aes-256-gcm"}, {"R-CFG-16", d.Crypto.KEMAlgorithm, "ml-kem-768"},
		{"R-CFG-17", d.Crypto.SignatureClassical, "ed25519"}, {"R-CFG-18", d.Crypto.SignaturePQC, "ml-dsa-65"}, {"R-CFG-19", d.Crypto.HashAlgorithm, "sha3-256"},
		{"R-CFG-20", d.Consensus.Endpoint, ""}, {"R-CFG-21", d.Consensus.TimeoutMS, 50}, {"R-CFG-22", d.Consensus.FallbackToLocalTimestamp, true}, {"R-CFG-23", d.Consensus.RetryMaxAttempts, 2},
		{"R-CFG-24", d.Audit.Endpoint, ""}, {"R-CFG-25", d.Audit.AsyncWrites, true}, {"R-CFG-26", d.Audit.BatchSize, 100}, {"R-CFG-27", d.Audit.FlushIntervalMS, 1000},
		{"R-CFG-28", d.Audit.RetryMaxAttempts, 5}, {"R-CFG-29", d.Audit.LocalBufferMaxSize, 10000},
		{"R-CFG-30", d.Memory.Endpoint, ""}, {"R-CFG-31", d.Memory.TimeoutMS, 200}, {"R-CFG-32", d.Memory.Optional, true},
		{"R-CFG-33", d.Storage.Endpoint, ""}, {"R-CFG-34", d.Storage.TimeoutMS, 1000}, {"R-CFG-35", d.Storage.RetryMaxAttempts, 3},
		{"R-CFG-36, X-19", d.Slack.Enabled, false}, {"R-CFG-37", d.Slack.SigningSecret.IsZero(), true}, {"R-CFG-38", d.Slack.BotToken.IsZero(), true},
		{"R-CFG-39", d.Stripe.Enabled, false}, {"R-CFG-40", d.Stripe.APIKey.IsZero(), true}, {"R-CFG-41", d.Stripe.WebhookSecret.IsZero(), true},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: default = %v, want %v", tt.row, tt.got, tt.want)
		}
	}
	if err := node.Default().Validate(); err != nil {
		t.Errorf("the default does not validate: %v", err)
	}
	want := call.Policy{Timeout: 100 * time.Millisecond, Attempts: 3, InitialDelay: 50 * time.Millisecond, MaxDelay: 500 * time.Millisecond}
	got := d.NHI.CallPolicy()
	if b := got.Breaker; b == nil || b.Threshold != 5 || b.Reset != 30*time.Second || got.Budget == nil || got.Validate() != nil {
		t.Errorf("CallPolicy = %+v, %v, want the breaker of R-CFG-7 and R-CFG-8, and a budget", got, got.Validate())
	}
	if got.Breaker, got.Budget = nil, nil; !reflect.DeepEqual(got, want) {
		t.Errorf("CallPolicy = %+v, want %+v", got, want)
	}
	d.NHI.CircuitBreakerEnabled = false
	if got := d.NHI.CallPolicy(); got.Breaker != nil {
		t.Error("a breaker that is not enabled is there")
	}
}

func TestLoad(t *testing.T) {
	got, warnings, err := node.Load("testdata/config/full.toml", env("OPENAI_API_KEY", planted))
	if err != nil || len(warnings) != 0 {
		t.Fatalf("Load = %v, warnings %q", err, warnings)
	}
	want := node.Default()
	want.Server = node.ServerConfig{Listen: "0.0.0.0:7300", AllowPlaintext: true}
	want.Console.Origin = "https://creto.example:8443"
	want.Identity = node.IdentityConfig{TrustDomain: "corp.example", Tenant: "acme", TokenTTL: node.Duration(5 * time.Minute)}
	want.Egress.Hosts = map[string]string{"shop.test": "127.0.0.1:8080", "db.test:5432": "10.0.0.7:5432"}
	want.Inference.Timeout, want.Inference.Providers = node.Duration(2*time.Minute), []node.ProviderConfig{
		{Name: "openai", Kind: "openai", BaseURL: "https://api.openai.com/v1", APIKey: creto.NewSecret(planted), Models: []string{"gpt-*"}},
		{Name: "claude", Kind: "anthropic", BaseURL: "https://api.anthropic.com/v1", Models: []string{"claude-*"}, MaxTokens: 8192},
		{Name: "local", Kind: "openai", BaseURL: "http://localhost:11434/v1", Models: []string{"*"}},
	}
	want.Log = node.LogConfig{Level: "debug", Format: "json"}
	want.Integrations.NHI.Endpoint = "embedded://"
	want.Integrations.NHI.TimeoutMS = 250
	if diff := cmp.Diff(want, got, compare()); diff != "" {
		t.Errorf("Load (-want +got):\n%s", diff)
	}
	if printed := fmt.Sprintf("%v %+v %#v", got, got, got); strings.Contains(printed, planted) {
		t.Errorf("printing a configuration shows its secrets: %s", printed)
	}
}

// TestProblems compares what a thoroughly wrong file is told with a golden file.
func TestProblems(t *testing.T) {
	_, _, err := node.Load("testdata/config/wrong.toml", env())
	if !errors.Is(err, fault.InvalidArgument) {
		t.Fatalf("Load = %v, want InvalidArgument", err)
	}
	got := fault.Message(err) + "\n"
	if strings.Contains(got, planted) {
		t.Errorf("the problems show a secret:\n%s", got)
	}
	const golden = "testdata/config/wrong.golden"
	if os.Getenv("UPDATE") == "1" {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("problems (-want +got); UPDATE=1 rewrites:\n%s", diff)
	}
}

func TestOneProblem(t *testing.T) {
	for _, tt := range []struct{ name, doc, want string }{
		{"unknown key", "[log]\nlevle = \"info\"", `c.toml:2:1: log.levle: unknown key (levle = …); did you mean level?`},
		{"unknown table", "[lag]\nx = 1", `c.toml:1:2: lag: unknown key ([lag]); did you mean log?`},
		{"unknown table, once", "[zzzzzzzz.yyyyyy]\nx = 1\ny = 2", `c.toml:1:2: zzzzzzzz: unknown key ([zzzzzzzz])`},
		{"key of a scalar", "[server]\nlisten.port = 1", `c.toml:2:8: server.listen.port: server.listen is a string and has no keys`},
		{"table for a scalar", "[server.listen]\nport = 1", `c.toml:1:9: server.listen: expected a string, found a table`},
		{"table for a list", "[inference.providers]\nname = 'x'", `c.toml:1:12: inference.providers: write [[inference.providers]]`},
		{"list for a table", "[[server]]\nlisten = 'x:1'", `c.toml:1:3: server: expected a table, found a list of tables`},
		{"scalar for a table", "server = 1", `c.toml:1:1: server: expected a table, found a whole number`},
		{"wrong type", "[log]\nlevel = 3", `c.toml:2:1: log.level: expected a string, found a whole number`},
		{"wrong type of a flag", "[integrations.slack]\nenabled = \"yes\"", `c.toml:2:1: integrations.slack.enabled: expected true or false, found a string`},
		{"a number too large", "[integrations.nhi]\ntimeout_ms = 99999999999999999999", `c.toml:2:14: decimal number is too large to fit in a 64-bit signed integer (timeout_ms = …)`},
		{"out of range", "[integrations.nhi]\ntimeout_ms = 0", `c.toml:2:1: integrations.nhi.timeout_ms: 0 is outside 1 to 600000`},
		{"a duration without unit", "[identity]\ntoken_ttl = \"15\"", `c.toml:2:1: identity.token_ttl: expected a duration such as "1m30s"`},
		{"token too long", "[identity]\ntoken_ttl = \"16m\"", `c.toml:2:1: identity.token_ttl: 16m0s is outside 1s to 15m0s`},
		{"remote", "[integrations.nhi]\nendpoint = \"grpc://nhi.creto-platform.svc:50051\"", `c.toml:2:1: integrations.nhi.endpoint: remote nhi is not built yet; remove integrations.nhi.endpoint`},
		{"time from nowhere", "[integrations.consensus]\nendpoint = \"http://clock:1\"", `c.toml:2:1: integrations.consensus.endpoint: "http://clock:1" is no place for time: use embedded://, grpc://host:port or unix:///path of another node, or etcd://host:port,host:port (etcds:// with TLS)`},
		{"etcd's keys without etcd", "[integrations.consensus.etcd]\nusername = \"x\"\npassword = \"y\"", `c.toml:1:25: integrations.consensus.etcd: is for an endpoint etcd://host:port only`},
		{"etcd's user without a password", "[integrations.consensus]\nendpoint = \"etcd://localhost:2379\"\netcd.username = \"x\"", `c.toml:3:1: integrations.consensus.etcd.password: a username and a password go together`},
		{"a lease that is too short", "[integrations.consensus]\nendpoint = \"etcd://localhost:2379\"\netcd.lease_ttl = \"1s\"", `c.toml:3:6: integrations.consensus.etcd.lease_ttl: 1s is outside 2s to 1m0s`},
		{"limits from nowhere", "[integrations.metering]\nendpoint = \"etcd://x:1\"", `c.toml:2:1: integrations.metering.endpoint: "etcd://x:1" is no place for limits: use embedded://, grpc://host:port or unix:///path of another node`},
		{"memory", "[integrations.memory]\noptional = false", `c.toml:2:1: integrations.memory.optional: memory is not built yet; remove integrations.memory.optional`},
		{"storage", "[integrations.storage]\nendpoint = \"s3://b\"", `c.toml:2:1: integrations.storage.endpoint: storage is not built yet; remove integrations.storage.endpoint`},
		{"slack", "[integrations.slack]\nenabled = true", `c.toml:2:1: integrations.slack.enabled: slack is not built yet; set it to false`},
		{"stripe", "[integrations.stripe]\nenabled = true", `c.toml:2:1: integrations.stripe.enabled: stripe is not built yet; set it to false`},
		{"email, once", "[email]\na = 1\nb = 2", `c.toml:2:1: email: email is not built yet; remove email`},
		{"billing", "billing.url = 1", `c.toml:1:1: billing: billing is not built yet; remove billing`},
		{"tls", "[server]\ntls.cert = 'x'", `c.toml:2:1: server.tls: TLS is not built yet; remove server.tls`},
		{"defined twice", "[log]\nlevel = \"info\"\nlevel = \"warn\"", `c.toml:3:1: key level is already defined (level = …)`},
		{"not TOML", "[log]\nlevel = " + planted, `c.toml:2:9: unexpected character U+0073 's' at start of value (level = …)`},
		{"an unset variable", "[log]\nlevel = \"${NOPE}\"", `c.toml:2:1: log.level: the variable NOPE is not set`},
		{"an unset variable in a duration", "[oversight]\ntimeout = \"${NOPE}\"", `c.toml:2:1: oversight.timeout: the variable NOPE is not set`},
		{"an open variable", "[log]\nlevel = \"${NOPE\"", `c.toml:2:1: log.level: a variable is written ${NAME}; for a plain ${ write $${`},
		{"an odd variable", "[policy]\ndir = \"${1-x}\"", `c.toml:2:1: policy.dir: a variable is written ${NAME}; for a plain ${ write $${`},
		{"origin of an address", "[console]\norigin = \"http://127.0.0.1:7300\"", "c.toml:2:1: console.origin: \"127.0.0.1\" is an IP address, to which no passkey can be bound; use a name such as localhost\nc.toml:2:1: console.origin: \"http://127.0.0.1:7300\" needs https, because it is not localhost"},
		{"origin with a path", "[console]\norigin = \"https://x/console\"", `c.toml:2:1: console.origin: "https://x/console" is not an origin such as https://creto.example`},
		{"relative runsc", "[runtime]\nrunsc_path = \"bin/runsc\"", `c.toml:2:1: runtime.runsc_path: "bin/runsc" is not an absolute path`},
		{"a share above all", "[log]\ndecisions = 1.5", `c.toml:2:1: log.decisions: 1.5 is outside 0 to 1`},
		{"a share that is no number", "[log]\ndecisions = nan", `c.toml:2:1: log.decisions: NaN is outside 0 to 1`},
		{"backend", "[runtime]\nbackend = \"docker\"", `c.toml:2:1: runtime.backend: "docker" is not one of auto, gvisor, namespaces`},
		{"a provider of nothing", "[[inference.providers]]", "c.toml:1:13: inference.providers[0].name: a name is required\nc.toml:1:13: inference.providers[0].base_url: an address is required, such as https://api.openai.com/v1"},
		{"an inline provider", "[inference]\nproviders = [{name = \"a\", kind = \"palm\", base_url = \"https://x/v1\"}]", `c.toml:2:27: inference.providers[0].kind: "palm" is not one of openai, anthropic, azure, bedrock, vertex, ollama`},
		{"a bound for whom it is not", "[[inference.providers]]\nname = \"a\"\nbase_url = \"https://x/v1\"\nmax_tokens = 5", `c.toml:4:1: inference.providers[0].max_tokens: only for kind "anthropic"; others have a bound of their own`},
		{"a negative bound", "[[inference.providers]]\nname = \"a\"\nkind = \"anthropic\"\nbase_url = \"https://x/v1\"\nmax_tokens = -5", `c.toml:5:1: inference.providers[0].max_tokens: -5 is outside 0 to 2147483647`},
		{"async writes", "[integrations.audit]\nasync_writes = false", `c.toml:2:1: integrations.audit.async_writes: only true is built: records are durable when accepted, and sequenced later`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := node.ParseConfig("c.toml", []byte(tt.doc), env())
			if !errors.Is(err, fault.InvalidArgument) {
				t.Fatalf("error = %v, want InvalidArgument", err)
			}
			if diff := cmp.Diff(tt.want, fault.Message(err)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestInterpolation(t *testing.T) {
	lookup := env("A", "one", "B", "${A}", "EMPTY", "", "TTL", "90s")
	for _, tt := range []struct{ in, want string }{
		{"plain", "plain"}, {"${A}", "one"}, {"x${A}y${A}", "xoneyone"}, {"${B}", "${A}"}, {"${EMPTY}", ""},
		{"$${A}", "${A}"}, {"$$${A}", "$${A}"}, {"$A", "$A"}, {"100$", "100$"}, {"$${", "${"},
	} {
		got, err := node.ParseConfig("c.toml", fmt.Appendf(nil, "[policy]\ndir = '%s'", tt.in), lookup)
		if err != nil || got.Policy.Dir != tt.want {
			t.Errorf("dir = %q became %q, %v; want %q", tt.in, got.Policy.Dir, err, tt.want)
		}
	}
	got, err := node.ParseConfig("c.toml", []byte("oversight.timeout = '${TTL}'\negress.hosts = {\"a.test\" = '127.0.0.1:1'}\n[[inference.providers]]\nname='a'\nbase_url='http://localhost/v1'\nmodels=['${A}']"), lookup)
	if err != nil || got.Oversight.Timeout != node.Duration(90*time.Second) || got.Inference.Providers[0].Models[0] != "one" || got.Egress.Hosts["a.test"] == "" {
		t.Errorf("config = %+v, %v", got, err)
	}
	// An unset variable matters only where its section is on (R-CFG-42).
	if _, err := node.ParseConfig("c.toml", []byte("[integrations.stripe]\nenabled = false\napi_key = '${NOPE}'"), nil); err != nil {
		t.Errorf("an unset variable of a disabled section: %v", err)
	}
}

func TestDefaultPaths(t *testing.T) {
	root := t.TempDir()
	write := func(name, doc string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, warnings, err := node.LoadBelow(root, nil)
	if err != nil || len(warnings) != 0 || !cmp.Equal(got, node.Default(), compare()) {
		t.Fatalf("with no file: %+v, %q, %v; want Default", got, warnings, err)
	}
	write("etc/creto/enablement.toml", "[integrations.nhi]\ntimeout_ms = 1\nretry_max_attempts = 1\nretry_max_delay_ms = 600")
	write("etc/creto/enablement-integrations.toml", "[integrations.nhi]\ntimeout_ms = 2\nretry_max_attempts = 2")
	write("etc/creto/creto.toml", "[integrations.nhi]\ntimeout_ms = 3")
	got, warnings, err = node.LoadBelow(root, nil)
	nhi := got.Integrations.NHI
	if err != nil || nhi.TimeoutMS != 3 || nhi.RetryMaxAttempts != 2 || nhi.RetryMaxDelayMS != 600 {
		t.Errorf("merged = %+v, %v; want 3 from creto.toml, 2 and 600 from the old files", nhi, err)
	}
	if len(warnings) != 2 || !strings.Contains(warnings[0], "enablement.toml is an old name") {
		t.Errorf("warnings = %q, want one for each old file", warnings)
	}
}

func TestSpecSample(t *testing.T) {
	_, _, err := node.Load("testdata/config/spec-s2.toml", env("SLACK_SIGNING_SECRET", planted, "SLACK_BOT_TOKEN", planted))
	want := "testdata/config/spec-s2.toml:3:1: integrations.nhi.endpoint: remote nhi is not built yet; remove integrations.nhi.endpoint\n" +
		"testdata/config/spec-s2.toml:8:1: integrations.slack.enabled: slack is not built yet; set it to false"
	if diff := cmp.Diff(want, fault.Message(err)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestLoadOfNoFile(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big.toml")
	if err := os.WriteFile(big, bytes.Repeat([]byte("#\n"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none.toml"): "does not exist",
		dir:                             "is a directory",
		big:                             "is larger than 1048576 bytes",
	} {
		_, _, err := node.Load(path, nil)
		if !errors.Is(err, fault.InvalidArgument) || !strings.Contains(fault.Message(err), want) || strings.Contains(fault.Message(err), "\n") {
			t.Errorf("Load(%q) = %v, want InvalidArgument with %q", path, err, want)
		}
	}
}

func TestWarnings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	doc := "[[inference.providers]]\nname = 'a'\nbase_url = 'http://models.example/v1'\napi_key = '" + planted + "'\n"
	if err := os.WriteFile(path, []byte(doc), 0o644); err != nil {
		t.Fatal(err)
	}
	_, warnings, err := node.Load(path, nil)
	if err != nil || len(warnings) != 2 || !strings.Contains(warnings[0], "chmod 600") || !strings.Contains(warnings[1], "in the clear") {
		t.Errorf("warnings = %q, %v; want one for the file's mode, one for http", warnings, err)
	}
	if slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, planted) }) {
		t.Errorf("a warning shows the secret: %q", warnings)
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, name := range []string{"full", "wrong", "spec-s2"} {
		doc, err := os.ReadFile("testdata/config/" + name + ".toml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(doc)
	}
	f.Add(node.Defaults())
	f.Add([]byte("inference.providers = [{name='${A}'}, 1, [[]]]\negress.hosts={a={b=1}}\n[[inference.providers]]"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		got, err := node.ParseConfig("c.toml", doc, env("A", "one"))
		if err != nil {
			if !errors.Is(err, fault.InvalidArgument) || fault.Message(err) == "" {
				t.Fatalf("error = %v, want InvalidArgument with a text", err)
			}
			return
		}
		if err := got.Validate(); err != nil {
			t.Fatalf("a loaded configuration does not validate: %v", err)
		}
	})
}
