package nhi

import (
	"context"

	"creto.dev"
	"creto.dev/fault"
)

// SecretRef names a secret of a tenant, such as "shop-api-key". It says nothing
// of where the value is kept: an agent cannot choose that.
type SecretRef string

// Limits of secrets: of one value, and of what one call asks for.
const (
	MaxSecretBytes = 64 << 10
	MaxSecretRefs  = 64
)

// Validate reports whether r is a name, of the same form as a principal's.
//
// Errors: InvalidArgument (Permanent).
func (r SecretRef) Validate() error {
	id := creto.ID{TrustDomain: "x", Tenant: creto.DefaultTenant, Kind: creto.KindWorkload, Name: string(r)}
	return fault.Wrap("nhi.SecretRef.Validate", id.Validate())
}

// SecretSource holds values of secrets outside an authority's own store: a
// vault, a directory, an environment. It knows neither tenants nor agents: which
// of them may have which value is the authority's to say. Safe for concurrent
// use.
type SecretSource interface {
	// Secret returns the value at locator, whose form is the source's own. A
	// value is never empty and has at most MaxSecretBytes.
	//
	// Errors, none of which hold a value: NHISecretNotFound (Permanent);
	// NHISecretAccessDenied (Security) if the source does not let this process
	// have it; RateLimited (Transient); NHIUnavailable (Degraded); NHITimeout
	// (Transient); FailedPrecondition (Permanent) for a value that is no secret
	// and for a source that is set up wrongly.
	Secret(ctx context.Context, locator string) (creto.Secret, error)
}
