package inference_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
)

func TestValidate(t *testing.T) {
	if err := inferencetest.Ask("x").Validate(); err != nil {
		t.Fatalf("Validate = %v", err)
	}
	for name, change := range map[string]func(*inference.Request){
		"model: ":               func(r *inference.Request) { r.Model = "" },
		"model: a name of":      func(r *inference.Request) { r.Model = strings.Repeat("x", 513) },
		"messages: at least":    func(r *inference.Request) { r.Messages = nil },
		"messages[0].role":      func(r *inference.Request) { r.Messages[0].Role = "" },
		"max_tokens: -1":        func(r *inference.Request) { r.MaxTokens = -1 },
		"max_tokens: 214748364": func(r *inference.Request) { r.MaxTokens = 1 << 31 },
		"messages[0].content": func(r *inference.Request) {
			r.Messages[0].Content = []inference.Part{{Text: "a"}, {Type: "text", Text: "b"}}
		},
	} {
		r := inferencetest.Ask("x")
		change(&r)
		if err := r.Validate(); !errors.Is(err, fault.InvalidArgument) || !strings.HasPrefix(fault.Message(err), name) {
			t.Errorf("%s: Validate = %v", name, err)
		}
	}
	for text, ok := range map[string]bool{
		"0": true, "0.7": true, "-1": true, "1e-2": true, "": true,
		"NaN": false, "Infinity": false, ".5": false, "1.": false, "01": false, "0x1": false, " 1": false, "1 ": false, "\"1\"": false,
		strings.Repeat("1", 33): false,
	} {
		r := inferencetest.Ask("x")
		r.Temperature = text
		if err := r.Validate(); (err == nil) != ok {
			t.Errorf("temperature %q: Validate = %v, want ok %v", text, err, ok)
		}
	}
}

func TestText(t *testing.T) {
	r := inferencetest.Ask("x")
	r.Messages = append(r.Messages,
		inference.Message{Role: inference.RoleSystem, Content: inference.Text("be brief")},
		inference.Message{Role: inference.RoleDeveloper, Content: []inference.Part{{Type: "text", Text: "be "}, {Type: "text", Text: "kind"}}})
	if got := r.System(); got != "be brief\nbe kind" {
		t.Errorf("System = %q", got)
	}
	for size, want := range map[int]int64{0: 0, 1: 1, 4: 1, 5: 2} {
		if got := inference.EstimateTokens(size); got != want {
			t.Errorf("EstimateTokens(%d) = %d, want %d", size, got, want)
		}
	}
}

func ExampleModel() {
	var model inference.Model = new(inferencetest.Fake)
	stream, err := model.CompleteStream(context.Background(), inference.Request{
		Model:    inferencetest.ModelName,
		Messages: []inference.Message{{Role: inference.RoleUser, Content: inference.Text("hello")}},
	})
	if err != nil {
		fmt.Println(fault.Message(err))
		return
	}
	defer func() { _ = stream.Close() }()
	for {
		chunk, err := stream.Next()
		if errors.Is(err, io.EOF) {
			break // the answer is complete
		}
		if err != nil {
			fmt.Println("broke off:", fault.Message(err))
			return
		}
		for _, choice := range chunk.Choices {
			fmt.Print(choice.Message.Text())
		}
	}
	fmt.Println()
	// Output: echo: hello
}
