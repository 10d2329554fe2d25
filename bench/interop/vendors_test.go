package interop_test

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	aoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	ooption "github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
	"github.com/openai/openai-go/v3/shared"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/node"
)

// pixel is a PNG's head, which is all that travels.
const pixel = "iVBORw0KGgo="

// weather is what both upstreams do: asked, they call the tool; told its result,
// they say it. Each reads requests by its vendor's own types.
const (
	arguments = `{"city":"Bern"}`
	thought   = "they ask of Bern"
)

// gpt is an upstream of OpenAI's dialect.
func gpt(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/embeddings") {
			embeddings(t, w, r)
			return
		}
		var in openai.ChatCompletionNewParams
		var more struct{ Stream bool }
		body := json.NewDecoder(r.Body)
		var raw json.RawMessage
		if err := errors.Join(body.Decode(&raw), json.Unmarshal(raw, &in), json.Unmarshal(raw, &more)); err != nil || len(in.Tools) != 1 || len(in.Messages) < 2 || in.Messages[0].OfSystem == nil || in.Messages[1].OfUser == nil {
			t.Errorf("gpt got %s: %v", raw, err)
			http.Error(w, "malformed", http.StatusBadRequest)
			return
		}
		if parts := in.Messages[1].OfUser.Content.OfArrayOfContentParts; len(parts) != 2 || parts[1].OfImageURL == nil || parts[1].OfImageURL.ImageURL.URL != "data:image/png;base64,"+pixel {
			t.Errorf("gpt got no image: %s", raw)
		}
		last := in.Messages[len(in.Messages)-1]
		said := ""
		if last.OfTool != nil {
			said = "It is " + last.OfTool.Content.OfString.Value + "."
			if call := in.Messages[2].OfAssistant; last.OfTool.ToolCallID != "call_1" || call == nil || len(call.ToolCalls) != 1 || call.ToolCalls[0].OfFunction.Function.Name != "weather" {
				t.Errorf("gpt got no result of its call: %s", raw)
			}
		}
		const usage = `{"prompt_tokens":20,"completion_tokens":5,"total_tokens":25,"prompt_tokens_details":{"cached_tokens":8}}`
		call := fmt.Sprintf(`{"index":0,"id":"call_1","type":"function","function":{"name":"weather","arguments":%q}}`, arguments)
		delta, finish := fmt.Sprintf(`{"role":"assistant","content":%q}`, said), "stop"
		if said == "" {
			delta, finish = `{"role":"assistant","content":null,"tool_calls":[`+call+`]}`, "tool_calls"
		}
		if !more.Stream {
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprintf(w, `{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":%s,"finish_reason":%q}],"usage":%s}`, delta, finish, usage)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for _, choices := range []string{`{"index":0,"delta":` + delta + `,"finish_reason":null}`, fmt.Sprintf(`{"index":0,"delta":{},"finish_reason":%q}`, finish)} {
			_, _ = fmt.Fprintf(w, "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[%s]}\n\n", choices)
		}
		_, _ = fmt.Fprintf(w, "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[],\"usage\":%s}\n\ndata: [DONE]\n\n", usage)
	}
}

