package authz

// Explanation says how policies came to a decision. It is for people and their
// tools: nothing is decided on it. Its JSON form is stable.
type Explanation struct {
	// Decision is what the policies and the links' scopes come to, without
	// extensions: allow, deny or requires_oversight.
	Decision string `json:"decision"`
	// Links are the delegations of the chain, the human's first. There are none
	// where no chain was asked about.
	Links []ExplainedLink `json:"links,omitempty"`
	// Principals are everybody in the chain, the human first. All must be allowed.
	Principals []ExplainedPrincipal `json:"principals"`
	// Changes are what would have the action allowed.
	Changes []Change `json:"changes,omitempty"`
}

// ExplainedLink is one delegation.
type ExplainedLink struct {
	From string `json:"from"` // as in human:alice
	To   string `json:"to"`
	// Covers says whether the link's scope includes the action on the resource.
	// If not, Actions and Resources are what it does include.
	Covers    bool     `json:"covers"`
	Actions   []string `json:"actions,omitempty"`
	Resources []string `json:"resources,omitempty"`
}

// ExplainedPrincipal is what the policies say of one of the chain.
type ExplainedPrincipal struct {
	Principal string   `json:"principal"` // as in agent:shop-bot
	Groups    []string `json:"groups,omitempty"`
	// Decision is allow, deny or requires_oversight, for this principal alone.
	Decision string `json:"decision"`
	// Policies are those whose scope includes the request, by id. More counts
	// those that are left out.
	Policies []ExplainedPolicy `json:"policies"`
	More     int               `json:"more,omitempty"`
}

// ExplainedPolicy is a policy whose scope includes the request.
type ExplainedPolicy struct {
	ID string `json:"id"`
	// File is relative to the directory of policies; Line and Column, from 1,
	// are where the policy begins.
	File   string `json:"file"`
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Effect string `json:"effect"` // permit or forbid
	// Result is satisfied, unsatisfied, or error for a policy that cannot be
	// evaluated: then a permit does not apply, and a forbid denies.
	Result string `json:"result"`
	// Decides says that the principal's decision is this policy's.
	Decides bool `json:"decides,omitempty"`
	// Asks is the group of @oversight.
	Asks string `json:"asks,omitempty"`
	// Conditions are those that had a say: all of them if the policy is
	// satisfied, else those because of which it is not.
	Conditions []ExplainedCondition `json:"conditions,omitempty"`
}

// ExplainedCondition is an operand of && in a policy's when, or of || in its
// unless.
type ExplainedCondition struct {
	Text   string `json:"text"` // in Cedar
	Line   int    `json:"line"`
	Column int    `json:"column"`
	// Unless says that it must not hold.
	Unless bool `json:"unless,omitempty"`
	// Result is true, false, or error, and Error is why it cannot be evaluated.
	Result string `json:"result"`
	Error  string `json:"error,omitempty"`
	// Reads is what it read.
	Reads []ExplainedValue `json:"reads,omitempty"`
	// Needs says in words what must be otherwise for a permit to apply, or for a
	// forbid not to; "" if nothing must.
	Needs string `json:"needs,omitempty"`
}

// ExplainedValue is something of the request. Values are cut after some hundred
// bytes, and those of credentials are ***.
type ExplainedValue struct {
	Name  string `json:"name"`  // as in context.body.amount
	Value string `json:"value"` // in Cedar; "absent" if there is none
}

// The kinds of changes.
const (
	ChangeScope     = "scope"     // a delegation must include the action
	ChangeForbid    = "forbid"    // a policy must not forbid it
	ChangeCondition = "condition" // a permit's conditions must hold
	ChangePermit    = "permit"    // a policy must be added
	ChangeConsent   = "consent"   // a human must be asked
	ChangeQuota     = "quota"     // quota must be there again
)

// Change is one thing that would have an action allowed, as far as it is what
// stands in the way.
type Change struct {
	Kind string `json:"kind"`
	// Text says it in words.
	Text string `json:"text"`
	// Principal is for whom; "" for everybody.
	Principal string `json:"principal,omitempty"`
	// Policy is the id of the policy that it is about, and Line a policy to add.
	Policy string `json:"policy,omitempty"`
	Line   string `json:"line,omitempty"`
}
