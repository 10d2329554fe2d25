package serve

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/fault/faulthttp"
	"creto.dev/login"
)

// Admin is what the administrator's API does. The caller is in the context:
// creto.CallerOf.
type Admin interface {
	Status(ctx context.Context) (client.Status, error)
	AddTenant(ctx context.Context, t client.Tenant) (client.Tenant, error)
	Tenants(ctx context.Context) ([]client.Tenant, error)
	AddAgent(ctx context.Context, a client.NewAgent) (client.Agent, error)
	Delegate(ctx context.Context, a client.NewAgent) (client.Agent, error)
	Delegation(ctx context.Context, id string) (client.Delegation, error)
	Agents(ctx context.Context) ([]client.Agent, error)
	RevokeAgent(ctx context.Context, name string) error
	Revoke(ctx context.Context, r client.Revocation) (client.Revoked, error)
	Keys(ctx context.Context) (client.Keys, error)
	LogKeys(ctx context.Context) (client.LogKeys, error)
	RotateKey(ctx context.Context, k client.KeyName) (client.Key, error)
	Token(ctx context.Context, agent string, want client.NewToken) (client.Token, error)
	X509SVID(ctx context.Context, want client.NewSVID) (client.X509SVID, error)
	JWTSVID(ctx context.Context, want client.NewSVID) (client.Token, error)
	SetSecret(ctx context.Context, s client.NewSecret) (client.Secret, error)
	Secrets(ctx context.Context) ([]client.Secret, error)
	RemoveSecret(ctx context.Context, name string) error
	SetLimit(ctx context.Context, l client.Limit) (client.Limit, error)
	Limits(ctx context.Context, agent string) ([]client.Limit, error)
	ClearLimit(ctx context.Context, l client.LimitName) (client.Cleared, error)
	AddHuman(ctx context.Context, h client.Human) (client.Human, error)
	Humans(ctx context.Context) ([]client.Human, error)
	Workloads(ctx context.Context) ([]client.Human, error)
	RemoveMember(ctx context.Context, m client.Member) error
	Login(ctx context.Context, human string, method login.Method) (string, error)
	Session(ctx context.Context, human string) (client.Token, error)
	Check(ctx context.Context, c client.Check) (client.Decision, error)
	ModelProviders(ctx context.Context) ([]client.ModelProvider, error)
	RouteModel(ctx context.Context, r client.ModelRoute) (client.ModelRouting, error)
	Chain(ctx context.Context, agent string, digest creto.Digest) (client.Chain, error)
	Approvals(ctx context.Context, state string) ([]client.Approval, error)
	Approval(ctx context.Context, id string) (client.Approval, error)
	Decide(ctx context.Context, id string, d client.Decide) (client.Approval, error)
	StartRun(ctx context.Context, r client.NewRun) (client.Run, error)
	RunStarted(ctx context.Context, id string, s client.RunStarted) error
	EndRun(ctx context.Context, id string, e client.RunEnded) error
	Receipts(ctx context.Context, q client.Query) ([]client.Receipt, error)
	Bundle(ctx context.Context, q client.Query) ([]byte, error)
	Proof(ctx context.Context, record string) (client.Proof, error)
	Fsck(ctx context.Context) (client.Fsck, error)
	Tail(ctx context.Context, q client.Query, see func(client.Receipt) error) error
	Erase(ctx context.Context, e client.Erasure) (client.Erased, error)
}

// remote is what an administrator may do from elsewhere: nothing in another's
// name, and nothing about this machine's processes.
type remote struct{ Admin }

// Delegate asks the human, too.
func (a remote) Delegate(ctx context.Context, in client.NewAgent) (client.Agent, error) {
	in.Remote = true
	return a.Admin.Delegate(ctx, in)
}

// AddAgent asks the human: nobody elsewhere holds the data directory.
func (a remote) AddAgent(ctx context.Context, in client.NewAgent) (client.Agent, error) {
	in.Remote = true
	return a.Admin.AddAgent(ctx, in)
}

// Login logs in the caller only: whoever logs in as another answers as them. It
// proves nothing that the caller's own session did not.
func (a remote) Login(ctx context.Context, human string, _ login.Method) (string, error) {
	if caller := creto.CallerOf(ctx); human != caller.Name {
		return "", fault.New("serve.Login", fault.PermissionDenied, "over TCP, %s may not log in as another; on the node's machine, run: creto human login %s", caller.Name, human)
	}
	return a.Admin.Login(ctx, human, login.MethodToken)
}