// embeddings answers with vectors, as numbers.
func embeddings(t *testing.T, w http.ResponseWriter, r *http.Request) {
	var in openai.EmbeddingNewParams
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || !slices.Equal(in.Input.OfArrayOfStrings, []string{"warm", "cold"}) || in.Dimensions.Value != 2 || in.EncodingFormat != openai.EmbeddingNewParamsEncodingFormatFloat {
		t.Errorf("gpt was asked for vectors of %+v: %v", in, err)
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprint(w, `{"object":"list","model":"m","data":[{"object":"embedding","index":0,"embedding":[1,0.25]},{"object":"embedding","index":1,"embedding":[-1,0.1]}],"usage":{"prompt_tokens":4,"total_tokens":4}}`)
}

// claude is an upstream of Anthropic's dialect, which thinks before it calls.
func claude(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in anthropic.MessageNewParams
		var more struct{ Stream bool }
		var raw json.RawMessage
		if err := errors.Join(json.NewDecoder(r.Body).Decode(&raw), json.Unmarshal(raw, &in), json.Unmarshal(raw, &more)); err != nil || in.MaxTokens == 0 && !strings.HasSuffix(r.URL.Path, "count_tokens") || len(in.Tools) != 1 || len(in.System) != 1 && !strings.Contains(string(raw), `"system":"`) || len(in.Messages) == 0 {
			t.Errorf("claude got %s: %v", raw, err)
			http.Error(w, "malformed", http.StatusBadRequest)
			return
		}
		if r.Header.Get("X-Api-Key") != "upstream-key" || r.Header.Get("Anthropic-Version") == "" {
			t.Errorf("claude got headers %v", r.Header)
		}
		if strings.HasSuffix(r.URL.Path, "count_tokens") {
			_, _ = fmt.Fprint(w, `{"input_tokens":20}`)
			return
		}
		if first := in.Messages[0].Content; len(first) != 2 || first[1].OfImage == nil || first[1].OfImage.Source.OfBase64.Data != pixel {
			t.Errorf("claude got no image: %s", raw)
		}
		said := ""
		for _, block := range in.Messages[len(in.Messages)-1].Content {
			if result := block.OfToolResult; result != nil {
				said = "It is " + result.Content[0].OfText.Text + "."
				// Reasoning must come back as it was signed, before the call.
				back := in.Messages[1].Content
				if result.ToolUseID != "toolu_1" || len(back) != 2 || back[0].OfThinking == nil || back[0].OfThinking.Signature != "sig" || back[0].OfThinking.Thinking != thought || back[1].OfToolUse == nil {
					t.Errorf("claude got back %s", raw)
				}
			}
		}
		usage := `{"input_tokens":12,"cache_read_input_tokens":8,"cache_creation_input_tokens":0,"output_tokens":5}`
		blocks, stop := fmt.Sprintf(`{"type":"text","text":%q}`, said), "end_turn"
		if said == "" {
			blocks, stop = fmt.Sprintf(`{"type":"thinking","thinking":%q,"signature":"sig"},{"type":"tool_use","id":"toolu_1","name":"weather","input":%s}`, thought, arguments), "tool_use"
		}
		if !more.Stream {
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprintf(w, `{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[%s],"stop_reason":%q,"stop_sequence":null,"usage":%s}`, blocks, stop, usage)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		say := func(kind, rest string) {
			_, _ = fmt.Fprintf(w, "event: %s\ndata: {\"type\":%q%s}\n\n", kind, kind, rest)
		}
		say("message_start", `,"message":{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":`+usage+`}`)
		if said == "" {
			say("content_block_start", `,"index":0,"content_block":{"type":"thinking","thinking":"","signature":""}`)
			say("content_block_delta", fmt.Sprintf(`,"index":0,"delta":{"type":"thinking_delta","thinking":%q}`, thought))
			say("content_block_delta", `,"index":0,"delta":{"type":"signature_delta","signature":"sig"}`)
			say("content_block_stop", `,"index":0`)
			say("content_block_start", `,"index":1,"content_block":{"type":"tool_use","id":"toolu_1","name":"weather","input":{}}`)
			say("content_block_delta", fmt.Sprintf(`,"index":1,"delta":{"type":"input_json_delta","partial_json":%q}`, arguments))
			say("content_block_stop", `,"index":1`)
		} else {
			say("content_block_start", `,"index":0,"content_block":{"type":"text","text":""}`)
			say("content_block_delta", fmt.Sprintf(`,"index":0,"delta":{"type":"text_delta","text":%q}`, said))
			say("content_block_stop", `,"index":0`)
		}
		say("message_delta", fmt.Sprintf(`,"delta":{"stop_reason":%q,"stop_sequence":null},"usage":%s`, stop, usage))
		say("message_stop", "")
	}
}

// vendors returns a node with both upstreams behind it, and an agent's token.
func vendors(t *testing.T) (base, token string, admin *client.Client) {
	t.Helper()
	cfg := node.Default()
	cfg.Server.Listen = "localhost:0"
	for name, handler := range map[string]http.HandlerFunc{"gpt": gpt(t), "claude": claude(t)} {
		upstream := httptest.NewServer(handler)
		t.Cleanup(upstream.Close)
		kind := map[string]string{"gpt": node.ProviderOpenAI, "claude": node.ProviderAnthropic}[name]
		cfg.Inference.Providers = append(cfg.Inference.Providers, node.ProviderConfig{
			Name: name, Kind: kind, BaseURL: upstream.URL + "/v1", APIKey: creto.NewSecret("upstream-key"), Models: []string{name + "-*", name + "-one"},
		})
	}
	dir := t.TempDir()
	n, err := node.Open(t.Context(), node.Options{DataDir: dir, Version: "test", Config: cfg, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = n.Close()
	})
	if admin, err = client.New(filepath.Join(dir, client.SocketName), creto.Secret{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.AddAgent(t.Context(), client.NewAgent{Name: "bot", Allow: []string{"call_model=gpt-*", "call_model=claude-*", "call_model=none-*"}}); err != nil {
		t.Fatal(err)
	}
	status, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	issued, err := admin.Token(t.Context(), "bot", client.NewToken{})
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + status.Listen, issued.Token, admin
}

// TestVendorsClients: the vendors' own SDKs, as clients of the gateway, each with
// either provider behind it: a picture, a call, its result, the answer; whole and
// in pieces.
func TestVendorsClients(t *testing.T) {
	base, token, _ := vendors(t)
	ofAnthropic := anthropic.NewClient(aoption.WithBaseURL(base), aoption.WithAPIKey(token), aoption.WithMaxRetries(0))
	ofOpenAI := openai.NewClient(ooption.WithBaseURL(base+"/v1"), ooption.WithAPIKey(token), ooption.WithMaxRetries(0))
	for _, model := range []string{"gpt-test", "claude-test"} {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprintf("Anthropic's with %s, stream %v", model, stream), func(t *testing.T) { anthropicLoop(t, ofAnthropic, model, stream) })
			t.Run(fmt.Sprintf("OpenAI's with %s, stream %v", model, stream), func(t *testing.T) { openAILoop(t, ofOpenAI, model, stream) })
			t.Run(fmt.Sprintf("OpenAI's responses with %s, stream %v", model, stream), func(t *testing.T) { responsesLoop(t, ofOpenAI, model, stream) })
		}
	}
	for name, list := range map[string]func() ([]string, error){
		"Anthropic's": func() (names []string, err error) {
			page, err := ofAnthropic.Models.List(t.Context(), anthropic.ModelListParams{})
			for err == nil && page != nil {
				for _, m := range page.Data {
					names = append(names, m.ID)
				}
				page, err = page.GetNextPage()
			}
			return names, err
		},
		"OpenAI's": func() (names []string, err error) {
			page, err := ofOpenAI.Models.List(t.Context())
			if err != nil {
				return nil, err
			}
			for _, m := range page.Data {
				names = append(names, m.ID)
			}
			return names, nil
		},
	} {
		names, err := list()
		slices.Sort(names)
		if want := []string{"claude-one", "gpt-one"}; err != nil || !slices.Equal(names, want) {
			t.Errorf("%s list of models = %q, %v, want %q", name, names, err, want)
		}
	}
	count, err := ofAnthropic.Messages.CountTokens(t.Context(), anthropic.MessageCountTokensParams{
		Model: "claude-test", System: anthropic.MessageCountTokensParamsSystemUnion{OfString: anthropic.String("be brief")},
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("weather?"))},
		Tools:    []anthropic.MessageCountTokensToolUnionParam{{OfTool: &anthropic.ToolParam{Name: "weather"}}},
	})
	if err != nil || count.InputTokens != 20 {
		t.Errorf("CountTokens = %+v, %v", count, err)
	}
}

