package export

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	collectorlogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
)

// maxRequestBytes bounds a request before it is compressed: collectors refuse
// more than some megabytes.
const maxRequestBytes = 3 << 20

// maxAnswerBytes bounds an answer.
const maxAnswerBytes = 1 << 20

// otlpTimeout bounds one request (the default of OTLP exporters).
const otlpTimeout = 10 * time.Second

// scopeName is the instrumentation scope of the records.
const scopeName = "creto.dev/audit/export"

// collector is an endpoint of OTLP/HTTP.
type collector struct {
	origin  string
	url     string
	headers map[string]creto.Secret
	client  *http.Client
}

// NewCollector returns a destination that speaks OTLP/HTTP with protobuf to a
// collector: endpoint is its base URL, to which v1/logs is added, or the whole
// where its path ends so. Headers go with every request and to no other server:
// redirects are not followed. Delivery is at least once.
//
// Errors: InvalidArgument (Permanent) for a URL that is wrong, or is in clear
// beyond this machine. Of Write: Unavailable (Degraded) if the collector cannot
// be reached or asks for patience, with how long; FailedPrecondition (Permanent)
// if it refuses.
func NewCollector(origin, endpoint string, headers map[string]creto.Secret) (Destination, error) {
	const op fault.Op = "export.NewCollector"
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fault.New(op, fault.InvalidArgument, "the collector is given as https://HOST, and credentials as headers")
	}
	if u.Scheme == "http" && !onThisMachine(u.Hostname()) {
		return nil, fault.New(op, fault.InvalidArgument, "records are not sent in clear beyond this machine: give the collector %s as https://", u.Host)
	}
	if !strings.HasSuffix(u.Path, "/v1/logs") {
		u = u.JoinPath("v1", "logs")
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConns: 2, IdleConnTimeout: time.Minute,
		TLSHandshakeTimeout: otlpTimeout, DialContext: (&net.Dialer{Timeout: otlpTimeout}).DialContext,
	}
	return &collector{
		origin: origin, url: u.String(), headers: headers,
		client: &http.Client{Timeout: otlpTimeout, Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}, nil
}

func onThisMachine(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// Write implements Destination.
func (c *collector) Write(ctx context.Context, batch []audit.Entry) (refused int64, err error) {
	var records []*logspb.LogRecord
	size := 0
	send := func() error {
		n, err := c.send(ctx, records)
		refused += n
		records, size = nil, 0
		return err
	}
	for _, e := range batch {
		r, err := logRecord(c.origin, e)
		if err != nil {
			return refused, err
		}
		n := proto.Size(r)
		if size+n > maxRequestBytes && len(records) > 0 {
			if err := send(); err != nil {
				return refused, err
			}
		}
		records, size = append(records, r), size+n
	}
	return refused, send()
}

// Close implements Destination.
func (c *collector) Close() error {
	c.client.CloseIdleConnections()
	return nil
}

// send makes one request.
func (c *collector) send(ctx context.Context, records []*logspb.LogRecord) (refused int64, err error) {
	const op fault.Op = "export.send"
	body, err := proto.Marshal(&collectorlogs.ExportLogsServiceRequest{ResourceLogs: []*logspb.ResourceLogs{{
		Resource:  &resourcepb.Resource{Attributes: []*commonpb.KeyValue{text("service.name", "creto"), text("creto.log", c.origin)}},
		ScopeLogs: []*logspb.ScopeLogs{{Scope: &commonpb.InstrumentationScope{Name: scopeName}, LogRecords: records}},
	}}})
	if err != nil {
		return 0, fault.WrapAs(op, fault.Internal, err, "")
	}
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	if _, err := zip.Write(body); err != nil {
		return 0, fault.Wrap(op, err)
	}
	if err := zip.Close(); err != nil {
		return 0, fault.Wrap(op, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, &packed)
	if err != nil {
		return 0, fault.Wrap(op, err)
	}
	for name, value := range c.headers {
		request.Header.Set(name, value.Reveal())
	}
	request.Header.Set("Content-Type", "application/x-protobuf")
	request.Header.Set("Content-Encoding", "gzip")
	response, err := c.client.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return 0, fault.Wrap(op, ctx.Err())
		}
		return 0, fault.WrapAs(op, fault.Unavailable, err, "the collector %s cannot be reached", request.URL.Host)
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	if err != nil {
		return 0, fault.WrapAs(op, fault.Unavailable, err, "the answer of the collector %s broke off", request.URL.Host)
	}
	return judge(request.URL.Host, response, answer)
}

// judge says what an answer means (OTLP 1.9, "OTLP/HTTP Response").
func judge(host string, response *http.Response, answer []byte) (refused int64, err error) {
	const op fault.Op = "export.judge"
	switch response.StatusCode {
	case http.StatusOK, http.StatusAccepted, http.StatusNoContent:
		var out collectorlogs.ExportLogsServiceResponse
		if err := proto.Unmarshal(answer, &out); err != nil {
			// Whoever says yes in another language said yes.
			return 0, nil //nolint:nilerr // as above
		}
		return out.GetPartialSuccess().GetRejectedLogRecords(), nil
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		err := fault.New(op, fault.Unavailable, "the collector %s answers %d for now", host, response.StatusCode)
		if wait := retryAfter(response.Header); wait > 0 {
			err = fault.After(err, wait)
		}
		return 0, err
	case http.StatusUnauthorized, http.StatusForbidden:
		return 0, fault.New(op, fault.FailedPrecondition, "the collector %s does not accept the credentials in the headers (%d)", host, response.StatusCode)
	}
	return 0, fault.New(op, fault.FailedPrecondition, "the collector %s answers %d; is it OTLP/HTTP at this address?", host, response.StatusCode)
}

// retryAfter reads how long to wait: seconds, or a date (RFC 9110, section
// 10.2.3), which is compared with the server's own clock.
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	at, atErr := http.ParseTime(text)
	now, nowErr := http.ParseTime(h.Get("Date"))
	if errors.Join(atErr, nowErr) != nil {
		return 0
	}
	return max(0, at.Sub(now))
}

