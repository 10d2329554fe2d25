package node

import (
	"context"
	"io"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/provider"
)

// AzureProviderConfig is what ProviderAzure needs beside an address. Without an
// API key, an application of Entra ID asks for tokens.
type AzureProviderConfig struct {
	// APIVersion is a date, or "v1"; "" means provider.DefaultAzureVersion.
	APIVersion string `toml:"api_version"`
	// Deployments are names of deployments by model; a model that is not here is
	// the name of one.
	Deployments map[string]string `toml:"deployments"`
	// TenantID, ClientID and ClientSecret are the application.
	TenantID     string       `toml:"tenant_id"`
	ClientID     string       `toml:"client_id"`
	ClientSecret creto.Secret `toml:"client_secret"`
	// TokenURL and TokenScope are for other clouds than the public one.
	TokenURL   string `toml:"token_url"`
	TokenScope string `toml:"token_scope"`
}

// entra is the application; zero without one.
func (c AzureProviderConfig) entra() provider.EntraConfig {
	return provider.EntraConfig{TenantID: c.TenantID, ClientID: c.ClientID, ClientSecret: c.ClientSecret, TokenURL: c.TokenURL, Scope: c.TokenScope}
}

// BedrockProviderConfig is what ProviderBedrock needs. Exactly one of the
// provider's API key, AccessKeyID, Profile and DefaultChain says who asks.
type BedrockProviderConfig struct {
	// Region is where models run, such as eu-central-1. Required.
	Region string `toml:"region"`
	// AccessKeyID, SecretAccessKey and SessionToken are credentials of AWS.
	AccessKeyID     string       `toml:"access_key_id"`
	SecretAccessKey creto.Secret `toml:"secret_access_key"`
	SessionToken    creto.Secret `toml:"session_token"`
	// Profile names credentials in the files that AWS's tools share.
	Profile string `toml:"profile"`
	// DefaultChain looks where AWS's tools look, the metadata service included.
	DefaultChain bool `toml:"default_chain"`
	// GuardrailID and GuardrailVersion are applied to every call.
	GuardrailID      string `toml:"guardrail_id"`
	GuardrailVersion string `toml:"guardrail_version"`
}

// VertexProviderConfig is what ProviderVertex needs. Without an API key, a service
// account asks for tokens.
type VertexProviderConfig struct {
	// Project and Location say where models run. Required with a service account.
	Project  string `toml:"project"`
	Location string `toml:"location"`
	// ServiceAccount is the account's key in Google's JSON form, or
	// ServiceAccountFile the file that holds it, which is read once.
	ServiceAccount     creto.Secret `toml:"service_account"`
	ServiceAccountFile string       `toml:"service_account_file"`
	// TokenURL replaces the token endpoint that the key names.
	TokenURL string `toml:"token_url"`
}

// account returns the service account's key; zero without one.
func (c VertexProviderConfig) account() (creto.Secret, error) {
	if c.ServiceAccountFile == "" {
		return c.ServiceAccount, nil
	}
	key, err := os.ReadFile(c.ServiceAccountFile)
	if err != nil {
		return creto.Secret{}, fault.WrapAs("node.VertexProviderConfig", fault.InvalidArgument, err, "service_account_file: %q cannot be read", c.ServiceAccountFile)
	}
	return creto.NewSecret(string(key)), nil
}

// newModel returns the client of a provider's dialect; ctx is for reading files.
func newModel(ctx context.Context, p ProviderConfig, c provider.Config) (interface {
	inference.Model
	io.Closer
}, error) {
	switch p.Kind {
	case ProviderAnthropic:
		return provider.NewAnthropic(provider.AnthropicConfig{Config: c, MaxTokens: int64(p.MaxTokens)})
	case ProviderAzure:
		return provider.NewAzure(provider.AzureConfig{Config: c, APIVersion: p.Azure.APIVersion, Deployments: p.Azure.Deployments, Entra: p.Azure.entra()})
	case ProviderBedrock:
		b := p.Bedrock
		return provider.NewBedrock(ctx, provider.BedrockConfig{
			Config: c, Region: b.Region, AccessKeyID: b.AccessKeyID, SecretAccessKey: b.SecretAccessKey, SessionToken: b.SessionToken,
			Profile: b.Profile, DefaultChain: b.DefaultChain, GuardrailID: b.GuardrailID, GuardrailVersion: b.GuardrailVersion,
		})
	case ProviderVertex:
		account, err := p.Vertex.account()
		if err != nil {
			return nil, err
		}
		return provider.NewVertex(provider.VertexConfig{
			Config: c, Project: p.Vertex.Project, Location: p.Vertex.Location, ServiceAccount: account, TokenURL: p.Vertex.TokenURL,
		})
	case ProviderOllama:
		return provider.NewOllama(c)
	default:
		return provider.NewOpenAI(c)
	}
}

// hasKey reports whether there is an API key, or several.
func (p ProviderConfig) hasKey() bool { return !p.APIKey.IsZero() || len(p.APIKeys) > 0 }

