package node

import (
	"context"
	"log/slog"
	"math/rand/v2"

	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/internal/logkey"
)

// decisionLog writes decisions to the process's log: all that are no Allow, and
// a share of those that are. It says who, what and by which policies, and nothing
// of the request's context or arguments. The audit log has every decision
// whatever is written here.
type decisionLog struct {
	authz.Authorizer
	log   *slog.Logger
	share float64 // of what is allowed; 0 to 1
}

// withDecisionLog returns a, which it wraps if the log takes what it would write.
func withDecisionLog(ctx context.Context, a authz.Authorizer, log *slog.Logger, share float64) authz.Authorizer {
	if !log.Enabled(ctx, slog.LevelInfo) {
		return a
	}
	return &decisionLog{a, log, share}
}

// Check implements authz.Authorizer.
func (l *decisionLog) Check(ctx context.Context, s authz.Session, r authz.Request) (authz.Decision, error) {
	d, err := l.Authorizer.Check(ctx, s, r)
	if err != nil || d.Kind != authz.Allow {
		l.log.LogAttrs(ctx, slog.LevelInfo, "action not allowed", attributesOf(s, r, d, err)...)
	} else if l.share > 0 && rand.Float64() < l.share {
		l.log.LogAttrs(ctx, slog.LevelInfo, "action allowed", attributesOf(s, r, d, nil)...)
	}
	return d, err
}

const (
	// maxLoggedResource bounds what is written of a resource's name, in bytes.
	maxLoggedResource = 200
	// maxLoggedPolicies bounds how many policies are named.
	maxLoggedPolicies = 8
)

func attributesOf(s authz.Session, r authz.Request, d authz.Decision, err error) []slog.Attr {
	resource := r.Resource.String()
	if len(resource) > maxLoggedResource {
		resource = resource[:maxLoggedResource] + "..."
	}
	attributes := []slog.Attr{
		slog.String(logkey.Agent, s.Chain().Agent().String()), slog.String(logkey.Action, r.Action), slog.String(logkey.Resource, resource),
		slog.String(logkey.Decision, d.Kind.String()), slog.String(logkey.PolicyVersion, d.Version.String()),
	}
	for _, p := range d.Policies[:min(len(d.Policies), maxLoggedPolicies)] {
		attributes = append(attributes, slog.String(logkey.PolicyID, p.ID))
	}
	if err != nil {
		attributes = append(attributes, slog.String(logkey.Code, fault.CodeOf(err).String()))
	}
	return attributes
}
