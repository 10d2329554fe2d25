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

// Units returns how many units of quota a request uses: one for each action, and
// for consume_quota as many as its context says.
//
// Errors: AuthzInvalidRequest (Permanent) unless that is a whole number of at
// least 1.
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
		if n == math.MaxInt64 && v.String() != strconv.FormatInt(n, 10) {
			n = 0 // it was out of range
		}
	case float64:
		if v == math.Trunc(v) && v < 1<<53 {
			n = int64(v)
		}
	}
	if n < 1 {
		return 0, fault.New("authz.Units", fault.AuthzInvalidRequest, "context.%s is %v; what consume_quota takes is a whole number of at least 1", AmountKey, value)
	}
	return n, nil
}
