package provider

import (
	"encoding/json"
	"fmt"
	"io"

	"creto.dev/fault"
	"creto.dev/inference"
)

// anthropicPieces are the events of a streamed answer of the Messages API.
type anthropicPieces struct {
	id, model string
	open      map[int64]openBlock // by index
	tools     int                 // calls so far
	counted   inference.Usage
	stopped   bool // the reason to stop was said
}

// openBlock is a block of which more may come.
type openBlock struct {
	kind string
	tool int // index of the call
}

// maxBlocks bounds the blocks of an answer.
const maxBlocks = 10_000

func (p *anthropicPieces) decode(op fault.Op, data []byte) (inference.Chunk, bool, error) {
	o := parseObject(data, "")
	kind := o.str("type")
	c := inference.Chunk{Dialect: inference.DialectAnthropic}
	said, ok, err := inference.Choice{}, true, o.err
	switch {
	case err != nil:
	case kind == "error":
		return c, false, anthropicStreamFault(op, data)
	case kind == "message_start":
		c.Extra, err = p.start(o, &said)
	case kind == "content_block_start":
		err = p.begin(o, &said.Message)
	case kind == "content_block_delta":
		err = p.more(o, &said.Message)
	case kind == "content_block_stop":
		delete(p.open, o.integer("index"))
		ok = false
	case kind == "message_delta":
		err = p.finish(o, &said)
	case kind == "message_stop" && !p.stopped:
		err = fmt.Errorf("message_stop: the answer has no reason to stop")
	case kind == "message_stop":
		// What an upstream does with the connection after this is its affair.
		c.ID, c.Model = p.id, p.model
		usage := p.counted
		c.Usage = &usage
		return c, usage.TotalTokens() > 0, io.EOF
	default:
		ok = false // such as ping; the API may have new ones
	}
	if err == nil {
		err = o.err
	}
	if err != nil {
		return c, false, refuse("provider.anthropicPieces", err)
	}
	c.ID, c.Model, c.Choices = p.id, p.model, []inference.Choice{said}
	return c, ok, nil
}

// complete implements pieces: an answer ends with message_stop, and never without.
func (p *anthropicPieces) complete() bool { return false }

func (p *anthropicPieces) usage() (inference.Usage, bool) { return p.counted, p.stopped }

// start reads the head of the message.
func (p *anthropicPieces) start(o *object, said *inference.Choice) (inference.Extra, error) {
	m := o.object("message")
	if m == nil {
		return nil, fmt.Errorf("message: required")
	}
	p.id, p.model = m.str("id"), m.str("model")
	said.Message.Role = inference.Role(m.str("role"))
	for _, name := range []string{"type", "content", "stop_reason", "stop_sequence"} {
		m.raw(name)
	}
	if u := m.object("usage"); u != nil {
		if err := decodeAnthropicUsage(u, &p.counted); err != nil {
			return nil, err
		}
	}
	return m.rest()
}

// begin reads the head of a block.
func (p *anthropicPieces) begin(o *object, m *inference.Message) error {
	index := o.integer("index")
	b := o.object("content_block")
	if b == nil || o.err != nil {
		return fmt.Errorf("content_block: required")
	}
	if _, there := p.open[index]; there || len(p.open) >= maxBlocks || index < 0 || index > maxBlocks {
		return fmt.Errorf("index: there twice, or too large")
	}
	block := openBlock{kind: b.str("type")}
	if block.kind == toolUseBlock {
		block.tool = p.tools
		p.tools++
		c, err := decodeToolUse(b)
		if err != nil {
			return err
		}
		if c.Arguments == "{}" {
			c.Arguments = "" // they come in pieces
		}
		c.Index = block.tool
		m.ToolCalls = []inference.ToolCall{c}
	} else {
		part, err := decodeBlock(b, block.kind)
		if err != nil {
			return err
		}
		part.Index = int(index)
		m.Content = []inference.Part{part}
	}
	p.open[index] = block
	return nil
}

