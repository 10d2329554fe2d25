package provider

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/bedrockruntime"
	"github.com/aws/aws-sdk-go-v2/service/bedrockruntime/types"
	"github.com/aws/smithy-go/auth/bearer"
	"go.opentelemetry.io/otel/propagation"
)

// BedrockConfig is where Bedrock is, and who asks. Exactly one of APIKey (a key of
// Bedrock's own), AccessKeyID, Profile and DefaultChain says who.
type BedrockConfig struct {
	// Config.BaseURL replaces the region's endpoint; "" means that. It has no
	// version.
	Config
	// Region is AWS's name of one, such as eu-central-1. Required.
	Region string
	// AccessKeyID, SecretAccessKey and, for temporary ones, SessionToken are
	// credentials of AWS.
	AccessKeyID                   string
	SecretAccessKey, SessionToken creto.Secret
	// Profile names credentials in the files that AWS's tools share.
	Profile string
	// DefaultChain looks for credentials as AWS's tools do: in the environment, in
	// files, and at the metadata service of the machine.
	DefaultChain bool
	// GuardrailID and GuardrailVersion are applied to every call; "" for none.
	GuardrailID, GuardrailVersion string
}

// Bedrock is a client of the Converse API of Amazon Bedrock in one region. Make it
// with [NewBedrock]; close it when it is no longer needed.
type Bedrock struct {
	*client
	api                           *bedrockruntime.Client
	guardrailID, guardrailVersion *string
}

var _ inference.TokenCounter = (*Bedrock)(nil)

var awsRegion = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]{1,2}$`)

// bedrockModel is what names a model or an inference profile.
var bedrockModel = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/-]{0,511}$`)

// NewBedrock returns a client. It connects only when it is used; ctx is for
// reading files of credentials.
//
// Errors: InvalidArgument (Permanent), with every problem of the configuration.
func NewBedrock(ctx context.Context, c BedrockConfig) (*Bedrock, error) {
	const op fault.Op = "provider.NewBedrock"
	endpoint := c.BaseURL
	if endpoint == "" {
		c.BaseURL = "https://bedrock-runtime." + c.Region + ".amazonaws.com"
	}
	inner, err := newClient(op, c.Config, c.validate())
	if err != nil {
		return nil, err
	}
	inner.config.Capabilities.Embeddings = false
	options := bedrockruntime.Options{
		Region: c.Region, Retryer: aws.NopRetryer{},
		HTTPClient: &boundedHTTP{inner.http, inner.config.MaxResponseBytes, inner.config.TraceContext},
	}
	if endpoint != "" {
		options.BaseEndpoint = &endpoint
	}
	scheme := []string{"aws.auth#sigv4"}
	var bearerToken bearer.TokenProvider
	switch {
	case !c.APIKey.IsZero():
		scheme = []string{"smithy.api#httpBearerAuth"}
		bearerToken = bearer.StaticTokenProvider{Token: bearer.Token{Value: c.APIKey.Reveal()}}
	case c.AccessKeyID != "":
		options.Credentials = credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey.Reveal(), c.SessionToken.Reveal())
	default:
		load := []func(*config.LoadOptions) error{config.WithRegion(c.Region)}
		if c.Profile != "" {
			load = append(load, config.WithSharedConfigProfile(c.Profile), config.WithEC2IMDSClientEnableState(imds.ClientDisabled))
		}
		found, err := config.LoadDefaultConfig(ctx, load...)
		if err != nil {
			return nil, fault.WrapAs(op, fault.InvalidArgument, err, "credentials: the profile or the files of AWS's tools cannot be read")
		}
		options.Credentials = found.Credentials
	}
	b := &Bedrock{client: inner, api: bedrockruntime.New(options, func(o *bedrockruntime.Options) {
		// The environment may hold a key, which would win over what is configured.
		o.BearerAuthTokenProvider, o.AuthSchemePreference, o.APIOptions = bearerToken, scheme, nil
	})}
	if c.GuardrailID != "" {
		b.guardrailID, b.guardrailVersion = &c.GuardrailID, &c.GuardrailVersion
	}
	return b, nil
}

