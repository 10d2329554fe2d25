package login

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// ProviderConfig is one identity provider that speaks OpenID Connect.
type ProviderConfig struct {
	// Name is what the console's button says, and a part of the redirect
	// address: ORIGIN/console/login/oidc/NAME/callback. Required, unique.
	Name string `toml:"name"`
	// Issuer is the provider's address, exactly as it writes it. Required.
	Issuer string `toml:"issuer"`
	// Tenant is whose people the provider knows; "" means the node's own.
	Tenant string `toml:"tenant"`
	// ClientID and ClientSecret are what the provider knows this node by. A
	// public client has no secret.
	ClientID     string       `toml:"client_id"`
	ClientSecret creto.Secret `toml:"client_secret"`
	// Scopes are asked for beside openid.
	Scopes []string `toml:"scopes"`
	// HumanClaim names the claim that holds a human's name here, at their
	// first login; "" means that an identity counts only once its human linked
	// it. For email it is the part before the @.
	HumanClaim string `toml:"human_claim"`
	// CreateHumans adds whoever is not known yet. It takes AllowedDomains or
	// AllowedSubjects.
	CreateHumans bool `toml:"create_humans"`
	// AllowedDomains are those of the verified email, or of the claim hd, and
	// AllowedSubjects identities, of whom may log in; both empty means all of
	// the provider's.
	AllowedDomains  []string `toml:"allowed_domains"`
	AllowedSubjects []string `toml:"allowed_subjects"`
	// GroupsClaim names the claim with the provider's groups; Groups maps those
	// that count to groups here. They hold until the next login, at most as
	// long as a session.
	GroupsClaim string            `toml:"groups_claim"`
	Groups      map[string]string `toml:"groups"`
}

// emailClaim is the claim that counts only once the provider verified it.
const emailClaim = "email"

// Problems returns what is wrong with c, by key.
func (c ProviderConfig) Problems() map[string]string {
	found := make(map[string]string)
	name := creto.ID{TrustDomain: "x", Tenant: "x", Kind: creto.KindWorkload, Name: c.Name}
	if name.Validate() != nil {
		found["name"] = fmt.Sprintf("%q is no name; use a-z, 0-9, '-', '_' and '.'", c.Name)
	}
	if !secureAddress(c.Issuer) {
		found["issuer"] = fmt.Sprintf("%q is not an address such as https://accounts.example; it needs https, but on this machine", c.Issuer)
	}
	if c.ClientID == "" {
		found["client_id"] = "the provider's name for this node is required"
	}
	if name.Name = "x"; c.Tenant != "" {
		if name.Tenant = c.Tenant; name.Validate() != nil {
			found["tenant"] = fmt.Sprintf("%q is no tenant", c.Tenant)
		}
		name.Tenant = "x"
	}
	limited := len(c.AllowedDomains)+len(c.AllowedSubjects) > 0
	if c.CreateHumans && (c.HumanClaim == "" || !limited) {
		found["create_humans"] = "needs human_claim, and allowed_domains or allowed_subjects: else whoever the provider knows becomes known here"
	}
	if c.HumanClaim == emailClaim && len(c.AllowedDomains) != 1 {
		found["human_claim"] = "for email, name the one domain in allowed_domains: anna@one.example is not anna@other.example"
	}
	if (c.GroupsClaim == "") != (len(c.Groups) == 0) {
		found["groups"] = "groups_claim and groups belong together: the claim, and which of its values count as which group here"
	}
	for theirs, ours := range c.Groups {
		if name.Name = ours; theirs == "" || name.Validate() != nil {
			found["groups."+theirs] = fmt.Sprintf("%q is no name of a group", ours)
		}
	}
	return found
}

// secureAddress reports whether text is an https address, or an http one of
// this machine, with nothing behind its path.
func secureAddress(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback())
}

// People are the humans that an identity may be.
type People struct {
	// ID returns the full name of a human of a tenant, known or not; "" is the
	// node's own tenant.
	ID func(tenant, name string) creto.ID
	// Known returns NHINotFound for a human who is not known, or revoked.
	Known func(ctx context.Context, id creto.ID) error
	// Add makes a human known.
	Add func(ctx context.Context, human creto.ID) error
	// Reserved are names that no provider gives.
	Reserved []string
}

