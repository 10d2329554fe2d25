package gateway

import (
	"context"
	"net"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/nhi"
)

// Credential has the gateway add a secret to the plain requests to one host, so
// that agents need not hold it (B-3). Policy decides on each use. What goes
// through an https tunnel is not seen, and nothing is added to it.
type Credential struct {
	// Host is name or name:port, 80 if it says none. Required.
	Host string
	// Header carries it, in place of what the agent sends under that name.
	// Required.
	Header string
	// Format is the header's value, with one %s for the secret. "" means "%s".
	Format string
	// Secret is its name. Required.
	Secret nhi.SecretRef
	// Agents are the names of those whose requests it is added to; none means
	// all. The requests of others go out as they are.
	Agents []string
}

// mark stands for the secret in a Credential's Format.
const mark = "%s"

// Validate reports what is wrong with c.
//
// Errors: InvalidArgument (Permanent).
func (c Credential) Validate() error {
	const op fault.Op = "gateway.Credential.Validate"
	if err := c.Secret.Validate(); err != nil {
		return fault.Wrap(op, err)
	}
	if _, err := c.host(); err != nil {
		return fault.Wrap(op, err)
	}
	header := http.CanonicalHeaderKey(c.Header)
	switch {
	case !httpguts.ValidHeaderFieldName(c.Header), strings.Contains(c.Header, "_"), slices.Contains(hopByHop, header), slices.Contains(misleading, header),
		strings.HasPrefix(header, "Content-"), strings.HasPrefix(header, "X-Forwarded-"):
		return fault.New(op, fault.InvalidArgument, "%q is no header that can carry a secret", c.Header)
	case c.Format != "" && strings.Count(c.Format, mark) != 1, !httpguts.ValidHeaderFieldValue(c.Format):
		return fault.New(op, fault.InvalidArgument, "%q is not the text of a header with one %%s in it", c.Format)
	}
	return nil
}

// host returns the credential's host as canonicalURL writes it.
func (c Credential) host() (string, error) {
	name, port := c.Host, ""
	if host, number, err := net.SplitHostPort(c.Host); err == nil {
		name, port = host, number
	}
	host, err := canonicalHost(strings.Trim(name, "[]"), port, "80")
	return strings.TrimSuffix(host, ":80"), err
}

// byHost indexes credentials, which must be valid: what was forgotten to be
// checked shows at the start.
func byHost(list []Credential) map[string][]Credential {
	index := make(map[string][]Credential)
	for _, c := range list {
		if err := c.Validate(); err != nil {
			panic(err)
		}
		host, err := c.host()
		if err != nil {
			panic(err)
		}
		if c.Format == "" {
			c.Format = mark
		}
		c.Header = http.CanonicalHeaderKey(c.Header)
		index[host] = append(index[host], c)
	}
	return index
}

// credentials returns the headers to add to a request that was allowed, after
// policy allowed the use of each secret too. The first credential for a header
// counts.
func (g *Gateway) credentials(ctx context.Context, v *visit, x exchange, detail map[string]string) (map[string]string, error) {
	const op fault.Op = "gateway.credentials"
	added := make(map[string]string)
	for _, c := range g.injected[x.target.Host] {
		if _, twice := added[c.Header]; twice || len(c.Agents) > 0 && !slices.Contains(c.Agents, v.agent.Name) {
			continue
		}
		if x.method == http.MethodTrace { // RFC 9110, section 9.3.8: it is sent back
			return nil, fault.New(op, fault.PermissionDenied, "TRACE is refused where a credential is added: it would be answered with it")
		}
		secret, _, err := g.gate.Secret(ctx, v.Caller, gate.Access{
			Secret: c.Secret, Delivery: gate.DeliveryGateway,
			Args:    []byte(c.Header + " of " + x.method + " " + x.target.String()),
			Context: map[string]any{"host": x.target.Host, "method": x.method, "path": x.target.Path},
			Sandbox: v.Sandbox, Isolation: v.Isolation,
		})
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		value := strings.Replace(c.Format, mark, secret.Reveal(), 1)
		if !httpguts.ValidHeaderFieldValue(value) || strings.TrimSpace(value) != value {
			return nil, fault.New(op, fault.FailedPrecondition, "the secret %q cannot go into a header: it has a line break, a control character, or space around it", c.Secret)
		}
		added[c.Header] = value
		detail["credential"] = strings.TrimSpace(detail["credential"] + " Secret::" + string(c.Secret))
	}
	return added, nil
}

// replace puts headers in place of those that the agent sent under the same
// names, also as interfaces such as CGI read them.
func replace(h http.Header, added map[string]string) {
	for name := range h {
		if _, ok := added[http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))]; ok {
			delete(h, name)
		}
	}
	for name, value := range added {
		h[name] = []string{value}
	}
}

// secret hands a secret to the program itself, where policy permits that. It is
// never at rest on the way.
func (g *Gateway) secret(w *startedWriter, r *http.Request, v *visit) error {
	name := nhi.SecretRef(r.PathValue("name"))
	if err := name.Validate(); err != nil {
		return err
	}
	value, _, err := g.gate.Secret(r.Context(), v.Caller, gate.Access{
		Secret: name, Delivery: gate.DeliveryRaw, Args: []byte("raw " + name), IdempotencyKey: v.key, Sandbox: v.Sandbox, Isolation: v.Isolation,
	})
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	return w.send([]byte(value.Reveal()))
}
