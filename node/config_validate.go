package node

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/nhi"
	"creto.dev/nhi/secretsource"
)

// maxTokenTTL is the longest that an access token may be valid: what is revoked
// by waiting must end soon.
const maxTokenTTL = 15 * time.Minute

// Validate reports every problem of c, a line each.
//
// Errors: InvalidArgument (Permanent).
func (c Config) Validate() error { return configError("node.Config.Validate", c.problems()) }

// configChecker collects problems.
type configChecker struct{ found []configProblem }

func (k *configChecker) addf(key, format string, args ...any) {
	k.found = append(k.found, configProblem{key: key, text: fmt.Sprintf(format, args...)})
}

func (k *configChecker) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		k.addf(key, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
}

func (k *configChecker) between(key string, value, low, high int) {
	if value < low || value > high {
		k.addf(key, "%d is outside %d to %d", value, low, high)
	}
}

func (k *configChecker) within(key string, value Duration, low, high time.Duration) {
	if d := time.Duration(value); d < low || d > high {
		k.addf(key, "%v is outside %v to %v", value, low, high)
	}
}

// absolute checks a path, which may be absent: a node's directory is wherever it
// was started.
func (k *configChecker) absolute(key, path string) {
	if path != "" && !filepath.IsAbs(path) {
		k.addf(key, "%q is not an absolute path", path)
	}
}

// hostPort checks host:port; a port of 0 only where free is true.
func (k *configChecker) hostPort(key, value string, free bool) {
	host, port, err := net.SplitHostPort(value)
	n, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || portErr != nil || n == 0 && !free || strings.ContainsAny(host, " /@") {
		k.addf(key, "%q is not of the form host:port", value)
	}
}

// problems returns what is wrong with c, without places.
func (c Config) problems() []configProblem {
	k := &configChecker{}
	k.hostPort("server.listen", c.Server.Listen, true)
	k.transport(c.Server, c.TLS)
	k.origin("console.origin", c.Console.Origin)
	k.login(c.Login)
	k.identity(c.Identity)
	if u := c.Database.URL.Reveal(); u != "" && !db.IsPostgres(u) {
		k.addf("database.url", "it does not begin with postgres://")
	}
	for key, text := range c.Keys.Problems() {
		k.addf("keys."+key, "%s", text)
	}
	k.absolute("keys.passphrase_file", c.Keys.PassphraseFile)
	k.within("oversight.timeout", c.Oversight.Timeout, time.Second, 30*24*time.Hour)
	k.oneOf("runtime.backend", c.Runtime.Backend, BackendAuto, BackendGVisor, BackendNamespaces)
	k.absolute("runtime.runsc_path", c.Runtime.RunscPath)
	for _, name := range slices.Sorted(maps.Keys(c.Egress.Hosts)) {
		k.egressHost(name, c.Egress.Hosts[name])
	}
	for i, x := range c.Egress.Credentials {
		key := fmt.Sprintf("egress.credentials[%d]", i)
		if err := x.credential(c.Identity.Tenant).Validate(); err != nil {
			k.addf(key, "%s", fault.Message(err))
		}
		k.tenant(key+".tenant", x.Tenant)
		k.agents(key+".agents", x.Agents)
	}
	k.secrets(c.Secrets, c.Identity.Tenant)
	k.inference(c.Inference)
	k.cache(c.Inference.Cache)
	k.telemetry(c.Telemetry)
	k.oneOf("audit.publish", c.Audit.Publish, PublishNone, PublishProofs, PublishAll)
	k.within("audit.publish_interval", c.Audit.PublishInterval, time.Second, time.Hour)
	k.absolute("audit.checkpoint_file", c.Audit.CheckpointFile)
	k.absolute("audit.archive", c.Audit.Archive)
	if c.Audit.Retention != 0 {
		k.within("audit.retention", c.Audit.Retention, 24*time.Hour, 100*365*24*time.Hour)
	}
	k.between("audit.spool_mib", c.Audit.SpoolMiB, 0, 1<<20)
	k.exports(c.Audit.Exports)
	for _, problem := range c.Audit.publisher().Problems() {
		key, text, _ := strings.Cut(problem, ": ")
		k.addf("audit."+key, "%s", text)
	}
	k.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	if share := c.Log.Decisions; !(share >= 0 && share <= 1) { // also what is no number
		k.addf("log.decisions", "%v is outside 0 to 1", share)
	}
	k.oneOf("log.format", c.Log.Format, "text", "json")
	k.integrations(c.Integrations)
	return k.found
}

