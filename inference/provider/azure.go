package provider

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
)

// The defaults of an [AzureConfig].
const (
	// DefaultAzureVersion is the last version of the API that has a date.
	DefaultAzureVersion = "2024-10-21"
	// AzureV1 stands for the API without dated versions.
	AzureV1 = "v1"
	// DefaultAzureScope is what a token of Entra ID is for.
	DefaultAzureScope = "https://cognitiveservices.azure.com/.default"
)

// AzureConfig is where a resource of Azure OpenAI is. It needs either an API key
// or an application of Entra ID.
type AzureConfig struct {
	// Config.BaseURL is the resource's address, without /openai.
	Config
	// APIVersion is a dated version, whose calls name the deployment in the path,
	// or AzureV1. "" means DefaultAzureVersion.
	APIVersion string
	// Deployments are the names of deployments by model; a model that is not in it
	// is the name of a deployment.
	Deployments map[string]string
	// Entra is the application that asks for tokens; zero for an API key.
	Entra EntraConfig
}

// EntraConfig is an application of Entra ID with a secret, which gets tokens by
// its client credentials (RFC 6749, section 4.4).
type EntraConfig struct {
	// TenantID and ClientID name the application.
	TenantID, ClientID string
	ClientSecret       creto.Secret
	// TokenURL is the token endpoint; "" means that of the public cloud.
	TokenURL string
	// Scope is what the token is for. "" means DefaultAzureScope.
	Scope string
}

func (e EntraConfig) isZero() bool {
	return e.TenantID == "" && e.ClientID == "" && e.ClientSecret.IsZero() && e.TokenURL == "" && e.Scope == ""
}

// Azure is a client of one resource of Azure OpenAI, which speaks OpenAI's dialect
// at other addresses. Make it with [NewAzure]; close it when it is no longer
// needed.
type Azure struct{ *OpenAI }

var _ inference.Model = (*Azure)(nil)

// deploymentName is what Azure lets a deployment be called; not one of only dots,
// which paths would take for something else.
var deploymentName = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$`)

var azureVersion = regexp.MustCompile(`^(v1|[0-9]{4}-[0-9]{2}-[0-9]{2}(-preview)?)$`)

// NewAzure returns a client. It connects only when it is used.
//
// Errors: InvalidArgument (Permanent), with every problem of the configuration.
func NewAzure(c AzureConfig) (*Azure, error) {
	const op fault.Op = "provider.NewAzure"
	if c.APIVersion == "" {
		c.APIVersion = DefaultAzureVersion
	}
	inner, err := newOpenAI(op, c.Config, c.validate())
	if err != nil {
		return nil, err
	}
	prefix := "openai"
	if c.APIVersion == AzureV1 {
		prefix = "openai/v1"
	} else {
		inner.query = url.Values{"api-version": {c.APIVersion}}.Encode()
	}
	inner.list = prefix + "/models"
	inner.route = func(op fault.Op, model, call string) (path, name string, err error) {
		name = model
		if mapped, ok := c.Deployments[model]; ok {
			name = mapped
		}
		if !deploymentName.MatchString(name) {
			return "", "", fault.New(op, fault.InferenceModelNotFound, "no deployment can have this model's name")
		}
		if c.APIVersion == AzureV1 {
			return prefix + "/" + call, name, nil
		}
		return prefix + "/deployments/" + name + "/" + call, name, nil
	}
	if c.Entra.isZero() {
		inner.sign = func(_ context.Context, _ fault.Op, h http.Header) error {
			h.Set("Api-Key", c.APIKey.Reveal())
			return nil
		}
		return &Azure{inner}, nil
	}
	held := c.Entra.tokens(inner.http)
	inner.sign, inner.refused = held.bearer, held.forget
	return &Azure{inner}, nil
}

// validate checks what a [Config] does not have.
func (c AzureConfig) validate() error {
	var errs []error
	if !azureVersion.MatchString(c.APIVersion) {
		errs = append(errs, fmt.Errorf("api version: %q is neither v1 nor a date such as %s", c.APIVersion, DefaultAzureVersion))
	}
	for model, name := range c.Deployments {
		if model == "" || !deploymentName.MatchString(name) {
			errs = append(errs, fmt.Errorf("deployments: %q of model %q is no name", name, model))
		}
	}
	switch e := c.Entra; {
	case e.isZero() && c.APIKey.IsZero():
		errs = append(errs, errors.New("api key: required, or an application of Entra ID"))
	case !e.isZero() && !c.APIKey.IsZero():
		errs = append(errs, errors.New("api key: not beside an application of Entra ID"))
	case !e.isZero():
		errs = append(errs, e.validate())
	}
	return errors.Join(errs...)
}

func (e EntraConfig) validate() error {
	var errs []error
	if e.ClientID == "" || e.ClientSecret.IsZero() {
		errs = append(errs, errors.New("entra: client id and client secret are required"))
	}
	switch {
	case e.TokenURL != "":
		errs = append(errs, tokenEndpoint(e.TokenURL))
	case e.TenantID == "" || strings.ContainsAny(e.TenantID, "/?#%"):
		errs = append(errs, errors.New("entra: a tenant id or a token url is required"))
	}
	return errors.Join(errs...)
}

// tokens returns what gets and keeps the application's tokens.
func (e EntraConfig) tokens(client *http.Client) *tokens {
	if e.TokenURL == "" {
		e.TokenURL = "https://login.microsoftonline.com/" + e.TenantID + "/oauth2/v2.0/token"
	}
	if e.Scope == "" {
		e.Scope = DefaultAzureScope
	}
	return &tokens{now: time.Now, fetch: func(ctx context.Context, op fault.Op) (string, time.Duration, error) {
		return requestToken(ctx, op, client, e.TokenURL, url.Values{
			"grant_type": {"client_credentials"}, "client_id": {e.ClientID}, "client_secret": {e.ClientSecret.Reveal()}, "scope": {e.Scope},
		})
	}}
}
