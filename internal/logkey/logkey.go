// Package logkey holds the keys of log attributes, each once, so that a query
// over the log finds a thing under one name. Keys are snake_case; durations are
// logged as slog durations, sizes end in _bytes.
package logkey

// Who and what an entry is about.
const (
	// Action is the name of an action, such as "call_model".
	Action = "action"
	// Agent is the SPIFFE id of an agent.
	Agent = "agent"
	// Caller is the principal that made an administrative call.
	Caller = "caller"
	// Principal is any other principal: an approver, a human.
	Principal = "principal"
	// Tenant is a tenant's name.
	Tenant = "tenant"
	// Resource is what an action acts on, as Type::id.
	Resource = "resource"
	// Sandbox is the id of a run.
	Sandbox = "sandbox"
	// Backend names an implementation, such as "gvisor" or "localaudit".
	Backend = "backend"
	// Contract names a contract, such as "nhi".
	Contract = "contract"
	// Component names a part of the node, such as "gateway".
	Component = "component"
	// Check names a health check.
	Check = "check"
	// Model is a model's name.
	Model = "model"
	// Provider is a model provider's name.
	Provider = "provider"
)

// What happened.
const (
	// Sequence is the number of a frame in the audit log's front.
	Sequence = "sequence"
	// Records is how many records of the audit log an entry is about.
	Records = "records"
	// Op is a fault.Op.
	Op = "op"
	// Code is the name of a fault.Code.
	Code = "code"
	// Category is a fault.Category.
	Category = "category"
	// Error is the text of an error, foreign causes included.
	Error = "error"
	// Reason says why, in words.
	Reason = "reason"
	// Outcome is how an action ended.
	Outcome = "outcome"
	// Decision is what a policy decided.
	Decision = "decision"
	// PolicyID names a policy.
	PolicyID = "policy_id"
	// Policies is how many policies there are.
	Policies = "policies"
	// PolicyVersion names a snapshot of all policies.
	PolicyVersion = "policy_version"
	// Isolation says how a sandbox is isolated.
	Isolation = "isolation"
	// ExitCode is how a program ended.
	ExitCode = "exit_code"
	// Signal is the signal that ended something.
	Signal = "signal"
	// Panic is the value of a recovered panic.
	Panic = "panic"
	// Stack is the stack of a recovered panic.
	Stack = "stack"
)

// Ids that join entries.
const (
	// TraceID is a W3C trace id.
	TraceID = "trace_id"
	// RequestID is the id of an oversight request.
	RequestID = "request_id"
	// RecordID is the id of an audit record.
	RecordID = "record_id"
	// IdempotencyKey is the key that a retry carries.
	IdempotencyKey = "idempotency_key"
	// Digest is a digest of content.
	Digest = "digest"
	// Epoch is a revocation epoch.
	Epoch = "epoch"
	// Index is a leaf's index in the audit tree.
	Index = "index"
)

// How much and how long.
const (
	// Attempt counts attempts from 1.
	Attempt = "attempt"
	// Count is a number of things.
	Count = "count"
	// Duration is how long something took.
	Duration = "duration"
	// Wait is how long until something is tried again.
	Wait = "wait"
	// SizeBytes is a size.
	SizeBytes = "size_bytes"
	// Version is a version of software or of a schema.
	Version = "version"
)

// Where.
const (
	// Address is a network address.
	Address = "address"
	// Host is a host's name, as an agent named it.
	Host = "host"
	// Method is an HTTP method.
	Method = "method"
	// Path is a path, of a file or of a URL; never a query.
	Path = "path"
	// Status is an HTTP status.
	Status = "status"
	// Witness is the name of a witness of the log.
	Witness = "witness"
	// PID is a process id.
	PID = "pid"
	// Key is the name of a configuration key.
	Key = "key"
	// File is the name of a configuration or policy file.
	File = "file"
	// Warning is a warning's text.
	Warning = "warning"
)