// validate checks what a [Config] does not have.
func (c BedrockConfig) validate() error {
	var errs []error
	if !awsRegion.MatchString(c.Region) {
		errs = append(errs, fmt.Errorf("region: %q is none, such as eu-central-1", c.Region))
	}
	ways := 0
	for _, used := range []bool{!c.APIKey.IsZero(), c.AccessKeyID != "", c.Profile != "", c.DefaultChain} {
		if used {
			ways++
		}
	}
	if ways != 1 {
		errs = append(errs, errors.New("credentials: one of api key, access key id, profile and default chain is required"))
	}
	if (c.AccessKeyID == "") != c.SecretAccessKey.IsZero() || c.AccessKeyID == "" && !c.SessionToken.IsZero() {
		errs = append(errs, errors.New("credentials: access key id and secret access key belong together"))
	}
	if (c.GuardrailID == "") != (c.GuardrailVersion == "") {
		errs = append(errs, errors.New("guardrail: its id and its version belong together"))
	}
	return errors.Join(errs...)
}

// Complete implements [inference.Model].
func (b *Bedrock) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	const op fault.Op = "provider.Bedrock.Complete"
	var none inference.Response
	ask, err := b.encode(op, r)
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, b.config.Timeout)
	defer cancel()
	in := &bedrockruntime.ConverseInput{
		ModelId: &r.Model, Messages: ask.messages, System: ask.system, InferenceConfig: ask.inference,
		ToolConfig: ask.tools, OutputConfig: ask.output, AdditionalModelRequestFields: ask.additional,
	}
	if b.guardrailID != nil {
		in.GuardrailConfig = &types.GuardrailConfiguration{GuardrailIdentifier: b.guardrailID, GuardrailVersion: b.guardrailVersion}
	}
	out, err := b.api.Converse(ctx, in)
	if err != nil {
		return none, bedrockFault(ctx, op, b.config.MaxResponseBytes, nil, err)
	}
	response, err := decodeConverse(r.Model, out)
	if err != nil {
		return none, fault.WrapAs(op, fault.InferenceProviderError, err, "the provider's answer is not in the dialect")
	}
	if choice := response.Choices[0]; choice.FinishReason == filtered && response.SizeBytes() == 0 {
		return none, fault.New(op, fault.InferenceContentFiltered, "the provider's content filter kept the answer")
	}
	if response.Usage.TotalTokens() == 0 {
		response.Usage = estimate(r, response.SizeBytes())
	}
	return response, nil
}

// CompleteStream implements [inference.Model]. The last chunk has usage and no
// choices.
func (b *Bedrock) CompleteStream(ctx context.Context, r inference.Request) (inference.Stream, error) {
	const op fault.Op = "provider.Bedrock.CompleteStream"
	ask, err := b.encode(op, r)
	if err != nil {
		return nil, err
	}
	ctx, end := b.withEnd(ctx)
	sent := new(sentHeader)
	ctx = context.WithValue(ctx, sentKey{}, sent)
	in := &bedrockruntime.ConverseStreamInput{
		ModelId: &r.Model, Messages: ask.messages, System: ask.system, InferenceConfig: ask.inference,
		ToolConfig: ask.tools, OutputConfig: ask.output, AdditionalModelRequestFields: ask.additional,
	}
	if b.guardrailID != nil {
		in.GuardrailConfig = &types.GuardrailStreamConfiguration{GuardrailIdentifier: b.guardrailID, GuardrailVersion: b.guardrailVersion}
	}
	out, err := b.api.ConverseStream(ctx, in)
	if err != nil {
		err = bedrockFault(ctx, op, b.config.MaxResponseBytes, sent.header, err)
		end(nil)
		return nil, err
	}
	events := out.GetStream()
	said := &bedrockPieces{model: r.Model, open: map[int32]openBlock{}, events: events}
	return &stream{
		request: r, limit: b.config.MaxResponseBytes, idle: b.config.IdleTimeout, op: "provider.Bedrock.Next",
		broken: func(op fault.Op, err error) error {
			return bedrockFault(ctx, op, b.config.MaxResponseBytes, sent.header, err)
		},
		end: end, body: bedrockBody{events}, events: eventReader{said.next, func() bool { return false }}, pieces: said,
	}, nil
}

