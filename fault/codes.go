package fault

// Code says what happened. A code is an error itself, so that it can be the
// target of errors.Is; build faults with [New], not by returning a bare code.
type Code uint8

// The common codes are the kinds of R-ERR-4 and the flat names of R-ERR-5; a
// service's own codes below each have one of them as their kind.
const (
	// OK: no fault; the zero value.
	OK Code = iota
	// Canceled: the caller went away.
	Canceled
	// InvalidArgument: the caller sent something malformed.
	InvalidArgument
	// DeadlineExceeded: the call ran out of time.
	DeadlineExceeded
	// NotFound: the thing named does not exist.
	NotFound
	// AlreadyExists: the thing to create exists already.
	AlreadyExists
	// PermissionDenied: the caller may not do this.
	PermissionDenied
	// ResourceExhausted: a quota or a size limit is reached.
	ResourceExhausted
	// FailedPrecondition: the state does not allow this now.
	FailedPrecondition
	// Aborted: a conflict with a concurrent change.
	Aborted
	// Unimplemented: this part is not built or not enabled.
	Unimplemented
	// Internal: a defect; its text is for the local log only.
	Internal
	// Unavailable: a dependency cannot be reached.
	Unavailable
	// DataLoss: stored data is damaged or was tampered with.
	DataLoss
	// Unauthenticated: the caller did not prove who it is.
	Unauthenticated
	// SecurityViolation: a signature or proof does not hold.
	SecurityViolation
	// OversightRequired: a human must consent first.
	OversightRequired
	// RateLimited: too many calls; wait RetryAfter.
	RateLimited
	// CircuitOpen: a breaker rejects calls to a failing dependency.
	CircuitOpen
	// SpawnFailed: a sandbox could not be started.
	SpawnFailed
	// WebhookFailed: a webhook's target refused.
	WebhookFailed
)