// logRecord returns an entry as a record of OpenTelemetry's: attributes to search
// by, and the line of JSON as its body.
func logRecord(origin string, e audit.Entry) (*logspb.LogRecord, error) {
	r := e.Record
	body, err := json.Marshal(line(origin, e))
	if err != nil {
		return nil, fault.WrapAs("export.logRecord", fault.Internal, err, "the record at %d cannot be encoded", e.Index)
	}
	severity, word := severityOf(r)
	at := uint64(max(0, r.Stamp.Physical))
	out := &logspb.LogRecord{
		TimeUnixNano: at, ObservedTimeUnixNano: at, SeverityNumber: severity, SeverityText: word,
		EventName: valid(eventPrefix + r.Event()), Body: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: valid(string(body))}},
		Attributes: []*commonpb.KeyValue{
			integer("creto.index", e.Index), text("creto.leaf_hash", leafHash(e)), text("creto.record.id", r.ID.String()), text("creto.tenant", r.Who.Tenant),
			text("creto.who", r.Who.String()), text("creto.what", r.What), text("creto.outcome", string(r.Outcome)),
		},
	}
	for _, optional := range []struct{ key, value string }{
		{"creto.resource", r.Resource}, {"creto.why", r.Why}, {"creto.sandbox", r.Sandbox}, {"creto.node", r.Stamp.Node},
	} {
		if optional.value != "" {
			out.Attributes = append(out.Attributes, text(optional.key, optional.value))
		}
	}
	if !r.OnBehalfOf.IsZero() {
		out.Attributes = append(out.Attributes, text("creto.on_behalf_of", r.OnBehalfOf.String()))
	}
	if r.Decision != nil {
		out.Attributes = append(out.Attributes, text("creto.decision", r.Decision.Kind))
	}
	if u := r.Usage; u != nil {
		out.Attributes = append(out.Attributes, integer("gen_ai.usage.input_tokens", u.PromptTokens), integer("gen_ai.usage.output_tokens", u.CompletionTokens))
	}
	t := traceOf(r.Trace)
	id, idErr := hex.DecodeString(t.id)
	span, spanErr := hex.DecodeString(t.span)
	if errors.Join(idErr, spanErr) == nil && len(id) > 0 {
		out.TraceId = id
		if len(span) > 0 {
			out.SpanId = span
		}
		if flags, err := strconv.ParseUint(t.flags, 16, 8); err == nil {
			out.Flags = uint32(flags)
		}
	}
	return out, nil
}

func severityOf(r audit.Record) (logspb.SeverityNumber, string) {
	switch id, _ := ocsfSeverity(r, r.Event()); {
	case id >= ocsfHigh:
		return logspb.SeverityNumber_SEVERITY_NUMBER_ERROR, "ERROR"
	case id > ocsfInformational:
		return logspb.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
	}
	return logspb.SeverityNumber_SEVERITY_NUMBER_INFO, "INFO"
}

func text(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: valid(value)}}}
}

func integer(key string, value int64) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: value}}}
}

// valid returns s as UTF-8, which protobuf insists on.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