// transport checks that what leaves this machine is encrypted, or said not to be:
// tokens and approvals cross the port.
func (k *configChecker) transport(server ServerConfig, c TLSConfig) {
	k.absolute("tls.cert", c.Cert)
	k.absolute("tls.key", c.Key)
	k.absolute("tls.client_ca", c.ClientCA)
	switch {
	case c.Cert != "" && c.Key == "":
		k.addf("tls.key", "the key of tls.cert is required")
	case c.Cert == "" && (c.Key != "" || c.ClientCA != ""):
		k.addf("tls.cert", "a certificate is required for TLS")
	case c.Cert == "" && !server.AllowPlaintext && !loopback(server.Listen):
		k.addf("server.listen", "%q can be reached from elsewhere, in clear; set tls.cert and tls.key, or server.allow_plaintext = true if something in front of the node encrypts", server.Listen)
	}
}

// loopback reports whether only this machine reaches host:port.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return true // it is said to be no address
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// origin checks the console's origin: a passkey is bound to its host, which
// cannot be an IP address (WebAuthn level 3, section 5.1.2).
func (k *configChecker) origin(key, value string) {
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Host != strings.TrimPrefix(value, u.Scheme+"://") {
		k.addf(key, "%q is not an origin such as https://creto.example", value)
		return
	}
	host := u.Hostname()
	if _, err := netip.ParseAddr(host); err == nil {
		k.addf(key, "%q is an IP address, to which no passkey can be bound; use a name such as localhost", host)
	}
	if u.Scheme == "http" && host != "localhost" && !strings.HasSuffix(host, ".localhost") {
		k.addf(key, "%q needs https, because it is not localhost", value)
	}
}

func (k *configChecker) login(c LoginConfig) {
	seen := map[string]bool{}
	for i, p := range c.OIDC {
		key := fmt.Sprintf("login.oidc[%d].", i)
		problems := p.Problems()
		for _, field := range slices.Sorted(maps.Keys(problems)) {
			k.addf(key+field, "%s", problems[field])
		}
		if seen[p.Name] || seen[p.Issuer] {
			k.addf(key+"name", "%q, or its issuer, is there twice", p.Name)
		}
		seen[p.Name], seen[p.Issuer] = true, true
	}
}

func (k *configChecker) identity(c IdentityConfig) {
	id := creto.ID{TrustDomain: c.TrustDomain, Tenant: creto.DefaultTenant, Kind: creto.KindAgent, Name: "x"}
	if id.Validate() != nil {
		k.addf("identity.trust_domain", "%q is no trust domain; use a-z, 0-9, '-', '_' and '.'", c.TrustDomain)
	}
	id.TrustDomain, id.Tenant = "x", c.Tenant
	if id.Validate() != nil {
		k.addf("identity.tenant", "%q is no tenant; use a-z, 0-9, '-', '_' and '.'", c.Tenant)
	}
	k.within("identity.token_ttl", c.TokenTTL, time.Second, maxTokenTTL)
}

func (k *configChecker) egressHost(name, address string) {
	key := "egress.hosts." + name
	host, port, hasPort := strings.Cut(name, ":")
	if n, err := strconv.ParseUint(port, 10, 16); hasPort && (err != nil || n == 0) || host == "" || strings.ContainsAny(name, " /@*\\") {
		k.addf(key, "%q is not of the form name or name:port", name)
	}
	k.hostPort(key, address, false)
}

