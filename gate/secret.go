package gate

import (
	"context"
	"errors"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// How a secret is delivered; policies read it as context.delivery (B-3).
const (
	// DeliveryGateway: the gateway adds it on the way out, and the agent never
	// holds it.
	DeliveryGateway = "gateway"
	// DeliveryRaw: the agent gets it.
	DeliveryRaw = "raw"
)

// What policies read the delivery from, and the method of a request.
const (
	deliveryKey = "delivery"
	methodKey   = "method"
)

// Access is the use of one secret.
type Access struct {
	Secret nhi.SecretRef
	// Delivery is one of the constants above. Required.
	Delivery string
	// Args and Context are those of the action, as in creto.Action; Context
	// need not have the delivery.
	Args    []byte
	Context map[string]any
	// Sandbox, Isolation and IdempotencyKey are those of the action.
	Sandbox, Isolation, IdempotencyKey string
}

// Secret takes the action access_secret along the path and returns the value.
// Its record is durable before the value is anybody's to use: what is returned
// was recorded as secret_accessed, and a secret that is not there as
// secret_missing.
//
// Errors: those of Do and of nhi.Authority.DelegatedSecrets.
func (g *Gate) Secret(ctx context.Context, c *Caller, a Access) (creto.Secret, audit.RecordID, error) {
	const op fault.Op = "gate.Secret"
	if a.Delivery != DeliveryGateway && a.Delivery != DeliveryRaw {
		return creto.Secret{}, audit.RecordID{}, fault.New(op, fault.InvalidArgument, "%q is no delivery of a secret", a.Delivery)
	}
	facts := map[string]any{deliveryKey: a.Delivery}
	for key, value := range a.Context {
		if key != deliveryKey {
			facts[key] = value
		}
	}
	p := &pass{gate: g, caller: c, action: creto.Action{
		Name: creto.AccessSecret, Resource: creto.Resource{Type: "Secret", ID: string(a.Secret)}, Args: a.Args, Context: facts,
		IdempotencyKey: a.IdempotencyKey, Sandbox: a.Sandbox, Isolation: a.Isolation,
	}}
	var value creto.Secret
	id, err := g.do(ctx, p, func(ctx context.Context) (Result, error) {
		detail := map[string]string{deliveryKey: a.Delivery}
		var err error
		// p.caller is who was allowed: its token may have been renewed.
		value, err = g.delegated(ctx, p.caller, a.Secret)
		switch {
		case err == nil:
			detail[audit.DetailEvent] = audit.EventSecretAccessed
		case errors.Is(err, fault.NHISecretNotFound):
			detail[audit.DetailEvent] = audit.EventSecretMissing
		}
		return Result{Detail: detail}, err
	})
	if err != nil {
		return creto.Secret{}, id, fault.Wrap(op, err) // also what could not be recorded
	}
	return value, id, nil
}

// delegated asks the authority for one secret. One that has forgotten the
// caller's token is shown it again, once.
func (g *Gate) delegated(ctx context.Context, c *Caller, ref nhi.SecretRef) (creto.Secret, error) {
	const op fault.Op = "gate.delegated"
	values, err := g.authority.DelegatedSecrets(ctx, c.identity, []nhi.SecretRef{ref})
	if errors.Is(err, fault.NHITokenInvalid) {
		if err := g.recheck(ctx, c); err != nil {
			return creto.Secret{}, fault.Wrap(op, err)
		}
		values, err = g.authority.DelegatedSecrets(ctx, c.identity, []nhi.SecretRef{ref})
	}
	switch {
	case err != nil:
		return creto.Secret{}, fault.Wrap(op, err)
	case len(values) != 1 || values[0].IsZero():
		return creto.Secret{}, fault.New(op, fault.NHIInternal, "the authority answered with %d secrets", len(values))
	}
	return values[0], nil
}