// more reads a piece of a block. One that is not known travels as a part with the
// piece's type.
func (p *anthropicPieces) more(o *object, m *inference.Message) error {
	index := o.integer("index")
	d := o.object("delta")
	block, there := p.open[index]
	if d == nil || !there {
		return fmt.Errorf("delta: of no block")
	}
	kind := d.str("type")
	part := inference.Part{Type: block.kind, Index: int(index)}
	switch {
	case kind == "input_json_delta" && block.kind == toolUseBlock:
		m.ToolCalls = []inference.ToolCall{{Index: block.tool, Arguments: d.str("partial_json")}}
		return d.err
	case kind == "text_delta" && block.kind == textBlock:
		part.Text = d.str("text")
	case kind == "thinking_delta" && block.kind == thinkingType:
		part.Text, part.Reasoning = d.str("thinking"), &inference.Reasoning{}
	case kind == "signature_delta" && block.kind == thinkingType:
		part.Reasoning = &inference.Reasoning{Signature: d.str("signature")}
	case block.kind == toolUseBlock || kind == textBlock || kind == "":
		return fmt.Errorf("delta: of another kind than its block")
	default:
		part.Type = kind
	}
	var err error
	part.Extra, err = d.rest()
	m.Content = []inference.Part{part}
	return err
}

// finish reads why the answer ended, and what it cost in all.
func (p *anthropicPieces) finish(o *object, said *inference.Choice) error {
	if d := o.object("delta"); d != nil {
		said.StopReason, said.StopSequence = d.str("stop_reason"), d.str("stop_sequence")
		said.FinishReason = finishReason(said.StopReason)
		var err error
		if said.Extra, err = d.rest(); err != nil {
			return err
		}
	}
	if u := o.object("usage"); u != nil {
		if err := decodeAnthropicUsage(u, &p.counted); err != nil {
			return err
		}
	}
	p.stopped = p.stopped || said.FinishReason != ""
	return nil
}

// AnthropicEvents writes a streamed answer as events of the Messages API, of which
// there are more than pieces: each block begins and ends. For one goroutine.
type AnthropicEvents struct {
	begun   bool
	native  bool
	kind    string // of the block that is open, or ""
	key     int    // what its pieces are told by: index of the part, or of the call
	index   int    // of the next block
	tools   int    // calls so far: the index of the next one
	refused bool
	last    inference.Choice // with why it ended
}

// Kinds of open blocks that are no part's.
const (
	openTool    = "tool"
	openForeign = "foreign"
)

// Chunk returns the events of a piece, which may be none. used tells what the
// answer cost so far; it is asked once, for the head of the message.
//
// Errors: InferenceProviderError (Permanent) for pieces of calls that alternate.
func (a *AnthropicEvents) Chunk(c inference.Chunk, used func() inference.Usage) ([]byte, error) {
	const op fault.Op = "provider.AnthropicEvents.Chunk"
	var w eventWriter
	if !a.begun {
		a.begin(&w, c, used())
	}
	for _, choice := range c.Choices {
		if choice.Index != 0 {
			continue
		}
		for _, p := range choice.Message.Content {
			a.part(&w, p)
		}
		if text := choice.Message.Refusal; text != "" {
			a.refused = true
			a.part(&w, inference.Part{Type: textBlock, Text: text})
		}
		for _, call := range choice.Message.ToolCalls {
			if err := a.call(&w, call); err != nil {
				return w.data, fault.Wrap(op, err)
			}
		}
		if choice.FinishReason != "" {
			a.last = choice
		}
	}
	return w.data, fault.Wrap(op, w.err)
}

// End returns the events that end an answer, and what it cost.
func (a *AnthropicEvents) End(used inference.Usage) ([]byte, error) {
	var w eventWriter
	if !a.begun {
		a.begin(&w, inference.Chunk{}, used)
	}
	a.close(&w)
	e := &anthropicEncoder{native: a.native}
	delta := e.extra(a.last.Extra)
	delta["stop_reason"], delta["stop_sequence"] = e.stop(a.last)
	if a.refused {
		delta["stop_reason"] = "refusal"
	}
	w.event("message_delta", fields{"delta": delta, "usage": encodeAnthropicUsage(used)})
	w.event("message_stop", fields{})
	return w.data, fault.Wrap("provider.AnthropicEvents.End", w.err)
}