// tenant checks a tenant's name, which may be absent.
func (k *configChecker) tenant(key, name string) {
	id := creto.ID{TrustDomain: "x", Tenant: name, Kind: creto.KindAgent, Name: "x"}
	if name != "" && id.Validate() != nil {
		k.addf(key, "%q is no tenant; use a-z, 0-9, '-', '_' and '.'", name)
	}
}

// agents checks names of agents.
func (k *configChecker) agents(key string, names []string) {
	for _, name := range names {
		id := creto.ID{TrustDomain: "x", Tenant: creto.DefaultTenant, Kind: creto.KindAgent, Name: name}
		if id.Validate() != nil {
			k.addf(key, "%q is no agent's name", name)
		}
	}
}

func (k *configChecker) secrets(c SecretsConfig, own string) {
	k.within("secrets.cache_ttl", c.CacheTTL, 0, secretsource.MaxCacheTTL)
	if c.Env.Prefix != "" {
		if _, err := secretsource.NewEnv(c.Env.Prefix, os.LookupEnv); err != nil {
			k.addf("secrets.env.prefix", "%s", fault.Message(err))
		}
	}
	k.absolute("secrets.files.dir", c.Files.Dir)
	k.absolute("secrets.vault.ca_file", c.Vault.CAFile)
	k.within("secrets.vault.timeout", c.Vault.Timeout, 10*time.Millisecond, time.Minute)
	k.between("secrets.vault.attempts", c.Vault.Attempts, 1, 10)
	switch v := c.Vault; {
	case v.Address != "":
		if err := v.source().Validate(); err != nil {
			k.addf("secrets.vault", "%s", fault.Message(err))
		}
	case !v.Token.IsZero() || !v.SecretID.IsZero() || v.RoleID != "" || v.Namespace != "" || v.CAFile != "":
		k.addf("secrets.vault.address", "is required for the rest of the section")
	}
	configured := map[string]bool{
		secretsource.SchemeStore: true, secretsource.SchemeEnv: c.Env.Prefix != "", secretsource.SchemeFile: c.Files.Dir != "", secretsource.SchemeVault: c.Vault.Address != "",
	}
	section := map[string]string{
		secretsource.SchemeEnv: "secrets.env.prefix", secretsource.SchemeFile: "secrets.files.dir", secretsource.SchemeVault: "secrets.vault.address",
	}
	type owned struct{ tenant, name string }
	seen := map[owned]bool{}
	for i, x := range c.Names {
		key := fmt.Sprintf("secrets.names[%d]", i)
		if err := nhi.SecretRef(x.Name).Validate(); err != nil {
			k.addf(key+".name", "%s", fault.Message(err))
		} else if seen[owned{cmp.Or(x.Tenant, own), x.Name}] {
			k.addf(key+".name", "%q is there twice", x.Name)
		}
		seen[owned{cmp.Or(x.Tenant, own), x.Name}] = true
		k.tenant(key+".tenant", x.Tenant)
		r, err := secretsource.ParseReference(x.From)
		switch {
		case err != nil:
			k.addf(key+".from", "%s", fault.Message(err))
		case !configured[r.Scheme]:
			k.addf(key+".from", "%q needs %s", x.From, section[r.Scheme])
		case r.Scheme == secretsource.SchemeEnv && !strings.HasPrefix(r.Locator, c.Env.Prefix):
			k.addf(key+".from", "%q does not begin with secrets.env.prefix, %q", r.Locator, c.Env.Prefix)
		}
		k.agents(key+".agents", x.Agents)
	}
}

