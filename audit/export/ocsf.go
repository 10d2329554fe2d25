package export

import (
	"cmp"
	"strings"

	"creto.dev"
	"creto.dev/audit"
)

// The classification of every event: OCSF's API Activity.
const (
	ocsfVersion  = "1.9.0"
	ocsfCategory = 6 // Application Activity
	ocsfClass    = 6003
)

// The values of enumerations that are used; 0 is Unknown and 99 Other in all.
const (
	ocsfOther = 99

	ocsfCreate = 1
	ocsfRead   = 2
	ocsfUpdate = 3
	ocsfDelete = 4

	ocsfSuccess = 1
	ocsfFailure = 2

	ocsfInformational = 1
	ocsfLow           = 2
	ocsfMedium        = 3
	ocsfHigh          = 4
	ocsfCritical      = 5

	ocsfTypeUser    = 1
	ocsfTypeService = 4

	ocsfTarget = 1
	ocsfHex    = 1
)

// ocsfEvent is an API Activity event with the profiles ai_operation,
// record_integrity and trace. What has no home in OCSF is in unmapped.
type ocsfEvent struct {
	CategoryUID     int               `json:"category_uid"`
	CategoryName    string            `json:"category_name"`
	ClassUID        int               `json:"class_uid"`
	ClassName       string            `json:"class_name"`
	ActivityID      int               `json:"activity_id"`
	ActivityName    string            `json:"activity_name"`
	TypeUID         int               `json:"type_uid"`
	Time            int64             `json:"time"` // milliseconds
	SeverityID      int               `json:"severity_id"`
	Severity        string            `json:"severity"`
	StatusID        int               `json:"status_id"`
	Status          string            `json:"status"`
	StatusCode      string            `json:"status_code"`
	StatusDetail    string            `json:"status_detail,omitempty"`
	Message         string            `json:"message"`
	Metadata        ocsfMetadata      `json:"metadata"`
	Actor           ocsfActor         `json:"actor"`
	AIAgent         *ocsfAIAgent      `json:"ai_agent,omitempty"`
	MessageContext  *ocsfMessage      `json:"message_context,omitempty"`
	API             ocsfAPI           `json:"api"`
	Resources       []ocsfResource    `json:"resources,omitempty"`
	SrcEndpoint     ocsfEndpoint      `json:"src_endpoint"`
	Trace           *ocsfTrace        `json:"trace,omitempty"`
	AttestationList []ocsfAttestation `json:"attestation_list"`
	Unmapped        map[string]any    `json:"unmapped"`
}

type ocsfMetadata struct {
	Version          string      `json:"version"`
	Profiles         []string    `json:"profiles"`
	Product          ocsfProduct `json:"product"`
	UID              string      `json:"uid"`
	OriginalEventUID string      `json:"original_event_uid"`
	EventCode        string      `json:"event_code"`
	LogName          string      `json:"log_name"`
	LogProvider      string      `json:"log_provider"`
	LogFormat        string      `json:"log_format"`
	Sequence         int64       `json:"sequence"`
	TenantUID        string      `json:"tenant_uid"`
}

type ocsfProduct struct {
	Name       string `json:"name"`
	VendorName string `json:"vendor_name"`
}

type ocsfActor struct {
	User           *ocsfUser           `json:"user,omitempty"`
	AppUID         string              `json:"app_uid,omitempty"`
	AppName        string              `json:"app_name,omitempty"`
	Authorizations []ocsfAuthorization `json:"authorizations,omitempty"`
}

type ocsfUser struct {
	UID    string `json:"uid"`
	Name   string `json:"name"`
	Domain string `json:"domain"`
	TypeID int    `json:"type_id"`
	Type   string `json:"type"`
}

type ocsfAuthorization struct {
	Decision string      `json:"decision"`
	Policy   *ocsfPolicy `json:"policy,omitempty"`
}

type ocsfPolicy struct {
	UID       string `json:"uid"`
	Version   string `json:"version"` // the digest of its text
	IsApplied bool   `json:"is_applied"`
}

type ocsfAIAgent struct {
	UID         string `json:"uid"`
	Name        string `json:"name"`
	InstanceUID string `json:"instance_uid,omitempty"`
	TypeID      int    `json:"type_id"`
	Type        string `json:"type"`
}

type ocsfMessage struct {
	Service          ocsfService `json:"service"`
	PromptTokens     int64       `json:"prompt_tokens"`
	CompletionTokens int64       `json:"completion_tokens"`
	TotalTokens      int64       `json:"total_tokens"`
}

type ocsfService struct {
	Name string `json:"name"`
}

type ocsfAPI struct {
	Operation string       `json:"operation"`
	Service   ocsfService  `json:"service"`
	Request   ocsfRequest  `json:"request"`
	Response  ocsfResponse `json:"response"`
}

