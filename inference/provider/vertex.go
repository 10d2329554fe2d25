package provider

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
)

const (
	// googleTokenURL is Google's token endpoint.
	googleTokenURL = "https://oauth2.googleapis.com/token"
	// vertexScope is what a token is for.
	vertexScope = "https://www.googleapis.com/auth/cloud-platform"
	// vertexGlobal is the location that is none.
	vertexGlobal = "global"
	// assertionLife is how long a signed assertion is good for: the most that
	// Google takes (https://developers.google.com/identity/protocols/oauth2/service-account).
	assertionLife = time.Hour
)

// VertexConfig is where Vertex AI is, and who asks: a service account in a
// project, or an API key.
type VertexConfig struct {
	// Config.BaseURL replaces the location's address, up to and with the version;
	// "" means that.
	Config
	// Project and Location say where models run, such as europe-west4 or global.
	// Required with a service account; an API key has a project already.
	Project, Location string
	// ServiceAccount is the account's key, in the JSON form that Google gives it.
	ServiceAccount creto.Secret
	// TokenURL replaces the token endpoint that the key names.
	TokenURL string
}

// Vertex is a client of Google's models on Vertex AI. Make it with [NewVertex];
// close it when it is no longer needed.
type Vertex struct {
	*client
	prefix string // of the paths of models
}

var _ inference.TokenCounter = (*Vertex)(nil)

