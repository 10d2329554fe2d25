package fault_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"creto.dev/fault"
)

// variant is one row of requirements §2–9.
type variant struct {
	row       string
	code      fault.Code
	name      string
	category  fault.Category
	retryable bool
	http      int
	grpc      uint32
}

// variants is the independent copy of the requirements that the table in
// codes.go is held against. The gRPC numbers of the rows that give only an HTTP
// status are those of google.rpc.Code for that status.
var variants = []variant{
	{"R-NHI-11", fault.NHINotFound, "nhi.not_found", fault.Permanent, false, 404, 5},
	{"R-NHI-12", fault.NHITokenExpired, "nhi.token_expired", fault.Permanent, false, 401, 16},
	{"R-NHI-13", fault.NHITokenInvalid, "nhi.token_invalid", fault.Security, false, 401, 16},
	{"R-NHI-14", fault.NHIDelegationVerificationFailed, "nhi.delegation_verification_failed", fault.Security, false, 403, 7},
	{"R-NHI-15", fault.NHIPublicKeyNotFound, "nhi.public_key_not_found", fault.Permanent, false, 404, 5},
	{"R-NHI-16", fault.NHISecretNotFound, "nhi.secret_not_found", fault.Permanent, false, 404, 5},
	{"R-NHI-17", fault.NHISecretAccessDenied, "nhi.secret_access_denied", fault.Security, false, 403, 7},
	{"R-NHI-18", fault.NHIUnavailable, "nhi.unavailable", fault.Degraded, true, 503, 14},
	{"R-NHI-19", fault.NHITimeout, "nhi.timeout", fault.Transient, true, 504, 4},
	{"R-NHI-20", fault.NHIInternal, "nhi.internal", fault.Permanent, false, 500, 13},
	{"R-CRY-16", fault.CryptoEncryptionFailed, "crypto.encryption_failed", fault.Permanent, false, 500, 13},
	{"R-CRY-17", fault.CryptoDecryptionFailed, "crypto.decryption_failed", fault.Security, false, 400, 3},
	{"R-CRY-18", fault.CryptoSignatureVerificationFailed, "crypto.signature_verification_failed", fault.Security, false, 403, 7},
	{"R-CRY-19", fault.CryptoSignatureGenerationFailed, "crypto.signature_generation_failed", fault.Permanent, false, 500, 13},
	{"R-CRY-20", fault.CryptoKeyEncapsulationFailed, "crypto.key_encapsulation_failed", fault.Permanent, false, 500, 13},
	{"R-CRY-21", fault.CryptoKeyDecapsulationFailed, "crypto.key_decapsulation_failed", fault.Security, false, 400, 3},
	{"R-CRY-22", fault.CryptoUnsupportedAlgorithm, "crypto.unsupported_algorithm", fault.Permanent, false, 400, 3},
	{"R-CRY-23", fault.CryptoInvalidKeyLength, "crypto.invalid_key_length", fault.Permanent, false, 400, 3},
	{"R-CRY-24", fault.CryptoInvalidCiphertext, "crypto.invalid_ciphertext", fault.Security, false, 400, 3},
	{"R-CRY-25", fault.CryptoInternal, "crypto.internal", fault.Permanent, false, 500, 13},
	{"R-CON-6", fault.ConsensusUnavailable, "consensus.unavailable", fault.Degraded, true, 503, 14},
	{"R-CON-7", fault.ConsensusTimeout, "consensus.timeout", fault.Transient, true, 504, 4},
	{"R-CON-8", fault.ConsensusOrderingConflict, "consensus.ordering_conflict", fault.Permanent, false, 409, 9},
	{"R-CON-9", fault.ConsensusInternal, "consensus.internal", fault.Permanent, false, 500, 13},
	{"R-AUD-10", fault.AuditValidationFailed, "audit.validation_failed", fault.Permanent, false, 400, 3},
	{"R-AUD-11", fault.AuditInvalidSignature, "audit.invalid_signature", fault.Security, false, 403, 7},
	{"R-AUD-12", fault.AuditUnavailable, "audit.unavailable", fault.Degraded, true, 503, 14},
	{"R-AUD-13", fault.AuditTimeout, "audit.timeout", fault.Transient, true, 504, 4},
	{"R-AUD-14", fault.AuditProofVerificationFailed, "audit.proof_verification_failed", fault.Security, false, 409, 9},
	{"R-AUD-15", fault.AuditNotFound, "audit.not_found", fault.Permanent, false, 404, 5},
	{"R-AUD-16", fault.AuditInternal, "audit.internal", fault.Permanent, false, 500, 13},
	{"R-AZ-12", fault.AuthzDenied, "authz.denied", fault.Security, false, 403, 7},
	{"R-AZ-13", fault.AuthzPolicyNotFound, "authz.policy_not_found", fault.Security, false, 403, 7},
	{"R-AZ-14", fault.AuthzEvaluationFailed, "authz.evaluation_failed", fault.Security, false, 403, 7},
	{"R-AZ-15", fault.AuthzUnavailable, "authz.unavailable", fault.Degraded, true, 503, 14},
	{"R-AZ-16", fault.AuthzTimeout, "authz.timeout", fault.Transient, true, 503, 4},
	{"R-AZ-17", fault.AuthzInvalidRequest, "authz.invalid_request", fault.Permanent, false, 400, 3},
	{"R-AZ-18", fault.AuthzInternal, "authz.internal", fault.Permanent, false, 500, 13},
	{"R-MEM-7", fault.MemoryUnavailable, "memory.unavailable", fault.Degraded, true, 503, 14},
	{"R-MEM-8", fault.MemoryTimeout, "memory.timeout", fault.Transient, true, 504, 4},
	{"R-MEM-9", fault.MemoryNotFound, "memory.not_found", fault.Permanent, false, 404, 5},
	{"R-MEM-10", fault.MemoryQueryFailed, "memory.query_failed", fault.Permanent, false, 400, 3},
	{"R-MEM-11", fault.MemoryInternal, "memory.internal", fault.Permanent, false, 500, 13},
	{"R-STO-9", fault.StorageNotFound, "storage.not_found", fault.Permanent, false, 404, 5},
	{"R-STO-10", fault.StorageAccessDenied, "storage.access_denied", fault.Security, false, 403, 7},
	{"R-STO-11", fault.StorageQuotaExceeded, "storage.quota_exceeded", fault.Permanent, false, 507, 8},
	{"R-STO-12", fault.StorageEncryptionFailed, "storage.encryption_failed", fault.Permanent, false, 500, 13},
	{"R-STO-13", fault.StorageDecryptionFailed, "storage.decryption_failed", fault.Security, false, 500, 15},
	{"R-STO-14", fault.StorageUnavailable, "storage.unavailable", fault.Degraded, true, 503, 14},
	{"R-STO-15", fault.StorageTimeout, "storage.timeout", fault.Transient, true, 504, 4},
	{"R-STO-16", fault.StorageInternal, "storage.internal", fault.Permanent, false, 500, 13},
	{"R-INF-10", fault.InferenceProviderUnavailable, "inference.provider_unavailable", fault.Degraded, true, 502, 14},
	{"R-INF-11", fault.InferenceModelNotFound, "inference.model_not_found", fault.Permanent, false, 404, 5},
	{"R-INF-12", fault.InferenceTimeout, "inference.timeout", fault.Transient, true, 504, 4},
	{"R-INF-13", fault.InferenceRateLimited, "inference.rate_limited", fault.Transient, true, 429, 8},
	{"R-INF-14", fault.InferenceTokenLimitExceeded, "inference.token_limit_exceeded", fault.Permanent, false, 400, 3},
	{"R-INF-15", fault.InferencePromptInjection, "inference.prompt_injection", fault.Security, false, 403, 7},
	{"R-INF-16", fault.InferenceProviderError, "inference.provider_error", fault.Permanent, false, 502, 9},
	{"R-INF-17", fault.InferenceContentFiltered, "inference.content_filtered", fault.Permanent, false, 403, 7},
	{"R-INF-18", fault.InferenceNotSupported, "inference.not_supported", fault.Permanent, false, 501, 12},
	{"R-INF-19", fault.InferenceInternal, "inference.internal", fault.Permanent, false, 500, 13},
}

