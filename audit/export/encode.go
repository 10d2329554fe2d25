package export

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/pqc"
)

// Format is what a record is exported as.
type Format string

// The formats.
const (
	// JSONLines is a line of JSON for each record: [Line].
	JSONLines Format = "jsonl"
	// CloudEvents is a line with a CloudEvents 1.0 event in structured mode.
	CloudEvents Format = "cloudevents"
	// OCSF is a line with an API Activity event of OCSF 1.9.
	OCSF Format = "ocsf"
	// OTLP is OpenTelemetry's protocol, for a collector.
	OTLP Format = "otlp"
)

// Formats are all of them.
func Formats() []Format { return []Format{JSONLines, CloudEvents, OCSF, OTLP} }

// Line is a record as a line of JSON. Fields are added to it and never change
// their meaning. In record a field that is not there, an empty text and a digest of
// zeros say the same: nothing.
type Line struct {
	// Log is the origin of the log, as in its checkpoints.
	Log string `json:"log"`
	// Index is the leaf's index in the log's tree, from 0.
	Index int64 `json:"index"`
	// LeafHash is the leaf's RFC 6962 hash, in lower-case hexadecimal.
	LeafHash string `json:"leaf_hash"`
	// Event is what the record is called: record.what, or what an action's outcome
	// makes of it, such as authz_denied.
	Event string `json:"event"`
	// Time is the physical part of the record's stamp, RFC 3339 in UTC.
	Time time.Time `json:"time"`
	// Record is the record; its Signature is beside it.
	Record    audit.Record   `json:"record"`
	Signature *LineSignature `json:"signature,omitempty"`
}

// LineSignature is an actor's own signature of its record.
type LineSignature struct {
	Algorithm string `json:"algorithm"`
	Key       string `json:"key"`
	Bytes     []byte `json:"bytes"` // base64
}

// eventPrefix begins the names of our events among those of others.
const eventPrefix = "dev.creto.audit."

// line returns e as a line's content.
func line(origin string, e audit.Entry) Line {
	l := Line{Log: origin, Index: e.Index, LeafHash: leafHash(e), Event: e.Record.Event(), Time: e.Record.Stamp.Time(), Record: e.Record}
	if s := e.Record.Signature; s != nil {
		l.Signature = signatureOf(*s)
	}
	return l
}

func signatureOf(s pqc.Signature) *LineSignature {
	return &LineSignature{Algorithm: string(s.Algorithm), Key: string(s.Key), Bytes: s.Bytes}
}

// leafHash returns the hash by which the tree knows e.
func leafHash(e audit.Entry) string {
	h := audit.LeafHash(e.Leaf)
	return hex.EncodeToString(h[:])
}

// cloudEvent is a CloudEvents 1.0 event (the JSON format, section 3), with the
// extensions Sequence and Distributed Tracing.
type cloudEvent struct {
	SpecVersion     string    `json:"specversion"`
	ID              string    `json:"id"`
	Source          string    `json:"source"`
	Type            string    `json:"type"`
	Time            time.Time `json:"time"`
	Subject         string    `json:"subject,omitempty"`
	DataContentType string    `json:"datacontenttype"`
	Sequence        string    `json:"sequence"` // orders by text
	TraceParent     string    `json:"traceparent,omitempty"`
	Data            Line      `json:"data"`
}

func cloudEventOf(origin string, e audit.Entry) cloudEvent {
	c := cloudEvent{
		SpecVersion: "1.0", ID: e.Record.ID.String(), Source: origin, Type: printable(eventPrefix + e.Record.Event()), Time: e.Record.Stamp.Time(),
		Subject: printable(e.Record.Resource), DataContentType: "application/json", Sequence: fmt.Sprintf("%020d", e.Index), Data: line(origin, e),
	}
	if t := traceOf(e.Record.Trace); t.span != "" {
		c.TraceParent = "00-" + t.id + "-" + t.span + "-" + t.flags
	}
	return c
}

// printable returns s without control characters, which attributes may not have
// (CloudEvents 1.0, section 3.1). The record in data has it as it was.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return utf8.RuneError
		}
		return r
	}, s)
}

// EncodeLine returns an entry of the log of that origin as one line, without its
// end. Text that is not UTF-8 is made so.
//
// Errors: InvalidArgument (Permanent) for a format that has no lines; Internal
// (Permanent) for a record that cannot be, which no log has.
func (f Format) EncodeLine(origin string, e audit.Entry) ([]byte, error) {
	const op fault.Op = "export.EncodeLine"
	var v any
	switch f {
	case JSONLines:
		v = line(origin, e)
	case CloudEvents:
		v = cloudEventOf(origin, e)
	case OCSF:
		v = ocsfOf(origin, e)
	default:
		return nil, fault.New(op, fault.InvalidArgument, "%q is no format of lines", f)
	}
	data, err := json.Marshal(v)
	return data, fault.WrapAs(op, fault.Internal, err, "the record at %d cannot be encoded", e.Index)
}

// trace is what a record says of the W3C trace it belongs to.
type trace struct{ id, span, flags string } // hexadecimal; span and flags may be ""

var (
	traceID     = regexp.MustCompile(`^[0-9a-f]{32}$`)
	traceParent = regexp.MustCompile(`^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$`)
)

// traceOf reads a trace id or a traceparent; anything else is none.
func traceOf(text string) trace {
	var t trace
	if traceID.MatchString(text) {
		t.id = text
	} else if m := traceParent.FindStringSubmatch(text); m != nil {
		t = trace{m[1], m[2], m[3]}
	}
	if strings.Trim(t.id, "0") == "" || t.span != "" && strings.Trim(t.span, "0") == "" {
		return trace{} // all zeros are not valid
	}
	return t
}
