package provider

import (
	"encoding/base64"
	"strconv"

	"creto.dev/fault"
	"creto.dev/inference"
)

// OpenAIResponses writes the answer to one request of the Responses API, whole or as
// its events. [DecodeOpenAIResponsesRequest] makes it. For one goroutine.
type OpenAIResponses struct {
	asked fields // what the answer repeats
	whole bool   // nobody wants events

	id, model string
	created   int64
	begun     bool
	sequence  int
	output    []fields // items that are done
	open      responsesItem
	calls     int // so far: the index of the next one
	last      inference.Choice
}

// responsesItem is the item of which more may come.
type responsesItem struct {
	kind   string // itemMessage, itemReasoning or itemCall; "" if none is open
	key    int    // what its pieces are told by: index of the part, or of the call
	id     string
	call   inference.ToolCall
	part   string // the type of its part: partText, partRefusal or partSummary
	parts  []fields
	text   []byte // of the part, or the arguments
	signed string
}

const (
	itemMessage   = "message"
	itemReasoning = "reasoning"
	itemCall      = "function_call"

	partText    = "output_text"
	partRefusal = "refusal"
	partSummary = "summary_text"
)

// Answer returns the body of a whole answer.
//
// Errors: those of Chunk.
func (a *OpenAIResponses) Answer(r inference.Response) ([]byte, error) {
	const op fault.Op = "provider.OpenAIResponses.Answer"
	a.whole = true
	var w eventWriter
	a.begin(&w, inference.Chunk{ID: r.ID, Model: r.Model, Created: r.Created})
	if err := a.add(&w, r.Choices); err != nil {
		return nil, fault.Wrap(op, err)
	}
	a.close(&w)
	body, err := encode(a.response(&r.Usage))
	return body, fault.Wrap(op, err)
}

// Chunk returns the events of a piece, which may be none.
//
// Errors: InferenceProviderError (Permanent) for pieces of calls that alternate.
func (a *OpenAIResponses) Chunk(c inference.Chunk) ([]byte, error) {
	const op fault.Op = "provider.OpenAIResponses.Chunk"
	var w eventWriter
	a.begin(&w, c)
	if err := a.add(&w, c.Choices); err != nil {
		return w.data, fault.Wrap(op, err)
	}
	return w.data, fault.Wrap(op, w.err)
}

// End returns the events that end an answer, and what it cost.
func (a *OpenAIResponses) End(used inference.Usage) ([]byte, error) {
	var w eventWriter
	a.begin(&w, inference.Chunk{})
	a.close(&w)
	f := a.response(&used)
	a.event(&w, "response."+f["status"].(string), fields{"response": f})
	return w.data, fault.Wrap("provider.OpenAIResponses.End", w.err)
}

// Broken returns the event that ends a stream which broke.
func (a *OpenAIResponses) Broken(err error) []byte {
	var w eventWriter
	a.begin(&w, inference.Chunk{})
	f := a.response(nil)
	f["status"], f["error"] = "failed", fields{"code": openAIErrorName(fault.CodeOf(err)), "message": fault.Message(err)}
	a.event(&w, "response.failed", fields{"response": f})
	return w.data
}

func (a *OpenAIResponses) event(w *eventWriter, kind string, f fields) {
	if a.whole {
		return
	}
	f["sequence_number"] = a.sequence
	a.sequence++
	w.event(kind, f)
}

// at is an event of the item that is open.
func (a *OpenAIResponses) at(w *eventWriter, kind string, f fields) {
	f["output_index"], f["item_id"] = len(a.output), a.open.id
	a.event(w, "response."+kind, f)
}

// begin says that there is an answer.
func (a *OpenAIResponses) begin(w *eventWriter, c inference.Chunk) {
	if a.begun {
		return
	}
	a.begun, a.id, a.model, a.created = true, c.ID, c.Model, c.Created
	for _, kind := range []string{"response.created", "response.in_progress"} {
		f := a.response(nil)
		f["status"] = "in_progress"
		a.event(w, kind, fields{"response": f})
	}
}

