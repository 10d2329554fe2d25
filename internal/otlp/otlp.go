// Package otlp sends spans and measurements to a collector, over OTLP/HTTP with
// protobuf. It is OpenTelemetry's own SDK and exporters, which are told everything
// here: of the variables of the environment that they read otherwise (OTEL_…) only
// OTEL_RESOURCE_ATTRIBUTES counts, whose attributes are added to this node's.
//
// What a collector does not take is lost: spans are for finding faults, and nobody
// waits for them. What must not be lost is in the audit log.
package otlp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/exemplar"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/health"
	"creto.dev/internal/logkey"
)

const (
	// exportTimeout bounds one request (the default of OTLP exporters).
	exportTimeout = 10 * time.Second
	// closeTimeout bounds how long Close waits for what is not sent yet.
	closeTimeout = 5 * time.Second
	// gather is how long spans are gathered into one request, and measure how often
	// measurements are sent (the defaults of the SDK).
	gather  = 5 * time.Second
	measure = time.Minute
	// maxWaiting spans wait at most; what comes then is lost.
	maxWaiting, maxBatch = 2048, 512
	// maxSeries bounds the combinations of attributes of one instrument; what is
	// beyond is summed up in one.
	maxSeries = 1000
	// maxValueBytes bounds the text in one attribute of a span.
	maxValueBytes = 1024
	// maxAnswerBytes bounds an answer.
	maxAnswerBytes = 1 << 20
)

// Config says where telemetry goes.
type Config struct {
	// Endpoint is the collector's base URL, to which v1/traces and v1/metrics are
	// added. In clear only on this machine. Required.
	Endpoint string
	// Headers go with every request, and to no other server: redirects are not
	// followed.
	Headers map[string]creto.Secret
	// SampleRatio is the share of traces that begin here and are sent, from 0 to 1.
	// Of one that began elsewhere its beginner decided.
	SampleRatio float64
	// Version and Instance are those of this process.
	Version, Instance string
}

// Problems returns what is wrong with c, by key.
func (c Config) Problems() map[string]string {
	found := map[string]string{}
	u, err := url.Parse(c.Endpoint)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http":
		found["endpoint"] = "it is not of the form https://HOST; credentials are headers"
	case u.Scheme == "http" && !onThisMachine(u.Hostname()):
		found["endpoint"] = "nothing is sent in clear beyond this machine; use https"
	}
	for name, value := range c.Headers {
		if name == "" || strings.ContainsAny(name+value.Reveal(), "\r\n\x00") {
			found["headers"] = "one has no name, or holds a line break"
		}
	}
	if !(c.SampleRatio >= 0 && c.SampleRatio <= 1) {
		found["sample_ratio"] = "it is outside 0 to 1"
	}
	return found
}

