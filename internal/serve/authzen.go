package serve

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/fault/faulthttp"
)

// The OpenID AuthZEN Authorization API 1.0: a policy enforcement point that is none
// of Creto's asks here whether an agent may act. The agent's chain is the one that
// the node knows; nothing is reserved, and nobody is asked for consent.
//
// https://openid.net/specs/authorization-api-1_0.html
const (
	authZENPrefix   = "/access/v1/"
	authZENMetadata = "/.well-known/authzen-configuration"
)

const (
	// maxEvaluations bounds a request of several evaluations.
	maxEvaluations = 1000
	// requestID is a header that is sent back.
	requestID = "X-Request-Id"
)

// entity is a subject or a resource. The properties that a caller claims of either
// are not believed: the node knows its subjects, and a resource is its id.
type entity struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

// evaluation is one question. What it lacks is taken from the request's top.
type evaluation struct {
	Subject  *entity        `json:"subject"`
	Action   *named         `json:"action"`
	Resource *entity        `json:"resource"`
	Context  map[string]any `json:"context"`
}

// named is an action. Its properties are read as the context's, such as method.
type named struct {
	Name       string         `json:"name"`
	Properties map[string]any `json:"properties"`
}

// evaluations is a request of one or several.
type evaluations struct {
	evaluation
	Evaluations []evaluation `json:"evaluations"`
	Options     struct {
		Semantic string `json:"evaluations_semantic"`
	} `json:"options"`
}

// verdict is the answer to one question.
type verdict struct {
	Decision bool            `json:"decision"`
	Context  *verdictContext `json:"context,omitempty"`
}

// verdictContext says why.
type verdictContext struct {
	// Kind is authz.Decision's: a denial may be a question for a human.
	Kind     string            `json:"kind,omitempty"`
	Ask      string            `json:"ask,omitempty"`
	Reason   map[string]string `json:"reason_admin,omitempty"` // by language
	Policies []string          `json:"policies,omitempty"`
	Version  string            `json:"policy_version,omitempty"`
	Error    *verdictError     `json:"error,omitempty"`
}

type verdictError struct {
	Status  int    `json:"status"`
	Message string `json:"message"`
}

// until says after which decision a request of several ends (section 7.1.2.1 of the
// specification); nil for an unknown semantic.
func until(semantic string) func(decision bool) bool {
	switch semantic {
	case "", "execute_all":
		return func(bool) bool { return false }
	case "deny_on_first_deny":
		return func(decision bool) bool { return !decision }
	case "permit_on_first_permit":
		return func(decision bool) bool { return decision }
	}
	return nil
}

// authZEN serves the API. caller says who asks.
func (s *Server) authZEN(mux *http.ServeMux, caller func(*http.Request) (context.Context, error)) {
	on := func(path string, do func(ctx context.Context, in evaluations) (any, error)) {
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if id := r.Header.Get(requestID); id != "" && len(id) <= 256 {
				w.Header().Set(requestID, id)
			}
			var out any
			ctx, err := caller(r)
			if err == nil {
				var in evaluations
				if in, err = readEvaluations(r.Body); err == nil {
					out, err = do(ctx, in) //nolint:contextcheck // it is the request's, with who asks
				}
			}
			if err != nil {
				faulthttp.Write(w, r, err)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Cache-Control", "no-store")
			_ = json.NewEncoder(w).Encode(out) // a caller who left needs no answer
		})
		mux.Handle("POST "+authZENPrefix+path, sameSite(handler))
	}
	on("evaluation", func(ctx context.Context, in evaluations) (any, error) { return s.evaluate(ctx, in.evaluation) })
	on("evaluations", s.evaluateAll)
	mux.HandleFunc("GET "+authZENMetadata, authZENMetadataOf)
}

// readEvaluations reads a request. Fields that are not known are no mistake, as the
// specification wants it.
func readEvaluations(body io.Reader) (in evaluations, err error) {
	const op fault.Op = "serve.readEvaluations"
	data, err := io.ReadAll(io.LimitReader(body, maxRequestBytes+1))
	if err != nil {
		return in, fault.WrapAs(op, fault.InvalidArgument, err, "the request could not be read")
	}
	if len(data) > maxRequestBytes {
		return in, fault.New(op, fault.InvalidArgument, "the request has more than %d bytes", maxRequestBytes)
	}
	decoder := json.NewDecoder(strings.NewReader(string(data)))
	decoder.UseNumber() // a policy compares what was sent, not what floating point makes of it
	if err = decoder.Decode(&in); err == nil {
		if _, more := decoder.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("there is more behind it")
		}
	}
	return in, fault.WrapAs(op, fault.InvalidArgument, err, "the request is no JSON object of the AuthZEN API")
}

