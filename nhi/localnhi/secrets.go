package localnhi

import (
	"context"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// DelegatedSecrets implements nhi.Authority.
func (a *Authority) DelegatedSecrets(ctx context.Context, who nhi.Identity, refs []nhi.SecretRef) ([]creto.Secret, error) {
	const op fault.Op = "localnhi.DelegatedSecrets"
	if err := a.Recheck(ctx, who); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if len(refs) == 0 {
		return nil, nil
	}
	return nil, fault.New(op, fault.NHISecretNotFound, "there is no secret %q", refs[0])
}