// The 61 error variants of requirements §2–9, a block a service. The variants
// for memory and storage are part of the vocabulary before their contracts are.
const (
	// NHINotFound is R-NHI-11.
	NHINotFound Code = iota + 64
	// NHITokenExpired is R-NHI-12.
	NHITokenExpired
	// NHITokenInvalid is R-NHI-13.
	NHITokenInvalid
	// NHIDelegationVerificationFailed is R-NHI-14.
	NHIDelegationVerificationFailed
	// NHIPublicKeyNotFound is R-NHI-15.
	NHIPublicKeyNotFound
	// NHISecretNotFound is R-NHI-16.
	NHISecretNotFound
	// NHISecretAccessDenied is R-NHI-17.
	NHISecretAccessDenied
	// NHIUnavailable is R-NHI-18.
	NHIUnavailable
	// NHITimeout is R-NHI-19.
	NHITimeout
	// NHIInternal is R-NHI-20.
	NHIInternal

	// CryptoEncryptionFailed is R-CRY-16.
	CryptoEncryptionFailed
	// CryptoDecryptionFailed is R-CRY-17.
	CryptoDecryptionFailed
	// CryptoSignatureVerificationFailed is R-CRY-18.
	CryptoSignatureVerificationFailed
	// CryptoSignatureGenerationFailed is R-CRY-19.
	CryptoSignatureGenerationFailed
	// CryptoKeyEncapsulationFailed is R-CRY-20.
	CryptoKeyEncapsulationFailed
	// CryptoKeyDecapsulationFailed is R-CRY-21.
	CryptoKeyDecapsulationFailed
	// CryptoUnsupportedAlgorithm is R-CRY-22.
	CryptoUnsupportedAlgorithm
	// CryptoInvalidKeyLength is R-CRY-23.
	CryptoInvalidKeyLength
	// CryptoInvalidCiphertext is R-CRY-24.
	CryptoInvalidCiphertext
	// CryptoInternal is R-CRY-25.
	CryptoInternal

	// ConsensusUnavailable is R-CON-6.
	ConsensusUnavailable
	// ConsensusTimeout is R-CON-7.
	ConsensusTimeout
	// ConsensusOrderingConflict is R-CON-8.
	ConsensusOrderingConflict
	// ConsensusInternal is R-CON-9.
	ConsensusInternal

	// AuditValidationFailed is R-AUD-10.
	AuditValidationFailed
	// AuditInvalidSignature is R-AUD-11.
	AuditInvalidSignature
	// AuditUnavailable is R-AUD-12.
	AuditUnavailable
	// AuditTimeout is R-AUD-13.
	AuditTimeout
	// AuditProofVerificationFailed is R-AUD-14.
	AuditProofVerificationFailed
	// AuditNotFound is R-AUD-15.
	AuditNotFound
	// AuditInternal is R-AUD-16.
	AuditInternal

	// AuthzDenied is R-AZ-12.
	AuthzDenied
	// AuthzPolicyNotFound is R-AZ-13.
	AuthzPolicyNotFound
	// AuthzEvaluationFailed is R-AZ-14.
	AuthzEvaluationFailed
	// AuthzUnavailable is R-AZ-15.
	AuthzUnavailable
	// AuthzTimeout is R-AZ-16.
	AuthzTimeout
	// AuthzInvalidRequest is R-AZ-17.
	AuthzInvalidRequest
	// AuthzInternal is R-AZ-18.
	AuthzInternal

	// MemoryUnavailable is R-MEM-7.
	MemoryUnavailable
	// MemoryTimeout is R-MEM-8.
	MemoryTimeout
	// MemoryNotFound is R-MEM-9.
	MemoryNotFound
	// MemoryQueryFailed is R-MEM-10.
	MemoryQueryFailed
	// MemoryInternal is R-MEM-11.
	MemoryInternal

	// StorageNotFound is R-STO-9.
	StorageNotFound
	// StorageAccessDenied is R-STO-10.
	StorageAccessDenied
	// StorageQuotaExceeded is R-STO-11.
	StorageQuotaExceeded
	// StorageEncryptionFailed is R-STO-12.
	StorageEncryptionFailed
	// StorageDecryptionFailed is R-STO-13.
	StorageDecryptionFailed
	// StorageUnavailable is R-STO-14.
	StorageUnavailable
	// StorageTimeout is R-STO-15.
	StorageTimeout
	// StorageInternal is R-STO-16.
	StorageInternal

	// InferenceProviderUnavailable is R-INF-10.
	InferenceProviderUnavailable
	// InferenceModelNotFound is R-INF-11.
	InferenceModelNotFound
	// InferenceTimeout is R-INF-12.
	InferenceTimeout
	// InferenceRateLimited is R-INF-13.
	InferenceRateLimited
	// InferenceTokenLimitExceeded is R-INF-14.
	InferenceTokenLimitExceeded
	// InferencePromptInjection is R-INF-15.
	InferencePromptInjection
	// InferenceProviderError is R-INF-16.
	InferenceProviderError
	// InferenceContentFiltered is R-INF-17.
	InferenceContentFiltered
	// InferenceNotSupported is R-INF-18.
	InferenceNotSupported
	// InferenceInternal is R-INF-19.
	InferenceInternal
)

// row is what a code implies.
type row struct {
	name      string
	kind      Code
	category  Category
	retryable bool
	http      int
	grpc      uint32
}

