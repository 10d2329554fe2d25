package node

import (
	"log/slog"
	"strings"
	"time"

	"creto.dev"
	"creto.dev/audit/witness"
	"creto.dev/call"
	"creto.dev/consensus/etcdconsensus"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/localinference"
	"creto.dev/login"
	"creto.dev/pqc/kek"
)

// Config is everything that a node can be told, a plain value: copy it, compare
// it, print it (secrets print as ***). [Default] is complete and runs; [Load]
// reads one TOML file over it; config_defaults.toml says what each key means.
//
// The keys below integrations are those of the specification (R-CFG-1…46), with
// its units in their names.
type Config struct {
	Server       ServerConfig       `toml:"server"`
	TLS          TLSConfig          `toml:"tls"`
	Console      ConsoleConfig      `toml:"console"`
	Login        LoginConfig        `toml:"login"`
	Identity     IdentityConfig     `toml:"identity"`
	Database     DatabaseConfig     `toml:"database"`
	Keys         kek.Config         `toml:"keys"`
	Policy       PolicyConfig       `toml:"policy"`
	Oversight    OversightConfig    `toml:"oversight"`
	Runtime      RuntimeConfig      `toml:"runtime"`
	Egress       EgressConfig       `toml:"egress"`
	Secrets      SecretsConfig      `toml:"secrets"`
	Inference    InferenceConfig    `toml:"inference"`
	Log          LogConfig          `toml:"log"`
	Telemetry    TelemetryConfig    `toml:"telemetry"`
	Audit        PublicationConfig  `toml:"audit"`
	Integrations IntegrationsConfig `toml:"integrations"`
}

// ServerConfig is where the node listens.
type ServerConfig struct {
	// Listen is host:port of the one TCP port; port 0 takes a free one.
	Listen string `toml:"listen"`
	// AllowPlaintext permits listening beyond this machine without TLS, because
	// something in front of the node encrypts.
	AllowPlaintext bool `toml:"allow_plaintext"`
}

// TLSConfig is how the TCP port is encrypted: not at all where Cert is empty. The
// files are PEM and read again when they change.
type TLSConfig struct {
	// Cert is the node's certificate, with intermediates, and Key its key.
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
	// ClientCA holds the roots of the certificates by which other nodes are
	// known; "" means that clients are not asked for one.
	ClientCA string `toml:"client_ca"`
}

// ConsoleConfig is the web console.
type ConsoleConfig struct {
	// Origin is the console's address as browsers see it. Passkeys are bound
	// to its host, which therefore cannot be an IP address.
	Origin string `toml:"origin"`
}

// LoginConfig is how people are known beside passkeys and one-time logins.
type LoginConfig struct {
	// OIDC are identity providers; none is there by default.
	OIDC []login.ProviderConfig `toml:"oidc"`
}

// IdentityConfig is whom the node vouches for.
type IdentityConfig struct {
	// TrustDomain and Tenant are the first parts of every id.
	TrustDomain string `toml:"trust_domain"`
	Tenant      string `toml:"tenant"`
	// TokenTTL is how long an access token is valid, at most 15 minutes.
	TokenTTL Duration `toml:"token_ttl"`
}

// DatabaseConfig is where the node keeps what is not a file.
type DatabaseConfig struct {
	// URL is that of a PostgreSQL database, as postgres://user:password@host/name;
	// "" means SQLite in the data directory. Beyond this machine the connection is
	// encrypted and the server verified, unless it says sslmode.
	URL creto.Secret `toml:"url"`
}

// PolicyConfig is where the Cedar policies are.
type PolicyConfig struct {
	// Dir is a directory; "" means policies in the data directory.
	Dir string `toml:"dir"`
}

// OversightConfig is how humans are asked.
type OversightConfig struct {
	// Timeout is how long a request waits for a human where its policy does not
	// say; then it is denied.
	Timeout Duration `toml:"timeout"`
}

