package console_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"

	"creto.dev"
	"creto.dev/console/consoletest"
	"creto.dev/pqc/localpqc"
	"creto.dev/receipt"
)

// A bundle is verified in the browser, which has no node any more.
func TestVerifyInBrowser(t *testing.T) {
	h := open(t, origin)
	var mu sync.Mutex // guards asked
	asked := make(map[string]int)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked[r.URL.Path]++
		mu.Unlock()
		h.console.Handler().ServeHTTP(w, r)
	}))
	stopped := false
	defer func() {
		if !stopped {
			server.Close()
		}
	}()
	b := consoletest.Open(t, server.URL)
	b.Go("/console/verify")
	b.Shows("Drop a bundle here")
	server.CloseClientConnections()
	server.Close()
	stopped = true
	mu.Lock()
	defer mu.Unlock()
	if asked["/console/verifier/verify.mjs"] != 1 || asked["/console/verifier/noble/post-quantum/ml-dsa.js"] != 1 {
		t.Errorf("the page asked for %v", asked)
	}

	golden := func(name string) (path, root string) {
		t.Helper()
		path, err := filepath.Abs(filepath.Join("..", "receipt", "testdata", "bundle-v1-"+name+".cbor"))
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		v, err := receipt.Verify(t.Context(), localpqc.New(), data, creto.Digest{})
		if err != nil {
			t.Fatal(err)
		}
		return path, v.Root.String()
	}
	bring := func(path string) { b.Do(chromedp.SetUploadFiles(`#bundle`, []string{path})) }
	trust := func(root string) {
		b.Do(chromedp.Evaluate[chromedp.Void](`(() => { const root = document.getElementById('root'); root.value = '` + root + `'; root.dispatchEvent(new Event('change', { bubbles: true })); })()`))
	}
	path, root := golden("disclosed")
	bring(path)
	b.Shows("Consistent: 1 record.")
	b.Shows(root)
	for _, text := range []string{"call_model Model::gpt-4o", "bot for alice", "human alice → agent bot", "alice was known by bootstrap", "bob through cli", "test.local/log, of 3 records"} {
		b.Shows(text)
	}
	trust(root)
	b.Shows("Verified: 1 record, under the root that you trust.")
	trust(creto.DigestOf(nil).String())
	b.Shows("Refused: this bundle proves nothing.")
	b.Shows("not on the trusted sha3-256:")
	trust("sha3-256:x")
	b.Shows("The root is a fingerprint")
	trust("")

	path, _ = golden("sealed")
	bring(path)
	b.Shows("somebody whose name is sealed through cli")
	if text := b.Text(); strings.Contains(text, "bob") {
		t.Errorf("what is sealed is shown: %s", text)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/3] ^= 1
	broken := filepath.Join(t.TempDir(), "broken.cbor")
	if err := os.WriteFile(broken, data, 0o600); err != nil {
		t.Fatal(err)
	}
	bring(broken)
	b.Shows("Refused: this bundle proves nothing.")
	if text := b.Text(); strings.Contains(text, "call_model") {
		t.Errorf("what is refused is shown: %s", text)
	}
	if dir := os.Getenv("CRETO_PICTURES"); dir != "" {
		picture := func(name string) {
			if err := os.WriteFile(filepath.Join(dir, name+".png"), b.Picture(), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		picture("refused")
		path, root := golden("disclosed")
		bring(path)
		trust(root)
		b.Shows("Verified: 1 record")
		picture("verified")
		b.Do(chromedp.Evaluate[chromedp.Void](`document.documentElement.style.colorScheme = 'dark'`), chromedp.EmulateViewport(390, 844))
		picture("phone")
	}
}
