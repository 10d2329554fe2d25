package node

import (
	"context"
	"maps"
	"net/url"
	"slices"
	"strconv"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/telemetry"
	"creto.dev/internal/otlp"
	"creto.dev/internal/wire"
)

// TelemetryConfig is where spans and measurements go: nowhere without an Endpoint.
type TelemetryConfig struct {
	// Endpoint is a collector's base URL, which speaks OTLP/HTTP with protobuf, as
	// https://HOST; http only on this machine.
	Endpoint string `toml:"endpoint"`
	// Headers are sent to it.
	Headers map[string]creto.Secret `toml:"headers"`
	// SampleRatio is the share of traces that begin at this node and are sent, from
	// 0, measurements alone, to 1. A caller that sends a traceparent decides for its
	// own.
	SampleRatio float64 `toml:"sample_ratio"`
}

func (c TelemetryConfig) otlp() otlp.Config {
	return otlp.Config{Endpoint: c.Endpoint, Headers: c.Headers, SampleRatio: c.SampleRatio}
}

// openTelemetry opens the way to the collector, if there is one.
func (n *Node) openTelemetry(ctx context.Context) error {
	const op fault.Op = "node.openTelemetry"
	cfg := n.options.Config
	if cfg.Telemetry.Endpoint == "" {
		return nil
	}
	to := cfg.Telemetry.otlp()
	to.Version, to.Instance = n.options.Version, nodeName()
	pipeline, err := otlp.Open(ctx, to, n.options.Log)
	if err != nil {
		return fault.Wrap(op, err)
	}
	n.onClose(func() error { //nolint:contextcheck // what began is ended when ctx is over too
		_ = pipeline.Close() // what is lost then was said to be, and stops nothing
		return nil
	})
	places := make(map[string]telemetry.Place, len(cfg.Inference.Providers))
	for _, p := range cfg.Inference.Providers {
		places[p.Name] = p.place()
	}
	n.telemetry, n.tracing = pipeline, wire.Tracing{Tracer: pipeline.Tracer, Meter: pipeline.Meter}
	n.calls, err = telemetry.New(pipeline.Tracer, pipeline.Meter, places)
	return fault.Wrap(op, err)
}

// tracedModel returns m, whose calls are spans if there is telemetry.
func (n *Node) tracedModel(m inference.Model) inference.Model {
	if n.calls == nil {
		return m
	}
	return n.calls.Provider(m)
}

// tracedRouter is tracedModel for the router.
func (n *Node) tracedRouter(r inference.Router) inference.Router {
	if n.calls == nil {
		return r
	}
	return n.calls.Router(r)
}

// systems are the names of OpenTelemetry's conventions for kinds of providers
// (gen_ai.provider.name). Ollama has none there.
func systems() map[string]string {
	return map[string]string{
		"": "openai", ProviderOpenAI: "openai", ProviderAnthropic: "anthropic", ProviderAzure: "azure.ai.openai",
		ProviderBedrock: "aws.bedrock", ProviderVertex: "gcp.vertex_ai", ProviderOllama: "ollama",
	}
}

// place returns what spans say of a provider.
func (p ProviderConfig) place() telemetry.Place {
	at := telemetry.Place{System: systems()[p.Kind]}
	u, err := url.Parse(p.BaseURL)
	if err != nil || u.Hostname() == "" {
		return at // the address of a region is not configured
	}
	at.Address = u.Hostname()
	if at.Port, err = strconv.Atoi(u.Port()); err != nil {
		at.Port = map[string]int{"http": 80}[u.Scheme]
		if at.Port == 0 {
			at.Port = 443
		}
	}
	return at
}

func (k *configChecker) telemetry(c TelemetryConfig) {
	if c.Endpoint == "" {
		c.Endpoint = "https://collector.example" // the rest is checked all the same
	}
	problems := c.otlp().Problems()
	for _, key := range slices.Sorted(maps.Keys(problems)) {
		k.addf("telemetry."+key, "%s", problems[key])
	}
}