// The values of RuntimeConfig.Backend.
const (
	BackendAuto       = "auto"
	BackendGVisor     = "gvisor"
	BackendNamespaces = "namespaces"
)

// RuntimeConfig is how agents' programs are isolated.
type RuntimeConfig struct {
	// Backend is auto (gVisor when there, else namespaces), gvisor or
	// namespaces.
	Backend string `toml:"backend"`
	// RunscPath is the absolute path of runsc; "" looks in PATH.
	RunscPath string `toml:"runsc_path"`
}

// EgressConfig is the way out.
type EgressConfig struct {
	// Hosts maps a name, or name:port, that agents use to the address:port that
	// is really dialled. Its entries are exempt from the guard against private
	// addresses.
	Hosts map[string]string `toml:"hosts"`
	// Credentials are added to plain requests on their way out.
	Credentials []CredentialConfig `toml:"credentials"`
}

// CredentialConfig binds a secret to a host (B-3): agents never hold it.
type CredentialConfig struct {
	// Host is name or name:port; 80 if it says none. Required.
	Host string `toml:"host"`
	// Header carries the secret, in place of what the agent sends. Required.
	Header string `toml:"header"`
	// Format is the header's value, with one %s for the secret; "" is "%s".
	Format string `toml:"format"`
	// Secret is the secret's name. Required.
	Secret string `toml:"secret"`
	// Tenant has the secret; "" means the node's own. Agents are those of its
	// whose requests it is added to; none means all.
	Tenant string   `toml:"tenant"`
	Agents []string `toml:"agents"`
}

// SecretsConfig is where secrets have their values that the node's own store
// does not have.
type SecretsConfig struct {
	// CacheTTL is how long a value of the vault may be kept in memory; 0 is not
	// at all.
	CacheTTL Duration           `toml:"cache_ttl"`
	Env      SecretEnvConfig    `toml:"env"`
	Files    SecretFilesConfig  `toml:"files"`
	Vault    SecretVaultConfig  `toml:"vault"`
	Names    []SecretNameConfig `toml:"names"`
}

// SecretEnvConfig is the environment as a source.
type SecretEnvConfig struct {
	// Prefix begins the names of the variables that may be read; "" means none.
	Prefix string `toml:"prefix"`
}

// SecretFilesConfig is a directory as a source.
type SecretFilesConfig struct {
	// Dir holds a file for each secret; "" means no such source.
	Dir string `toml:"dir"`
}

// SecretVaultConfig is OpenBao or HashiCorp Vault as a source.
type SecretVaultConfig struct {
	// Address is its URL; "" means no such source.
	Address   string `toml:"address"`
	Namespace string `toml:"namespace"`
	// Token is the node's, unless RoleID and SecretID are those of an AppRole.
	Token        creto.Secret `toml:"token"`
	RoleID       string       `toml:"role_id"`
	SecretID     creto.Secret `toml:"secret_id"`
	AppRoleMount string       `toml:"approle_mount"`
	// CAFile has the certificates that the vault's must lead to.
	CAFile string `toml:"ca_file"`
	// Timeout bounds one attempt, of which there are at most Attempts.
	Timeout  Duration `toml:"timeout"`
	Attempts int      `toml:"attempts"`
}

// SecretNameConfig says where the secret of a name has its value.
type SecretNameConfig struct {
	// Name is what policies and credentials call it. Required.
	Name string `toml:"name"`
	// From is the reference, such as vault:kv/shop#api_key. Required.
	From string `toml:"from"`
	// Tenant has the secret; "" means the node's own. Agents of it may have it;
	// none means that policy alone decides.
	Tenant string   `toml:"tenant"`
	Agents []string `toml:"agents"`
}

