package secretsource

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// VaultConfig says how to reach OpenBao or HashiCorp Vault.
type VaultConfig struct {
	// Address is its URL, without /v1. Required.
	Address string
	// Namespace is the one of the mounts. Optional.
	Namespace string
	// Token is the node's, unless RoleID and SecretID are those of an AppRole,
	// whose mount is AppRoleMount, "" for "approle".
	Token        creto.Secret
	RoleID       string
	SecretID     creto.Secret
	AppRoleMount string
	// CAFile has the certificates that the server's must lead to, in PEM. ""
	// means those of the system.
	CAFile string
	// Calls bounds attempts, and repeats what is Transient or Degraded.
	Calls call.Policy
}

// defaultAppRoleMount is where Vault has the method by default.
const defaultAppRoleMount = "approle"

// Validate reports what is wrong with c.
//
// Errors: InvalidArgument (Permanent).
func (c VaultConfig) Validate() error {
	const op fault.Op = "secretsource.VaultConfig.Validate"
	u, err := url.Parse(c.Address)
	role := c.RoleID != "" && !c.SecretID.IsZero()
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return fault.New(op, fault.InvalidArgument, "the address of the vault is not one such as https://vault.example:8200")
	case (c.RoleID == "") != c.SecretID.IsZero():
		return fault.New(op, fault.InvalidArgument, "an AppRole has a role_id and a secret_id; one of them is missing")
	case role != c.Token.IsZero():
		return fault.New(op, fault.InvalidArgument, "a vault takes a token, or the role_id and secret_id of an AppRole")
	case c.AppRoleMount != "" && !isPath(c.AppRoleMount):
		return fault.New(op, fault.InvalidArgument, "%.100q is no mount of an AppRole", c.AppRoleMount)
	case c.Namespace != "" && !isPath(strings.Trim(c.Namespace, "/")):
		return fault.New(op, fault.InvalidArgument, "%.100q is no namespace", c.Namespace)
	}
	return fault.Wrap(op, c.Calls.Validate())
}

// Vault reads version 2 of the key-value engine. Run keeps its token alive.
type Vault struct {
	cfg       VaultConfig
	transport *http.Transport
	client    *api.Client   // has the token, which is safe to change
	entry     *api.Client   // logs in, without one
	turn      chan struct{} // held by the one who gets a token
	renewed   chan struct{} // has a value when there is another token
}

var _ nhi.SecretSource = (*Vault)(nil)

// NewVault returns the source. It connects to nothing yet, and takes nothing from
// the environment, VAULT_* and proxies included. The caller closes it.
//
// Errors: InvalidArgument (Permanent).
func NewVault(cfg VaultConfig) (*Vault, error) {
	const op fault.Op = "secretsource.NewVault"
	if err := cfg.Validate(); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if cfg.AppRoleMount == "" {
		cfg.AppRoleMount = defaultAppRoleMount
	}
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		trust.RootCAs = x509.NewCertPool()
		if err != nil || !trust.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fault.New(op, fault.InvalidArgument, "the vault's certificates %s cannot be read", cfg.CAFile)
		}
	}
	v := &Vault{cfg: cfg, turn: make(chan struct{}, 1), renewed: make(chan struct{}, 1), transport: &http.Transport{
		TLSClientConfig: trust, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: time.Minute,
	}}
	var err error
	if v.client, err = v.open(); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if v.entry, err = v.open(); err != nil {
		return nil, fault.Wrap(op, err)
	}
	v.client.SetToken(cfg.Token.Reveal())
	return v, nil
}

// open returns a client that retries and follows nothing by itself.
func (v *Vault) open() (*api.Client, error) {
	client, err := api.NewClient(&api.Config{
		Address: v.cfg.Address, DisableRedirects: true,
		HttpClient: &http.Client{
			Transport:     bounded{v.transport},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	})
	if err != nil {
		return nil, fault.New("secretsource.open", fault.InvalidArgument, "the vault's client cannot be made; is a VAULT_ variable of this process's environment wrong?")
	}
	// NewClient has looked at the environment.
	client.ClearToken()
	client.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	if v.cfg.Namespace != "" {
		client.SetNamespace(v.cfg.Namespace)
	}
	return client, nil
}

// maxAnswerBytes bounds an answer of the vault: a secret, escaped, with what
// stands around it.
const maxAnswerBytes = 1 << 20

// bounded cuts answers that are too large.
type bounded struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(response.Body, maxAnswerBytes), response.Body}
	return response, nil
}

// Close closes idle connections.
func (v *Vault) Close() { v.transport.CloseIdleConnections() }

// vaultLocator is where a value is in a vault.
type vaultLocator struct{ mount, path, field string }