// Session gives a token for the caller only, for the same reason.
func (a remote) Session(ctx context.Context, human string) (client.Token, error) {
	if caller := creto.CallerOf(ctx); human != caller.Name {
		return client.Token{}, fault.New("serve.Session", fault.PermissionDenied, "over TCP, %s may not get the token of another; on the node's machine, run: creto human login --token %s", caller.Name, human)
	}
	return a.Admin.Session(ctx, human)
}

// Decide answers as the caller only.
func (a remote) Decide(ctx context.Context, id string, d client.Decide) (client.Approval, error) {
	caller := creto.CallerOf(ctx)
	if d.Auto || d.As != "" && d.As != caller.Name {
		return client.Approval{}, fault.New("serve.Decide", fault.PermissionDenied, "over TCP, %s may answer only for themselves", caller.Name)
	}
	d.Remote = true
	return a.Admin.Decide(ctx, id, d)
}

// errLocal refuses what belongs to the node's machine.
var errLocal = fault.New("serve.remote", fault.PermissionDenied, "runs are started and ended on the node's machine, over its socket")

// StartRun refuses.
func (remote) StartRun(context.Context, client.NewRun) (client.Run, error) {
	return client.Run{}, errLocal
}

// RunStarted refuses.
func (remote) RunStarted(context.Context, string, client.RunStarted) error { return errLocal }

// EndRun refuses.
func (remote) EndRun(context.Context, string, client.RunEnded) error { return errLocal }

// SetSecret refuses: a value crosses no network to get in.
func (remote) SetSecret(context.Context, client.NewSecret) (client.Secret, error) {
	return client.Secret{}, fault.New("serve.SetSecret", fault.PermissionDenied, "secrets are set on the node's machine, over its socket")
}

// maxRequestBytes bounds an administrator's request.
const maxRequestBytes = 1 << 20

// none is the body of a request or an answer that has none.
type none struct{}