// TestVendorsEmbeddings: as numbers, and as base64, which OpenAI's clients in other
// languages ask for unless they are told otherwise. One provider has none.
func TestVendorsEmbeddings(t *testing.T) {
	base, token, _ := vendors(t)
	c := openai.NewClient(ooption.WithBaseURL(base+"/v1"), ooption.WithAPIKey(token), ooption.WithMaxRetries(0))
	params := openai.EmbeddingNewParams{Model: "gpt-vectors", Dimensions: openai.Int(2), Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"warm", "cold"}}}
	answer, err := c.Embeddings.New(t.Context(), params)
	if err != nil || len(answer.Data) != 2 || !slices.Equal(answer.Data[0].Embedding, []float64{1, 0.25}) || !slices.Equal(answer.Data[1].Embedding, []float64{-1, 0.1}) || answer.Data[1].Index != 1 || answer.Usage.PromptTokens != 4 {
		t.Errorf("Embeddings.New = %+v, %v", answer, err)
	}
	params.EncodingFormat = openai.EmbeddingNewParamsEncodingFormatBase64
	answer, err = c.Embeddings.New(t.Context(), params)
	if err != nil || len(answer.Data) != 2 {
		t.Fatalf("Embeddings.New = %+v, %v", answer, err)
	}
	var text string
	if err := json.Unmarshal([]byte(answer.Data[1].JSON.Embedding.Raw()), &text); err != nil {
		t.Fatalf("not base64: %s", answer.Data[1].JSON.Embedding.Raw())
	}
	var vector [2]float32
	raw, err := base64.StdEncoding.DecodeString(text)
	if _, err2 := binary.Decode(raw, binary.LittleEndian, &vector); err != nil || err2 != nil || len(raw) != 8 || vector != [2]float32{-1, 0.1} {
		t.Errorf("vector %v of %x: %v, %v", vector, raw, err, err2)
	}
	params.Model = "claude-test"
	_, err = c.Embeddings.New(t.Context(), params)
	if refused, ok := errors.AsType[*openai.Error](err); !ok || refused.StatusCode != http.StatusNotImplemented {
		t.Errorf("of a provider without: %v", err)
	}
}

