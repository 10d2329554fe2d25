package creto

import (
	"context"
	"strings"

	"creto.dev/fault"
)

// The actions that policies speak of, each on one type of resource
// (R-AZ-19…22 and docs/architecture.md).
const (
	CallModel      = "call_model"
	CallTool       = "call_tool"
	HTTPRequest    = "http_request"
	NetworkEgress  = "network_egress"
	SpawnSandbox   = "spawn_sandbox"
	SendMessage    = "send_message"
	AccessSecret   = "access_secret"
	ConsumeQuota   = "consume_quota"
	maxActionBytes = 64 << 10
)

// actions are all actions with the type of their resources, by number.
var actions = [Actions]struct{ name, resource string }{
	{CallModel, "Model"}, {CallTool, "Tool"}, {HTTPRequest, "Url"}, {NetworkEgress, "Host"},
	{SpawnSandbox, "Image"}, {SendMessage, "Agent"}, {AccessSecret, "Secret"}, {ConsumeQuota, "Meter"},
}

// Actions is how many actions there are.
const Actions = 8

// actionPlaces has the number of an action, and 1 more, where actionPlace says: all
// are in different places.
var actionPlaces = func() (places [32]uint8) {
	for i := range actions {
		places[actionPlace(actions[i].name)] = uint8(i + 1)
	}
	return places
}()

// actionPlace tells actions apart, without a branch that depends on which it is.
func actionPlace(name string) uint8 { return (uint8(len(name)) + name[0]) & 31 }

// ActionNumber returns an action's number, from 0 up to Actions; -1 for what is no
// action. It is for what is looked up at every check, and may change with a
// version.
func ActionNumber(name string) int {
	if name == "" {
		return -1
	}
	n := int(actionPlaces[actionPlace(name)]) - 1
	if n < 0 || actions[n].name != name {
		return -1
	}
	return n
}

// ActionNames returns the actions, by number.
func ActionNames() []string {
	names := make([]string, len(actions))
	for i := range actions {
		names[i] = actions[i].name
	}
	return names
}

// ResourceType returns the type of resource that action acts on.
func ResourceType(action string) (string, bool) {
	n := ActionNumber(action)
	if n < 0 {
		return "", false
	}
	return actions[n].resource, true
}

// Resource is what an action acts on. Its text is Type::id.
type Resource struct {
	Type string
	ID   string
}

// String returns Type::id.
func (r Resource) String() string { return r.Type + "::" + r.ID }

// Action is one thing that an agent asks to do.
type Action struct {
	// Name is one of the constants above.
	Name string
	// Resource is what it is done to.
	Resource Resource
	// Args is the exact request, as canonical bytes. Its digest is what a
	// consent and a receipt are bound to; the bytes themselves are shown to
	// an approver and never written to the audit log.
	Args []byte
	// Context holds the attributes that policies may read: strings, bools,
	// int64, and json.Number, map[string]any and []any of those.
	Context map[string]any
	// IdempotencyKey makes a retry attach to the first attempt. Optional.
	IdempotencyKey string
	// Sandbox names the run that asks, if any, and Isolation the kind of its
	// walls; policies read the latter as context.isolation.
	Sandbox   string
	Isolation string
}

// Validate reports whether a is well formed.
//
// Errors: InvalidArgument (Permanent).
func (a Action) Validate() error {
	const op fault.Op = "creto.Action.Validate"
	want, ok := ResourceType(a.Name)
	switch {
	case !ok:
		return fault.New(op, fault.InvalidArgument, "%q is no action", a.Name)
	case a.Resource.Type != want:
		return fault.New(op, fault.InvalidArgument, "%s acts on %s, not on %q", a.Name, want, a.Resource.Type)
	case a.Resource.ID == "" || len(a.Resource.ID) > maxActionBytes:
		return fault.New(op, fault.InvalidArgument, "the resource's id has %d bytes; allowed are 1 to %d", len(a.Resource.ID), maxActionBytes)
	case strings.ToValidUTF8(a.Resource.ID, "") != a.Resource.ID:
		return fault.New(op, fault.InvalidArgument, "the resource's id is not UTF-8")
	}
	return nil
}

// ArgsDigest returns the digest of Args; zero without any.
func (a Action) ArgsDigest() Digest {
	if len(a.Args) == 0 {
		return Digest{}
	}
	return DigestOf(a.Args)
}

// ParseResource reads what a person types: Type::id, or a bare id where action
// has one type of resource.
//
// Errors: InvalidArgument (Permanent).
func ParseResource(action, text string) (Resource, error) {
	const op fault.Op = "creto.ParseResource"
	want, ok := ResourceType(action)
	if !ok {
		return Resource{}, fault.New(op, fault.InvalidArgument, "%q is no action", action)
	}
	r := Resource{Type: want, ID: text}
	if t, id, found := strings.Cut(text, "::"); found && !strings.ContainsAny(t, "/:.") {
		r = Resource{Type: t, ID: id}
	}
	return r, Action{Name: action, Resource: r}.Validate()
}

type contextKey int

const (
	traceKey contextKey = iota
	callerKey
)

// WithTrace returns ctx carrying a W3C trace id (32 hexadecimal digits).
func WithTrace(ctx context.Context, traceID string) context.Context {
	return context.WithValue(ctx, traceKey, traceID)
}

// TraceOf returns the trace id that ctx carries, or "".
func TraceOf(ctx context.Context) string {
	id, _ := ctx.Value(traceKey).(string)
	return id
}

// WithCaller returns ctx carrying the verified principal on whose behalf an
// administrative call runs. Only a listener that authenticated it sets this.
func WithCaller(ctx context.Context, id ID) context.Context {
	return context.WithValue(ctx, callerKey, id)
}

// CallerOf returns the principal that ctx carries, or the zero ID.
func CallerOf(ctx context.Context) ID {
	id, _ := ctx.Value(callerKey).(ID)
	return id
}