func TestVariants(t *testing.T) {
	for _, v := range variants {
		t.Run(v.row, func(t *testing.T) {
			got := variant{v.row, v.code, v.code.String(), v.code.Category(), v.code.Retryable(), v.code.HTTPStatus(), v.code.GRPCStatus()}
			if got != v {
				t.Errorf("code table has %+v, requirements have %+v", got, v)
			}
			if parsed, ok := fault.ParseCode(v.name); !ok || parsed != v.code {
				t.Errorf("ParseCode(%q) = %v, %v, want %v, true", v.name, parsed, ok, v.code)
			}
			err := fault.New("test.Op", v.code, "message")
			if !errors.Is(err, v.code) || !errors.Is(err, v.code.Kind()) {
				t.Errorf("errors.Is of a fault of %v misses its code or its kind %v", v.code, v.code.Kind())
			}
			if fault.CodeOf(err) != v.code || fault.CategoryOf(err) != v.category || fault.Retryable(err) != v.retryable {
				t.Errorf("CodeOf, CategoryOf, Retryable = %v, %v, %v, want %v, %v, %v",
					fault.CodeOf(err), fault.CategoryOf(err), fault.Retryable(err), v.code, v.category, v.retryable)
			}
		})
	}
}

// TestCounts holds §23: 61 error variants, of which 15 retryable.
func TestCounts(t *testing.T) {
	listed := map[fault.Code]bool{}
	for _, v := range variants {
		listed[v.code] = true
	}
	var service, retryable int
	for _, c := range fault.Codes() {
		if !strings.Contains(c.String(), ".") {
			if c.Kind() != c {
				t.Errorf("common code %v has kind %v, want itself", c, c.Kind())
			}
			continue
		}
		service++
		if c.Retryable() {
			retryable++
		}
		if !listed[c] {
			t.Errorf("code %v is in no row of the requirements", c)
		}
		if strings.Contains(c.Kind().String(), ".") {
			t.Errorf("the kind of %v is %v, want a common code", c, c.Kind())
		}
	}
	if service != 61 || retryable != 15 || len(listed) != 61 {
		t.Errorf("service codes, retryable, rows = %d, %d, %d, want 61, 15, 61", service, retryable, len(listed))
	}
}