// evaluateAll answers several questions, each as evaluate would; what is wrong with
// one is in its place.
func (s *Server) evaluateAll(ctx context.Context, in evaluations) (any, error) {
	const op fault.Op = "serve.evaluateAll"
	if len(in.Evaluations) == 0 {
		return s.evaluate(ctx, in.evaluation)
	}
	if n := len(in.Evaluations); n > maxEvaluations {
		return nil, fault.New(op, fault.InvalidArgument, "%d evaluations, limit %d", n, maxEvaluations)
	}
	ends := until(in.Options.Semantic)
	if ends == nil {
		return nil, fault.New(op, fault.InvalidArgument, "%q is no evaluations_semantic; there are execute_all, deny_on_first_deny and permit_on_first_permit", in.Options.Semantic)
	}
	var out struct {
		Evaluations []verdict `json:"evaluations"`
	}
	for _, e := range in.Evaluations {
		if err := ctx.Err(); err != nil {
			return nil, fault.Wrap(op, err)
		}
		v, err := s.evaluate(ctx, e.over(in.evaluation))
		if err != nil {
			v = verdict{Context: &verdictContext{Error: &verdictError{fault.CodeOf(err).HTTPStatus(), fault.Message(err)}}}
		}
		out.Evaluations = append(out.Evaluations, v)
		if ends(v.Decision) {
			break
		}
	}
	return out, nil
}

// over returns e with what it lacks from the defaults.
func (e evaluation) over(defaults evaluation) evaluation {
	if e.Subject == nil {
		e.Subject = defaults.Subject
	}
	if e.Action == nil {
		e.Action = defaults.Action
	}
	if e.Resource == nil {
		e.Resource = defaults.Resource
	}
	if e.Context == nil {
		e.Context = defaults.Context
	}
	return e
}

// evaluate answers one question. Who is not known, or was revoked, is denied.
func (s *Server) evaluate(ctx context.Context, e evaluation) (verdict, error) {
	check, err := e.check(ctx)
	if err != nil {
		return verdict{}, err
	}
	d, err := s.parts.Admin.Check(ctx, check)
	switch fault.CodeOf(err) {
	case fault.NHINotFound, fault.NotFound, fault.NHIDelegationVerificationFailed, fault.NHITokenInvalid:
		return verdict{Context: &verdictContext{Kind: authz.Deny.String(), Reason: map[string]string{"en": fault.Message(err)}}}, nil
	}
	if err != nil {
		return verdict{}, err
	}
	why := &verdictContext{Kind: d.Decision, Ask: d.Ask, Policies: d.Policies, Version: d.Version.String()}
	if d.Reason != "" {
		why.Reason = map[string]string{"en": d.Reason}
	}
	return verdict{Decision: d.Decision == authz.Allow.String(), Context: why}, nil
}

// check returns the question as the node asks it.
func (e evaluation) check(ctx context.Context) (client.Check, error) {
	const op fault.Op = "serve.evaluate"
	switch {
	case e.Subject == nil || e.Subject.ID == "":
		return client.Check{}, fault.New(op, fault.InvalidArgument, "the request has no subject with type and id")
	case e.Action == nil || e.Action.Name == "":
		return client.Check{}, fault.New(op, fault.InvalidArgument, "the request has no action with a name")
	case e.Resource == nil || e.Resource.ID == "":
		return client.Check{}, fault.New(op, fault.InvalidArgument, "the request has no resource with type and id")
	case !strings.EqualFold(e.Subject.Type, string(creto.KindAgent)):
		return client.Check{}, fault.New(op, fault.InvalidArgument, "subjects of the type %q do not act here; the type is agent", e.Subject.Type)
	}
	name := e.Subject.ID
	if strings.HasPrefix(name, "spiffe://") {
		id, err := creto.ParseID(name)
		if err != nil {
			return client.Check{}, fault.Wrap(op, err)
		}
		if own := creto.CallerOf(ctx); id.Kind != creto.KindAgent || id.Tenant != own.Tenant || id.TrustDomain != own.TrustDomain {
			return client.Check{}, fault.New(op, fault.InvalidArgument, "%s is no agent of the tenant %q of %s", id, own.Tenant, own.TrustDomain)
		}
		name = id.Name
	}
	kind, known := creto.ResourceType(e.Action.Name)
	if !known {
		return client.Check{}, fault.New(op, fault.InvalidArgument, "%q is no action; there are %s", e.Action.Name, strings.Join(creto.ActionNames(), ", "))
	}
	if e.Resource.Type != kind {
		return client.Check{}, fault.New(op, fault.InvalidArgument, "the resource of %s is of the type %s, not %q", e.Action.Name, kind, e.Resource.Type)
	}
	facts := make(map[string]any, len(e.Action.Properties)+len(e.Context))
	for key, value := range e.Action.Properties {
		facts[key] = value
	}
	for key, value := range e.Context {
		if _, twice := facts[key]; twice {
			return client.Check{}, fault.New(op, fault.InvalidArgument, "%q is both in the action's properties and in the context", key)
		}
		facts[key] = value
	}
	return client.Check{Agent: name, Action: e.Action.Name, Resource: kind + "::" + e.Resource.ID, Context: facts}, nil
}

// authZENMetadataOf says where the API is (section 9 of the specification).
func authZENMetadataOf(w http.ResponseWriter, r *http.Request) {
	origin := "http://" + r.Host
	if r.TLS != nil {
		origin = "https://" + r.Host
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{ // a caller who left needs no answer
		"policy_decision_point":       origin,
		"access_evaluation_endpoint":  origin + authZENPrefix + "evaluation",
		"access_evaluations_endpoint": origin + authZENPrefix + "evaluations",
	})
}