// table holds every code. A code that is not in it behaves as Internal.
var table = [256]row{
	OK:                 {"ok", OK, Permanent, false, 200, 0},
	Canceled:           {"canceled", Canceled, Permanent, false, 499, 1},
	InvalidArgument:    {"invalid_argument", InvalidArgument, Permanent, false, 400, 3},
	DeadlineExceeded:   {"deadline_exceeded", DeadlineExceeded, Transient, true, 504, 4},
	NotFound:           {"not_found", NotFound, Permanent, false, 404, 5},
	AlreadyExists:      {"already_exists", AlreadyExists, Permanent, false, 409, 6},
	PermissionDenied:   {"permission_denied", PermissionDenied, Security, false, 403, 7},
	ResourceExhausted:  {"resource_exhausted", ResourceExhausted, Permanent, false, 429, 8},
	FailedPrecondition: {"failed_precondition", FailedPrecondition, Permanent, false, 409, 9},
	Aborted:            {"aborted", Aborted, Transient, true, 409, 10},
	Unimplemented:      {"unimplemented", Unimplemented, Permanent, false, 501, 12},
	Internal:           {"internal", Internal, Permanent, false, 500, 13},
	Unavailable:        {"unavailable", Unavailable, Degraded, true, 503, 14},
	DataLoss:           {"data_loss", DataLoss, Security, false, 500, 15},
	Unauthenticated:    {"unauthenticated", Unauthenticated, Permanent, false, 401, 16},
	SecurityViolation:  {"security_violation", SecurityViolation, Security, false, 403, 7},
	OversightRequired:  {"oversight_required", OversightRequired, Security, false, 403, 7},
	RateLimited:        {"rate_limited", RateLimited, Transient, true, 429, 8},
	CircuitOpen:        {"circuit_open", CircuitOpen, Degraded, true, 503, 14},
	SpawnFailed:        {"spawn_failed", SpawnFailed, Permanent, false, 500, 13},
	WebhookFailed:      {"webhook_failed", WebhookFailed, Transient, true, 502, 14},

	NHINotFound:                     {"nhi.not_found", NotFound, Permanent, false, 404, 5},
	NHITokenExpired:                 {"nhi.token_expired", Unauthenticated, Permanent, false, 401, 16},
	NHITokenInvalid:                 {"nhi.token_invalid", Unauthenticated, Security, false, 401, 16},
	NHIDelegationVerificationFailed: {"nhi.delegation_verification_failed", SecurityViolation, Security, false, 403, 7},
	NHIPublicKeyNotFound:            {"nhi.public_key_not_found", NotFound, Permanent, false, 404, 5},
	NHISecretNotFound:               {"nhi.secret_not_found", NotFound, Permanent, false, 404, 5},
	NHISecretAccessDenied:           {"nhi.secret_access_denied", PermissionDenied, Security, false, 403, 7},
	NHIUnavailable:                  {"nhi.unavailable", Unavailable, Degraded, true, 503, 14},
	NHITimeout:                      {"nhi.timeout", DeadlineExceeded, Transient, true, 504, 4},
	NHIInternal:                     {"nhi.internal", Internal, Permanent, false, 500, 13},

	CryptoEncryptionFailed:            {"crypto.encryption_failed", Internal, Permanent, false, 500, 13},
	CryptoDecryptionFailed:            {"crypto.decryption_failed", InvalidArgument, Security, false, 400, 3},
	CryptoSignatureVerificationFailed: {"crypto.signature_verification_failed", SecurityViolation, Security, false, 403, 7},
	CryptoSignatureGenerationFailed:   {"crypto.signature_generation_failed", Internal, Permanent, false, 500, 13},
	CryptoKeyEncapsulationFailed:      {"crypto.key_encapsulation_failed", Internal, Permanent, false, 500, 13},
	CryptoKeyDecapsulationFailed:      {"crypto.key_decapsulation_failed", InvalidArgument, Security, false, 400, 3},
	CryptoUnsupportedAlgorithm:        {"crypto.unsupported_algorithm", InvalidArgument, Permanent, false, 400, 3},
	CryptoInvalidKeyLength:            {"crypto.invalid_key_length", InvalidArgument, Permanent, false, 400, 3},
	CryptoInvalidCiphertext:           {"crypto.invalid_ciphertext", InvalidArgument, Security, false, 400, 3},
	CryptoInternal:                    {"crypto.internal", Internal, Permanent, false, 500, 13},

	ConsensusUnavailable:      {"consensus.unavailable", Unavailable, Degraded, true, 503, 14},
	ConsensusTimeout:          {"consensus.timeout", DeadlineExceeded, Transient, true, 504, 4},
	ConsensusOrderingConflict: {"consensus.ordering_conflict", FailedPrecondition, Permanent, false, 409, 9},
	ConsensusInternal:         {"consensus.internal", Internal, Permanent, false, 500, 13},

	AuditValidationFailed:        {"audit.validation_failed", InvalidArgument, Permanent, false, 400, 3},
	AuditInvalidSignature:        {"audit.invalid_signature", SecurityViolation, Security, false, 403, 7},
	AuditUnavailable:             {"audit.unavailable", Unavailable, Degraded, true, 503, 14},
	AuditTimeout:                 {"audit.timeout", DeadlineExceeded, Transient, true, 504, 4},
	AuditProofVerificationFailed: {"audit.proof_verification_failed", SecurityViolation, Security, false, 409, 9},
	AuditNotFound:                {"audit.not_found", NotFound, Permanent, false, 404, 5},
	AuditInternal:                {"audit.internal", Internal, Permanent, false, 500, 13},

	AuthzDenied:           {"authz.denied", PermissionDenied, Security, false, 403, 7},
	AuthzPolicyNotFound:   {"authz.policy_not_found", PermissionDenied, Security, false, 403, 7},
	AuthzEvaluationFailed: {"authz.evaluation_failed", PermissionDenied, Security, false, 403, 7},
	AuthzUnavailable:      {"authz.unavailable", Unavailable, Degraded, true, 503, 14},
	AuthzTimeout:          {"authz.timeout", DeadlineExceeded, Transient, true, 503, 4},
	AuthzInvalidRequest:   {"authz.invalid_request", InvalidArgument, Permanent, false, 400, 3},
	AuthzInternal:         {"authz.internal", Internal, Permanent, false, 500, 13},

	MemoryUnavailable: {"memory.unavailable", Unavailable, Degraded, true, 503, 14},
	MemoryTimeout:     {"memory.timeout", DeadlineExceeded, Transient, true, 504, 4},
	MemoryNotFound:    {"memory.not_found", NotFound, Permanent, false, 404, 5},
	MemoryQueryFailed: {"memory.query_failed", InvalidArgument, Permanent, false, 400, 3},
	MemoryInternal:    {"memory.internal", Internal, Permanent, false, 500, 13},

	StorageNotFound:         {"storage.not_found", NotFound, Permanent, false, 404, 5},
	StorageAccessDenied:     {"storage.access_denied", PermissionDenied, Security, false, 403, 7},
	StorageQuotaExceeded:    {"storage.quota_exceeded", ResourceExhausted, Permanent, false, 507, 8},
	StorageEncryptionFailed: {"storage.encryption_failed", Internal, Permanent, false, 500, 13},
	StorageDecryptionFailed: {"storage.decryption_failed", DataLoss, Security, false, 500, 15},
	StorageUnavailable:      {"storage.unavailable", Unavailable, Degraded, true, 503, 14},
	StorageTimeout:          {"storage.timeout", DeadlineExceeded, Transient, true, 504, 4},
	StorageInternal:         {"storage.internal", Internal, Permanent, false, 500, 13},

	InferenceProviderUnavailable: {"inference.provider_unavailable", Unavailable, Degraded, true, 502, 14},
	InferenceModelNotFound:       {"inference.model_not_found", NotFound, Permanent, false, 404, 5},
	InferenceTimeout:             {"inference.timeout", DeadlineExceeded, Transient, true, 504, 4},
	InferenceRateLimited:         {"inference.rate_limited", RateLimited, Transient, true, 429, 8},
	InferenceTokenLimitExceeded:  {"inference.token_limit_exceeded", InvalidArgument, Permanent, false, 400, 3},
	InferencePromptInjection:     {"inference.prompt_injection", PermissionDenied, Security, false, 403, 7},
	InferenceProviderError:       {"inference.provider_error", FailedPrecondition, Permanent, false, 502, 9},
	InferenceContentFiltered:     {"inference.content_filtered", PermissionDenied, Permanent, false, 403, 7},
	InferenceNotSupported:        {"inference.not_supported", Unimplemented, Permanent, false, 501, 12},
	InferenceInternal:            {"inference.internal", Internal, Permanent, false, 500, 13},
}

