package gateway

import (
	"bytes"
	"context"
	"io"
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
	// Tenant is the one whose secret it is, and Agents the names of those of its
	// agents whose requests it is added to; none means all. The requests of
	// others go out as they are. Tenant is required.
	Tenant string
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
		strings.HasPrefix(header, "Accept"), strings.HasPrefix(header, "Content-"), strings.HasPrefix(header, "X-Forwarded-"):
		return fault.New(op, fault.InvalidArgument, "%q is no header that can carry a secret", c.Header)
	case c.Tenant == "":
		return fault.New(op, fault.InvalidArgument, "a credential is of a tenant")
	case c.Format != "" && strings.Count(c.Format, mark) != 1, !httpguts.ValidHeaderFieldValue(c.Format), strings.TrimSpace(c.Format) != c.Format:
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

// added is what the gateway adds to a request that was decided on.
type added struct {
	header  map[string]string
	secrets []string // that are in it
}

// credentials returns what to add to a request that was allowed, after policy
// allowed the use of each secret too. The first credential for a header counts.
func (g *Gateway) credentials(ctx context.Context, v *visit, x exchange, detail map[string]string) (added, error) {
	const op fault.Op = "gateway.credentials"
	a := added{header: make(map[string]string)}
	for _, c := range g.injected[x.target.Host] {
		if _, twice := a.header[c.Header]; twice || c.Tenant != v.agent.Tenant || len(c.Agents) > 0 && !slices.Contains(c.Agents, v.agent.Name) {
			continue
		}
		if x.method == http.MethodTrace { // RFC 9110, section 9.3.8: it is sent back
			return added{}, fault.New(op, fault.PermissionDenied, "TRACE is refused where a credential is added: it would be answered with it")
		}
		secret, _, err := g.gate.Secret(ctx, v.Caller, gate.Access{
			Secret: c.Secret, Delivery: gate.DeliveryGateway,
			Args:    []byte(c.Header + " of " + x.method + " " + x.target.String()),
			Context: map[string]any{"host": x.target.Host, "method": x.method, "path": x.target.Path},
			Sandbox: v.Sandbox, Isolation: v.Isolation,
		})
		if err != nil {
			return added{}, fault.Wrap(op, err)
		}
		value := strings.Replace(c.Format, mark, secret.Reveal(), 1)
		if !httpguts.ValidHeaderFieldValue(value) || strings.TrimSpace(value) != value {
			return added{}, fault.New(op, fault.FailedPrecondition, "the secret %q cannot go into a header: it has a line break, a control character, or space around it", c.Secret)
		}
		a.header[c.Header] = value
		a.secrets = append(a.secrets, secret.Reveal())
		detail["credential"] = strings.TrimSpace(detail["credential"] + " Secret::" + string(c.Secret))
	}
	if len(a.secrets) > 0 {
		a.header["Accept-Encoding"] = "identity" // withhold searches what is not compressed
	}
	return a, nil
}

// replace puts what is added in place of the headers that the agent sent under
// the same names, also as interfaces such as CGI read them.
func (a added) replace(h http.Header) {
	for name := range h {
		if _, ok := a.header[http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))]; ok {
			delete(h, name)
		}
	}
	for name, value := range a.header {
		h[name] = []string{value}
	}
}

// minEcho is the shortest secret that an answer is searched for: shorter ones
// are in answers by chance.
const minEcho = 8

// errEcho is why an answer does not reach the agent.
var errEcho = fault.New("gateway.withheld", fault.SecurityViolation, "the answer holds the credential that was added to the request, and is withheld from that place on")

// withhold refuses an answer that sends a secret back in its header, and returns
// its body cut before the first secret. It finds secrets as they are, not
// encoded ones.
func (a added) withhold(r *http.Response) (io.Reader, error) {
	w := &withheld{from: r.Body}
	for _, secret := range a.secrets {
		if len(secret) < minEcho {
			continue
		}
		for _, values := range r.Header {
			if strings.Contains(strings.Join(values, "\n"), secret) {
				return nil, errEcho
			}
		}
		w.secrets = append(w.secrets, []byte(secret))
	}
	if len(w.secrets) == 0 {
		return r.Body, nil
	}
	return w, nil
}

// withheld reads what comes before a secret. It keeps back no more than what may
// be the beginning of one, so that a stream flows.
type withheld struct {
	from    io.Reader
	secrets [][]byte
	read    []byte // and not given on
	ready   int    // of it may be
	err     error  // the end
}

// Read implements io.Reader.
func (w *withheld) Read(p []byte) (int, error) {
	for w.ready == 0 && w.err == nil {
		more := make([]byte, copyBuffer)
		n, err := w.from.Read(more)
		w.read, w.err = append(w.read, more[:n]...), err
		w.ready = len(w.read)
		for _, secret := range w.secrets {
			if i := bytes.Index(w.read, secret); i >= 0 {
				w.ready, w.err = min(w.ready, i), errEcho
			} else if err == nil {
				w.ready = min(w.ready, len(w.read)-begun(w.read, secret))
			}
		}
	}
	n := copy(p, w.read[:w.ready])
	w.read, w.ready = w.read[n:], w.ready-n
	if n > 0 {
		return n, nil
	}
	return 0, w.err
}

// begun returns how many bytes at the end of data may begin secret.
func begun(data, secret []byte) int {
	for n := min(len(secret)-1, len(data)); n > 0; n-- {
		if bytes.HasSuffix(data, secret[:n]) {
			return n
		}
	}
	return 0
}

// secret hands a secret to the program itself, where policy permits that. It is
// never at rest on the way.
func (g *Gateway) secret(w *startedWriter, r *http.Request, v *visit) error {
	name := nhi.SecretRef(r.PathValue("name"))
	if err := name.Validate(); err != nil {
		return err
	}
	value, id, err := g.gate.Secret(r.Context(), v.Caller, gate.Access{
		Secret: name, Delivery: gate.DeliveryRaw, Args: []byte("raw " + name), IdempotencyKey: v.key, Sandbox: v.Sandbox, Isolation: v.Isolation,
	})
	recorded(r.Context(), id, err)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	return w.send([]byte(value.Reveal()))
}
