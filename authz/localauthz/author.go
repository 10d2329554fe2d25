package localauthz

import (
	"fmt"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/gate"
)

// Rule is one --allow or --ask flag: what an agent may do.
type Rule struct {
	// Text is ACTION=RESOURCE-GLOB; for http_request the glob may begin with a
	// method, as in "http_request=GET http://shop.test/orders/*". For
	// access_secret it is by delivery of the gateway, unless it begins with
	// "raw ": then the agent may hold the secret.
	Text string
	// Ask is the group whose consent is needed; "" for none.
	Ask string
}

// PolicyText writes one Cedar policy for each rule.
//
// Errors: InvalidArgument (Permanent) for a rule that cannot be read.
func PolicyText(agent creto.ID, rules []Rule) (string, error) {
	const op fault.Op = "localauthz.PolicyText"
	var text strings.Builder
	fmt.Fprintf(&text, "// What the agent %s may do. Edit freely: a change takes effect at once.\n", agent.Name)
	for i, rule := range rules {
		action, glob, ok := strings.Cut(rule.Text, "=")
		kind, known := creto.ResourceType(action)
		if !ok || !known || glob == "" {
			return "", fault.New(op, fault.InvalidArgument, "%q is not ACTION=RESOURCE-GLOB, such as call_model=* or \"http_request=GET http://shop.test/*\"", rule.Text)
		}
		var conditions []string
		switch action {
		case creto.HTTPRequest:
			if method, rest, ok := strings.Cut(glob, " "); ok {
				conditions = append(conditions, "context.method == "+quote(method))
				glob = rest
			}
		case creto.AccessSecret:
			delivery, rest, ok := strings.Cut(glob, " ")
			if !ok {
				delivery, rest = gate.DeliveryGateway, glob
			}
			if delivery != gate.DeliveryGateway && delivery != gate.DeliveryRaw {
				return "", fault.New(op, fault.InvalidArgument, "%q is not access_secret=NAME or \"access_secret=raw NAME\"", rule.Text)
			}
			conditions = append(conditions, "context.delivery == "+quote(delivery))
			glob = rest
		}
		if err := checkGlob(action, glob); err != nil {
			return "", err
		}
		resource := "resource is " + namespace + kind
		switch {
		case glob == "*":
		case strings.Contains(glob, "*"):
			conditions = append(conditions, "resource.id like "+quotePattern(glob))
		default:
			resource = "resource == " + namespace + kind + "::" + quote(glob)
		}
		fmt.Fprintf(&text, "\n@id(%s)\n", quote(fmt.Sprintf("%s/%d", agent.Name, i+1)))
		if rule.Ask != "" {
			fmt.Fprintf(&text, "@oversight(%s)\n", quote(rule.Ask))
		}
		fmt.Fprintf(&text, "permit (principal == %s, action == Creto::Action::%s, %s)", principalUID(agent), quote(action), resource)
		if len(conditions) > 0 {
			fmt.Fprintf(&text, " when { %s }", strings.Join(conditions, " && "))
		}
		text.WriteString(";\n")
	}
	if _, err := cedar.NewPolicyListFromBytes("rules", []byte(text.String())); err != nil {
		return "", fault.WrapAs(op, fault.Internal, err, "")
	}
	return text.String(), nil
}

// checkGlob refuses a pattern of URLs that does not mean what it seems to: one
// whose wildcard can end the host's name elsewhere, and one that can never match.
func checkGlob(action, glob string) error {
	const op fault.Op = "localauthz.checkGlob"
	if action != creto.HTTPRequest || glob == "*" {
		return nil
	}
	rest, ok := strings.CutPrefix(glob, "http://")
	if !ok {
		return fault.New(op, fault.InvalidArgument, "%q is no URL: write http://HOST/PATH; https is decided by host, with network_egress=HOST:443", glob)
	}
	authority, _, ok := strings.Cut(rest, "/")
	if !ok {
		return fault.New(op, fault.InvalidArgument, "%q names no path: write http://%s/ for the one page, or http://%s/* for all", glob, strings.TrimRight(rest, "*"), strings.TrimRight(rest, "*"))
	}
	if strings.HasSuffix(authority, "*") && authority != "*" || strings.ToLower(authority) != authority {
		return fault.New(op, fault.InvalidArgument, "%q would also match other hosts, or none: write the whole host in lower case before the path", glob)
	}
	return nil
}

// PermitFor returns the policy that would permit a request, in one line.
func PermitFor(id creto.ID, r authz.Request) string {
	line := fmt.Sprintf("permit (principal == %s, action == Creto::Action::%s, resource == %s%s::%s)",
		principalUID(id), quote(r.Action), namespace, r.Resource.Type, quote(r.Resource.ID))
	attribute := "method"
	if r.Action == creto.AccessSecret {
		attribute = "delivery" // or the line would let the agent hold the secret
	}
	if value, ok := r.Context[attribute].(string); ok {
		line += " when { context." + attribute + " == " + quote(value) + " }"
	}
	return line + ";"
}

// quote writes a Cedar string.
func quote(s string) string { return string(types.String(s).MarshalCedar()) }

// quotePattern writes a Cedar pattern in which only '*' is a wildcard.
func quotePattern(glob string) string {
	var components []any
	for i, part := range strings.Split(glob, "*") {
		if i > 0 {
			components = append(components, types.Wildcard{})
		}
		components = append(components, types.String(part))
	}
	return string(types.NewPattern(components...).MarshalCedar())
}