// begin writes the head of the message.
func (a *AnthropicEvents) begin(w *eventWriter, c inference.Chunk, used inference.Usage) {
	a.begun, a.native = true, c.Dialect.Is(inference.DialectAnthropic)
	m := fieldsOf(c.Extra)
	m["type"], m["role"], m["id"], m["model"] = "message", inference.RoleAssistant, c.ID, c.Model
	m["content"], m["stop_reason"], m["stop_sequence"] = []fields{}, nil, nil
	m["usage"] = encodeAnthropicUsage(used)
	w.event("message_start", fields{"message": m})
}

// open begins a block.
func (a *AnthropicEvents) open(w *eventWriter, kind string, key int, block fields) {
	a.close(w)
	a.kind, a.key = kind, key
	w.event("content_block_start", fields{"index": a.index, "content_block": block})
}

// close ends the block that is open, if any.
func (a *AnthropicEvents) close(w *eventWriter) {
	if a.kind != "" {
		w.event("content_block_stop", fields{"index": a.index})
		a.kind = ""
		a.index++
	}
}

func (a *AnthropicEvents) delta(w *eventWriter, delta fields) {
	w.event("content_block_delta", fields{"index": a.index, "delta": delta})
}

func (a *AnthropicEvents) part(w *eventWriter, p inference.Part) {
	e := &anthropicEncoder{native: a.native}
	switch {
	case p.Reasoning != nil && (p.Type == redactedType || p.Reasoning.Redacted != ""):
		a.open(w, redactedType, p.Index, thinkingBlock(p))
	case p.Reasoning != nil:
		if a.kind != thinkingType || a.key != p.Index {
			if !a.native && p.Text == "" {
				return
			}
			block := e.extra(p.Extra)
			block["type"], block["thinking"], block["signature"] = thinkingType, "", ""
			a.open(w, thinkingType, p.Index, block)
		}
		if p.Text != "" {
			a.delta(w, fields{"type": "thinking_delta", "thinking": p.Text})
		}
		if p.Reasoning.Signature != "" {
			a.delta(w, fields{"type": "signature_delta", "signature": p.Reasoning.Signature})
		}
	case p.IsText():
		if a.kind != textBlock || a.key != p.Index {
			if !a.native && p.Text == "" {
				return
			}
			block := e.extra(p.Extra)
			block["type"], block["text"] = textBlock, ""
			a.open(w, textBlock, p.Index, block)
		}
		if p.Text != "" {
			a.delta(w, fields{"type": "text_delta", "text": p.Text})
		}
	case !a.native:
		// What only another dialect has words for is left out.
	case a.kind != "" && a.kind != openTool && a.key == p.Index:
		f := fieldsOf(p.Extra)
		f["type"] = p.Type
		a.delta(w, f)
	default:
		a.open(w, openForeign, p.Index, e.block(p))
	}
}

func (a *AnthropicEvents) call(w *eventWriter, c inference.ToolCall) error {
	if a.kind != openTool || a.key != c.Index {
		if c.Index < a.tools {
			return fault.New("provider.AnthropicEvents.call", fault.InferenceProviderError, "the provider goes back to a call that was over")
		}
		a.tools = c.Index + 1
		e := &anthropicEncoder{native: a.native}
		block := e.extra(c.Extra)
		block["type"], block["id"], block["name"], block["input"] = toolUseBlock, c.ID, c.Name, fields{}
		a.open(w, openTool, c.Index, block)
	}
	if c.Arguments != "" {
		a.delta(w, fields{"type": "input_json_delta", "partial_json": c.Arguments})
	}
	return nil
}

// eventWriter collects server-sent events, each named by its type.
type eventWriter struct {
	data []byte
	err  error
}

func (w *eventWriter) event(kind string, f fields) {
	f["type"] = kind
	body, err := encode(f)
	if err != nil && w.err == nil {
		w.err = err
	}
	w.data = append(w.data, "event: "+kind+"\ndata: "...)
	w.data = append(w.data, body...)
	w.data = append(w.data, "\n\n"...)
}

// AnthropicErrorEvent returns the event that ends a stream which broke.
func AnthropicErrorEvent(err error) []byte {
	_, body := EncodeAnthropicError(err)
	var e map[string]json.RawMessage
	_ = json.Unmarshal(body, &e) // it was just encoded
	var w eventWriter
	w.event("error", fieldsOf(e))
	return w.data
}
