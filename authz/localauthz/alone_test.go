package localauthz_test

import (
	"slices"
	"testing"

	"creto.dev"
	"creto.dev/authz/localauthz"
)

// What a client may leave out of the key of a decision that it keeps is what no
// policy reads.
func TestReads(t *testing.T) {
	for text, want := range map[string][]string{
		`permit (principal, action, resource);`:                                                                             nil,
		`permit (principal, action, resource) when { resource.id like "x*" };`:                                              nil,
		`permit (principal, action, resource) when { context.body.amount < 5 };`:                                            {"body"},
		`permit (principal, action, resource) unless { context has risk };`:                                                 {"risk"},
		`permit (principal, action, resource) when { context has a && context.a == context["b"] };`:                         {"a", "b"},
		`permit (principal, action, resource) when { if context.a then [context.b].contains(1) else true };`:                {"a", "b"},
		`permit (principal, action, resource) when { context == {a: 1} };`:                                                  {"*"},
		`permit (principal, action, resource) when { {a: context}.a.b };`:                                                   {"*"},
		`permit (principal, action, resource) when { context.z }; forbid (principal, action, resource) when { context.a };`: {"a", "z"},
	} {
		dir := t.TempDir()
		write(t, dir, "a.cedar", text)
		a, err := open(t, dir, nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		version, reads := localauthz.PolicySet{Authorizer: a}.Policies(creto.DefaultTenant)
		if !slices.Equal(reads, want) || version.IsZero() {
			t.Errorf("%s reads %q, want %q", text, reads, want)
		}
	}
}
