package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/shared"
)

// tool is a function that the model may call.
type tool struct {
	name        string
	description string
	parameters  map[string]any // their JSON schemas; all are required
	run         func(ctx context.Context, arguments string) (status, string, error)
}

// tools returns what the shop lets its support agent do.
func tools(s shop) []tool {
	text := map[string]any{"type": "string"}
	number := map[string]any{"type": "number"}
	return []tool{{
		"lookup_order", "Looks up an order by its number.",
		map[string]any{"order": text}, decoded(s.lookupOrder),
	}, {
		"reply", "Sends a reply to the customer who wrote the mail.",
		map[string]any{"mail": text, "text": text}, decoded(s.reply),
	}, {
		"refund", "Pays back a part of an order or all of it.",
		map[string]any{"order": text, "amount": number, "reason": text}, decoded(s.refund),
	}, {
		"export_customers", "Exports all customers to the URL of a partner's system.",
		map[string]any{"url": text}, decoded(s.exportCustomers),
	}}
}

// decoded returns run with its arguments in JSON.
func decoded[Args any](run func(context.Context, Args) (status, string, error)) func(context.Context, string) (status, string, error) {
	return func(ctx context.Context, arguments string) (status, string, error) {
		var args Args
		if err := json.Unmarshal([]byte(arguments), &args); err != nil {
			return 0, "", fmt.Errorf("bad arguments: %w", err)
		}
		return run(ctx, args)
	}
}

// param describes the tool to the model.
func (t tool) param() openai.ChatCompletionToolUnionParam {
	return openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{
		Name:        t.name,
		Description: openai.String(t.description),
		Parameters: shared.FunctionParameters{
			"type":                 "object",
			"properties":           t.parameters,
			"required":             slices.Sorted(maps.Keys(t.parameters)),
			"additionalProperties": false,
		},
	})
}
