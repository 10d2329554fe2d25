package remoteauthz

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
	authzv1 "creto.dev/internal/gen/creto/authz/v1"
	nhiv1 "creto.dev/internal/gen/creto/nhi/v1"
	pqcv1 "creto.dev/internal/gen/creto/pqc/v1"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

func linkOf(l nhi.SignedLink) *nhiv1.SignedLink {
	s := l.Signature
	return &nhiv1.SignedLink{Body: l.Body, Signature: &pqcv1.Signature{Algorithm: string(s.Algorithm), Bytes: s.Bytes, Key: string(s.Key)}}
}

func linkFrom(l *nhiv1.SignedLink) nhi.SignedLink {
	s := l.GetSignature()
	return nhi.SignedLink{Body: l.GetBody(), Signature: pqc.Signature{Algorithm: pqc.Algorithm(s.GetAlgorithm()), Bytes: s.GetBytes(), Key: pqc.KeyID(s.GetKey())}}
}

func each[A, B any](list []A, convert func(A) B) []B {
	var out []B
	for _, a := range list {
		out = append(out, convert(a))
	}
	return out
}

func policyOf(p authz.Policy) *authzv1.Policy {
	return &authzv1.Policy{Id: p.ID, Digest: p.Digest[:]}
}

func policyFrom(p *authzv1.Policy) authz.Policy {
	return authz.Policy{ID: p.GetId(), Digest: digestFrom(p.GetDigest())}
}

// digestFrom reads a digest. What has another length is none, and zero.
func digestFrom(b []byte) (d creto.Digest) {
	if len(b) == len(d) {
		copy(d[:], b)
	}
	return d
}

func resourceOf(r creto.Resource) *authzv1.Resource {
	return &authzv1.Resource{Type: r.Type, Id: r.ID}
}

func resourceFrom(r *authzv1.Resource) creto.Resource {
	return creto.Resource{Type: r.GetType(), ID: r.GetId()}
}

// requestOf converts a request whose facts are written already.
func requestOf(r *authz.Request, facts []byte) *authzv1.Request {
	return &authzv1.Request{
		Action: r.Action, Resource: resourceOf(r.Resource), Context: facts,
		Consents: each(r.Consents, func(c authz.Consent) *authzv1.Policy { return policyOf(c.Policy()) }),
	}
}

func requestFrom(r *authzv1.Request) (authz.Request, error) {
	facts, err := factsFrom(r.GetContext())
	return authz.Request{
		Action: r.GetAction(), Resource: resourceFrom(r.GetResource()), Context: facts,
		Consents: each(r.GetConsents(), func(p *authzv1.Policy) authz.Consent { return authz.NewConsent(policyFrom(p)) }),
	}, err
}

// maxDepth is how deep a context may be nested; the other end bounds it too.
const maxDepth = 16

// factsOf writes a context. Numbers stay as they were written.
//
// Errors: AuthzInvalidRequest (Permanent).
func factsOf(facts map[string]any) ([]byte, error) {
	const op fault.Op = "remoteauthz.factsOf"
	if len(facts) == 0 {
		return nil, nil
	}
	if err := writable(facts, 1); err != nil {
		return nil, err
	}
	text, err := json.Marshal(facts)
	return text, fault.WrapAs(op, fault.AuthzInvalidRequest, err, "the context holds a number that is none")
}

// writable finds what is no JSON, and what policies cannot read.
func writable(value any, depth int) error {
	const op fault.Op = "remoteauthz.factsOf"
	if depth > maxDepth+1 {
		return fault.New(op, fault.AuthzInvalidRequest, "the context is nested more than %d deep", maxDepth)
	}
	switch v := value.(type) {
	case nil, string, bool, int, int64, float64, json.Number:
		return nil
	case map[string]any:
		for _, item := range v {
			if err := writable(item, depth+1); err != nil {
				return err
			}
		}
		return nil
	case []any:
		for _, item := range v {
			if err := writable(item, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	return fault.New(op, fault.AuthzInvalidRequest, "the context holds a %T, which policies cannot read", value)
}

func factsFrom(text []byte) (map[string]any, error) {
	const op fault.Op = "remoteauthz.factsFrom"
	if len(text) == 0 {
		return nil, nil
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var facts map[string]any
	err := decoder.Decode(&facts)
	if err == nil {
		if _, more := decoder.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("there is more behind it")
		}
	}
	return facts, fault.WrapAs(op, fault.AuthzInvalidRequest, err, "the context is no JSON object")
}

func answerOf(d authz.Decision, err error) *authzv1.Answer {
	out := &authzv1.Answer{Decision: &authzv1.Decision{
		Kind: d.Kind.String(), Reason: d.Reason, Policies: each(d.Policies, policyOf), Version: d.Version[:], Approvers: d.Approvers, Quorum: uint32(max(d.Quorum, 0)),
	}}
	if d.Timeout != 0 {
		out.Decision.Timeout = durationpb.New(d.Timeout)
	}
	if err != nil {
		out.Decision.Kind, out.Decision.Policies = authz.Deny.String(), nil
		out.Code, out.Message = fault.CodeOf(err).String(), fault.Message(err)
	}
	return out
}

// answerFrom reads an answer. Whatever is not surely an Allow, or a question for a
// human, denies.
func answerFrom(a *authzv1.Answer) (authz.Decision, error) {
	const op fault.Op = "remoteauthz.Check"
	from := a.GetDecision()
	d := authz.Decision{
		Reason: from.GetReason(), Policies: each(from.GetPolicies(), policyFrom), Version: digestFrom(from.GetVersion()),
	}
	if a.GetCode() != "" {
		code, ok := fault.ParseCode(a.GetCode())
		if !ok {
			code = fault.AuthzInternal
		}
		return authz.Decision{Version: d.Version}, fault.New(op, code, "%s", a.GetMessage())
	}
	switch from.GetKind() {
	case authz.Deny.String():
	case authz.Allow.String():
		d.Kind = authz.Allow
	case authz.RequiresOversight.String():
		d.Kind, d.Approvers = authz.RequiresOversight, from.GetApprovers()
		d.Timeout, d.Quorum = max(from.GetTimeout().AsDuration(), time.Duration(0)), int(min(from.GetQuorum(), authz.MaxQuorum))
	default:
		return authz.Decision{}, fault.New(op, fault.AuthzInternal, "the authorization service answers %q, which is no decision of policies", from.GetKind())
	}
	if d.Kind != authz.Deny && (d.Version.IsZero() || len(d.Policies) == 0) {
		return authz.Decision{}, fault.New(op, fault.AuthzInternal, "the authorization service does not name the policies of its decision")
	}
	return d, nil
}

func grantOf(g authz.Grant) *authzv1.Grant {
	return &authzv1.Grant{Resource: resourceOf(g.Resource), Prefix: g.Prefix, Conditional: g.Conditional}
}

func grantFrom(g *authzv1.Grant) authz.Grant {
	return authz.Grant{Resource: resourceFrom(g.GetResource()), Prefix: g.GetPrefix(), Conditional: g.GetConditional()}
}
