package secretsource

import (
	"context"
	"errors"
	"time"

	"creto.dev/fault"
)

// token returns the token to use, which is not refused, one that no longer
// holds: an AppRole logs in for another.
//
// Errors: those of nhi.SecretSource.
func (v *Vault) token(ctx context.Context, refused string) (string, error) {
	const op fault.Op = "secretsource.Vault.token"
	select {
	case v.turn <- struct{}{}:
		defer func() { <-v.turn }()
	case <-ctx.Done():
		return "", classify(ctx, op, ctx.Err())
	}
	if token := v.client.Token(); token != "" && token != refused {
		return token, nil
	}
	if v.cfg.RoleID == "" {
		return "", fault.New(op, fault.NHISecretAccessDenied, "the vault does not take the node's token any more")
	}
	secret, err := v.entry.Logical().WriteWithContext(ctx, "auth/"+v.cfg.AppRoleMount+"/login", map[string]any{
		"role_id": v.cfg.RoleID, "secret_id": v.cfg.SecretID.Reveal(),
	})
	if err != nil {
		err = classify(ctx, op, err)
		if errors.Is(err, fault.FailedPrecondition) { // Vault answers 400 to a wrong secret_id
			err = fault.New(op, fault.NHISecretAccessDenied, "the vault does not let this node's role in")
		}
		return "", err
	}
	if secret == nil || secret.Auth == nil || secret.Auth.ClientToken == "" {
		return "", fault.New(op, fault.NHIUnavailable, "the vault's answer to a login has no token")
	}
	v.client.SetToken(secret.Auth.ClientToken)
	select {
	case v.renewed <- struct{}{}:
	default: // Run has one to look at already
	}
	return secret.Auth.ClientToken, nil
}

// dead reports whether the vault knows the token no more, which it answers to
// just as to a path that is not allowed.
func (v *Vault) dead(ctx context.Context) bool {
	_, err := v.client.Auth().Token().LookupSelfWithContext(ctx)
	return err != nil && errors.Is(classify(ctx, "secretsource.Vault.dead", err), fault.NHISecretAccessDenied)
}

// How Run keeps a token alive.
const (
	tokenTimeout = 10 * time.Second // of one question
	tokenRetry   = 5 * time.Second  // after one that failed
	tokenIdle    = time.Hour        // between looks at a token that does not end, or cannot be renewed
	tokenFloor   = 500 * time.Millisecond
)

// Run renews the token until ctx ends, and then gives back one that an AppRole
// logged in for. A vault that cannot be reached is asked again; accesses say
// what is wrong with it.
func (v *Vault) Run(ctx context.Context) error {
	var lease time.Duration
	for {
		var wait time.Duration
		wait, lease = v.renew(ctx, lease)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			v.giveBack(ctx)
			return nil
		case <-timer.C:
		case <-v.renewed:
			timer.Stop()
			lease = 0
		}
	}
}

// renew renews the token, whose last lease it is told, and returns when to do so
// again and the new lease.
func (v *Vault) renew(ctx context.Context, last time.Duration) (wait, lease time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	token, err := v.token(ctx, "")
	if err != nil {
		return tokenRetry, last
	}
	role := v.cfg.RoleID != ""
	secret, err := v.client.Auth().Token().RenewSelfWithContext(ctx, 0)
	switch {
	case err == nil && secret != nil && secret.Auth != nil:
		lease = time.Duration(secret.Auth.LeaseDuration) * time.Second
		if role && lease <= last/2 { // it nears the end that renewal cannot move
			break
		}
		if lease == 0 {
			return tokenIdle, lease
		}
		return max(lease*2/3, tokenFloor), lease
	case err != nil && fault.Retryable(classify(ctx, "secretsource.Vault.renew", err)):
		return tokenRetry, last
	default: // it cannot be renewed any more, or never could
		secret, err := v.client.Auth().Token().LookupSelfWithContext(ctx)
		if err != nil || secret == nil {
			break
		}
		left, err := secret.TokenTTL()
		if !role || err != nil || left == 0 {
			return tokenIdle, last
		}
		if left > 2*tokenRetry {
			return left / 2, last
		}
	}
	if _, err := v.token(ctx, token); err != nil {
		return tokenRetry, last
	}
	return tokenFloor, 0
}

// giveBack revokes the token of an AppRole. One that cannot be revoked ends by
// itself.
func (v *Vault) giveBack(ctx context.Context) {
	if v.cfg.RoleID == "" || v.client.Token() == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = v.client.Auth().Token().RevokeSelfWithContext(ctx, "")
	v.client.ClearToken()
}
