package provider

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"

	"creto.dev/fault"
	"creto.dev/inference"
	"github.com/aws/aws-sdk-go-v2/service/bedrockruntime"
	"github.com/aws/aws-sdk-go-v2/service/bedrockruntime/types"
)

// filtered is the reason to finish when the provider kept something back.
const filtered = "content_filter"

// bedrockFinish translates a reason to stop; one that is not known stays.
func bedrockFinish(stop types.StopReason) string {
	switch stop {
	case types.StopReasonGuardrailIntervened, types.StopReasonContentFiltered:
		return filtered
	default:
		return finishReason(string(stop))
	}
}

// decodeConverse reads an answer. What the API has and this package has no words
// for, such as citations and traces of guardrails, is left out.
func decodeConverse(model string, out *bedrockruntime.ConverseOutput) (inference.Response, error) {
	r := inference.Response{Model: model, Dialect: inference.DialectBedrock}
	member, ok := out.Output.(*types.ConverseOutputMemberMessage)
	if !ok {
		return r, errors.New("output: holds no message")
	}
	choice := inference.Choice{
		Message: inference.Message{Role: inference.RoleAssistant}, FinishReason: bedrockFinish(out.StopReason), StopReason: string(out.StopReason),
	}
	m := &choice.Message
	for i, block := range member.Value.Content {
		switch b := block.(type) {
		case *types.ContentBlockMemberText:
			m.Content = append(m.Content, inference.Part{Type: textBlock, Text: b.Value})
		case *types.ContentBlockMemberReasoningContent:
			if p, ok := bedrockReasoning(b.Value); ok {
				m.Content = append(m.Content, p)
			}
		case *types.ContentBlockMemberToolUse:
			if b.Value.Type != "" {
				continue // run by the provider, which nobody asked for
			}
			arguments, err := documentText(b.Value.Input)
			if err != nil || b.Value.Name == nil || b.Value.ToolUseId == nil {
				return r, fmt.Errorf("content[%d]: not a call: %w", i, err)
			}
			m.ToolCalls = append(m.ToolCalls, inference.ToolCall{
				Type: functionType, ID: *b.Value.ToolUseId, Name: *b.Value.Name, Arguments: arguments, Before: len(m.Content),
			})
		}
	}
	for i := range m.ToolCalls {
		m.ToolCalls[i].Before = len(m.Content) - m.ToolCalls[i].Before
	}
	r.Choices = []inference.Choice{choice}
	var err error
	r.Usage, err = bedrockUsage(out.Usage)
	return r, err
}