// Providers are the identity providers of a node: the relying party of OpenID
// Connect Core 1.0, with the authorization code flow and PKCE (RFC 7636) as RFC
// 9700 has it. Safe for concurrent use.
type Providers struct {
	db         *sql.DB
	clock      consensus.Clock
	log        audit.Log
	origin     string
	people     People
	list       []*provider
	ceremonies ceremonies[Asked]
}

// provider is one of them, found out about when it is first needed: a node
// starts without it.
type provider struct {
	ProviderConfig
	client *http.Client

	mu    sync.Mutex // guards found
	found *discovered
}

// discovered is what a provider says of itself (OpenID Connect Discovery 1.0).
type discovered struct {
	oidc     *oidc.Provider
	endpoint oauth2.Endpoint
	sendsIss bool // RFC 9207, section 3
}

// providerTimeout bounds one request to a provider, and maxProviderBytes its
// answer.
const (
	providerTimeout  = 10 * time.Second
	maxProviderBytes = 1 << 20
)

// NewProviders returns the providers for people who see the console at origin.
// Their configurations have no problems.
func NewProviders(origin string, configs []ProviderConfig, people People, d *sql.DB, clock consensus.Clock, log audit.Log) *Providers {
	p := &Providers{db: d, clock: clock, log: log, origin: origin, people: people}
	for _, c := range configs {
		p.list = append(p.list, &provider{ProviderConfig: c, client: &http.Client{
			Timeout: providerTimeout, Transport: bounded{http.DefaultTransport},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // a secret would go elsewhere
		}})
	}
	return p
}

// bounded is a transport whose answers end.
type bounded struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := b.next.RoundTrip(r)
	if err == nil {
		response.Body = http.MaxBytesReader(nil, response.Body, maxProviderBytes)
	}
	return response, err
}

// Names returns the providers' names.
func (p *Providers) Names() []string {
	names := make([]string, 0, len(p.list))
	for _, one := range p.list {
		names = append(names, one.Name)
	}
	return names
}

func (p *Providers) named(name string) (*provider, error) {
	for _, one := range p.list {
		if one.Name == name {
			return one, nil
		}
	}
	return nil, fault.New("login.Providers.named", fault.NotFound, "there is no identity provider %q", name)
}

// discover asks the provider where its endpoints are, once.
func (o *provider) discover(ctx context.Context) (discovered, error) {
	const op fault.Op = "login.discover"
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.found != nil {
		return *o.found, nil
	}
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, o.client), o.Issuer)
	if err != nil {
		return discovered{}, fault.WrapAs(op, fault.Unavailable, err, "the identity provider %s does not answer as one", o.Name)
	}
	var more struct {
		Keys    string   `json:"jwks_uri"`
		Iss     bool     `json:"authorization_response_iss_parameter_supported"`
		Methods []string `json:"token_endpoint_auth_methods_supported"`
	}
	d := discovered{oidc: found, endpoint: found.Endpoint()}
	if err := found.Claims(&more); err != nil {
		return discovered{}, fault.WrapAs(op, fault.Unavailable, err, "the identity provider %s does not answer as one", o.Name)
	}
	for _, address := range []string{d.endpoint.AuthURL, d.endpoint.TokenURL, more.Keys} {
		plain, _, _ := strings.Cut(address, "?")
		if !secureAddress(plain) {
			return discovered{}, fault.New(op, fault.FailedPrecondition, "the identity provider %s has an endpoint without https", o.Name)
		}
	}
	d.sendsIss = more.Iss
	// Without a word it is basic (OpenID Connect Discovery 1.0, section 3).
	// Guessing would spend the code.
	d.endpoint.AuthStyle = oauth2.AuthStyleInHeader
	if o.ClientSecret.IsZero() || len(more.Methods) > 0 && !slices.Contains(more.Methods, "client_secret_basic") {
		d.endpoint.AuthStyle = oauth2.AuthStyleInParams
	}
	o.found = &d
	return d, nil
}

func (p *Providers) oauth(o *provider, d discovered) *oauth2.Config {
	return &oauth2.Config{
		ClientID: o.ClientID, ClientSecret: o.ClientSecret.Reveal(), Endpoint: d.endpoint,
		RedirectURL: p.origin + "/console/login/oidc/" + o.Name + "/callback", Scopes: append([]string{oidc.ScopeOpenID}, o.Scopes...),
	}
}