// response is the answer so far; used is nil as long as it is not known.
func (a *OpenAIResponses) response(used *inference.Usage) fields {
	f := make(fields, len(a.asked)+16)
	for name, value := range a.asked {
		f[name] = value
	}
	output := a.output
	if output == nil {
		output = []fields{}
	}
	f["object"], f["id"], f["model"], f["created_at"] = "response", "resp_"+a.id, a.model, a.created
	f["output"], f["error"], f["incomplete_details"], f["usage"] = output, nil, nil, nil
	f["store"], f["background"], f["previous_response_id"] = false, false, nil
	f["status"] = "completed"
	switch a.last.FinishReason {
	case "length":
		f["status"], f["incomplete_details"] = "incomplete", fields{"reason": "max_output_tokens"}
	case "content_filter":
		f["status"], f["incomplete_details"] = "incomplete", fields{"reason": "content_filter"}
	}
	if used != nil {
		f["usage"] = fields{
			"input_tokens": used.PromptTokens, "input_tokens_details": fields{"cached_tokens": used.CachedTokens},
			"output_tokens": used.CompletionTokens, "output_tokens_details": fields{"reasoning_tokens": used.ReasoningTokens},
			"total_tokens": used.TotalTokens(),
		}
	}
	return f
}

// add takes what was said. Of several answers the first is written; nobody could ask
// for more.
func (a *OpenAIResponses) add(w *eventWriter, choices []inference.Choice) error {
	for _, c := range choices {
		if c.Index != 0 {
			continue
		}
		for _, p := range c.Message.Content {
			switch {
			case p.Reasoning != nil:
				a.reasoning(w, p)
			case p.IsText():
				a.text(w, partText, p.Index, p.Text)
			}
		}
		a.text(w, partRefusal, 0, c.Message.Refusal)
		for i, call := range c.Message.ToolCalls {
			if a.whole {
				call.Index = i
			}
			if err := a.call(w, call); err != nil {
				return err
			}
		}
		if c.FinishReason != "" {
			a.last = c
		}
	}
	return nil
}

// item opens one.
func (a *OpenAIResponses) item(w *eventWriter, open responsesItem, prefix string) {
	a.close(w)
	open.id = prefix + a.id + "_" + strconv.Itoa(len(a.output))
	a.open = open
	a.event(w, "response.output_item.added", fields{"output_index": len(a.output), "item": a.open.fields("in_progress")})
}

func (a *OpenAIResponses) text(w *eventWriter, part string, key int, text string) {
	if text == "" {
		return
	}
	if a.open.kind != itemMessage {
		a.item(w, responsesItem{kind: itemMessage, key: key, part: part}, "msg_")
		a.beginPart(w)
	} else if a.open.key != key || a.open.part != part {
		a.endPart(w)
		a.open.key, a.open.part = key, part
		a.beginPart(w)
	}
	a.delta(w, part+".delta", text)
}

func (a *OpenAIResponses) reasoning(w *eventWriter, p inference.Part) {
	if p.Text+p.Reasoning.Signature+p.Reasoning.Redacted == "" {
		return
	}
	if a.open.kind != itemReasoning || a.open.key != p.Index || a.open.signed != "" {
		a.item(w, responsesItem{kind: itemReasoning, key: p.Index}, "rs_")
	}
	if p.Text != "" {
		if a.open.part == "" {
			a.open.part = partSummary
			a.beginPart(w)
		}
		a.delta(w, "reasoning_summary_text.delta", p.Text)
	}
	if p.Reasoning.Signature+p.Reasoning.Redacted != "" {
		block, err := encode(thinkingBlock(inference.Part{Type: p.Type, Text: string(a.open.text), Reasoning: p.Reasoning}))
		if err != nil && w.err == nil {
			w.err = err
		}
		a.open.signed = signedPrefix + base64.StdEncoding.EncodeToString(block)
	}
}