func bedrockReasoning(block types.ReasoningContentBlock) (inference.Part, bool) {
	p := inference.Part{Type: thinkingType, Reasoning: &inference.Reasoning{}}
	switch b := block.(type) {
	case *types.ReasoningContentBlockMemberReasoningText:
		p.Text, p.Reasoning.Signature = text(b.Value.Text), text(b.Value.Signature)
	case *types.ReasoningContentBlockMemberRedactedContent:
		p.Type, p.Reasoning.Redacted = redactedType, base64.StdEncoding.EncodeToString(b.Value)
	default:
		return p, false
	}
	return p, true
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// bedrockUsage reads counts; none are zero. Bedrock counts what it had kept, and
// what it keeps, beside the prompt.
func bedrockUsage(u *types.TokenUsage) (inference.Usage, error) {
	if u == nil {
		return inference.Usage{}, nil
	}
	var counts [4]int64
	for i, n := range []*int32{u.InputTokens, u.CacheReadInputTokens, u.CacheWriteInputTokens, u.OutputTokens} {
		if n == nil {
			continue
		}
		if counts[i] = int64(*n); counts[i] < 0 {
			return inference.Usage{}, errors.New("usage: expected counts")
		}
	}
	return inference.Usage{
		PromptTokens: counts[0] + counts[1] + counts[2], CachedTokens: counts[1], CacheWriteTokens: counts[2], CompletionTokens: counts[3],
	}, nil
}

// bedrockPieces are the events of a streamed answer, which the SDK reads from the
// connection.
type bedrockPieces struct {
	model  string
	events *bedrockruntime.ConverseStreamEventStream
	event  types.ConverseStreamOutput // that next got, for decode

	open    map[int32]openBlock // by index
	tools   int                 // calls so far
	said    bool                // anything but a reason to stop
	stopped bool                // the reason was said
	counted inference.Usage
	whole   bool // counted is of the whole answer
}

// next waits for an event and keeps it for decode.
func (p *bedrockPieces) next() ([]byte, error) {
	event, ok := <-p.events.Events()
	if ok {
		p.event = event
		return nil, nil
	}
	if err := p.events.Err(); err != nil {
		return nil, err
	}
	return nil, io.EOF
}

func (p *bedrockPieces) decode(op fault.Op, _ []byte) (inference.Chunk, bool, error) {
	c := inference.Chunk{Model: p.model, Dialect: inference.DialectBedrock}
	said, ok := inference.Choice{}, true
	var err error
	switch e := p.event.(type) {
	case *types.ConverseStreamOutputMemberMessageStart:
		said.Message.Role = inference.RoleAssistant
	case *types.ConverseStreamOutputMemberContentBlockStart:
		ok, err = p.begin(e.Value, &said.Message)
	case *types.ConverseStreamOutputMemberContentBlockDelta:
		ok, err = p.more(e.Value, &said.Message)
	case *types.ConverseStreamOutputMemberContentBlockStop:
		delete(p.open, index(e.Value.ContentBlockIndex))
		ok = false
	case *types.ConverseStreamOutputMemberMessageStop:
		p.stopped = true
		said.StopReason, said.FinishReason = string(e.Value.StopReason), bedrockFinish(e.Value.StopReason)
		if said.FinishReason == filtered && !p.said {
			return c, false, fault.New(op, fault.InferenceContentFiltered, "the provider's content filter kept the answer")
		}
	case *types.ConverseStreamOutputMemberMetadata:
		if p.counted, err = bedrockUsage(e.Value.Usage); err != nil {
			break
		}
		p.whole = p.counted.TotalTokens() > 0
		usage := p.counted
		c.Usage = &usage
		if p.stopped {
			return c, p.whole, io.EOF
		}
		return c, p.whole, nil
	default:
		ok = false // the API may have new ones
	}
	if err != nil {
		return c, false, refuse("provider.bedrockPieces", err)
	}
	c.Choices = []inference.Choice{said}
	return c, ok, nil
}

func index(n *int32) int32 {
	if n == nil {
		return 0
	}
	return *n
}

// begin reads the head of a block. Only calls have one of interest.
func (p *bedrockPieces) begin(e types.ContentBlockStartEvent, m *inference.Message) (bool, error) {
	start, isTool := e.Start.(*types.ContentBlockStartMemberToolUse)
	if !isTool || start.Value.Type != "" {
		p.open[index(e.ContentBlockIndex)] = openBlock{kind: "other"}
		return false, p.bounded()
	}
	if start.Value.Name == nil || start.Value.ToolUseId == nil {
		return false, errors.New("start: not a call")
	}
	p.open[index(e.ContentBlockIndex)] = openBlock{kind: toolUseBlock, tool: p.tools}
	m.ToolCalls = []inference.ToolCall{{Index: p.tools, Type: functionType, ID: *start.Value.ToolUseId, Name: *start.Value.Name}}
	p.tools++
	p.said = true
	return true, p.bounded()
}

func (p *bedrockPieces) bounded() error {
	if len(p.open) > maxBlocks {
		return errors.New("more blocks than an answer has")
	}
	return nil
}

// more reads a piece of a block.
func (p *bedrockPieces) more(e types.ContentBlockDeltaEvent, m *inference.Message) (bool, error) {
	at := index(e.ContentBlockIndex)
	part := inference.Part{Type: textBlock, Index: int(at)}
	switch d := e.Delta.(type) {
	case *types.ContentBlockDeltaMemberToolUse:
		block, there := p.open[at]
		if there && block.kind != toolUseBlock {
			return false, nil
		}
		if !there {
			return false, errors.New("delta: of no call")
		}
		m.ToolCalls = []inference.ToolCall{{Index: block.tool, Arguments: text(d.Value.Input)}}
		return true, nil
	case *types.ContentBlockDeltaMemberText:
		part.Text = d.Value
	case *types.ContentBlockDeltaMemberReasoningContent:
		part.Type, part.Reasoning = thinkingType, &inference.Reasoning{}
		switch r := d.Value.(type) {
		case *types.ReasoningContentBlockDeltaMemberText:
			part.Text = r.Value
		case *types.ReasoningContentBlockDeltaMemberSignature:
			part.Reasoning.Signature = r.Value
		case *types.ReasoningContentBlockDeltaMemberRedactedContent:
			part.Type, part.Reasoning.Redacted = redactedType, base64.StdEncoding.EncodeToString(r.Value)
		default:
			return false, nil
		}
	default:
		return false, nil
	}
	p.said = true
	m.Content = []inference.Part{part}
	return true, nil
}

// complete reports whether the reason to stop was said; the usage that follows it
// may be missing.
func (p *bedrockPieces) complete() bool { return p.stopped }

func (p *bedrockPieces) usage() (inference.Usage, bool) { return p.counted, p.whole }
