package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"
	"unsafe"

	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/localinference"
)

// reachable walks everything that v leads to, unexported fields and all, and returns
// the transports, and the texts that hold part.
func reachable(v reflect.Value, part string) (transports []*http.Transport, texts []string) {
	type visit struct {
		at   unsafe.Pointer
		kind reflect.Type
	}
	seen := map[visit]bool{}
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if v.IsNil() || seen[visit{v.UnsafePointer(), v.Type()}] {
				return
			}
			seen[visit{v.UnsafePointer(), v.Type()}] = true
			if v.Type() == reflect.TypeFor[*http.Transport]() {
				transports = append(transports, (*http.Transport)(v.UnsafePointer()))
			}
			walk(v.Elem())
		case reflect.Interface:
			if !v.IsNil() {
				walk(v.Elem())
			}
		case reflect.Struct:
			for i := range v.NumField() {
				walk(v.Field(i))
			}
		case reflect.Slice, reflect.Array:
			for i := range v.Len() {
				walk(v.Index(i))
			}
		case reflect.Map:
			for it := v.MapRange(); it.Next(); {
				walk(it.Key())
				walk(it.Value())
			}
		case reflect.String:
			if strings.Contains(v.String(), part) {
				texts = append(texts, v.String())
			}
		}
	}
	walk(v)
	return transports, texts
}

// With local_only nothing that the router leads to knows a host of the cloud, or
// connects to one when it is asked to (R-INF-28).
func TestLocalOnlyHasNoDialer(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://proxy.example:3128")
	local := httptest.NewServer(http.NotFoundHandler())
	defer local.Close()
	address, err := url.Parse(local.URL)
	if err != nil {
		t.Fatal(err)
	}
	open := func(s localinference.Strategy) *Node {
		cfg := Default()
		cfg.Inference.Strategy = s
		cfg.Inference.Providers = []ProviderConfig{
			{Name: "cloud", BaseURL: "https://cloud.example/v1"},
			{Name: "here", BaseURL: local.URL + "/v1", Local: true},
		}
		cfg.Inference.Routes = []localinference.Route{{Models: []string{"m"}, Targets: []localinference.Target{{Provider: "cloud"}, {Provider: "here"}}}}
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		n := &Node{options: Options{Config: cfg, Log: slog.New(slog.DiscardHandler)}}
		if err := n.openModels(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close() })
		return n
	}
	// The walk finds what is there.
	if transports, texts := reachable(reflect.ValueOf(open(localinference.CloudFirst).models), "cloud.example"); len(transports) != 2 || len(texts) == 0 {
		t.Fatalf("found %d transports and %q", len(transports), texts)
	}
	n := open(localinference.LocalOnly)
	transports, texts := reachable(reflect.ValueOf(n.models), "cloud.example")
	if len(transports) != 1 || len(texts) > 0 {
		t.Fatalf("found %d transports and %q", len(transports), texts)
	}
	transport := transports[0]
	if transport.Proxy != nil || transport.Dial != nil || transport.DialTLS != nil || transport.DialTLSContext != nil { //nolint:staticcheck // the deprecated ones would be used too
		t.Error("the local provider's transport has another way out")
	}
	for _, to := range []string{"cloud.example:443", "cloud.example:80", address.Hostname() + ":1", "127.0.0.2:" + address.Port(), "1.1.1.1:443", "[::1]:" + address.Port(), "x"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		c, err := transport.DialContext(ctx, "tcp", to)
		cancel()
		if !errors.Is(err, fault.PermissionDenied) {
			t.Errorf("dialling %s: %v, %v", to, c, err)
		}
	}
	c, err := transport.DialContext(t.Context(), "tcp", net.JoinHostPort(address.Hostname(), address.Port()))
	if err != nil {
		t.Fatalf("the local provider cannot be reached: %v", err)
	}
	_ = c.Close()
	if models := n.models.Providers(); len(models) != 1 || models[0].ID() != "here" {
		t.Errorf("providers are %v", models)
	}
	e := n.models.Explain(inference.Request{Model: "m"})
	if len(e.Choices) != 2 || e.Choices[0].Provider != "here" || e.Choices[1].Skipped == "" {
		t.Errorf("Explain = %+v", e)
	}
}

func TestRefusesRouting(t *testing.T) {
	for _, test := range []struct {
		key, text string
		change    func(*InferenceConfig)
	}{
		{"inference.strategy", "needs a provider", func(c *InferenceConfig) { c.Strategy = localinference.LocalOnly }},
		{"inference.strategy", "is not one of", func(c *InferenceConfig) { c.Strategy = "cloudfirst" }},
		{"inference.routes[0].targets[0].provider", "no provider's name", func(c *InferenceConfig) {
			c.Routes = []localinference.Route{{Targets: []localinference.Target{{Provider: "q"}}}}
		}},
		{"inference.prices[0].provider", "no provider's name", func(c *InferenceConfig) { c.Prices = []localinference.Price{{Provider: "q", Model: "m", Input: "1"}} }},
		{"inference.providers[0].local", "somebody else's", func(c *InferenceConfig) {
			c.Providers[0].Kind, c.Providers[0].Local = ProviderAzure, true
		}},
		{"inference.providers[0].concurrency", "outside", func(c *InferenceConfig) { c.Providers[0].Concurrency = -1 }},
		{"inference.providers[0].classifications", "no classification", func(c *InferenceConfig) { c.Providers[0].Classifications = []inference.Classification{"Top Secret"} }},
		{"inference.attempt_timeout", "outside", func(c *InferenceConfig) { c.AttemptTimeout = 1 }},
	} {
		cfg := Default()
		cfg.Inference.Providers = []ProviderConfig{{Name: "p", BaseURL: "https://p.example/v1"}}
		test.change(&cfg.Inference)
		if err := cfg.Validate(); !errors.Is(err, fault.InvalidArgument) || !strings.Contains(fault.Message(err), test.key+": ") || !strings.Contains(fault.Message(err), test.text) {
			t.Errorf("%s: %v", test.key, err)
		}
	}
}
