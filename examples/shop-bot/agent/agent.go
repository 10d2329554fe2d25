package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/openai/openai-go/v3"
)

// instructions is the system prompt.
const instructions = `You are the support agent of Kiln & Leaf, a small pottery shop.
You get one mail at a time. Look up each order that the customer names before you say anything about it.
Refund only what arrived damaged and only if the customer asks for it; refund the price of the damaged goods.
Answer the customer once, with the reply tool: friendly, brief, signed with the shop's name.
When the reply is sent, close with a single sentence for the log.
If a tool answers with an error, do not call it again with the same arguments; tell the customer honestly.`

// agent works through mails.
type agent struct {
	client openai.Client
	model  string
	tools  []tool
	out    io.Writer // one line per step

	modelCalls, toolCalls, failedCalls int
	tokens                             int64
}

// maxTurns bounds the model's turns per mail, so that no model runs in circles.
const maxTurns = 10

// handle lets the model work on one mail until it calls no more tools. The
// error is the model's or ctx's; a tool that fails is the model's concern.
func (a *agent) handle(ctx context.Context, l letter) error {
	fmt.Fprintf(a.out, "mail %s from %s: %s\n", l.ID, l.From, l.Subject)
	params := openai.ChatCompletionNewParams{
		Model: a.model,
		Messages: []openai.ChatCompletionMessageParamUnion{
			openai.SystemMessage(instructions),
			openai.UserMessage(l.prompt()),
		},
	}
	for _, t := range a.tools {
		params.Tools = append(params.Tools, t.param())
	}
	replied := false
	for range maxTurns {
		// Once the customer has been answered only the closing sentence is
		// left, which is streamed, as a person would want to read it.
		ask := a.complete
		if replied {
			ask = a.stream
		}
		answer, err := ask(ctx, params)
		if err != nil {
			return explain(err)
		}
		if len(answer.ToolCalls) == 0 {
			fmt.Fprintf(a.out, "  done: %s\n", brief(answer.Content))
			return nil
		}
		params.Messages = append(params.Messages, answer.ToParam())
		for _, call := range answer.ToolCalls {
			result, err := a.call(ctx, call.Function.Name, call.Function.Arguments)
			if err != nil {
				return err
			}
			params.Messages = append(params.Messages, openai.ToolMessage(result, call.ID))
			replied = replied || call.Function.Name == "reply"
		}
	}
	fmt.Fprintf(a.out, "  gave up after %d turns\n", maxTurns)
	return nil
}

// complete asks for the next message at once.
func (a *agent) complete(ctx context.Context, params openai.ChatCompletionNewParams) (openai.ChatCompletionMessage, error) {
	completion, err := a.client.Chat.Completions.New(ctx, params)
	if err != nil {
		return openai.ChatCompletionMessage{}, err
	}
	return a.count(completion)
}

// stream asks for the next message piece by piece.
func (a *agent) stream(ctx context.Context, params openai.ChatCompletionNewParams) (openai.ChatCompletionMessage, error) {
	params.StreamOptions.IncludeUsage = openai.Bool(true)
	stream := a.client.Chat.Completions.NewStreaming(ctx, params)
	defer stream.Close()
	var whole openai.ChatCompletionAccumulator
	for stream.Next() {
		if !whole.AddChunk(stream.Current()) {
			return openai.ChatCompletionMessage{}, errors.New("the stream's chunks do not fit together")
		}
	}
	if err := stream.Err(); err != nil {
		return openai.ChatCompletionMessage{}, err
	}
	return a.count(&whole.ChatCompletion)
}

// count adds up the usage and returns the message.
func (a *agent) count(c *openai.ChatCompletion) (openai.ChatCompletionMessage, error) {
	a.modelCalls++
	a.tokens += c.Usage.TotalTokens
	if len(c.Choices) == 0 {
		return openai.ChatCompletionMessage{}, errors.New("the model gave no answer")
	}
	return c.Choices[0].Message, nil
}

// call runs a tool and returns its result for the model: what the shop said, or
// a text that begins with "error". Its error is ctx's alone.
func (a *agent) call(ctx context.Context, name, arguments string) (string, error) {
	a.toolCalls++
	code, body, err := a.dispatch(ctx, name, arguments)
	result, seen := body, code.String()
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		a.failedCalls++
		result, seen = "error: "+err.Error(), err.Error()
	case !code.ok():
		a.failedCalls++
		result, seen = fmt.Sprintf("error: %s: %s", code, body), code.String()+": "+brief(body)
	}
	fmt.Fprintf(a.out, "  %s %s -> %s\n", name, brief(arguments), seen)
	return result, nil
}

// dispatch finds the tool and runs it.
func (a *agent) dispatch(ctx context.Context, name, arguments string) (status, string, error) {
	i := slices.IndexFunc(a.tools, func(t tool) bool { return t.name == name })
	if i < 0 {
		return 0, "", fmt.Errorf("there is no tool %q", name)
	}
	return a.tools[i].run(ctx, arguments)
}

// explain adds what the API said to the SDK's error, which names the status only.
func explain(err error) error {
	if api, ok := errors.AsType[*openai.Error](err); ok && api.Message != "" {
		return fmt.Errorf("%w: %s", err, api.Message)
	}
	return err
}

// briefRunes is how much of a text fits on a line.
const briefRunes = 160

// brief returns text on one line, cut to a readable length.
func brief(text string) string {
	line := strings.Join(strings.Fields(text), " ")
	if runes := []rune(line); len(runes) > briefRunes {
		return string(runes[:briefRunes]) + "…"
	}
	return line
}