// InferenceConfig is which models there are.
type InferenceConfig struct {
	// Timeout bounds one model call, its stream included.
	Timeout Duration `toml:"timeout"`
	// AttemptTimeout bounds an answer, or the wait for a stream's first piece, while
	// there is another provider to ask. 0 means 3 minutes.
	AttemptTimeout Duration `toml:"attempt_timeout"`
	// Providers are asked in their order where nothing else is said, those whose
	// Models match.
	Providers []ProviderConfig `toml:"providers"`
	// Injection is what is done about prompt injection.
	Injection InjectionConfig `toml:"injection"`
	// Cache is which answers are kept, and given again.
	Cache CacheConfig `toml:"cache"`
	// How one is chosen.
	localinference.Config
}

// The values of ProviderConfig.Kind: what an upstream speaks, whoever it is.
const (
	ProviderOpenAI    = "openai"
	ProviderAnthropic = "anthropic"
	ProviderAzure     = "azure"
	ProviderBedrock   = "bedrock"
	ProviderVertex    = "vertex"
	ProviderOllama    = "ollama"
)

// ProviderConfig is one upstream for models.
type ProviderConfig struct {
	// Name is what records call it. Required, unique.
	Name string `toml:"name"`
	// Kind is the dialect; "" means ProviderOpenAI.
	Kind string `toml:"kind"`
	// BaseURL is the address up to and without /chat/completions or /messages;
	// with ProviderAzure and ProviderOllama, that of the resource or server. Required, but for ProviderBedrock
	// and ProviderVertex, whose regions have addresses.
	BaseURL string `toml:"base_url"`
	// APIKey is added on the way out; agents never see it. Optional.
	APIKey creto.Secret `toml:"api_key"`
	// APIKeys are several in its place, which share the calls; one that is limited
	// or refused rests.
	APIKeys []creto.Secret `toml:"api_keys"`
	// Models are names, or prefixes followed by *; empty means every model.
	Models []string `toml:"models"`
	// Local says that what is sent there stays on machines of the operator's. No
	// address is taken for that: a proxy on this machine may lead anywhere.
	Local bool `toml:"local"`
	// Classifications are those that may be sent there, and no other; empty leaves
	// it to the strategy.
	Classifications []inference.Classification `toml:"classifications"`
	// Region says where the data goes; "" is not known, "local", or that of
	// ProviderBedrock or ProviderVertex.
	Region string `toml:"region"`
	// Context is how many tokens prompt and answer may have, for information; 0 is
	// not known.
	Context int `toml:"context"`
	// Concurrency is how many calls it may have at once; 0 is no bound.
	Concurrency int `toml:"concurrency"`
	// MaxTokens bounds an answer where the request does not, because Anthropic
	// demands a bound; 0 means 4096. Only for ProviderAnthropic.
	MaxTokens int `toml:"max_tokens"`
	// TraceContext has requests to it carry the W3C trace context that they belong
	// to (traceparent and tracestate). Local providers are sent it in any case.
	TraceContext bool `toml:"trace_context"`
	// What one kind alone has.
	Azure   AzureProviderConfig   `toml:"azure"`
	Bedrock BedrockProviderConfig `toml:"bedrock"`
	Vertex  VertexProviderConfig  `toml:"vertex"`
}

// LogConfig is the process's own log.
type LogConfig struct {
	// Level is debug, info, warn or error.
	Level string `toml:"level"`
	// Format is text or json.
	Format string `toml:"format"`
	// Decisions is the share of allowed actions that is logged, from 0, none, to
	// 1, all. Those that are not allowed are always logged, at info.
	Decisions float64 `toml:"decisions"`
}

// SlogLevel returns the level; info for one that Validate refuses.
func (c LogConfig) SlogLevel() slog.Level {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // level stays Info, as documented
	return level
}

// The values of PublicationConfig.Publish.
const (
	PublishNone   = "none"
	PublishProofs = "proofs"
	PublishAll    = "all"
)

