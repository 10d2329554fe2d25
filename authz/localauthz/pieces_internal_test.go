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
		var at []cedar.Position // in the file
		var mistake error
		for piece := range pieces(text) {
			one, err := piece.parse("x.cedar")
			if err != nil {
				mistake = err
				break
			}
			if one != nil {
				all, at = append(all, one), append(at, piece.locate("x.cedar", one.Position()))
			}
		}
		if (wrong != nil) != (mistake != nil) {
			t.Fatalf("as a whole: %v; policy by policy: %v", wrong, mistake)
		}
		if wrong != nil {
			found := parseError.FindStringSubmatch(wrong.Error())
			if found != nil && !strings.Contains(mistake.Error(), " at the end: ") && !strings.HasPrefix(mistake.Error(), "x.cedar:"+found[1]+":"+found[2]+":") {
				t.Fatalf("as a whole: %v; policy by policy: %v", wrong, mistake)
			}
			return
		}
		if len(all) != len(whole) {
			t.Fatalf("%d policies, want %d", len(all), len(whole))
		}
		for i, p := range all {
			if want := whole[i]; !bytes.Equal(p.MarshalCedar(), want.MarshalCedar()) || at[i] != want.Position() {
				t.Fatalf("policy %d is %s at %+v, want %s at %+v", i, p.MarshalCedar(), at[i], want.MarshalCedar(), want.Position())
			}
		}
	})
}