var (
	vertexName  = regexp.MustCompile(`^[a-z0-9][a-z0-9:.-]{0,62}$`)
	vertexModel = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$`)
)

// NewVertex returns a client. It connects only when it is used.
//
// Errors: InvalidArgument (Permanent), with every problem of the configuration.
func NewVertex(c VertexConfig) (*Vertex, error) {
	const op fault.Op = "provider.NewVertex"
	if c.BaseURL == "" {
		host := "aiplatform.googleapis.com"
		if c.Location != "" && c.Location != vertexGlobal {
			host = c.Location + "-" + host
		}
		c.BaseURL = "https://" + host + "/v1"
	}
	account, err := c.validate()
	inner, err := newClient(op, c.Config, err)
	if err != nil {
		return nil, err
	}
	v := &Vertex{inner, "publishers/google/models/"}
	inner.fault = vertexFault
	inner.list = "publishers/google/models"
	if c.Project != "" {
		inner.list = "projects/" + c.Project + "/locations/" + c.Location
		v.prefix = inner.list + "/" + v.prefix
	}
	if account == nil {
		inner.sign = func(_ context.Context, _ fault.Op, h http.Header) error {
			h.Set("X-Goog-Api-Key", c.APIKey.Reveal())
			return nil
		}
		return v, nil
	}
	held := account.tokens(inner.http)
	inner.sign, inner.refused = held.bearer, held.forget
	return v, nil
}

// validate checks what a [Config] does not have, and returns the service account,
// if any.
func (c VertexConfig) validate() (*serviceAccount, error) {
	var errs []error
	if c.Project+c.Location != "" && (!vertexName.MatchString(c.Project) || !vertexName.MatchString(c.Location)) {
		errs = append(errs, errors.New("project and location: both are required, in lower case"))
	}
	switch {
	case c.ServiceAccount.IsZero() && c.APIKey.IsZero():
		errs = append(errs, errors.New("service account: required, or an api key"))
	case !c.ServiceAccount.IsZero() && !c.APIKey.IsZero():
		errs = append(errs, errors.New("service account: not beside an api key"))
	case !c.ServiceAccount.IsZero() && c.Project == "":
		errs = append(errs, errors.New("project: required with a service account"))
	}
	if c.ServiceAccount.IsZero() {
		if c.TokenURL != "" {
			errs = append(errs, errors.New("token url: only with a service account"))
		}
		return nil, errors.Join(errs...)
	}
	account, err := parseServiceAccount(c.ServiceAccount)
	if err == nil && c.TokenURL != "" {
		account.tokenURL = c.TokenURL
	}
	if err == nil {
		err = tokenEndpoint(account.tokenURL)
	}
	return account, errors.Join(append(errs, err)...)
}

// serviceAccount signs for its tokens (RFC 7523, section 2.1).
type serviceAccount struct {
	email, keyID, tokenURL string
	key                    *rsa.PrivateKey
}

// parseServiceAccount reads a key file of Google's. Its errors hold nothing of it.
func parseServiceAccount(file creto.Secret) (*serviceAccount, error) {
	var f struct {
		Email    string `json:"client_email"`
		KeyID    string `json:"private_key_id"`
		Key      string `json:"private_key"`
		TokenURL string `json:"token_uri"`
	}
	if json.Unmarshal([]byte(file.Reveal()), &f) != nil || f.Email == "" {
		return nil, errors.New("service account: not a key in Google's JSON form")
	}
	block, _ := pem.Decode([]byte(f.Key))
	if block == nil {
		return nil, errors.New("service account: its private key is not PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, isRSA := parsed.(*rsa.PrivateKey)
	if err != nil || !isRSA {
		return nil, errors.New("service account: its private key is not an RSA key in PKCS #8")
	}
	if f.TokenURL == "" {
		f.TokenURL = googleTokenURL
	}
	return &serviceAccount{f.Email, f.KeyID, f.TokenURL, key}, nil
}

// tokens returns what gets and keeps the account's tokens.
func (a *serviceAccount) tokens(client *http.Client) *tokens {
	return &tokens{now: time.Now, fetch: func(ctx context.Context, op fault.Op) (string, time.Duration, error) {
		assertion, err := a.assertion(time.Now())
		if err != nil {
			return "", 0, fault.Wrap(op, err)
		}
		return requestToken(ctx, op, client, a.tokenURL, url.Values{
			"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {assertion},
		})
	}}
}

// assertion returns a signed JWT (RFC 7515, appendix A.2).
func (a *serviceAccount) assertion(now time.Time) (string, error) {
	header, err := encode(map[string]string{"alg": "RS256", "typ": "JWT", "kid": a.keyID})
	if err != nil {
		return "", err
	}
	claims, err := encode(map[string]any{
		"iss": a.email, "scope": vertexScope, "aud": a.tokenURL, "iat": now.Unix(), "exp": now.Add(assertionLife).Unix(),
	})
	if err != nil {
		return "", err
	}
	signed := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
	digest := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, a.key, crypto.SHA256, digest[:])
	if err != nil {
		return "", err
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// path returns where a call for a model goes.
func (v *Vertex) path(op fault.Op, model, call string) (string, error) {
	if !vertexModel.MatchString(model) {
		return "", fault.New(op, fault.InferenceModelNotFound, "no model can have this name")
	}
	return v.prefix + model + ":" + call, nil
}

// prepare returns where a request goes, and its body.
func (v *Vertex) prepare(op fault.Op, r inference.Request, call string) (path string, body []byte, err error) {
	if err := r.Validate(); err != nil {
		return "", nil, fault.Wrap(op, err)
	}
	if path, err = v.path(op, r.Model, call); err != nil {
		return "", nil, err
	}
	f, err := encodeVertexRequest(r)
	if err != nil {
		return "", nil, fault.Wrap(op, err)
	}
	if call == "countTokens" {
		counted := fields{}
		for _, name := range []string{"contents", "systemInstruction", "tools"} {
			if part, there := f[name]; there {
				counted[name] = part
			}
		}
		f = counted
	}
	body, err = encode(f)
	return path, body, fault.WrapAs(op, fault.InvalidArgument, err, "a field of the request is not JSON")
}

// Complete implements [inference.Model].
func (v *Vertex) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	const op fault.Op = "provider.Vertex.Complete"
	var none inference.Response
	path, body, err := v.prepare(op, r, "generateContent")
	if err != nil {
		return none, err
	}
	answer, err := v.exchange(ctx, op, path, body, nil)
	if err != nil {
		return none, err
	}
	said, err := decodeVertex(answer, 0)
	if err != nil {
		return none, fault.WrapAs(op, fault.InferenceProviderError, err, "the provider's answer is not in the dialect")
	}
	response := inference.Response{
		ID: said.id, Model: said.model, Dialect: inference.DialectVertex, Usage: said.usage,
		Choices: []inference.Choice{said.choice},
	}
	switch {
	case said.blocked || said.choice.FinishReason == filtered && response.SizeBytes() == 0:
		return none, fault.New(op, fault.InferenceContentFiltered, "the provider's content filter kept the answer")
	case !said.candidate:
		return none, fault.New(op, fault.InferenceProviderError, "the provider's answer has no candidates")
	}
	if response.Usage.TotalTokens() == 0 {
		response.Usage = estimate(r, response.SizeBytes())
	}
	return response, nil
}

// CompleteStream implements [inference.Model].
func (v *Vertex) CompleteStream(ctx context.Context, r inference.Request) (inference.Stream, error) {
	const op fault.Op = "provider.Vertex.CompleteStream"
	path, body, err := v.prepare(op, r, "streamGenerateContent")
	if err != nil {
		return nil, err
	}
	return v.stream(ctx, op, "provider.Vertex.Next", path+"?alt=sse", body, nil, r, &vertexPieces{})
}

// CountTokens implements [inference.TokenCounter].
func (v *Vertex) CountTokens(ctx context.Context, r inference.Request) (int64, error) {
	const op fault.Op = "provider.Vertex.CountTokens"
	path, body, err := v.prepare(op, r, "countTokens")
	if err != nil {
		return 0, err
	}
	answer, err := v.exchange(ctx, op, path, body, nil)
	if err != nil {
		return 0, err
	}
	o := parseObject(answer, "")
	n := o.integer("totalTokens")
	if o.err != nil || n <= 0 || n > maxCount {
		return 0, fault.New(op, fault.InferenceProviderError, "the provider's answer holds no count")
	}
	return n, nil
}

// Embed implements [inference.Model]. A text that is too long is refused, not cut.
func (v *Vertex) Embed(ctx context.Context, r inference.EmbedRequest) (inference.EmbedResponse, error) {
	const op fault.Op = "provider.Vertex.Embed"
	var none inference.EmbedResponse
	switch {
	case !v.config.Capabilities.Embeddings:
		return none, fault.New(op, fault.InferenceNotSupported, "provider %s has no embeddings", v.config.Name)
	case r.Model == "":
		return none, fault.New(op, fault.InvalidArgument, "model: required")
	case len(r.Input) == 0:
		return none, fault.New(op, fault.InvalidArgument, "input: at least one text is required")
	}
	path, err := v.path(op, r.Model, "predict")
	if err != nil {
		return none, err
	}
	parameters := fields{"autoTruncate": false}
	f := fieldsOf(r.Extra)
	delete(f, "encoding_format") // how a client wants the numbers
	delete(f, "user")
	if raw := f.take("dimensions"); raw != nil {
		parameters["outputDimensionality"] = raw
	}
	for name := range f {
		return none, fault.New(op, fault.InferenceNotSupported, "%q: the provider's dialect, %s, has no such name", name, inference.DialectVertex)
	}
	instances := make([]fields, len(r.Input))
	for i, text := range r.Input {
		instances[i] = fields{"content": text}
	}
	body, err := encode(fields{"instances": instances, "parameters": parameters})
	if err != nil {
		return none, fault.WrapAs(op, fault.InvalidArgument, err, "a field of the request is not JSON")
	}
	answer, err := v.exchange(ctx, op, path, body, nil)
	if err != nil {
		return none, err
	}
	response, err := decodePredictions(answer, len(r.Input))
	if err != nil {
		return none, fault.WrapAs(op, fault.InferenceProviderError, err, "the provider's answer is not in the dialect")
	}
	response.Model = r.Model
	if response.Usage.PromptTokens == 0 {
		for _, text := range r.Input {
			response.Usage.PromptTokens += inference.EstimateTokens(len(text))
		}
		response.Usage.Estimated = true
	}
	return response, nil
}

// decodePredictions reads an answer that must have n vectors.
func decodePredictions(body []byte, n int) (inference.EmbedResponse, error) {
	var r inference.EmbedResponse
	var answer struct {
		Predictions []struct {
			Embeddings struct {
				Values     []float32 `json:"values"`
				Statistics struct {
					Tokens json.Number `json:"token_count"`
				} `json:"statistics"`
			} `json:"embeddings"`
		} `json:"predictions"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return r, foreign(err)
	}
	if len(answer.Predictions) != n {
		return r, fmt.Errorf("predictions: %d of %d", len(answer.Predictions), n)
	}
	for i, p := range answer.Predictions {
		if len(p.Embeddings.Values) == 0 {
			return r, fmt.Errorf("predictions[%d]: holds no vector", i)
		}
		r.Embeddings = append(r.Embeddings, p.Embeddings.Values)
		// Some models write a fraction, which is none.
		tokens, err := p.Embeddings.Statistics.Tokens.Float64()
		if err == nil && tokens > 0 && tokens < maxCount {
			r.Usage.PromptTokens += int64(tokens)
		}
	}
	return r, nil
}