type ocsfRequest struct {
	UID string `json:"uid"`
}

type ocsfResponse struct {
	Error        string `json:"error,omitempty"`
	ErrorMessage string `json:"error_message,omitempty"`
	Message      string `json:"message"`
}

type ocsfResource struct {
	UID    string `json:"uid"`
	Name   string `json:"name"`
	Type   string `json:"type"`
	RoleID int    `json:"role_id"`
	Role   string `json:"role"`
}

type ocsfEndpoint struct {
	Name        string `json:"name"`
	InstanceUID string `json:"instance_uid,omitempty"` // the sandbox
}

type ocsfTrace struct {
	UID string `json:"uid"`
}

// ocsfAttestation says where the record is in the log: its fingerprint is the
// leaf's hash, over the canonical encoding of the record and not of this event.
type ocsfAttestation struct {
	UID          string          `json:"uid"`
	AuthorityUID string          `json:"authority_uid"`
	ChainUID     string          `json:"chain_uid"`
	Fingerprint  ocsfFingerprint `json:"fingerprint"`
}

type ocsfFingerprint struct {
	AlgorithmID     int    `json:"algorithm_id"`
	Algorithm       string `json:"algorithm"`
	Value           string `json:"value"`
	EncodingID      int    `json:"encoding_id"`
	Encoding        string `json:"encoding"`
	SerializationID int    `json:"serialization_id"`
	Serialization   string `json:"serialization"`
}

// ocsfOf returns the event of an entry.
func ocsfOf(origin string, e audit.Entry) ocsfEvent {
	r, event := e.Record, e.Record.Event()
	activity, activityName := ocsfActivity(r.What)
	severity, severityName := ocsfSeverity(r, event)
	status, statusName := ocsfStatus(r.Outcome)
	id := r.ID.String()
	out := ocsfEvent{
		CategoryUID: ocsfCategory, CategoryName: "Application Activity", ClassUID: ocsfClass, ClassName: "API Activity",
		ActivityID: activity, ActivityName: activityName, TypeUID: ocsfClass*100 + activity,
		Time: r.Stamp.Time().UnixMilli(), SeverityID: severity, Severity: severityName,
		StatusID: status, Status: statusName, StatusCode: string(r.Outcome), StatusDetail: r.Why, Message: message(r),
		Metadata: ocsfMetadata{
			Version: ocsfVersion, Profiles: []string{"ai_operation", "record_integrity", "trace"}, Product: ocsfProduct{"Creto", "Creto"},
			UID: id, OriginalEventUID: id, EventCode: event, LogName: origin, LogProvider: "creto", LogFormat: "CBOR", Sequence: e.Index, TenantUID: r.Who.Tenant,
		},
		API:         ocsfAPI{Operation: r.What, Service: ocsfService{"creto"}, Request: ocsfRequest{id}, Response: ocsfResponse{Message: string(r.Outcome)}},
		SrcEndpoint: ocsfEndpoint{Name: cmp.Or(r.Stamp.Node, origin), InstanceUID: r.Sandbox},
		AttestationList: []ocsfAttestation{{UID: id, AuthorityUID: origin, ChainUID: origin, Fingerprint: ocsfFingerprint{
			AlgorithmID: ocsfOther, Algorithm: "RFC 6962 leaf hash, SHA-256", Value: leafHash(e), EncodingID: ocsfHex, Encoding: "Hex",
			SerializationID: ocsfOther, Serialization: "the Creto record in deterministic CBOR (RFC 8949)",
		}}},
		Unmapped: map[string]any{"creto": ocsfUnmapped(r)},
	}
	if status == ocsfFailure {
		out.API.Response.Error, out.API.Response.ErrorMessage = string(r.Outcome), r.Why
	}
	out.Actor, out.AIAgent = ocsfWho(r)
	if r.Resource != "" {
		kind, name, typed := strings.Cut(r.Resource, "::")
		if !typed {
			kind, name = "Resource", r.Resource
		}
		out.Resources = []ocsfResource{{UID: r.Resource, Name: name, Type: kind, RoleID: ocsfTarget, Role: "Target"}}
	}
	if t := traceOf(r.Trace); t.id != "" {
		out.Trace = &ocsfTrace{t.id}
	}
	if u := r.Usage; u != nil {
		out.MessageContext = &ocsfMessage{ocsfService{"creto"}, u.PromptTokens, u.CompletionTokens, u.PromptTokens + u.CompletionTokens}
	}
	return out
}