func parseVaultLocator(text string) (vaultLocator, error) {
	path, field, _ := strings.Cut(text, "#")
	mount, path, _ := strings.Cut(path, "/")
	if !element.MatchString(mount) || !isPath(path) || !element.MatchString(field) {
		return vaultLocator{}, fault.New("secretsource.parseVaultLocator", fault.InvalidArgument, "%.100q is not MOUNT/PATH#FIELD", text)
	}
	return vaultLocator{mount, path, field}, nil
}

// Secret implements nhi.SecretSource; locator is MOUNT/PATH#FIELD, and the newest
// version counts.
func (v *Vault) Secret(ctx context.Context, locator string) (creto.Secret, error) {
	const op fault.Op = "secretsource.Vault.Secret"
	at, err := parseVaultLocator(locator)
	if err != nil {
		return creto.Secret{}, fault.New(op, fault.NHISecretNotFound, "%.100q is no place in a vault", locator)
	}
	return call.Do(ctx, v.cfg.Calls, call.Read(op), func(ctx context.Context) (creto.Secret, error) {
		token, err := v.token(ctx, "")
		if err != nil {
			return creto.Secret{}, err
		}
		value, err := v.read(ctx, at)
		if !errors.Is(err, fault.NHISecretAccessDenied) {
			return value, err
		}
		if alive := !v.dead(ctx); alive && v.client.Token() == token {
			return creto.Secret{}, err
		}
		// It was the token, or another took its place meanwhile: once more.
		if _, err := v.token(ctx, token); err != nil {
			return creto.Secret{}, err
		}
		return v.read(ctx, at)
	})
}

func (v *Vault) read(ctx context.Context, at vaultLocator) (creto.Secret, error) {
	const op fault.Op = "secretsource.Vault.read"
	secret, err := v.client.KVv2(at.mount).Get(ctx, at.path)
	if errors.Is(err, api.ErrSecretNotFound) {
		return creto.Secret{}, fault.New(op, fault.NHISecretNotFound, "the vault has no %s/%s", at.mount, at.path)
	}
	if err != nil {
		return creto.Secret{}, classify(ctx, op, err)
	}
	var text string
	switch value := secret.Data[at.field].(type) { // nil data is a deleted version
	case nil:
		return creto.Secret{}, fault.New(op, fault.NHISecretNotFound, "the vault's %s/%s has no field %s", at.mount, at.path, at.field)
	case string:
		text = value
	case json.Number:
		text = value.String()
	default:
		return creto.Secret{}, fault.New(op, fault.FailedPrecondition, "its field in the vault is neither text nor a number")
	}
	switch {
	case text == "":
		return creto.Secret{}, fault.New(op, fault.NHISecretNotFound, "the vault's field %s is empty", at.field)
	case len(text) > nhi.MaxSecretBytes:
		return creto.Secret{}, tooLarge(op)
	}
	return creto.NewSecret(text), nil
}

// classify turns an error of the client into a fault. Its own text stays out of
// it where it quotes an answer.
func classify(ctx context.Context, op fault.Op, err error) error {
	switch ended := ctx.Err(); {
	case errors.Is(ended, context.DeadlineExceeded):
		return fault.New(op, fault.NHITimeout, "the vault did not answer in time")
	case ended != nil:
		return fault.Wrap(op, ended)
	}
	if answer, ok := errors.AsType[*api.ResponseError](err); ok {
		switch status := answer.StatusCode; {
		case status == http.StatusNotFound:
			return fault.New(op, fault.NHISecretNotFound, "the vault has nothing there")
		case status == http.StatusForbidden:
			return fault.New(op, fault.NHISecretAccessDenied, "the vault does not let this node have it")
		case status == http.StatusTooManyRequests:
			return fault.New(op, fault.RateLimited, "the vault takes no more requests at this rate")
		case status == http.StatusServiceUnavailable:
			return fault.New(op, fault.NHIUnavailable, "the vault is sealed, or in maintenance")
		case status >= 500 || status == http.StatusPreconditionFailed || status == 472 || status == 473:
			// 472 and 473 are standbys; 412 is one that lags behind.
			return fault.New(op, fault.NHIUnavailable, "the vault cannot answer now (status %d)", status)
		default:
			return fault.New(op, fault.FailedPrecondition, "the vault refuses the request (status %d)", status)
		}
	}
	if _, ok := errors.AsType[*url.Error](err); ok {
		return fault.WrapAs(op, fault.NHIUnavailable, err, "the vault cannot be reached")
	}
	return fault.New(op, fault.NHIUnavailable, "the vault's answer cannot be read")
}