func anthropicLoop(t *testing.T, c anthropic.Client, model string, stream bool) {
	params := anthropic.MessageNewParams{
		Model: anthropic.Model(model), MaxTokens: 100, System: []anthropic.TextBlockParam{{Text: "be brief", CacheControl: anthropic.NewCacheControlEphemeralParam()}},
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("weather?"), anthropic.NewImageBlockBase64("image/png", pixel))},
		Tools:    []anthropic.ToolUnionParam{anthropic.ToolUnionParamOfTool(anthropic.ToolInputSchemaParam{Properties: map[string]any{"city": map[string]any{"type": "string"}}}, "weather")},
	}
	ask := func() anthropic.Message {
		t.Helper()
		if !stream {
			m, err := c.Messages.New(t.Context(), params)
			if err != nil {
				t.Fatal(err)
			}
			return *m
		}
		var m anthropic.Message
		s := c.Messages.NewStreaming(t.Context(), params)
		for s.Next() {
			if err := m.Accumulate(s.Current()); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Err(); err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := ask()
	last := len(m.Content) - 1
	if last < 0 || m.StopReason != anthropic.StopReasonToolUse || m.Content[last].Name != "weather" || string(m.Content[last].Input) != arguments {
		t.Fatalf("no call: %+v", m)
	}
	if model == "claude-test" && (len(m.Content) != 2 || m.Content[0].Thinking != thought || m.Content[0].Signature != "sig") {
		t.Errorf("no reasoning: %+v", m.Content)
	}
	if m.Usage.InputTokens != 12 || m.Usage.CacheReadInputTokens != 8 || m.Usage.OutputTokens != 5 {
		t.Errorf("usage = %+v", m.Usage)
	}
	params.Messages = append(params.Messages, m.ToParam(), anthropic.NewUserMessage(anthropic.NewToolResultBlock(m.Content[last].ID, "warm", false)))
	if m = ask(); len(m.Content) != 1 || m.Content[0].Text != "It is warm." || m.StopReason != anthropic.StopReasonEndTurn {
		t.Errorf("answer %+v", m)
	}
}

func openAILoop(t *testing.T, c openai.Client, model string, stream bool) {
	params := openai.ChatCompletionNewParams{
		Model: model, StreamOptions: openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)},
		Messages: []openai.ChatCompletionMessageParamUnion{
			openai.SystemMessage("be brief"),
			openai.UserMessage([]openai.ChatCompletionContentPartUnionParam{openai.TextContentPart("weather?"), openai.ImageContentPart(openai.ChatCompletionContentPartImageImageURLParam{URL: "data:image/png;base64," + pixel})}),
		},
		Tools: []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{Name: "weather", Parameters: shared.FunctionParameters{"type": "object"}})},
	}
	// What a client that knows of signed reasoning keeps of a stream's pieces.
	var signed []map[string]string
	ask := func() openai.ChatCompletion {
		t.Helper()
		if !stream {
			params.StreamOptions = openai.ChatCompletionStreamOptionsParam{}
			r, err := c.Chat.Completions.New(t.Context(), params)
			if err != nil {
				t.Fatal(err)
			}
			return *r
		}
		var all openai.ChatCompletionAccumulator
		s := c.Chat.Completions.NewStreaming(t.Context(), params)
		for s.Next() {
			chunk := s.Current()
			if !all.AddChunk(chunk) {
				t.Fatalf("the SDK does not take %s", chunk.RawJSON())
			}
			for _, choice := range chunk.Choices {
				var blocks []map[string]string
				if err := json.Unmarshal([]byte(choice.Delta.JSON.ExtraFields["thinking_blocks"].Raw()), &blocks); err == nil {
					signed = append(signed, blocks...)
				}
			}
		}
		if err := s.Err(); err != nil {
			t.Fatal(err)
		}
		return all.ChatCompletion
	}
	r := ask()
	if len(r.Choices) != 1 || r.Choices[0].FinishReason != "tool_calls" || len(r.Choices[0].Message.ToolCalls) != 1 || r.Choices[0].Message.ToolCalls[0].Function.Arguments != arguments {
		t.Fatalf("no call: %+v", r.Choices)
	}
	if r.Usage.PromptTokens != 20 || r.Usage.CompletionTokens != 5 || r.Usage.PromptTokensDetails.CachedTokens != 8 {
		t.Errorf("usage = %+v", r.Usage)
	}
	back := r.Choices[0].Message.ToParam()
	if model == "claude-test" {
		if stream {
			if len(signed) != 1 || signed[0]["signature"] != "sig" {
				t.Fatalf("the signature came as %v", signed)
			}
			signed[0]["thinking"] = thought // which came as reasoning_content
			back.OfAssistant.SetExtraFields(map[string]any{"thinking_blocks": signed})
		} else {
			raw := json.RawMessage(r.Choices[0].Message.JSON.ExtraFields["thinking_blocks"].Raw())
			back.OfAssistant.SetExtraFields(map[string]any{"thinking_blocks": raw})
		}
	}
	params.Messages = append(params.Messages, back, openai.ToolMessage("warm", r.Choices[0].Message.ToolCalls[0].ID))
	if r = ask(); r.Choices[0].Message.Content != "It is warm." || r.Choices[0].FinishReason != "stop" {
		t.Errorf("answer %+v", r)
	}
}

