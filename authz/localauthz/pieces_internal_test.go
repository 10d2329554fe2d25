package localauthz

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cedar-policy/cedar-go"
)

// FuzzPieces compares a file that is read policy by policy with what cedar-go reads
// as a whole.
func FuzzPieces(f *testing.F) {
	for _, text := range []string{
		"", "// nothing\n", "permit (principal, action, resource);",
		"@id(\"a\") permit (principal, action, resource); @id(\"é;\") forbid (principal, action, resource)\n  when { context.s == \"\\\"; // no\" }; // yes; \n\n permit\n(principal, action, resource);\n",
		"permit (principal, action, resource) /; permit", "permit (principal, action, resource);;", "permit (principal, action, resource) when { \"\n\" };",
		"@id(\"ééé\") permit (principal, action, resource); forbid (", "é permit", "\"", "permit (principal, action, resource); \"",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if bytes.ContainsAny(text, "\x00\r") || len(text) > maxPolicyBytes {
			t.Skip("the scanner of cedar-go counts columns another way, or the policy is too long")
		}
		whole, wrong := cedar.NewPolicyListFromBytes("x.cedar", text)
		var all cedar.PolicyList
		var mistake error
		for piece := range pieces(text) {
			list, err := piece.parse("x.cedar")
			if err != nil {
				mistake = err
				break
			}
			all = append(all, list...)
		}
		if (wrong != nil) != (mistake != nil) {
			t.Fatalf("as a whole: %v; policy by policy: %v", wrong, mistake)
		}
		if wrong != nil {
			at := parseError.FindStringSubmatch(wrong.Error())
			if at != nil && !strings.Contains(mistake.Error(), " at the end: ") && !strings.HasPrefix(mistake.Error(), "x.cedar:"+at[1]+":"+at[2]+":") {
				t.Fatalf("as a whole: %v; policy by policy: %v", wrong, mistake)
			}
			return
		}
		if len(all) != len(whole) {
			t.Fatalf("%d policies, want %d", len(all), len(whole))
		}
		for i, p := range all {
			if want := whole[i]; !bytes.Equal(p.MarshalCedar(), want.MarshalCedar()) || p.Position() != want.Position() {
				t.Fatalf("policy %d is %s at %+v, want %s at %+v", i, p.MarshalCedar(), p.Position(), want.MarshalCedar(), want.Position())
			}
		}
	})
}