func (a *OpenAIResponses) call(w *eventWriter, c inference.ToolCall) error {
	if a.open.kind != itemCall || a.open.key != c.Index {
		if c.Index < a.calls {
			return fault.New("provider.OpenAIResponses.call", fault.InferenceProviderError, "the provider goes back to a call that was over")
		}
		a.calls = c.Index + 1
		a.item(w, responsesItem{kind: itemCall, key: c.Index, call: c}, "fc_")
	}
	if c.Arguments != "" {
		a.delta(w, "function_call_arguments.delta", c.Arguments)
	}
	return nil
}

// place is where a part is in its item, which reasoning calls otherwise.
func (a *OpenAIResponses) place(f fields) fields {
	switch a.open.kind {
	case itemMessage:
		f["content_index"] = len(a.open.parts)
	case itemReasoning:
		f["summary_index"] = len(a.open.parts)
	}
	return f
}

func (a *OpenAIResponses) delta(w *eventWriter, kind, text string) {
	a.open.text = append(a.open.text, text...)
	f := a.place(fields{"delta": text})
	if a.open.part == partText {
		f["logprobs"] = []fields{}
	}
	a.at(w, kind, f)
}

// part is the part that is open, with what was said of it so far.
func (a *OpenAIResponses) part() fields {
	text := string(a.open.text)
	switch a.open.part {
	case partText:
		return fields{"type": partText, "text": text, "annotations": []fields{}, "logprobs": []fields{}}
	case partRefusal:
		return fields{"type": partRefusal, "refusal": text}
	default:
		return fields{"type": partSummary, "text": text}
	}
}

// partEvent names an event of a part as a whole.
func (a *OpenAIResponses) partEvent(what string) string {
	if a.open.kind == itemReasoning {
		return "reasoning_summary_part." + what
	}
	return "content_part." + what
}

func (a *OpenAIResponses) beginPart(w *eventWriter) {
	a.at(w, a.partEvent("added"), a.place(fields{"part": a.part()}))
}

func (a *OpenAIResponses) endPart(w *eventWriter) {
	text := string(a.open.text)
	switch a.open.part {
	case "":
		return
	case partText:
		a.at(w, "output_text.done", a.place(fields{"text": text, "logprobs": []fields{}}))
	case partRefusal:
		a.at(w, "refusal.done", a.place(fields{"refusal": text}))
	case partSummary:
		a.at(w, "reasoning_summary_text.done", a.place(fields{"text": text}))
	}
	part := a.part()
	a.at(w, a.partEvent("done"), a.place(fields{"part": part}))
	a.open.parts, a.open.part, a.open.text = append(a.open.parts, part), "", nil
}

// close ends the item that is open, if any.
func (a *OpenAIResponses) close(w *eventWriter) {
	switch a.open.kind {
	case "":
		return
	case itemCall:
		a.at(w, "function_call_arguments.done", fields{"arguments": string(a.open.text)})
	default:
		a.endPart(w)
	}
	item := a.open.fields("completed")
	a.event(w, "response.output_item.done", fields{"output_index": len(a.output), "item": item})
	a.output, a.open = append(a.output, item), responsesItem{}
}

// fields writes the item.
func (i *responsesItem) fields(status string) fields {
	parts := i.parts
	if parts == nil {
		parts = []fields{}
	}
	f := fields{"type": i.kind, "id": i.id, "status": status}
	switch i.kind {
	case itemMessage:
		f["role"], f["content"] = inference.RoleAssistant, parts
	case itemReasoning:
		f["summary"] = parts
		f.text("encrypted_content", i.signed)
	case itemCall:
		f["call_id"], f["name"], f["arguments"] = i.call.ID, i.call.Name, string(i.text)
	}
	return f
}