// PublicationConfig is who may read and who watches the audit log.
type PublicationConfig struct {
	// Publish is what everybody may read below /log/: none, proofs (checkpoint
	// and hashes), or all (the records too).
	Publish string `toml:"publish"`
	// PublishInterval is how often a new head is published.
	PublishInterval Duration `toml:"publish_interval"`
	// CheckpointFile gets a copy of each published head; "" means none.
	CheckpointFile string `toml:"checkpoint_file"`
	// Witnesses cosign each published head, and WitnessQuorum of them must.
	Witnesses     []witness.Peer `toml:"witnesses"`
	WitnessQuorum int            `toml:"witness_quorum"`
	// Retention is how long records stay in the database; 0 means for ever.
	// Archive is the directory that they go to then; "" means nowhere.
	Retention Duration `toml:"retention"`
	Archive   string   `toml:"archive"`
	// SpoolMiB bounds what waits on disk while the database does not take
	// records. 0 means 1 GiB, or a tenth of the free disk if that is less.
	SpoolMiB int `toml:"spool_mib"`
	// Exports are where the log goes as it grows.
	Exports []ExportConfig `toml:"exports"`
}

// IntegrationsConfig is where each contract is served: in this process, unless
// an endpoint says otherwise.
type IntegrationsConfig struct {
	NHI       RemoteConfig    `toml:"nhi"`
	Authz     AuthzConfig     `toml:"authz"`
	Crypto    CryptoConfig    `toml:"crypto"`
	Consensus ConsensusConfig `toml:"consensus"`
	Audit     AuditConfig     `toml:"audit"`
	Metering  RemoteConfig    `toml:"metering"`
	Memory    MemoryConfig    `toml:"memory"`
	Storage   RemoteConfig    `toml:"storage"`
	Slack     SlackConfig     `toml:"slack"`
	Stripe    StripeConfig    `toml:"stripe"`
}

// RemoteConfig is what every contract's section has: where it is and how calls
// to it are made. Retries and breaker matter to remote contracts only.
type RemoteConfig struct {
	// Endpoint: "" and embedded:// mean in this process.
	Endpoint                       string `toml:"endpoint"`
	TimeoutMS                      int    `toml:"timeout_ms"`
	RetryMaxAttempts               int    `toml:"retry_max_attempts"`
	RetryInitialDelayMS            int    `toml:"retry_initial_delay_ms"`
	RetryMaxDelayMS                int    `toml:"retry_max_delay_ms"`
	CircuitBreakerEnabled          bool   `toml:"circuit_breaker_enabled"`
	CircuitBreakerFailureThreshold int    `toml:"circuit_breaker_failure_threshold"`
	CircuitBreakerResetTimeoutSec  int    `toml:"circuit_breaker_reset_timeout_sec"`
}

// address returns where the contract is served, if it is not here.
func (c RemoteConfig) address() (string, bool) {
	if c.Endpoint == "" || c.Endpoint == "embedded://" {
		return "", false
	}
	return strings.TrimPrefix(strings.Replace(c.Endpoint, "unix://", "unix:", 1), "grpc://"), true
}

// checkEndpoint finds what is wrong with where it is.
func (c RemoteConfig) checkEndpoint(what string) error {
	address, remote := strings.CutPrefix(c.Endpoint, "grpc://")
	path, socket := strings.CutPrefix(c.Endpoint, "unix://")
	k := configChecker{}
	if remote {
		k.hostPort("", address, false)
	}
	if c.Endpoint == "" || c.Endpoint == "embedded://" || remote && len(k.found) == 0 || socket && strings.HasPrefix(path, "/") {
		return nil
	}
	return fault.New("node.RemoteConfig", fault.InvalidArgument, "%q is no place for %s: use embedded://, grpc://host:port or unix:///path of another node", c.Endpoint, what)
}

// CallPolicy returns the section's time limit, retries and breaker for package
// call. Its budget and breaker are new: ask once for each dependency.
func (c RemoteConfig) CallPolicy() call.Policy {
	p := call.Policy{
		Timeout:      time.Duration(c.TimeoutMS) * time.Millisecond,
		Attempts:     c.RetryMaxAttempts,
		InitialDelay: time.Duration(c.RetryInitialDelayMS) * time.Millisecond,
		MaxDelay:     time.Duration(c.RetryMaxDelayMS) * time.Millisecond,
		Budget:       new(call.Budget),
	}
	if c.CircuitBreakerEnabled {
		p.Breaker = &call.Breaker{
			Threshold: c.CircuitBreakerFailureThreshold, Reset: time.Duration(c.CircuitBreakerResetTimeoutSec) * time.Second,
		}
	}
	return p
}

