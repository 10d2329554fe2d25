package consensus_test

import (
	"context"
	"fmt"
	"time"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/consensus"
	"creto.dev/consensus/consensustest"
)

// Two stamps of consensus are ordered for sure; one that a node gave while it could
// not reach consensus says that it is not.
func ExampleFallback() {
	var service consensustest.Manual
	service.Set(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	clock := consensus.NewFallback(&service, consensus.FallbackConfig{Node: "n1", Local: true, Policy: call.Policy{Attempts: 1}})

	ctx := context.Background()
	first, _ := clock.Now(ctx)
	second, _ := clock.Now(ctx)
	service.Fail(true)
	local, _ := clock.Now(ctx)

	fmt.Println(first.Source, creto.HappenedBefore(first, second) == creto.Yes)
	fmt.Println(local.Source, local.Node, creto.HappenedBefore(second, local) == creto.Uncertain)
	fmt.Println("sorts behind what was seen:", creto.Order(second, local) < 0)
	// Output:
	// consensus true
	// local n1 true
	// sorts behind what was seen: true
}

// Events are registered when they happen, and ordered by their places.
func ExampleClock() {
	var clock consensustest.Manual
	ctx := context.Background()
	invoice, payment := creto.DigestOf([]byte("invoice")), creto.DigestOf([]byte("payment"))
	for _, event := range []consensus.EventID{invoice, payment, invoice} { // an event keeps its first place
		if _, err := clock.Register(ctx, event); err != nil {
			fmt.Println(err)
		}
	}
	ordered, err := clock.OrderEvents(ctx, []consensus.EventID{payment, invoice})
	fmt.Println(len(ordered), ordered[0].ID == invoice, err)
	_, err = clock.OrderEvents(ctx, []consensus.EventID{creto.DigestOf([]byte("never"))})
	fmt.Println(err != nil)
	// Output:
	// 2 true <nil>
	// true
}
