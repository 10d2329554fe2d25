package client_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"creto.dev"
	"creto.dev/client"
)

// A program that administers a node from elsewhere has the token of a session;
// one on the node's machine names the socket instead, and needs none.
func Example() {
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `[{"id":"1","agent":"shop-bot","on_behalf_of":"alice","action":"http_request","resource":"Url::http://shop.test/refunds"}]`)
	}))
	defer node.Close()

	c, err := client.New(node.URL, creto.NewSecret("a session's token"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	waiting, err := c.Approvals(context.Background(), "pending")
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, a := range waiting {
		fmt.Println(a.Agent, "asks for", a.OnBehalfOf, "to", a.Action, a.Resource)
	}
	// Output: shop-bot asks for alice to http_request Url::http://shop.test/refunds
}
