package gateway

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"creto.dev/fault"
)

// FuzzWithheld: whatever the pieces, what comes before the first secret arrives
// as it was, and nothing of a secret or behind it.
func FuzzWithheld(f *testing.F) {
	f.Add("hello", uint8(0))
	f.Add("key: canary-canary-1!", uint8(1))
	f.Add("canary-canary-", uint8(2))
	f.Add("canary-canary-canary-1", uint8(3))
	f.Add("aab-aab-aab-aac", uint8(0))
	f.Fuzz(func(t *testing.T, text string, how uint8) {
		a := added{secrets: []string{"canary-1", "aab-aab-aac", "short"}}
		var from io.Reader = strings.NewReader(text)
		switch how % 4 {
		case 1:
			from = iotest.OneByteReader(from)
		case 2:
			from = iotest.HalfReader(from)
		case 3:
			from = iotest.DataErrReader(from)
		}
		body, err := a.withhold(&http.Response{Body: io.NopCloser(from)})
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		end := len(text)
		for _, secret := range a.secrets[:2] {
			if i := strings.Index(text, secret); i >= 0 {
				end = min(end, i)
			}
		}
		if held := end < len(text); held != errors.Is(err, fault.SecurityViolation) || !held && err != nil {
			t.Errorf("read %q with %v", text, err)
		}
		// By small pieces a later secret may be seen first; never is there more.
		if string(got) != text[:end] {
			t.Errorf("read %q of %q, want %q", got, text, text[:end])
		}
	})
}
