package provider_test

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"creto.dev/fault"
	"creto.dev/inference/provider"
)

// A body of many tiny values is refused before it is decoded, at no more cost
// than its own size.
func TestManyValues(t *testing.T) {
	for name, body := range map[string][]byte{
		"messages": append(append([]byte(`{"model":"m","messages":[{}`), bytes.Repeat([]byte(",{}"), 1<<20)...), "]}"...),
		"parts":    append(append([]byte(`{"model":"m","messages":[{"role":"user","content":[0`), bytes.Repeat([]byte(",0"), 1<<20)...), "]}]}"...),
		"nesting":  bytes.Repeat([]byte("["), 1<<21),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := provider.DecodeOpenAIRequest(body)
		_, _, err2 := provider.DecodeAnthropicRequest(body)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, fault.InvalidArgument) || !errors.Is(err2, fault.InvalidArgument) {
			t.Errorf("%s: %v, %v, want InvalidArgument", name, err, err2)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > uint64(len(body)) {
			t.Errorf("%s: refusing %d bytes took %d bytes of memory", name, len(body), used)
		}
	}
	// Commas and brackets in text are text.
	long := append(append([]byte(`{"model":"m","messages":[{"role":"user","content":"\\\"`), bytes.Repeat([]byte(",[{:"), 1<<18)...), `"}]}`...)
	if _, _, err := provider.DecodeOpenAIRequest(long); err != nil {
		t.Errorf("a long text: %v", err)
	}
	if _, _, err := provider.DecodeAnthropicRequest(long); err != nil {
		t.Errorf("a long text for Anthropic: %v", err)
	}
}