// AuthzConfig is R-CFG-9…14.
type AuthzConfig struct {
	RemoteConfig
	CacheEnabled    bool `toml:"cache_enabled"`
	CacheTTLSeconds int  `toml:"cache_ttl_seconds"`
	CacheMaxEntries int  `toml:"cache_max_entries"`
}

// CryptoConfig is R-CFG-15…19. Each names the one algorithm that is built.
type CryptoConfig struct {
	SymmetricAlgorithm string `toml:"symmetric_algorithm"`
	KEMAlgorithm       string `toml:"kem_algorithm"`
	SignatureClassical string `toml:"signature_classical"`
	SignaturePQC       string `toml:"signature_pqc"`
	HashAlgorithm      string `toml:"hash_algorithm"`
}

// ConsensusConfig is R-CFG-20…23. Endpoint: "" and embedded:// are this node's
// own clock; grpc://host:port and unix:///path are another node's;
// etcd://host:port,host:port, or etcds:// with TLS, is that of all nodes that share
// an etcd.
type ConsensusConfig struct {
	RemoteConfig
	// FallbackToLocalTimestamp has the node give stamps of its own, which say so,
	// while consensus cannot be reached. Its own clock needs none.
	FallbackToLocalTimestamp bool       `toml:"fallback_to_local_timestamp"`
	Etcd                     EtcdConfig `toml:"etcd"`
}

// EtcdConfig is how to be one of a cluster's nodes.
type EtcdConfig struct {
	// Prefix begins the cluster's keys, with a slash at both ends.
	Prefix string `toml:"prefix"`
	// Advertise is host:port where other nodes reach this one; "" is where it
	// listens.
	Advertise string `toml:"advertise"`
	// LeaseTTL is how long a leader that is silent stays it.
	LeaseTTL Duration `toml:"lease_ttl"`
	// Username and Password are etcd's; "" where it has none.
	Username string       `toml:"username"`
	Password creto.Secret `toml:"password"`
	// CAFile has the certificates that etcd's must lead to; "" means those of the
	// system. Cert and Key are this node's for etcd, if it asks for one.
	CAFile string `toml:"ca_file"`
	Cert   string `toml:"cert"`
	Key    string `toml:"key"`
}

// AuditConfig is R-CFG-24…29.
type AuditConfig struct {
	RemoteConfig
	// AsyncWrites speaks of sequencing into the tree, not of durability
	// (R-AUD-21); only true is built.
	AsyncWrites        bool `toml:"async_writes"`
	BatchSize          int  `toml:"batch_size"`
	FlushIntervalMS    int  `toml:"flush_interval_ms"`
	LocalBufferMaxSize int  `toml:"local_buffer_max_size"`
}

// MemoryConfig is R-CFG-30…32 and X-11.
type MemoryConfig struct {
	RemoteConfig
	Optional           bool    `toml:"optional"`
	Limit              int     `toml:"limit"`
	RelevanceThreshold float64 `toml:"relevance_threshold"`
}

// SlackConfig is R-CFG-36…38 and the channel that the specification forgot.
type SlackConfig struct {
	Enabled       bool         `toml:"enabled"`
	SigningSecret creto.Secret `toml:"signing_secret"`
	BotToken      creto.Secret `toml:"bot_token"`
	ChannelID     string       `toml:"channel_id"`
}

// StripeConfig is R-CFG-39…41.
type StripeConfig struct {
	Enabled       bool         `toml:"enabled"`
	APIKey        creto.Secret `toml:"api_key"`
	WebhookSecret creto.Secret `toml:"webhook_secret"`
}