func responsesLoop(t *testing.T, c openai.Client, model string, stream bool) {
	input := responses.ResponseInputParam{responses.ResponseInputItemParamOfMessage(responses.ResponseInputMessageContentListParam{
		responses.ResponseInputContentParamOfInputText("weather?"),
		{OfInputImage: &responses.ResponseInputImageParam{Detail: responses.ResponseInputImageDetailAuto, ImageURL: openai.String("data:image/png;base64," + pixel)}},
	}, responses.EasyInputMessageRoleUser)}
	params := responses.ResponseNewParams{
		Model: model, Instructions: openai.String("be brief"), MaxOutputTokens: openai.Int(100), Store: openai.Bool(false),
		Include: []responses.ResponseIncludable{responses.ResponseIncludableReasoningEncryptedContent},
		Tools:   []responses.ToolUnionParam{responses.ToolParamOfFunction("weather", map[string]any{"type": "object"}, false)},
	}
	ask := func() responses.Response {
		t.Helper()
		params.Input = responses.ResponseNewParamsInputUnion{OfInputItemList: input}
		if !stream {
			r, err := c.Responses.New(t.Context(), params)
			if err != nil {
				t.Fatal(err)
			}
			return *r
		}
		var all responses.ResponseAccumulator
		var whole responses.Response
		var kinds []string
		s := c.Responses.NewStreaming(t.Context(), params)
		for s.Next() {
			event := s.Current()
			if event.SequenceNumber != int64(len(kinds)) {
				t.Errorf("%s is number %d, want %d", event.Type, event.SequenceNumber, len(kinds))
			}
			kinds = append(kinds, event.Type)
			// The accumulator is for what comes over web sockets, which is the same.
			var received responses.ResponsesServerEventUnion
			if err := errors.Join(json.Unmarshal([]byte(event.RawJSON()), &received), all.AddEvent(received)); err != nil {
				t.Fatalf("the SDK does not take %s: %v", event.RawJSON(), err)
			}
			if event.Type == "response.completed" {
				whole = event.Response
			}
		}
		if err := s.Err(); err != nil || len(kinds) == 0 || kinds[0] != "response.created" || kinds[len(kinds)-1] != "response.completed" {
			t.Fatalf("events %q, %v", kinds, err)
		}
		// What its pieces came to is what the end says.
		pieces := all.Snapshot()
		if last := whole.Output[len(whole.Output)-1]; pieces.OutputText() != whole.OutputText() || pieces.Output[len(pieces.Output)-1].Arguments != last.Arguments.OfString {
			t.Errorf("pieces %+v, at the end %s", pieces, whole.RawJSON())
		}
		return whole
	}
	r := ask()
	last := len(r.Output) - 1
	if last < 0 || r.Status != responses.ResponseStatusCompleted || r.Output[last].Type != "function_call" || r.Output[last].Name != "weather" || r.Output[last].Arguments.OfString != arguments {
		t.Fatalf("no call: %s", r.RawJSON())
	}
	if r.Usage.InputTokens != 20 || r.Usage.OutputTokens != 5 || r.Usage.InputTokensDetails.CachedTokens != 8 || r.Usage.TotalTokens != 25 {
		t.Errorf("usage = %+v", r.Usage)
	}
	if len(r.Tools) != 1 || r.Instructions.OfString != "be brief" || r.MaxOutputTokens != 100 {
		t.Errorf("the answer repeats %+v", r)
	}
	// All that was said goes back, reasoning as it was signed.
	if model == "claude-test" && (len(r.Output) != 2 || r.Output[0].Type != "reasoning" || r.Output[0].Summary[0].Text != thought || r.Output[0].EncryptedContent == "") {
		t.Errorf("no reasoning: %+v", r.Output)
	}
	for _, item := range r.Output {
		switch item := item.AsAny().(type) {
		case responses.ResponseReasoningItem:
			back := item.ToParam()
			input = append(input, responses.ResponseInputItemUnionParam{OfReasoning: &back})
		case responses.ResponseFunctionToolCall:
			back := item.ToParam()
			input = append(input, responses.ResponseInputItemUnionParam{OfFunctionCall: &back})
		}
	}
	result := responses.ResponseInputItemParamOfFunctionCallOutput("warm")
	result.OfFunctionCallOutput.CallID = openai.String(r.Output[last].CallID)
	input = append(input, result)
	if r = ask(); r.OutputText() != "It is warm." || len(r.Output) != 1 || r.Output[0].Role != "assistant" {
		t.Errorf("answer %s", r.RawJSON())
	}
}