func (c Code) row() row {
	if r := table[c]; r.name != "" {
		return r
	}
	return table[Internal]
}

// Error makes a code a target for errors.Is.
func (c Code) Error() string { return c.String() }

// String returns the code's name on every wire and in every record, such as
// "nhi.token_expired".
func (c Code) String() string { return c.row().name }

// Kind returns the common code that c is a case of.
func (c Code) Kind() Code { return c.row().kind }

// Category returns what to do about it.
func (c Code) Category() Category { return c.row().category }

// Retryable reports whether the same call may succeed later.
func (c Code) Retryable() bool { return c.row().retryable }

// HTTPStatus returns the status of an HTTP response that reports it.
func (c Code) HTTPStatus() int { return c.row().http }

// GRPCStatus returns the number of the google.rpc.Code that reports it.
func (c Code) GRPCStatus() uint32 { return c.row().grpc }

// Codes returns every code, in order.
func Codes() []Code {
	var codes []Code
	for c, r := range table {
		if r.name != "" {
			codes = append(codes, Code(c))
		}
	}
	return codes
}

// ParseCode finds the code of that name.
func ParseCode(name string) (Code, bool) {
	for c, r := range table {
		if name != "" && r.name == name {
			return Code(c), true
		}
	}
	return Internal, false
}