// CountTokens implements [inference.TokenCounter].
func (b *Bedrock) CountTokens(ctx context.Context, r inference.Request) (int64, error) {
	const op fault.Op = "provider.Bedrock.CountTokens"
	ask, err := b.encode(op, r)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, b.config.Timeout)
	defer cancel()
	out, err := b.api.CountTokens(ctx, &bedrockruntime.CountTokensInput{ModelId: &r.Model, Input: &types.CountTokensInputMemberConverse{
		Value: types.ConverseTokensRequest{Messages: ask.messages, System: ask.system, ToolConfig: ask.tools, AdditionalModelRequestFields: ask.additional},
	}})
	if err != nil {
		return 0, bedrockFault(ctx, op, b.config.MaxResponseBytes, nil, err)
	}
	if out.InputTokens == nil || *out.InputTokens <= 0 {
		return 0, fault.New(op, fault.InferenceProviderError, "the provider's answer holds no count")
	}
	return int64(*out.InputTokens), nil
}

// Embed implements [inference.Model]: the Converse API has no embeddings.
func (b *Bedrock) Embed(context.Context, inference.EmbedRequest) (inference.EmbedResponse, error) {
	return inference.EmbedResponse{}, fault.New("provider.Bedrock.Embed", fault.InferenceNotSupported, "provider %s has no embeddings", b.config.Name)
}

// Health implements [inference.Model]: it lists the asynchronous calls, which costs
// nothing. One who may not list them gets an answer all the same.
func (b *Bedrock) Health(ctx context.Context) error {
	const op fault.Op = "provider.Bedrock.Health"
	ctx, cancel := context.WithTimeout(ctx, b.config.Timeout)
	defer cancel()
	_, err := b.api.ListAsyncInvokes(ctx, &bedrockruntime.ListAsyncInvokesInput{MaxResults: aws.Int32(1)})
	if _, denied := errors.AsType[*types.AccessDeniedException](err); err == nil || denied {
		return nil
	}
	return bedrockFault(ctx, op, b.config.MaxResponseBytes, nil, err)
}

// speaksAnthropic reports whether a model is of the vendor whose own fields
// (thinking, betas) go into what Converse passes on.
func speaksAnthropic(model string) bool { return strings.Contains(model, "anthropic.") }

// sentHeader is that of the request that a stream answers, which the SDK signs and does
// not show. It is set before the stream begins.
type sentHeader struct{ header http.Header }

// sentKey is that of a *sentHeader in a context.
type sentKey struct{}

// boundedHTTP is what the SDK sends its requests with. Answers are bounded.
type boundedHTTP struct {
	http  *http.Client
	limit int64
	trace bool
}

// Do implements aws.HTTPClient.
func (b *boundedHTTP) Do(r *http.Request) (*http.Response, error) {
	// The SDK closes its body as soon as an answer begins. net/http may still look
	// for the body's end then, and breaks the connection when it finds it closed.
	if r.Body != nil {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	// With GetBody, net/http may send a request again by itself.
	r.GetBody = nil
	if b.trace { // it is no part of what was signed
		propagation.TraceContext{}.Inject(r.Context(), propagation.HeaderCarrier(r.Header))
	}
	if sent, ok := r.Context().Value(sentKey{}).(*sentHeader); ok {
		sent.header = r.Header
	}
	resp, err := b.http.Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes)) // else the status alone must do
		drain(resp.Body)
		resp.Body = io.NopCloser(bytes.NewReader(redact(said, r.Header)))
		return resp, nil
	}
	resp.Body = &boundedBody{resp.Body, b.limit}
	return resp, nil
}

// boundedBody fails when more than so many bytes are read.
type boundedBody struct {
	io.ReadCloser
	left int64
}

// Read implements io.Reader.
func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}

// bedrockBody is a stream's connection, which the SDK reads.
type bedrockBody struct {
	events *bedrockruntime.ConverseStreamEventStream
}

// Read waits for the end.
func (b bedrockBody) Read([]byte) (int, error) {
	for range b.events.Events() {
		// What comes after the end is not wanted.
	}
	return 0, io.EOF
}

// Close implements io.Closer.
func (b bedrockBody) Close() error { return b.events.Close() }