func TestCodesAreDistinct(t *testing.T) {
	seen := map[string]fault.Code{}
	for _, c := range fault.Codes() {
		if other, ok := seen[c.String()]; ok {
			t.Errorf("codes %d and %d share the name %q", other, c, c)
		}
		seen[c.String()] = c
		if c.Category() == fault.Security && c.Retryable() {
			t.Errorf("%v is a Security fault and retryable", c)
		}
		if c.HTTPStatus() < 400 && c != fault.OK {
			t.Errorf("%v has HTTP status %d", c, c.HTTPStatus())
		}
	}
	if _, ok := fault.ParseCode(""); ok {
		t.Error(`ParseCode("") found a code`)
	}
	if got := fault.Code(255); got.String() != "internal" || got.HTTPStatus() != 500 || got.Retryable() {
		t.Errorf("an unknown code is %v, %d, %v, want internal, 500, false", got, got.HTTPStatus(), got.Retryable())
	}
}

func TestCategoryString(t *testing.T) {
	for c, want := range map[fault.Category]string{
		fault.Permanent: "permanent", fault.Transient: "transient", fault.Security: "security", fault.Degraded: "degraded", 99: "permanent",
	} {
		if c.String() != want {
			t.Errorf("Category(%d) = %q, want %q", c, c, want)
		}
	}
}

// secret stands for what a driver's error may hold.
const secret = "password=hunter2"

var errForeign = errors.New("dial tcp: " + secret)

func TestCodeOf(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want fault.Code
	}{
		{"nil", nil, fault.OK},
		{"a fault", fault.New("a.B", fault.NotFound, "no"), fault.NotFound},
		{"a wrapped fault", fmt.Errorf("x: %w", fault.New("a.B", fault.AuditTimeout, "no")), fault.AuditTimeout},
		{"a bare code", fault.Aborted, fault.Aborted},
		{"a wrapped bare code", fmt.Errorf("x: %w", fault.Aborted), fault.Aborted},
		{"canceled", fmt.Errorf("x: %w", context.Canceled), fault.Canceled},
		{"out of time", fmt.Errorf("x: %w", context.DeadlineExceeded), fault.DeadlineExceeded},
		{"foreign", errForeign, fault.Internal},
		{"the outermost of two", fault.WrapAs("a.B", fault.Unavailable, fault.New("c.D", fault.NotFound, "no"), "down"), fault.Unavailable},
		{"joined", errors.Join(errForeign, fault.New("a.B", fault.RateLimited, "wait")), fault.RateLimited},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := fault.CodeOf(tt.err); got != tt.want {
				t.Errorf("CodeOf(%v) = %v, want %v", tt.err, got, tt.want)
			}
			if tt.err == nil {
				return
			}
			if got := fault.CodeOf(fault.Wrap("e.F", tt.err)); got != tt.want {
				t.Errorf("CodeOf(Wrap(%v)) = %v, want %v", tt.err, got, tt.want)
			}
		})
	}
}

func TestWrapKeepsIdentity(t *testing.T) {
	err := fault.Wrap("outer.Op", fault.WrapAs("inner.Op", fault.StorageUnavailable, io.ErrUnexpectedEOF, "disk went away"))
	if !errors.Is(err, fault.StorageUnavailable) || !errors.Is(err, fault.Unavailable) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v lost its code, kind or cause", err)
	}
	if errors.Is(err, fault.MemoryUnavailable) {
		t.Errorf("%v is MemoryUnavailable; codes of one kind must stay apart", err)
	}
	if got, want := err.Error(), "outer.Op: inner.Op: disk went away: unexpected EOF"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
	if e, ok := errors.AsType[*fault.Error](err); !ok || e.Code() != fault.StorageUnavailable {
		t.Errorf("AsType found %v, %v", e, ok)
	}
}