// Purpose is why a human is sent to a provider.
type Purpose string

// The purposes.
const (
	ToLogin   Purpose = "login"
	ToLink    Purpose = "link"    // to link the identity to Asked.Human
	ToConfirm Purpose = "confirm" // as Asked.Human, what has Asked.Challenge
)

// Asked is what a human is sent to a provider for.
type Asked struct {
	Purpose   Purpose
	Human     creto.ID
	Challenge creto.Digest
	// Next is where the human was going.
	Next string

	provider, nonce, verifier string
	since                     time.Time
}

// Begin returns the provider's address to which a browser is sent.
//
// Errors: NotFound (Permanent) for an unknown provider; FailedPrecondition
// (Permanent), Unavailable (Degraded) if it cannot be used now.
func (p *Providers) Begin(ctx context.Context, name, browser string, asked Asked) (string, error) {
	const op fault.Op = "login.Providers.Begin"
	o, err := p.named(name)
	if err != nil {
		return "", err
	}
	d, err := o.discover(ctx)
	if err != nil {
		return "", fault.Wrap(op, err)
	}
	now, err := p.clock.Now(ctx)
	if err != nil {
		return "", fault.Wrap(op, err)
	}
	asked.provider, asked.nonce, asked.verifier, asked.since = o.Name, newSecret(), oauth2.GenerateVerifier(), now.Time()
	options := []oauth2.AuthCodeOption{oauth2.S256ChallengeOption(asked.verifier)}
	switch asked.Purpose {
	case ToConfirm:
		asked.nonce = base64.RawURLEncoding.EncodeToString(asked.Challenge[:])
		options = append(options, oauth2.SetAuthURLParam("prompt", "login"), oauth2.SetAuthURLParam("max_age", "0"))
	default:
		options = append(options, oauth2.SetAuthURLParam("max_age", fmt.Sprint(int(FreshFor.Seconds()))))
	}
	state := p.ceremonies.begin(now.Time(), browser, asked)
	return p.oauth(o, d).AuthCodeURL(state, append(options, oidc.Nonce(asked.nonce))...), nil
}

// Answer is what a provider said.
type Answer struct {
	Asked
	// Human is who it is.
	Human creto.ID
	// AuthenticatedAt is when the provider says it saw them; zero if it does
	// not say.
	AuthenticatedAt time.Time
	// Evidence is for a proof.
	Evidence nhi.OIDCEvidence
}

// errRefused is the one answer to what a provider's answer has wrong; the node's
// log has the cause.
func errRefused(op fault.Op, cause error) error {
	return fault.WrapAs(op, fault.Unauthenticated, cause, "the identity provider's answer does not hold; begin again")
}

// authTimeSkew is how far a provider's clock may be from ours.
const authTimeSkew = 2 * time.Minute

// claims are those of an ID token that matter here.
type claims struct {
	AuthorizedParty string `json:"azp"`
	AuthTime        int64  `json:"auth_time"`
	Email           string `json:"email"`
	EmailVerified   any    `json:"email_verified"` // some send text
	HostedDomain    string `json:"hd"`
}

// verified reports whether the provider verified the email.
func (c claims) verified() bool { return c.EmailVerified == true || c.EmailVerified == "true" }

