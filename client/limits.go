package client

import (
	"context"
	"net/url"
	"time"
)

// Limit bounds what an agent may use of an action: how much within a window (Quota)
// or how fast (Rate). One of the two is set.
type Limit struct {
	Agent string `json:"agent"`
	// For is the human at the root of the chains that count; "" is whoever the
	// agent acts for.
	For string `json:"for,omitempty"`
	// Action is an action's name, or * for every action.
	Action string `json:"action"`
	// Quota is AMOUNT/WINDOW, such as 100/1h.
	Quota string `json:"quota,omitempty"`
	// Rate is COUNT/PERIOD, such as 10/s, and Burst how many may come at once; 0
	// means COUNT.
	Rate  string `json:"rate,omitempty"`
	Burst int64  `json:"burst,omitempty"`
	// Used is what the window that ends at Reset has seen, what is under way and
	// what is Lent to other nodes included; Left is what there is, of a rate at
	// once. They are answers.
	Used  int64     `json:"used"`
	Lent  int64     `json:"lent,omitempty"`
	Left  int64     `json:"left"`
	Reset time.Time `json:"reset,omitzero"`
}

// LimitName names limits to remove.
type LimitName struct {
	Agent  string `json:"agent"`
	For    string `json:"for,omitempty"`
	Action string `json:"action"`
	// Window is the length of the windows of the one quota that is meant; 0 is all
	// quotas, and the rate.
	Window time.Duration `json:"window,omitempty"`
	// Rate means the rate alone.
	Rate bool `json:"rate,omitempty"`
}

// Cleared counts what was removed.
type Cleared struct {
	Quotas int `json:"quotas"`
	Rates  int `json:"rates"`
}

// SetLimit sets a quota or a rate, in place of that of the same window. It returns
// what is left of it.
func (c *Client) SetLimit(ctx context.Context, l Limit) (out Limit, err error) {
	return out, c.do(ctx, "POST", "/quotas", l, &out)
}

// Limits lists the limits of an agent, or of all for "".
func (c *Client) Limits(ctx context.Context, agent string) (list []Limit, err error) {
	return list, c.do(ctx, "GET", "/quotas?agent="+url.QueryEscape(agent), nil, &list)
}

// ClearLimit removes limits.
func (c *Client) ClearLimit(ctx context.Context, l LimitName) (out Cleared, err error) {
	return out, c.do(ctx, "POST", "/quotas/clear", l, &out)
}