// api maps paths to calls. still is asked again of whoever stays long.
func api(a Admin, still func(*http.Request) error) http.Handler {
	mux := http.NewServeMux()
	on := func(pattern string, h http.HandlerFunc) { mux.HandleFunc(pattern, h) }
	on("GET /api/v1/status", answer(func(r *http.Request, _ none) (client.Status, error) { return a.Status(r.Context()) }))
	on("POST /api/v1/tenants", answer(func(r *http.Request, in client.Tenant) (client.Tenant, error) { return a.AddTenant(r.Context(), in) }))
	on("GET /api/v1/tenants", answer(func(r *http.Request, _ none) ([]client.Tenant, error) { return a.Tenants(r.Context()) }))
	on("POST /api/v1/agents", answer(func(r *http.Request, in client.NewAgent) (client.Agent, error) { return a.AddAgent(r.Context(), in) }))
	on("GET /api/v1/delegations/{id}", answer(func(r *http.Request, _ none) (client.Delegation, error) {
		return a.Delegation(r.Context(), r.PathValue("id"))
	}))
	on("POST /api/v1/agents/{name}/delegate", answer(func(r *http.Request, in client.NewAgent) (client.Agent, error) {
		in.Name = r.PathValue("name")
		return a.Delegate(r.Context(), in)
	}))
	on("GET /api/v1/agents", answer(func(r *http.Request, _ none) ([]client.Agent, error) { return a.Agents(r.Context()) }))
	on("POST /api/v1/agents/{name}/revoke", answer(func(r *http.Request, _ none) (none, error) {
		return none{}, a.RevokeAgent(r.Context(), r.PathValue("name"))
	}))
	on("POST /api/v1/revocations", answer(func(r *http.Request, in client.Revocation) (client.Revoked, error) { return a.Revoke(r.Context(), in) }))
	on("GET /api/v1/keys", answer(func(r *http.Request, _ none) (client.Keys, error) { return a.Keys(r.Context()) }))
	on("GET /api/v1/keys/log", answer(func(r *http.Request, _ none) (client.LogKeys, error) { return a.LogKeys(r.Context()) }))
	on("POST /api/v1/keys/rotate", answer(func(r *http.Request, in client.KeyName) (client.Key, error) { return a.RotateKey(r.Context(), in) }))
	on("POST /api/v1/agents/{name}/token", answer(func(r *http.Request, in client.NewToken) (client.Token, error) {
		return a.Token(r.Context(), r.PathValue("name"), in)
	}))
	on("POST /api/v1/svids/x509", answer(func(r *http.Request, in client.NewSVID) (client.X509SVID, error) {
		return a.X509SVID(r.Context(), in)
	}))
	on("POST /api/v1/svids/jwt", answer(func(r *http.Request, in client.NewSVID) (client.Token, error) {
		return a.JWTSVID(r.Context(), in)
	}))
	on("POST /api/v1/secrets", answer(func(r *http.Request, in client.NewSecret) (client.Secret, error) {
		return a.SetSecret(r.Context(), in)
	}))
	on("GET /api/v1/secrets", answer(func(r *http.Request, _ none) ([]client.Secret, error) { return a.Secrets(r.Context()) }))
	on("DELETE /api/v1/secrets/{name}", answer(func(r *http.Request, _ none) (none, error) {
		return none{}, a.RemoveSecret(r.Context(), r.PathValue("name"))
	}))
	on("POST /api/v1/quotas", answer(func(r *http.Request, in client.Limit) (client.Limit, error) { return a.SetLimit(r.Context(), in) }))
	on("GET /api/v1/quotas", answer(func(r *http.Request, _ none) ([]client.Limit, error) {
		return a.Limits(r.Context(), r.FormValue("agent"))
	}))
	on("POST /api/v1/quotas/clear", answer(func(r *http.Request, in client.LimitName) (client.Cleared, error) {
		return a.ClearLimit(r.Context(), in)
	}))
	on("POST /api/v1/humans", answer(func(r *http.Request, in client.Human) (client.Human, error) { return a.AddHuman(r.Context(), in) }))
	on("GET /api/v1/workloads", answer(func(r *http.Request, _ none) ([]client.Human, error) { return a.Workloads(r.Context()) }))
	on("POST /api/v1/members/remove", answer(func(r *http.Request, in client.Member) (none, error) {
		return none{}, a.RemoveMember(r.Context(), in)
	}))
	on("GET /api/v1/humans", answer(func(r *http.Request, _ none) ([]client.Human, error) { return a.Humans(r.Context()) }))
	on("POST /api/v1/humans/{name}/login", answer(func(r *http.Request, _ none) (map[string]string, error) {
		url, err := a.Login(r.Context(), r.PathValue("name"), login.MethodBootstrap)
		return map[string]string{"url": url}, err
	}))
	on("POST /api/v1/humans/{name}/session", answer(func(r *http.Request, _ none) (client.Token, error) {
		return a.Session(r.Context(), r.PathValue("name"))
	}))
	on("GET /api/v1/agents/{name}/chains/{digest}", answer(func(r *http.Request, _ none) (client.Chain, error) {
		digest, err := creto.ParseDigest(r.PathValue("digest"))
		if err != nil {
			return client.Chain{}, err
		}
		return a.Chain(r.Context(), r.PathValue("name"), digest)
	}))
	on("POST /api/v1/check", answer(func(r *http.Request, in client.Check) (client.Decision, error) { return a.Check(r.Context(), in) }))
	on("GET /api/v1/models", answer(func(r *http.Request, _ none) ([]client.ModelProvider, error) { return a.ModelProviders(r.Context()) }))
	on("POST /api/v1/models/route", answer(func(r *http.Request, in client.ModelRoute) (client.ModelRouting, error) {
		return a.RouteModel(r.Context(), in)
	}))
	on("GET /api/v1/approvals", answer(func(r *http.Request, _ none) ([]client.Approval, error) {
		return a.Approvals(r.Context(), r.FormValue("state"))
	}))
	on("GET /api/v1/approvals/{id}", answer(func(r *http.Request, _ none) (client.Approval, error) {
		return a.Approval(r.Context(), r.PathValue("id"))
	}))
	on("POST /api/v1/approvals/{id}", answer(func(r *http.Request, in client.Decide) (client.Approval, error) {
		return a.Decide(r.Context(), r.PathValue("id"), in)
	}))
	on("POST /api/v1/runs", answer(func(r *http.Request, in client.NewRun) (client.Run, error) { return a.StartRun(r.Context(), in) }))
	on("POST /api/v1/runs/{id}/started", answer(func(r *http.Request, in client.RunStarted) (none, error) {
		return none{}, a.RunStarted(r.Context(), r.PathValue("id"), in)
	}))
	on("POST /api/v1/runs/{id}/end", answer(func(r *http.Request, in client.RunEnded) (none, error) {
		return none{}, a.EndRun(r.Context(), r.PathValue("id"), in)
	}))
	on("GET /api/v1/receipts", answer(func(r *http.Request, _ none) ([]client.Receipt, error) {
		q, err := queryOf(r)
		if err != nil {
			return nil, err
		}
		return a.Receipts(r.Context(), q)
	}))
	on("GET /api/v1/bundle", func(w http.ResponseWriter, r *http.Request) {
		q, err := queryOf(r)
		var data []byte
		if err == nil {
			data, err = a.Bundle(r.Context(), q)
		}
		if err != nil {
			faulthttp.Write(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/cbor")
		_, _ = w.Write(data) // a reader who left needs no answer
	})
	on("GET /api/v1/audit/records/{id}/proof", answer(func(r *http.Request, _ none) (client.Proof, error) {
		return a.Proof(r.Context(), r.PathValue("id"))
	}))
	on("POST /api/v1/audit/erase", answer(func(r *http.Request, in client.Erasure) (client.Erased, error) { return a.Erase(r.Context(), in) }))
	on("GET /api/v1/audit/fsck", answer(func(r *http.Request, _ none) (client.Fsck, error) { return a.Fsck(r.Context()) }))
	on("GET /api/v1/audit/tail", func(w http.ResponseWriter, r *http.Request) { tail(w, r, a, still) })
	on("/", func(w http.ResponseWriter, r *http.Request) {
		faulthttp.Write(w, r, fault.New("serve.api", fault.NotFound, "there is no %s %s; is this creto older than its client?", r.Method, r.URL.Path))
	})
	return mux
}

// tailHeartbeat is how often a quiet tail says that it is there, and finds out
// whether its reader is.
const tailHeartbeat = 15 * time.Second

// tailAsks is how long whoever tails is known to be allowed to.
const tailAsks = time.Second

// tail writes records as lines of JSON for as long as their reader stays, and may;
// null is a line that says nothing.
func tail(w http.ResponseWriter, r *http.Request, a Admin, still func(*http.Request) error) {
	q, err := queryOf(r)
	if err != nil {
		faulthttp.Write(w, r, err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	var mu sync.Mutex // guards w and asked
	asked := time.Now()
	out := http.NewResponseController(w)
	line := func(v any) error {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(asked) >= tailAsks {
			if err := still(r); err != nil {
				return err
			}
			asked = time.Now()
		}
		_ = out.SetWriteDeadline(time.Now().Add(tailHeartbeat)) // a reader who stopped reading is gone
		if err := json.NewEncoder(w).Encode(v); err != nil {
			return err
		}
		return out.Flush()
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	if line(nil) != nil {
		return
	}
	var beating sync.WaitGroup
	beating.Go(func() {
		defer cancel()
		beat := time.NewTicker(tailHeartbeat)
		defer beat.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-beat.C:
				if line(nil) != nil {
					return
				}
			}
		}
	})
	_ = a.Tail(ctx, q, func(receipt client.Receipt) error { return line(receipt) }) // the status is sent: the reader sees the end
	cancel()
	beating.Wait()
}

// answer decodes a request strictly, calls, and encodes the answer.
func answer[In, Out any](call func(*http.Request, In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		if _, empty := any(in).(none); !empty {
			d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequestBytes))
			d.DisallowUnknownFields()
			d.UseNumber()
			err := d.Decode(&in)
			if _, end := d.Token(); err == nil && !errors.Is(end, io.EOF) {
				err = errors.New("something follows")
			}
			if err != nil {
				faulthttp.Write(w, r, fault.WrapAs("serve.api", fault.InvalidArgument, err, "the request is not the JSON that %s takes, of at most %d KiB", r.URL.Path, maxRequestBytes>>10))
				return
			}
		}
		out, err := call(r, in)
		if err != nil {
			faulthttp.Write(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store") // tokens and logins are answers too
		_ = json.NewEncoder(w).Encode(out)          // a reader who left needs no answer
	}
}

func queryOf(r *http.Request) (client.Query, error) {
	q := client.Query{
		Agent: r.FormValue("agent"), Human: r.FormValue("human"), What: r.FormValue("what"), Resource: r.FormValue("resource"), Outcome: r.FormValue("outcome"),
		Record: r.FormValue("record"),
	}
	var errs []error
	number := func(key string) int64 {
		text := r.FormValue(key)
		if text == "" {
			return 0
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			errs = append(errs, fault.New("serve.api", fault.InvalidArgument, "%s=%q is no number", key, text))
		}
		return n
	}
	when := func(key string) time.Time {
		text := r.FormValue(key)
		if text == "" {
			return time.Time{}
		}
		t, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			errs = append(errs, fault.New("serve.api", fault.InvalidArgument, "%s=%q is no time as 2026-01-31T12:00:00Z", key, text))
		}
		return t
	}
	yes := func(key string) bool { return r.FormValue(key) == "true" }
	q.Limit = int(min(number("limit"), audit.MaxPage))
	q.Before, q.From, q.Oldest, q.Disclose, q.Leaf = number("before"), number("from"), yes("oldest"), yes("disclose"), yes("leaf")
	q.Since, q.Until = when("since"), when("until")
	if len(errs) > 0 {
		return q, errs[0]
	}
	return q, nil
}