// Duration is a time.Duration written as in "1m30s".
type Duration time.Duration

// String returns the text form.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Its error is that of
// time.ParseDuration, which quotes the text.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}

// Default returns the configuration of a node that was told nothing: everything
// in this process, no models, no way out.
func Default() Config {
	remote := RemoteConfig{
		TimeoutMS: 100, RetryMaxAttempts: 3, RetryInitialDelayMS: 100, RetryMaxDelayMS: 1000,
		CircuitBreakerEnabled: true, CircuitBreakerFailureThreshold: 5, CircuitBreakerResetTimeoutSec: 30,
	}
	with := func(timeoutMS, attempts int) RemoteConfig {
		r := remote
		r.TimeoutMS, r.RetryMaxAttempts = timeoutMS, attempts
		return r
	}
	nhi := with(100, 3)
	nhi.RetryInitialDelayMS, nhi.RetryMaxDelayMS = 50, 500
	consensus := with(50, 2)
	consensus.RetryInitialDelayMS, consensus.RetryMaxDelayMS = 10, 100 // an action waits for its stamp
	metering := with(1000, 2)
	metering.RetryInitialDelayMS, metering.RetryMaxDelayMS, metering.CircuitBreakerResetTimeoutSec = 10, 100, 5 // as above; and a lease lasts a minute
	return Config{
		Server:    ServerConfig{Listen: "localhost:7300"},
		Console:   ConsoleConfig{Origin: "http://localhost:7300"},
		Identity:  IdentityConfig{TrustDomain: "creto.local", Tenant: creto.DefaultTenant, TokenTTL: Duration(15 * time.Minute)},
		Keys:      kek.Config{Source: kek.SourceFile},
		Oversight: OversightConfig{Timeout: Duration(30 * time.Minute)},
		Runtime:   RuntimeConfig{Backend: BackendAuto},
		Secrets:   SecretsConfig{Vault: SecretVaultConfig{AppRoleMount: "approle", Timeout: Duration(2 * time.Second), Attempts: 3}},
		Inference: InferenceConfig{
			Injection: defaultInjection(), Cache: defaultCache(),
			Timeout: Duration(10 * time.Minute), AttemptTimeout: Duration(localinference.DefaultAttemptTimeout),
			Config: localinference.Config{
				Strategy: localinference.CloudFirst, FallbackToLocal: true,
				LocalClassifications: []inference.Classification{inference.ClassificationRestricted},
			},
		},
		Log:       LogConfig{Level: "info", Format: "text"},
		Telemetry: TelemetryConfig{SampleRatio: 1},
		Audit:     PublicationConfig{Publish: PublishNone, PublishInterval: Duration(5 * time.Second)},
		Integrations: IntegrationsConfig{
			NHI:   nhi,
			Authz: AuthzConfig{RemoteConfig: with(10, 3), CacheEnabled: true, CacheTTLSeconds: 60, CacheMaxEntries: 10_000},
			Crypto: CryptoConfig{
				SymmetricAlgorithm: "aes-256-gcm", KEMAlgorithm: "ml-kem-768",
				SignatureClassical: "ed25519", SignaturePQC: "ml-dsa-65", HashAlgorithm: "sha3-256",
			},
			Consensus: ConsensusConfig{
				RemoteConfig: consensus, FallbackToLocalTimestamp: true,
				Etcd: EtcdConfig{Prefix: "/creto/time/", LeaseTTL: Duration(etcdconsensus.DefaultLeaseTTL)},
			},
			Audit:    AuditConfig{RemoteConfig: with(1000, 5), AsyncWrites: true, BatchSize: 100, FlushIntervalMS: 1000, LocalBufferMaxSize: 10_000},
			Metering: metering,
			Memory:   MemoryConfig{RemoteConfig: with(200, 3), Optional: true, Limit: 5, RelevanceThreshold: 0.7},
			Storage:  with(1000, 3),
		},
	}
}