// TestVendorsErrors: the SDKs take our errors for their vendor's, and know when not
// to try again.
func TestVendorsErrors(t *testing.T) {
	base, token, _ := vendors(t)
	for _, tt := range []struct {
		token, model, kind string
		status             int
	}{
		{token, "denied", "permission_error", 403},
		{token, "none-1", "not_found_error", 404},
		{"no token", "gpt-test", "authentication_error", 401},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		a := anthropic.NewClient(aoption.WithBaseURL(base), aoption.WithAPIKey(tt.token))
		_, err := a.Messages.New(ctx, anthropic.MessageNewParams{Model: anthropic.Model(tt.model), MaxTokens: 1, Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("x"))}})
		if ofAnthropic, ok := errors.AsType[*anthropic.Error](err); !ok || ofAnthropic.StatusCode != tt.status || string(ofAnthropic.Type()) != tt.kind {
			t.Errorf("%s: Anthropic's client says %v", tt.model, err)
		}
		o := openai.NewClient(ooption.WithBaseURL(base+"/v1"), ooption.WithAPIKey(tt.token))
		_, err = o.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{Model: tt.model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("x")}})
		if ofOpenAI, ok := errors.AsType[*openai.Error](err); !ok || ofOpenAI.StatusCode != tt.status {
			t.Errorf("%s: OpenAI's client says %v", tt.model, err)
		}
		cancel()
	}
}