func TestNil(t *testing.T) {
	for name, err := range map[string]error{
		"Wrap":   fault.Wrap("a.B", nil),
		"WrapAs": fault.WrapAs("a.B", fault.Unavailable, nil, "down"),
		"After":  fault.After(nil, time.Second),
	} {
		if err != nil {
			t.Errorf("%s of nil = %v, want nil", name, err)
		}
	}
	if fault.Message(nil) != "" || fault.Retryable(nil) || fault.RetryAfter(nil) != 0 || fault.CodeOf(nil) != fault.OK {
		t.Error("nil is not OK, silent and final")
	}
}

func TestRetryAfter(t *testing.T) {
	limited := fault.After(fault.New("a.B", fault.RateLimited, "too many"), 3*time.Second)
	for _, tt := range []struct {
		name string
		err  error
		want time.Duration
	}{
		{"foreign", errForeign, 0},
		{"unsaid", fault.New("a.B", fault.RateLimited, "too many"), 0},
		{"said", limited, 3 * time.Second},
		{"wrapped", fault.Wrap("c.D", fmt.Errorf("x: %w", limited)), 3 * time.Second},
		{"classified again", fault.WrapAs("c.D", fault.InferenceRateLimited, limited, "wait"), 3 * time.Second},
		{"the outermost wins", fault.After(limited, time.Minute), time.Minute},
		{"negative", fault.After(fault.New("a.B", fault.RateLimited, "too many"), -time.Second), 0},
	} {
		if got := fault.RetryAfter(tt.err); got != tt.want {
			t.Errorf("%s: RetryAfter = %v, want %v", tt.name, got, tt.want)
		}
	}
	if fault.CodeOf(limited) != fault.RateLimited || fault.Message(limited) != "too many" {
		t.Errorf("After changed the fault: %v, %q", fault.CodeOf(limited), fault.Message(limited))
	}
}

func TestMessage(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"a message", fault.New("a.B", fault.NotFound, "no agent %q", "bob"), `no agent "bob"`},
		{"foreign only", errForeign, "internal"},
		{"foreign, wrapped", fault.Wrap("a.B", errForeign), "internal"},
		{"foreign, classified", fault.WrapAs("a.B", fault.Unavailable, errForeign, "database is down"), "database is down"},
		{"foreign between faults", fault.WrapAs("a.B", fault.Unavailable, fmt.Errorf("%s: %w", secret, fault.New("c.D", fault.NotFound, "gone")), "down"), "down: gone"},
		{"no message", fault.Wrap("a.B", fault.AuditTimeout), "audit.timeout"},
		{"canceled", fmt.Errorf("%s: %w", secret, context.Canceled), "canceled"},
		{"an internal fault", fault.New("a.B", fault.AuthzInternal, secret), "internal"},
		{"an internal fault under another", fault.WrapAs("a.B", fault.Unavailable, fault.New("c.D", fault.Internal, secret), "down"), "down"},
		{"below an internal fault", fault.WrapAs("a.B", fault.Unavailable, fault.WrapAs("c.D", fault.Internal, fault.New("e.F", fault.NotFound, secret), "x"), "down"), "down"},
		{"decryption is no oracle", fault.New("a.B", fault.CryptoDecryptionFailed, "padding wrong at byte 7"), "decryption failed"},
		{"decapsulation is no oracle", fault.New("a.B", fault.CryptoKeyDecapsulationFailed, "why"), "decryption failed"},
		{"ciphertext is no oracle", fault.Wrap("c.D", fault.New("a.B", fault.CryptoInvalidCiphertext, "why")), "decryption failed"},
		{"an oracle under another", fault.WrapAs("c.D", fault.InvalidArgument, fault.New("a.B", fault.CryptoDecryptionFailed, "why"), "message refused"), "message refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := fault.Message(tt.err); got != tt.want {
				t.Errorf("Message(%v) = %q, want %q", tt.err, got, tt.want)
			}
		})
	}
}

// TestMessageNeverLeaks plants a secret under every code in every position
// that a foreign cause can have.
func TestMessageNeverLeaks(t *testing.T) {
	for _, c := range fault.Codes() {
		for _, err := range []error{
			fault.WrapAs("a.B", c, errForeign, "refused"),
			fault.Wrap("x.Y", fault.WrapAs("a.B", c, errForeign, "refused")),
			fault.After(fault.WrapAs("a.B", c, errors.Join(errForeign, fault.Aborted), "refused"), time.Second),
			fmt.Errorf("%s %w", secret, fault.New("a.B", c, "refused")),
			errors.Join(errForeign, fault.New("a.B", c, "refused")),
		} {
			if got := fault.Message(err); strings.Contains(got, secret) {
				t.Errorf("Message of a %v fault is %q: it holds the foreign cause", c, got)
			}
		}
	}
}