// End takes a provider's answer, the query of the address that the browser was
// sent back to, and returns who it is. Each answer counts once.
//
// Errors: Unauthenticated (Permanent) for whatever does not hold;
// PermissionDenied (Security) for an identity that is nobody here;
// Unavailable (Degraded).
func (p *Providers) End(ctx context.Context, name, browser string, query url.Values) (Answer, error) {
	const op fault.Op = "login.Providers.End"
	now, err := p.clock.Now(ctx)
	if err != nil {
		return Answer{}, fault.Wrap(op, err)
	}
	asked, err := p.ceremonies.take(now.Time(), browser, query.Get("state"))
	if err != nil {
		return Answer{}, fault.Wrap(op, err)
	}
	o, err := p.named(name)
	if err != nil {
		return Answer{}, err
	}
	d, err := o.discover(ctx)
	if err != nil {
		return Answer{}, fault.Wrap(op, err)
	}
	// An answer of one provider is never taken for another's (RFC 9207).
	if iss, ok := query["iss"]; asked.provider != o.Name || ok && !slices.Equal(iss, []string{o.Issuer}) || !ok && d.sendsIss {
		return Answer{}, errRefused(op, errors.New("the answer is another provider's"))
	}
	if query.Has("error") || query.Get("code") == "" {
		return Answer{}, fault.New(op, fault.Unauthenticated, "%s did not say who you are; begin again", o.Name)
	}
	token, err := p.oauth(o, d).Exchange(oidc.ClientContext(ctx, o.client), query.Get("code"), oauth2.VerifierOption(asked.verifier))
	if err != nil {
		return Answer{}, errRefused(op, err)
	}
	raw, _ := token.Extra("id_token").(string)
	id, err := d.oidc.Verifier(&oidc.Config{ClientID: o.ClientID, Now: now.Time}).Verify(ctx, raw)
	if err != nil {
		return Answer{}, errRefused(op, err)
	}
	var said claims
	if err := id.Claims(&said); err != nil {
		return Answer{}, errRefused(op, err)
	}
	if err := check(id, said, asked, o.ClientID, token.AccessToken, now.Time()); err != nil {
		return Answer{}, errRefused(op, err)
	}
	answer := Answer{Asked: asked}
	if said.AuthTime > 0 {
		answer.AuthenticatedAt = time.Unix(said.AuthTime, 0)
	}
	hash := sha256.Sum256([]byte(raw))
	answer.Evidence = nhi.OIDCEvidence{
		Issuer: id.Issuer, Subject: id.Subject, Audience: o.ClientID, TokenHash: hash[:], AuthTime: said.AuthTime, Nonce: id.Nonce,
	}
	if answer.Human, err = p.human(ctx, o, id, said, asked); err != nil || asked.Purpose != ToLogin {
		return answer, fault.Wrap(op, err)
	}
	_, err = p.log.Log(ctx, audit.Record{
		Who: answer.Human, What: audit.EventLoggedIn, Resource: "Human::" + answer.Human.Name, Outcome: audit.Success,
		Detail: map[string]string{"method": string(MethodOIDC), "issuer": id.Issuer},
	})
	return answer, fault.Wrap(op, err)
}

// check does what OpenID Connect Core 1.0, section 3.1.3.7, asks of the client
// beside what package oidc does.
func check(id *oidc.IDToken, said claims, asked Asked, clientID, accessToken string, now time.Time) error {
	authenticated := time.Unix(said.AuthTime, 0)
	switch {
	case subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(asked.nonce)) != 1:
		return errors.New("another nonce")
	case id.Subject == "" || len(id.Subject) > 255:
		return errors.New("no subject")
	case said.AuthorizedParty != "" && said.AuthorizedParty != clientID, len(id.Audience) > 1 && said.AuthorizedParty == "":
		return errors.New("another authorized party")
	case id.IssuedAt.After(now.Add(authTimeSkew)) || authenticated.After(now.Add(authTimeSkew)):
		return errors.New("issued in the future")
	case id.AccessTokenHash != "" && id.VerifyAccessToken(accessToken) != nil:
		return errors.New("another access token")
	case asked.Purpose == ToConfirm && authenticated.Before(asked.since.Add(-authTimeSkew)):
		return errors.New("the human did not authenticate for it")
	}
	return nil
}

// allowed reports whether an identity may log in at all.
func (o *provider) allowed(id *oidc.IDToken, said claims) bool {
	if len(o.AllowedDomains)+len(o.AllowedSubjects) == 0 || slices.Contains(o.AllowedSubjects, id.Subject) {
		return true
	}
	_, domain, _ := strings.Cut(said.Email, "@")
	for _, allowed := range o.AllowedDomains {
		if said.HostedDomain == allowed || said.verified() && strings.EqualFold(domain, allowed) {
			return true
		}
	}
	return false
}

// nameOf returns the name that the provider's claim gives a human.
func (o *provider) nameOf(id *oidc.IDToken, said claims) (string, bool) {
	switch o.HumanClaim {
	case "":
		return "", false
	case emailClaim:
		local, domain, ok := strings.Cut(said.Email, "@")
		return strings.ToLower(local), ok && said.verified() && strings.EqualFold(domain, o.AllowedDomains[0])
	}
	all := make(map[string]json.RawMessage)
	var name string
	if id.Claims(&all) != nil || json.Unmarshal(all[o.HumanClaim], &name) != nil {
		return "", false
	}
	return strings.ToLower(name), true
}
