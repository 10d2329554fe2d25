package authz

import (
	"encoding/json"
	"math"
	"strconv"

	"creto.dev"
	"creto.dev/fault"
)

// AmountKey is what an agent that asks to consume_quota says in the context: how
// many units. Without it, it is one.
const AmountKey = "amount"

// MaxAmount is the most units of one request: every implementation of JSON agrees
// on whole numbers up to it (RFC 7493, section 2.2), and thousands of them can be
// added up.
const MaxAmount = 1<<53 - 1

// Units returns how many units of quota a request uses: one for each action, and
// for consume_quota as many as its context says.
//
// Errors: AuthzInvalidRequest (Permanent) unless that is a whole number of 1 to
// MaxAmount.
func Units(action string, context map[string]any) (int64, error) {
	if action != creto.ConsumeQuota {
		return 1, nil
	}
	value, ok := context[AmountKey]
	if !ok || value == nil {
		return 1, nil
	}
	n := int64(0)
	switch v := value.(type) {
	case int:
		n = int64(v)
	case int64:
		n = v
	case json.Number:
		n, _ = strconv.ParseInt(v.String(), 10, 64) // 0 for what is none
	case float64:
		if v == math.Trunc(v) && v <= MaxAmount {
			n = int64(v)
		}
	}
	if n < 1 || n > MaxAmount {
		return 0, fault.New("authz.Units", fault.AuthzInvalidRequest, "context.%s is %v; what consume_quota takes is a whole number of 1 to %d", AmountKey, value, int64(MaxAmount))
	}
	return n, nil
}