func onThisMachine(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// Pipeline takes spans and measurements, and sends them. Safe for concurrent use.
type Pipeline struct {
	// Tracer and Meter are what instruments are made of.
	Tracer *trace.TracerProvider
	Meter  *metric.MeterProvider

	host   string
	client *http.Client
	log    *slog.Logger
	// Whether spans and measurements were not taken when they were last sent.
	spansLost, measurementsLost atomic.Bool
}

// Open returns a pipeline. It connects when there is something to send, with the
// goroutines of the SDK, which Close ends. The log hears when the collector stops
// taking what it is sent, and when it takes it again.
//
// Errors: InvalidArgument (Permanent).
func Open(ctx context.Context, c Config, log *slog.Logger) (*Pipeline, error) {
	const op fault.Op = "otlp.Open"
	for key, text := range c.Problems() {
		return nil, fault.New(op, fault.InvalidArgument, "%s: %s", key, text)
	}
	base, err := url.Parse(c.Endpoint)
	if err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "endpoint: not an address")
	}
	headers := make(map[string]string, len(c.Headers))
	for name, value := range c.Headers {
		headers[name] = value.Reveal()
	}
	p := &Pipeline{host: base.Host, log: log.With(slog.String(logkey.Component, "telemetry")), client: &http.Client{
		Timeout: exportTimeout,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConns: 2, IdleConnTimeout: 2 * time.Minute,
			TLSHandshakeTimeout: exportTimeout, DialContext: (&net.Dialer{Timeout: exportTimeout}).DialContext,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	spans, err := otlptracehttp.New(ctx,
		otlptracehttp.WithEndpointURL(base.JoinPath("v1", "traces").String()), otlptracehttp.WithHeaders(headers),
		otlptracehttp.WithEncoding(otlptracehttp.EncodingProtobuf), otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
		otlptracehttp.WithHTTPClient(p.client), otlptracehttp.WithTimeout(exportTimeout), otlptracehttp.WithMaxResponseSize(maxAnswerBytes),
	)
	if err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "the collector cannot be used")
	}
	measurements, err := otlpmetrichttp.New(ctx,
		otlpmetrichttp.WithEndpointURL(base.JoinPath("v1", "metrics").String()), otlpmetrichttp.WithHeaders(headers),
		otlpmetrichttp.WithCompression(otlpmetrichttp.GzipCompression), otlpmetrichttp.WithHTTPClient(p.client),
		otlpmetrichttp.WithTimeout(exportTimeout), otlpmetrichttp.WithMaxResponseSize(maxAnswerBytes),
		otlpmetrichttp.WithTemporalitySelector(metric.DefaultTemporalitySelector), otlpmetrichttp.WithAggregationSelector(metric.DefaultAggregationSelector),
	)
	if err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "the collector cannot be used")
	}
	about := resource.NewWithAttributes(semconv.SchemaURL,
		semconv.ServiceName("creto"), semconv.ServiceVersion(c.Version), semconv.ServiceInstanceID(c.Instance),
	)
	limits := trace.NewSpanLimits()
	limits.AttributeValueLengthLimit = maxValueBytes
	p.Tracer = trace.NewTracerProvider(
		trace.WithResource(about), trace.WithRawSpanLimits(limits),
		trace.WithSampler(trace.ParentBased(trace.TraceIDRatioBased(c.SampleRatio))),
		trace.WithBatcher(heardSpans{spans, p},
			trace.WithMaxQueueSize(maxWaiting), trace.WithMaxExportBatchSize(maxBatch), trace.WithBatchTimeout(gather), trace.WithExportTimeout(exportTimeout)),
	)
	p.Meter = metric.NewMeterProvider(
		metric.WithResource(about), metric.WithCardinalityLimit(maxSeries), metric.WithExemplarFilter(exemplar.AlwaysOffFilter),
		metric.WithReader(metric.NewPeriodicReader(heardMeasurements{measurements, p}, metric.WithInterval(measure), metric.WithTimeout(exportTimeout))),
	)
	return p, nil
}

// Close sends what is not sent yet, for some seconds, and ends everything.
func (p *Pipeline) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := errors.Join(p.Tracer.Shutdown(ctx), p.Meter.Shutdown(ctx))
	p.client.CloseIdleConnections()
	return fault.WrapAs("otlp.Close", fault.Unavailable, err, "not everything reached the collector %s", p.host)
}

// Status is degraded while the collector does not take what it is sent.
func (p *Pipeline) Status() health.Status {
	if p.spansLost.Load() || p.measurementsLost.Load() {
		return health.Status{State: health.Degraded, Reason: "the collector " + p.host + " does not take telemetry, which is lost"}
	}
	return health.Status{State: health.Healthy}
}

// heard notes what came of sending, and says so where that is news. The SDK, which
// would write each failure to the standard error, hears of none.
func (p *Pipeline) heard(ctx context.Context, lost *atomic.Bool, what string, err error) {
	switch {
	case err != nil && lost.CompareAndSwap(false, true):
		p.log.LogAttrs(ctx, slog.LevelWarn, "the collector does not take telemetry, which is lost", slog.String(logkey.Check, what), slog.String(logkey.Error, bounded(err.Error())))
	case err == nil && lost.CompareAndSwap(true, false):
		p.log.LogAttrs(ctx, slog.LevelInfo, "the collector takes telemetry again", slog.String(logkey.Check, what))
	}
}

// bounded cuts a text in which a collector may quote itself at length.
func bounded(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxValueBytes)], "\uFFFD")
}

// heardSpans is an exporter whose failures the pipeline hears of.
type heardSpans struct {
	trace.SpanExporter
	pipeline *Pipeline
}

// ExportSpans implements trace.SpanExporter.
func (h heardSpans) ExportSpans(ctx context.Context, spans []trace.ReadOnlySpan) error {
	h.pipeline.heard(ctx, &h.pipeline.spansLost, "spans", h.SpanExporter.ExportSpans(ctx, spans))
	return nil
}

// heardMeasurements is an exporter whose failures the pipeline hears of.
type heardMeasurements struct {
	metric.Exporter
	pipeline *Pipeline
}

// Export implements metric.Exporter.
func (h heardMeasurements) Export(ctx context.Context, m *metricdata.ResourceMetrics) error {
	h.pipeline.heard(ctx, &h.pipeline.measurementsLost, "measurements", h.Exporter.Export(ctx, m))
	return nil
}