func (k *configChecker) inference(c InferenceConfig) {
	k.within("inference.timeout", c.Timeout, time.Second, 24*time.Hour)
	if c.AttemptTimeout != 0 {
		k.within("inference.attempt_timeout", c.AttemptTimeout, 100*time.Millisecond, 24*time.Hour)
	}
	k.routing(c)
	k.injection(c.Injection)
	seen := map[string]bool{}
	for i, p := range c.Providers {
		key := fmt.Sprintf("inference.providers[%d]", i)
		id := creto.ID{TrustDomain: "x", Tenant: "x", Kind: creto.KindWorkload, Name: p.Name}
		switch {
		case p.Name == "":
			k.addf(key+".name", "a name is required")
		case id.Validate() != nil:
			k.addf(key+".name", "%q is no name; use a-z, 0-9, '-', '_' and '.'", p.Name)
		case seen[p.Name]:
			k.addf(key+".name", "%q is there twice", p.Name)
		}
		seen[p.Name] = true
		if p.Kind != "" {
			k.oneOf(key+".kind", p.Kind, ProviderOpenAI, ProviderAnthropic, ProviderAzure, ProviderBedrock, ProviderVertex, ProviderOllama)
		}
		switch {
		case p.MaxTokens < 0 || p.MaxTokens > math.MaxInt32:
			k.addf(key+".max_tokens", "%d is outside 0 to %d", p.MaxTokens, math.MaxInt32)
		case p.MaxTokens > 0 && p.Kind != ProviderAnthropic:
			k.addf(key+".max_tokens", "only for kind %q; others have a bound of their own", ProviderAnthropic)
		}
		u, err := url.Parse(p.BaseURL)
		switch {
		case p.BaseURL == "" && (p.Kind == ProviderBedrock || p.Kind == ProviderVertex):
		case p.BaseURL == "":
			k.addf(key+".base_url", "an address is required, such as https://api.openai.com/v1")
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
			k.addf(key+".base_url", "not an address such as https://api.openai.com/v1")
		case u.User != nil || u.RawQuery != "" || u.Fragment != "":
			k.addf(key+".base_url", "must have no user, query or fragment; a key goes into api_key")
		}
		if strings.ContainsAny(p.APIKey.Reveal(), "\r\n\x00") {
			k.addf(key+".api_key", "holds a line break")
		}
		k.providerRouting(key, p)
		k.providerKind(key, p)
		for _, m := range p.Models {
			if m == "" || strings.Contains(strings.TrimSuffix(m, "*"), "*") {
				k.addf(key+".models", "%q is neither a model's name nor a prefix followed by *", m)
			}
		}
	}
}

func (k *configChecker) integrations(c IntegrationsConfig) {
	d := Default().Integrations
	k.remote("nhi", c.NHI)
	k.remote("authz", c.Authz.RemoteConfig)
	k.between("integrations.authz.cache_ttl_seconds", c.Authz.CacheTTLSeconds, 1, 3600)
	k.between("integrations.authz.cache_max_entries", c.Authz.CacheMaxEntries, 1, 10_000_000)
	for _, key := range keysOf(reflect.ValueOf(d.Crypto)) {
		got, _ := fieldOf(reflect.ValueOf(c.Crypto), key)
		built, _ := fieldOf(reflect.ValueOf(d.Crypto), key)
		k.oneOf("integrations.crypto."+key, got.String(), built.String())
	}
	k.consensus(c.Consensus)
	if err := c.Audit.checkEndpoint("a log"); err != nil {
		k.addf("integrations.audit.endpoint", "%s", fault.Message(err))
	}
	k.policy("audit", c.Audit.RemoteConfig)
	if !c.Audit.AsyncWrites {
		k.addf("integrations.audit.async_writes", "only true is built: records are durable when accepted, and sequenced later")
	}
	k.between("integrations.audit.batch_size", c.Audit.BatchSize, 1, 10_000)
	k.between("integrations.audit.flush_interval_ms", c.Audit.FlushIntervalMS, 1, 60_000)
	k.between("integrations.audit.local_buffer_max_size", c.Audit.LocalBufferMaxSize, c.Audit.BatchSize, 10_000_000)
	if err := c.Metering.checkEndpoint("limits"); err != nil {
		k.addf("integrations.metering.endpoint", "%s", fault.Message(err))
	}
	k.policy("metering", c.Metering)
	k.notBuilt("memory", differing("integrations.memory", reflect.ValueOf(c.Memory), reflect.ValueOf(d.Memory)))
	k.notBuilt("storage", differing("integrations.storage", reflect.ValueOf(c.Storage), reflect.ValueOf(d.Storage)))
	k.off("slack", c.Slack.Enabled)
	k.off("stripe", c.Stripe.Enabled)
}