// ocsfWho is the human, or who else no human is behind, and the agent: it acts
// under the authority that the human delegated.
func ocsfWho(r audit.Record) (ocsfActor, *ocsfAIAgent) {
	user := func(id creto.ID, kind int, name string) *ocsfUser {
		return &ocsfUser{UID: id.String(), Name: id.Name, Domain: id.TrustDomain, TypeID: kind, Type: name}
	}
	var actor ocsfActor
	var agent *ocsfAIAgent
	switch r.Who.Kind {
	case creto.KindHuman:
		actor.User = user(r.Who, ocsfTypeUser, "User")
	case creto.KindAgent:
		agent = &ocsfAIAgent{UID: r.Who.String(), Name: r.Who.Name, InstanceUID: r.Sandbox, Type: "Unknown"}
		actor.AppUID, actor.AppName = agent.UID, agent.Name
	default:
		actor.User = user(r.Who, ocsfTypeService, "Service")
	}
	if !r.OnBehalfOf.IsZero() {
		actor.User = user(r.OnBehalfOf, ocsfTypeUser, "User")
	}
	if d := r.Decision; d != nil && d.Kind != "" {
		for _, p := range d.Policies {
			actor.Authorizations = append(actor.Authorizations, ocsfAuthorization{d.Kind, &ocsfPolicy{p.ID, p.Digest.String(), true}})
		}
		if len(d.Policies) == 0 {
			actor.Authorizations = []ocsfAuthorization{{Decision: d.Kind}}
		}
	}
	return actor, agent
}

// ocsfUnmapped is what OCSF has no attribute for, by the names of [Line].
func ocsfUnmapped(r audit.Record) map[string]any {
	out := map[string]any{"stamp": r.Stamp, "who": r.Who}
	set := func(name string, there bool, value any) {
		if there {
			out[name] = value
		}
	}
	set("on_behalf_of", !r.OnBehalfOf.IsZero(), r.OnBehalfOf)
	set("chain", !r.Chain.IsZero(), r.Chain)
	set("args", !r.Args.IsZero(), r.Args)
	set("decision", r.Decision != nil, r.Decision)
	set("consents", len(r.Consents) > 0, r.Consents)
	set("usage_estimated", r.Usage != nil && r.Usage.Estimated, true)
	set("isolation", r.Isolation != "", r.Isolation)
	set("trace", r.Trace != "", r.Trace)
	set("detail", len(r.Detail) > 0, r.Detail)
	set("signature_status", r.SignatureStatus != "", r.SignatureStatus)
	set("personal", len(r.Personal) > 0, r.Personal)
	if r.Signature != nil {
		out["signature"] = signatureOf(*r.Signature)
	}
	return out
}

// ocsfActivity says which of the four that OCSF knows something is.
func ocsfActivity(what string) (id int, name string) {
	for _, a := range []struct {
		id    int
		name  string
		parts []string
	}{
		{ocsfCreate, "Create", []string{"_added", "_issued", "_spawned", "_linked", "_requested", "_asked", "spawn_", "node_started"}},
		{ocsfDelete, "Delete", []string{"_removed", "_revoked", "_erased", "_terminated", "_unlinked", "_left", "_expired"}},
		{ocsfUpdate, "Update", []string{"_changed", "_rotated", "secret_set", "write_", "_sealed", "_consumed"}},
		{ocsfRead, "Read", []string{"access_", "read_"}},
	} {
		for _, part := range a.parts {
			if strings.HasSuffix(what, part) || strings.HasPrefix(what, part) && strings.HasSuffix(part, "_") {
				return a.id, a.name
			}
		}
	}
	return ocsfOther, cmp.Or(what, "Other")
}

// ocsfSeverity is how much somebody should care.
func ocsfSeverity(r audit.Record, event string) (id int, name string) {
	switch {
	case event == audit.EventSplitView:
		return ocsfCritical, "Critical"
	case event == audit.EventPasskeyCloned, event == audit.EventAuditGap, r.SignatureStatus == "invalid":
		return ocsfHigh, "High"
	case r.Outcome == audit.Denied:
		return ocsfMedium, "Medium"
	case r.Outcome == audit.Success:
		return ocsfInformational, "Informational"
	}
	return ocsfLow, "Low"
}

func ocsfStatus(o audit.Outcome) (id int, name string) {
	switch o {
	case audit.Success:
		return ocsfSuccess, "Success"
	case audit.Failure, audit.Denied, audit.Timeout:
		return ocsfFailure, "Failure"
	}
	return 0, "Unknown"
}

// message is the record in a few words.
func message(r audit.Record) string {
	text := r.Who.Name
	if !r.OnBehalfOf.IsZero() {
		text += " (for " + r.OnBehalfOf.Name + ")"
	}
	return text + ": " + r.What + " " + r.Resource + ": " + string(r.Outcome)
}