// providerKind checks what one kind of provider alone has.
func (k *configChecker) providerKind(key string, p ProviderConfig) {
	for _, only := range []struct {
		kind, section string
		used          bool
	}{
		{ProviderAzure, "azure", !reflect.ValueOf(p.Azure).IsZero()},
		{ProviderBedrock, "bedrock", !reflect.ValueOf(p.Bedrock).IsZero()},
		{ProviderVertex, "vertex", !reflect.ValueOf(p.Vertex).IsZero()},
	} {
		if only.used && p.Kind != only.kind {
			k.addf(key+"."+only.section, "only for kind %q", only.kind)
		}
	}
	switch p.Kind {
	case ProviderAzure:
		k.azure(key, p)
	case ProviderBedrock:
		k.bedrock(key, p)
	case ProviderVertex:
		k.vertex(key, p)
	}
}

var (
	azureVersion    = regexp.MustCompile(`^(v1|[0-9]{4}-[0-9]{2}-[0-9]{2}(-preview)?)$`)
	azureDeployment = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$`)
)

func (k *configChecker) azure(key string, p ProviderConfig) {
	c, section := p.Azure, key+".azure"
	if c.APIVersion != "" && !azureVersion.MatchString(c.APIVersion) {
		k.addf(section+".api_version", "%q is neither v1 nor a date such as %s", c.APIVersion, provider.DefaultAzureVersion)
	}
	for model, name := range c.Deployments {
		if model == "" || !azureDeployment.MatchString(name) {
			k.addf(section+".deployments", "%q is no name of a deployment", name)
		}
	}
	application := !reflect.ValueOf(c.entra()).IsZero()
	switch {
	case !application && !p.hasKey() && len(p.APIKeys) == 0:
		k.addf(key+".api_key", "required, or an application of Entra ID in azure")
		return
	case !application:
		return
	case !p.APIKey.IsZero() || len(p.APIKeys) > 0:
		k.addf(key+".api_key", "not beside an application of Entra ID")
	}
	if c.ClientID == "" {
		k.addf(section+".client_id", "required for an application of Entra ID")
	}
	if c.ClientSecret.IsZero() {
		k.addf(section+".client_secret", "required for an application of Entra ID")
	}
	k.tokenURL(section+".token_url", c.TokenURL)
	if c.TokenURL == "" && (c.TenantID == "" || strings.ContainsAny(c.TenantID, "/?#%")) {
		k.addf(section+".tenant_id", "required for an application of Entra ID, unless token_url is there")
	}
}

var awsRegion = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]{1,2}$`)

func (k *configChecker) bedrock(key string, p ProviderConfig) {
	c, section := p.Bedrock, key+".bedrock"
	if !awsRegion.MatchString(c.Region) {
		k.addf(section+".region", "%q is no region, such as eu-central-1", c.Region)
	}
	ways := 0
	for _, used := range []bool{p.hasKey(), c.AccessKeyID != "", c.Profile != "", c.DefaultChain} {
		if used {
			ways++
		}
	}
	if ways != 1 {
		k.addf(section, "one of api_key, access_key_id, profile and default_chain is required; there are %d", ways)
	}
	switch {
	case c.AccessKeyID != "" && c.SecretAccessKey.IsZero():
		k.addf(section+".secret_access_key", "required beside access_key_id")
	case c.AccessKeyID == "" && (!c.SecretAccessKey.IsZero() || !c.SessionToken.IsZero()):
		k.addf(section+".access_key_id", "required beside its secrets")
	}
	if (c.GuardrailID == "") != (c.GuardrailVersion == "") {
		k.addf(section+".guardrail_id", "belongs together with guardrail_version")
	}
}

var vertexName = regexp.MustCompile(`^[a-z0-9][a-z0-9:.-]{0,62}$`)

func (k *configChecker) vertex(key string, p ProviderConfig) {
	c, section := p.Vertex, key+".vertex"
	account := !c.ServiceAccount.IsZero() || c.ServiceAccountFile != ""
	switch {
	case !account && !p.hasKey():
		k.addf(section+".service_account", "required, or an api_key")
	case account && p.hasKey():
		k.addf(key+".api_key", "not beside a service account")
	case !c.ServiceAccount.IsZero() && c.ServiceAccountFile != "":
		k.addf(section+".service_account", "not beside service_account_file")
	}
	for _, name := range []struct{ key, value string }{{"project", c.Project}, {"location", c.Location}} {
		needed := account || c.Project+c.Location != ""
		if needed && !vertexName.MatchString(name.value) {
			k.addf(section+"."+name.key, "%q is none; project and location are required with a service account", name.value)
		}
	}
	if c.TokenURL != "" && !account {
		k.addf(section+".token_url", "only with a service account")
	}
	k.tokenURL(section+".token_url", c.TokenURL)
}

// tokenURL checks the address of a token endpoint, which may be absent.
func (k *configChecker) tokenURL(key, address string) {
	if address == "" {
		return
	}
	u, err := url.Parse(address)
	switch {
	case err != nil || !slices.Contains([]string{"http", "https"}, u.Scheme) || u.Host == "" || u.User != nil || u.Fragment != "":
		k.addf(key, "not an address such as https://login.example/token")
	case inTheClear(u):
		k.addf(key, "this would send credentials over http in the clear; use https")
	}
}