// off refuses to switch on a part that does not exist.
func (k *configChecker) off(part string, enabled bool) {
	if enabled {
		k.addf("integrations."+part+".enabled", "%s is not built yet; set it to false", part)
	}
}

// notBuilt refuses keys of a part that does not exist.
func (k *configChecker) notBuilt(part string, keys []string) {
	for _, key := range keys {
		k.addf(key, "%s is not built yet; remove %s", part, key)
	}
}

func (k *configChecker) remote(contract string, c RemoteConfig) {
	prefix := "integrations." + contract + "."
	if c.Endpoint != "" && c.Endpoint != "embedded://" {
		k.addf(prefix+"endpoint", "remote %s is not built yet; remove %sendpoint", contract, prefix)
	}
	k.policy(contract, c)
}

// policy checks how calls to a contract are made.
func (k *configChecker) policy(contract string, c RemoteConfig) {
	prefix := "integrations." + contract + "."
	k.between(prefix+"timeout_ms", c.TimeoutMS, 1, 600_000)
	k.between(prefix+"retry_max_attempts", c.RetryMaxAttempts, 1, 100)
	k.between(prefix+"retry_max_delay_ms", c.RetryMaxDelayMS, 1, 600_000)
	k.between(prefix+"retry_initial_delay_ms", c.RetryInitialDelayMS, 1, max(1, c.RetryMaxDelayMS))
	k.between(prefix+"circuit_breaker_failure_threshold", c.CircuitBreakerFailureThreshold, 1, 10_000)
	k.between(prefix+"circuit_breaker_reset_timeout_sec", c.CircuitBreakerResetTimeoutSec, 1, 3600)
}

// warnings returns what is allowed and yet unwise.
func (c Config) warnings() []string {
	var found []string
	for _, p := range c.Inference.Providers {
		if u, err := url.Parse(p.BaseURL); err == nil && !p.keys()[0].IsZero() && inTheClear(u) {
			found = append(found, fmt.Sprintf("inference provider %q gets its api_key over http in the clear; use https", p.Name))
		}
	}
	if u, err := url.Parse(c.Secrets.Vault.Address); err == nil && inTheClear(u) {
		found = append(found, "the vault gives its secrets over http in the clear; use https")
	}
	found = append(found, c.Integrations.Consensus.warnings()...)
	for _, x := range c.Egress.Credentials {
		// Where it is dialled counts, not what it is called.
		address := x.Host
		for _, name := range []string{x.Host, strings.TrimSuffix(x.Host, ":80"), x.Host + ":80"} {
			if mapped, ok := c.Egress.Hosts[name]; ok {
				address = mapped
			}
		}
		if inTheClear(&url.URL{Scheme: "http", Host: address}) {
			found = append(found, fmt.Sprintf("%s gets the secret %q over http in the clear; let [egress.hosts] lead to something on this machine, such as a TLS proxy", x.Host, x.Secret))
		}
	}
	return found
}

// inTheClear reports whether what is sent to u can be read on the way.
func inTheClear(u *url.URL) bool {
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Scheme == "http" && u.Hostname() != "localhost" && (err != nil || !ip.IsLoopback())
}
